"""Multi-head latent attention: low-rank queries, keys and values (DeepSeek-V2, arXiv:2405.04434, section 2.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from moemodel.model.architecture.spec import Latent
from moemodel.model.core.arrays import FloatArray
from moemodel.model.frameworks.base import Framework
from moemodel.model.layers.attention import AttentionBlock
from moemodel.model.layers.base import Component, Kept, LayerOp, MicroBatch, linear
from moemodel.model.operators.work import Kind, Shape

_UP = ("mla_up_proj",)


@dataclass(frozen=True, kw_only=True)
class LatentAttentionBlock(AttentionBlock):
    """Attention whose queries, keys and values are projected down, and up again."""

    latent: Latent

    def parameters(self) -> Iterator[Component]:
        yield Component.of("attention", self._head_parameters(), "tp")
        yield Component.of("latent", self._down_parameters(), "none")
        yield Component.of("norms", self._norm_parameters(), "none")

    def _head_parameters(self) -> int:
        """Up-projections and output (DeepSeek-V2, appendix C)."""
        a, latent, hidden = self.spec, self.latent, self.hidden
        query_inputs = hidden if latent.q_rank is None else latent.q_rank
        queries = query_inputs * a.heads * (a.head_dim + latent.rope_head_dim)
        keys_values = latent.kv_rank * a.heads * (a.head_dim + latent.value_head_dim)
        output = a.heads * latent.value_head_dim * hidden + (hidden if a.bias_out else 0)
        return queries + keys_values + output

    def _down_parameters(self) -> int:
        """Down-projections: of queries, and of keys and values with the rotary key; the same on every rank."""
        latent = self.latent
        outputs = (latent.q_rank or 0) + latent.kv_rank + latent.rope_head_dim
        return self.hidden * outputs + (outputs if self.spec.bias_qkv else 0)

    def _norm_parameters(self) -> int:
        """Norms of the latents."""
        return (self.latent.q_rank or 0) + self.latent.kv_rank

    def parameter_tensors(self) -> int:
        return super().parameter_tensors() + 3

    def joined_tensors(self, framework: Framework) -> int:  # noqa: ARG002 - its projections are apart
        return 0

    def matmul_parameters(self) -> int:
        return self._head_parameters() + self._down_parameters()

    @property
    def _head_dim(self) -> int:
        return self.spec.head_dim + self.latent.rope_head_dim

    @property
    def _value_dim(self) -> int:
        return self.latent.value_head_dim

    def _projections(self, batch: MicroBatch) -> Iterator[LayerOp]:
        """Down- and up-projections, norms between (DeepSeek-V2, eq. 9-19)."""
        latent, tokens, width, rope = self.latent, batch.tokens, self.hidden, self.latent.rope_head_dim
        heads = self.spec.heads / batch.tp
        q_width = heads * (self.spec.head_dim + rope)
        if latent.q_rank is None:
            yield linear(tokens, q_width, width, target="qkv")
        else:
            yield replace(linear(tokens, latent.q_rank, width, target="qkv"), duplicated=True)
            yield LayerOp(kind=Kind.RMS_NORM, shape=Shape(m=tokens, n=latent.q_rank), parts=_UP)
            yield replace(linear(tokens, q_width, latent.q_rank, target="qkv"), parts=_UP)
        yield replace(linear(tokens, latent.kv_rank + rope, width, target="qkv"), duplicated=True)
        yield LayerOp(kind=Kind.RMS_NORM, shape=Shape(m=tokens, n=latent.kv_rank), parts=_UP)
        wide = heads * (self.spec.head_dim + latent.value_head_dim)
        yield replace(linear(tokens, wide, latent.kv_rank, target="qkv"), parts=_UP)
        yield LayerOp(kind=Kind.ROTARY, shape=Shape(m=tokens, n=(heads + 1) * rope), parts=_UP)

    def more_launches(self, batch: MicroBatch) -> tuple[FloatArray, FloatArray]:
        forward, backward = batch.framework.latent_calls
        queued = batch.framework.captured_parts != "attention"  # else graphs of attention replay them
        return np.full(batch.plans, forward * queued), np.full(batch.plans, backward * queued)

    def kept(self, batch: MicroBatch) -> Iterator[Kept]:
        """Latents before their norms; behind them, and queries, keys and values that are projected up from them."""
        latent, heads = self.latent, self.spec.heads / batch.tp
        ranks = (latent.q_rank or 0) + latent.kv_rank
        wide = heads * (2 * (self.spec.head_dim + latent.rope_head_dim) + latent.value_head_dim)
        yield Kept(size_B=np.full(batch.plans, batch.element_size_B * ranks) * batch.tokens)
        normed_B = batch.recipe.product_input_B * ranks
        yield Kept(size_B=batch.tokens * (normed_B + batch.element_size_B * wide), parts=("mla_up_proj",))
        yield from self.core_kept(batch)

    def _exchanged_widths(self, batch: MicroBatch) -> tuple[FloatArray, ...]:
        """As many heads of keys and values as of queries, projected up already."""
        wide, values = (self.spec.heads / batch.tp * size for size in (self._head_dim, self._value_dim))
        return wide, wide, values, values

    def _ring_width(self, batch: MicroBatch) -> FloatArray:
        """The latent of keys and values, and the rotary key."""
        return np.full(batch.plans, float(self.latent.kv_rank + self.latent.rope_head_dim))
