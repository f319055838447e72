"""Shards of C4 (Raffel et al. 2020, section 2.2): gzip of one JSON object a line, with the text in `text`."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from moemodel.model.core.errors import InputError

_PATTERN = "*.json.gz"
_SHOWN = 40  # characters of a line that is none


def c4_texts(path: Path) -> Iterator[str]:
    """The texts of a shard, or of all shards of a folder in the order of their names.

    Raises:
        InputError: no such file, no shards in it, or a shard that is cut short or holds something else: file, line,
            found, allowed.
    """
    for shard in shards(path):
        yield from _shard(shard)


def shards(path: Path) -> list[Path]:
    """The files.

    Raises:
        InputError: there are none.
    """
    if path.is_dir():
        found = sorted(path.glob(_PATTERN))
        if not found:
            raise InputError(f"data.path: found no {_PATTERN} in {path}; allowed: a shard of C4, or a folder of shards")
        return found
    if not path.is_file():
        raise InputError(
            f"data.path: found nothing at {path}; allowed: a shard of C4 ({_PATTERN}), or a folder of shards"
        )
    return [path]


def _shard(shard: Path) -> Iterator[str]:
    number = 0
    try:
        with gzip.open(shard, "rb") as lines:
            for number, line in enumerate(lines, 1):
                yield _text(line, f"{shard}, line {number}")
    except EOFError:
        raise InputError(
            f"{shard}, line {number + 1}: found the end of a file that was cut short; allowed: a whole gzip file"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{shard}, line {number + 1}: found no gzip ({error}); allowed: a whole gzip file") from None
    except OSError as error:
        raise InputError(f"{shard}: cannot be read ({error.strerror}); allowed: a readable file") from None


def _text(line: bytes, place: str) -> str:
    try:
        row = json.loads(line)
    except ValueError:
        shown = line[:_SHOWN].decode("utf-8", errors="replace").strip()
        raise InputError(f"{place}: found {shown!r}, no JSON; allowed: a JSON object with a text") from None
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        found = f"the keys {', '.join(sorted(row)) or 'none'}" if isinstance(row, dict) else type(row).__name__
        if isinstance(row, dict) and "text" in row:
            found = f"a text of type {type(row['text']).__name__}"
        raise InputError(f"{place}: found {found}; allowed: a JSON object with `text`, a string")
    return text
