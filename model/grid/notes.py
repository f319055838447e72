"""What to know before relying on a schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

import numpy as np

from moemodel.model.core.errors import InputError
from moemodel.model.grid.hours import Hours
from moemodel.model.grid.optimum import Optimum
from moemodel.model.grid.options import PausedRun
from moemodel.model.grid.segments import Segment
from moemodel.model.grid.series import HOUR, Series
from moemodel.model.results.regions import find_region

_GAP_WORTH_SAYING = 1e-4


def notes_on(
    run: PausedRun,
    series: Sequence[Series],
    hours: Hours,
    segments: Sequence[Segment],
    found: Optimum,
    filled: Sequence[str],
    *,
    deadline: datetime,
    own: bool,
) -> Iterator[str]:
    for one in series:
        yield from one.notes
        yield from _other_place(run, one)
    yield from filled
    kinds = {one.unit.kind for one in series}
    site = run.plan.site
    if "carbon" not in kinds:
        yield f"Emissions are of the yearly mean of {site.region} (site.region), every hour alike."
    if "price" not in kinds:
        if site.price_per_kWh is not None:
            price = f"{site.price_per_kWh:g} {site.currency}"
            yield f"Electricity costs {price} a kWh (site.price_per_kWh), every hour alike."
        elif site.gpu_hour_price:
            yield "The cost is without electricity: give a series of prices, or site.price_per_kWh."
    yield from run.notes
    if not own:
        yield "At the plan's own clock the run does not end in time; running at once is at its fastest."
    if any(s.clock is not None and not run.clocks[s.clock].is_own for s in segments):
        yield "Slower hours rest on predictions at locked clocks, which need permission to be set on a real GPU."
    yield from _slack(run, segments, deadline)
    if found.gap > _GAP_WORTH_SAYING:
        yield f"Time ran out: another schedule may take up to {found.gap:.1%} less of what was minimised."
    if run.plan.failures is not None:
        yield "Failures are counted as they are on average: hours and power are expected values."
    yield "A series of the past says what would have been best; of days to come it has to be a forecast."
    if float(np.ptp(hours.carbon)) == 0 and (hours.price is None or float(np.ptp(hours.price)) == 0):
        yield "All hours are alike, so that only the clock can save anything."


def _slack(run: PausedRun, segments: Sequence[Segment], deadline: datetime) -> Iterator[str]:
    """What a slower machine makes of the deadline."""
    ratio = run.clocks[0].slow_ratio
    if ratio <= 1:
        return
    ends = max(s.ends for s in segments if s.does in ("checkpoint", "train"))
    left_h = (1 - 1 / ratio) * min(option.hours for option in run.clocks) * ratio
    spare_h = (deadline - ends) / HOUR
    late = f", {left_h - spare_h:,.1f} hours after the deadline" if left_h > spare_h else ", before the deadline"
    yield (
        f"If steps take as long as the 90 % interval reaches ({ratio - 1:.0%} longer), {1 - 1 / ratio:.0%} of the run "
        f"is left when the schedule ends: {left_h:,.1f} hours more at the fastest clock{late}. Plan anew as it goes."
    )


def _other_place(run: PausedRun, series: Series) -> Iterator[str]:
    """A series of another place than the plan's."""
    if series.zone is None:
        return
    try:
        zone, site = find_region(series.zone), find_region(run.plan.site.region)
    except InputError:
        return
    if site.code != "world" and zone.country != site.country:
        yield (
            f"The series is of {series.zone} ({zone.name}), the plan's site.region is {run.plan.site.region} "
            f"({site.name}): the series is taken."
        )
