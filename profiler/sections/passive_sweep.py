"""The passive sweep: time against clock without setting a clock.

The governor moves the clock more slowly than an operator runs. So interleave an operator with a heavy load in several
proportions, and with pauses: each sample runs at the clock that the mix earned, read off the cycle counter.
`locked_sweep` takes its place where clocks may be locked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from moemodel.profiler.microbench.cases import Case
from moemodel.profiler.microbench.harness import Bench, Cost
from moemodel.profiler.microbench.points import Point
from moemodel.profiler.microbench.stream_timer import Stretch
from moemodel.profiler.sections.base import Item, ItemSection
from moemodel.profiler.sections.operator_times import sample_row
from moemodel.profiler.sections.progress import Progress
from moemodel.profiler.store.profile_writer import ProfileWriter


@dataclass(frozen=True, kw_only=True)
class SweepMix:
    """A proportion of heavy load to operator, and a pause after each round."""

    label: str
    heavy: float
    pause_s: float


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

    def items(self, bench: Bench, writer: ProfileWriter, progress: Progress) -> list[Item]:
        """See `ItemSection`."""
        del progress
        return [self._item(bench, point, writer) for point in self._points]

    def _item(self, bench: Bench, point: Point, writer: ProfileWriter) -> Item:
        todo = [mix for mix in MIXES if not writer.has("operators", {**point.row(), "sweep": mix.label})]
        return Item(
            title=f"sweep of {point}",
            told=str(point),
            table="operators",
            measure=partial(_sweep_point, bench, point, todo),
            done=not todo,
        )


def _sweep_point(bench: Bench, point: Point, mixes: Sequence[SweepMix]) -> list[dict[str, Any]]:
    case = bench.build(point)
    cost = bench.warm_up(case)
    # As long as a heavy call, so that one of them can be 1:1.
    calls = cost.calls_in(max(bench.effort.sample_s, bench.heavy.time_s))
    rows: list[dict[str, Any]] = []
    for mix in mixes:
        stretches = _run_mix(bench, case, cost, calls, mix)
        state = bench.state()
        rows += [sample_row(point, mix.label, sample, state) for sample in bench.lane.read(stretches)]
    return rows


def _run_mix(bench: Bench, case: Case, cost: Cost, calls: int, mix: SweepMix) -> list[Stretch]:
    """Rounds of one mix until the clock has settled, then recorded ones; evenly thinned."""
    effort = bench.effort
    heavy_calls = 0
    if mix.heavy:
        heavy_calls = bench.heavy.calls_for(mix.heavy * calls * cost.time_s, effort.heavy_at_most)
    lead_s = max(0.0, cost.lead_s(calls) - heavy_calls * bench.heavy.time_s)
    settled_s = bench.timer.now_s() + effort.sweep_settle_s
    end_s = settled_s + effort.sweep_record_s
    recorded: list[Stretch] = []
    while not recorded or bench.timer.now_s() < end_s:
        bench.heavy.run(heavy_calls)
        stretch = bench.lane.queue(case, calls, lead_s)
        bench.lane.wait(stretch)
        if bench.timer.now_s() > settled_s:
            recorded.append(stretch)
        bench.timer.pause(mix.pause_s)
    return recorded[:: max(1, -(-len(recorded) // effort.sweep_samples))]
