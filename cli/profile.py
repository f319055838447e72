"""`moemodel profile`: measure a device."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from moemodel.profiler.run import Outcome

_INTERRUPTED = 130  # as a shell reports Ctrl-C


def _names(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    return [name.strip() for name in value.split(",") if name.strip()] if value is not None else None


def _folder(gpu: str) -> Path:
    """Where a profile goes unless one says: `sim:h100?seed=1` isn't a name for every file system."""
    return Path(f"profile-{re.sub(r'[^A-Za-z0-9.]+', '-', Path(gpu).stem if gpu.endswith('.json') else gpu)}")


@click.command("profile")
@click.option(
    "--gpu", required=True, help="The GPU that is here, such as h100; cpu, or sim:h100 (simulated), to try without one."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the profile; one that was interrupted is resumed.  [default: profile-GPU]",
)
@click.option(
    "--clocks",
    type=click.Choice(["passive", "as-is", "lock"]),
    default="passive",
    show_default=True,
    help="passive: move the clock by mixes of load, no privileges needed; as-is: leave that out; lock: not yet.",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=1),
    default=280.0,
    show_default=True,
    help="Seconds to measure; starting and finishing come on top.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of shapes, order and operands.")
@click.option(
    "--train",
    "plans",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="PLAN.yaml",
    help="Measure training steps of this plan too; comes on top of the budget. May be given several times.",
)
@click.option(
    "--sections",
    callback=_names,
    metavar="A,B",
    help="Only these of mixed, power, solo, sweep, host; '' for none.  [default: all]",
)
def profile_command(
    gpu: str,
    output: Path | None,
    clocks: Literal["passive", "as-is", "lock"],
    budget: float,
    seed: int,
    plans: tuple[Path, ...],
    sections: list[str] | None,
) -> None:
    """Measure operators, power and heat of the GPU at hand into a profile. No setting of the GPU is changed."""
    from rich.console import Console

    from moemodel.profiler.progress import Bars
    from moemodel.profiler.run import profile

    with Bars(Console(stderr=True)) as bars:
        outcome = profile(
            gpu,
            output or _folder(gpu),
            budget_s=budget,
            seed=seed,
            clocks=clocks,
            sections=sections,
            plans=plans,
            progress=bars,
        )
    _print(outcome)
    if outcome.interrupted:
        raise click.exceptions.Exit(_INTERRUPTED)


def _print(outcome: Outcome) -> None:
    for note in outcome.notes:
        click.echo(f"note: {note}")
    for skip in outcome.skips:
        click.echo(f"skipped: {skip.what}: {skip.reason}")
    rows = ", ".join(f"{count} {table}" for table, count in outcome.rows.items() if count)
    sections = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in outcome.sections.items())
    state = "interrupted; run the same command again to go on" if outcome.interrupted else "done"
    click.echo(f"{outcome.folder}: {state} in {outcome.seconds:.0f} s ({sections or 'no section finished'})")
    click.echo(f"rows: {rows or 'none'}")
