"""Sections `mixed` and `solo`: the time of every operator of the grid, at the clock it ran at.

Mixed: each sample comes after a heavy load about three times as long, so that the governor holds the clock as low as
in real training. Solo: the operator alone, at whatever clock the device has then. Each sample is a row with its own
clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from moemodel.model.records.profile import DeviceState, OperatorRow
from moemodel.profiler.microbench.cases import Case
from moemodel.profiler.microbench.harness import Cost, Harness
from moemodel.profiler.microbench.points import Point
from moemodel.profiler.microbench.stream_timer import Sample, TimedRegion
from moemodel.profiler.sections.base import Item, ItemSection
from moemodel.profiler.sections.progress import Progress
from moemodel.profiler.store.profile_writer import ProfileWriter

_GAP_MOST_S = 30e-3  # a longer one was the host's own pause, and no gap to fill


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How an operator's samples are taken.

    Attributes:
        label: the `sweep` column of the rows.
        heavy: time of the heavy load over the time of the sample that follows; 0 for none.
        samples: of a point.
    """

    label: str
    heavy: float
    samples: int


class OperatorTimes(ItemSection):
    """Points in order, each by one mix.

    Args:
        points: to measure.
        mix: how.
    """

    flush_rows = 400

    def __init__(self, points: Sequence[Point], mix: Mix) -> None:
        self.name = mix.label
        self._points, self._mix = points, mix

    @property
    def steps(self) -> int:
        """One a point."""
        return len(self._points)

    def items(self, bench: Harness, writer: ProfileWriter, progress: Progress) -> list[Item]:
        """See `ItemSection`."""
        del progress
        grid = _Grid(bench, self._mix)
        return [
            Item(
                title=str(point),
                told=str(point),
                measure=partial(grid.measure, point),
                done=operator_row_is_there(writer, point, self._mix.label),
            )
            for point in self._points
        ]


class _Grid:
    """Measures point after point of one mix, keeping the device under load in between."""

    def __init__(self, bench: Harness, mix: Mix) -> None:
        self._bench = bench
        self._mix = mix
        self._gap_s = 5e-3  # host time between two points' loads, a running mean

    def measure(self, point: Point) -> list[OperatorRow]:
        bench, mix = self._bench, self._mix
        if mix.heavy:
            # While the host makes operands the device would idle, and its clock rise.
            bench.heavy.run(bench.heavy.calls_for(1.2 * self._gap_s, bench.budget.heavy_at_most))
        begun_s = bench.timer.now_s()
        case = bench.build(point)
        built_s = bench.timer.now_s() - begun_s
        # a mean over some three points; 2 ms for what is not building (assumed)
        self._gap_s += 0.3 * (min(built_s + 2e-3, _GAP_MOST_S) - self._gap_s)
        cost = bench.warm_up(case)
        calls = cost.calls_in(bench.budget.sample_s, mix.samples)
        regions = [self._sample(case, cost, calls) for _ in range(mix.samples)]
        state = bench.state()  # while the device works
        return [sample_row(point, mix.label, sample, state) for sample in bench.stream.read(regions)]

    def _sample(self, case: Case, cost: Cost, calls: int) -> TimedRegion:
        spin_s = cost.spin_s(calls)
        if self._mix.heavy:
            heavy = self._bench.heavy
            count = heavy.calls_for(self._mix.heavy * calls * cost.time_s, self._bench.budget.heavy_at_most)
            heavy.run(count)
            spin_s = max(0.0, spin_s - count * heavy.time_s)
        return self._bench.stream.queue(case, calls, spin_s)


def operator_row_is_there(writer: ProfileWriter, point: Point, sweep: str) -> bool:
    """Whether the profile has samples of a point."""
    return writer.has(OperatorRow, **point.operator().columns(), sweep=sweep)


def sample_row(point: Point, sweep: str, sample: Sample, state: DeviceState) -> OperatorRow:
    """The row of a sample."""
    return OperatorRow(
        operator=point.operator(),
        sweep=sweep,
        calls=sample.calls,
        time_s=sample.time_s,
        host_time_s=sample.host_time_s,
        state=replace(state, clock_Hz=sample.clock_Hz),
    )
