"""Time and energy of blocks: the operator calls of a training step, priced by a calibration.

Axes: U distinct micro-batch shapes, K clocks. Times are the device's at each clock, with the fast limit of the governor
applied operator by operator; what the host needs to queue the kernels is in `host_overhead`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.errors import CalibrationError
from moemodel.model.device.dvfs import TensorLimit, at_clocks, time_at_clocks
from moemodel.model.device.power import PowerModel
from moemodel.model.device.roofline import (
    ATTENTIONS,
    OperatorTime,
    RooflineChip,
    chip_of_calibration,
    form_of,
    operator_times,
    roofline_terms,
)
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import FALLBACK, SHAPE_FIELDS, Kind, Pass, Shape, Work, weights_share
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

_ROWS = 4096  # of shapes that are priced together: at 8 clocks 256 KiB an array, some of which a core's cache holds


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
        weights_s_U: of the time at the highest clock, gradients of weights, which no other stage waits for;
            `weights_calls_U` of the calls.
        gating_s_U: of the time at the highest clock, routers, and rows on their way to experts and back.
    """

    time_s_UK: FloatArray
    energy_J_UK: FloatArray
    cycles_UK: FloatArray
    spread_s: dict[str, FloatArray] = field(default_factory=dict)
    extrapolated_s_U: FloatArray
    calls_U: FloatArray
    weights_s_U: FloatArray
    weights_calls_U: FloatArray
    gating_s_U: FloatArray

    @property
    def gating_share(self) -> FloatArray:
        """Of its time, by that at the highest clock, [U, 1]."""
        return shares(self.gating_s_U, self.time_s_UK[:, -1])[:, None]

    @classmethod
    def empty(cls, shapes: int, clocks: int) -> PhaseCost:
        """Nothing to do."""
        time, energy, cycles = (np.zeros((shapes, clocks), order="F") for _ in range(3))
        outside, calls, weights_s, weights_calls, gating_s = (np.zeros(shapes) for _ in range(5))
        return cls(
            time_s_UK=time,
            energy_J_UK=energy,
            cycles_UK=cycles,
            extrapolated_s_U=outside,
            calls_U=calls,
            weights_s_U=weights_s,
            weights_calls_U=weights_calls,
            gating_s_U=gating_s,
        )

    def without_spread(self) -> PhaseCost:
        """With the same times, of which it is not known how far they may be off."""
        return replace(self, spread_s={})

    def at_highest_clock(self) -> PhaseCost:
        """At the highest clock, [U, 1], without its spread."""
        return replace(
            self,
            time_s_UK=self.time_s_UK[:, -1:],
            energy_J_UK=self.energy_J_UK[:, -1:],
            cycles_UK=self.cycles_UK[:, -1:],
            spread_s={},
        )

    def least(self) -> PhaseCost:
        """Time, energy and cycles at the clock that has least of each, [U, 1], without its spread."""
        return replace(
            self,
            spread_s={},
            time_s_UK=self.time_s_UK.min(axis=1, keepdims=True),
            energy_J_UK=self.energy_J_UK.min(axis=1, keepdims=True),
            cycles_UK=self.cycles_UK.min(axis=1, keepdims=True),
        )


def shares(parts: FloatArray, wholes: FloatArray) -> FloatArray:
    """Parts of wholes; 0 of one that is nothing, as backward passes are where nothing is trained."""
    return np.divide(parts, wholes, out=np.zeros(np.broadcast(parts, wholes).shape, order="F"), where=wholes > 0)


_Booked = tuple[PhaseCost, Call]  # a call, and the cost of a phase, its lane, that it is added to


