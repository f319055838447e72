"""Time and energy of blocks: the operator calls of a workload, priced by a calibration.

Axes: U distinct micro-batch shapes, K clocks. A block's two lanes are the device (time at each clock, with the fast
limit of the governor applied operator by operator) and the host, which queues the kernels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.errors import CalibrationError
from moemodel.model.device.dvfs import TensorLimit, at_clocks, time_at_clocks
from moemodel.model.device.power import PowerModel
from moemodel.model.device.roofline import RooflineChip, operator_time
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import FALLBACK, SHAPE_FIELDS, Kind, Pass, Shape
from moemodel.model.records.calibration import Calibration, OperatorFit

# Backward work that only the optimizer waits for.
_OF_WEIGHTS = frozenset(
    {
        (Kind.GEMM, Pass.BACKWARD_WEIGHT),
        (Kind.GROUPED_GEMM, Pass.BACKWARD_WEIGHT),
        (Kind.BIAS, Pass.BACKWARD),
        (Kind.EMBEDDING, Pass.BACKWARD),
        (Kind.ACCUMULATE, Pass.BACKWARD),
    }
)

_ROWS = 1024  # of shapes that are priced together: at 8 clocks 64 KiB an array, several of which a core's cache holds


@dataclass(kw_only=True)
class PhaseCost:
    """Device time of a phase of a block, and what goes with it.

    Attributes:
        time_s_UK: seconds.
        energy_J_UK: dynamic energy.
        cycles_UK: time x clock of each operator, for the mean clock.
        spread_s: standard deviation of time by operator and pass, [U]; correlated within, independent between.
        extrapolated_s_U: time spent in shapes outside what was measured.
        calls_U: operator calls, which the host queues one by one.
        weights_s_U: of the time at the highest clock, gradients of weights, which no other stage waits for.
    """

    time_s_UK: FloatArray
    energy_J_UK: FloatArray
    cycles_UK: FloatArray
    spread_s: dict[str, FloatArray] = field(default_factory=dict)
    extrapolated_s_U: FloatArray
    calls_U: FloatArray
    weights_s_U: FloatArray

    @classmethod
    def empty(cls, shapes: int, clocks: int) -> PhaseCost:
        """Nothing to do."""
        time, energy, cycles = (np.zeros((shapes, clocks)) for _ in range(3))
        outside, calls, weights = (np.zeros(shapes) for _ in range(3))
        return cls(
            time_s_UK=time,
            energy_J_UK=energy,
            cycles_UK=cycles,
            extrapolated_s_U=outside,
            calls_U=calls,
            weights_s_U=weights,
        )

    def take(self, rows: NDArray[np.int64]) -> PhaseCost:
        """The lane of these shapes, repeated as asked."""
        return PhaseCost(
            time_s_UK=self.time_s_UK[rows],
            energy_J_UK=self.energy_J_UK[rows],
            cycles_UK=self.cycles_UK[rows],
            spread_s={key: spread[rows] for key, spread in self.spread_s.items()},
            extrapolated_s_U=self.extrapolated_s_U[rows],
            calls_U=self.calls_U[rows],
            weights_s_U=self.weights_s_U[rows],
        )


class OperatorCostModel:
    """Prices calls with one calibration at fixed clocks."""

    def __init__(self, calibration: Calibration, chip: RooflineChip, power: PowerModel, clock_Hz_K: FloatArray) -> None:
        self.chip = chip
        self.power = power
        self.clock_Hz_K = clock_Hz_K
        self.fast = tensor_limit(calibration)
        self._name = calibration.name
        self._fits = {(fit.kind, fit.direction): fit for fit in calibration.operators}

    def fit(self, kind: Kind, direction: Pass) -> OperatorFit:
        """The fit of an operator, or of the one that stands in for it.

        Raises:
            CalibrationError: there is neither.
        """
        for candidate in (kind, FALLBACK.get(kind)):
            if candidate is not None and (candidate, direction) in self._fits:
                return self._fits[candidate, direction]
        raise CalibrationError(
            f"calibration {self._name}: no fit for {kind}/{direction}; profile that operator and calibrate again"
        )

    def phase_costs(self, calls: Iterable[Call], shapes: int) -> dict[Phase, PhaseCost]:
        """Sum of the calls of one block by phase, at so many shapes."""
        return self.blocks([calls], shapes)[0]

    def blocks(self, blocks: Sequence[Iterable[Call]], shapes: int) -> list[dict[Phase, PhaseCost]]:
        """Sums of the calls of each of some blocks by phase; calls of one operator are priced together."""
        phase_costs: list[dict[Phase, PhaseCost]] = [{} for _ in blocks]
        operators: dict[tuple[Kind, Pass], list[tuple[PhaseCost, Call]]] = {}
        for own, calls in zip(phase_costs, blocks, strict=True):
            for call in calls:
                if call.phase not in own:
                    own[call.phase] = PhaseCost.empty(shapes, len(self.clock_Hz_K))
                operators.setdefault((call.kind, call.direction), []).append((own[call.phase], call))
        together = max(1, _ROWS // shapes)
        for called in operators.values():
            for first in range(0, len(called), together):
                self._add(called[first : first + together], shapes)
        return phase_costs

    def _add(self, called: Sequence[tuple[PhaseCost, Call]], shapes: int) -> None:
        """Price calls of one operator, and add each to its lane."""
        kind, direction = called[0][1].kind, called[0][1].direction
        fit = self.fit(kind, direction)
        shape = _stacked([call.shape for _, call in called], shapes)
        price = operator_time(fit, self.chip, shape, self.clock_Hz_K, calls=len(called))
        energy = self.power.dynamic_J(kind, direction, price.work, self.clock_Hz_K, price.busy_s_UK)
        time, energy, clock = self._within_fast_limit(np.atleast_1d(price.work.flops), price.time_s_UK, energy)
        highest_s = time[:, -1]
        key, of_weights = f"{fit.kind}/{fit.direction}", (kind, direction) in _OF_WEIGHTS
        runs = _Runs.of(called, shapes)
        sums = zip(
            runs.phase_costs,
            runs.sum(time),
            runs.sum(energy, busiest=False),
            runs.sum(time * clock),
            runs.sum(highest_s),
            runs.sum(highest_s * price.log_error_U),
            runs.sum(np.where(price.outside_U, highest_s, 0.0)),
            runs.sum(np.ones(len(called))),
            strict=True,
        )
        for lane, time_s, energy_J, cycles, highest, spread_s, extrapolated_s, count in sums:
            lane.time_s_UK += time_s
            lane.energy_J_UK += energy_J
            lane.cycles_UK += cycles
            lane.spread_s[key] = lane.spread_s.get(key, 0.0) + spread_s
            lane.extrapolated_s_U += extrapolated_s
            lane.calls_U += count
            if of_weights:
                lane.weights_s_U += highest

    def _within_fast_limit(
        self, flops_U: FloatArray, time: FloatArray, energy: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Time, energy and true clock of an operator at each clock that is set. [U, K] each, or [1, K]."""
        clocks = self.clock_Hz_K
        if not flops_U.any() or not np.isfinite(self.fast.clock_Hz):
            return time, energy, clocks[None, :]
        could = time * clocks * (self.chip.multiprocessors * self.chip.flops_per_cycle)
        true_UK = self.fast.true_clock_Hz(clocks, np.minimum(1.0, flops_U[:, None] / could))
        true_UK = np.maximum(true_UK, clocks[0])
        return time_at_clocks(time, clocks, true_UK), at_clocks(energy, clocks, true_UK), true_UK


