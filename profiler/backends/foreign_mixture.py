"""What Mixture-of-Experts blocks of other frameworks have in common with the torch backend's.

Shapes: T tokens, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moemodel.model.architecture.spec import Mlp, Moe
from moemodel.profiler.backends.torch_native.blocks import DenseBlock
from moemodel.profiler.backends.torch_native.router_passes import RoutingPasses
from moemodel.profiler.backends.torch_native.strategy import WHOLE


class ForeignMixture(nn.Module):
    """Records of the router, and shared experts, which stand beside the framework's layer as in the torch backend.

    Args:
        block: what this rank holds of it.
        hidden: model width.

    Attributes:
        recording: whether what costs something to know is recorded too.
        records: of the router, one a forward pass.
    """

    def __init__(self, block: Moe, hidden: int) -> None:
        super().__init__()
        shared = Mlp(width=block.shared_width, activation=block.activation, gated=block.gated, bias=block.bias)
        self.shared = DenseBlock(shared, hidden, WHOLE) if block.shared_width else None
        self.shared_gate = nn.Linear(hidden, 1, bias=False) if block.shared_gate else None
        self.recording = False
        self.records = RoutingPasses()

    def with_shared(self, x_TD: Tensor, y_TD: Tensor) -> Tensor:
        """The routed experts' output, and that of the shared ones for the same input."""
        if self.shared is None:
            return y_TD
        shared_TD: Tensor = self.shared(x_TD)
        if self.shared_gate is not None:
            shared_TD = torch.sigmoid(self.shared_gate(x_TD)) * shared_TD
        return y_TD + shared_TD
