"""`moemodel profile`: measure a device."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moemodel import api
from moemodel.cli.output import Finite, console, echo
from moemodel.model.core.extras import needs_extra

if TYPE_CHECKING:
    from moemodel.profiler.clocks.settings import AskedClocks
    from moemodel.profiler.run import ProfileReport

_INTERRUPTED = 130  # as a shell reports Ctrl-C
_SIGNALLED = 128  # and with a signal's number added, one of the others


def _names(_: click.Context, __: click.Parameter, value: str | None) -> list[str] | None:
    return [name.strip() for name in value.split(",") if name.strip()] if value is not None else None


@click.command("profile", short_help="Measure the GPU at hand, and how several talk.")
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
    type=click.Choice(["auto", "lock", "passive", "as-is"]),
    default="auto",
    show_default=True,
    envvar="MOEMODEL_CLOCKS",
    show_envvar=True,
    help="lock: the sweep locks the GPU's clocks step by step and gives them back to the driver whatever happens; it "
    "takes root, and a GPU that nobody else computes on. passive: mixes of load move the clock, no setting is changed. "
    "as-is: leave that out too. auto: lock where that is permitted, else passive, and say which. A site forbids "
    "locking by MOEMODEL_CLOCKS=passive, even to --clocks lock.",
)
@click.option(
    "--budget",
    type=Finite(min=1),
    default=280.0,
    show_default=True,
    help="Seconds to measure one GPU; collectives of several (75 s for two, 120 s for more), starting and finishing "
    "come on top.",
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
    help="Only these of mixed, power, heat, solo, sweep, host, collectives; '' for none.  [default: all]",
)
@click.option(
    "--ranks",
    type=click.IntRange(min=1),
    help="GPUs that talk to each other in section collectives, each in a process of its own; with --gpu cpu, that many "
    "processes.  [default: all GPUs that are visible; or those of torchrun, if it started this]",
)
def profile_command(
    gpu: str,
    output: Path | None,
    clocks: AskedClocks,
    budget: float,
    seed: int,
    plans: tuple[Path, ...],
    sections: list[str] | None,
    ranks: int | None,
) -> None:
    """Measure operators, power and heat of the GPU at hand, and how several talk to each other, into a profile.

    The only setting that may be changed is the clock, and only for a while: see --clocks.
    """
    from moemodel.profiler.sections.progress import Bars

    with needs_extra("profile", "profile"):
        import_module("moemodel.profiler.run")  # what is not installed is found out before a bar is drawn
    out = console(stderr=True)
    with Bars(out) as bars:
        outcome = api.profile(
            gpu,
            output,
            budget_s=budget,
            seed=seed,
            clocks=clocks,
            sections=sections,
            plans=plans,
            ranks=ranks,
            progress=bars,
            announce=lambda text: out.print(f"note: {text}"),
        )
    if not outcome.helped:
        _print(outcome)
    if outcome.interrupted:
        raise click.exceptions.Exit(_INTERRUPTED if outcome.signal is None else _SIGNALLED + outcome.signal)


def _print(outcome: ProfileReport) -> None:
    for note in outcome.notes:
        echo(f"note: {note}")
    for skip in outcome.skips:
        echo(f"skipped: {skip.what}: {skip.reason}")
    rows = ", ".join(f"{count} {table}" for table, count in outcome.rows.items() if count)
    sections = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in outcome.sections.items())
    state = "interrupted; run the same command again to go on" if outcome.interrupted else "done"
    echo(f"{outcome.folder}: {state} in {outcome.seconds:.0f} s ({sections or 'no section finished'})")
    echo(f"rows: {rows or 'none'}")
