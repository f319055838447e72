"""Attention: multi-head, grouped-query, causal or not, with a flash kernel or without one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moemodel.model.architecture.spec import Attention
from moemodel.model.core.arrays import BoolArray, FloatArray
from moemodel.model.frameworks.base import AdaptedLinear, Framework
from moemodel.model.layers.base import (
    Block,
    CollectiveName,
    Component,
    Kept,
    LayerComm,
    LayerOp,
    MicroBatch,
    elementwise,
    linear,
)
from moemodel.model.layers.norms import head_norm_kept_B
from moemodel.model.operators.work import Kind, Shape
from moemodel.model.plan.context_comm import all_to_all_ranks, inner_ranks

# Tensors of bf16 elements that elementwise kernels of Megatron-LM 2.x read and write; a dropout mask is half of one.
_SOFTMAX, _SOFTMAX_BACKWARD = 2.0, 3.0  # scale, mask and softmax in one kernel
_DROPOUT = 2.5  # read and written, and the mask
_LAYOUT = 2.0  # a tensor copied into another order
_MERGED = 5.0  # 16 bits read, and float32 sums read and written
# The same softmax where the fused kernel cannot run, as on sequences above `Framework.softmax_longest`: to float32,
# scale, mask, softmax, back to 16 bits; and backward
_SOFTMAX_SLOW, _SOFTMAX_SLOW_BACKWARD = (3.0, 4.0, 4.5, 4.0, 3.0), (3.0, 6.0, 4.5, 4.0, 3.0)
# torch's own: a mask that every head shares is filled in, in place; softmax. Kernels that look up such a mask take 1.6
# times as long as a copy, those of softmax over rows of 2048 float32 1.33 times (an H200 with torch 2.11, 2026-11-28)
_FILL, _SOFTMAX_ROWS = 3.2, 2.65
_SOFTMAX_PLAIN = (_FILL, _SOFTMAX_ROWS)
# Backward: filling a view in place is undone on copies of its whole base (as_strided's: zeros, a copy; CopySlices: the
# gradient copied, cloned; masked_fill's clone, fill; copied back: torch/csrc/autograd/functions/tensor.cpp); softmax's
# multiplies gradient and output first (aten/src/ATen/native/cuda/SoftMax.cu, softmax_backward_cuda_out)
_SOFTMAX_PLAIN_BACKWARD = ((1.0, 2.0, 2.0, 2.0, 2.0, _FILL, 2.0), (3.0, 3.0))
_SOFTMAX_BATCHES = 4  # the fused kernel takes micro_batch x heads in fours (fused_softmax.py, is_kernel_available)
# What tensor parallelism puts in place of one kernel, in `profiler/backends/torch_native`; a float32 element is two of
# bf16. Norms of all queries and of all keys: squares; two scalings, to 16 bits. Backward: float32 gradients, scaled;
# their products with the input, summed; two scaled terms, their difference, to 16 bits; the weights' products, summed
_CUT_NORM, _CUT_NORM_BACKWARD = 1.0 + 3.0 + 4.0 + 3.0, 3.0 + 4.0 + 5.0 + 2.0 + 4.0 + 3.0 + 6.0 + 3.0 + 3.0 + 5.0 + 2.0

_F = 4.0  # bytes of a float32 element
_MASK = 1.0  # byte of a dropout mask


@dataclass(frozen=True, kw_only=True)
class AttentionBlock(Block):
    """Attention with keys and values of its own for every head, or for groups of heads."""

    spec: Attention
    hidden: int

    # ---- parameters -------------------------------------------------------------------------------------------------

    def parameters(self) -> Iterator[Component]:
        """With h heads of d (g of them for keys and values, these of v) in a model of width H: H(h d) + H g(d + v) +
        (h v) H."""
        yield Component.of("attention", self._head_parameters(), "tp")
        yield Component.of("norms", self._norm_parameters(), "none")

    def _head_parameters(self) -> int:
        """Products and biases of queries, keys, values and output, and relative position biases."""
        a, hidden = self.spec, self.hidden
        inputs = a.heads * a.head_dim + a.kv_heads * (a.head_dim + self._value_dim)
        products = hidden * inputs + a.heads * self._value_dim * hidden
        biases = (inputs if a.bias_qkv else 0) + (hidden if a.bias_out else 0)
        return products + biases + a.relative_buckets * a.heads + (a.heads if a.sinks else 0)

    def _norm_parameters(self) -> int:
        """Norms of queries and keys."""
        a = self.spec
        match a.qk_norm:
            case "none":
                return 0
            case "per_head":
                return 2 * a.head_dim
            case "full":
                return (a.heads + a.kv_heads) * a.head_dim

    def parameter_tensors(self) -> int:
        a = self.spec
        return 4 + 3 * a.bias_qkv + a.bias_out + 2 * (a.qk_norm != "none") + a.sinks

    def joined_tensors(self, framework: Framework) -> int:
        return 2 * (1 + self.spec.bias_qkv) * framework.fused_qkv

    def first_target(self) -> AdaptedLinear:
        return "qkv"

    def host_variant(self) -> str | None:
        return "qk_norm" if self.spec.qk_norm != "none" else None

    # ---- FLOPs of the model -----------------------------------------------------------------------------------------

    def matmul_parameters(self) -> int:
        return self._head_parameters()

    def read_parameters(self) -> int:
        a = self.spec
        return self.hidden * a.kv_heads * (a.head_dim + self._value_dim) if a.cross else 0

    def core_flops(self, seq: FloatArray) -> FloatArray:
        """Scores and their product with the values; causal attention looks at half of the pairs (FlashAttention-2,
        section 4.1), or at those of its windows or chunks."""
        per_pair = 2.0 * self.spec.heads * (self._head_dim + self._value_dim) * (0.5 if self._masked else 1.0)
        return np.asarray(per_pair * seq * self._span(seq))

    @property
    def _masked(self) -> bool:
        """Whether keys behind the query are left out."""
        return self.spec.causal and not self.spec.cross

    def _span(self, seq: FloatArray) -> FloatArray:
        """Length of the sequences that have as many pairs of a query and a key, each with all its keys.

        A window of w on a sequence of S > w leaves w^2 / 2 pairs to its first w queries, and w to each of the others;
        one to both sides leaves out a triangle of (S - w)^2 / 2 at either corner: both as sequences of 2 w - w^2 / S
        have. Chunks are sequences of their own, the last one maybe shorter.
        """
        a = self.spec
        if a.window is not None:
            window = np.minimum(float(a.window), seq)
            return np.asarray(2 * window - window**2 / seq)
        if a.chunk is not None:
            rest = seq % a.chunk
            return np.asarray(((seq - rest) * a.chunk + rest**2) / seq)
        return seq

    # ---- operators --------------------------------------------------------------------------------------------------

    @property
    def _head_dim(self) -> int:
        """Of queries and keys."""
        return self.spec.head_dim

    @property
    def _value_dim(self) -> int:
        return self.spec.head_dim if self.spec.value_head_dim is None else self.spec.value_head_dim

    def operators(self, batch: MicroBatch) -> Iterator[LayerOp]:
        yield from self._projections(batch)
        yield from self._core(batch) if batch.framework.flash_attention else self._unfused_core(batch)
        yield from self._reordered(batch)
        yield from self._merged(batch)
        width = self.spec.heads / batch.tp * self._value_dim
        yield linear(batch.tokens, self.hidden, width, bias=self.spec.bias_out, target="proj")

    def _projections(self, batch: MicroBatch) -> Iterator[LayerOp]:
        """Queries, keys and values, their norms and their rotation."""
        a, heads, kv_heads = self.spec, self.spec.heads / batch.tp, self._kv_heads(batch)
        q, kv, values = a.heads * a.head_dim / batch.tp, kv_heads * a.head_dim, kv_heads * self._value_dim
        yield from self._inputs(batch, q, kv, values)
        if a.qk_norm == "full":
            yield from self._wide_norms(batch, q, kv)
        elif a.qk_norm == "per_head":
            yield LayerOp(kind=Kind.RMS_NORM, shape=Shape(m=batch.tokens * heads, n=a.head_dim))
            yield LayerOp(kind=Kind.RMS_NORM, shape=Shape(m=batch.tokens * kv_heads, n=a.head_dim))
        if a.rotary:
            plain = a.scaled_rotary and not batch.framework.turns_scaled
            yield LayerOp(kind=Kind.ROTARY, shape=Shape(m=batch.tokens, n=q + kv), plain=plain)
        if batch.framework.copies_heads:  # all three put in order; keys and values together, and in order again
            yield elementwise(batch.tokens * (q + 3 * (kv + values)), 2.0, (2.0,))

        if batch.framework.splits_heads:
            yield from self._split(batch, q, q + kv + values, mask=(kv_heads > 1) & (heads > kv_heads))

    def _inputs(self, batch: MicroBatch, q: FloatArray, kv: FloatArray, values: FloatArray) -> Iterator[LayerOp]:
        """Products that give queries, keys and values; of cross attention those of keys and values by themselves, which
        read what every other layer's read."""
        cross = self.spec.cross
        sizes: tuple[FloatArray, ...] = (q, kv, values)
        if batch.framework.fused_qkv:
            sizes = (q, kv + values) if cross else (q + kv + values,)
        for index, n in enumerate(sizes):
            tokens = batch.read_tokens if cross and index > 0 else batch.tokens
            yield linear(tokens, n, self.hidden, bias=self.spec.bias_qkv, shares_input=index > 0, target="qkv")

    def _split(self, batch: MicroBatch, q: FloatArray, whole: FloatArray, *, mask: BoolArray) -> Iterator[LayerOp]:
        """Of one tensor, where groups of queries lie between keys and values: queries copied, gradients joined."""
        yield elementwise(batch.tokens * q, 2.0, (), mask=mask.astype(np.float64))
        joined = Shape(m=batch.tokens * whole)
        yield LayerOp(kind=Kind.COPY, shape=joined, copies=(joined,), only_backward=True)

    def _kv_heads(self, batch: MicroBatch) -> FloatArray:
        """Of one GPU: shared out, or each copied to as many ranks. [P]"""
        return np.asarray(np.maximum(self.spec.kv_heads / batch.tp, 1.0))

    def _read_heads(self, batch: MicroBatch) -> FloatArray:
        """Of keys and values, as attention reads them: one for each of queries where they are copied. [P]"""
        return np.asarray(self.spec.heads / batch.tp) if batch.framework.repeats_keys else self._kv_heads(batch)

    def _wide_norms(self, batch: MicroBatch, q: FloatArray, kv: FloatArray) -> Iterator[LayerOp]:
        """Over all queries and over all keys; where tensor-parallel ranks share them, kernels one after another."""
        mask = 1 - batch.is_sharded("tp") if batch.adds_kernels("tp") else None
        for n in (q, kv):
            yield LayerOp(kind=Kind.RMS_NORM, shape=Shape(m=batch.tokens, n=n), mask=mask)
        if mask is not None:
            yield elementwise(batch.tokens * (q + kv), _CUT_NORM, (_CUT_NORM_BACKWARD,), mask=1 - mask)

    def _core(self, batch: MicroBatch) -> Iterator[LayerOp]:
        """One flash kernel, which skips what lies outside a window, as if there were more and shorter sequences.

        Values narrower than keys are priced as they are: cuDNN and FlashAttention-3 multiply them so. FlashAttention-2
        fills them up to the keys' width, and does that much more.
        """
        a, span = self.spec, self._span(batch.seq)
        if batch.framework.repeats_keys and a.heads > a.kv_heads:  # few are read; backward theirs are summed
            repeated = batch.tokens * (self._ring_width(batch) + self._kv_heads(batch) * (a.head_dim + self._value_dim))
            yield elementwise(repeated, 1.0, (1.0,))
        if a.cross:  # as many pairs of sequences that are as long as what is read
            span = batch.read_seq
        shape = Shape(
            batch=batch.sequences * (batch.seq / span),
            heads=a.heads / batch.tp / batch.cp,
            kv_heads=self._read_heads(batch) / batch.cp,
            seq=span,
            head_dim=self._head_dim,
            n=1 if self._value_dim == self._head_dim else self._value_dim,
        )
        kind = Kind.ATTENTION if self._masked else Kind.ATTENTION_FULL
        yield LayerOp(kind=kind, shape=shape, attention_core=True)

    def _merged(self, batch: MicroBatch) -> Iterator[LayerOp]:
        """Of torch's ring: outputs of every further block merged in float32, and gradients summed, which travel so
        (distributed/tensor/experimental/_attention.py, _SDPAMerger, convert_to_f32)."""
        if not batch.framework.gathers_keys or batch.framework.cp_comm is not None or not (batch.cp > 1).any():
            return
        a, blocks = self.spec, batch.cp - 1
        reads = a.heads if batch.framework.repeats_keys else a.kv_heads
        beside = reads * (a.head_dim + self._value_dim) / (a.heads * self._value_dim)  # of keys and values
        elements = blocks * batch.tokens * (a.heads / batch.tp) * self._value_dim
        yield elementwise(
            elements, _MERGED, (_MERGED, _MERGED * beside), attention_core=True, mask=np.where(blocks > 0, 1.0, 0.0)
        )

    def _reordered(self, batch: MicroBatch) -> Iterator[LayerOp]:
        """What all-to-alls bring or take is copied into another order at either end (Transformer Engine,
        context_parallel.py, flash_attn_a2a_communicate)."""
        ranks = all_to_all_ranks(batch.framework.cp_comm, batch.cp)
        if (ranks > 1).any():
            elements = batch.tokens * sum(self._exchanged_widths(batch))
            yield elementwise(
                elements, 2 * _LAYOUT, (2 * _LAYOUT,), attention_core=True, mask=np.where(ranks > 1, 1.0, 0.0)
            )

    def _exchanged_widths(self, batch: MicroBatch) -> tuple[FloatArray, ...]:
        """Features of a token's queries, keys, values and outputs on a tensor-parallel rank. [P] each."""
        heads, kv_heads = self.spec.heads / batch.tp, self._kv_heads(batch)
        sizes = heads * self._head_dim, kv_heads * self._head_dim, kv_heads * self._value_dim, heads * self._value_dim
        return tuple(np.asarray(size) for size in sizes)

    def _unfused_core(self, batch: MicroBatch) -> Iterator[LayerOp]:
        """All scores, masked or not: their product, softmax, dropout, and the product with the values."""
        seq, read, value_dim = batch.seq, self._read_seq(batch), self._value_dim
        many = batch.sequences * (self.spec.heads / batch.tp) / batch.cp
        scores, values = many * seq * read, many * seq * value_dim
        yield LayerOp(kind=Kind.GEMM, shape=Shape(batch=many, m=seq, n=read, k=self._head_dim), attention_core=True)
        yield from _softmax(batch, scores, many)
        if batch.framework.dropout:
            yield elementwise(scores, _DROPOUT, (_DROPOUT,), attention_core=True)
        yield LayerOp(kind=Kind.GEMM, shape=Shape(batch=many, m=seq, n=value_dim, k=read), attention_core=True)
        yield elementwise(values, _LAYOUT, (_LAYOUT,), attention_core=True)

    # ---- memory -----------------------------------------------------------------------------------------------------

    def kept(self, batch: MicroBatch) -> Iterator[Kept]:
        """Queries, keys, values, output and softmax statistics; with a query/key norm, its inputs as well."""
        a, heads, kv_heads = self.spec, self.spec.heads / batch.tp, self._kv_heads(batch)
        q, k, v = heads * a.head_dim, kv_heads * a.head_dim, kv_heads * self._value_dim
        normed_B = head_norm_kept_B(batch) * (q + k) if a.qk_norm != "none" else 0.0
        read = batch.read_tokens if a.cross else batch.tokens
        yield Kept(size_B=batch.element_size_B * (batch.tokens * q + read * (k + v)) + batch.tokens * normed_B)
        yield from self.core_kept(batch)

    def core_kept(self, batch: MicroBatch) -> Iterator[Kept]:
        """Output, which the core and the product behind it keep, and what the core keeps beside it."""
        heads = self.spec.heads / batch.tp
        output_B = batch.element_size_B + batch.product_copy_B
        yield Kept(size_B=output_B * batch.tokens * heads * self._value_dim)
        yield Kept(size_B=self._scores_B(batch, heads), parts=("core_attn",))

    def _scores_B(self, batch: MicroBatch, heads: FloatArray) -> FloatArray:
        """What the core keeps: flash, its statistics; else probabilities, and dropout's mask and output, of which it
        needs no input."""
        if batch.framework.flash_attention:
            return np.asarray(_F * batch.tokens * heads)
        dropout, element_B = batch.framework.dropout, batch.element_size_B
        per_score = element_B + (_MASK + element_B if dropout else 0.0)
        # where kernels normalise in float32 that stays, and beside it what the product reads, unless dropout wrote it
        more_B = _F - (element_B if dropout else 0.0)
        slow = 1 - _is_fused(batch, batch.sequences * heads / batch.cp)
        return np.asarray((per_score + more_B * slow) * batch.tokens * heads * self._read_seq(batch))

    def _read_seq(self, batch: MicroBatch) -> FloatArray:
        """Tokens of a sequence that queries look at. [P]"""
        return batch.read_seq if self.spec.cross else batch.seq

    def buffer_B(self, batch: MicroBatch) -> FloatArray:
        """Scores, where the framework multiplies queries and keys into what stays."""
        scores = batch.tokens * (self.spec.heads / batch.tp) * self._read_seq(batch)
        return np.asarray(batch.element_size_B * scores * batch.framework.keeps_score_buffer)

    # ---- communication ----------------------------------------------------------------------------------------------

    def collectives(self, batch: MicroBatch) -> Iterator[LayerComm]:
        """Context parallelism, as the plan or the framework has it (`plan.context_comm`). Tensor parallelism: the
        squares of norms over all queries and all keys, summed."""
        match batch.framework.cp_comm:
            case "all_gather":
                yield from self._gathered(batch)
            case "a2a":
                yield from self._exchanged(batch)
            case both if inner_ranks(both) is not None:
                yield from self._exchanged(batch)
                width = sum(self._exchanged_widths(batch)[1:3])
                yield self._ring(batch, width, batch.cp / all_to_all_ranks(both, batch.cp) - 1, group="cp_ring")
            case _:
                yield self._ring(batch, self._ring_width(batch), batch.cp - 1)
        if self.spec.qk_norm == "full" and batch.framework.eager_sharding:
            yield LayerComm(axis="tp", collective="all_reduce", size_B=2 * _F * batch.tokens)

    def _ring(
        self, batch: MicroBatch, width: FloatArray | float, hops: FloatArray, group: Literal["cp_ring"] | None = None
    ) -> LayerComm:
        """Keys and values around a ring, and with their gradients backward (Liu et al. 2023), behind attention."""
        (there, back), blocks = batch.framework.ring_calls, np.where(hops > 0, hops + 1, 0.0)
        return LayerComm(
            axis="cp",
            collective="send_recv",
            size_B=batch.element_size_B * batch.tokens * width,
            forward=hops,
            backward=2 * hops,
            overlap="always",
            launch="tensor_parallel",
            forward_launches=hops + blocks * there,
            backward_launches=hops + blocks * back,
            group=group,
        )

    def _exchanged(self, batch: MicroBatch) -> Iterator[LayerComm]:
        """Queries, keys and values to the ranks of their heads and the output back; backward its gradient, and theirs
        back. Nothing hides them (Transformer Engine, context_parallel.py, AttnFuncWithCPAndQKVOA2A)."""
        for width in self._exchanged_widths(batch):
            yield self._shown(batch, "all_to_all", width, group="cp_a2a")

    def _gathered(self, batch: MicroBatch) -> Iterator[LayerComm]:
        """All keys and all values gathered in either pass before anything attends to them, and their gradients
        scattered (the same, AttnFuncWithCPAndKVAllGather)."""
        for width in self._exchanged_widths(batch)[1:3]:
            yield self._shown(batch, "all_gather", batch.cp * width)
            yield self._shown(batch, "reduce_scatter", batch.cp * width, forward=0.0)

    def _shown(
        self,
        batch: MicroBatch,
        collective: CollectiveName,
        width: FloatArray,
        *,
        forward: float = 1.0,
        group: Literal["cp_a2a"] | None = None,
    ) -> LayerComm:
        """A collective over context-parallel ranks that nothing hides."""
        several = np.where(batch.cp > 1, 1.0, 0.0)
        return LayerComm(
            axis="cp",
            collective=collective,
            size_B=batch.element_size_B * batch.tokens * width,
            forward=forward,
            overlap="never",
            launch="tensor_parallel",
            forward_launches=several * forward,
            backward_launches=several,
            group=group,
        )

    def _ring_width(self, batch: MicroBatch) -> FloatArray:
        """Features of a token's keys and values, as attention reads them."""
        return np.asarray(self._read_heads(batch) * (self.spec.head_dim + self._value_dim))


