"""Power of kernels that were repeated for a second or less, as it was read.

    P_read = P_idle + w (P - P_idle),   w of loops of 0.3 s and of 1 s
    P = min(held, P_model(work / t, f))   at the clock f that is left without the power limit
    P_model: `device.power`, with energies of a FLOP, of a byte, of busy SMs, and what is drawn beside, of the table

What was read is not the power of one kernel. The source repeats a kernel for 0.3 s, or for 1 s where it takes 0.1 ms
and more (collector/helper.py, `benchmark_with_power`), and averages samples of NVML's power from the loop's first
moment on. NVML gives the mean of the last second (NVML API reference, nvmlDeviceGetPowerUsage, Ampere and newer). So
half of a reading and more is what ran before: the same kernel's warm-up, or nothing. `repeats_error` says how much
readings of the same work differ, which no model can tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moemodel.calibration.fit.sparse_residual import SparseResidual, fit_sparse_residual
from moemodel.calibration.least_squares import minimise
from moemodel.calibration.published.kernels.clocks import Conditions
from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray, take_rows
from moemodel.model.operators.work import Work

SHORTEST_S = 50e-6  # below it the host leaves gaps between kernels
_LONG_LOOP_S = 1e-4  # from which a kernel is repeated for a second
_SHARPNESS = 20.0  # of the limit: mean power stays a little below it
_OUTLIER = 0.04
_EVALUATIONS = 60
_FITTED_ROWS = 2000
_POINTS = 350
_SAME = 0.02  # of FLOPs, bytes and time: readings of the same work, within what times repeat by

# Logarithms of what is fitted: factors on what the calibration has, W, and shares. Bounds are assumed.
_START = {"flop": 1.0, "byte": 1.0, "active": 1.0, "base": 1.0, "held": 0.985, "short": 0.9, "long": 0.95}
_LOW = {"flop": 0.1, "byte": 0.05, "active": 0.05, "base": 0.5, "held": 0.93, "short": 0.1, "long": 0.5}
_HIGH = {"flop": 5.0, "byte": 10.0, "active": 5.0, "base": 3.0, "held": 1.0, "short": 1.0, "long": 1.0}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Kernels whose power is wanted, U of them.

    Attributes:
        work, time_s: of each; `busy_s` of that, in which SMs are busy.
        features: that a residual is over, [U, F].
    """

    work: Work
    time_s: FloatArray
    busy_s: FloatArray
    features: FloatArray

    def take(self, rows: BoolArray | IntArray) -> Drawn:
        """Some of them."""
        return take_rows(self, rows)


@dataclass(frozen=True, kw_only=True)
class FittedPower:
    """Power of a table's kernels.

    Attributes:
        conditions: without the limit.
        limit_W: of the table.
        parameters: `_START`'s names; `residual` over the kernels' features.
    """

    conditions: Conditions
    limit_W: float
    parameters: dict[str, float]
    residual: SparseResidual | None = None

    @property
    def flop_J(self) -> float:
        """Energy of a FLOP on tensor cores at the reference clock, in the table's type and of its operands."""
        return self.parameters["flop"] * self.conditions.factor * self.conditions.power.flop_J

    def read_W(self, kernels: Drawn) -> FloatArray:
        """What is read of kernels, W [U]."""
        formed_W = self._formed_W(kernels, self._clock_Hz(kernels))
        if self.residual is None:
            return formed_W
        return np.asarray(formed_W * np.exp(self.residual.log_ratio(kernels.features)))

    def _clock_Hz(self, kernels: Drawn) -> FloatArray:
        clocks = self.conditions.clock_Hz_K
        return self.conditions.clock_Hz(kernels.work, np.repeat(kernels.time_s[:, None], len(clocks), axis=1))

    def _formed_W(self, kernels: Drawn, clock_Hz: FloatArray) -> FloatArray:
        p, power = self.parameters, self.conditions.power
        own = replace(
            power,
            base_W=power.base_W * p["base"],
            flop_J=power.flop_J * p["flop"],
            cache_J_per_B=power.cache_J_per_B * p["byte"],
            dram_J_per_B=power.dram_J_per_B * p["byte"],
            active_W=power.active_W * p["active"],
        )
        conditions = replace(self.conditions, power=own)
        wanted_W = conditions.power_W(kernels.work, kernels.time_s, kernels.busy_s, clock_Hz)
        held_W = p["held"] * self.limit_W
        drawn_W = (wanted_W**-_SHARPNESS + held_W**-_SHARPNESS) ** (-1 / _SHARPNESS)
        idle_W = own.steady(np.zeros(1))[0]
        seen = np.where(kernels.time_s < _LONG_LOOP_S, p["short"], p["long"])
        return np.asarray(idle_W + seen * (drawn_W - idle_W))


def fit_power(
    kernels: Drawn, power_W: FloatArray, inner: BoolArray, conditions: Conditions, limit_W: float
) -> FittedPower:
    """Fit energies of a table's kernels to what was read, by robust least squares on log power, and a residual.

    Args:
        kernels: that take as long as was measured.
        power_W: that was read of each.
        inner: rows whose shapes lengths of the residual are judged by.
        conditions: that they ran under.
        limit_W: power limit.
    """
    free = replace(conditions, limit_W=None)
    some = np.random.default_rng(0).permutation(len(power_W))[:_FITTED_ROWS].astype(np.int64)
    first = FittedPower(conditions=free, limit_W=limit_W, parameters=_START)
    taken, logs = kernels.take(some), np.log(power_W[some])
    clock_Hz = first._clock_Hz(taken)

    def made(x: FloatArray) -> FittedPower:
        return replace(first, parameters=dict(zip(_START, np.exp(x).tolist(), strict=True)))

    def errors(x: FloatArray) -> FloatArray:
        return np.asarray(np.log(made(x)._formed_W(taken, clock_Hz)) - logs)

    start, low, high = (np.log(list(values.values())) for values in (_START, _LOW, _HIGH))
    x = minimise(
        errors, start, low=low, high=high, loss="soft_l1", scale=_OUTLIER, evaluations=_EVALUATIONS, slack=1e-9
    )
    formed = made(x)
    missed = np.log(power_W / formed.read_W(kernels))
    return replace(formed, residual=fit_sparse_residual(kernels.features, missed, inner, _POINTS))


def repeats_error(kernels: Drawn, power_W: FloatArray) -> tuple[float, int]:
    """How far readings of the same work are from their median, mean of |power / median - 1|, and of how many.

    The same: kernels of one table whose FLOPs, bytes and time differ by less than 2 %. Any model of power by work and
    time has one power for them, and at least this error.
    """
    of = np.c_[kernels.work.flops, kernels.work.bytes_B, kernels.time_s]
    place = np.floor(np.log(np.maximum(of, 1e-12)) / _SAME).astype(np.int64)
    _, group, size = np.unique(place, axis=0, return_inverse=True, return_counts=True)
    group = group.ravel()
    off = [np.abs(power_W[group == one] / np.median(power_W[group == one]) - 1) for one in np.flatnonzero(size > 1)]
    return (float(np.mean(np.concatenate(off))), int(sum(map(len, off)))) if off else (float("nan"), 0)
