"""Work that is spread over threads."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from moemodel.model.core import threads
from moemodel.model.core.threads import in_threads


def test_results_come_in_the_order_of_the_parts() -> None:
    def slow(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    assert list(in_threads(slow, range(20))) == [number * number for number in range(20)]


def test_few_parts_are_taken_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 2)
    taken = list[int]()

    def parts() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = in_threads(lambda number: number, parts())
    assert next(results) == 0
    assert len(taken) <= 4
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [1, 2])
def test_an_error_of_a_part_is_raised(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: count)
    with pytest.raises(ZeroDivisionError):
        list(in_threads(lambda number: 1 // number, [2, 1, 0, 3]))
