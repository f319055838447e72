"""Time of one operator call at a shape and an SM clock.

    t(f) = t0 + t1 f0/f + ((Tc f0/f)^p + Tm^p)^(1/p)   times   exp(residual(shape))

    t0  launch and tail, s            f   true SM clock, Hz        f0  reference clock, Hz
    t1  the same where SMs run through it (chains of small kernels), at f0, s
    Tc  time of the SM-bound part at f0, s                          Tm  time of the memory-bound part, s

The p-norm is a roofline (Williams et al. 2009) with a rounded corner; p is fitted. Memory time does not move with the
SM clock; what an SM must issue to load the bytes is in Tc. Left out: contention between concurrent kernels.

Three forms give Tc and Tm from a shape, all in the symbols of `operators.work`:

product (gemm, grouped_gemm):
    Tc = min over tiles i of  waves_i * 2 tm tn (k / s + k0) / (F f0 e_i),   Tm = bytes / (BW beta)
    waves_i = (1 - q) max(c, 1) + q ceil(c),  c = tiles_i / SMs;  tiles_i = sum over groups ceil(m_g/tm) ceil(n/tn)
    s = max(1, min(SMs / tiles_i, k / k_split))^x      (split of a deep k over idle SMs)
    and everything over alignment^(log2(8/a)/3) where a < 8 is the power of two that divides n and k (16-bit elements):
    tensor cores are fed 16 bytes at a time, and rows that are not whole multiples of that in smaller pieces
    F tensor flops per cycle of one SM, e_i efficiency of a tile, k0 depth spent in prologue and epilogue, q how hard
    waves quantise. The tile is the one the library would find fastest. After the tile and wave quantisation of
    NVIDIA's "Matrix Multiplication Background" guide; here continuous, so that it can be fitted.
attention:
    Tc = flops / (SMs F f0 e),  e = e_inf  d/(d + d0)  seq/(seq + s0)  c/ceil(c),  c = batch heads seq/128 / SMs
stream (all others):
    Tm = bytes / (BW beta) with beta -> beta_cache where the tensors fit in L2;  Tc = vector_ops / (SMs L f0 e)
    L SIMD lanes of one SM
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moemodel.model.core.arrays import BoolArray, FloatArray, distinct_rows
from moemodel.model.operators.work import Kind, Pass, Shape, Work, work
from moemodel.model.records.calibration import Calibration, KernelFit, OperatorFit, Residual

PRODUCTS = (Kind.GEMM, Kind.GROUPED_GEMM)
ATTENTIONS = (Kind.ATTENTION, Kind.ATTENTION_FULL)
# Of products: those that NVIDIA names typical of cuBLAS (Matrix Multiplication Background, section 2.3), without 256x64
# and 64x256.
TILES: tuple[tuple[int, int], ...] = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64))
_TILE_NAMES: tuple[str, ...] = tuple(f"efficiency_{max(t)}x{min(t)}" for t in TILES)
# SIMD lanes of an SM (float32) where a calibration does not say: NVIDIA H100 whitepaper. Those that were fitted before
# it could, of an A100 (64) too, have issue efficiencies over these.
_LANES = 128
ALIGNED = 8  # 16-bit elements in 16 bytes: what one asynchronous copy of an SM moves (Ampere tuning guide, 1.4.1)
_RESULT_B = 2.0  # of an element of a product's result, and of operands that are not cast
# Rows of queries that a kernel takes at once: flash-attention 2 on compute capability 8.0 and 9.0, heads 64 to 128 wide
# (flash_fwd_launch_template.h, kBlockM).
_QUERY_BLOCK = 128

FEATURES: dict[str, tuple[str, ...]] = {
    "product": ("m", "n", "k", "batch"),
    "grouped": ("m", "n", "k", "experts", "skew"),
    "attention": ("batch", "heads", "kv_heads", "seq", "head_dim"),
    "stream": ("m", "n", "experts", "top_k"),
}


@dataclass(frozen=True, kw_only=True)
class RooflineChip:
    """What the forms need of a GPU.

    Attributes:
        multiprocessors: SMs.
        flops_per_cycle: of the tensor cores of one SM, in the precision of training.
        bandwidth_Bps: of device memory.
        l2_B: size of the last-level cache.
        clock_Hz: reference clock f0.
        simd_lanes: of one SM, float32.
    """

    multiprocessors: float
    flops_per_cycle: float
    bandwidth_Bps: float
    l2_B: float
    clock_Hz: float
    simd_lanes: float = _LANES


def chip_of_calibration(calibration: Calibration) -> RooflineChip:
    """The chip that a calibration's operator fits refer to."""
    p = {name: parameter.value for name, parameter in calibration.chip.items()}
    return RooflineChip(**p, clock_Hz=calibration.clock_reference_Hz)


