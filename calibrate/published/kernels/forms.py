"""Times of an engine's kernels: the forms of `device.roofline`, and what an engine adds to a product in 8 bits or less.

    t(f) = host-bound sum of  t0 + ((Tc f0/f)^p + Tm^p)^(1/p) (1 + odd / (1 + m/2048) where 8 does not divide m)
           + m (row + k (2 + b) / (BW e_q))       activations are quantised first: read in 16 bits, written in b bytes
    host-bound sum: (t^8 + host^8)^(1/8): the engine's calls take the host this long, whatever the device does

Tc and Tm of a product in fewer bits are those of a chip whose tensor cores are as much faster as its data sheet says
and of operands of as many bytes less. Attention counts the pairs that a window leaves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np

from moemodel.calibration.fit.operators import BoundedParameter
from moemodel.calibration.least_squares import best_of, minimise
from moemodel.calibration.published.kernels.readings import Readings
from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray, take_rows
from moemodel.model.core.dtypes import Dtype
from moemodel.model.core.errors import InputError
from moemodel.model.device.roofline import RooflineChip, parts, shape_features
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.operators.work import Kind, Pass, Shape, Work, work

# Data type of the operands on the tensor cores, and bytes of an element of each with its scale: blocks of 128 with 4
# bytes (DeepSeek-V3 report, section 3.3.2: 1 x 128 for activations), of 16 with 1 (NVFP4).
OPERANDS: dict[str, tuple[Dtype, float]] = {
    "bfloat16": ("bf16", 2.0),
    "fp8": ("fp8", 1.0),
    "fp8_block": ("fp8", 1.0 + 4 / 128),
    "nvfp4": ("nvfp4", 0.5 + 1 / 16),
    "w4a8_mxfp4_mxfp8": ("mxfp8", 1.0 + 1 / 32),
}
_OUT_B = 2.0  # results are of 16 bits
_ROUNDED = 8  # sharpness of the host's bound
_ODD_ROWS = 2048.0  # above which odd rows matter no more; assumed

# Starts and bounds are assumed, as in `fit.operators`, but that no efficiency is above 1: a product that seems faster
# than tensor cores at its clock was taken at another clock (`fitted`). Memory hides behind computation at least as
# p = 2 has it: with p = 1 a fit makes up for what tiles lose by a bandwidth that no memory has. Launches take no more
# than those of a cast and a product: what calls take beyond that is the host's, behind which they can't be told apart.
PRODUCT = {
    "t0": BoundedParameter(start=3e-6, low=2e-7, high=1e-5, unit="s"),
    "p": BoundedParameter(start=4.0, low=2.0, high=20.0),
    "quantisation": BoundedParameter(start=0.6, low=0.0, high=1.0),
    "split_depth": BoundedParameter(start=512.0, low=64.0, high=8192.0),
    "split_gain": BoundedParameter(start=0.7, low=0.0, high=1.0),
    "depth0": BoundedParameter(start=64.0, low=1.0, high=2048.0),
    "efficiency_256x128": BoundedParameter(start=0.9, low=0.2, high=1.0),
    "efficiency_128x128": BoundedParameter(start=0.8, low=0.1, high=1.0),
    "efficiency_128x64": BoundedParameter(start=0.6, low=0.05, high=1.0),
    "efficiency_64x64": BoundedParameter(start=0.4, low=0.02, high=1.0),
    "memory_efficiency": BoundedParameter(start=0.8, low=0.1, high=1.0),
}
ENGINE = {
    "host": BoundedParameter(start=3e-6, low=1e-7, high=1e-3, unit="s"),
    "odd": BoundedParameter(start=0.05, low=-0.2, high=1.0),
    "row": BoundedParameter(start=2e-9, low=1e-12, high=5e-8, unit="s"),
    "quantise_efficiency": BoundedParameter(start=0.4, low=0.02, high=3.0),
}
ATTENTION = {
    "t0": BoundedParameter(start=1e-5, low=2e-7, high=2e-4, unit="s"),
    "p": BoundedParameter(start=4.0, low=1.0, high=20.0),
    "quantisation": BoundedParameter(start=0.3, low=0.0, high=1.0),
    "efficiency": BoundedParameter(start=0.7, low=0.05, high=1.5),
    "head_dim0": BoundedParameter(start=16.0, low=0.1, high=512.0),
    "seq0": BoundedParameter(start=128.0, low=0.1, high=8192.0),
    "memory_efficiency": BoundedParameter(start=0.8, low=0.05, high=3.0),
}
_HOST_BOUND = 0.05  # share of kernels that the host binds, where a fit starts: the smallest
_STARTS = (0.5, 3.0)  # of p above the least that it can be: parts that add up nearly, that hide behind each other
_EVALUATIONS = 60
_OUTLIER = 0.05
_FITTED_ROWS = 2000  # of a form with some fifteen parameters; more change none of them visibly


def chip_in(chip: RooflineChip, gpu: Gpu, dtype: str) -> RooflineChip:
    """The chip with the tensor cores' rate in a data type of `OPERANDS`.

    Raises:
        InputError: the GPU's description has no peak of it.
    """
    operand = OPERANDS[dtype][0]
    if operand == "bf16":
        return chip
    if operand not in gpu.peaks or "bf16" not in gpu.peaks:
        raise InputError(f"{dtype}: {gpu.name} has peaks for {', '.join(gpu.peaks)}; allowed: types among these")
    rate = gpu.peaks[operand].flops_per_s / gpu.peaks["bf16"].flops_per_s
    return replace(chip, flops_per_cycle=chip.flops_per_cycle * rate)


class Timed(Protocol):
    """Kernels that a form gives the time of; see `Kernels`."""

    @property
    def free(self) -> dict[str, BoundedParameter]: ...
    @property
    def work(self) -> Work: ...
    @property
    def features(self) -> FloatArray: ...
    def take(self, rows: BoolArray | IntArray) -> Self: ...
    def time_s(self, p: Mapping[str, float], chip: RooflineChip, clock_Hz: FloatArray) -> FloatArray: ...
    def device_s(self, p: Mapping[str, float], chip: RooflineChip, clock_Hz: FloatArray) -> FloatArray: ...


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Kernels of one kind at their shapes, U of them, beside what their form needs.

    Attributes:
        kind: gemm or attention.
        shape: of each; every field [U].
        work: the least each does.
        element_B: bytes of an operand's element.
        features: that a residual is over, [U, F].
    """

    kind: Kind
    shape: Shape
    work: Work
    element_B: float
    features: FloatArray

    @property
    def free(self) -> dict[str, BoundedParameter]:
        """Parameters of the form."""
        if self.kind is Kind.ATTENTION:
            return ATTENTION
        return PRODUCT if self.element_B == _OUT_B else PRODUCT | ENGINE

    def take(self, rows: BoolArray | IntArray) -> Kernels:
        """Some of them."""
        return take_rows(self, rows)

    def time_s(self, p: Mapping[str, float], chip: RooflineChip, clock_Hz: FloatArray) -> FloatArray:
        """Of each at clocks [U, K], or [U, 1]."""
        time_s = p["t0"] + self.device_s(p, chip, clock_Hz)
        return time_s if "host" not in p else np.asarray((time_s**_ROUNDED + p["host"] ** _ROUNDED) ** (1 / _ROUNDED))

    def device_s(self, p: Mapping[str, float], chip: RooflineChip, clock_Hz: FloatArray) -> FloatArray:
        """Of that, what lies beyond launch and host."""
        compute_s, memory_s = parts(self.kind, Pass.FORWARD, p, chip, self.shape, self.work)
        slow_s = compute_s[:, None] * chip.clock_Hz / clock_Hz
        busy_s = (slow_s ** p["p"] + memory_s[:, None] ** p["p"]) ** (1 / p["p"])
        if "host" not in p:
            return np.asarray(busy_s)
        s = self.shape.arrays()
        odd = 1 + p["odd"] * (s["m"] % 8 != 0) / (1 + s["m"] / _ODD_ROWS)
        moved_s = s["k"] * (_OUT_B + self.element_B) / (chip.bandwidth_Bps * p["quantise_efficiency"])
        return np.asarray(busy_s * odd[:, None] + (s["m"] * (p["row"] + moved_s))[:, None])