def _stacked(calls: Sequence[Shape], shapes: int) -> Shape:
    """Shapes of several calls, each of so many, one behind another; that of a single call as it is."""
    if len(calls) == 1:
        return calls[0]
    columns = {name: np.empty((len(calls), shapes)) for name in SHAPE_FIELDS}
    for index, shape in enumerate(calls):
        for name, column in columns.items():
            column[index] = getattr(shape, name)
    return Shape(**{name: column.reshape(-1) for name, column in columns.items()})


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """Calls of one operator by the lane that they are of; those of a lane stand side by side.

    Attributes:
        lanes: the lanes.
        first: index of the first call of each.
        count, mean_count: of each call, [calls, U]; the second of the mean rank's work.
    """

    phase_costs: list[PhaseCost]
    first: list[int]
    count: FloatArray
    mean_count: FloatArray

    @classmethod
    def of(cls, called: Sequence[tuple[PhaseCost, Call]], shapes: int) -> _Runs:
        """Of some calls at so many shapes."""
        first = [0, *(i for i in range(1, len(called)) if called[i][0] is not called[i - 1][0])]
        count, share = np.empty((len(called), shapes)), np.empty((len(called), shapes))
        for index, (_, call) in enumerate(called):
            count[index], share[index] = call.count, call.load_balance
        return cls(phase_costs=[called[i][0] for i in first], first=first, count=count, mean_count=count * share)

    def sum(self, values: FloatArray, *, busiest: bool = True) -> FloatArray:
        """All calls of each lane, from one of each: `values` of all behind one another, [calls U] or [calls U, K].

        `busiest`: of the busiest rank; else of the mean one.
        """
        count = self.count if busiest else self.mean_count
        one = values.reshape(len(count), -1, *values.shape[1:])
        every = (count[:, :, None] if values.ndim > 1 else count) * one
        return every if len(self.first) == len(count) else np.asarray(np.add.reduceat(every, self.first, axis=0))


def tensor_limit(calibration: Calibration) -> TensorLimit:
    """The fast limit of a calibration; none where it has none."""
    found = calibration.governor.parameters
    if "tensor_clock" not in found:
        return TensorLimit(clock_Hz=np.inf, sharpness=1.0)
    return TensorLimit(clock_Hz=found["tensor_clock"].value, sharpness=found["tensor_sharpness"].value)
