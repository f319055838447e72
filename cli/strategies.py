"""`moemodel strategies`: ways to choose the clocks of a step, by their names, on the same job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moemodel import api
from moemodel.cli.output import Finite, bullets, console, digits, echo, echo_json, prefixed, table, working
from moemodel.cli.plan_folder import check_empty, plans_written

if TYPE_CHECKING:
    from rich.table import Table

    from moemodel.model.strategies.strategies import Change, Strategies


@click.command("strategies", short_help="Ways to choose a plan's clocks, by name, on the same job.")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--longer",
    type=Finite(min=0.0),
    default=0.0,
    show_default=True,
    help="How much longer than at the highest clock a step may take, as a share: 0.05 is 5 %.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the same figures, and the plans.")
@click.option(
    "--write-plans",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write a plan for each strategy that a plan can say to a new folder, for `moemodel predict`.",
)
@click.option("--calibration", metavar="NAME|FILE", help="See `moemodel predict`.")
@click.option("--even-if-it-does-not-fit", is_flag=True, help="Answer also for a plan that needs too much memory.")
def strategies_command(
    plan: Path,
    longer: float,
    as_json: bool,
    write_plans: Path | None,
    calibration: str | None,
    even_if_it_does_not_fit: bool,
) -> None:
    """Time and energy of the job in PLAN, a YAML file, by each way to choose its clocks.

    max-clock: the governor's. one-clock: one for all GPUs. power-limit: one power cap (as Zeus). envpipe, perseus: one
    for each pass of each micro-batch. joint: one for each stage, or stage and phase. Needs the extra clocks.
    """
    if write_plans is not None:
        check_empty(write_plans, "--write-plans")
    with working("strategies") as tell:
        found = api.strategies(
            plan,
            calibration,
            longer=longer,
            even_if_it_does_not_fit=even_if_it_does_not_fit,
            progress=lambda name, done, of: tell(done, of, name),
        )
    with plans_written(write_plans, {row.name: row.plan for row in found.rows if row.plan is not None}):
        pass
    if as_json:
        echo_json(found.to_json())
        return
    _print(found)
    if write_plans is not None:
        echo(f"plans: {write_plans}")


def _print(found: Strategies) -> None:
    out = console()
    plan = found.plan
    out.print(f"{plan.name}\n{plan.architecture}, {plan.cluster.gpus} x {plan.cluster.gpu}", soft_wrap=True)
    out.print(f"steps may take {found.longer:.1%} longer than at the highest clock\n")
    out.print(_figures(found))
    out.print("")
    out.print(_clocks(found))
    out.print("")
    out.print(bullets(found.notes))


def _figures(found: Strategies) -> Table:
    """With changes against the first row, and their 90 % intervals."""
    from moemodel.model.results.energy import IT_ENERGY

    heads = ("time", "in %", "90 %", IT_ENERGY, "in %", "90 %")
    made = table("Strategy", *heads, numbers=heads)
    first = found.rows[0].answer
    per_s, seconds = prefixed(first.step_time_s.value, "s")
    per_J, joules = prefixed(first.it_energy_J.value, "J")
    for row in found.rows:
        answer = row.answer
        made.add_row(
            row.name,
            f"{digits(answer.step_time_s.value * per_s)} {seconds}",
            *_change(row.time),
            f"{digits(answer.it_energy_J.value * per_J)} {joules}",
            *_change(row.energy),
        )
    return made


def _change(change: Change) -> tuple[str, str]:
    """In percent, and its interval where there is one."""
    low, high = f"{100 * change.low:+.1f}", f"{100 * change.high:+.1f}"
    return f"{100 * change.value:+.1f}", "" if low == high else f"{low} to {high}"


def _clocks(found: Strategies) -> Table:
    made = table("Strategy", "MHz")
    for row in found.rows:
        made.add_row(row.name, row.clocks)
    return made
