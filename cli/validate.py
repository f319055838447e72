"""`moemodel validate`: run plans for real, and hold what they measured against what was predicted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from moemodel import api
from moemodel.cli.output import Finite, bullets, console, echo, echo_json_text, table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from moemodel.model.results.validation import PlanReport, Report
    from moemodel.validation.run import ValidationResult

_FAILED = 3  # exit code: some plan did not run to its end
_INTERRUPTED = 130  # as a shell reports Ctrl-C
_OTHERS = ("memory", "power", "clock")  # quantities beside time and energy
_SIGNALLED = 128  # and with a signal's number added, one of the others


@click.command("validate", short_help="Rerun the best plans of a search on the GPUs at hand.")
@click.argument("plans", nargs=-1, type=click.Path(path_type=Path), metavar="[PLAN.yaml ...]")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="So many plans of the search.")
@click.option(
    "--search",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path(api.SEARCH_RESULT),
    show_default=True,
    help="What `moemodel optimize` wrote; not read where plans are given.",
)
@click.option("--gpu", help="The GPU that is here, such as h100, or cpu.  [default: that of the search or the plans]")
@click.option(
    "--calibration",
    metavar="NAME|FILE",
    help="A shipped calibration, or a file that `moemodel calibrate` wrote.  [default: of the GPU]",
)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds; in each, all plans.")
@click.option(
    "--seconds", type=Finite(min=0, min_open=True), default=3.0, show_default=True, help="Measured, of a run."
)
@click.option("--warm-seconds", type=Finite(min=0), default=2.0, show_default=True, help="Before these, of a run.")
@click.option(
    "--controls/--no-controls",
    default=True,
    show_default=True,
    help="Run the default plan and a random feasible one too.",
)
@click.option(
    "--launcher",
    type=click.Choice(["local", "slurm"]),
    default="local",
    show_default=True,
    help="What starts the processes: this one, on this machine, or srun, inside a Slurm allocation.",
)
@click.option(
    "--clocks",
    type=click.Choice(["auto", "passive", "lock", "as-is"]),
    default="auto",
    show_default=True,
    envvar="MOEMODEL_CLOCKS",
    show_envvar=True,
    help="auto: hold the clock that a plan asks for where that is permitted, else run and predict it at the clock that "
    "the governor gives. passive, as-is: never hold one. lock: a plan that asks for one fails without.",
)
@click.option(
    "--timeout",
    type=Finite(min=1),
    default=240.0,
    show_default=True,
    help="Seconds without progress after which a run is ended.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the validation; one that was interrupted is gone on with.  [default: validation-NAME]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order, the random control, and the data.")
@click.option("--json", "as_json", is_flag=True, help="Print what report.json holds, instead of tables.")
def validate_command(
    plans: tuple[Path, ...],
    top: int,
    search: Path,
    gpu: str | None,
    calibration: str | None,
    repeats: int,
    seconds: float,
    warm_seconds: float,
    controls: bool,
    launcher: Literal["local", "slurm"],
    clocks: Literal["auto", "passive", "lock", "as-is"],
    timeout: float,
    output: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Run the best plans of the last search, or PLANs, on the GPUs at hand: predicted against measured.

    Plans are run in turns, in several rounds. Exit code 3: some plan failed; the others are in the report.
    """
    outcome = api.validate(
        *plans,
        search=search,
        folder=output,
        gpu=gpu,
        calibration=calibration,
        top=top,
        controls=controls,
        repeats=repeats,
        seconds=seconds,
        warm_s=warm_seconds,
        seed=seed,
        clocks="passive" if clocks == "as-is" else clocks,
        launcher=launcher,
        timeout_s=timeout,
        say=lambda text: echo(text, err=True),
    )
    if as_json:
        echo_json_text(outcome.report.to_json())
    else:
        _print(outcome)
    if outcome.interrupted:
        raise click.exceptions.Exit(_INTERRUPTED if outcome.signal is None else _SIGNALLED + outcome.signal)
    if outcome.report.failed:
        raise click.exceptions.Exit(_FAILED)


