"""A layer: its blocks in order, each with a norm before or after it and a residual around it.

A layer without norms (a plain MLP) has no residuals either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from moemodel.model.architecture.spec import Layer
from moemodel.model.core.arrays import FloatArray, largest
from moemodel.model.frameworks.base import GATHERED, Framework
from moemodel.model.layers.adapters import (
    adapter_collectives,
    adapter_input_tokens,
    adapter_kept_B,
    adapter_launches,
)
from moemodel.model.layers.base import (
    Block,
    Component,
    HostReadings,
    Kept,
    LayerComm,
    LayerOp,
    MicroBatch,
    elementwise,
    plain_kernels_of,
    tensor_parallel,
    tensor_parallel_reduction,
)
from moemodel.model.layers.norms import norm, norm_kept_B, norm_parameters
from moemodel.model.layers.registry import block_of
from moemodel.model.operators.work import Kind, Shape

# Tensors of bf16 elements that elementwise kernels of Megatron-LM 2.x read and write; a dropout mask is half of one.
_DROPOUT = 2.5  # read and written, and the mask
_WRITTEN_MASK = 0.5
_BIAS = 2.0  # a bias added in place of the product's epilogue, since dropout comes behind it
_F = 4.0  # bytes of a float32 element
_MASK = 1.0  # byte of a dropout mask


@dataclass(frozen=True, kw_only=True)
class LayerBlocks:
    """The blocks of one layer, with what stands around each."""

    layer: Layer
    hidden: int
    blocks: tuple[Block, ...]

    def parameters(self) -> Iterator[Component]:
        """Of all blocks, and of the norms around them."""
        for block in self.blocks:
            yield from block.parameters()
        yield Component.of("norms", self._norms * norm_parameters(self.layer, self.hidden), "none")

    def parameter_tensors(self) -> int:
        """How many tensors hold them."""
        return sum(block.parameter_tensors() for block in self.blocks) + self.norm_tensors()

    def norm_tensors(self) -> int:
        """How many of these are of the norms around its blocks."""
        return 0 if self.layer.norm is None else self._norms * (self.layer.norm_scale + self.layer.norm_bias)

    def tensors_of(self, framework: Framework) -> int:
        """How many hold them in a framework."""
        return self.parameter_tensors() - sum(block.joined_tensors(framework) for block in self.blocks)

    def _own(self, batch: MicroBatch) -> MicroBatch:
        """What the layer sees of a micro-batch: a decoder's that attends to an encoder its own sequences."""
        return batch.of_decoder() if batch.decoder_seq.any() and self.crosses else batch

    @property
    def crosses(self) -> bool:
        """Whether it attends to an encoder's output."""
        return any(attention.cross for attention in self.layer.attentions)

    def more_tensors(self, batch: MicroBatch) -> FloatArray:
        """Tensors beyond these of a framework that keeps some apart, on one GPU. [P]"""
        return np.asarray(sum(block.more_tensors(batch) for block in self.blocks))

    @property
    def _norms(self) -> int:
        """How many norms stand around its blocks."""
        first = 1 if self.layer.parallel else len(self.blocks)
        return first + len(self.blocks) * self.layer.second_norm

    def operators(self, batch: MicroBatch) -> Iterator[LayerOp]:
        """Forward operators, in order."""
        batch = self._own(batch)
        for index, block in enumerate(self.blocks):
            if self.layer.norm is not None and self._is_normed(index):
                yield replace(norm(self.layer, batch.sequence_parallel_tokens, self.hidden), parts=("layernorm",))
            yield from (replace(op, parts=(*op.parts, *block.parts)) for op in block.operators(batch))
            if self.layer.second_norm:
                yield norm(self.layer, batch.sequence_parallel_tokens, self.hidden)
            if self.layer.norm is not None:
                yield from _residual(batch, self.hidden)

    def _is_normed(self, index: int) -> bool:
        """Whether a norm stands before a block: parallel ones share the first's."""
        return index == 0 or not self.layer.parallel

    # ---- memory -----------------------------------------------------------------------------------------------------

    def kept(self, batch: MicroBatch) -> Iterator[Kept]:
        """What the layer keeps for the backward pass of one micro-batch."""
        batch = self._own(batch)
        inside_B = batch.element_size_B * batch.sequence_parallel_tokens * self.hidden
        for index, block in enumerate(self.blocks):
            yield from block.kept(batch)
            if self._is_normed(index):
                yield from self._norm_kept(batch, block)
            if self.layer.second_norm:  # its input; its output is only added
                yield Kept(size_B=inside_B)
            if batch.framework.dropout and self.layer.norm is not None:
                yield Kept(size_B=_MASK * batch.sequence_parallel_tokens * self.hidden)
        if batch.framework.lora is not None:
            yield Kept(size_B=adapter_kept_B(self.operators(batch), batch))

    def _norm_kept(self, batch: MicroBatch, block: Block) -> Iterator[Kept]:
        """Input and output of a norm, which the block behind it reads, and its statistics."""
        if self.layer.norm is None:
            yield Kept(size_B=batch.element_size_B * batch.tokens * self.hidden)
            return
        inside = batch.sequence_parallel_tokens
        statistics_B = _F * inside * (2 if self.layer.norm == "layer" else 1)
        yield Kept(size_B=norm_kept_B(self.layer, batch) * inside * self.hidden + statistics_B)
        yield from self._norm_output_kept(batch, block)

    def _norm_output_kept(self, batch: MicroBatch, block: Block) -> Iterator[Kept]:
        """What the products of a block keep of its norm's output: whole, or a shard; frozen ones nothing, and adapters
        beside them all that they read, in 16 bits. A gathered copy stays where the norm runs again."""
        first, inside = block.first_target(), batch.sequence_parallel_tokens
        if not batch.keeps_input_of(first):
            return
        more = batch.autocast * _more_casts(block, batch) if batch.autocast.any() else 0.0
        copies_B = (1 + more) * self.hidden
        if not batch.has_adapter(first):
            read = inside if batch.framework.keeps_norm_shards else batch.tokens
            read_B = batch.recipe.product_input_B if block.products_keep_input() else batch.element_size_B
            yield Kept(size_B=read_B * copies_B * read, parts=("layernorm",))
            return
        read = adapter_input_tokens(block.operators(batch), batch)
        gathered = read > inside
        size_B = batch.element_size_B * copies_B * read
        yield Kept(size_B=size_B * gathered)
        yield Kept(size_B=size_B * ~gathered, parts=("layernorm",))

    def freed_late_B(self, batch: MicroBatch) -> FloatArray:
        """Bytes of outputs that are scattered over tensor-parallel ranks, whole, and of what each gets of them. [P]"""
        batch = self._own(batch)
        scattered = batch.sequence_parallel_tokens < batch.tokens
        both = batch.tokens + batch.sequence_parallel_tokens
        return np.asarray(len(self.blocks) * batch.element_size_B * scattered * both * self.hidden)

    def passing_B(self, batch: MicroBatch) -> FloatArray:
        """Bytes of gradients inside the last block, beyond what it frees, where its backward pass begins. [P]"""
        return self.blocks[-1].passing_B(self._own(batch))

    def buffer_B(self, batch: MicroBatch) -> FloatArray:
        """Bytes that its blocks take turns to work in, and leave to the next layer. [P]"""
        return largest([block.buffer_B(self._own(batch)) for block in self.blocks])

    def kept_by_operator_B(self, batch: MicroBatch) -> FloatArray:
        """Bytes that the layer keeps where it runs again from its input, but for the operators of `saved`. [P]

        Casts run again. Of a compiled layer no more is kept than its backward pass reads, to which the output of its
        last product is nothing (torch/_functorch/partitioners.py, solve_min_cut: what must be saved, but leads to
        nothing backward, is in no cut); checkpoints of eager layers keep it (torch/utils/checkpoint.py,
        _CachingTorchDispatchMode).
        """
        batch = self._own(batch)
        inside_B = batch.element_size_B * batch.sequence_parallel_tokens * self.hidden
        plain = replace(batch, recipe=replace(batch.recipe, matmul_dtype="bf16"))
        kept_B = np.array(inside_B)
        operators = list(self.operators(batch))
        for op, kept in zip(operators, saved(operators), strict=True):
            if kept and op.kind == Kind.GEMM and not (batch.framework.compiled and op.target == "fc2"):
                m, n = (np.asarray(size, dtype=np.float64) for size in (op.shape.m, op.shape.n))
                kept_B = kept_B + batch.element_size_B * m * n * (1.0 if op.mask is None else op.mask)
        for block in self.blocks:
            kept_B = kept_B + sum(core.size_B for core in block.core_kept(plain))
            is_read = block is not self.blocks[-1] or not batch.framework.compiled
            kept_B = kept_B + is_read * batch.is_sharded("tp") * batch.sequence_parallel * inside_B  # reduce-scatter's
            kept_B = kept_B + batch.is_sharded("ep") * block.exchanged_B(batch)
        return np.asarray(kept_B)

    # ---- communication ----------------------------------------------------------------------------------------------

    def collectives(self, batch: MicroBatch) -> Iterator[LayerComm]:
        """Of all blocks, and the sum of each one's output over tensor-parallel ranks."""
        batch = self._own(batch)
        size_B = batch.element_size_B * batch.tokens * self.hidden
        cast = batch.recipe.product_input_B / batch.element_size_B if batch.framework.casts_shards else 1.0
        for block in self.blocks:
            yield from tensor_parallel_reduction(batch, size_B, gathered=cast, first=block.first_target())
            yield from self._largest(batch) if block.first_target() is not None else ()
            yield from block.collectives(batch)
        if batch.framework.lora is not None:
            yield from adapter_collectives(self.operators(batch), batch)

    def _largest(self, batch: MicroBatch) -> Iterator[LayerComm]:
        """Under sequence parallelism the largest element of a block's input before it is gathered, and of its output's
        gradient: a number, which the casts wait for."""
        if batch.recipe.shares_largest:
            cut = batch.sequence_parallel
            number = tensor_parallel(batch, "all_reduce", np.full(batch.plans, _F), forward=cut, backward=cut)
            yield replace(number, overlap="never")

    def host_block(self) -> str:
        """Which measured block of `host_overhead` the layer is like; plain dense ones have one variant alone."""
        name = next((name for block in self.blocks if (name := block.host_block())), "dense_layer")
        variants = [variant for block in self.blocks if (variant := block.host_variant())]
        return "_".join([name, *variants[:1]]) if name != "dense_layer" else name

    def more_launches(self, batch: MicroBatch) -> tuple[FloatArray, FloatArray]:
        """Kernels that the host queues, forward and backward, beyond those of the measured layer. [P] each."""
        forward, backward = zip(*(block.more_launches(batch) for block in self.blocks), strict=True)
        if batch.framework.lora is not None:
            of_adapters = adapter_launches(self.operators(batch), batch)
            forward, backward = (*forward, of_adapters[0]), (*backward, of_adapters[1])
        plain = plain_launches(self.operators(batch), batch.framework)
        forward, backward = (*forward, np.full(batch.plans, plain[0])), (*backward, np.full(batch.plans, plain[1]))
        if hooks := batch.framework.tensor_calls[0] * self.tensors_of(batch.framework):
            backward = (*backward, np.full(batch.plans, hooks))
        return np.asarray(sum(forward)), np.asarray(sum(backward))

    def expert_launches(self, batch: MicroBatch) -> tuple[FloatArray, FloatArray]:
        """Beside these, what is no call of an operator. [P] each."""
        forward, backward = zip(*(block.expert_launches(batch) for block in self.blocks), strict=True)
        return np.asarray(sum(forward)), np.asarray(sum(backward))

    def host_waits(self, batch: MicroBatch) -> HostReadings:
        """Where the host waits for the device."""
        found = [block.host_waits(batch) for block in self.blocks]
        return HostReadings(
            reads=np.asarray(sum(one.reads for one in found)),
            drains_forward=np.asarray(sum(one.drains_forward for one in found)),
            drains_backward=np.asarray(sum(one.drains_backward for one in found)),
        )


