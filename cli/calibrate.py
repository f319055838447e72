"""`moemodel calibrate`: fit a calibration to a profile, and say how well it fits."""

from __future__ import annotations

from pathlib import Path

import click

from moemodel.cli.output import console, table


@click.command("calibrate")
@click.argument("profiles", type=click.Path(path_type=Path), metavar="PROFILE...", nargs=-1, required=True)
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSON file to write."
)
def calibrate_command(profiles: tuple[Path, ...], output: Path) -> None:
    """Fit a calibration to PROFILE, a folder that `moemodel profile` wrote, or to several of one kind of GPU."""
    from moemodel.calibrate.files import write_calibration
    from moemodel.calibrate.fit import calibrate_profile

    calibration, errors = calibrate_profile(*profiles)
    write_calibration(calibration, output)
    numbers = ("shapes", "median", "mean", "90 % within", "worst")
    made = table("Held-out shapes of", "pass", *numbers, numbers=numbers)
    for row in errors:
        figures = (f"{error:.1%}" for error in (row.median, row.mean, row.p90, row.worst))
        made.add_row(str(row.kind), str(row.direction), str(row.shapes), *figures)
    out = console()
    out.print(made)
    out.print(f"wrote {output}: {calibration.name}; next: moemodel predict PLAN.yaml --calibration {output}")
