"""The vocabulary of operators: what a training step is made of, and the least work each needs.

Profiler and predictor meet here. The profiler times an operator at a shape; a plan is a list of operators
with shapes and counts; the roofline (`device.roofline`) gives the time of one at the other.

Symbols, shared by every operator that has them (an operator ignores the others):

    m   rows: tokens, or the m of a matrix product          n   width: features, vocabulary, or the n of a product;
                                                                of attention, width of a value (1: head_dim)
    k   reduction depth of a product                        batch, heads, kv_heads, seq, head_dim   of attention
    experts   groups of a grouped product, choices of a router      top_k   experts per token
    skew      rows of the busiest expert over the mean of all (1 = balanced)

`Work` is the least an operator must do: floating-point operations on the tensor cores, element operations on the
SIMD pipes, bytes to and from device memory (each operand once). What a real kernel needs beyond this is what the
calibration measures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike

from moemodel.model.core.arrays import FloatArray


class Kind(StrEnum):
    """An operator of transformer training; `torch` names are what the profiler runs for it."""

    GEMM = "gemm"  # y[m,n] = x[m,k] w[n,k]^T
    GROUPED_GEMM = "grouped_gemm"  # the same for each expert's rows, m over all of them, w[experts,n,k]
    ATTENTION = "attention"  # causal scaled dot product attention, flash kernel
    ATTENTION_FULL = "attention_full"  # the same without the causal mask (encoder, cross attention)
    RMS_NORM = "rms_norm"  # m rows of width n
    LAYER_NORM = "layer_norm"
    ROTARY = "rotary"  # queries and keys together: m tokens, n = (heads + kv_heads) * head_dim
    GELU = "gelu"
    RELU = "relu"
    SWIGLU = "swiglu"  # silu(gate) * up, each m x n
    SWIGLU_PACKED = "swiglu_packed"  # the same on the two halves of one tensor, m x 2n: strided, so slower
    RESIDUAL_ADD = "residual_add"  # m x n; its backward is the sum of the two branches' gradients
    BIAS = "bias"  # backward only: the sum of m rows of width n (forward is the product's epilogue)
    EMBEDDING = "embedding"  # m tokens, n features, k vocabulary; backward fills a gradient of k x n
    CROSS_ENTROPY = "cross_entropy"  # m tokens, n vocabulary; bf16 logits, float32 inside
    ROUTER = "router"  # softmax, top-k, renormalise: m tokens, experts, top_k (its product is a gemm)
    PERMUTE = "permute"  # sort (token, expert) pairs and gather: m tokens, n features, experts, top_k
    UNPERMUTE = "unpermute"  # weight and add back: m tokens, n features, top_k
    ADAMW = "adamw"  # m parameters; the optimizer step of one precision recipe
    ADAMW_MIXED = "adamw_mixed"  # m parameters: bf16 weights and gradients, float32 master weights and moments
    GRAD_NORM = "grad_norm"  # global norm and clip of m gradient elements
    ACCUMULATE = "accumulate"  # add m gradient elements into the accumulated ones
    COPY = "copy"  # m elements, device to device


class Pass(StrEnum):
    """Which part of training an operator's time belongs to."""

    FORWARD = "forward"
    BACKWARD = "backward"
    BACKWARD_INPUT = "backward_input"  # of a product: gradient of x
    BACKWARD_WEIGHT = "backward_weight"  # of a product: gradient of w
    STEP = "step"  # of the optimizer


GEMM_PASSES = (Pass.FORWARD, Pass.BACKWARD_INPUT, Pass.BACKWARD_WEIGHT)
PASSES: dict[Kind, tuple[Pass, ...]] = {
    **dict.fromkeys(Kind, (Pass.FORWARD, Pass.BACKWARD)),
    Kind.GEMM: GEMM_PASSES,
    Kind.GROUPED_GEMM: GEMM_PASSES,
    Kind.BIAS: (Pass.BACKWARD,),
    Kind.ADAMW: (Pass.STEP,),
    Kind.ADAMW_MIXED: (Pass.STEP,),
    Kind.GRAD_NORM: (Pass.STEP,),
    Kind.ACCUMULATE: (Pass.BACKWARD,),
    Kind.COPY: (Pass.FORWARD,),
}


