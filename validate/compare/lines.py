"""Files that hold a document a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from moemodel.model.core.documents import Strict, parse_data
from moemodel.model.core.errors import InputError
from moemodel.model.core.files import is_there
from moemodel.model.core.json_text import json_data
from moemodel.model.core.shown import shown

LineT = TypeVar("LineT", bound=Strict)
_END = 40  # characters of a bad line's end that are shown


def read_lines(file: Path, model: type[LineT]) -> Iterator[LineT]:
    """Documents of one line each.

    Raises:
        InputError: no such file; a line that is cut off or is not what `model` allows: file and line.
    """
    if not is_there(file):
        raise InputError(f"{file}: no such file; allowed: one for each rank of a run that is done")
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            yield _parsed(line, model, f"{file}:{number}")


def _parsed(line: bytes, model: type[LineT], source: str) -> LineT:
    try:
        return model.model_validate_json(line)
    except InputError:
        return _told(line, model, source)


def _told(line: bytes, model: type[LineT], source: str) -> LineT:
    """What is wrong with a line, by the door that names keys and what is allowed; it takes longer.

    Raises:
        InputError: that.
    """
    try:
        data = json_data(line.decode(errors="replace"), source)
    except InputError as error:
        end = shown(line[-_END:].decode(errors="replace").strip())
        raise InputError(f"{error}; the line ends in {end}; allowed: whole lines of JSON") from None
    return parse_data(data, model, source)
