"""The Pareto front of two objectives, such as time and energy, and the members of it that have a name.

Of plans that cost the same, the one that comes first stands for all. "The same" is to ten digits: the last ones of a
float depend on where in a batch a plan was computed, and must not decide who is on the front.

Axes: P plans, F members of the front, O objectives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray

_DIGITS = 10  # later ones depend on the order of sums, and must not decide what is on the front


def to_digits(values: FloatArray) -> FloatArray:
    """Values rounded to ten significant digits; none is negative, and what is nothing stays so (a price of 0)."""
    exponent = np.floor(np.log10(np.where(values > 0, values, 1.0)))
    scale = 10.0 ** (_DIGITS - 1 - exponent)
    return np.asarray(np.round(values * scale) / scale)


def pareto(first_P: FloatArray, second_P: FloatArray) -> IntArray:
    """Indices of the plans that no other plan beats, the best in the first objective first.

    A plan beats another that is no better in either and worse in one of the two. Of one objective that
    is given twice, the best is left.

    Args:
        first_P, second_P: what each plan costs, less is better: such as time and energy.
    """
    first, second = to_digits(first_P), to_digits(second_P)
    order = np.lexsort((np.arange(len(first)), second, first))
    before = np.minimum.accumulate(second[order])
    saves = np.ones(len(order), dtype=np.bool_)
    saves[1:] = second[order][1:] < before[:-1]
    return order[saves]


def picks(costs_FO: FloatArray, *, names: Sequence[str], slack: float) -> dict[str, int]:
    """Members of a front that have a name, by their index on it.

    Args:
        costs_FO: of the front, the best in the first objective first; one or two objectives.
        names: what the best in each objective is called.
        slack: how much worse than the best in the first `..._within` may be, as a share.

    Returns:
        The best in each objective (`fastest`, `least_energy`); the best in the second within the slack of the first
        (`least_energy_within`); `knee`, farthest below the line between the ends where both axes go from 0 to 1 (Das
        1999): what one gains beyond it costs more of the other.
    """
    if costs_FO.shape[1] == 1:
        return {names[0]: 0}
    first, second = costs_FO.T
    within = np.flatnonzero(first <= first[0] * (1 + slack))
    return {
        names[0]: 0,
        f"{names[1]}_within": int(within[-1]),
        "knee": int(np.argmin(_unit(first) + _unit(second))),
        names[1]: len(first) - 1,
    }


def _unit(values: FloatArray) -> FloatArray:
    span = np.ptp(values)
    return np.asarray((values - values.min()) / span if span > 0 else np.zeros_like(values))


def thin(size: int, keep: int, always: Iterable[int]) -> list[int]:
    """Which of `size` members to keep: the two ends and those in `always`, and more of them evenly between."""
    named = {0, size - 1, *always}
    if size <= keep:
        return list(range(size))
    kept = set(named)
    for index in np.linspace(0, size - 1, keep).round().astype(int).tolist():
        if len(kept) < keep:
            kept.add(index)
    return sorted(kept)
