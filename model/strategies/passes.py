"""Strategies that give every pass of every micro-batch a clock, which no plan says: counted on the pipeline's graph.

    envpipe   Choi et al. 2023 (EnvPipe, USENIX ATC): passes on a longest path of the step, its outer envelope, stay at
              the highest clock; the others of a stage and phase are slowed together, a step of the clock at a time, as
              long as the step takes no longer. Here by turns over stages and phases.
    perseus   Chung et al. 2024 (Perseus, SOSP): each pass has the clock that the frontier of the whole pipeline gives
              it. Here by `frontier.programme` instead of their flows.

Both choose as if a clock changed at once; what they cost counts the time that a change takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moemodel.model.frontier.choices import choices_of
from moemodel.model.frontier.frontier import Point, Solver
from moemodel.model.frontier.paths import Paths
from moemodel.model.frontier.pipeline import Pipeline
from moemodel.model.frontier.rounding import Clocks
from moemodel.model.schedule.base import Work

_SAME = 1e-9  # of a step: rounding
_TRIES = 5  # of shorter steps, until one with its changes of the clock is as short as was asked
MOST_PASSES = 4096  # of a step: some seconds


@dataclass(frozen=True, kw_only=True)
class Passes:
    """What a strategy comes to, against every pass at the highest clock. One GPU of each stage together.

    Attributes:
        longer_s: the step.
        more_J: its energy; negative where it saves.
        at_once_J: the same if clocks changed at once, `at_once_s` the step then.
        clock_Hz: mean over the time of all passes.
        lowest_Hz: of any pass; `highest_Hz` likewise.
        keeps_highest: some passes stay at the highest clock of their tables.
    """

    longer_s: float
    more_J: float
    at_once_s: float
    at_once_J: float
    clock_Hz: float
    lowest_Hz: float
    highest_Hz: float
    keeps_highest: bool


class GraphStrategies:
    """Strategies on the pipeline of one plan.

    Args:
        pipeline: itself.
        change_s: until a clock that is set stands.

    Raises:
        MissingExtraError: networkx or scipy is not installed.
    """

    def __init__(self, pipeline: Pipeline, change_s: float) -> None:
        self._pipeline, self._change_s = pipeline, change_s
        self._solver = Solver(pipeline, exact=False)
        self._highest = self._solver.at(
            {work: float(pipeline.table(work).clock_Hz.max()) for work in pipeline.operations}
        )

    def envpipe(self) -> Passes:
        """In the manner of EnvPipe."""
        return self._against_highest(envelope_clocks(self._pipeline))

    def perseus(self, longer_s: float) -> Passes:
        """As Perseus, for a step that takes no more than so much longer, with changes of the clock as far as may be."""
        deadline_s = allowed_s = self._highest.time_s + longer_s
        found = self._against_highest(self._solver.least_energy(deadline_s).clock_Hz)
        for _ in range(_TRIES):
            late_s = found.longer_s - longer_s
            if late_s <= _SAME * allowed_s or deadline_s <= self._solver.fastest_s:
                break
            deadline_s = max(deadline_s - late_s, self._solver.fastest_s)
            found = self._against_highest(self._solver.least_energy(deadline_s).clock_Hz)
        return found

    def _against_highest(self, clock_Hz: dict[Work, float]) -> Passes:
        at_once, found = (self._solver.at(clock_Hz, change_s=change_s) for change_s in (0.0, self._change_s))
        return Passes(
            longer_s=found.time_s - self._highest.time_s,
            more_J=found.energy_J - self._highest.energy_J,
            at_once_s=at_once.time_s - self._highest.time_s,
            at_once_J=at_once.energy_J - self._highest.energy_J,
            clock_Hz=_mean_Hz(self._pipeline, at_once),
            lowest_Hz=min(clock_Hz.values()),
            highest_Hz=max(clock_Hz.values()),
            keeps_highest=any(clock_Hz[work] == self._highest.clock_Hz[work] for work in clock_Hz),
        )


def envelope_clocks(pipeline: Pipeline) -> dict[Work, float]:
    """Clocks in the manner of EnvPipe."""
    works = pipeline.operations
    choices = choices_of(pipeline, "operation")
    clocks = Clocks(paths=Paths.of(pipeline), choices=choices, option=[0] * len(choices))
    allowed_s, envelope = clocks.step_s * (1 + _SAME), set(clocks.critical())
    groups: dict[tuple[int, str], list[int]] = {}
    for g, work in enumerate(works):
        if g not in envelope:
            groups.setdefault((pipeline.stage(work), work.kind), []).append(g)
    turns = list(groups.values())
    while turns:
        turns = [group for group in turns if _slowed(clocks, group, allowed_s)]
    return {work: float(choices[g].clock_Hz[k]) for g, (work, k) in enumerate(zip(works, clocks.option, strict=True))}


def _slowed(clocks: Clocks, group: list[int], allowed_s: float) -> bool:
    """Gives passes that go together the next slower clock, if the step stays as long."""
    k = clocks.option[group[0]]
    if k + 1 == len(clocks.choices[group[0]].cost_J):
        return False
    clocks.take(dict.fromkeys(group, k + 1))
    if clocks.step_s <= allowed_s:
        return True
    clocks.take(dict.fromkeys(group, k))
    return False


def _mean_Hz(pipeline: Pipeline, point: Point) -> float:
    """Over the time of all passes."""
    taken = []
    for work, clock_Hz in point.clock_Hz.items():
        table = pipeline.table(work)
        taken.append((clock_Hz, float(table.time_s[int(np.abs(table.clock_Hz - clock_Hz).argmin())])))
    return sum(clock_Hz * time_s for clock_Hz, time_s in taken) / sum(time_s for _, time_s in taken)
