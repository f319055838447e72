"""`moemodel schedule`: when to run, to pause and to slow the clocks against an hourly series."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moemodel import api
from moemodel.cli.output import Finite, bullets, console, digits, echo, echo_json, table, working

if TYPE_CHECKING:
    from rich.table import Table

    from moemodel.model.grid.options import Clocks
    from moemodel.model.grid.schedule import Schedule
    from moemodel.model.grid.segments import Segment, Totals

_MARKS = "#=-"  # of the fastest clock in use, of the next, and of all slower ones
_STRETCHES_SHOWN = 12
_LEVELS = 9  # digits of the line of carbon or price


class _ClockList(click.ParamType[object]):
    """measured, plan, or clocks in MHz."""

    name = "clocks"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Clocks:
        text = str(value)
        if text == "measured":
            return "measured"
        if text == "plan":
            return "plan"
        try:
            clocks = [float(part) for part in text.split(",")]
        except ValueError:
            self.fail(f"found {text!r}; allowed: measured, plan, or clocks in MHz such as 1200,1500", param, ctx)
        if not all(0 < clock < 1e5 for clock in clocks):
            self.fail(f"found {text!r}; allowed: clocks above 0 MHz", param, ctx)
        return clocks


@click.command("schedule", short_help="When to run, pause and slow down, by carbon or price of every hour.")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--series",
    "files",
    required=True,
    multiple=True,
    metavar="FILE.csv",
    type=click.Path(path_type=Path),
    help="Hours of carbon intensity or of a price: Electricity Maps' and WattTime's columns, or time,value. Twice: one "
    "of each.",
)
@click.option(
    "--deadline", required=True, metavar="TIME", help="By when it is to end: 2026-02-01T12:00Z, or 72h, or 5d."
)
@click.option("--start", metavar="TIME", help="From when on it may run.  [default: the first hour of the series]")
@click.option(
    "--minimise",
    type=click.Choice(["carbon", "cost"]),
    help="What is to be least.  [default: what the first series is of]",
)
@click.option(
    "--clocks",
    type=_ClockList(),
    default="measured",
    show_default=True,
    help="measured: the plan's own, and ten over the measured range; plan: its own alone; or MHz: 1200,1500.",
)
@click.option(
    "--when-off",
    type=click.Choice(["kept", "released"]),
    default="kept",
    show_default=True,
    help="In a pause, GPUs and hosts idle and are paid for, or are others'.",
)
@click.option(
    "--start-s", type=Finite(min=0), help="From a pause until it trains.  [default: failures.restart_s, or 300]"
)
@click.option("--checkpoint-s", type=Finite(min=0), help="Writing one.  [default: failures.checkpoint_s, or 60]")
@click.option(
    "--unit",
    "units",
    multiple=True,
    metavar="UNIT",
    help="Of the values: gCO2eq/kWh, lbs/MWh, EUR/MWh...; once, or for each series.  [default: as columns say]",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="NAME",
    help="Of the values; once, or for each series.  [default: as columns say; life cycle before direct]",
)
@click.option("--time-zone", metavar="NAME", help="Of times without one, such as Europe/Berlin.")
@click.option(
    "--fill-gaps",
    type=click.IntRange(min=0, max=48),
    default=0,
    show_default=True,
    help="Hours of a gap that is filled by a straight line.",
)
@click.option("--calibration", metavar="NAME|FILE", help="See `moemodel predict --help`.")
@click.option("-o", "--output", metavar="FILE.csv", type=click.Path(path_type=Path), help="Write the schedule as CSV.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the same figures, units in the names.")
def schedule_command(
    plan: Path,
    files: tuple[Path, ...],
    deadline: str,
    start: str | None,
    minimise: str | None,
    clocks: Clocks,
    when_off: str,
    start_s: float | None,
    checkpoint_s: float | None,
    units: tuple[str, ...],
    columns: tuple[str, ...],
    time_zone: str | None,
    fill_gaps: int,
    calibration: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Say when the run in PLAN is to be on, paused or slowed, so that it takes least carbon or money by a deadline."""
    with working("schedule"):
        found = api.schedule(
            plan,
            list(files),
            deadline=deadline,
            start=start,
            minimise="cost" if minimise == "cost" else "carbon" if minimise == "carbon" else None,
            clocks=clocks,
            when_off="released" if when_off == "released" else "kept",
            start_s=start_s,
            checkpoint_s=checkpoint_s,
            unit=units,
            column=columns,
            time_zone=time_zone,
            fill_hours=fill_gaps,
            calibration=calibration,
        )
    if output is not None:
        from moemodel.model.core.files import write_atomic

        write_atomic(output, found.to_csv())
    if as_json:
        echo_json(found.to_json())
        return
    out = console()
    out.print(
        _heading(found),
        "",
        _totals(found),
        "",
        *_bars(found),
        "",
        _stretches(found),
        "",
        bullets(found.notes),
        sep="\n",
    )
    if output is not None:
        echo(f"Written: {output}")


