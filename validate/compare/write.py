"""The folder of a comparison: a page, tables, and figures where they can be drawn."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from moemodel.model.core.errors import InputError
from moemodel.model.core.files import is_there, write_atomic
from moemodel.model.records.run import MANIFEST, MATRIX
from moemodel.validation.compare.comparison import Comparison
from moemodel.validation.compare.page import html_page
from moemodel.validation.compare.tables import all_tables

PAGE, DATA, FIGURES = "comparison.html", "comparison.json", "figures"


def check_folder(folder: Path) -> None:
    """That a comparison may be written into a folder: a new or empty one, or that of an earlier comparison.

    Raises:
        InputError: it holds other things.
    """
    if not is_there(folder):
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: found a file; allowed: a folder")
    kind = next((name for name in (MANIFEST, MATRIX) if is_there(folder / name)), None)
    if kind is not None or (any(folder.iterdir()) and not is_there(folder / PAGE)):
        raise InputError(
            f"{folder}: found {kind or 'other things'}, and no comparison; allowed: a new or empty folder, or one that "
            "holds a comparison, which is written anew"
        )


def can_draw() -> bool:
    """Whether figures can be made into files: matplotlib is installed."""
    return find_spec("matplotlib") is not None


def write_comparison(comparison: Comparison, folder: Path, *, figures: bool) -> list[str]:
    """Write a page, tables and data, and figures if asked for.

    Args:
        comparison: to write.
        folder: made if missing; see `check_folder`.
        figures: as PNG and SVG too.

    Returns:
        Names of the files, in the folder.

    Raises:
        MissingExtraError: figures were asked for, and matplotlib is not installed; nothing is written then.
    """
    drawn: dict[str, bytes] = {}
    if figures:
        from moemodel.validation.compare.plots import all_figures

        drawn = {f"{FIGURES}/{name}": content for name, content in all_figures(comparison)}
    files: dict[str, str | bytes] = {
        PAGE: html_page(comparison),
        DATA: json.dumps(comparison.to_json(), indent=1, allow_nan=False) + "\n",
        **dict(all_tables(comparison)),
        **drawn,
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, content)
    return list(files)