# Kernels of torch's, forward and backward (profiler/backends/torch_native/operators.py; torch 2.11)
_TORCH_KERNELS = {Kind.RMS_NORM: (1.0, 2.0), Kind.ROTARY: (7.0, 8.0)}


def plain_launches(operators: Iterable[LayerOp], framework: Framework) -> tuple[float, float]:
    """Kernels that plain ones of a framework are beyond torch's, forward and backward."""
    forward, backward = 0.0, 0.0
    for op in operators if framework.plain_kernels else ():
        plain = plain_kernels_of(op, framework)
        if plain is not None and plain.kernels is not None:
            there, back = _TORCH_KERNELS[op.kind]
            tensors = 2.0 if op.kind is Kind.ROTARY else 1.0  # queries and keys
            forward += tensors * (plain.kernels[0] - there)
            backward += tensors * (plain.kernels[1] - back)
    return forward, backward


def _more_casts(block: Block, batch: MicroBatch) -> int:
    """Products of a block that read what its norm gives, beyond one: eager autocast casts it for each (aten/src/ATen/
    autocast_mode.cpp, cached_cast, which keeps those of parameters alone)."""
    read = sum(op.target in GATHERED for op in block.operators(batch))
    return 0 if batch.framework.compiled else max(read - 1, 0)


