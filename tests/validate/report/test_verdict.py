"""Verdicts: by hand-made measurements inside and outside of intervals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from scipy.stats import binom

from moemodel.model.results.validation import Measured, Predicted, QuantityReport
from moemodel.validation.report.verdict import _tail, judge, verdict


def _plan(measured: float, half_width: float | None = 0.1) -> Any:
    """Predicted as 1, with an interval of that width either way."""
    interval = None if half_width is None else (1 / (1 + half_width), 1 + half_width)
    predicted = Predicted(value=1.0, interval=interval)
    quantity = QuantityReport(
        predicted=predicted,
        forecast=predicted,
        measured=Measured(mean=measured, std=None, n=1),
        error=1 / measured - 1,
        error_std=None,
    )
    return SimpleNamespace(quantities={"step_time": quantity, "energy": quantity}, failures=())


def _report(*plans: Any, failed: int = 0) -> Any:
    return SimpleNamespace(plans=plans, failed=plans[:failed])


@pytest.mark.parametrize(
    ("inside", "outside", "level"),
    [(3, 0, "good"), (1, 0, "open"), (2, 0, "open"), (0, 1, "open"), (1, 2, "poor"), (0, 2, "poor"), (6, 2, "good"),
     (19, 2, "good"), (16, 5, "good"), (15, 6, "poor"), (90, 10, "good"), (80, 20, "poor")],
)  # fmt: skip
def test_it_is_by_how_many_lie_outside(inside: int, outside: int, level: str) -> None:
    plans = [_plan(1.05)] * inside + [_plan(1.3)] * outside
    found = judge(plans, "step_time")
    assert found is not None
    assert found.level == level
    assert f"{inside} of {inside + outside} measurements inside the 90 % interval" in found.text
    assert verdict(_report(*plans)).level == level


def test_the_tail_is_that_of_a_binomial_distribution() -> None:
    for count in (1, 5, 21, 100):
        for misses in range(count + 1):
            assert _tail(misses, count) == pytest.approx(binom.sf(misses - 1, count, 0.1))


def test_an_interval_from_half_to_twice_is_for_trying() -> None:
    found = judge([_plan(1.05, half_width=1.5)] * 9, "step_time")
    assert found is not None
    assert found.level == "poor"
    assert "for trying the commands only: the interval reaches from 1/2.5 to 2.5 times the value" in found.text


def test_without_intervals_nothing_is_judged() -> None:
    found = judge([_plan(1.05, half_width=None)] * 9, "step_time")
    assert found is not None
    assert found.level == "open"
    assert "no interval to judge by; off by 4.8% in the mean" in found.text


def test_without_measurements_there_is_nothing_to_judge() -> None:
    assert judge([], "step_time") is None
    empty = SimpleNamespace(quantities={}, failures=("out of memory",))
    assert verdict(_report(empty, empty, failed=2)).text == "Nothing to judge: 2 of 2 plans failed."
    assert verdict(_report()).text == "Nothing to judge: no plan ran."
