"""Intervals of means and of their differences, against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from moemodel.validation.compare.welch import Spread, difference, spread, student


@pytest.mark.parametrize("freedom", [1.0, 1.37, 2.0, 3.5, 10.0, 99.0, 101.0, 1e3, 1e5, 1e9])
def test_quantiles_are_those_of_students_distribution(freedom: float) -> None:
    assert student(freedom) == pytest.approx(float(stats.t.ppf(0.95, freedom)), rel=2e-5)


@pytest.mark.parametrize(("runs_a", "runs_b"), [(2, 2), (3, 3), (2, 7), (12, 3)])
def test_the_interval_is_welchs(runs_a: int, runs_b: int) -> None:
    random = np.random.default_rng(runs_a * 100 + runs_b)
    a, b = random.normal(100, 1, runs_a), random.normal(101, 4, runs_b)
    expected = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.9)
    of_a, of_b = spread(a.tolist()), spread(b.tolist())
    assert of_a is not None
    assert of_b is not None
    assert difference(of_a, of_b) == pytest.approx((expected.low, expected.high), rel=1e-4)


def test_the_interval_of_a_mean_is_students() -> None:
    values = [5.0, 5.4, 4.9, 5.2]
    found = spread(values)
    assert found is not None
    assert found.interval == pytest.approx(stats.t.interval(0.9, 3, np.mean(values), stats.sem(values)), rel=1e-4)


def test_a_single_run_has_no_spread() -> None:
    once, twice = spread([3.0]), spread([3.0, 4.0])
    assert once == Spread(mean=3.0, std=None, runs=1)
    assert twice is not None
    assert once is not None
    assert once.interval is None
    assert difference(once, twice) is difference(twice, once) is None
    assert spread([]) is None


def test_repeats_that_do_not_spread_differ_by_what_they_differ() -> None:
    a, b = Spread(mean=1.0, std=0.0, runs=3), Spread(mean=1.5, std=0.0, runs=3)
    assert difference(a, b) == (0.5, 0.5)


def test_rounding_is_no_spread_and_no_difference() -> None:
    a, b = spread([0.1 + 0.2, 0.3]), spread([0.3, 0.3])
    assert a is not None
    assert b is not None
    assert a.std == 0
    assert difference(a, b) == (0, 0)


def test_nine_in_ten_intervals_hold_the_true_difference() -> None:
    """Of 4,000 pairs of unequal spread and number: within three standard errors of 90 %."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(4000):
        a, b = spread(random.normal(10, 1, 3).tolist()), spread(random.normal(12, 2, 4).tolist())
        assert a is not None
        assert b is not None
        interval = difference(a, b)
        assert interval is not None
        held += interval[0] <= 2 <= interval[1]
    assert held / 4000 == pytest.approx(0.9, abs=3 * math.sqrt(0.09 / 4000) + 0.01)
