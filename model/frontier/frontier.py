"""The least energy of a pipeline for a step of a given length, and how it falls as the step may take longer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.core.extras import needs_extra
from moemodel.model.frontier.choices import Choice, Shared, choices_of
from moemodel.model.frontier.paths import Paths
from moemodel.model.frontier.pipeline import Pipeline, Table
from moemodel.model.frontier.programme import ROUNDING, Programme, Relaxed
from moemodel.model.frontier.rounding import Clocks, exchange, few, fill, hurry, rounded_down
from moemodel.model.schedule.base import Work

_EXACT = 2000  # operations times clocks of all choices: up to so many, the integer programme takes about 0.1 s
_SLACK = 1e-7  # of a deadline, which the integer programme's solver would take for too short otherwise
_SAME = 1e-9  # of a clock: what differs by rounding
_ENOUGH = 1e-3  # above the bound: clocks that come so near aren't exchanged for others


@dataclass(frozen=True, kw_only=True)
class Point:
    """Clocks for a step of a given length.

    Attributes:
        deadline_s: that was asked for.
        time_s: of the step, no longer than that (to a part in 10^9).
        energy_J: of a GPU of each stage together; see `pipeline`.
        bound_J: no clocks of the tables need less within the deadline; -inf of clocks that were given.
        exact: `energy_J` is the least there is.
        clock_Hz: of each operation.
    """

    deadline_s: float
    time_s: float
    energy_J: float
    bound_J: float
    exact: bool
    clock_Hz: dict[Work, float]


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Least energies for longer and longer steps.

    Attributes:
        fastest_s: step with every operation at its fastest clock.
        points: in order of time; each needs less energy than those before it.
    """

    fastest_s: float
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class _Solved:
    """As `Point`."""

    deadline_s: float
    clocks: Clocks
    energy_J: float
    bound_J: float
    exact: bool


