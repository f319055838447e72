"""Layers whose weights are frozen, with low-rank adapters beside some of their products (Hu et al. 2021, section 4.1).

    y = W x + B A x,   A [r, k], B [n, r]

Frozen products have no gradient of their weights, frozen biases and embeddings none either. Of an adapter, the product
with A, that with B, and one kernel each that scales and that adds; backward both gradients of both, and the input's
added to that of the frozen product; dropout of its input, if there is any, is a kernel either way. Under tensor
parallelism A and B are cut as Megatron-Bridge cuts them (peft/utils.py, ParallelLinearAdapter): outputs of A are
gathered, or summed where the frozen product is cut by its inputs, and so are their gradients backward; there outputs
of B are gathered, too, and under sequence parallelism their gradients, unless an all-to-all puts them in order.

Behind a norm an adapter keeps all tokens of its input, gathered and in 16 bits, whatever the frozen product beside it
would keep: A is a ColumnParallelLinear without sequence parallelism behind a gather of its own (the same file;
transformer_engine/pytorch/module/layernorm_linear.py, return_layernorm_output_gathered). Later versions keep a shard
and gather it again where a run asks for it (sequence_parallel_input_regather, off by default), which is not meant here.

Where a framework's adapters are float32 beside 16-bit weights (PEFT, tuners/lora/layer.py, Linear.forward:
_cast_input_dtype; tuners/tuners_utils.py, cast_adapter_dtype), each casts its input, and autocast casts it once more,
and its weights.

Left out: that the first layer needs no gradient of its input, adapters of experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.frameworks.base import SCATTERED, Lora
from moemodel.model.frameworks.moe_form import WIDEN_B
from moemodel.model.layers.base import COPY_B, LayerComm, LayerOp, MicroBatch, elementwise, linear, tensor_parallel
from moemodel.model.operators.work import Kind, Pass, Shape

_PRODUCTS = (Kind.GEMM, Kind.GROUPED_GEMM)
_SCALED, _ADDED = 2.0, 3.0  # tensors that these kernels read and write
_DROPPED = 2.0  # the same of dropout, beside its mask of a byte an element (torch, native_dropout)
_MASK_B = 1.0
_FLOAT32_B = 4.0
_NARROW_B = 6.0  # of a cast from 32 bits to 16, read and written
_LATENT, _SHARED = "mla_up_proj", "shared_experts"  # parts of a layer: products that read latents; shared experts
_CASTS = 4  # kernels: of an input to 32 bits and back, and of two weights; backward of their gradients
_ORDERED = (2.0, 4.0)  # of an all-to-all's copies, forward and backward (peft/utils.py, _All2AllHp2Sp: chunk, cat)


def trained_operators(operators: Iterable[LayerOp], batch: MicroBatch) -> Iterator[LayerOp]:
    """Operators of a layer, or of an end of the model, as they are where a plan has adapters; else as they are."""
    lora = batch.framework.lora
    for op in operators:
        if lora is None:
            yield op
            continue
        yield _frozen(op)
        if op.target in lora.targets:
            yield from _adapter(op, lora, batch)


def _frozen(op: LayerOp) -> LayerOp:
    """Without what only gradients of weights are for."""
    if op.kind is Kind.EMBEDDING:
        return replace(op, backward=())
    if op.kind in _PRODUCTS and not op.attention_core:
        return replace(op, backward=(Pass.BACKWARD_INPUT,), bias=False)
    return op


def _adapter(op: LayerOp, lora: Lora, batch: MicroBatch) -> Iterator[LayerOp]:
    """The products of one, cut over tensor-parallel ranks, and what puts its output to that of the frozen product."""
    m, n, k = (np.asarray(size, dtype=np.float64) for size in (op.shape.m, op.shape.n, op.shape.k))
    inner, outer = (lora.rank, n / batch.tp) if op.target in SCATTERED else (lora.rank / batch.tp, n)
    down, up = linear(m, inner, k, shares_input=True), linear(m, outer, lora.rank)
    added = m * n
    if op.target in SCATTERED:  # each rank has its tokens, under sequence parallelism
        added = added * batch.sequence_parallel_tokens / batch.tokens
    kernels = [down, up, elementwise(added, _SCALED + _ADDED, (_SCALED,))]
    if batch.framework.casts_adapters:
        kernels.append(_cast(op, batch))
    if lora.dropout:
        input_B = _FLOAT32_B if batch.framework.casts_adapters else batch.element_size_B
        tensors = (_DROPPED * input_B + _MASK_B) / batch.element_size_B
        kernels.append(elementwise(_dropped_tokens(op, batch) * k, tensors, (tensors,)))
    if _is_ordered(op, lora) and batch.sequence_parallel.any():
        kernels.append(elementwise(added * batch.sequence_parallel, _ORDERED[0], (_ORDERED[1],)))
    yield from (replace(each, parts=op.parts, mask=op.mask) for each in kernels)


def _cast(op: LayerOp, batch: MicroBatch) -> LayerOp:
    """Casts of an adapter's input to 32 bits and back, and of its gradient. Autocast of float32 parameters has that
    back of its own (`step.autocast`), and hands on what norms give in 32 bits."""
    widened = 1.0 if op.target in SCATTERED else 1.0 - batch.autocast
    narrowed = 1.0 - batch.autocast
    size_B = widened * WIDEN_B + narrowed * _NARROW_B
    copy = Shape(m=_input_tokens(op, batch) * np.asarray(op.shape.k, dtype=np.float64) * size_B / COPY_B)
    moved = (widened + narrowed) * _NARROW_B / np.maximum(size_B, _NARROW_B)
    return LayerOp(kind=Kind.COPY, shape=copy, copies=(copy,), operand_energy=moved)


def _tokens(op: LayerOp) -> FloatArray:
    """That a product has. [P]"""
    return np.asarray(op.shape.m, dtype=np.float64)


def _input_tokens(op: LayerOp, batch: MicroBatch) -> FloatArray:
    """Tokens that A reads: all, but of a duplicated product those of its rank. [P]"""
    own = op.duplicated and batch.framework.keeps_norm_shards
    return _shard(op, batch) if own else _tokens(op)


def _shard(op: LayerOp, batch: MicroBatch) -> FloatArray:
    """Of a product's tokens those of one rank under sequence parallelism. [P]"""
    return np.asarray(_tokens(op) * batch.sequence_parallel_tokens / batch.tokens)


