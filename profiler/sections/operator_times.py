"""Sections `mixed` and `solo`: the time of every operator of the grid, at the clock it ran at.

Mixed: each sample comes after a heavy load about three times as long, so that the governor holds the clock as low as
in real training. Solo: the operator alone, at whatever clock the device has then. Each sample is a row with its own
clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moemodel.profiler.microbench.cases import Case
from moemodel.profiler.microbench.harness import Bench, Cost
from moemodel.profiler.microbench.points import Point
from moemodel.profiler.microbench.skips import Skip, not_reached, skippable
from moemodel.profiler.microbench.stream_timer import Sample, Stretch
from moemodel.profiler.sections.progress import Progress
from moemodel.profiler.store.profile_writer import ProfileWriter

_FLUSH_ROWS = 400
_GAP_MOST_S = 30e-3


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


def measure_operators(
    bench: Bench, points: Sequence[Point], mix: Mix, writer: ProfileWriter, deadline_s: float, progress: Progress
) -> list[Skip]:
    """Measure points in order until `deadline_s` (of the bench's timer), leaving out those that the profile has.

    Returns:
        What could not be measured.
    """
    grid = _Grid(bench, mix)
    skips: list[Skip] = []
    for i, point in enumerate(points):
        if bench.timer.now_s() > deadline_s:
            skips.append(not_reached(mix.label, len(points) - i, len(points)))
            break
        progress.step(str(point))
        if writer.has("operators", {**point.row(), "sweep": mix.label}):
            continue
        try:
            rows = grid.measure(point)
        except skippable() as error:
            skips.append(bench.skip(str(point), error))
            continue
        writer.append("operators", rows)
        if writer.pending_rows() >= _FLUSH_ROWS:
            writer.flush()
    return skips


class _Grid:
    """Measures point after point of one mix, keeping the device under load in between."""

    def __init__(self, bench: Bench, mix: Mix) -> None:
        self._bench = bench
        self._mix = mix
        self._gap_s = 5e-3  # host time between two points' loads, a running mean

    def measure(self, point: Point) -> list[dict[str, Any]]:
        bench, mix = self._bench, self._mix
        if mix.heavy:
            # While the host makes operands the device would idle, and its clock rise.
            bench.heavy.run(bench.heavy.calls_for(1.2 * self._gap_s, bench.effort.heavy_at_most))
        begun_s = bench.timer.now_s()
        case = bench.build(point)
        built_s = bench.timer.now_s() - begun_s
        self._gap_s += 0.3 * (min(built_s + 2e-3, _GAP_MOST_S) - self._gap_s)
        cost = bench.warm_up(case)
        calls = cost.calls_in(bench.effort.sample_s, mix.samples)
        stretches = [self._sample(case, cost, calls) for _ in range(mix.samples)]
        state = bench.state()  # while the device works
        return [sample_row(point, mix.label, sample, state) for sample in bench.lane.read(stretches)]

    def _sample(self, case: Case, cost: Cost, calls: int) -> Stretch:
        lead_s = cost.lead_s(calls)
        if self._mix.heavy:
            heavy = self._bench.heavy
            count = heavy.calls_for(self._mix.heavy * calls * cost.time_s, self._bench.effort.heavy_at_most)
            heavy.run(count)
            lead_s = max(0.0, lead_s - count * heavy.time_s)
        return self._bench.lane.queue(case, calls, lead_s)


def sample_row(point: Point, sweep: str, sample: Sample, state: dict[str, Any]) -> dict[str, Any]:
    """A row of table `operators`."""
    return {
        **point.row(),
        "sweep": sweep,
        "calls": sample.calls,
        "time_s": sample.time_s,
        "host_time_s": sample.host_time_s,
        "clock_Hz": sample.clock_Hz,
        **state,
    }
