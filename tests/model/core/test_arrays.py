"""Rows of records: what has one element a row is picked, what is of all rows stays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray, take_rows


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
