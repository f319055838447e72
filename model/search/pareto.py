"""The Pareto front of time and energy, and the members of it that have a name.

Of plans that cost the same, the one that comes first stands for all. "The same" is to ten digits: the last ones of a
float depend on where in a batch a plan was computed, and must not decide who is on the front.

Axes: P plans, F members of the front, fastest first.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray

_DIGITS = 10  # later ones depend on the order of sums, and must not decide what is on the front


def to_digits(values: FloatArray) -> FloatArray:
    """Positive values rounded to ten significant digits."""
    exponent = np.floor(np.log10(values))
    scale = 10.0 ** (_DIGITS - 1 - exponent)
    return np.asarray(np.round(values * scale) / scale)


def pareto(time_s_P: FloatArray, energy_J_P: FloatArray) -> IntArray:
    """Indices of the plans that no other plan beats, fastest first.

    A plan beats another that is no faster and needs no less energy, and is worse in one of the two.
    """
    time, energy = to_digits(time_s_P), to_digits(energy_J_P)
    order = np.lexsort((np.arange(len(time)), energy, time))
    before = np.minimum.accumulate(energy[order])
    saves = np.ones(len(order), dtype=np.bool_)
    saves[1:] = energy[order][1:] < before[:-1]
    return order[saves]


def picks(time_s_F: FloatArray, energy_J_F: FloatArray, *, slack: float) -> dict[str, int]:
    """Members of a front that have a name, by their index on it.

    Args:
        time_s_F, energy_J_F: the front, fastest first.
        slack: how much slower than the fastest `least_energy_within` may be, as a share.

    Returns:
        `fastest`; `least_energy`; `least_energy_within` the slack; `knee`, farthest below the line between the ends
        where both axes go from 0 to 1 (Das 1999): what one gains beyond it costs more of the other.
    """
    within = np.flatnonzero(time_s_F <= time_s_F[0] * (1 + slack))
    return {
        "fastest": 0,
        "least_energy_within": int(within[-1]),
        "knee": int(np.argmin(_unit(time_s_F) + _unit(energy_J_F))),
        "least_energy": len(time_s_F) - 1,
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


def overlapping(low_F: FloatArray, high_F: FloatArray) -> BoolArray:
    """Which intervals overlap which others, [F, F]."""
    return np.asarray((low_F[:, None] <= high_F[None, :]) & (low_F[None, :] <= high_F[:, None]))