def products(readings: Readings, chip: RooflineChip) -> Kernels:
    """Those of a table of products.

    Engines' kernels in 8 bits or less change with rows that 8 does not divide and with how full the last wave of tiles
    is: their features have both. Those of a calibration's products, in 16 bits, are what it can hold.
    """
    m, n, k = (readings.column(name) for name in ("m", "n", "k"))
    ones = np.ones(len(m))
    element_B = OPERANDS[readings.dtype][1]
    least = Work(flops=2 * m * n * k, vector_ops=0 * m, bytes_B=element_B * (m * k + n * k) + _OUT_B * m * n)
    shape = _whole(Shape(m=m, n=n, k=k), ones)
    features = shape_features(Kind.GEMM, shape)
    if element_B != _OUT_B:
        fullness = [
            _fullness(np.ceil(m / down) * np.ceil(n / across) / chip.multiprocessors) for down, across in _WAVES
        ]
        features = np.c_[features, 2.0 * (m % 8 != 0), np.array(fullness).T]
    return Kernels(kind=Kind.GEMM, shape=shape, work=least, element_B=element_B, features=features)


_WAVES = ((256, 128), (128, 256), (128, 128), (256, 256))  # tiles that waves are counted in
_OCTAVES = 4.0  # that a full wave is from an empty one, among features in octaves; assumed