# Operators that stand in for one another where a calibration lacks the first.
FALLBACK: dict[Kind, Kind] = {
    Kind.ATTENTION_FULL: Kind.ATTENTION,
    Kind.RMS_NORM: Kind.LAYER_NORM,
    Kind.LAYER_NORM: Kind.RMS_NORM,
    Kind.RELU: Kind.GELU,
    Kind.SWIGLU: Kind.GELU,
    Kind.SWIGLU_PACKED: Kind.SWIGLU,
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of an operator; each field a number or an array, all broadcastable. See the symbols above."""

    m: ArrayLike = 1
    n: ArrayLike = 1
    k: ArrayLike = 1
    batch: ArrayLike = 1
    heads: ArrayLike = 1
    kv_heads: ArrayLike = 1
    seq: ArrayLike = 1
    head_dim: ArrayLike = 1
    experts: ArrayLike = 1
    top_k: ArrayLike = 1
    skew: ArrayLike = 1.0

    def arrays(self) -> dict[str, FloatArray]:
        """Every field as a float array, in declaration order."""
        return {name: np.asarray(value, dtype=np.float64) for name, value in vars(self).items()}


SHAPE_FIELDS: tuple[str, ...] = tuple(f.name for f in fields(Shape))


@dataclass(frozen=True, kw_only=True)
class Work:
    """The least an operator does in one call.

    Attributes:
        flops: floating-point operations on tensor cores (a multiply-add is two).
        vector_ops: element operations on the SIMD pipes.
        bytes_B: bytes read from and written to device memory.
    """

    flops: FloatArray
    vector_ops: FloatArray
    bytes_B: FloatArray


_E = 2.0  # bytes of a bf16 element
_SORT_OPS = (
    64.0  # element operations to sort one (token, expert) pair; only its ratio to time matters, and that is fitted
)


def _product(s: dict[str, FloatArray]) -> Work:
    """One product; its three passes do the same work on permuted operands."""
    m, n, k, groups = s["m"], s["n"], s["k"], s["experts"]
    return Work(
        flops=2 * m * n * k * s["batch"],
        vector_ops=np.zeros(np.broadcast(m, n, k).shape),
        bytes_B=_E * s["batch"] * (m * k + groups * n * k + m * n),
    )


def weights_share(shape: Shape) -> FloatArray:
    """Of the bytes of a product, the share of its weights, which does not grow with its rows."""
    s = shape.arrays()
    weights = s["experts"] * s["n"] * s["k"]
    return np.asarray(weights / (s["m"] * s["k"] + weights + s["m"] * s["n"]))


def _attention(causal: bool) -> Callable[[dict[str, FloatArray], Pass], Work]:
    """Flash attention (Dao et al. 2022): 2 products forward; 5 backward, one of them recomputed.

    As deep or as wide as a query: scores, backward again, and gradients of queries and keys. As a value: the output,
    and gradients of scores and of values. Half of the tensors are as wide as either: queries, output; keys, values; and
    as many gradients backward.
    """

    def work(s: dict[str, FloatArray], direction: Pass) -> Work:
        pairs = s["batch"] * s["heads"] * s["seq"] * s["seq"] * (0.5 if causal else 1.0)
        of_query, of_value, tensors = (1, 1, 1) if direction is Pass.FORWARD else (3, 2, 2)
        value_dim = np.where(s["n"] == 1, s["head_dim"], s["n"])
        rows = s["batch"] * s["seq"] * (s["head_dim"] + value_dim)
        return Work(
            flops=2 * pairs * (of_query * s["head_dim"] + of_value * value_dim),
            vector_ops=4.0 * pairs,  # scale, maximum, exponential, sum: assumed for either pass; for power alone
            bytes_B=_E * rows * tensors * (s["heads"] + s["kv_heads"]),
        )

    return work


@dataclass(frozen=True, kw_only=True)
class _Stream:
    """An operator that streams tensors: bytes and element operations per element of m x n (or of m)."""

    elements: Callable[[dict[str, FloatArray]], FloatArray]
    bytes_B: dict[Pass, float]
    ops: float

    def work(self, s: dict[str, FloatArray], direction: Pass) -> Work:
        elements = self.elements(s)
        return Work(
            flops=np.zeros_like(elements),
            vector_ops=self.ops * elements,
            bytes_B=self.bytes_B[direction] * elements,
        )


def _mn(s: dict[str, FloatArray]) -> FloatArray:
    return np.asarray(s["m"] * s["n"] * s["batch"])


def _m(s: dict[str, FloatArray]) -> FloatArray:
    return np.asarray(s["m"] * s["batch"])


def _pairs(s: dict[str, FloatArray]) -> FloatArray:
    return np.asarray(s["m"] * s["n"] * (s["top_k"] + 1))


def _choices(s: dict[str, FloatArray]) -> FloatArray:
    return np.asarray(s["m"] * s["experts"])


def _fb(forward: float, backward: float) -> dict[Pass, float]:
    return {Pass.FORWARD: forward * _E, Pass.BACKWARD: backward * _E}


# Tensors touched per element, forward and backward, each once; float32 counts as two. `ops` are about the
# instructions of the formula: assumed, but an operator's fitted issue efficiency (time) and factor (power) take up what
# they miss.
_STREAMS: dict[Kind, _Stream] = {
    Kind.RMS_NORM: _Stream(elements=_mn, bytes_B=_fb(2, 3), ops=4),
    Kind.LAYER_NORM: _Stream(elements=_mn, bytes_B=_fb(2, 3), ops=6),
    Kind.ROTARY: _Stream(elements=_mn, bytes_B=_fb(2, 2), ops=3),
    Kind.GELU: _Stream(elements=_mn, bytes_B=_fb(2, 3), ops=16),
    Kind.RELU: _Stream(elements=_mn, bytes_B=_fb(2, 3), ops=1),
    Kind.SWIGLU: _Stream(elements=_mn, bytes_B=_fb(3, 5), ops=10),
    Kind.SWIGLU_PACKED: _Stream(elements=_mn, bytes_B=_fb(3, 5), ops=10),
    Kind.RESIDUAL_ADD: _Stream(elements=_mn, bytes_B=_fb(3, 3), ops=1),
    Kind.BIAS: _Stream(elements=_mn, bytes_B={Pass.BACKWARD: _E}, ops=1),
    Kind.CROSS_ENTROPY: _Stream(elements=_mn, bytes_B=_fb(5, 5), ops=12),
    Kind.ROUTER: _Stream(elements=_choices, bytes_B=_fb(4, 6), ops=12),
    Kind.UNPERMUTE: _Stream(elements=_pairs, bytes_B=_fb(1, 1), ops=2),
    # bf16 parameter, gradient and two moments: read 4, write 3
    Kind.ADAMW: _Stream(elements=_m, bytes_B={Pass.STEP: 7 * _E}, ops=12),
    # read bf16 gradient, float32 master and moments; write the three and the bf16 parameter
    Kind.ADAMW_MIXED: _Stream(elements=_m, bytes_B={Pass.STEP: 2 * _E + 6 * 4.0}, ops=12),
    Kind.GRAD_NORM: _Stream(elements=_m, bytes_B={Pass.STEP: 3 * _E}, ops=2),
    Kind.ACCUMULATE: _Stream(elements=_m, bytes_B={Pass.BACKWARD: 3 * _E}, ops=1),
    Kind.COPY: _Stream(elements=_m, bytes_B={Pass.FORWARD: 2 * _E}, ops=1),
}


def work(kind: Kind, direction: Pass, shape: Shape) -> Work:
    """The least work of one call of an operator.

    Args:
        kind: the operator.
        direction: one of `PASSES[kind]`.
        shape: its sizes; array fields give arrays of the broadcast shape.

    Raises:
        ValueError: the operator has no such pass.
    """
    if direction not in PASSES[kind]:
        raise ValueError(f"{kind} has no pass {direction}; it has {', '.join(PASSES[kind])}")
    s = shape.arrays()
    if kind in (Kind.GEMM, Kind.GROUPED_GEMM):
        return _product(s)
    if kind in (Kind.ATTENTION, Kind.ATTENTION_FULL):
        return _attention(kind is Kind.ATTENTION)(s, direction)
    if kind is Kind.EMBEDDING:
        return _embedding(s, direction)
    if kind is Kind.PERMUTE:
        return _permute(s, direction)
    return _STREAMS[kind].work(s, direction)


def _permute(s: dict[str, FloatArray], direction: Pass) -> Work:
    """Rows read and written; forward, the pairs are sorted by expert first, a few passes over 8-byte keys."""
    pairs = s["m"] * s["top_k"]
    sorting = _SORT_OPS * pairs if direction is Pass.FORWARD else pairs
    return Work(flops=np.zeros_like(pairs), vector_ops=sorting, bytes_B=_E * (s["m"] + pairs) * s["n"])


def _embedding(s: dict[str, FloatArray], direction: Pass) -> Work:
    """Rows read and written; backward, rows added into a gradient of the whole table, which is filled with zeros."""
    rows = s["m"] * s["n"]
    table = s["k"] * s["n"] if direction is Pass.BACKWARD else 0.0 * s["k"]
    return Work(flops=np.zeros_like(rows), vector_ops=rows, bytes_B=_E * (2 * rows + table))
