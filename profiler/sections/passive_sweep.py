"""The passive sweep: time against clock without setting a clock.

The governor moves the clock more slowly than an operator runs. So interleave an operator with a heavy load in several
proportions, and with pauses: each sample runs at the clock that the mix earned, read off the cycle counter.
`locked_sweep` takes its place where clocks may be locked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from moemodel.model.records.profile import OperatorRow
from moemodel.profiler.microbench.cases import Case
from moemodel.profiler.microbench.harness import Cost, Harness
from moemodel.profiler.microbench.points import Point
from moemodel.profiler.microbench.stream_timer import TimedRegion
from moemodel.profiler.sections.base import Item, ItemSection
from moemodel.profiler.sections.operator_times import operator_row_is_there, sample_row
from moemodel.profiler.sections.progress import Progress
from moemodel.profiler.store.profile_writer import ProfileWriter


@dataclass(frozen=True, kw_only=True)
class SweepMix:
    """A proportion of heavy load to operator, and a pause after each round."""

    label: str
    heavy: float
    pause_s: float


# From nothing but heavy load to none: such mixes took an H100 through true clocks from 1151 to 1980 MHz (measured for
# this project, 2026); the pauses between are assumed.
MIXES = (
    SweepMix(label="8:1", heavy=8, pause_s=0),
    SweepMix(label="3:1", heavy=3, pause_s=0),
    SweepMix(label="1:1", heavy=1, pause_s=0),
    SweepMix(label="1:1 3 ms pause", heavy=1, pause_s=3e-3),
    SweepMix(label="1:1 9 ms pause", heavy=1, pause_s=9e-3),
    SweepMix(label="0:1 4 ms pause", heavy=0, pause_s=4e-3),
)


class PassiveSweep(ItemSection):
    """Every point at every mix.

    Args:
        points: to measure.
    """

    name = "sweep"

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = points

    @property
    def steps(self) -> int:
        """One a point."""
        return len(self._points)

    def items(self, bench: Harness, writer: ProfileWriter, progress: Progress) -> list[Item]:
        """See `ItemSection`."""
        del progress
        return [self._item(bench, point, writer) for point in self._points]

    def _item(self, bench: Harness, point: Point, writer: ProfileWriter) -> Item:
        todo = [mix for mix in MIXES if not operator_row_is_there(writer, point, mix.label)]
        return Item(
            title=f"sweep of {point}",
            told=str(point),
            measure=partial(_sweep_point, bench, point, todo),
            done=not todo,
        )


def _sweep_point(bench: Harness, point: Point, mixes: Sequence[SweepMix]) -> list[OperatorRow]:
    case = bench.build(point)
    cost = bench.warm_up(case)
    # As long as a heavy call, so that one of them can be 1:1.
    calls = cost.calls_in(max(bench.budget.sample_s, bench.heavy.time_s))
    rows: list[OperatorRow] = []
    for mix in mixes:
        regions = _run_mix(bench, case, cost, calls, mix)
        state = bench.state()
        rows += [sample_row(point, mix.label, sample, state) for sample in bench.stream.read(regions)]
    return rows


def _run_mix(bench: Harness, case: Case, cost: Cost, calls: int, mix: SweepMix) -> list[TimedRegion]:
    """Rounds of one mix until the clock has settled, then recorded ones; evenly thinned."""
    budget = bench.budget
    heavy_calls = 0
    if mix.heavy:
        heavy_calls = bench.heavy.calls_for(mix.heavy * calls * cost.time_s, budget.heavy_at_most)
    spin_s = max(0.0, cost.spin_s(calls) - heavy_calls * bench.heavy.time_s)
    settled_s = bench.timer.now_s() + budget.sweep_settle_s
    end_s = settled_s + budget.sweep_record_s
    recorded: list[TimedRegion] = []
    while not recorded or bench.timer.now_s() < end_s:
        bench.heavy.run(heavy_calls)
        region = bench.stream.queue(case, calls, spin_s)
        bench.stream.wait(region)
        if bench.timer.now_s() > settled_s:
            recorded.append(region)
        bench.timer.pause(mix.pause_s)
    return recorded[:: max(1, -(-len(recorded) // budget.sweep_samples))]