def _heading(found: Schedule) -> str:
    from moemodel.model.grid.times import stamp

    plan = found.run.plan
    return (
        f"{plan.name} on {plan.cluster.gpus} x {plan.cluster.gpu}: least {found.minimised}\n"
        f"from {stamp(found.start)} to {stamp(found.deadline)}"
    )


def _totals(found: Schedule) -> Table:
    """The schedule beside running at once."""
    then, now, saved = found.at_once_totals, found.totals, found.saved()
    head = f"at once ({found.clock_name(found.at_once_clock)})"
    made = table("", head, "schedule", "saved", numbers=(head, "schedule", "saved"))

    def row(name: str, of: str | None, before: float | None, after: float | None) -> None:
        share = None if of is None else saved[of]
        shown = ["" if value is None else digits(value) for value in (before, after)]
        made.add_row(name, *shown, "" if share is None else f"{share:.1%}")

    row("emissions, kgCO2e", "emissions", then.emissions_kg, now.emissions_kg)
    if now.cost is not None:
        row(f"cost, {found.run.plan.site.currency}", "cost", then.cost, now.cost)
    row("energy at the meter, kWh", "energy", then.energy_kWh, now.energy_kWh)
    for name in ("training_h", "standing_h", "waiting_h"):
        row(_HOURS[name], None, getattr(then, name), getattr(now, name))
    made.add_row("pauses", str(then.pauses), str(now.pauses), "")
    made.add_row("begins, UTC", f"{then.begins:%m-%d %H:%M}", f"{now.begins:%m-%d %H:%M}", "")
    later = f"{digits(abs(found.later_h))} h {'later' if found.later_h >= 0 else 'earlier'}"
    made.add_row("ends, UTC", _ends(then), _ends(now), later)
    return made


_HOURS = {
    "training_h": "training, hours",
    "standing_h": "starts and checkpoints, hours",
    "waiting_h": "paused with GPUs kept, hours",
}


def _ends(totals: Totals) -> str:
    return f"{totals.ends:%m-%d %H:%M}"


def _bars(found: Schedule) -> Iterator[str]:
    """A line a day, a mark an hour, UTC: what it mostly does; and below, carbon or price from 0 to 9."""
    hours = found.hours
    marks = _marks(found)
    used = sorted({s.clock for s in found.segments if s.clock is not None}, key=lambda k: found.run.clocks[k].hours)
    names = [f"{_mark(used, k)} {found.clock_name(k)}" for k in used]
    weights = hours.price if found.minimised == "cost" and hours.price is not None else hours.carbon
    low, high = float(weights.min()), float(weights.max())
    what = "price" if weights is hours.price else "carbon intensity"
    yield f"Hours, UTC: {', '.join(names)}, s start or checkpoint, . paused or over"
    unit = "kgCO2e" if what != "price" else found.run.plan.site.currency
    yield f"0 to {_LEVELS}: {what}, {low:.3g} to {high:.3g} {unit}/kWh"
    for day, group in groupby(range(len(hours.begins)), key=lambda t: hours.begins[t].date()):
        of_day = list(group)
        before = " " * hours.begins[of_day[0]].hour
        levels = "".join(str(round(_LEVELS * (float(weights[t]) - low) / ((high - low) or 1.0))) for t in of_day)
        yield f"{day:%Y-%m-%d %a}  {before}{''.join(marks[t] for t in of_day)}"
        yield f"{'':14}  {before}{levels}"


def _mark(used: list[int], clock: int) -> str:
    return _MARKS[min(used.index(clock), len(_MARKS) - 1)]


def _marks(found: Schedule) -> list[str]:
    """What is done for most of every hour."""
    used = sorted({s.clock for s in found.segments if s.clock is not None}, key=lambda k: found.run.clocks[k].hours)
    longest: dict[int, Segment] = {}
    for segment in found.segments:
        if segment.hour not in longest or segment.hours > longest[segment.hour].hours:
            longest[segment.hour] = segment

    def mark(hour: int) -> str:
        segment = longest.get(hour)
        if segment is None or segment.does in ("wait", "off"):
            return "."
        return "s" if segment.clock is None else _mark(used, segment.clock)

    return [mark(hour) for hour in range(len(found.hours.begins))]


def _stretches(found: Schedule) -> Table:
    """What is done without a pause, the first of them."""
    made = table("Runs, UTC", "until", "hours", "clocks", numbers=("hours",))
    every = found.stretches()
    for stretch in every[:_STRETCHES_SHOWN]:
        clocks: dict[int, float] = {}
        for segment in stretch:
            if segment.clock is not None:
                clocks[segment.clock] = clocks.get(segment.clock, 0.0) + segment.hours
        hours = sum(segment.hours for segment in stretch)
        named = ", ".join(f"{found.clock_name(k)} {digits(lasts)} h" for k, lasts in clocks.items())
        made.add_row(f"{stretch[0].begins:%m-%d %H:%M}", f"{stretch[-1].ends:%m-%d %H:%M}", digits(hours), named)
    if len(every) > _STRETCHES_SHOWN:
        made.add_row(f"and {len(every) - _STRETCHES_SHOWN} more", "", "", "-o FILE.csv has all")
    return made
