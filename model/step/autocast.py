"""What torch.autocast adds to operators where parameters are float32.

Products run in 16 bits (aten/src/ATen/autocast_mode.cpp): their weights, and what norms hand them, are cast, and so are
gradients on their way back. What the embedding gives and blocks add to is float32, and so is what norms make of it. A
norm of what a product gives has 16-bit rows and float32 weights, for which torch has no fused kernel (aten/src/ATen/
native/layer_norm.cpp, rms_norm_symint).

Bytes that kernels move of an element, but of those that take longer than a copy of so many: as many as a copy moves in
the time that was traced on an H200 (torch 2.11 under torchtitan 0.2.2, 2026-11-29); of other GPUs assumed to be as
many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.roofline import PRODUCTS
from moemodel.model.frameworks.base import SCATTERED
from moemodel.model.frameworks.moe_form import WIDEN_B, copied_B
from moemodel.model.layers.base import COPY_B, LayerOp, MicroBatch, plain_kernels_of
from moemodel.model.operators.work import Kind, Shape

_CAST_B = 6.0  # read in 16 bits and written in 32, or the other way round

# 78 us for 4 x 2048 x 2560 elements: 16 bits added to 32 (10 bytes), against the 6 of 16-bit sums
_MIXED_SUM_B = copied_B(78e-6, 4 * 2048 * 2560) - 6.0
# Kernels of a norm of 4 x 2048 x 32 x 128 elements by itself: to float32, squares, their mean, times the inverse root
# and the weights, to 16 bits; 499 us forward, and their gradients, 1,177 us. Of an element they move 40 and 100 bytes.
_SPLIT_NORM_B = tuple(copied_B(time_s, 4 * 2048 * 32 * 128) for time_s in (499e-6, 1177e-6))
_SPLIT_NORM_MOVED_B = 40.0 + 100.0


@dataclass(frozen=True, kw_only=True)
class _Form:
    """Bytes of an element beyond those of operators on 16 bits.

    Attributes:
        cast: what a norm gives, to what a product reads; its gradient on the way back is `widened`.
        widened: from 16 bits to 32, also gradients of weights.
        narrowed: gradients of what is added to the stream.
        norm, norm_backward, residual, fan_in: of the stream.
        splits: norms of 16-bit rows fall into kernels.
    """

    cast: float
    widened: float
    narrowed: float
    norm: float
    norm_backward: float
    residual: float
    fan_in: float
    splits: bool


# Norms read and write 32 bits (4 more), backward read them twice, beside the input, and write them (10 more); sums of
# gradients are of 32 bits (6 more)
_EAGER = _Form(
    cast=_CAST_B,
    widened=WIDEN_B,
    narrowed=_CAST_B,
    norm=4,
    norm_backward=10,
    residual=_MIXED_SUM_B,
    fan_in=6,
    splits=True,
)
# One kernel of a chain: casts move nothing but what they read or write in 32 bits
_COMPILED = _Form(cast=0, widened=_CAST_B, narrowed=0, norm=2, norm_backward=4, residual=4, fan_in=4, splits=False)


def autocast_operators(operators: Iterable[LayerOp], batch: MicroBatch) -> Iterator[LayerOp]:
    """Operators, each with the casts around it in plans whose parameters are float32 ones (`MicroBatch.autocast`).

    Args:
        operators: forward operators of a layer or of an end.
        batch: a micro-batch in each of P plans.
    """
    form = _COMPILED if batch.framework.compiled else _EAGER
    for op in operators:
        yield op
        times = batch.autocast * (1.0 if op.mask is None else op.mask)
        if not times.any():
            continue
        around = replace(
            LayerOp(kind=Kind.COPY, shape=op.shape, parts=op.parts, attention_core=op.attention_core),
            mask=times,
            gating=op.gating,
        )
        if plain_kernels_of(op, batch.framework) is None:  # plain kernels say themselves what is cast
            for forward_B, backward_B, moved in _around(op, form):
                yield from _copies(around, forward_B, backward_B, moved)
        if op.grad_fan_in is not None:
            m, n = _sizes(op.grad_fan_in.m, op.grad_fan_in.n)
            yield from _copies(around, 0.0 * m, m * n * form.fan_in, 1.0)


def _around(op: LayerOp, form: _Form) -> Iterator[tuple[FloatArray, FloatArray, float]]:
    """Bytes forward and backward of what stands around an operator, and the share of them that is moved."""
    m, n, k, experts = _sizes(op.shape.m, op.shape.n, op.shape.k, op.shape.experts)
    if op.kind in PRODUCTS:
        weights = n * k * (experts if op.kind is Kind.GROUPED_GEMM else 1.0)
        if op.backward is None:
            yield weights * _CAST_B, weights * form.widened, 2 * _CAST_B / (_CAST_B + form.widened)
        else:  # frozen ones have no gradient
            yield weights * _CAST_B, 0.0 * weights, 1.0
        if op.target in SCATTERED:  # added to the residual stream
            yield 0.0 * m, m * n * form.narrowed, 1.0
        elif op.kind is Kind.GEMM:
            moved = 2 * _CAST_B / max(form.cast + form.widened, 2 * _CAST_B)
            yield m * k * form.cast, m * k * (form.widened if form.cast else 0.0), moved
    elif op.kind in (Kind.RMS_NORM, Kind.LAYER_NORM) and not op.of_stream:
        if form.splits:
            forward, backward = _SPLIT_NORM_B
            yield m * n * forward, m * n * backward, _SPLIT_NORM_MOVED_B / (forward + backward)
    elif op.kind in (Kind.RMS_NORM, Kind.LAYER_NORM):
        yield m * n * form.norm, m * n * form.norm_backward, 1.0
    elif op.kind is Kind.RESIDUAL_ADD:
        yield m * n * form.residual, 0.0 * m, 1.0


def _sizes(*sizes: ArrayLike) -> tuple[FloatArray, ...]:
    return tuple(np.asarray(size, dtype=np.float64) for size in sizes)


def _copies(around: LayerOp, forward_B: FloatArray, backward_B: FloatArray, moved: float) -> Iterator[LayerOp]:
    """Kernels that move so many bytes, as copies."""
    if np.any(forward_B):
        yield replace(around, shape=Shape(m=forward_B / COPY_B), operand_energy=moved)
    if np.any(backward_B):
        back = Shape(m=backward_B / COPY_B)
        yield replace(around, shape=back, copies=(back,), only_backward=True, operand_energy=moved)
