"""A Mixture-of-Experts block, and the slot that one of another framework takes.

Shapes: as in `model`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moemodel.model.architecture.spec import Mlp, Moe
from moemodel.model.plan.routing import RoutingSpec
from moemodel.profiler.backends.torch_native import operators as torch_ops
from moemodel.profiler.backends.torch_native.blocks import GATES, PLAIN, DenseBlock
from moemodel.profiler.backends.torch_native.router_passes import RoutingPass, RoutingPasses, entropy_of
from moemodel.profiler.backends.torch_native.strategy import WHOLE, ShardingStrategy

# Called with the block as the architecture has it, what this device holds of it, the model's width, how a layer is
# shared out, and what a plan asks of routers. The module takes rows [T, D], gives rows [T, D], and has `records`,
# `RoutingPasses`, to which it appends a `RoutingPass` after each forward pass; a `router_loss` there comes with its
# gradient and times its coefficient, and the layer adds it to the backward pass. Where it has `recording`, the model
# sets it: entropies are wanted. One that keeps its weights in a form of its own has
# `load_reference(router_ED, up_EDF, down_EFD)`, whole ones, and `reference_gradients()`, theirs in that order and form.
MixtureFactory = Callable[[Moe, Moe, int, ShardingStrategy, RoutingSpec], nn.Module]


def reference_shapes(block: Moe, hidden: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a block that is whole, by their names in `Mixture`."""
    up = block.width * (2 if block.gated else 1)
    return {
        "router.weight": (block.experts, hidden),
        "experts.up_EDF": (block.experts, hidden, up),
        "experts.down_EFD": (block.experts, block.width, hidden),
    }


class Experts(nn.Module):
    """Two grouped products over rows sorted by expert."""

    def __init__(self, block: Moe, hidden: int) -> None:
        super().__init__()
        self._block = block
        self.up_EDF = nn.Parameter(torch.empty(block.experts, hidden, block.width * (2 if block.gated else 1)))
        self.down_EFD = nn.Parameter(torch.empty(block.experts, block.width, hidden))

    def forward(self, x_RD: Tensor, offsets_E: Tensor) -> Tensor:
        """Rows [R, D] sorted by expert in and out; `offsets_E`: end of each expert's."""
        return torch_ops.grouped_linear(self._inner(x_RD, offsets_E), self.down_EFD, offsets_E)

    def _inner(self, x_RD: Tensor, offsets_E: Tensor) -> Tensor:
        up = torch_ops.grouped_linear(x_RD, self.up_EDF, offsets_E)
        if self._block.gated:
            return GATES[self._block.activation](*up.chunk(2, dim=-1))
        return PLAIN[self._block.activation](up)


class Mixture(nn.Module):
    """Dropless experts: rows sorted by expert, through the experts, weighted and added back.

    Args:
        block: as the architecture has it.
        held: what this device holds of it.
        hidden: model width.
        sharding: see `ShardingStrategy`.
    """

    def __init__(self, block: Moe, held: Moe, hidden: int, sharding: ShardingStrategy, routing: RoutingSpec) -> None:
        super().__init__()
        del routing  # which checks let through only where it asks for nothing
        self._block, self._sharding = block, sharding
        self.router = nn.Linear(hidden, block.experts, bias=False)
        self.experts = Experts(held, hidden)
        shared = Mlp(width=held.shared_width, activation=block.activation, gated=block.gated, bias=block.bias)
        self.shared = (
            DenseBlock(shared, hidden, WHOLE) if block.shared_width else None
        )  # enters and leaves with the rest
        self.shared_gate = nn.Linear(hidden, 1, bias=False) if block.shared_gate else None
        self.recording = False  # whether what costs something to know is recorded too
        self.records = RoutingPasses()

    def forward(self, x_TD: Tensor) -> Tensor:
        """Rows [T, D] in and out."""
        x_TD = self._sharding.enter_tensor_parallel_region(x_TD)
        y_TD = self._routed(x_TD)
        if self.shared is None:
            return self._sharding.leave_tensor_parallel_region(y_TD)
        shared_TD: Tensor = self.shared(x_TD)
        if self.shared_gate is not None:
            shared_TD = torch.sigmoid(self.shared_gate(x_TD)) * shared_TD
        return self._sharding.leave_tensor_parallel_region(y_TD + shared_TD)

    def _routed(self, x_TD: Tensor) -> Tensor:
        block = self._block
        logits_TE = self.router(x_TD)
        weight_Tk, expert_Tk = torch_ops.route(logits_TE, block.top_k)
        d = torch_ops.dispatch(expert_Tk, block.experts)
        entropy = entropy_of(logits_TE.softmax(-1, dtype=torch.float32)) if self.recording else None
        self.records.append(RoutingPass(d.counts_E, entropy=entropy))
        y_RD = self._sharding.pass_experts(torch_ops.permute(x_TD, d, block.top_k), d, self.experts)
        return torch_ops.unpermute(y_RD, weight_Tk, d)
