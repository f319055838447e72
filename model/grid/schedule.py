"""A run against an hourly series: the schedule, what it takes, and what it saves over running at once.

    carbon, price of every hour --+
    plan at every clock ----------+--> optimum --> segments --> totals, beside those of running at once
    checkpoint, start, idle ------+

Every figure of a schedule is the sum over its segments, priced one by one; the optimisation only chooses them.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from io import StringIO
from typing import Any, Literal

from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.grid.hours import Hours, hours_between
from moemodel.model.grid.notes import notes_on
from moemodel.model.grid.optimum import Slots, cheapest
from moemodel.model.grid.options import PausedRun
from moemodel.model.grid.segments import Pricing, Segment, Totals, of_optimum, stretches_of
from moemodel.model.grid.series import HOUR, Series
from moemodel.model.grid.times import stamp

Minimise = Literal["carbon", "cost"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When a run is on, and how fast; and running it at once beside it.

    Attributes:
        run: the plan, at its clocks.
        series: what was minimised comes from the first of them.
        minimised: carbon or cost.
        start, deadline: UTC.
        hours: between them.
        segments, at_once: all that is done, in order; running at once `at_once_clock`, a place among the clocks.
        totals, at_once_totals: sums over them.
        gap: how much less another schedule may take, as a share; 0: none.
        notes: what to know before relying on this.
    """

    run: PausedRun
    series: tuple[Series, ...]
    minimised: Minimise
    start: datetime
    deadline: datetime
    hours: Hours
    segments: tuple[Segment, ...]
    totals: Totals
    at_once: tuple[Segment, ...]
    at_once_clock: int
    at_once_totals: Totals
    gap: float
    notes: tuple[str, ...]

    @property
    def later_h(self) -> float:
        """How much later it ends than running at once."""
        return (self.totals.ends - self.at_once_totals.ends) / HOUR

    def saved(self) -> dict[str, float | None]:
        """Shares of running at once that are saved: of emissions, cost and energy; negative: more is taken."""
        pairs = {
            "emissions": (self.totals.emissions_kg, self.at_once_totals.emissions_kg),
            "cost": (self.totals.cost, self.at_once_totals.cost),
            "energy": (self.totals.energy_kWh, self.at_once_totals.energy_kWh),
        }
        return {name: None if not then or now is None else 1 - now / then for name, (now, then) in pairs.items()}

    def stretches(self) -> list[tuple[Segment, ...]]:
        """What is done without a pause."""
        return stretches_of(self.segments)

    def clock_name(self, clock: int | None) -> str:
        """What a clock is called."""
        return "" if clock is None else self.run.clocks[clock].name

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for `json.dumps`; units in the names, times in UTC."""
        return {
            "plan": self.run.plan.name,
            "minimised": self.minimised,
            "series": [{"source": s.source, "unit": s.unit.said, "zone": s.zone} for s in self.series],
            "start": self.start.isoformat(),
            "deadline": self.deadline.isoformat(),
            "currency": self.run.plan.site.currency,
            "when_off": self.run.when_off,
            "start_s": self.run.start_s,
            "checkpoint_s": self.run.checkpoint_s,
            "standing_power_kW": self.run.standing_kW,
            "off_power_kW": self.run.off_kW,
            "clocks": [
                {
                    "clock": o.name,
                    "clock_MHz": o.clock_MHz,
                    "is_own": o.is_own,
                    "run_hours": o.hours,
                    "power_kW": o.power_kW,
                }
                for o in self.run.clocks
            ],
            "at_once": {"clock": self.clock_name(self.at_once_clock)} | self.at_once_totals.to_json(),
            "schedule": self.totals.to_json(),
            "saved": self.saved() | {"later_h": self.later_h},
            "not_proved_share": self.gap,
            "segments": [self._row(segment) for segment in self.segments],
            "notes": list(self.notes),
        }

    def to_csv(self) -> str:
        """Segments, a line each, with a first line of names."""
        text = StringIO()
        rows = [self._row(segment) for segment in self.segments]
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def _row(self, s: Segment) -> dict[str, Any]:
        price = self.hours.price
        return {
            "begins_utc": s.begins.isoformat(),
            "ends_utc": s.ends.isoformat(),
            "does": s.does,
            "clock": self.clock_name(s.clock),
            "clock_MHz": None if s.clock is None else self.run.clocks[s.clock].clock_MHz,
            "hours": s.hours,
            "share_of_run": s.share,
            "tokens": s.share * self.run.clocks[0].run.tokens,
            "energy_kWh": s.energy_kWh,
            "carbon_kgCO2eq_per_kWh": float(self.hours.carbon[s.hour]),
            "emissions_kgCO2eq": s.emissions_kg,
            "price_per_kWh": None if price is None else float(price[s.hour]),
            "cost": s.cost,
        }


def schedule(
    run: PausedRun,
    series: Sequence[Series],
    *,
    start: datetime,
    deadline: datetime,
    minimise: Minimise | None = None,
    fill_hours: int = 0,
    seconds: float = 60.0,
) -> Schedule:
    """The schedule of a run that takes least carbon, or costs least.

    Args:
        run: of `paused_run`.
        series: one of carbon, one of price, or both.
        start, deadline: UTC; between them the run has to take place.
        minimise: None: what the first series is of.
        fill_hours: longest gap in a series that is filled by a straight line.
        seconds: for the optimisation, see `optimum.cheapest`.

    Raises:
        InputError: series of the same kind, hours missing in them, or a cost that nothing has a price for.
        InfeasiblePlanError: the run does not end by the deadline; by how much that has to move.
    """
    kinds = {one.unit.kind: one for one in series}
    if not series or len(kinds) < len(series):
        raise InputError("series: allowed: one of carbon intensity, one of price, or one of each")
    minimised: Minimise = minimise or ("carbon" if series[0].unit.kind == "carbon" else "cost")
    _check_currency(run, kinds.get("price"))
    notes: list[str] = []
    hours = hours_between(run, kinds.get("carbon"), kinds.get("price"), start, deadline, fill_hours, notes)
    if minimised == "cost" and hours.price is None:
        raise InputError(
            "minimise: found cost; electricity has no price: give a series of prices or site.price_per_kWh"
        )
    _refuse_too_late(run, start, deadline)
    weight = hours.carbon if minimised == "carbon" or hours.price is None else hours.price
    machine = run.machine(hourly_cost=run.hourly_cost if minimised == "cost" else 0.0)
    found = cheapest(Slots(hours=hours.hours, weight=weight), machine, seconds=seconds)
    if found is None:
        raise InfeasiblePlanError(f"schedule: none that begins at {stamp(start)} ends by {stamp(deadline)}")
    pricing = Pricing(run, hours)
    segments = tuple(of_optimum(found, pricing))
    own = pricing.fits_at_once(0)
    at_once_clock = 0 if own else int(machine.share_per_h.argmax())
    at_once = tuple(pricing.at_once(at_once_clock))
    return Schedule(
        run=run,
        series=tuple(series),
        minimised=minimised,
        start=start,
        deadline=deadline,
        hours=hours,
        segments=segments,
        totals=Totals.of(segments),
        at_once=at_once,
        at_once_clock=at_once_clock,
        at_once_totals=Totals.of(at_once),
        gap=found.gap,
        notes=tuple(notes_on(run, series, hours, segments, found, notes, deadline=deadline, own=own)),
    )


def _check_currency(run: PausedRun, price: Series | None) -> None:
    currency = run.plan.site.currency
    if price is not None and price.unit.currency != currency.upper():
        raise InputError(
            f"series ({price.source}): found prices in {price.unit.currency}; allowed: {currency}, the plan's "
            "site.currency; give that of the series"
        )


def _refuse_too_late(run: PausedRun, start: datetime, deadline: datetime) -> None:
    """Refuse a run that does not end in time however it is run.

    Raises:
        InfeasiblePlanError: by how much the deadline has to move.
    """
    fastest = min(run.clocks, key=lambda option: option.hours)
    needs_h = (run.start_s + run.checkpoint_s) / 3600 + fastest.hours
    has_h = (deadline - start) / HOUR
    if needs_h <= has_h:
        return
    ends = start + timedelta(hours=needs_h)
    slow_h = needs_h + fastest.hours * (fastest.slow_ratio - 1)
    raise InfeasiblePlanError(
        f"deadline: the run takes {needs_h:,.1f} hours without a pause at its fastest clock ({fastest.name}), "
        f"and there are {has_h:,.1f} from {stamp(start)} to {stamp(deadline)}; the deadline has to move by "
        f"{needs_h - has_h:,.1f} hours, to {stamp(ends)} at least; by {slow_h - has_h:,.1f} where steps take as long "
        "as the 90 % interval reaches"
    )