def form_of(kind: Kind) -> str:
    """Which form of the module's docstring an operator takes."""
    if kind is Kind.GROUPED_GEMM:
        return "grouped"
    if kind is Kind.GEMM:
        return "product"
    return "attention" if kind in ATTENTIONS else "stream"


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """Time of one call. U shapes, K clocks.

    Attributes:
        time_s_UK: seconds.
        busy_s_UK: of that, the time beyond launch and tail, in which the SMs are busy.
        log_error_U: standard deviation of log time, wider outside what was measured.
        outside_U: the shape lies outside what was measured.
        work: the least that one call does.
    """

    time_s_UK: FloatArray
    busy_s_UK: FloatArray
    log_error_U: FloatArray
    outside_U: BoolArray
    work: Work


def operator_time(
    fit: OperatorFit, chip: RooflineChip, shape: Shape, clock_Hz_K: FloatArray, *, calls: int = 1
) -> OperatorTime:
    """Time of an operator at shapes (fields scalar or of length U) and clocks (length K).

    Args:
        fit, chip: of the operator, on its GPU.
        shape: of the calls.
        clock_Hz_K: clocks.
        calls: how many calls stand one behind another in `shape`, all of as many shapes.
    """
    return operator_times([roofline_terms(fit, chip, shape, calls=calls)], chip, clock_Hz_K)


@dataclass(frozen=True, kw_only=True)
class RooflineTerms:
    """The symbols of the module's docstring for an operator's shapes, before any clock is chosen. [U], but for numbers.

    Attributes:
        t0_s, t1_s, p: of the operator: a number, or [U, 1] where there are several.
        compute_s, memory_s: Tc and Tm.
        residual: of log time.
        log_error, outside, work: as in `OperatorTime`.
    """

    t0_s: FloatArray | float
    t1_s: FloatArray | float
    p: FloatArray | float
    compute_s: FloatArray
    memory_s: FloatArray
    residual: FloatArray
    log_error: FloatArray
    outside: BoolArray
    work: Work


def roofline_terms(fit: OperatorFit, chip: RooflineChip, shape: Shape, *, calls: int = 1) -> RooflineTerms:
    """Of an operator; arguments as `operator_time`."""
    p = fit.values
    least = _least(fit, shape)
    compute_s, memory_s = _parts(fit.kind, fit.direction, p, chip, shape, least)
    features = shape_features(fit.kind, shape)
    outside_log2 = _distance_outside(fit, features)
    residual, spread = _residual(fit.residual, features, calls) if fit.residual else (np.zeros(len(features)), 0.0)
    uneven = _uneven_error(fit, shape)
    return RooflineTerms(
        t0_s=p["t0"],
        t1_s=p.get("t1", 0.0),
        p=p["p"],
        compute_s=compute_s,
        memory_s=memory_s,
        residual=residual,
        log_error=np.sqrt(fit.log_error**2 + np.square(spread) + np.square(_PER_OCTAVE * outside_log2) + uneven**2),
        outside=(outside_log2 > _HALF_OCTAVE) | (uneven > 0),
        work=least,
    )


