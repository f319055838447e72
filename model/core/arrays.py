"""Arrays by the type of their elements; the axes of one stand in its name (`time_s_PK`: plans, clocks)."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
StringArray = NDArray[np.str_]

_Record = TypeVar("_Record")


def known_or(values: FloatArray, otherwise: FloatArray | float) -> FloatArray:
    """The values, and in place of those that are NaN the others."""
    return np.where(np.isnan(values), otherwise, values)


def take_rows(record: _Record, rows: BoolArray | IntArray) -> _Record:
    """Some rows of a record: a dataclass whose arrays, lists and inner records have one element a row.

    Args:
        record: what else it holds (a name, a number) is of all rows, and stays; a dict has a record or array a key.
        rows: true for those to keep, or their places.
    """
    return _taken(record, rows)  # type: ignore[no-any-return]


def _taken(value: Any, rows: BoolArray | IntArray) -> Any:
    if isinstance(value, np.ndarray):
        return value[rows]
    if isinstance(value, list):
        return [value[place] for place in np.arange(len(value))[rows]]
    if isinstance(value, dict):
        return {key: _taken(one, rows) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _taken(getattr(value, f.name), rows) for f in fields(value) if f.init})
    return value
