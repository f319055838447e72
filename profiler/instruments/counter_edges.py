"""The instants at which an energy counter was seen to change, as columns.

`counter_reading` finds them; what computes with them is here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moemodel.model.core.arrays import FloatArray
from moemodel.profiler.instruments.counter_reading import Edge

FEWEST_REGULAR = 8  # edges; a line through fewer says little of their rhythm


@dataclass(frozen=True, kw_only=True)
class CounterEdges:
    """The instants at which an energy counter was seen to change.

    Attributes:
        time_s: middle of the two readings between which it changed.
        width_s: time between these two readings.
        energy_J: the counter just after.
    """

    time_s: FloatArray
    width_s: FloatArray
    energy_J: FloatArray

    @classmethod
    def of(cls, time_s: ArrayLike, energy_J: ArrayLike, width_s: ArrayLike = 0.005) -> CounterEdges:
        """Edges from anything that makes arrays."""
        times_s, energies_J = np.asarray(time_s, dtype=float), np.asarray(energy_J, dtype=float)
        widths_s = np.broadcast_to(np.asarray(width_s, dtype=float), times_s.shape)
        return cls(time_s=times_s, width_s=widths_s, energy_J=energies_J)

    @classmethod
    def from_edges(cls, edges: Iterable[Edge]) -> CounterEdges:
        """Edges in order of time, none of them too."""
        time_s, width_s, energy_J = np.array(list(edges), dtype=float).reshape(-1, 3).T
        return cls(time_s=time_s, width_s=width_s, energy_J=energy_J)


def regular_times(time_s: FloatArray, width_s: FloatArray, fewest: int = FEWEST_REGULAR) -> FloatArray:
    """Edge times, made more exact by straight lines where the counter ticks at a steady rhythm.

    Each edge is known to within its width; a line through n of them to about width / sqrt(12 n). A stretch that no line
    goes through, edge by edge and in the mean, is tried in halves; those of fewer than `fewest` stay as they are.
    """
    if len(time_s) < fewest:
        return time_s
    gaps_s = np.diff(time_s)
    ticks = np.concatenate(([0.0], np.cumsum(np.round(gaps_s / np.median(gaps_s)))))
    half_s = width_s / 2 + 1e-4  # assumed: a tick's own jitter is 0.1 ms
    slope, start = np.polyfit(ticks, time_s, 1, w=1 / half_s)
    line_s = np.asarray(start + slope * ticks)
    miss = np.abs(line_s - time_s) / half_s  # even between 0 and 1 if the rhythm is steady: mean square 1/3
    # the mean square of n even chances spreads by 0.3 / sqrt(n): three times that may be, and 3 % may miss (assumed)
    if np.mean(miss**2) <= (1 + 3 / np.sqrt(len(miss))) / 3 and np.mean(miss <= 1.2) >= 0.97:
        return line_s
    middle = len(time_s) // 2
    halves = [regular_times(time_s[half], width_s[half], fewest) for half in (slice(middle), slice(middle, None))]
    return np.asarray(np.maximum.accumulate(np.concatenate(halves)))