class Solver:
    """The clocks of one pipeline.

    Args:
        pipeline: itself.
        shared: which operations share a clock (`choices.choices_of`).
        exact: whether to solve the integer programme (`Programme.exact`) rather than to round the linear one; None:
            where it is small.

    Raises:
        InputError: no such way to share, or tables that don't allow it.
        MissingExtraError: networkx or scipy is not installed.
    """

    def __init__(self, pipeline: Pipeline, *, shared: Shared = "operation", exact: bool | None = None) -> None:
        self.pipeline = pipeline
        with needs_extra("the frontier of a pipeline", "clocks"):
            self._paths = Paths.of(pipeline)
            self._choices: Sequence[Choice] = choices_of(pipeline, shared)
            self._power_W = sum(pipeline.waiting_W) + sum(pipeline.idle_W)
            self._programme = Programme(self._paths, self._choices, self._power_W)
        clocks = sum(len(choice.cost_J) for choice in self._choices)
        self._exact = clocks * len(pipeline.operations) <= _EXACT if exact is None else exact

    @property
    def fastest_s(self) -> float:
        """Step with every operation at its fastest clock."""
        return self._programme.fastest_s

    def least_energy(self, deadline_s: float = math.inf) -> Point:
        """Clocks that need least energy for a step of a given length.

        Args:
            deadline_s: of the step; infinite: it may take as long as it likes.

        Raises:
            InfeasiblePlanError: the step takes longer at the fastest clocks.
        """
        return self._described(self._solved(self._asked(deadline_s)))

    def at(self, clock_Hz: Mapping[Work, float], *, change_s: float = 0.0) -> Point:
        """The step at given clocks, whether they are worth choosing or not.

        Args:
            clock_Hz: of each operation; of its table.
            change_s: until a clock that is set stands: so long an operation goes on at the clock of the one before it
                on its stage, all of it where it is shorter.

        Raises:
            InputError: an operation without a clock, or a clock that is not in its table.
        """
        taken = [cost for order in self.pipeline.orders for cost in self._costs(order, clock_Hz, change_s)]
        step_s = self._paths.makespan_s([time_s for time_s, _ in taken])
        waiting_W = [self.pipeline.waiting_W[self.pipeline.stage(work)] for work in self.pipeline.operations]
        worked_J = sum(energy_J - watts * time_s for (time_s, energy_J), watts in zip(taken, waiting_W, strict=True))
        return Point(
            deadline_s=step_s,
            time_s=step_s,
            energy_J=worked_J + self._power_W * step_s,
            bound_J=-math.inf,
            exact=False,
            clock_Hz=dict(clock_Hz),
        )

    def _costs(self, order: list[Work], clock_Hz: Mapping[Work, float], change_s: float) -> list[tuple[float, float]]:
        """Time and energy of a stage's operations."""
        costs: list[tuple[float, float]] = []
        for before, work in zip([None, *order], order, strict=False):
            table = self.pipeline.table(work)
            here = _row(table, work, clock_Hz)
            cost = float(table.time_s[here]), float(table.energy_J[here])
            if before is not None and change_s > 0 and clock_Hz[before] != clock_Hz[work]:
                there = int(np.abs(table.clock_Hz - clock_Hz[before]).argmin())
                late = min(1.0, change_s / float(table.time_s[there]))
                earlier = float(table.time_s[there]), float(table.energy_J[there])
                cost = (late * earlier[0] + (1 - late) * cost[0], late * earlier[1] + (1 - late) * cost[1])
            costs.append(cost)
        return costs

    def frontier(self, deadlines_s: Sequence[float]) -> Frontier:
        """The same for several lengths, none of which needs more energy than a shorter one."""
        best: list[_Solved] = []
        for deadline_s in sorted(map(self._asked, deadlines_s)):
            found = self._solved(deadline_s)
            if best and best[-1].energy_J <= found.energy_J:  # what does for a shorter step does for a longer one
                found = replace(best[-1], deadline_s=deadline_s, bound_J=found.bound_J, exact=found.exact)
            best.append(found)
        points = [self._described(found) for found in best]
        return Frontier(fastest_s=self.fastest_s, points=tuple(_undominated(points)))

    def _asked(self, deadline_s: float) -> float:
        if math.isnan(deadline_s):
            raise InputError("deadline_s: found NaN; a time in s is needed")
        if deadline_s < self.fastest_s * (1 - ROUNDING):
            raise InfeasiblePlanError(
                f"deadline of {deadline_s:.6g} s: at the fastest clocks the pipeline takes {self.fastest_s:.6g} s"
            )
        return max(deadline_s, self.fastest_s)

    def _solved(self, deadline_s: float) -> _Solved:
        with needs_extra("the frontier of a pipeline", "clocks"):
            relaxed = self._programme.relaxed(deadline_s)
            clocks = self._integer(deadline_s) if self._exact else None
        exact = clocks is not None
        if clocks is None:
            clocks = self._rounded(relaxed, deadline_s)
        return _Solved(
            deadline_s=deadline_s, clocks=clocks, energy_J=self._energy_J(clocks), bound_J=relaxed.bound_J, exact=exact
        )

    def _integer(self, deadline_s: float) -> Clocks | None:
        """What the integer programme finds; None where that is late by more than rounding, or nothing."""
        for slack in (_SLACK, 0.0):
            option = self._programme.exact(deadline_s * (1 + slack))
            clocks = None if option is None else self._of(option)
            if clocks is not None and clocks.step_s <= deadline_s * (1 + ROUNDING):
                return clocks
        return None

    def _rounded(self, relaxed: Relaxed, deadline_s: float) -> Clocks:
        allowed_s = deadline_s * (1 + ROUNDING)
        down = rounded_down(self._choices, relaxed.operation_s)
        clocks = self._filled(down, allowed_s, relaxed)
        enough_J = (1 + _ENOUGH) * relaxed.bound_J - self._power_W * relaxed.time_s
        if clocks.cost_J <= enough_J or not few(self._choices):
            return clocks
        up = [min(k + 1, len(choice.cost_J) - 1) for choice, k in zip(self._choices, down, strict=True)]
        found = [clocks, self._filled(up, allowed_s, relaxed)]
        for each in found:
            exchange(each, min(allowed_s, max(relaxed.time_s, each.step_s)), enough_J=enough_J)
        return min(found, key=self._energy_J)

    def _filled(self, option: list[int], allowed_s: float, relaxed: Relaxed) -> Clocks:
        """Sped up until the step meets its deadline, which rounding down leaves by a solver's tolerance at most; then
        slowed, up to the step of the relaxed answer, which may be shorter than the deadline."""
        clocks = self._of(option)
        hurry(clocks, allowed_s)
        fill(clocks, min(allowed_s, max(relaxed.time_s, clocks.step_s)))
        return clocks

    def _of(self, option: list[int]) -> Clocks:
        return Clocks(paths=self._paths, choices=self._choices, option=option)

    def _energy_J(self, clocks: Clocks) -> float:
        """Of a step."""
        return clocks.cost_J + self._power_W * clocks.step_s

    def _described(self, found: _Solved) -> Point:
        operations, clocks = self.pipeline.operations, found.clocks
        chosen = zip(self._choices, clocks.option, strict=True)
        return Point(
            deadline_s=found.deadline_s,
            time_s=clocks.step_s,
            energy_J=found.energy_J,
            bound_J=found.bound_J,
            exact=found.exact,
            clock_Hz={operations[i]: float(choice.clock_Hz[k]) for choice, k in chosen for i in choice.members},
        )


def _row(table: Table, work: Work, clock_Hz: Mapping[Work, float]) -> int:
    """Of an operation's clock in its table."""
    found = clock_Hz.get(work, math.nan)
    rows = np.flatnonzero(np.isclose(table.clock_Hz, found, rtol=_SAME, atol=0.0))
    if not len(rows):
        low, high = table.clock_Hz.min() / 1e6, table.clock_Hz.max() / 1e6
        raise InputError(
            f"clock of {work}: found {found / 1e6:g} MHz; allowed: those of its table, {low:g} to {high:g}"
        )
    return int(rows[0])


def frontier(
    pipeline: Pipeline, *, points: int = 11, shared: Shared = "operation", exact: bool | None = None
) -> Frontier:
    """Least energies over a grid of deadlines, from the fastest step to that of least energy.

    Args:
        pipeline: itself.
        points: of the grid, at least 2.
        shared, exact: see `Solver`.

    Raises:
        InputError: fewer than 2 points; or see `Solver`.
        MissingExtraError: networkx or scipy is not installed.
    """
    if points < 2:
        raise InputError(f"points: found {points}; at least 2 are needed")
    solver = Solver(pipeline, shared=shared, exact=exact)
    longest_s = max(solver.least_energy().time_s, solver.fastest_s)
    return solver.frontier(np.linspace(solver.fastest_s, longest_s, points).tolist())


def _undominated(points: Sequence[Point]) -> list[Point]:
    """Of points in order of their deadlines, each of which needs no more energy than those before it."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.time_s, point.energy_J)):
        if not kept or point.energy_J < kept[-1].energy_J:
            kept.append(point)
    return kept