def saved(operators: Sequence[LayerOp]) -> list[bool]:
    """Which operators of a layer keep their output where the others run again.

    The core of attention and every other product, from the first on; not products of many experts at once (torchtitan,
    `selective_ac_option: op`: torch.ops.aten.mm, and of these not every second one).
    """
    products, kept = 0, []
    for op in operators:
        is_product = op.kind == Kind.GEMM and not op.attention_core
        products += is_product
        kept.append(op.attention_core or (is_product and products % 2 == 1))
    return kept


def before_last_product(operators: Sequence[LayerOp]) -> Sequence[LayerOp]:
    """Operators of a layer up to the last tensor that its backward pass reads: all but its last product and what is
    behind it, where that is the residual's sum, with its casts. Norms, and rows on their way from experts, read theirs.
    """
    last = max((place for place, op in enumerate(operators) if op.target == "fc2"), default=len(operators))
    summed = all(op.kind in (Kind.RESIDUAL_ADD, Kind.COPY) for op in operators[last + 1 :])
    return operators[:last] if summed else operators


@cache
def layer_blocks(layer: Layer, hidden: int) -> LayerBlocks:
    """The blocks of a layer in a model of width `hidden`."""
    blocks = tuple(block_of(spec, hidden) for spec in layer.blocks)
    return LayerBlocks(layer=layer, hidden=hidden, blocks=blocks)


def _residual(batch: MicroBatch, width: int) -> Iterator[LayerOp]:
    """The end of a block: its output, after bias and dropout if there is one, added to its input."""
    tokens = batch.sequence_parallel_tokens
    if batch.framework.dropout and batch.framework.fused_dropout:
        yield elementwise(tokens * width, _WRITTEN_MASK, (_DROPOUT,))
    elif batch.framework.dropout:
        yield elementwise(tokens * width, _BIAS, ())
        yield elementwise(tokens * width, _DROPOUT, (_DROPOUT,))
    yield LayerOp(kind=Kind.RESIDUAL_ADD, shape=Shape(m=tokens, n=width))
