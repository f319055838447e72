"""Fits a few factors of a calibration to whole training steps, and tells how well they do on steps left out.

Robust least squares (soft L1) of log predicted over measured, in units of the error that the calibration states, with
the factors' own errors as a prior. Energy needs no fit of its own: it is time times power.

Axes: R runs, Q quantities, K factors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from moemodel.calibration.least_squares import NearbySlopes, minimise, standard_errors
from moemodel.calibration.update.scale_factors import UNKNOWN_ERROR, ScaleFactor
from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.measured import QUANTITIES, known, predict_as_run

_MEMORY_ERROR = 0.02  # log; assumed: of peak memory, where the calibration doesn't state it
_FARTHEST = math.log(4.0)  # assumed: that a factor may move, either way; beyond it, something else is wrong
_STEP, _NEAR = 1e-3, 0.25  # of a logarithm: in differences, and within which derivatives are used again
_AT_EDGE, _CLOSE = 1e-6, 5e-3  # of a logarithm; as good as converged
_ROUNDS = 8  # at most
_MOVES_NOTHING = 1e-6  # slope below which no measurement depends on a factor


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """A plan of a report that was measured.

    Attributes:
        name: of the plan, and of its report where there are several.
        kind: of the plan: the parallelism that it uses.
        plan: as it ran.
        row: means over its repeats.
    """

    name: str
    kind: str
    plan: Plan
    row: Mapping[str, float | None]

    def measured(self, quantity: str) -> float:
        """NaN where it wasn't."""
        value = self.row.get(QUANTITIES[quantity])
        return float(value) if value is not None and known(value) and value > 0 else math.nan


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Mean absolute errors of a quantity over plans, as fractions: as it was, each left out of the fit, all in it."""

    before: float
    left_out: float
    fitted: float
    plans: int


@dataclass(frozen=True, kw_only=True)
class FittedFactor:
    """What became of a factor: its value, and the standard deviation of its logarithm now and before."""

    name: str
    meaning: str
    factor: float
    error: float
    error_before: float


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is fitted together: `helps` where it beats the calibration as it was on plans that were left out."""

    name: str
    moved: tuple[FittedFactor, ...]
    errors: dict[str, HeldOut]

    @property
    def helps(self) -> bool:
        """Whether plans that were left out are predicted better, in the mean over quantities."""
        return fmean(e.left_out for e in self.errors.values()) < fmean(e.before for e in self.errors.values())