def _least(fit: OperatorFit, shape: Shape) -> Work:
    """Work of a call: of a product of cast operands, with the bytes of these and of a result of 16 bits."""
    least = work(fit.kind, fit.direction, shape)
    if not isinstance(fit, KernelFit):
        return least
    s = shape.arrays()
    sides = {Pass.FORWARD: s["m"] * s["n"], Pass.BACKWARD_INPUT: s["m"] * s["k"]}
    result = s["batch"] * sides.get(fit.direction, s["experts"] * s["n"] * s["k"])
    return replace(least, bytes_B=fit.operand_B * (least.bytes_B / _RESULT_B - result) + _RESULT_B * result)


def operator_times(operators: Sequence[RooflineTerms], chip: RooflineChip, clock_Hz_K: FloatArray) -> OperatorTime:
    """Times of some operators, the shapes of one behind those of another, at the same clocks."""
    terms = operators[0] if len(operators) == 1 else _joined(operators)
    slowdown = chip.clock_Hz / clock_Hz_K[None, :]
    fixed_s = terms.t0_s + terms.t1_s * slowdown
    rooflines_s = _rounded_roofline(terms.p, terms.compute_s[:, None], terms.memory_s[:, None], slowdown)
    factor = np.exp(terms.residual)[:, None]
    return OperatorTime(
        time_s_UK=(fixed_s + rooflines_s) * factor,
        busy_s_UK=rooflines_s * factor,
        log_error_U=terms.log_error,
        outside_U=terms.outside,
        work=terms.work,
    )


def _joined(operators: Sequence[RooflineTerms]) -> RooflineTerms:
    """Several operators' terms, one behind another."""
    sizes = [len(terms.residual) for terms in operators]
    columns = np.empty((7, sum(sizes)))  # filled row by row: `numpy.concatenate` would want every part at full length
    outside = np.empty(sum(sizes), dtype=np.bool_)
    end = 0
    for terms, size in zip(operators, sizes, strict=True):
        begin, end = end, end + size
        least = terms.work
        every = (terms.compute_s, terms.memory_s, terms.residual, terms.log_error)
        for column, values in zip(columns, (*every, least.flops, least.vector_ops, least.bytes_B), strict=True):
            column[begin:end] = values
        outside[begin:end] = terms.outside
    numbers = np.repeat([(terms.t0_s, terms.t1_s, terms.p) for terms in operators], sizes, axis=0)
    compute_s, memory_s, residual, log_error, flops, vector_ops, bytes_B = columns
    return RooflineTerms(
        t0_s=numbers[:, 0, None],
        t1_s=numbers[:, 1, None],
        p=numbers[:, 2, None],
        compute_s=compute_s,
        memory_s=memory_s,
        residual=residual,
        log_error=log_error,
        outside=outside,
        work=Work(flops=flops, vector_ops=vector_ops, bytes_B=bytes_B),
    )


def _uneven_error(fit: OperatorFit, shape: Shape) -> FloatArray:
    """Log error of products whose rows don't begin at 16 bytes, where no such product was measured."""
    alignment = fit.parameters.get("alignment")
    if alignment is None or alignment.origin != "assumed":
        return np.zeros(1)
    s = shape.arrays()
    return np.atleast_1d((alignment.error or 0.0) * _halvings(s["n"], s["k"]) / np.log2(ALIGNED))


_PER_OCTAVE = 0.10  # assumed: log error grows by this for each doubling outside the measured range
_LEAST_SIZE = 1e-9  # of a feature, in place of zero, which has no logarithm
_HALF_OCTAVE = 0.5  # assumed: outside the measured range by less than a factor 1.4 counts as measured


def time_at(p: Mapping[str, float], compute_s: FloatArray, memory_s: FloatArray, slowdown: FloatArray) -> FloatArray:
    """The p-norm of the module's docstring; `slowdown` is f0/f."""
    fixed_s = p["t0"] + p.get("t1", 0.0) * slowdown  # that no amount of work adds to: launch, tail, small kernels
    return np.asarray(fixed_s + _rounded_roofline(p["p"], compute_s, memory_s, slowdown))


