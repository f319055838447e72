"""The least squares of all fits, against closed forms, a root found otherwise, and SciPy's own differences."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq, least_squares

from moemodel.calibration.least_squares import (
    NearbySlopes,
    best_of,
    difference_slopes,
    minimise,
    relative_steps,
    standard_errors,
)

FloatArray = NDArray[np.float64]

X_N = np.linspace(-1.0, 3.0, 40)
READINGS = np.array([0.1, -0.2, 0.05, 0.3, 7.0])  # the last is an outlier
SCALE = 0.5


def _line(x: FloatArray) -> FloatArray:
    return np.asarray(x[0] + x[1] * X_N)


def _noisy(sigma: float, seed: int) -> FloatArray:
    return np.asarray(2.0 - 0.5 * X_N + sigma * np.random.default_rng(seed).standard_normal(len(X_N)))


def test_a_line_is_that_of_the_normal_equations() -> None:
    readings = _noisy(0.3, 0)
    slope, intercept = np.polyfit(X_N, readings, 1)
    assert minimise(lambda x: _line(x) - readings, [0.0, 0.0]) == pytest.approx([intercept, slope], rel=1e-6)


def test_an_outlier_counts_as_the_soft_loss_says() -> None:
    def derivative(x: float) -> float:
        off = x - READINGS
        return float((off / np.sqrt(1 + (off / SCALE) ** 2)).sum())

    root = brentq(derivative, -1.0, 1.0, xtol=1e-12)
    found = minimise(lambda x: x[0] - READINGS, [1.0], loss="soft_l1", scale=SCALE)
    assert found[0] == pytest.approx(root, abs=1e-6)
    assert abs(found[0]) < 0.3 < READINGS.mean()


@pytest.mark.parametrize("slack", [0.0, 1e-6])
@pytest.mark.parametrize("start", [0.1, 0.5, 1.0, 5.0])
def test_a_minimum_outside_is_found_at_the_bound(start: float, slack: float) -> None:
    found = minimise(lambda x: x - 3.0, [start], low=0.0, high=1.0, slack=slack)
    assert found[0] == pytest.approx(1.0, abs=1e-6)
    assert found[0] <= 1.0


def test_slopes_that_are_given_are_used() -> None:
    asked = []

    def slopes(x: FloatArray) -> FloatArray:
        asked.append(x)
        return np.stack([np.ones_like(X_N), X_N], axis=1)

    readings = _noisy(0.3, 0)
    found = minimise(lambda x: _line(x) - readings, [0.0, 0.0], slopes=slopes)
    assert asked
    assert found == pytest.approx(minimise(lambda x: _line(x) - readings, [0.0, 0.0]), rel=1e-6)


def test_no_more_evaluations_than_allowed() -> None:
    asked = []

    def residuals(x: FloatArray) -> FloatArray:  # Rosenbrock's valley
        asked.append(x)
        return np.array([10 * (x[1] - x[0] ** 2), 1 - x[0]])

    def slopes(x: FloatArray) -> FloatArray:
        return np.array([[-20 * x[0], 10.0], [-1.0, 0.0]])

    assert minimise(residuals, [-1.2, 1.0], slopes=slopes) == pytest.approx([1.0, 1.0], abs=1e-6)
    asked.clear()
    minimise(residuals, [-1.2, 1.0], slopes=slopes, evaluations=5)
    assert len(asked) <= 5


def test_of_several_minima_the_lowest_is_taken_and_of_equals_the_first() -> None:
    def residuals(x: FloatArray) -> FloatArray:  # two valleys, the left one deeper
        return np.array([x[0] ** 2 - 1, 0.3 * (x[0] + 1)])

    found = [minimise(residuals, [start]) for start in (2.0, -2.0)]
    assert found[0][0] == pytest.approx(1.0, abs=0.1)
    assert best_of(found, residuals)[0] == pytest.approx(-1.0, abs=1e-6)
    assert best_of(found, residuals, lambda errors: -float(np.abs(errors).sum())) is found[0]
    twins = [np.array([1.0]), np.array([-1.0])]
    assert best_of(twins, lambda x: x) is twins[0]


def test_errors_of_a_line_are_those_of_the_textbook() -> None:
    sigma = 0.3
    slopes = np.stack([np.ones_like(X_N), X_N], axis=1)
    spread = ((X_N - X_N.mean()) ** 2).sum()
    expected = [sigma * np.sqrt(1 / len(X_N) + X_N.mean() ** 2 / spread), sigma / np.sqrt(spread)]
    assert standard_errors(slopes, variance=sigma**2) == pytest.approx(expected, rel=1e-9)


def test_errors_are_the_scatter_of_repeated_fits() -> None:
    sigma = 0.3
    fits = []
    for seed in range(400):
        readings = _noisy(sigma, seed)
        fits.append(minimise(lambda x, r=readings: _line(x) - r, [0.0, 0.0]))
    slopes = np.stack([np.ones_like(X_N), X_N], axis=1)
    assert np.std(fits, axis=0) == pytest.approx(standard_errors(slopes, variance=sigma**2), rel=0.1)


def test_what_the_data_do_not_say_is_known_as_well_as_before() -> None:
    slopes = np.array([[1.0, 0.0], [1.0, 0.0]])
    found = standard_errors(slopes, variance=0.04, before_K=[0.5, 0.7])
    both = 1 / np.sqrt(2 / 0.04 + 1 / 0.5**2)  # of two readings and what was known, independent
    assert found == pytest.approx([both, 0.7], rel=1e-9)


def test_differences_are_exact_of_what_is_linear_and_keep_the_shape() -> None:
    weights = np.arange(12.0).reshape(2, 3, 2)
    found = difference_slopes(lambda x: weights @ x, np.array([1.0, 2.0]), step=0.5)
    assert found == pytest.approx(weights, rel=1e-12)


def test_backward_differences_stay_below() -> None:
    found = difference_slopes(np.square, np.array([1.0, 2.0]), step=-0.5)
    assert found == pytest.approx(np.diag([1.5, 3.5]), rel=1e-12)


LOW, HIGH = np.array([-5.0, -1.0, 0.0, 0.2, -3.0]), np.array([5.0, 1.0, 1.0, 0.9, 3.0])


@pytest.mark.parametrize(
    "at",
    [[4.0, -0.5, 0.3, 0.5, 2.0], [4.999, -0.9999, 0.0, 0.8999, -2.9999], [1.0, 0.0, 0.99999, 0.2001, 0.0]],
    ids=["inside", "at bounds", "at zero"],
)
def test_steps_are_those_that_scipy_takes(at: list[float]) -> None:
    asked: list[FloatArray] = []

    def residuals(x: FloatArray) -> FloatArray:
        asked.append(x.copy())
        return x - 0.4

    least_squares(residuals, at, bounds=(LOW, HIGH), diff_step=1e-3, max_nfev=1)
    first = asked[0]
    steps = relative_steps(first, 1e-3, LOW, HIGH)
    assert np.stack(asked[1:6]) == pytest.approx(first + np.diag(steps), rel=1e-15, abs=0)


def test_slopes_nearby_are_taken_once() -> None:
    asked = []

    def function(x: FloatArray) -> FloatArray:
        asked.append(x.copy())
        return x**2

    slopes = NearbySlopes(function=function, step=1e-6, near=0.1)
    first = slopes(np.array([1.0, 2.0]))
    assert slopes(np.array([1.05, 1.95])) is first
    assert len(asked) == 3
    assert slopes(np.array([1.2, 2.0])) == pytest.approx(np.diag([2.4, 4.0]), rel=1e-5)
    assert len(asked) == 6
    assert slopes(np.array([0.95, 2.0])) is first
