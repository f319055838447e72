"""Blocks of a layer: norms, attention, dense feed-forward blocks.

Shapes: as in `model`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from moemodel.model.architecture.spec import Attention, Mlp
from moemodel.profiler.backends.torch_native import operators as torch_ops
from moemodel.profiler.backends.torch_native.strategy import ShardingStrategy


@dataclass(frozen=True)
class Positions:
    """How [T, D] rows are sequences, and the rotary tables [S, 1, K/2] by head width."""

    batch: int
    seq: int
    rotary: dict[int, tuple[Tensor, Tensor]]


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


class AttentionBlock(nn.Module):
    """Queries, keys, values, the core, and the output's product."""

    def __init__(self, attention: Attention, hidden: int, *, sharding: ShardingStrategy) -> None:
        super().__init__()
        self._shape, self._sharding = attention, sharding
        queries, keys = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
        self.q = nn.Linear(hidden, queries, bias=attention.bias_qkv)
        self.k = nn.Linear(hidden, keys, bias=attention.bias_qkv)
        self.v = nn.Linear(hidden, keys, bias=attention.bias_qkv)
        self.o = nn.Linear(queries, hidden, bias=attention.bias_out)
        per_head = attention.qk_norm == "per_head"
        widths = (attention.head_dim, attention.head_dim) if per_head else (queries, keys)
        normed = attention.qk_norm != "none"
        self.q_norm = Norm(widths[0], kind="rms", bias=False) if normed else None
        self.k_norm = Norm(widths[1], kind="rms", bias=False) if normed else None

    def forward(self, x_TD: Tensor, positions: Positions) -> Tensor:
        """Rows [T, D] in and out."""
        x_TD = self._sharding.enter_tensor_parallel_region(x_TD)
        q, k = self.q(x_TD), self.k(x_TD)
        if self.q_norm is not None and self.k_norm is not None and self._shape.qk_norm == "full":
            q, k = self._sharding.normalise(q, k, self.q_norm, self.k_norm)
        q_BHSK, k_BGSK = self._heads(q, self.q_norm, positions), self._heads(k, self.k_norm, positions)
        v_BGSK = self._split(self.v(x_TD), positions).transpose(1, 2)
        y_BHSK = torch_ops.attention(q_BHSK, k_BGSK, v_BGSK, self._shape.causal)
        return self._sharding.project(self.o, y_BHSK.transpose(1, 2).reshape(x_TD.shape[0], -1))

    def _heads(self, x: Tensor, norm: Norm | None, positions: Positions) -> Tensor:
        """Normalise each head where heads have their own norm, rotate, and bring heads before the sequence.

        In memory the sequence stays before the heads: a flash kernel's output has the layout of its queries, and so
        needs no copy to become rows again.
        """
        x_BSHK = self._split(x, positions)
        if norm is not None and self._shape.qk_norm == "per_head":
            x_BSHK = norm(x_BSHK)
        if self._shape.rotary:
            x_BSHK = torch_ops.rotary(x_BSHK, *positions.rotary[self._shape.head_dim])
        return x_BSHK.transpose(1, 2)

    def _split(self, x: Tensor, positions: Positions) -> Tensor:
        return x.view(positions.batch, positions.seq, -1, self._shape.head_dim)


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
