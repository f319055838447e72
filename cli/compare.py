"""`moemodel compare`: training runs beside each other, at equal samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moemodel import api
from moemodel.cli.output import bullets, console, digits, echo, echo_json, table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from moemodel.validation.compare.cells import Cell
    from moemodel.validation.compare.comparison import Comparison

_FOLDER = Path("comparison")


@click.command("compare", short_help="Hold training runs against each other, at equal samples.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=_FOLDER,
    show_default=True,
    help="Folder of the page, tables and figures; an earlier comparison there is written anew.",
)
@click.option(
    "--figures/--no-figures",
    default=None,
    help="Write figures as PNG and SVG, too; needs the extra plots.  [default: where it is installed]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what comparison.json holds, instead of tables.")
def compare_command(runs: tuple[Path, ...], output: Path, figures: bool | None, as_json: bool) -> None:
    """Hold RUNs, folders of runs or of matrices that `moemodel run` wrote, against each other at equal samples.

    Energy, duration, emissions, loss and energy by phase, by framework, batch and model, with their spread over
    repeats; a difference inside it is called none. Beside them stands what was predicted before the runs.
    """
    found = api.compare(*runs, folder=output, figures=figures)
    if figures is None and not _drawn():
        from moemodel.model.core.extras import how_to_install

        echo(f"figures are not written: matplotlib is not installed; {how_to_install('plots')}", err=True)
    if as_json:
        echo_json(found.to_json())
        return
    out = console()
    for part in _report(found):
        out.print(part, soft_wrap=isinstance(part, str))
    out.print(f"{output}: comparison.html, comparison.json, tables as CSV", soft_wrap=True)


def _drawn() -> bool:
    from moemodel.validation.compare.write import can_draw

    return can_draw()


def _report(found: Comparison) -> Iterator[RenderableType]:
    from moemodel.validation.compare.findings import findings

    if found.samples is not None:
        yield f"{found.done} runs at {found.samples:,} samples each"
        yield _cells(found)
        yield ""
    sentences = [one.text for one in findings(found)]
    if sentences:
        yield bullets(sentences)
        yield ""
    for one in found.ended:
        largest = f"; the largest part of its memory is {one.largest_term}" if one.largest_term else ""
        yield f"{one.status}: {one.name}: {one.reason}{largest}"
    yield bullets(found.notes)


def _cells(found: Comparison) -> Table:
    """A row for each cell: means, and of energy and loss deviations over repeats."""
    from moemodel.validation.compare.quantities import COMPARED

    measured = [name for name in COMPARED if any(cell.spread(name) for cell in found.cells)]
    heads = [head for name in measured for head in _heads(name)]
    made = table("Cell", "runs", *heads, numbers=("runs", *heads))
    for cell in found.cells:
        made.add_row(cell.label, str(len(cell.runs)), *(text for name in measured for text in _texts(cell, name)))
    return made


_SHORT = {"energy": "J", "duration": "s", "emissions": "g CO2e", "loss": "loss", "memory": "GB"}
_WITH_SPREAD = ("energy", "loss")


def _heads(name: str) -> tuple[str, ...]:
    return (_SHORT[name], "+-") if name in _WITH_SPREAD else (_SHORT[name],)


def _texts(cell: Cell, name: str) -> tuple[str, ...]:
    from moemodel.validation.compare.quantities import COMPARED

    found = cell.spread(name)
    if found is None:
        return ("",) * len(_heads(name))
    value = f"{found.mean:.3f}" if name == "loss" else digits(found.mean * COMPARED[name].scale)
    spread = "" if found.std is None or not found.mean else f"{found.std / found.mean:.1%}"
    return (value, spread) if name in _WITH_SPREAD else (value,)
