"""Attention blocks: over the layer's own rows, or over an encoder's.

Stacks with relative position biases (T5's) scale no scores by the width of a head: their weights are drawn so.

Shapes: as in `model`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from moemodel.model.architecture.spec import Attention
from moemodel.profiler.backends.torch_native import operators as torch_ops
from moemodel.profiler.backends.torch_native.blocks import Norm
from moemodel.profiler.backends.torch_native.strategy import ShardingStrategy


@dataclass(frozen=True)
class Positions:
    """How [T, D] rows are sequences, and what attention needs to know of places in them.

    Attributes:
        batch, seq: sequences, and tokens of each.
        rotary: tables [S, 1, K/2] by head width.
        bias: added to scores of self-attention [1, H, S, S]; None: nothing is, and scores are scaled.
        memory_TD: an encoder's output, of as many sequences; None without one.
    """

    batch: int
    seq: int
    rotary: dict[int, tuple[Tensor, Tensor]]
    bias: Tensor | None = None
    memory_TD: Tensor | None = None


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
        source_TD = self._source(x_TD, positions)
        q, k = self.q(x_TD), self.k(source_TD)
        if self.q_norm is not None and self.k_norm is not None and self._shape.qk_norm == "full":
            q, k = self._sharding.normalise(q, k, self.q_norm, self.k_norm)
        q_BHSK, k_BGSK = self._heads(q, self.q_norm, positions), self._heads(k, self.k_norm, positions)
        v_BGSK = self._split(self.v(source_TD), positions).transpose(1, 2)
        y_BHSK = self._core(q_BHSK, k_BGSK, v_BGSK, positions)
        return self._sharding.project(self.o, y_BHSK.transpose(1, 2).reshape(x_TD.shape[0], -1))

    def _source(self, x_TD: Tensor, positions: Positions) -> Tensor:
        """Rows that keys and values are made of."""
        if not self._shape.cross:
            return x_TD
        assert positions.memory_TD is not None
        return self._sharding.enter_tensor_parallel_region(positions.memory_TD)

    def _core(self, q_BHSK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, positions: Positions) -> Tensor:
        if positions.bias is None:
            return torch_ops.attention(q_BHSK, k_BGSK, v_BGSK, self._shape.causal)
        bias = None if self._shape.cross else positions.bias  # which hides from a causal query what it must not see
        return torch_ops.unscaled_attention(q_BHSK, k_BGSK, v_BGSK, bias)

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
        return x.view(positions.batch, -1, x.shape[-1] // self._shape.head_dim, self._shape.head_dim)
