"""Where nothing is feasible: which limit to relax, and by how much.

    one limit           the smallest value of it with which a plan keeps all others: the least among the plans that
                        break it alone
    several together    the plan whose worst excess, its value over the limit, is least: what it needs of each limit
                        that it breaks

All plans that are legal and fit in a GPU at some risk are predicted for it, those too that the search's risk and share
of memory refused. Axes: P plans, L limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.errors import InfeasiblePlanError
from moemodel.model.plan.spec import Plan, plan_text
from moemodel.model.search.candidates import Candidates
from moemodel.model.search.deadline import in_words
from moemodel.model.search.document import Limits
from moemodel.model.search.problem import SearchProblem, limits_of, memory_of, summary
from moemodel.model.search.quantities import DEADLINE
from moemodel.model.search.room import memory_risk, room_of
from moemodel.model.search.state import PredictedPlans, SearchState
from moemodel.model.search.survey import drawn
from moemodel.model.step.memory_fit import fit_probability

_DIGITS = 4  # of what a limit is to be, rounded up: so that it is kept
_ROWS = 50_000  # plans whose memory is counted at once
# Predictions that are made to say it: a minute. Assumed; beyond it some plans are drawn, which is said.
_MOST_PREDICTIONS = 2_000_000

Predicted = Callable[[SearchProblem, Candidates], Iterator[PredictedPlans]]


@dataclass(frozen=True, kw_only=True)
class Needed:
    """A limit that is in the way.

    Attributes:
        limit: its key; `given` what it is.
        needed: what it would have to be, rounded up to four digits; infinite: there must be no such limit.
    """

    limit: str
    given: float
    needed: float

    @property
    def share(self) -> float:
        """By how much it has to grow, of what it is."""
        return self.needed / self.given - 1

    def says(self, limits: Limits) -> str:
        """In words."""
        key = f"limits.{self.limit}"
        if math.isinf(self.needed):
            return f"{key} {self.given:g} left out"
        return f"{key} {self.needed:.6g}{_on(limits, self)} instead of {self.given:.6g} ({self.share:+.1%})"


def _on(limits: Limits, needed: Needed) -> str:
    """The date of a deadline."""
    from datetime import timedelta

    if needed.limit != DEADLINE or limits.start is None:
        return ""
    return f" h, which is {in_words(limits.start + timedelta(hours=needed.needed))},"


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to make something feasible: what limits have to be, and the plan that keeps them then."""

    limits: tuple[Needed, ...]
    plan_yaml: str
    summary: str


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What would make something feasible.

    Attributes:
        alone: for each limit that helps if it alone is relaxed.
        in_vain: limits of which no value helps while the others are kept.
        together: the nearest miss, whatever number of limits it breaks; None where no plan fits in memory.
        share: of the plans that fit, how many were looked at, drawn evenly.
    """

    alone: dict[str, Way] = field(default_factory=dict)
    in_vain: tuple[str, ...] = ()
    together: Way | None = None
    share: float = 1.0

    def says(self, limits: Limits) -> str:
        """In words, a line each."""
        lines = [
            f"Relax one limit, the others kept: {way.limits[0].says(limits)}, by {way.summary}"
            for way in self.alone.values()
        ]
        if self.together is not None and len(self.together.limits) > 1:
            needed = ", ".join(one.says(limits) for one in self.together.limits)
            lines.append(f"Or several together, the nearest miss: {needed}, by {self.together.summary}")
        if self.in_vain and self.together is not None:
            keys = ", ".join(f"limits.{name}" for name in self.in_vain)
            lines.append(f"No value of it alone would do: {keys}")
        if self.share < 1 and lines:
            lines.append(f"For this {self.share:.2%} of the plans that fit were looked at, drawn evenly")
        return "\n".join(lines)


class NothingFeasibleError(InfeasiblePlanError):
    """A search in which no plan is feasible.

    Attributes:
        advice: which limits to relax, and by how much.
    """

    def __init__(self, message: str, advice: Advice | None = None) -> None:
        super().__init__(message)
        self.advice = advice or Advice()


def nothing_feasible(
    problem: SearchProblem,
    legal: Candidates,
    state: SearchState,
    predicted_plans: Predicted,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> NothingFeasibleError:
    """What to raise where a search found nothing.

    Args:
        problem, legal, state: of the search.
        predicted_plans: predicts candidates, a batch at a time.
        progress: is told how many of how many plans are done.
    """
    advice = advise(problem, legal, predicted_plans, progress)
    more = advice.says(problem.document.limits)
    return NothingFeasibleError(state.infeasible_message() + ("\n" + more if more else ""), advice)


def advise(
    problem: SearchProblem,
    legal: Candidates,
    predicted_plans: Predicted,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Advice:
    """Which limits to relax, and by how much."""
    if not legal.clocks_MHz or not len(legal):
        return Advice()
    fits = np.concatenate([_could_fit(problem, legal.take(rows)) for rows in _blocks(len(legal))])
    kept = np.flatnonzero(fits)
    taken = drawn(len(kept), _MOST_PREDICTIONS // len(legal.clocks_MHz))
    some = legal.take(kept[taken])
    misses = _Misses(problem)
    done, total = 0, len(some) * len(legal.clocks_MHz)
    for predicted in predicted_plans(problem, some):
        misses.add(predicted)
        done += len(predicted.plans)
        progress(done, total)
    return misses.advice(legal, len(taken) / max(len(kept), 1))


def _blocks(size: int) -> Iterator[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    for start in range(0, size, _ROWS):
        yield np.arange(start, min(start + _ROWS, size))


def _could_fit(problem: SearchProblem, some: Candidates) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which of some plans fit in a GPU's memory, whatever risk and share the search allows. [P]"""
    plans = some.batch(problem.document)
    return ~room_of(problem, plans, memory_of(problem, plans).peak_B).too_large


