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
from moemodel.model.device.roofline import Chip, operator_time
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import SHAPE_FIELDS, Kind, Pass, Shape
from moemodel.model.records.calibration import Calibration, OperatorFit

# Operators that stand in for one another where a calibration lacks the first.
_STAND_INS: dict[Kind, Kind] = {
    Kind.ATTENTION_FULL: Kind.ATTENTION,
    Kind.RMS_NORM: Kind.LAYER_NORM,
    Kind.LAYER_NORM: Kind.RMS_NORM,
    Kind.RELU: Kind.GELU,
    Kind.SWIGLU: Kind.GELU,
    Kind.SWIGLU_PACKED: Kind.SWIGLU,
}

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

_ROWS = 4096  # of shapes that are priced together: at 8 clocks 256 KiB an array, which a core's cache holds


@dataclass(kw_only=True)
class Lane:
    """Device time of a phase of a block, and what goes with it.

    Attributes:
        time_s_UK: seconds.
        energy_J_UK: dynamic energy.
        cycles_UK: time x clock of each operator, for the mean clock.
        spread_s: standard deviation of time by operator and pass, [U]; correlated within, independent between.
        outside_s_U: time spent in shapes outside what was measured.
        calls_U: operator calls, which the host queues one by one.
        weights_s_U: of the time at the highest clock, gradients of weights, which no other stage waits for.
    """

    time_s_UK: FloatArray
    energy_J_UK: FloatArray
    cycles_UK: FloatArray
    spread_s: dict[str, FloatArray] = field(default_factory=dict)
    outside_s_U: FloatArray
    calls_U: FloatArray
    weights_s_U: FloatArray

    @classmethod
    def empty(cls, shapes: int, clocks: int) -> Lane:
        """Nothing to do."""
        time, energy, cycles = (np.zeros((shapes, clocks)) for _ in range(3))
        outside, calls, weights = (np.zeros(shapes) for _ in range(3))
        return cls(
            time_s_UK=time,
            energy_J_UK=energy,
            cycles_UK=cycles,
            outside_s_U=outside,
            calls_U=calls,
            weights_s_U=weights,
        )

    def take(self, rows: NDArray[np.int64]) -> Lane:
        """The lane of these shapes, repeated as asked."""
        return Lane(
            time_s_UK=self.time_s_UK[rows],
            energy_J_UK=self.energy_J_UK[rows],
            cycles_UK=self.cycles_UK[rows],
            spread_s={key: spread[rows] for key, spread in self.spread_s.items()},
            outside_s_U=self.outside_s_U[rows],
            calls_U=self.calls_U[rows],
            weights_s_U=self.weights_s_U[rows],
        )


class Pricer:
    """Prices calls with one calibration at fixed clocks."""

    def __init__(self, calibration: Calibration, chip: Chip, power: PowerModel, clock_Hz_K: FloatArray) -> None:
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
        for candidate in (kind, _STAND_INS.get(kind)):
            if candidate is not None and (candidate, direction) in self._fits:
                return self._fits[candidate, direction]
        raise CalibrationError(
            f"calibration {self._name}: no fit for {kind}/{direction}; profile that operator and calibrate again"
        )

    def lanes(self, calls: Iterable[Call], shapes: int) -> dict[Phase, Lane]:
        """Sum of the calls of one block by phase, at so many shapes."""
        return self.blocks([calls], shapes)[0]

    def blocks(self, blocks: Sequence[Iterable[Call]], shapes: int) -> list[dict[Phase, Lane]]:
        """Sums of the calls of each of some blocks by phase; calls of one operator are priced together."""
        lanes: list[dict[Phase, Lane]] = [{} for _ in blocks]
        operators: dict[tuple[Kind, Pass], list[tuple[Lane, Call]]] = {}
        for own, calls in zip(lanes, blocks, strict=True):
            for call in calls:
                if call.phase not in own:
                    own[call.phase] = Lane.empty(shapes, len(self.clock_Hz_K))
                operators.setdefault((call.kind, call.direction), []).append((own[call.phase], call))
        together = max(1, _ROWS // shapes)
        for called in operators.values():
            for first in range(0, len(called), together):
                self._add(called[first : first + together], shapes)
        return lanes

    def _add(self, called: Sequence[tuple[Lane, Call]], shapes: int) -> None:
        """Price calls of one operator, and add each to its lane."""
        kind, direction = called[0][1].kind, called[0][1].direction
        fit = self.fit(kind, direction)
        shape = _stacked([call.shape for _, call in called], shapes)
        price = operator_time(fit, self.chip, shape, self.clock_Hz_K, calls=len(called))
        energy = self.power.dynamic_J(kind, direction, price.work, self.clock_Hz_K, price.busy_s_UK)
        time, energy, clock = self._within_fast_limit(np.atleast_1d(price.work.flops), price.time_s_UK, energy)
        cycles = time * clock
        spread = time[:, -1] * price.log_error_U
        outside = np.where(price.outside_U, time[:, -1], 0.0)
        key = f"{fit.kind}/{fit.direction}"
        of_weights = (kind, direction) in _OF_WEIGHTS
        for (lane, call), rows in zip(called, _rows_of(len(called), len(time)), strict=True):
            count = call.count[:, None]
            lane.time_s_UK += count * time[rows]
            lane.energy_J_UK += count * np.atleast_1d(call.mean_share)[:, None] * energy[rows]
            lane.cycles_UK += count * cycles[rows]
            lane.spread_s[key] = lane.spread_s.get(key, 0.0) + call.count * spread[rows]
            lane.outside_s_U += call.count * outside[rows]
            lane.calls_U += call.count
            if of_weights:
                lane.weights_s_U += call.count * time[rows, -1]

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


def _rows_of(calls: int, rows: int) -> list[slice]:
    """Where the rows of each of some calls stand; those of a single call may be one for all shapes."""
    each = rows // calls
    return [slice(index * each, (index + 1) * each) for index in range(calls)]


def tensor_limit(calibration: Calibration) -> TensorLimit:
    """The fast limit of a calibration; none where it has none."""
    found = calibration.governor.parameters
    if "tensor_clock" not in found:
        return TensorLimit(clock_Hz=np.inf, sharpness=1.0)
    return TensorLimit(clock_Hz=found["tensor_clock"].value, sharpness=found["tensor_sharpness"].value)
