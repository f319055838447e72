"""What a collective costs beside computation, and what it draws, from what was measured.

A collective of time T that runs beside more computation than hides it takes s_c T, and in that time computation gets
on as far as it would alone in s_c T / s_k, where s_c and s_k are how much each slows the other. So T lengthens the
computation by

    s_c T (1 - 1/s_k)        and of T is hidden        1 - s_c (1 - 1/s_k)

Under a power cap both also lose clock, which the model reckons by itself from power; so s_k of a matrix product is
taken in clock cycles, not in seconds. Memory-bound operators don't follow the clock and are taken in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moemodel.calibration.store.profile_tables import CollectiveTable, OverlapTable
from moemodel.model.core.arrays import FloatArray, StringArray, known_or, take_rows
from moemodel.model.network.collectives import Collective
from moemodel.model.records.profile import EXCHANGE, IDLE_LINKS

_LARGE_B = 16 << 20  # assumed: from where on links, not starts, decide what a collective draws


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over rows, its standard deviation among them, and how many there were."""

    value: float
    spread: float
    rows: int


@dataclass(frozen=True, kw_only=True)
class Slowdowns:
    """What a collective and a computation beside each other slow each other, of each row.

    Attributes:
        collective: of the collective.
        computation: of the computation, in clock cycles where the clock is known and counts.
        hidden: share of the collective that hides, from 0 to 1.
    """

    collective: FloatArray
    computation: FloatArray
    hidden: FloatArray


def slowdowns(overlap: OverlapTable) -> Slowdowns:
    """What each slows the other, and the share of the collective that hides."""
    collective = overlap.together_collective_time_s / overlap.collective_time_s
    clocks = np.where(overlap.computation == "gemm", overlap.together_clock_Hz / overlap.computation_clock_Hz, np.nan)
    computation = overlap.together_computation_time_s / overlap.computation_time_s * known_or(clocks, 1.0)
    lost = collective * (1 - 1 / np.maximum(computation, 1.0))
    return Slowdowns(collective=collective, computation=computation, hidden=np.clip(1 - lost, 0.0, 1.0))


def hidden_shares(overlap: OverlapTable, *, memory_bound: bool) -> dict[Collective, Estimate]:
    """Share of each collective that hides behind products, or behind memory-bound operators."""
    rows = take_rows(overlap, (overlap.computation != "gemm") == memory_bound)
    return _by_collective(rows.collective, slowdowns(rows).hidden)


def link_powers(collectives: CollectiveTable) -> dict[Collective, Estimate]:
    """Power of a GPU above idle while a large collective runs, W; nothing where power was not measured.

    What is idle between two calls that the host could not queue in time draws what idling does.
    """
    held = take_rows(collectives, ~np.isnan(collectives.power_W))
    idle_W = held.power_W[held.collective == IDLE_LINKS]
    large = take_rows(held, held.size_B >= _LARGE_B)
    if not len(idle_W) or not len(large):
        return {}
    busy = np.minimum(large.time_s / large.held_time_s, 1.0)
    # a collective draws no less than idling does, whatever two readings say
    return _by_collective(large.collective, np.maximum(large.power_W - idle_W.mean(), 0.0) / busy)


def host_call_s(collectives: CollectiveTable) -> Estimate | None:
    """Time for the host to queue a collective; None where it was not measured."""
    one = collectives.collective != EXCHANGE  # which is two messages in a batch
    known_s = collectives.host_time_s[one & ~np.isnan(collectives.host_time_s)]
    return _estimate(known_s) if len(known_s) else None


def _by_collective(collectives: StringArray, values: FloatArray) -> dict[Collective, Estimate]:
    """Means of values, NaN left out; an exchange with both neighbours stands for messages where there is nothing
    else."""
    found: dict[Collective, Estimate] = {}
    for collective in Collective:
        mine = collectives == str(collective)
        if not mine.any() and collective is Collective.SEND_RECV:
            mine = collectives == EXCHANGE
        known = values[mine & ~np.isnan(values)]
        if len(known):
            found[collective] = _estimate(known)
    return found


def _estimate(values: FloatArray) -> Estimate:
    return Estimate(value=float(np.median(values)), spread=float(np.std(values)), rows=len(values))