class Fitter:
    """Fits the logarithms of some factors to the runs.

    Args:
        calibration: that they change.
        runs: to fit to.
        knobs: the factors.
        fitted: quantities to fit.
    """

    def __init__(
        self, calibration: Calibration, runs: Sequence[MeasuredRun], knobs: Sequence[ScaleFactor], fitted: Sequence[str]
    ):
        self.calibration, self.runs, self.knobs, self.fitted = calibration, runs, knobs, fitted
        self._known: dict[bytes, list[dict[str, float]]] = {}
        self._slope = NearbySlopes(function=self._missed, step=-_STEP, near=_NEAR)  # [R, Q, K]
        self._high = np.array([min(_FARTHEST, math.log(max(knob.highest, 1.0))) for knob in knobs])
        self._spread = np.array([knob.spread for knob in knobs])
        self._goal_RQ = np.log([[run.measured(name) for name in fitted] for run in runs])
        self._error_RQ = np.array([[_error(calibration, name)] * len(runs) for name in fitted]).T

    @property
    def informed(self) -> bool:
        """Something was measured that can be fitted."""
        return bool(np.isfinite(self._missed(np.zeros(len(self.knobs)))).any())

    def part(self, name: str, shown: Sequence[str], groups: IntArray) -> Part:
        """The fit to all runs, and the errors of `shown` quantities with and without it, and on groups left out."""
        start, everything = np.zeros(len(self.knobs)), np.ones(len(self.runs), dtype=np.bool_)
        best = self.fit(everything)
        by_group = {int(group): self.fit(groups != group) for group in np.unique(groups)}
        left_out = [by_group[int(group)] for group in groups]
        errors = {}
        for quantity in shown:
            before, after = (self._errors(quantity, [x] * len(groups)) for x in (start, best))
            if before:
                out = self._errors(quantity, left_out)
                errors[quantity] = HeldOut(
                    before=fmean(before), left_out=fmean(out), fitted=fmean(after), plans=len(before)
                )
        return Part(name=name, moved=self._moved(best), errors=errors)

    def fit(self, rows_R: BoolArray) -> FloatArray:
        """Logarithms of the factors that some runs, and what was known before, make most likely."""
        x = np.zeros(len(self.knobs))
        for _ in range(_ROUNDS):
            there = np.isfinite(self._missed(x)) & rows_R[:, None]
            best = self._linear(self._missed(x)[there], self._slope(x)[there], x)
            moved, x = np.abs(best - x).max(), best
            if moved < _CLOSE:
                break
        return x

    def _linear(self, missed: FloatArray, slopes: FloatArray, at: FloatArray) -> FloatArray:
        """The best factors of a problem that is linear around `at`: steps of it cost no prediction."""
        prior = np.diag(1 / self._spread)

        def off(x: FloatArray) -> FloatArray:
            return np.append(missed + slopes @ (x - at), prior @ x)

        def slope(_: FloatArray) -> FloatArray:
            return np.vstack([slopes, prior])

        return minimise(off, at, low=-_FARTHEST, high=self._high, loss="soft_l1", slopes=slope, slack=_AT_EDGE)

    def _predicted(self, x: FloatArray) -> list[dict[str, float]]:
        """Every run with these factors."""
        if x.tobytes() not in self._known:
            changed = self.calibration
            for knob, log in zip(self.knobs, x, strict=True):
                changed = knob.change(changed, math.exp(log))
            self._known[x.tobytes()] = [predict_as_run(run.plan, changed, run.row).values for run in self.runs]
        return self._known[x.tobytes()]

    def _missed(self, x: FloatArray) -> FloatArray:
        """Log of predicted over measured in units of its stated error; NaN where one of the two is missing. [R, Q]"""
        found = [[run.get(name, math.nan) for name in self.fitted] for run in self._predicted(x)]
        return np.asarray((np.log(found) - self._goal_RQ) / self._error_RQ)

    def _errors(self, quantity: str, x_R: Sequence[FloatArray]) -> list[float]:
        """Absolute errors of a quantity over the runs that measured it, each with its own factors."""
        found = []
        for index, (run, x) in enumerate(zip(self.runs, x_R, strict=True)):
            predicted, measured = self._predicted(x)[index].get(quantity, math.nan), run.measured(quantity)
            if math.isfinite(predicted) and math.isfinite(measured):
                found.append(abs(predicted / measured - 1))
        return found

    def _moved(self, x: FloatArray) -> tuple[FittedFactor, ...]:
        """The factors that some measurement depends on, with what the fit leaves open of them (Gauss-Newton)."""
        slopes = self._slope(x)[np.isfinite(self._missed(x))]
        error = standard_errors(slopes, before_K=self._spread)
        return tuple(
            FittedFactor(
                name=knob.name,
                meaning=knob.meaning,
                factor=math.exp(x[k]),
                error=float(error[k]),
                error_before=knob.spread,
            )
            for k, knob in enumerate(self.knobs)
            if np.abs(slopes[:, k]).max(initial=0.0) > _MOVES_NOTHING
        )


def _error(calibration: Calibration, quantity: str) -> float:
    """Log error that the calibration states for a quantity, whatever the operators' own."""
    if quantity == "power":
        return calibration.power.log_error or UNKNOWN_ERROR
    if quantity == "memory":
        stated = calibration.memory.parameters.get("log_error")
        return _MEMORY_ERROR if stated is None or not stated.value else stated.value
    return calibration.composition_error.value or UNKNOWN_ERROR
