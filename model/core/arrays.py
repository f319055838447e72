"""Arrays by the type of their elements; the axes of one stand in its name (`time_s_PK`: plans, clocks)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache, reduce
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
StringArray = NDArray[np.str_]

_Record = TypeVar("_Record")
_Element = TypeVar("_Element", bound=np.generic)


def known_or(values: FloatArray, otherwise: FloatArray | float) -> FloatArray:
    """The values, and in place of those that are NaN the others."""
    return np.where(np.isnan(values), otherwise, values)


def at_rows(values: NDArray[_Element], rows: BoolArray | IntArray) -> NDArray[_Element]:
    """Some rows of an array: what an index gives, in a fifth of its time, and stored as the array is."""
    if rows.dtype == np.bool_:
        return values[rows]
    return values.T.take(rows, axis=-1).T if by_column(values) else values.take(rows, axis=0)


def by_column(values: NDArray[Any]) -> bool:
    """Whether an array is stored one column after another, as those of plans at several clocks are: numpy works along
    what lies side by side, of which there are many plans and few clocks."""
    return values.ndim == 2 and values.flags.f_contiguous


def largest(arrays: Sequence[FloatArray]) -> FloatArray:
    """The largest of the elements that stand at one place; unlike `numpy.maximum.reduce`, without a copy of all."""
    return reduce(np.maximum, arrays)


def largest_so_far(values: FloatArray) -> FloatArray:
    """The largest of each element and those before it in its row, [P, K]; `numpy.maximum.accumulate` in a tenth of its
    time where rows are short."""
    found = values.copy(order="K")
    for column in range(1, values.shape[1]):
        np.maximum(found[:, column - 1], found[:, column], out=found[:, column])
    return found


def where_largest(arrays: Sequence[FloatArray]) -> IntArray:
    """Of arrays of one length, the place of the largest element at each index among all of them, one array behind
    another; the first of equals. What stands there: `numpy.concatenate(arrays).take(where)`."""
    here = np.arange(len(arrays[0]))
    best, where = arrays[0], here
    for number, array in enumerate(arrays[1:], start=1):
        where = np.where(array > best, here + number * len(here), where)
        best = np.maximum(best, array)
    return where


def take_rows(record: _Record, rows: BoolArray | IntArray) -> _Record:
    """Some rows of a record: a dataclass whose arrays, lists and inner records have one element a row.

    Args:
        record: what else it holds (a name, a number) is of all rows, and stays; a dict has a record or array a key.
        rows: true for those to keep, or their places.
    """
    return _taken(record, rows)  # type: ignore[no-any-return]


def _taken(value: Any, rows: BoolArray | IntArray) -> Any:
    if isinstance(value, np.ndarray):
        return at_rows(value, rows)
    names = _given(value.__class__)
    if names is not None:
        return type(value)(**{name: _taken(getattr(value, name), rows) for name in names})
    if isinstance(value, list):
        return [value[place] for place in np.arange(len(value))[rows]]
    if isinstance(value, dict):
        return {key: _taken(one, rows) for key, one in value.items()}
    return value


@cache
def _given(record: type[Any]) -> tuple[str, ...] | None:
    """Names of what a dataclass is made of; None: it is none."""
    return tuple(f.name for f in fields(record) if f.init) if is_dataclass(record) else None


def one_behind_another(records: Sequence[_Record]) -> _Record:
    """Rows of several records as those of one; what `take_rows` leaves alone is the first one's."""
    return _joined(records)  # type: ignore[no-any-return]


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(values)
    names = _given(first.__class__)
    if names is not None:
        return type(first)(**{name: _joined([getattr(value, name) for value in values]) for name in names})
    return first


def distinct_rows(columns: Sequence[NDArray[Any]]) -> tuple[IntArray, IntArray]:
    """Index of the first of each distinct row of a table, and which of them each row is.

    `numpy.unique(axis=0)` does the same by comparing rows as bytes, ten times slower. Columns become digits of one
    number; it is renumbered by the rows that there are before it could overflow.
    """
    code, size = np.zeros(len(columns[0]), dtype=np.int64), 1
    if len(code) == 1:
        return code, code
    for column in columns:
        digits, values = _digits(column)
        if size > _MOST_CODES // values:
            found, code = _distinct(code, size)
            size = len(found)
        code, size = (code * values + digits, size * values) if values > 1 else (code, size)
    return _distinct(code, size)


_MOST_CODES = 2**62  # of a number of 63 bits
_ROOM = 8  # for each code, that a table may have: filling it takes a tenth of what sorting takes


def _distinct(code: IntArray, size: int) -> tuple[IntArray, IntArray]:
    """Index of the first of each distinct one of some codes, below a size, in their order, and which of them each is:
    by a table of all that there could be, or by sorting."""
    if size > _ROOM * len(code):
        _, first, place = np.unique(code, return_index=True, return_inverse=True)
        return first, place.ravel()
    last = len(code) - 1
    table = np.full(size, -1)
    table[code[::-1]] = np.arange(last, -1, -1)  # of several in one place the last stays, the first of the codes
    there = np.flatnonzero(table >= 0)
    first = table[there]
    table[there] = np.arange(len(there))
    return first, table.take(code)


def _digits(column: NDArray[Any]) -> tuple[IntArray, int]:
    """Places of a column's values, in their order, and how many there are; whole numbers may stand for themselves."""
    low, high = column.min(), column.max()
    if low == high:
        return np.zeros(len(column), dtype=np.int64), 1
    if float(high) - float(low) < _WIDEST and (column.dtype.kind in "biu" or (column == np.rint(column)).all()):
        digits, values = column.astype(np.int64) - int(low), int(high) - int(low) + 1
        if values > _ROOM * len(column):
            return digits, values
        first, place = _distinct(digits, values)
        return place, len(first)
    values_there, place = np.unique(column, return_inverse=True)
    return place.ravel().astype(np.int64), len(values_there)


_WIDEST = 2**20  # of whole numbers: three such columns fit into a code