def _dropped_tokens(op: LayerOp, batch: MicroBatch) -> FloatArray:
    """Tokens that dropout reads: as many as A does, but where exchanges run over user buffers, where the norm's output
    is handed on as a shard and gathered behind dropout (peft/utils.py, get_adapter_attributes_from_linear,
    ub_overlap_ag; ParallelLinearAdapter.forward). [P]"""
    is_shard = batch.framework.tp_buffers and op.target not in SCATTERED and _LATENT not in op.parts
    return _shard(op, batch) if is_shard else _input_tokens(op, batch)


def _is_ordered(op: LayerOp, lora: Lora) -> bool:
    """Whether an all-to-all puts an adapter's output in order."""
    return lora.all_to_all and op.target in SCATTERED


def adapted(operators: Iterable[LayerOp], batch: MicroBatch) -> int:
    """How many adapters a layer has."""
    lora = batch.framework.lora
    return 0 if lora is None else sum(op.target in lora.targets for op in operators)


def adapter_parameters(operators: Iterable[LayerOp], batch: MicroBatch) -> FloatArray:
    """Parameters of a layer's adapters on one tensor-parallel rank: r (k + n) / tp of each. [P]"""
    lora, found = batch.framework.lora, np.zeros(batch.plans)
    if lora is None:
        return found
    for op in operators:
        if op.target in lora.targets:
            n, k = (np.asarray(size, dtype=np.float64) for size in (op.shape.n, op.shape.k))
            found = found + lora.rank * (n / batch.tp + k if op.target in SCATTERED else n + k / batch.tp)
    return found


def adapter_kept_B(operators: Iterable[LayerOp], batch: MicroBatch) -> FloatArray:
    """Bytes that a layer's adapters keep beside what blocks count of the products' inputs: their inner tensors; inputs
    of their own, with dropout's mask; else what a block does not count of their inputs. [P]"""
    lora, found = batch.framework.lora, np.zeros(batch.plans)
    if lora is None:
        return found
    for op in operators:
        if op.target in lora.targets:
            m, k = (np.asarray(size, dtype=np.float64) for size in (op.shape.m, op.shape.k))
            size_B = batch.element_size_B
            found = found + size_B * lora.rank * m
            if batch.copies_adapter_inputs:
                mask_B = _MASK_B * lora.dropout
                found = found + k * (size_B * _input_tokens(op, batch) + mask_B * _dropped_tokens(op, batch))
            else:
                found = found + k * _uncounted_B(op, batch)
    return found


