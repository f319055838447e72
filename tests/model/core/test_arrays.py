"""Rows of records: what has one element a row is picked, what is of all rows stays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from moemodel.model.core.arrays import (
    BoolArray,
    FloatArray,
    IntArray,
    at_rows,
    distinct_rows,
    largest,
    largest_so_far,
    one_behind_another,
    take_rows,
    where_largest,
)


@dataclass(frozen=True, kw_only=True)
class _Size:
    size_B: FloatArray


@dataclass(frozen=True, kw_only=True)
class _Times:
    device: str
    names: list[str]
    size: _Size
    time_s: FloatArray
    clock_Hz: FloatArray | None = None


TIMES = _Times(device="one", names=["a", "b", "c"], size=_Size(size_B=np.arange(3.0)), time_s=np.array([5.0, 6.0, 7.0]))


@pytest.mark.parametrize("rows", [np.array([True, False, True]), np.array([0, 2])])
def test_arrays_lists_and_inner_records_keep_the_rows_picked(rows: BoolArray | IntArray) -> None:
    taken = take_rows(TIMES, rows)
    assert (taken.device, taken.names, taken.clock_Hz) == ("one", ["a", "c"], None)
    assert taken.size.size_B.tolist() == [0.0, 2.0]
    assert taken.time_s.tolist() == [5.0, 7.0]
    assert TIMES.names == ["a", "b", "c"]


def test_records_one_behind_another_are_taken_apart_again() -> None:
    sizes = [_Size(size_B=np.arange(3.0)), _Size(size_B=np.array([7.0, 8.0, 9.0]))]
    together = one_behind_another(sizes)
    assert together.size_B.tolist() == [0.0, 1.0, 2.0, 7.0, 8.0, 9.0]
    assert take_rows(together, np.arange(3, 6)).size_B.tolist() == [7.0, 8.0, 9.0]


@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_what_an_index_gives_however_an_array_is_stored(order: str) -> None:
    values = np.array(np.random.default_rng(0).random((7, 4)), order=order)  # type: ignore[call-overload]
    rows = np.array([6, 0, 0, 3])
    assert at_rows(values, rows).tolist() == values[rows].tolist()
    assert largest_so_far(values).tolist() == np.maximum.accumulate(values, axis=1).tolist()
    assert values.tolist() == np.random.default_rng(0).random((7, 4)).tolist()


def test_the_largest_are_those_of_numpy_the_first_of_equals() -> None:
    rng = np.random.default_rng(1)
    arrays = list(rng.integers(0, 3, (4, 50)).astype(np.float64))  # often equal
    number, here = np.divmod(where_largest(arrays), 50)
    assert number.tolist() == np.argmax(arrays, axis=0).tolist()
    assert here.tolist() == list(range(50))
    assert largest(arrays).tolist() == np.max(arrays, axis=0).tolist()


@pytest.mark.parametrize("rows", [2, 30, 3000])
@pytest.mark.parametrize("seed", range(5))
def test_distinct_rows_are_those_of_numpy(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns = [
        rng.integers(0, 5, rows),
        2 ** rng.integers(0, 12, rows),
        rng.integers(0, 3, rows) * 10**12,
        rng.random(rows).round(1),
        2.0 ** rng.integers(0, 4, rows),
        np.where(rng.random(rows) > 0.5, np.inf, 1e9),
        rng.random(rows) > 0.5,
    ]
    some = [columns[place] for place in rng.permutation(7)[: 1 + seed]]
    table = np.stack([column.astype(np.float64) for column in some], axis=1)
    _, first, place = np.unique(table, axis=0, return_index=True, return_inverse=True)
    found = distinct_rows(some)
    assert found[0].tolist() == first.tolist()
    assert found[1].tolist() == place.ravel().tolist()