def _rounded_roofline(
    p: FloatArray | float, compute_s: FloatArray, memory_s: FloatArray, slowdown: FloatArray
) -> FloatArray:
    return np.asarray(((compute_s * slowdown) ** p + memory_s**p) ** (1 / p))


def parts(
    kind: Kind, direction: Pass, p: Mapping[str, float], chip: RooflineChip, shape: Shape, least: Work | None = None
) -> tuple[FloatArray, FloatArray]:
    """Tc and Tm of each shape, s, each of length U; `least` is the work of a call, if it is another than an operator
    of that shape has (operands of fewer bytes, a window)."""
    compute_s, memory_s = _parts(kind, direction, p, chip, shape, least or work(kind, direction, shape))
    compute_s, memory_s = np.broadcast_arrays(compute_s, memory_s)
    return compute_s, memory_s


def _parts(
    kind: Kind, direction: Pass, p: Mapping[str, float], chip: RooflineChip, shape: Shape, least: Work
) -> tuple[FloatArray, FloatArray]:
    """The same, each of length U or 1; `least` is the work of a call."""
    form = form_of(kind)
    if form in ("product", "grouped"):
        compute_s, memory_s = _product(kind, direction, p, chip, shape, least)
    elif form == "attention":
        compute_s, memory_s = _attention(p, chip, shape, least)
    else:
        compute_s, memory_s = _stream(p, chip, least)
    return np.atleast_1d(compute_s), np.atleast_1d(memory_s)