def _uncounted_B(op: LayerOp, batch: MicroBatch) -> FloatArray:
    """Bytes of each feature of an adapter's input that its block does not count, without dropout. [P]

    Attention keeps its output in any case, and the layer counts what its norms give (`layer`). Products are counted to
    keep their input as they cast it, where an adapter reads 16 bits. Of shared experts' input the router keeps a shard.
    """
    if op.target == "fc2" or _LATENT in op.parts:
        return np.asarray(_tokens(op) * max(batch.element_size_B - batch.recipe.product_input_B, 0.0))
    if op.target == "fc1" and _SHARED in op.parts:
        gathered = batch.framework.keeps_norm_shards & (_shard(op, batch) < _tokens(op))
        return np.asarray(batch.element_size_B * gathered * _tokens(op))
    return np.zeros(batch.plans)


def adapter_input_tokens(operators: Iterable[LayerOp], batch: MicroBatch) -> FloatArray:
    """Tokens of a norm's output that adapters behind it keep: what the one keeps that reads most of them. [P]"""
    readers = (op for op in operators if batch.has_adapter(op.target) and op.target not in SCATTERED)
    return np.asarray(np.max([_input_tokens(op, batch) for op in readers if _LATENT not in op.parts], axis=0))


def adapter_launches(operators: Iterable[LayerOp], batch: MicroBatch) -> tuple[FloatArray, FloatArray]:
    """Kernels that the host queues for adapters, forward and backward, beyond those of a trained layer, whose products
    have gradients of weights. [P] each."""
    lora, forward, backward = batch.framework.lora, np.zeros(batch.plans), np.zeros(batch.plans)
    if lora is None:
        return forward, backward
    for op in operators:
        backward = backward - (op.kind in _PRODUCTS and not op.attention_core)
        if op.target in lora.targets:
            casts = _CASTS * batch.framework.casts_adapters
            forward, backward = forward + 4 + lora.dropout + casts, backward + 6 + lora.dropout + casts
            if _is_ordered(op, lora):  # `cat`, and a contiguous copy for each rank (peft/utils.py, _All2AllHp2Sp)
                forward = forward + batch.sequence_parallel
                backward = backward + (batch.tp + 1) * batch.sequence_parallel
    return forward, backward


def adapter_collectives(operators: Iterable[LayerOp], batch: MicroBatch) -> Iterator[LayerComm]:
    """What adapters exchange over tensor-parallel ranks, which nothing hides: their inner tensors, and outputs of those
    behind products that are cut by their inputs; without sequence parallelism inputs' gradients of the others. Over
    user buffers norms hand on a shard, which an adapter gathers beside the frozen product, and scatters its gradient
    (peft/utils.py, ParallelLinearAdapter.forward: gather_from_sequence_parallel_region)."""
    lora = batch.framework.lora
    if lora is None:
        return
    for op in operators:
        if op.target in lora.targets:
            yield from (replace(comm, overlap="never") for comm in _exchanged(op, lora, batch))


def _exchanged(op: LayerOp, lora: Lora, batch: MicroBatch) -> Iterator[LayerComm]:
    m, n, k = (np.asarray(size, dtype=np.float64) for size in (op.shape.m, op.shape.n, op.shape.k))
    inner_B, outer_B = batch.element_size_B * m * lora.rank, batch.element_size_B * m * n
    yield tensor_parallel(batch, "all_reduce", inner_B, forward=0.0, backward=1.0)
    whole, shares = 1 - batch.sequence_parallel, batch.sequence_parallel
    if op.target not in SCATTERED:
        yield tensor_parallel(batch, "all_gather", inner_B, forward=1.0, backward=0.0)
        input_B = batch.element_size_B * m * k
        yield tensor_parallel(batch, "all_reduce", input_B, forward=0.0, backward=whole)
        if batch.framework.tp_buffers and _LATENT not in op.parts and not op.duplicated:
            yield tensor_parallel(batch, "all_gather", input_B, forward=shares, backward=0.0)
            yield tensor_parallel(batch, "reduce_scatter", input_B, forward=0.0, backward=shares)
        return
    yield tensor_parallel(batch, "all_reduce", inner_B, forward=1.0, backward=0.0)
    if not lora.all_to_all:
        yield tensor_parallel(batch, "all_gather", outer_B, forward=1.0, backward=shares)
        return
    yield tensor_parallel(batch, "all_gather", outer_B, forward=whole, backward=0.0)
    yield tensor_parallel(batch, "all_to_all", outer_B / batch.tp, forward=shares, backward=shares)
