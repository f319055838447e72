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
import pandas as pd

from moemodel.model.network.collectives import Collective
from moemodel.model.records.profile import EXCHANGE, IDLE_LINKS

_LARGE_B = 16 << 20  # assumed: from where on links, not starts, decide what a collective draws


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over rows, its standard deviation among them, and how many there were."""

    value: float
    spread: float
    rows: int


def slowdowns(overlap: pd.DataFrame) -> pd.DataFrame:
    """The table with what each slows the other, and the share of the collective that hides.

    Columns added: `collective_slowdown`; `computation_slowdown`, in clock cycles where the clock is known and counts;
    `hidden`, from 0 to 1.
    """
    table = overlap.copy()
    table["collective_slowdown"] = table["together_collective_time_s"] / table["collective_time_s"]
    clocks = (table["together_clock_Hz"] / table["computation_clock_Hz"]).where(table["computation"] == "gemm")
    table["computation_slowdown"] = (
        table["together_computation_time_s"] / table["computation_time_s"] * clocks.fillna(1.0)
    )
    lost = table["collective_slowdown"] * (1 - 1 / table["computation_slowdown"].clip(lower=1.0))
    table["hidden"] = (1 - lost).clip(0.0, 1.0)
    return table


def hidden_shares(overlap: pd.DataFrame, *, memory_bound: bool) -> dict[Collective, Estimate]:
    """Share of each collective that hides behind products, or behind memory-bound operators."""
    rows = slowdowns(overlap)
    rows = rows[(rows["computation"] != "gemm") == memory_bound]
    return _by_collective(rows, "hidden")


def link_powers(collectives: pd.DataFrame) -> dict[Collective, Estimate]:
    """Power of a GPU above idle while a large collective runs, W; nothing where power was not measured.

    What is idle between two calls that the host could not queue in time draws what idling does.
    """
    held = collectives[collectives["power_W"].notna()]
    idle_W = held.loc[held["collective"] == IDLE_LINKS, "power_W"].mean()
    large = held[held["size_B"] >= _LARGE_B]
    if np.isnan(idle_W) or large.empty:
        return {}
    busy = (large["time_s"] / large["held_time_s"]).clip(upper=1.0)
    return _by_collective(large.assign(above_W=(large["power_W"] - idle_W) / busy), "above_W")


def host_call_s(collectives: pd.DataFrame) -> Estimate | None:
    """Time for the host to queue a collective; None where it was not measured."""
    known = collectives["host_time_s"].dropna()
    known = known[collectives.loc[known.index, "collective"] != EXCHANGE]  # which is two messages in a batch
    return _estimate(known) if len(known) else None


def _by_collective(rows: pd.DataFrame, column: str) -> dict[Collective, Estimate]:
    """Means of a column; an exchange with both neighbours stands for messages where there is nothing else."""
    found: dict[Collective, Estimate] = {}
    for collective in Collective:
        mine = rows[rows["collective"] == str(collective)]
        if mine.empty and collective is Collective.SEND_RECV:
            mine = rows[rows["collective"] == EXCHANGE]
        values = mine[column].dropna()
        if len(values):
            found[collective] = _estimate(values)
    return found


def _estimate(values: pd.Series[float]) -> Estimate:
    return Estimate(value=float(values.median()), spread=float(values.std(ddof=0)), rows=len(values))