@dataclass(frozen=True, kw_only=True)
class _Nearest:
    """The plan that came nearest, and all its values."""

    ratio: float
    index: int
    values: dict[str, float]


class _Misses:
    """How near plans came to limits: those that break one alone, by limit, and the one whose worst excess is least."""

    def __init__(self, problem: SearchProblem) -> None:
        self._problem = problem
        limits = limits_of(problem)
        share = problem.document.limits.memory_share
        limits |= {} if share is None else {"memory_share": share}
        self.limits = limits | {"memory_risk": memory_risk(problem)}
        self._alone: dict[str, _Nearest] = {}
        self._together: _Nearest | None = None

    def add(self, predicted: PredictedPlans) -> None:
        """Look at some plans."""
        values = self._values(predicted)
        ratio_PL = np.stack([values[name] / limit for name, limit in self.limits.items()], axis=1)
        broken_PL = ratio_PL > 1
        broken_PL[:, -1] = ratio_PL[:, -1] >= 1  # a plan is kept below the risk
        self._together = self._nearer(self._together, ratio_PL.max(axis=1), predicted, values)
        alone = broken_PL.sum(axis=1) == 1
        for column, name in enumerate(self.limits):
            ratio_P = np.where(alone & broken_PL[:, column], ratio_PL[:, column], np.inf)
            nearest = self._nearer(self._alone.get(name), ratio_P, predicted, values)
            if nearest is not None:
                self._alone[name] = nearest

    def _values(self, predicted: PredictedPlans) -> dict[str, FloatArray]:
        problem, plans, peak_B = self._problem, predicted.plans, predicted.values["memory_B"]
        likely = fit_probability(problem.architecture, plans, problem.machine, peak_B)
        known = predicted.values | {"memory_share": peak_B / problem.machine.memory_B, "memory_risk": 1 - likely}
        return {name: known[name] for name in self.limits}

    def _nearer(
        self, before: _Nearest | None, ratio_P: FloatArray, predicted: PredictedPlans, values: dict[str, FloatArray]
    ) -> _Nearest | None:
        row = int(ratio_P.argmin())
        ratio, index = float(ratio_P[row]), int(predicted.index_P[row])
        if math.isinf(ratio) or (before is not None and (before.ratio, before.index) <= (ratio, index)):
            return before
        return _Nearest(ratio=ratio, index=index, values={name: float(found[row]) for name, found in values.items()})

    def advice(self, legal: Candidates, share: float) -> Advice:
        """What was found."""
        alone = {name: self._way(legal, self._alone[name], only=name) for name in self.limits if name in self._alone}
        in_vain = tuple(name for name in self._problem.document.limits.given if name not in alone)
        together = None if self._together is None else self._way(legal, self._together)
        return Advice(alone=alone, in_vain=in_vain, together=together, share=share)

    def _way(self, legal: Candidates, nearest: _Nearest, only: str | None = None) -> Way:
        """What a plan needs of the limits that it breaks."""
        plan = self._plan(legal, nearest.index)
        needed = tuple(
            Needed(limit=name, given=limit, needed=_needed(name, nearest.values[name]))
            for name, limit in self.limits.items()
            if (nearest.values[name] > limit if name != "memory_risk" else nearest.values[name] >= limit)
            and only in (None, name)
        )
        return Way(limits=needed, plan_yaml=plan_text(plan), summary=summary(plan))

    def _plan(self, legal: Candidates, index: int) -> Plan:
        """At a place among all candidates."""
        row, clock = divmod(index, len(legal.clocks_MHz))
        return legal.plan(self._problem.document, row, legal.clocks_MHz[clock])


def _needed(name: str, value: float) -> float:
    """The limit that a value keeps: rounded up, so that it does; infinite where none does."""
    if value <= 0:
        return value
    scale = 10.0 ** (_DIGITS - 1 - math.floor(math.log10(value)))
    rounded = math.ceil(value * scale * (1 + 1e-9)) / scale
    return math.inf if name == "memory_share" and rounded > 1 else rounded
