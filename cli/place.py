"""`moemodel place`: which experts lie on which rank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moemodel import api
from moemodel.cli.output import Finite, bullets, console, digits, echo_json, prefixed, table, working

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from moemodel.model.results.placement import PlacedLayer, PlacementResult

_LAYERS_SHOWN = 8
_EXPERTS_SHOWN = 12


@click.command("place", short_help="Which experts lie on which rank, by their loads.")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--loads",
    type=click.Path(path_type=Path),
    metavar="FILE|FOLDER",
    help="A run's routing-rankN.jsonl, or its folder.  [default: drawn, as uneven as the plan's routing.skew says]",
)
@click.option("--copies", type=int, default=0, show_default=True, help="Of hot experts in each layer; times ep.")
@click.option("--exact", is_flag=True, help="Solve for the best placement; needs the extra calibrate.")
@click.option("--seconds", type=Finite(min=0.01), default=10.0, show_default=True, help="For --exact, all layers.")
@click.option("--calibration", metavar="NAME|FILE", help="As `moemodel predict` takes it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: also the experts of every rank of every layer.")
def place_command(
    plan: Path, loads: Path | None, copies: int, exact: bool, seconds: float, calibration: str | None, as_json: bool
) -> None:
    """Place the experts of PLAN so that the busiest expert-parallel rank has least to do, and predict what it brings.

    Time, energy, memory and all-to-all of a step with experts in order, as frameworks have them, and as placed.
    """
    with working("placing experts") as progress:
        found = api.place(
            plan,
            loads,
            copies=copies,
            optimal=exact,
            seconds=seconds,
            calibration=calibration,
            progress=progress,
        )
    if as_json:
        echo_json(found.to_json())
        return
    out = console()
    out.print(_compared(found), "", _layers(found.layers), "", bullets(_notes(found)))


def _compared(found: PlacementResult) -> Table:
    numbers = ("in order", "placed", "change")
    what = f"{found.copies} copies a layer" if found.copies else "no copies"
    made = table("a step", *numbers, title=f"{found.plan}: experts placed ({found.method}, {what})", numbers=numbers)
    before, after = found.before, found.after
    rows = (
        ("time", before.step_time_s, after.step_time_s, "s"),
        ("energy of all GPUs", before.energy_J, after.energy_J, "J"),
        ("memory of the fullest GPU", before.memory_B, after.memory_B, "B"),
        ("all-to-all", before.all_to_all_s, after.all_to_all_s, "s"),
        ("gradients of copies", before.copies_s, after.copies_s, "s"),
        ("busiest rank over the mean", before.rank_skew, after.rank_skew, ""),
    )
    for name, old, new, unit in rows:
        change = f"{new / old - 1:+.1%}" if old else ""
        made.add_row(name, _value(old, unit), _value(new, unit), change)
    return made


def _value(value: float, unit: str) -> str:
    if not unit:
        return f"{value:.3f}"
    if not value:
        return f"0 {unit}"
    factor, shown = prefixed(value, unit)
    return f"{digits(value * factor)} {shown}"


def _layers(layers: Sequence[PlacedLayer]) -> Table:
    """The first layers; all are in `--json`."""
    numbers = ("in order", "placed")
    made = table("layer", *numbers, "experts of the first rank", title="busiest rank over the mean", numbers=numbers)
    for layer in layers[:_LAYERS_SHOWN]:
        first = [*map(str, layer.ranks[0][:_EXPERTS_SHOWN]), *(["..."] if len(layer.ranks[0]) > _EXPERTS_SHOWN else [])]
        before, after = f"{layer.rank_skew_before:.3f}", f"{layer.rank_skew_after:.3f}"
        made.add_row(str(layer.layer), before, after, " ".join(first))
    return made


def _notes(found: PlacementResult) -> list[str]:
    said = list(found.notes)
    if len(found.layers) > _LAYERS_SHOWN:
        said.append(f"{len(found.layers) - _LAYERS_SHOWN} more layers, and all ranks, are in --json.")
    gaps = [layer.gap for layer in found.layers if layer.gap is not None]
    if gaps:
        said.append(f"No placement by the loads that it was chosen by is better by more than {max(gaps):.2%}.")
    if not found.after.fits:
        said.append("As placed the plan needs more memory than a GPU has.")
    return said