# ---- the report -----------------------------------------------------------------------------------------------------


def _print(outcome: ValidationResult) -> None:
    out = console()
    for part in _report(outcome.report):
        out.print(part)
    state = "interrupted; run the same command again to go on" if outcome.interrupted else "done"
    out.print(f"{outcome.folder}: {state}; report.json, report.html", soft_wrap=True)


def _report(report: Report) -> Iterator[RenderableType]:
    environment = report.environment
    yield f"{report.search or 'plans'} on {environment.gpus} x {environment.device.name}"
    yield f"{report.repeats} rounds of {report.seconds:g} s, clocks: {environment.clocks}, {report.created}"
    yield ""
    yield _plans(report, ("step_time", "energy"), spread=True)
    yield ""
    if any(name in report.errors for name in _OTHERS):
        yield _plans(report, _OTHERS, spread=False)
        yield ""
    yield _overall(report)
    yield from _rankings(report)
    for plan in report.failed:
        for failed in plan.failures:
            log = f" (log: {failed.log})" if failed.log else ""
            yield f"failed: {plan.name}, round {failed.repeat + 1}: {failed.kind}: {failed.reason}{log}"
    yield ""
    yield _notes(report)


def _plans(report: Report, names: tuple[str, ...], *, spread: bool) -> Table:
    """Measured means of every plan, with the errors of their predictions and, if asked, their spread over rounds."""
    from moemodel.validation.report.units import UNITS

    measured = [name for name in names if any(_has(plan, name) for plan in report.plans)]
    shown = ("error", "+-") if spread else ("error",)
    heads = [head for name in measured for head in (f"{UNITS[name].short} {UNITS[name].symbol}", *shown)]
    made = table("Plan", *heads, numbers=tuple(heads))
    for plan in report.plans:
        made.add_row(plan.name, *(cell for name in measured for cell in _cells(plan, name)[: 1 + len(shown)]))
    return made


def _has(plan: PlanReport, name: str) -> bool:
    return name in plan.quantities and plan.quantities[name].measured is not None


def _cells(plan: PlanReport, name: str) -> tuple[str, str, str]:
    from moemodel.validation.report.units import UNITS, number, percent

    quantity = plan.quantities.get(name)
    if quantity is None or quantity.measured is None:
        return "failed" if plan.failures and not plan.visits else "", "", ""
    value = number(quantity.measured.mean * UNITS[name].scale)
    return value, percent(quantity.error, signed=True), percent(quantity.error_std)


def _overall(report: Report) -> Table:
    from moemodel.validation.report.units import UNITS, percent

    numbers = ("mean error", "worst", "of forecasts", "in the 90 % interval")
    made = table("Quantity", *numbers, numbers=numbers)
    for name, found in report.errors.items():
        if name in UNITS:
            shares = (found.mape, found.worst, found.forecast_mape, found.covered)
            made.add_row(UNITS[name].label, *(percent(share) for share in shares))
    return made


def _rankings(report: Report) -> Iterator[str]:
    from moemodel.validation.report.units import UNITS, percent

    for name, found in report.ranking.items():
        tau = "nothing to rank" if found.tau is None else f"Kendall's tau {found.tau:.2f} over {found.pairs} pairs"
        regret = ""
        if found.regret is not None:
            best = "and it was" if found.best == found.chosen else f"{found.best} was"
            regret = f"; regret {percent(found.regret)}: {found.chosen} was predicted best, {best}"
        yield f"{UNITS[name].label}: {tau}{regret}"


def _notes(report: Report) -> RenderableType:
    of_plans = [f"{plan.name}: {note}" for plan in report.plans for note in plan.notes]
    aside = [f"Set aside: {aside.name}: {aside.reason}." for aside in report.set_aside]
    return bullets([*of_plans, *aside, *report.notes])
