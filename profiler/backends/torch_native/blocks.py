"""Blocks of a layer: norms, dense feed-forward blocks.

Shapes: as in `model`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from moemodel.model.architecture.spec import Mlp
from moemodel.profiler.backends.torch_native import operators as torch_ops
from moemodel.profiler.backends.torch_native.strategy import ShardingStrategy


class Norm(nn.Module):
    """RMS norm or layer norm of rows."""

    def __init__(self, width: int, *, kind: str, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        self._rms = kind == "rms"

    def forward(self, x: Tensor) -> Tensor:
        """Normalised rows."""
        if self._rms:
            return torch_ops.rms_norm(x, self.weight)
        return torch_ops.layer_norm(x, self.weight, self.bias)


def _gelu_gate(gate: Tensor, up: Tensor) -> Tensor:
    return functional.gelu(gate) * up


def _relu_gate(gate: Tensor, up: Tensor) -> Tensor:
    return functional.relu(gate) * up


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}
GATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": _gelu_gate,
    "relu": _relu_gate,
    "silu": torch_ops.swiglu,
}


class DenseBlock(nn.Module):
    """A dense feed-forward block, gated or not."""

    def __init__(self, block: Mlp, hidden: int, sharding: ShardingStrategy) -> None:
        super().__init__()
        self._activation, self._sharding = block.activation, sharding
        self.gate = nn.Linear(hidden, block.width, bias=block.bias) if block.gated else None
        self.up = nn.Linear(hidden, block.width, bias=block.bias)
        self.down = nn.Linear(block.width, hidden, bias=block.bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Rows [T, D] in and out."""
        return self._sharding.project(self.down, self._inner(self._sharding.enter_tensor_parallel_region(x_TD)))

    def _inner(self, x_TD: Tensor) -> Tensor:
        if self.gate is None:
            return PLAIN[self._activation](self.up(x_TD))
        return GATES[self._activation](self.gate(x_TD), self.up(x_TD))