def _output(direction: Pass, s: dict[str, FloatArray]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Rows, columns and depth of the product that a pass computes."""
    if direction is Pass.BACKWARD_INPUT:
        return s["m"], s["k"], s["n"]
    if direction is Pass.BACKWARD_WEIGHT:
        return s["n"], s["k"], s["m"]
    return s["m"], s["n"], s["k"]


def _product(
    kind: Kind, direction: Pass, p: Mapping[str, float], chip: RooflineChip, shape: Shape, least: Work
) -> tuple[FloatArray, FloatArray]:
    s = shape.arrays()
    rows, columns, depth = _output(direction, s)
    groups = s["experts"] * s["batch"]
    ragged = 0.0
    if kind is Kind.GROUPED_GEMM:
        # each group's rows (or depth) are a share of m; ragged ends cost half a tile of rows a group on average
        if direction is Pass.BACKWARD_WEIGHT:
            depth = depth / groups
        else:
            rows, ragged = rows / groups, 0.5
    cycles = np.full(np.broadcast(rows, columns, depth, groups).shape, np.inf)
    for (tm, tn), name in zip(TILES, _TILE_NAMES, strict=True):
        down = np.ceil(rows / tm) if ragged == 0.0 else np.maximum(rows / tm + ragged, 1.0)
        tiles = down * np.ceil(columns / tn) * groups
        c = tiles / chip.multiprocessors
        waves = (1 - p["quantisation"]) * np.maximum(c, 1.0) + p["quantisation"] * np.ceil(c)
        split = np.maximum(1.0, np.minimum(1 / c, depth / p["split_depth"])) ** p["split_gain"]
        tile = 2.0 * tm * tn * (depth / split + p["depth0"]) / (chip.flops_per_cycle * p[name])
        cycles = np.minimum(cycles, waves * tile)
    memory_s = least.bytes_B / (chip.bandwidth_Bps * p["memory_efficiency"])
    if p.get("alignment", 1.0) != 1.0:
        cycles = cycles / p["alignment"] ** (_halvings(s["n"], s["k"]) / np.log2(ALIGNED))
    return np.asarray(cycles / chip.clock_Hz), np.asarray(memory_s)


def _halvings(n: FloatArray, k: FloatArray) -> FloatArray:
    """log2(8/a) of the module's docstring; a shard that isn't whole counts as the smaller whole one."""
    odd = sum(((np.floor(n) % piece != 0) | (np.floor(k) % piece != 0)).astype(np.float64) for piece in (2, 4, ALIGNED))
    return np.asarray(odd)


def _attention(p: Mapping[str, float], chip: RooflineChip, shape: Shape, least: Work) -> tuple[FloatArray, FloatArray]:
    s = shape.arrays()
    c = np.maximum(s["batch"] * s["heads"] * s["seq"] / _QUERY_BLOCK, 1.0) / chip.multiprocessors
    waves = (1 - p["quantisation"]) * np.maximum(c, 1.0) + p["quantisation"] * np.ceil(c)
    efficiency = p["efficiency"] * s["head_dim"] / (s["head_dim"] + p["head_dim0"]) * s["seq"] / (s["seq"] + p["seq0"])
    rate = chip.multiprocessors * chip.flops_per_cycle * chip.clock_Hz
    compute_s = least.flops / (rate * efficiency) * waves / c
    return np.asarray(compute_s), np.asarray(least.bytes_B / (chip.bandwidth_Bps * p["memory_efficiency"]))


def _stream(p: Mapping[str, float], chip: RooflineChip, least: Work) -> tuple[FloatArray, FloatArray]:
    cached = 1 / (1 + (least.bytes_B / (p["cache_size"] * chip.l2_B)) ** 2)
    slow = 1 / p["memory_efficiency"]
    fast = 1 / p["cache_efficiency"]
    memory_s = least.bytes_B / chip.bandwidth_Bps * (slow + (fast - slow) * cached)
    rate = chip.multiprocessors * chip.simd_lanes * chip.clock_Hz * p["issue_efficiency"]
    return np.asarray(least.vector_ops / rate), np.asarray(memory_s)


def shape_features(kind: Kind, shape: Shape) -> FloatArray:
    """log2 of an operator's shape, [U, features]: what the residual and the measured range are over."""
    s = shape.arrays()
    columns = [np.atleast_1d(s[name]) for name in FEATURES[form_of(kind)]]
    features = np.empty((max(map(len, columns)), len(columns)))
    for index, column in enumerate(columns):
        features[:, index] = column
    return np.log2(np.maximum(features, _LEAST_SIZE))


_REPEATS = 256  # of shapes, above which it is worth to look for those that are the same


def _residual(residual: Residual, features: FloatArray, calls: int) -> tuple[FloatArray, FloatArray]:
    """Mean of log(time / analytic), and its spread: at most what the nearest point leaves of the prior.

    Products are taken call by call: next to a measured point the spread is the root of a difference of rounding's size,
    and must not depend on what else is priced at the time.
    """
    if len(features) > _REPEATS:
        first, place = distinct_rows(list(features.T))
        if 2 * len(first) < len(features):
            mean, left = _residual(residual, features[first], 1)
            return mean[place], left[place]
    lengths, points, squares, weights = residual.arrays
    x = features / lengths
    products = (2 * x.reshape(calls, -1, len(lengths)) @ points.T).reshape(len(x), -1)
    kernel = np.square(x).sum(1)[:, None] + squares[None, :]
    kernel -= products  # the squared distance; in place, since all memory of a large batch goes through here
    np.sqrt(np.maximum(kernel, 0.0, out=kernel), out=kernel)
    np.exp(np.negative(kernel, out=kernel), out=kernel)
    left = residual.signal * np.sqrt(np.maximum(1 - np.square(kernel.max(axis=1)), 0.0))
    return np.asarray(residual.signal**2 * (kernel @ weights)), np.asarray(left)


def _distance_outside(fit: OperatorFit, features: FloatArray) -> FloatArray:
    """How many octaves a shape lies outside the measured box, summed over features; one where nothing was measured."""
    if not fit.measured:
        return np.ones(len(features))
    low, high = np.log2(np.maximum(fit.box, _LEAST_SIZE)).T
    return np.asarray((np.maximum(low - features, 0.0) + np.maximum(features - high, 0.0)).sum(axis=1))
