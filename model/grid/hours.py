"""Hours between a start and a deadline, and what is known of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.errors import InputError
from moemodel.model.grid.options import PausedRun
from moemodel.model.grid.series import HOUR, Series
from moemodel.model.grid.times import stamp
from moemodel.model.results.carbon import grid_intensity

_MOST_NAMED = 4  # hours in a message


@dataclass(frozen=True, kw_only=True)
class Hours:
    """Hours between a start and a deadline, the first and the last of which may be cut. [T]

    Attributes:
        begins: each.
        hours: that each lasts.
        carbon: kgCO2eq of a kWh.
        price: of a kWh; None: unknown.
    """

    begins: tuple[datetime, ...]
    hours: FloatArray
    carbon: FloatArray
    price: FloatArray | None


def hours_between(
    run: PausedRun,
    carbon: Series | None,
    price: Series | None,
    start: datetime,
    deadline: datetime,
    fill_hours: int,
    notes: list[str],
) -> Hours:
    """Hours between start and deadline, with what the series, or else the site, say of each."""
    given = [series for series in (carbon, price) if series is not None]
    past = given[0].first - given[0].first.replace(minute=0, second=0, microsecond=0)
    if any((series.first - given[0].first) % HOUR for series in given):
        raise InputError("series: hours of one begin at other minutes than those of the other; allowed: alike")
    first = (start - past).replace(minute=0, second=0, microsecond=0) + past
    count = math.ceil((deadline - first) / HOUR)
    begins = [first + n * HOUR for n in range(count)]
    lasts = [(min(each + HOUR, deadline) - max(each, start)) / HOUR for each in begins]
    site = run.plan.site
    of_carbon = np.full(count, grid_intensity(site.region, key="site.region"))
    of_price = None if site.price_per_kWh is None else np.full(count, site.price_per_kWh)
    if carbon is not None:
        of_carbon = _values(carbon, begins, start, deadline, fill_hours, notes)
    if price is not None:
        of_price = _values(price, begins, start, deadline, fill_hours, notes)
    begins[0] = start
    return Hours(begins=tuple(begins), hours=np.array(lasts), carbon=of_carbon, price=of_price)


def _values(
    series: Series,
    begins: Sequence[datetime],
    start: datetime,
    deadline: datetime,
    fill_hours: int,
    notes: list[str],
) -> FloatArray:
    """Of every hour, filled where a gap is short."""
    if start < series.first or deadline > series.end:
        raise InputError(
            f"series ({series.source}): found hours from {stamp(series.first)} to {stamp(series.end)}; needed: from "
            f"{stamp(start)} to {stamp(deadline)}; give a start and a deadline within them, or a longer series"
        )
    found = np.array([series.values.get(each, math.nan) for each in begins])
    missing = np.isnan(found)
    if not missing.any():
        return found
    filled = _filled(series, begins, found, fill_hours)
    left = np.flatnonzero(np.isnan(filled))
    if len(left):
        named = ", ".join(f"{begins[t]:%Y-%m-%d %H:%M}" for t in left[:_MOST_NAMED])
        raise InputError(
            f"series ({series.source}): {len(left)} of {len(begins)} hours are missing: {named}"
            f"{', ...' if len(left) > _MOST_NAMED else ''} UTC; --fill-gaps HOURS fills gaps of up to so many hours "
            "by a straight line"
        )
    notes.append(f"{int(missing.sum())} hours that are missing in {series.source} are filled by straight lines.")
    return filled


def _filled(series: Series, begins: Sequence[datetime], found: FloatArray, fill_hours: int) -> FloatArray:
    """Gaps of up to so many hours between two that are known, also beyond the ends."""
    known = sorted(series.values)
    at_h = np.array([(each - known[0]) / HOUR for each in known])
    wanted_h = np.array([(each - known[0]) / HOUR for each in begins])
    right = np.clip(np.searchsorted(at_h, wanted_h), 1, len(at_h) - 1)
    gap_h = at_h[right] - at_h[right - 1] - 1
    line = np.interp(wanted_h, at_h, [series.values[each] for each in known])
    return np.where(np.isnan(found) & (gap_h <= fill_hours), line, found)
