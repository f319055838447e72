"""`moemodel calibrate`: fit a calibration to a profile, and say how well it fits."""

from __future__ import annotations

from pathlib import Path

import click

from moemodel.cli.output import console, table


@click.command("calibrate")
@click.argument("profile", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSON file to write."
)
def calibrate_command(profile: Path, output: Path) -> None:
    """Fit a calibration to PROFILE, a folder that `moemodel profile` wrote."""
    from moemodel.model.errors import CalibrationError

    try:
        from moemodel.calibrate.files import write_calibration
        from moemodel.calibrate.fit import calibrate_profile
    except ModuleNotFoundError as error:
        raise CalibrationError(
            f"calibrate needs {error.name}, which is not installed; install it with: pip install 'moemodel[calibrate]'"
        ) from None

    calibration, errors = calibrate_profile(profile)
    write_calibration(calibration, output)
    numbers = ("shapes", "median error", "90th percentile")
    made = table("Operator, held-out shapes", *numbers, numbers=numbers)
    for row in errors:
        made.add_row(row.kind, str(row.shapes), f"{row.median:.1%}", f"{row.p90:.1%}")
    out = console()
    out.print(made)
    out.print(f"wrote {output} ({calibration.name})")
