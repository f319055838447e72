"""What a search's plans are held against: what a user would have run without a search, on as many GPUs, within limits.

The first plans that `moemodel init` would try, in its order, for the batch of the search; those whose choices are among
the search's come first. The first that fits in memory and keeps every limit is the reference. Where the clock that the
governor chooses breaks a limit, the plan is tried at the clocks of the search, from the highest down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.plan.batch import joined
from moemodel.model.plan.checks import check_architecture
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.outcome import outcome
from moemodel.model.search.baseline import first_choices
from moemodel.model.search.candidates import Candidates, at_clocks, clocks_Hz
from moemodel.model.search.document import Search
from moemodel.model.search.problem import SearchProblem, constraint_values, limits_of, memory_of
from moemodel.model.search.result import Entry, entry_of
from moemodel.model.search.room import room_of

_AT_ONCE = 16  # first plans that are looked at together, until one fits and keeps the limits


@dataclass(frozen=True, kw_only=True)
class _First:
    """A first plan, and its choices that are not among the search's."""

    plan: Plan
    outside: tuple[str, ...]

    def at(self, clock_MHz: float | None) -> _First:
        """The same at a clock."""
        return replace(self, plan=self.plan.model_copy(update={"clock_MHz": clock_MHz}))


def references(problem: SearchProblem, legal: Candidates, calibration: Calibration) -> tuple[Entry, ...]:
    """The reference on each number of GPUs of a search that has one.

    Args:
        problem: the search.
        legal: its candidates, of which the clocks are read.
        calibration: of its GPU.
    """
    found = []
    for gpus in problem.document.cluster.gpus:
        first = _reference(problem, legal, gpus)
        if first is not None:
            entry = entry_of(0, outcome(first.plan, calibration), problem.machine)
            found.append(entry.model_copy(update={"outside": first.outside}))
    return tuple(found)


def reference_plan(problem: SearchProblem, legal: Candidates) -> Plan | None:
    """The reference on the first number of GPUs of a search; None where there is none."""
    first = _reference(problem, legal, problem.document.cluster.gpus[0])
    return None if first is None else first.plan


def _reference(problem: SearchProblem, legal: Candidates, gpus: int) -> _First | None:
    if not legal.clocks_MHz:
        return None
    firsts = _first_plans(problem, gpus)
    while some := list(islice(firsts, _AT_ONCE)):
        found = _first_kept(problem, _fitting(problem, some), _fastest_first(legal.clocks_MHz))
        if found is not None:
            return found
    return None


def _fitting(problem: SearchProblem, firsts: list[_First]) -> list[_First]:
    """Those that fit in memory."""
    plans = joined([first.plan for first in firsts])
    room = room_of(problem, plans, memory_of(problem, plans).peak_B)
    return [firsts[row] for row in np.flatnonzero(room.kept)]


def _first_kept(problem: SearchProblem, firsts: list[_First], clocks_MHz: tuple[float | None, ...]) -> _First | None:
    """The first of some that fit that keeps the limits, at the first of the clocks at which it does."""
    if not firsts:
        return None
    limits = limits_of(problem)
    if not limits:
        return firsts[0].at(clocks_MHz[0])
    batch = at_clocks(joined([first.plan for first in firsts]), clocks_Hz(clocks_MHz))
    values = constraint_values(problem, batch, predict(problem.architecture, batch, problem.machine))
    kept = np.flatnonzero(np.logical_and.reduce([values[name] <= limit for name, limit in limits.items()], axis=0))
    if not kept.size:
        return None
    row, clock = divmod(int(kept[0]), len(clocks_MHz))
    return firsts[row].at(clocks_MHz[clock])


def _fastest_first(clocks_MHz: tuple[float | None, ...]) -> tuple[float | None, ...]:
    """What the governor chooses, then the highest."""
    return tuple(sorted(clocks_MHz, key=lambda clock: -np.inf if clock is None else -clock))


def _first_plans(problem: SearchProblem, gpus: int) -> Iterator[_First]:
    """Legal ones, those whose choices are the search's first."""
    document = problem.document
    node = document.cluster.gpus_per_node or problem.machine.gpu.gpus_per_node
    every = [(_outside(document, c | c["parallel"]), c) for c in first_choices(problem.architecture, gpus, node)]
    for outside, choices in sorted(every, key=lambda first: bool(first[0])):
        parallel = choices.pop("parallel")
        try:
            plan = document.plan(**parallel, **choices, gpus=gpus, name=f"{document.name}-reference")
            check_architecture(plan, problem.architecture)
        except (InputError, InfeasiblePlanError):
            continue
        yield _First(plan=plan, outside=outside)


def _outside(document: Search, choices: dict[str, object]) -> tuple[str, ...]:
    """Choices that the search does not have; degrees that are left at 1 are choices too."""
    usual = {"replicas": 1, "etp": None, "dispatch": "alltoall", "node_limit": None, "dispatch_overlap": None}
    every = {"cp": 1, "virtual_stages": 1, "sequence_parallel": False} | usual | choices
    given = {name: values for name, values in document.search if values is not None}
    return tuple(f"{name} {every[name]}" for name, values in given.items() if every[name] not in values)
