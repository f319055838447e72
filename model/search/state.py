"""What a search has seen: who was refused and why, how near the nearest came, and the front so far.

A plan counts once, for the first thing that refuses it, so that the counts add up. Axes: P plans, each at one clock.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray, where_largest
from moemodel.model.core.threads import in_threads
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.spec import Plan
from moemodel.model.schedule.pipeline_layout import rows_by_pipeline
from moemodel.model.search.candidates import Candidates, Refused
from moemodel.model.search.pareto import pareto, to_digits
from moemodel.model.search.problem import SearchProblem, costs_of, limits_of, memory_of, summary
from moemodel.model.search.room import Room, memory_B, memory_risk, room_of
from moemodel.model.step.memory import Memory

_ROWS = 50000  # plans whose memory is counted at once, as `model.search.search` predicts them
_MAIN_REASONS = 6  # that are named where nothing is feasible
MOST_NEXT = 100  # plans behind the front that a search may keep
# Best combinations remembered, whatever their clock, from which those on the front are then taken out. Assumed: a front
# holds no more than 64 combinations of them; where it does, fewer are kept behind it.
_TOP_K = 64 + MOST_NEXT


_SAME = 1e-9  # of a cost: no less than to how many digits a front tells costs apart (`model.search.pareto`)


@dataclass(frozen=True, kw_only=True)
class PredictedPlans:
    """Some plans of a search, predicted.

    Attributes:
        index_P: place of each among all candidates; it decides between plans that cost the same.
        plans: the plans.
        values: of each, all that can be optimized or limited, by its name.
    """

    index_P: IntArray
    plans: PlanBatch
    values: dict[str, FloatArray]


class SearchState:
    """What a search has seen so far: who was refused and why, how near the nearest came, and the front."""

    def __init__(self, problem: SearchProblem, legal: Candidates) -> None:
        self.problem = problem
        self.legal = legal
        self.limits = limits_of(problem)
        self.refused = list(legal.refused)
        self.predicted = 0
        self.feasible = 0
        self.outdone = 0
        self.index = np.zeros(0, dtype=np.int64)
        self.costs_FO = np.zeros((0, len(problem.objectives)))
        self._top_k = np.zeros(0, dtype=np.int64)
        self._top_k_cost = np.zeros(0)
        self.nearest = ""
        self._nearest_ratio = math.inf
        self._least_memory = math.inf, 0
        self._over = dict.fromkeys(self.limits, 0)

    def keep_fitting(self, legal: Candidates, progress: Callable[[int, int], None] = lambda *_: None) -> Candidates:
        """The plans that fit in memory; the others are counted, by the largest term and by the limit.

        Args:
            legal: all candidates.
            progress: is told how many of how many are done.
        """
        if not legal.clocks_MHz:  # all refused already
            return legal
        kept, terms, over, risky, done = np.zeros(len(legal), dtype=np.bool_), Counter[str](), 0, 0, 0
        parts = rows_by_pipeline([legal.columns[name] for name in ("pp", "virtual_stages", "schedule")], _ROWS)
        for rows, some, peak_B, largest, room in in_threads(partial(_in_memory, self.problem, legal), parts):
            done += len(rows)
            progress(done, len(legal))
            kept[rows] = room.kept
            terms.update(largest[room.too_large].tolist())
            over, risky = over + int(room.over.sum()), risky + int(room.risky.sum())
            self._near_in_memory(some, peak_B, largest)
        self._count_memory(terms, over, risky)
        return legal.take(kept)

    def _count_memory(self, terms: Counter[str], over: int, risky: int) -> None:
        clocks = len(self.legal.clocks_MHz)
        self.refused += [
            Refused(
                key=f"memory_{name}",
                message=f"does not fit in memory (largest term {name.replace('_', ' ')})",
                plans=count * clocks,
            )
            for name, count in sorted(terms.items(), key=lambda term: (-term[1], term[0]))
        ]
        if risky:
            message = f"may not fit in memory (limits.memory_risk {memory_risk(self.problem):g})"
            self.refused.append(Refused(key="memory_risk", message=message, plans=risky * clocks))
        share = self.problem.document.limits.memory_share
        if over and share is not None:
            message = f"limits.memory_share {share:g}"
            self.refused.append(Refused(key="memory_share", message=message, plans=over * clocks))

    def _near_in_memory(self, some: Candidates, peak_B: FloatArray, largest: NDArray[np.str_]) -> None:
        """Remember the plan that needs least memory, the first of equals; it is told of where nothing fits."""
        row = int(peak_B.argmin())
        needs = float(peak_B[row]), int(some.index[row])
        if needs >= self._least_memory:
            return
        self._least_memory = needs
        there_B = min(memory_B(self.problem), self.problem.machine.memory_B)
        self.nearest = (
            f"{summary(some.plan(self.problem.document, row, None))} needs {peak_B[row] / 1e9:.1f} GB of "
            f"{there_B / 1e9:.1f} GB; the largest term is {str(largest[row]).replace('_', ' ')}"
        )

    def add(self, predicted: PredictedPlans) -> None:
        """Count one batch, and merge its best into the front."""
        self.predicted += len(predicted.plans)
        within = np.ones(len(predicted.plans), dtype=np.bool_)
        worst = np.zeros(len(predicted.plans))
        for name, limit in self.limits.items():
            ratio = predicted.values[name] / limit
            held = ratio <= 1
            self._over[name] += int((within & ~held).sum())
            within &= held
            worst = np.maximum(worst, ratio)
        self.feasible += int(within.sum())
        if not within.any():
            self._near_limits(predicted, worst)
        index, costs = predicted.index_P[within], costs_of(self.problem, predicted.values)[within]
        self._merge(index, costs)
        self._update_top_k(index, costs[:, 0])

    def beaten(self, least_PO: FloatArray) -> BoolArray:
        """Combinations that are beaten at every clock, by their least costs: by one plan of the front in all
        objectives, and in the first one by all that may be kept behind it. [P]"""
        if not len(self.index) or len(self._top_k) < _TOP_K:
            return np.zeros(len(least_PO), dtype=np.bool_)
        least = least_PO * (1 - _SAME)
        better = np.searchsorted(self.costs_FO[:, 0], least[:, 0]) - 1  # the last of the front that is better in it
        beaten = (better >= 0) & (self.costs_FO[np.maximum(better, 0), -1] < least[:, -1])
        return np.asarray(beaten & (least[:, 0] > self._top_k_cost.max()))

    def rule_out(self, combinations: int, limit: str | None = None) -> None:
        """Count combinations that were not predicted, at all clocks: beaten, or beyond a limit at all of them."""
        plans = combinations * len(self.legal.clocks_MHz)
        if limit is None:
            self.outdone += plans
        else:
            self._over[limit] += plans

    def _near_limits(self, predicted: PredictedPlans, worst: FloatArray) -> None:
        """Remember the plan that exceeds the limits least; it is told of where none keeps them."""
        row = int(worst.argmin())
        if worst[row] >= self._nearest_ratio:
            return
        self._nearest_ratio = float(worst[row])
        found = ", ".join(
            f"{name} {predicted.values[name][row]:.4g} (limit {limit:g})"
            for name, limit in self.limits.items()
            if predicted.values[name][row] > limit
        )
        self.nearest = f"{summary(self.plan(int(predicted.index_P[row])))} has {found}"

    def _merge(self, index_P: IntArray, costs_PO: FloatArray) -> None:
        index = np.concatenate([self.index, index_P])
        costs = np.concatenate([self.costs_FO, costs_PO])
        order = np.argsort(index)  # batches come in any order; ties go to the first candidate
        best = order[pareto(costs[order, 0], costs[order, -1])]
        self.index, self.costs_FO = index[best], costs[best]

    def _update_top_k(self, index_P: IntArray, cost_P: FloatArray) -> None:
        """Merge the best combinations in the first objective, each at its best clock; all clocks come in one batch."""
        index = np.concatenate([self._top_k, index_P])
        cost = np.concatenate([self._top_k_cost, cost_P])
        order = np.lexsort((index, to_digits(cost)))
        _, first = np.unique(index[order] // len(self.legal.clocks_MHz), return_index=True)
        best = order[np.sort(first)[:_TOP_K]]
        self._top_k, self._top_k_cost = index[best], cost[best]

    def next_best(self, most: int) -> IntArray:
        """Places of the best plans in the first objective whose combination is not on the front at any clock."""
        clocks = len(self.legal.clocks_MHz)
        return self._top_k[~np.isin(self._top_k // clocks, self.index // clocks)][:most]

    def plan(self, index: int, name: str | None = None) -> Plan:
        """The plan at a place among all candidates."""
        row, clock = divmod(index, len(self.legal.clocks_MHz))
        plan = self.legal.plan(self.problem.document, row, self.legal.clocks_MHz[clock])
        return plan if name is None else plan.model_copy(update={"name": name})

    def refusals(self) -> tuple[Refused, ...]:
        """Everything refused, in the order in which it was asked."""
        over = [
            Refused(key=name, message=f"limits.{name} {self.limits[name]:g}", plans=count)
            for name, count in self._over.items()
            if count
        ]
        return (*self.refused, *over)

    def infeasible_message(self) -> str:
        """What to say where no plan is feasible."""
        found = sorted(self.refusals(), key=lambda refusal: -refusal.plans)
        reasons = "; ".join(f"{refusal.plans:,} {refusal.message}" for refusal in found[:_MAIN_REASONS])
        more = f"; and {len(found) - _MAIN_REASONS} more reasons" if len(found) > _MAIN_REASONS else ""
        nearest = f" The nearest miss: {self.nearest}." if self.nearest else ""
        return f"no plan is feasible. Of {self.legal.total:,} combinations: {reasons}{more}.{nearest}"


def _in_memory(
    problem: SearchProblem, legal: Candidates, rows: IntArray
) -> tuple[IntArray, Candidates, FloatArray, NDArray[np.str_], Room]:
    """Some candidates: their rows, themselves, their peaks, the largest term of each, and what becomes of it."""
    some = legal.take(rows)
    plans = some.batch(problem.document)
    memory = memory_of(problem, plans)
    return rows, some, memory.peak_B, _largest_terms(memory), room_of(problem, plans, memory.peak_B)


def _largest_terms(memory: Memory) -> NDArray[np.str_]:
    """Name of the largest term of each plan. [P]"""
    names = np.array(list(memory.terms_B))
    return np.asarray(names[where_largest(list(memory.terms_B.values())) // len(memory.peak_B)])
