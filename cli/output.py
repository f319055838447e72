"""Printing and writing, as all commands do it: tables of 80 columns, numbers of three digits, files all or nothing."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "u"))


def console() -> Console:
    """Standard output, without colour where it isn't a terminal."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def table(*columns: str, title: str | None = None, numbers: tuple[str, ...] = ()) -> Table:
    """An empty table without rules; the columns named in `numbers` align to the right."""
    from rich.table import Table

    made = Table(box=None, title=title, title_justify="left", title_style="bold", header_style="dim", pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return made


def echo_json(document: Any) -> None:
    """A document for machines, on standard output."""
    click.echo(json.dumps(document, indent=2, allow_nan=False))


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


def write_whole(path: Path, text: str, *, overwrite: bool) -> None:
    """Write a file whole or not at all.

    Raises:
        FileExistsError: it is there and `overwrite` is false.
        OSError: it can't be written.
    """
    try:
        _write_whole(path, text, overwrite=overwrite)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # and not the name of a file in between


def _write_whole(path: Path, text: str, *, overwrite: bool) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o666 & ~_umask())
        if overwrite:
            Path(name).replace(path)
        else:
            path.hardlink_to(name)  # fails, at once, where there is a file already
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