class OperatorCostModel:
    """Prices calls with one calibration at fixed clocks.

    Args:
        calibration: of a GPU, as a precision has it.
        chip: that its fits refer to.
        power: of the GPU.
        clock_Hz_K: clocks.
        uncast: the calibration as 16-bit products have it, where `calibration` is of operands of fewer bits; None:
            there are no others.
    """

    def __init__(
        self,
        calibration: Calibration,
        chip: RooflineChip,
        power: PowerModel,
        clock_Hz_K: FloatArray,
        *,
        uncast: Calibration | None = None,
    ) -> None:
        self.chip = chip
        self._uncast_chip = chip if uncast is None else chip_of_calibration(uncast)
        # tensor cores take as much energy a second whatever they multiply, and as long a share of it works
        self._of_cast_flops = chip.flops_per_cycle / self._uncast_chip.flops_per_cycle
        self.power = power
        self.clock_Hz_K = clock_Hz_K
        self.fast = tensor_limit(calibration)
        self._name = calibration.name
        self._fits = {(fit.kind, fit.direction): fit for fit in calibration.operators}
        others = () if uncast is None else uncast.operators
        self._uncast_fits = {(fit.kind, fit.direction): fit for fit in others}

    def fit(self, kind: Kind, direction: Pass, *, uncast: bool = False) -> OperatorFit:
        """The fit of an operator, or of the one that stands in for it.

        Args:
            kind, direction: of the operator.
            uncast: it multiplies 16-bit operands whatever the others do.

        Raises:
            CalibrationError: there is neither.
        """
        fits = self._uncast_fits if uncast and self._uncast_fits else self._fits
        for candidate in (kind, FALLBACK.get(kind)):
            if candidate is not None and (candidate, direction) in fits:
                return fits[candidate, direction]
        raise CalibrationError(
            f"calibration {self._name}: no fit for {kind}/{direction}; profile that operator and calibrate again"
        )

    def phase_costs(self, calls: Iterable[Call], shapes: int) -> dict[Phase, PhaseCost]:
        """Sum of the calls of one block by phase, at so many shapes."""
        return self.blocks([calls], shapes)[0]

    def blocks(self, blocks: Sequence[Iterable[Call]], shapes: int) -> list[dict[Phase, PhaseCost]]:
        """Sums of the calls of each of some blocks by phase; calls of one operator are priced together."""
        phase_costs: list[dict[Phase, PhaseCost]] = [{} for _ in blocks]
        operators: dict[tuple[Kind, Pass, bool], list[_Booked]] = {}
        for own, calls in zip(phase_costs, blocks, strict=True):
            for call in calls:
                if call.phase not in own:
                    own[call.phase] = PhaseCost.empty(shapes, len(self.clock_Hz_K))
                operators.setdefault((call.kind, call.direction, call.uncast), []).append((own[call.phase], call))
        for together in _batches(operators.values(), max(1, _ROWS // shapes)):
            self._add(together, shapes)
        return phase_costs

    def _add(self, operators: Sequence[Sequence[_Booked]], shapes: int) -> None:
        """Price calls of some operators, and add each to its lane."""
        fits = [self.fit(*_operator(called), uncast=_is_uncast(called)) for called in operators]
        terms = [
            roofline_terms(
                fit,
                self._uncast_chip if _is_uncast(called) else self.chip,
                _stacked([call.shape for _, call in called], shapes),
                calls=len(called),
            )
            for fit, called in zip(fits, operators, strict=True)
        ]
        price = self._with_cycles(operator_times(terms, self.chip, self.clock_Hz_K), operators, shapes)
        price = self._in_cast_flops(price, operators, shapes)
        least, busy_s = _of_mean_rank(price, operators, shapes)
        energy = self.power.unscaled_J(least, self.clock_Hz_K, busy_s)
        time, energy, clock = self._within_fast_limit(np.atleast_1d(price.work.flops), price.time_s_UK, energy)
        highest_s = time[:, -1]
        runs = _Runs.of(operators, shapes, [self.power.factor(*_operator(called)) for called in operators])
        sums = zip(
            runs.phase_costs,
            runs.sum(time),
            runs.sum(energy, runs.energy_count),
            runs.sum(time * clock),
            runs.sum(np.where(price.outside_U, highest_s, 0.0)),
            runs.sum(np.ones(len(runs.count))),
            runs.sum(highest_s, runs.weights_count),
            runs.sum(np.ones(len(runs.count)), runs.weights_count),
            runs.sum(highest_s, runs.gating_count),
            strict=True,
        )
        for lane, time_s, energy_J, cycles, extrapolated_s, count, weights_s, weights_count, gating_s in sums:
            lane.time_s_UK += time_s
            lane.energy_J_UK += energy_J
            lane.cycles_UK += cycles
            lane.extrapolated_s_U += extrapolated_s
            lane.calls_U += count
            lane.weights_s_U += weights_s
            lane.weights_calls_U += weights_count
            lane.gating_s_U += gating_s
        keys = [f"{fit.kind}/{fit.direction}" for fit in fits]
        for lane, operator, spread_s in runs.spreads(highest_s * price.log_error_U):
            lane.spread_s[keys[operator]] = lane.spread_s.get(keys[operator], 0.0) + spread_s

    def _in_cast_flops(self, price: OperatorTime, operators: Sequence[Sequence[_Booked]], shapes: int) -> OperatorTime:
        """With FLOPs of attention and of products that are not cast as so many of those that are as tensor cores would
        do in their time."""
        if self._of_cast_flops == 1.0:
            return price
        wide = [_is_uncast(called) or _operator(called)[0] in ATTENTIONS for called in operators]
        many = np.repeat(np.where(wide, self._of_cast_flops, 1.0), [len(called) * shapes for called in operators])
        return replace(price, work=replace(price.work, flops=many * price.work.flops))

    def _with_cycles(self, price: OperatorTime, operators: Sequence[Sequence[_Booked]], shapes: int) -> OperatorTime:
        """With what calls take of SMs behind what they move, and beside it."""
        every = [call for called in operators for _, call in called]
        if all(_is_nothing(call.sm_cycles) and _is_nothing(call.added_s) for call in every):
            return price
        cycles, added = (
            [np.broadcast_to(one, shapes) for one in column]
            for column in zip(*((call.sm_cycles, call.added_s) for call in every), strict=True)
        )
        busy_s = np.concatenate(cycles)[:, None] / (self.chip.multiprocessors * self.clock_Hz_K)
        more_s = busy_s + np.concatenate(added)[:, None]
        return replace(price, time_s_UK=price.time_s_UK + more_s, busy_s_UK=price.busy_s_UK + busy_s)

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


def _is_nothing(values: FloatArray | float) -> bool:
    return not (values if isinstance(values, float) else values.any())


def _of_mean_rank(price: OperatorTime, operators: Sequence[Sequence[_Booked]], shapes: int) -> tuple[Work, FloatArray]:
    """Work and busy time on the mean rank of calls whose shapes are the busiest rank's.

    Rows are shared out; weights of experts, which grouped products read, every rank reads whole, and their tiles, which
    rows do not fill evenly, take every rank as long as the busiest.
    """
    every = [call for called in operators for _, call in called]
    if all(isinstance(call.load_balance, float) and call.load_balance == 1.0 for call in every):
        return price.work, price.busy_s_UK
    rows, bytes_share, busy = np.ones((3, len(every), shapes))
    for index, call in enumerate(every):
        rows[index] = bytes_share[index] = busy[index] = call.load_balance
        if call.kind is Kind.GROUPED_GEMM:
            bytes_share[index] += (1 - rows[index]) * weights_share(call.shape)
            busy[index] = 1.0
    least = Work(
        flops=price.work.flops * rows.ravel(),
        vector_ops=price.work.vector_ops * rows.ravel(),
        bytes_B=price.work.bytes_B * bytes_share.ravel(),
    )
    return least, price.busy_s_UK * busy.reshape(-1, 1)


def _operator(called: Sequence[_Booked]) -> tuple[Kind, Pass]:
    """Which one is called."""
    return called[0][1].kind, called[0][1].direction


def _is_uncast(called: Sequence[_Booked]) -> bool:
    """Whether calls of an operator are of 16-bit operands whatever others are of."""
    return called[0][1].uncast


def _batches(operators: Iterable[Sequence[_Booked]], calls: int) -> Iterator[list[Sequence[_Booked]]]:
    """Calls by operator, in batches of so many at most; those on tensor cores, which the fast limit slows, apart."""
    parts = [called[first : first + calls] for called in operators for first in range(0, len(called), calls)]
    for streams in (False, True):
        batch: list[Sequence[_Booked]] = []
        for part in parts:
            if (form_of(_operator(part)[0]) == "stream") is not streams:
                continue
            if batch and sum(map(len, batch)) + len(part) > calls:
                yield batch
                batch = []
            batch.append(part)
        if batch:
            yield batch


def _stacked(calls: Sequence[Shape], shapes: int) -> Shape:
    """Shapes of several calls, each of so many, one behind another; that of a single call as it is."""
    if len(calls) == 1:
        return calls[0]
    columns = np.ones((len(SHAPE_FIELDS), len(calls), shapes))
    for index, shape in enumerate(calls):
        for column, value in zip(columns, vars(shape).values(), strict=True):
            if value is not _ONE:
                column[index] = value
    return Shape(**dict(zip(SHAPE_FIELDS, columns.reshape(len(SHAPE_FIELDS), -1), strict=True)))


_ONE = Shape().m  # of most fields, most of the time


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """Calls of some operators, those of one behind those of another, by the lane that they are of.

    A lane is the `PhaseCost` that a call is added to.

    Attributes:
        phase_costs: the lanes.
        order: index of each call, lane by lane; `first` where in that order each lane begins.
        begins: index of each call whose lane or operator is another than that of the call before it; `pairs` these.
        count: of each call, [calls, U]; `energy_count` times the operator's factor on energy, and the call's;
            `weights_count` of calls that only the optimizer waits for, `gating_count` of those of routers.
    """

    phase_costs: list[PhaseCost]
    order: list[int]
    first: list[int]
    begins: list[int]
    pairs: list[tuple[PhaseCost, int]]
    count: FloatArray
    energy_count: FloatArray
    weights_count: FloatArray
    gating_count: FloatArray

    @classmethod
    def of(cls, operators: Sequence[Sequence[_Booked]], shapes: int, energy_factors: Sequence[float]) -> _Runs:
        """Of some calls at so many shapes."""
        calls = [(lane, call, operator) for operator, called in enumerate(operators) for lane, call in called]
        count, factor = np.empty((len(calls), shapes)), np.empty((len(calls), shapes))
        by_lane: dict[int, list[int]] = {}
        pairs: list[tuple[PhaseCost, int]] = []
        begins = []
        for index, (lane, call, operator) in enumerate(calls):
            count[index], factor[index] = call.count, energy_factors[operator] * call.operand_energy
            by_lane.setdefault(id(lane), []).append(index)
            if not pairs or lane is not pairs[-1][0] or operator != pairs[-1][1]:
                begins.append(index)
                pairs.append((lane, operator))
        gating = np.array([call.gating for _, call, _ in calls])
        weights = np.array([(call.kind, call.direction) in _OF_WEIGHTS for _, call, _ in calls])
        return cls(
            phase_costs=[calls[indices[0]][0] for indices in by_lane.values()],
            order=[index for indices in by_lane.values() for index in indices],
            first=[0, *accumulate(map(len, by_lane.values()))][:-1],
            begins=begins,
            pairs=pairs,
            count=count,
            energy_count=count * factor,
            weights_count=count * weights[:, None],
            gating_count=count * gating[:, None],
        )

    def sum(self, values: FloatArray, count: FloatArray | None = None) -> FloatArray:
        """All calls of each lane, from one of each: `values` of all behind one another, [calls U] or [calls U, K]."""
        every = self._every(values, self.count if count is None else count)
        return every if len(every) == 1 else np.asarray(np.add.reduceat(every[self.order], self.first, axis=0))

    def spreads(self, spread_s: FloatArray) -> Iterator[tuple[PhaseCost, int, FloatArray]]:
        """The same of each operator in each lane: lane, place of the operator, and sum over its calls."""
        sums = np.add.reduceat(self._every(spread_s, self.count), self.begins, axis=0)
        return ((lane, operator, sum_s) for (lane, operator), sum_s in zip(self.pairs, sums, strict=True))

    def _every(self, values: FloatArray, count: FloatArray) -> FloatArray:
        one = values.reshape(len(count), -1, *values.shape[1:])
        return np.asarray((count[:, :, None] if values.ndim > 1 else count) * one)


def tensor_limit(calibration: Calibration) -> TensorLimit:
    """The fast limit of a calibration; none where it has none."""
    found = calibration.governor.parameters
    if "tensor_clock" not in found:
        return TensorLimit(clock_Hz=np.inf, sharpness=1.0)
    return TensorLimit(clock_Hz=found["tensor_clock"].value, sharpness=found["tensor_sharpness"].value)