def _fullness(waves: FloatArray) -> FloatArray:
    """Share of the multiprocessors that work, over all waves of tiles."""
    return np.asarray(_OCTAVES * np.where(waves < 1, np.maximum(waves, 0.05), waves / np.ceil(waves)))


def attention(readings: Readings) -> Kernels:
    """Those of a table of attention; its last feature is the window, as long as the sequence where there is none."""
    names = ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "window_size")
    batch, seq, heads, kv_heads, head_dim, window = (readings.column(name) for name in names)
    shape = _whole(Shape(batch=batch, heads=heads, kv_heads=kv_heads, seq=seq, head_dim=head_dim), np.ones(len(seq)))
    seen = np.where(window > 0, np.minimum(window, seq), seq)
    # of a whole square, half is the causal part that `work` counts; a window leaves its own share of it
    share = (2 * seq * seen - seen**2) / seq**2
    least = work(Kind.ATTENTION, Pass.FORWARD, shape)
    return Kernels(
        kind=Kind.ATTENTION,
        shape=shape,
        work=replace(least, flops=least.flops * share, vector_ops=least.vector_ops * share),
        element_B=_OUT_B,
        features=np.c_[shape_features(Kind.ATTENTION, shape), np.log2(seen)],
    )


def _whole(shape: Shape, ones: FloatArray) -> Shape:
    """Every field of as many rows."""
    return Shape(**{name: values * ones for name, values in shape.arrays().items()})


def fit_form(kernels: Timed, chip: RooflineChip, clock_Hz: FloatArray, time_s: FloatArray) -> dict[str, float]:
    """Parameters of the form, by robust least squares on log time; the better of two starts.

    Args:
        kernels: U of them.
        chip: in their precision.
        clock_Hz: at which each was measured, [U].
        time_s: that each took, [U].
    """
    some = np.random.default_rng(0).permutation(len(time_s))[:_FITTED_ROWS].astype(np.int64)
    taken, at_Hz, logs = kernels.take(some), clock_Hz[some, None], np.log(time_s[some])
    free = kernels.free

    def decode(x: FloatArray) -> dict[str, float]:
        return {name: float(np.exp(v) if f.logarithmic else v) for (name, f), v in zip(free.items(), x, strict=True)}

    def errors(x: FloatArray) -> FloatArray:
        return np.asarray(np.log(taken.time_s(decode(x), chip, at_Hz)[:, 0]) - logs)

    low, high = (np.array([_coordinate(f, getattr(f, edge)) for f in free.values()]) for edge in ("low", "high"))
    starts = {"host": float(np.quantile(time_s, _HOST_BOUND))} if "host" in free else {}
    minima = [
        minimise(
            errors,
            [_coordinate(f, (starts | {"p": p}).get(name, f.start)) for name, f in free.items()],
            low=low,
            high=high,
            loss="soft_l1",
            scale=_OUTLIER,
            evaluations=_EVALUATIONS,
            slack=1e-9,
        )
        for p in (free["p"].low + more for more in _STARTS)
    ]
    return decode(best_of(minima, errors, lambda found: float(np.abs(found).mean())))


def _coordinate(free: BoundedParameter, value: float) -> float:
    return float(np.log(value)) if free.logarithmic else value
