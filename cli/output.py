"""Printing, as all commands do it: tables of 80 columns, numbers of three digits, and nothing that a terminal obeys.

Names, sources and reasons come from files of others. What in them a terminal would obey instead of showing (escape
sequences, characters that turn the direction of writing) is shown as JSON writes it: \\u001b. So commands print by
`echo` and `console` alone.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from moemodel.cli.visible import escaped, visible

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u"))
_ASCII = re.compile("[^\x00-\x7f]")


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """A line on standard output, or standard error."""
    click.echo(visible(text), err=err, nl=nl)


def console(*, stderr: bool = False) -> Console:
    """Standard output or standard error, without colour where it isn't a terminal."""
    from moemodel.cli.safe_console import SafeConsole

    return SafeConsole(highlight=False, markup=False, emoji=False, stderr=stderr)


@contextmanager
def working(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error for as long as something takes; nothing where that isn't a terminal.

    Yields:
        What is to be told the steps done, of how many, and what comes now.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    terminal = console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of, now: bar.update(task, completed=done, total=of, description=now)


def table(*columns: str, title: str | None = None, numbers: tuple[str, ...] = ()) -> Table:
    """An empty table without rules; the columns named in `numbers` align to the right."""
    from moemodel.cli.safe_console import SafeTable

    made = SafeTable(
        box=None, title=title, title_justify="left", title_style="bold", header_style="dim", pad_edge=False
    )
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return made


def bullets(notes: Iterable[str]) -> Table:
    """Notes, each at a dash."""
    from moemodel.cli.safe_console import SafeTable

    made = SafeTable.grid(padding=(0, 1))
    for note in notes:
        made.add_row("-", note)
    return made


def sources(texts: dict[str, str], title: str = "Sources") -> Table:
    """Where things come from, by their names."""
    made = table(title, "")
    for name, text in texts.items():
        made.add_row(name, text)
    return made


def echo_json(document: Any) -> None:
    """A document for machines, on standard output."""
    echo(json.dumps(document, indent=2, allow_nan=False))


def echo_json_text(text: str) -> None:
    """JSON as a file holds it, on standard output; in ASCII where that takes nothing else."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = _ASCII.sub(lambda found: escaped(found.group()), text)
    echo(text, nl=False)


class Finite(click.FloatRange):
    """A number in a range; `nan` and `inf` are in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        converted = super().convert(value, param, ctx)
        if not math.isfinite(converted):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return converted


def begins_with(path: Path, text: bytes) -> bool:
    """Whether a file is one that a command wrote, by how it begins."""
    try:
        with path.open("rb") as file:
            return path.is_file() and file.read(len(text)) == text
    except OSError:
        return False


def digits(value: float) -> str:
    """Three significant digits, four of numbers in the thousands; thousands apart."""
    if abs(value) >= 10_000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def prefixed(value: float, unit: str) -> tuple[float, str]:
    """The factor and the unit with which a value reads best: 0.00012 s -> 1e6, "us"."""
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return 1 / size, prefix + unit
    return 1.0, unit
