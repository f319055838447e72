"""Texts and tokenizers of Hugging Face's libraries, which the extra `data` installs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moemodel.model.core.errors import InputError
from moemodel.model.core.extras import needs_extra

_EXTRA = "data"


def dataset_texts(name: str, split: str, column: str) -> Iterator[str]:
    """Texts of a data set, as far as they are asked for.

    Args:
        name, split: as `datasets.load_dataset` takes them.
        column: that holds the text.

    Raises:
        MissingExtraError: `datasets` is not installed.
        InputError: there is no such data set or column: found, allowed.
    """
    with needs_extra("data.source dataset", _EXTRA):
        import datasets
    try:
        rows = datasets.load_dataset(name, split=split, streaming=True)
    except Exception as error:  # noqa: BLE001  # of many libraries, with no common parent
        raise InputError(
            f"data.name: found {name!r}, split {split!r}, which `datasets` does not load "
            f"({type(error).__name__}: {_first_line(error)}); allowed: what datasets.load_dataset takes"
        ) from None
    for number, row in enumerate(rows):
        if not isinstance(row.get(column), str):
            columns = ", ".join(str(key) for key in row)
            raise InputError(
                f"data.column: found {column!r}, no text in row {number} of {name}; allowed: a column of text among "
                f"{columns}"
            )
        yield row[column]


def load_tokenizer(name: str) -> Any:
    """A tokenizer of the library `tokenizers`.

    Args:
        name: path of a tokenizer.json, or a name that the library finds.

    Raises:
        MissingExtraError: `tokenizers` is not installed.
        InputError: there is no such tokenizer.
    """
    with needs_extra(f"data.tokenizer {name}", _EXTRA):
        from tokenizers import Tokenizer
    try:
        return Tokenizer.from_file(name) if Path(name).is_file() else Tokenizer.from_pretrained(name)
    except Exception as error:  # noqa: BLE001  # the library raises Exception itself
        raise InputError(
            f"data.tokenizer: found {name!r}, which `tokenizers` does not load ({_first_line(error)}); allowed: words, "
            "bytes, a tokenizer.json, or the name of one"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
