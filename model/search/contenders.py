"""Which plans of a large space are worth predicting: those that a bound does not show to be beaten.

A bound on what each combination takes at least, at whatever clock (`predict.bounds`), costs a tenth of a prediction at
one clock. Those that look best are predicted first; then all that the front so far does not beat even at their bound,
a batch at a time. What is left was beaten by a plan that was predicted: the front is that of the whole space, and so
are the plans kept behind it. Objectives that a bound says nothing of (power) rule nothing out.

Axes: P combinations, whatever their clock; O objectives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.predict.bounds import lower_bounds
from moemodel.model.search.candidates import Candidates
from moemodel.model.search.problem import SearchProblem, costs_of, memory_of, rising_values
from moemodel.model.search.quantities import QUANTITIES
from moemodel.model.search.state import SearchState

_ROWS = 400_000  # combinations whose bounds are found at once: what they share is priced once
_FIRST = 60  # combinations that look best in each of several respects, predicted first
_NEXT = 500  # combinations that are predicted at once then; each batch may beat many of the others
_MOST_AT_ONCE = 2_000
_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the first of two objectives, in logarithms


def contenders(
    problem: SearchProblem,
    fitting: Candidates,
    state: SearchState,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Iterator[Candidates]:
    """Combinations to predict, some at a time; whoever takes them adds them to the state before taking more.

    Args:
        problem: the search.
        fitting: combinations that fit in memory.
        state: what was seen so far; it is told of those that need not be predicted.
        progress: is told how many bounds of how many are found.
    """
    least_PO = np.full((len(fitting), len(problem.objectives)), np.inf)
    for start in range(0, len(fitting), _ROWS):
        progress(start, len(fitting))
        rows = np.arange(start, min(start + _ROWS, len(fitting)))
        least_PO[rows] = _least_costs(problem, fitting.take(rows), state)
    left = np.flatnonzero(np.isfinite(least_PO[:, 0]))
    first = left[_promising(least_PO[left])]
    left = np.setdiff1d(left, first, assume_unique=True)
    if len(first):
        yield fitting.take(first)
    left = left[np.argsort(np.log(np.maximum(least_PO[left], _NOTHING)).sum(axis=1), kind="stable")]
    at_once = _NEXT
    while len(left):
        beaten = state.beaten(least_PO[left])
        state.rule_out(int(beaten.sum()))
        left = left[~beaten]
        if len(left):
            yield fitting.take(left[:at_once])
        left, at_once = left[at_once:], min(2 * at_once, _MOST_AT_ONCE)


_NOTHING = 1e-300  # in place of a cost of nothing, which has no logarithm


def _least_costs(problem: SearchProblem, some: Candidates, state: SearchState) -> FloatArray:
    """What combinations cost at least, infinite those that keep a limit at no clock. [P, O]"""
    plans = some.batch(problem.document)
    bounds = lower_bounds(problem.architecture, plans, problem.machine)
    least = rising_values(problem, plans, bounds.step_time_s, bounds.energy_J if problem.has_power else None)
    if "memory_B" in problem.objectives:
        least["memory_B"] = memory_of(problem, plans).peak_B
    unknown = np.zeros(len(plans))
    costs_PO = costs_of(problem, {name: least.get(name, unknown) for name in problem.objectives})
    within = np.ones(len(plans), dtype=np.bool_)
    for name, limit in state.limits.items():
        if name in least and not (name in QUANTITIES and QUANTITIES[name].higher_is_better):
            over = within & (least[name] > limit)
            state.rule_out(int(over.sum()), name)
            within &= ~over
    return np.where(within[:, None], costs_PO, np.inf)


def _promising(least_PO: FloatArray) -> IntArray:
    """Rows of the combinations with the least bounds: in either objective, and in what lies between. [some]"""
    logs = np.log(np.maximum(least_PO, _NOTHING))
    ways = [weight * logs[:, 0] + (1 - weight) * logs[:, -1] for weight in _WEIGHTS]
    most = min(_FIRST, len(logs))
    if not most:
        return np.zeros(0, dtype=np.int64)
    return np.unique(np.concatenate([np.argpartition(way, most - 1)[:most] for way in ways]))
