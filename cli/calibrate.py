"""`moemodel calibrate`: fit a calibration to a profile, or refit one to validations, and say how well it does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moemodel import api
from moemodel.cli.output import console, table, working

if TYPE_CHECKING:
    from rich.table import Table

    from moemodel.calibration.fit.operators import HeldOut
    from moemodel.calibration.update.fitter import Part
    from moemodel.calibration.update.from_reports import Update
    from moemodel.model.records.calibration import Calibration

_NO_HELP = 1  # exit code: nothing was written


@click.command("calibrate", short_help="Fit a calibration to profiles, or refit it.")
@click.argument("profiles", type=click.Path(path_type=Path), metavar="[PROFILE ...]", nargs=-1)
@click.option(
    "--update",
    "reports",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="REPORT",
    help="Instead of profiles: refit --calibration to what `moemodel validate` found, a report or its folder. May be "
    "given several times.",
)
@click.option(
    "--calibration", metavar="NAME|FILE", help="With --update: what to start from.  [default: of the report's GPU]"
)
@click.option(
    "--readings",
    "tables",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Instead of profiles: a table of kernel readings, Parquet or CSV. May be given several times.",
)
@click.option("--gpu", metavar="NAME|FILE", help="With --readings: whose rows.  [default: the only GPU that has any]")
@click.option("--force", is_flag=True, help="With --update: write it even if it doesn't help plans left out.")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSON file to write."
)
def calibrate_command(
    profiles: tuple[Path, ...],
    reports: tuple[Path, ...],
    calibration: str | None,
    tables: tuple[Path, ...],
    gpu: str | None,
    force: bool,
    output: Path,
) -> None:
    """Fit a calibration to PROFILE, a folder that `moemodel profile` wrote, or to several of one kind of GPU.

    With --update, refit one by validations. Exit code 1: the update doesn't help, and nothing was written.

    With --readings, fit products, attention and experts to times of kernels that others took, forward passes alone; the
    rest is as measured or derived for that GPU.
    """
    if sum(map(bool, (profiles, reports, tables))) != 1:
        raise click.UsageError("give profiles, or --update and a report, or --readings and a table")
    if gpu is not None and not tables:
        raise click.UsageError("--gpu goes with --readings")
    if tables and (calibration is not None or force):
        raise click.UsageError("--calibration and --force go with --update")
    if tables:
        _read(tables, gpu, output)
    elif reports:
        _update(reports, calibration, output, force=force)
    elif calibration is not None or force:
        raise click.UsageError("--calibration and --force go with --update")
    else:
        _fit(profiles, output)


def _fit(profiles: tuple[Path, ...], output: Path) -> None:
    from moemodel.calibration.store.catalogue import write_calibration

    with working("reading") as tell:
        calibration, errors = api.calibrate(*profiles, progress=tell)
    write_calibration(calibration, output)
    out = console()
    out.print(_shapes(errors))
    for warning in _warnings(calibration):
        out.print("")
        out.print(warning)
    out.print("")
    again = "the same moemodel profile and calibrate, to add what is missing"
    on = again if _missing(calibration) else f"moemodel predict PLAN.yaml --calibration {output}"
    out.print(f"wrote {output}: {calibration.name}; next: {on}")


def _missing(calibration: Calibration) -> list[str]:
    """Operators and passes that the profiles have no measurement of, or too few for a fit."""
    from moemodel.model.operators.work import PASSES

    fitted = {(fit.kind, fit.direction) for fit in calibration.operators}
    return [f"{kind}/{each}" for kind, passes in PASSES.items() for each in passes if (kind, each) not in fitted]


def _read(tables: tuple[Path, ...], gpu: str | None, output: Path) -> None:
    from moemodel.calibration.store.catalogue import write_calibration

    with working("fitting"):
        calibration, errors = api.calibrate_readings(*tables, gpu=gpu)
    write_calibration(calibration, output)
    out = console()
    numbers = ("rows", "median", "mean")
    made = table("Held-out shapes of", *numbers, numbers=numbers)
    for row in errors:
        made.add_row(row.name, str(row.rows), f"{row.median:.1%}", f"{row.mean:.1%}")
    out.print(made)
    out.print("")
    out.print(calibration.provenance)
    out.print("")
    out.print(f"wrote {output}: {calibration.name}; next: moemodel predict PLAN.yaml --calibration {output}")


def _warnings(calibration: Calibration) -> list[str]:
    """What is not as good as the table of errors looks."""
    heat, power = calibration.thermal.parameters["die_C_per_W"], calibration.power.parameters["base_W"]
    said = [calibration.trial] if calibration.trial else []
    if missing := _missing(calibration):
        said.append(
            f"Not fitted: {', '.join(missing)}. moemodel predict refuses every plan that has one of these. Run "
            "moemodel profile on the profile's folder again: it adds what its budget left out."
        )
    said += [f"Temperature: {heat.source}."] if heat.origin == "assumed" else []
    return said + ([f"Power: {power.source}."] if not calibration.power.points else [])


def _shapes(errors: list[HeldOut]) -> Table:
    numbers = ("shapes", "median", "mean", "90 % within", "worst")
    made = table("Held-out shapes of", "pass", *numbers, numbers=numbers)
    for row in errors:
        figures = (f"{error:.1%}" for error in (row.median, row.mean, row.p90, row.worst))
        made.add_row(str(row.kind), str(row.direction), str(row.shapes), *figures)
    return made


# ---- from validations -----------------------------------------------------------------------------------------------


def _update(paths: tuple[Path, ...], calibration: str | None, output: Path, *, force: bool) -> None:
    from moemodel.calibration.store.catalogue import write_calibration

    with working("fitting"):
        found = api.recalibrate(*paths, calibration=calibration, force=force)
    out = console()
    out.print(f"{found.plans} plans; {found.left_out}")
    out.print("")
    out.print(_errors(found))
    for part in found.parts:
        out.print("")
        out.print(_moved(part))
    out.print("")
    for part in found.parts:
        forced = " (--force)" if part.name in found.kept else ""
        out.print(f"{part.name}: {'helps plans left out' if part.helps else f'does not help plans left out{forced}'}")
    if not found.kept:
        out.print("nothing written: the calibration does as well without; --force writes the update all the same")
        raise click.exceptions.Exit(_NO_HELP)
    write_calibration(found.calibration, output)
    out.print(f"wrote {output}; next: moemodel predict PLAN.yaml --calibration {output}", soft_wrap=True)


def _errors(found: Update) -> Table:
    numbers = ("plans", "before", "left out", "fitted")
    made = table("Mean error of", *numbers, numbers=numbers)
    for part in found.parts:
        for name, errors in part.errors.items():
            shares = (f"{share:.1%}" for share in (errors.before, errors.left_out, errors.fitted))
            made.add_row(name.replace("_", " "), str(errors.plans), *shares)
    return made


def _moved(part: Part) -> Table:
    numbers = ("times", "+-", "+- before")
    made = table(part.name, *numbers, numbers=numbers)
    for one in part.moved:
        made.add_row(one.meaning, f"{one.factor:.3f}", f"{one.error:.1%}", f"{one.error_before:.1%}")
    return made