def _softmax(batch: MicroBatch, scores: FloatArray, many: FloatArray) -> Iterator[LayerOp]:
    """Over so many scores of `many` sequences and heads."""
    if batch.framework.softmax == "plain":
        longer = batch.framework.plain_softmax_time
        for there, kernels in zip(_SOFTMAX_PLAIN, _SOFTMAX_PLAIN_BACKWARD, strict=True):
            backward = tuple(longer * kernel for kernel in kernels)
            yield elementwise(scores, longer * there, backward, attention_core=True)
        return
    fused = _is_fused(batch, many)
    yield elementwise(scores, _SOFTMAX, (_SOFTMAX_BACKWARD,), attention_core=True, mask=fused)
    for there, back in zip(_SOFTMAX_SLOW, _SOFTMAX_SLOW_BACKWARD, strict=True):
        yield elementwise(scores, there, (back,), attention_core=True, mask=1 - fused)


def _is_fused(batch: MicroBatch, many: FloatArray) -> FloatArray:
    """Whether one kernel scales, masks and normalises scores of so many sequences and heads, 1 or 0; 1 of torch's own
    softmax, which keeps 16 bits."""
    runs = (many % _SOFTMAX_BATCHES == 0) & (batch.seq <= batch.framework.softmax_longest)
    return np.asarray((runs | (batch.framework.softmax == "plain")).astype(np.float64))
