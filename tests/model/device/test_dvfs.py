"""The governor: closed forms and limits of its slow limit on mean power and its fast one on the tensor cores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.dvfs import (
    PowerSegment,
    TensorLimit,
    _held_clocks,
    at_clock,
    at_clocks,
    steady_state_clocks,
    time_at_clock,
    time_at_clocks,
)

CLOCKS_HZ = np.linspace(345e6, 1980e6, 23)
LIMIT = TensorLimit(clock_Hz=1.6e9, sharpness=10.0)


# --- the slow limit --------------------------------------------------------------------------------------------------

TOP_HZ = 1980e6
HEAVY_W = 100.0 + 800.0 * CLOCKS_HZ / TOP_HZ  # straight lines: the exponentials are exact
LIGHT_W = 300.0 + 150.0 * CLOCKS_HZ / TOP_HZ
Phase = tuple[FloatArray, float]  # power at the clocks, length in s


def settled(
    *phases: Phase, limit_W: float = 690.0, highest_Hz: float = TOP_HZ, gain: float = 9e6, follows: bool = False
) -> list[float]:
    """Clock of each phase of one cycle; lengths follow the clock, or don't."""
    cycle = [
        PowerSegment(
            time_s_UK=(seconds * (TOP_HZ / CLOCKS_HZ if follows else np.ones_like(CLOCKS_HZ)))[None, :],
            power_W_UK=power_W[None, :],
        )
        for power_W, seconds in phases
    ]
    clocks = steady_state_clocks(
        cycle, CLOCKS_HZ, limit_W_P=np.array([limit_W]), highest_Hz_P=np.array([highest_Hz]), gain_Hz_per_J=gain
    )
    return [float(clock[0]) for clock in clocks]


def power_at(power_W: FloatArray, clock_Hz: float) -> float:
    return float(np.interp(clock_Hz, CLOCKS_HZ, power_W))


def integrated(*phases: Phase, limit_W: float, gain: float, step_s: float = 1e-4) -> list[float]:
    """The same, step by step, in the last of many cycles."""
    clock, means = 1.5e9, [0.0] * len(phases)
    for _ in range(round(60e6 / gain / sum(seconds for _, seconds in phases)) + 8):
        for index, (power_W, seconds) in enumerate(phases):
            line, total = np.polyfit(CLOCKS_HZ, power_W, 1), 0.0
            for _ in range(round(seconds / step_s)):
                clock += step_s * gain * (limit_W - line[1] - line[0] * clock)
                clock = min(TOP_HZ, max(CLOCKS_HZ[0], clock))
                total += clock
            means[index] = total / round(seconds / step_s)
    return means


@pytest.mark.parametrize(("heavy_s", "light_s"), [(0.03, 0.03), (0.12, 0.12), (0.05, 0.3), (0.4, 0.1)])
@pytest.mark.parametrize("gain", [3e6, 9e6, 40e6])
def test_it_is_what_the_controller_settles_at(heavy_s: float, light_s: float, gain: float) -> None:
    phases = ((HEAVY_W, heavy_s), (LIGHT_W, light_s))
    expected = integrated(*phases, limit_W=560.0, gain=gain)
    assert settled(*phases, limit_W=560.0, gain=gain) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("limit_W", [300.0, 500.0, 690.0])
@pytest.mark.parametrize("gain", [1e5, 9e6, 1e9])
def test_a_load_that_does_not_change_draws_the_limit(limit_W: float, gain: float) -> None:
    for phases in (((HEAVY_W, 0.2),), ((HEAVY_W, 0.05), (HEAVY_W, 0.3), (HEAVY_W, 0.001))):
        for clock_Hz in settled(*phases, limit_W=limit_W, gain=gain):
            assert power_at(HEAVY_W, clock_Hz) == pytest.approx(limit_W, rel=2e-3)


def test_what_draws_less_runs_at_the_highest_clock() -> None:
    assert settled((LIGHT_W, 0.2), limit_W=690.0) == pytest.approx([TOP_HZ], rel=1e-4)
    assert settled((LIGHT_W, 0.2), (HEAVY_W, 0.1), limit_W=2000.0) == pytest.approx([TOP_HZ, TOP_HZ], rel=1e-4)
    assert settled((HEAVY_W, 0.2), limit_W=2000.0, highest_Hz=1.2e9) == pytest.approx([1.2e9], rel=1e-4)


@pytest.mark.parametrize("seconds", [2e-3, 0.1, 3.0])
@pytest.mark.parametrize("limit_W", [760.0, 850.0, 1200.0])
def test_a_clock_that_is_kept_is_the_one_that_solving_for_it_gives(seconds: float, limit_W: float) -> None:
    """Loads that draw less than the limit at the clock that they ask for are not solved for; as if they were."""
    phases = (HEAVY_W, 0.7 * seconds), (LIGHT_W, 0.3 * seconds)
    cycle = [
        PowerSegment(time_s_UK=np.full((1, len(CLOCKS_HZ)), length_s), power_W_UK=power_W[None, :])
        for power_W, length_s in phases
    ]
    asked_Hz, limit = np.array([1200e6]), np.array([limit_W])
    solved = _held_clocks(cycle, CLOCKS_HZ, limit, asked_Hz, 9e6)
    kept = settled(*phases, limit_W=limit_W, highest_Hz=1200e6)
    assert kept == pytest.approx([float(clock[0]) for clock in solved], rel=1e-12)
    assert kept == pytest.approx([1200e6, 1200e6], rel=1e-4)


def test_no_limit_at_all_is_the_highest_clock() -> None:
    nothing_W = np.zeros_like(CLOCKS_HZ)
    for power_W in (HEAVY_W, nothing_W):
        assert settled((power_W, 0.2), (power_W, 0.1), limit_W=math.inf) == pytest.approx([TOP_HZ, TOP_HZ], rel=1e-4)


def test_a_limit_below_the_lowest_clock_leaves_that() -> None:
    assert settled((HEAVY_W, 0.2), (HEAVY_W, 0.1), limit_W=50.0) == pytest.approx([CLOCKS_HZ[0]] * 2, rel=1e-3)


def test_turns_too_short_to_follow_hold_the_mean_power() -> None:
    """One clock for both, at which the mean of their powers is the limit."""
    heavy_Hz, light_Hz = settled((HEAVY_W, 1e-3), (LIGHT_W, 1e-3), limit_W=560.0)
    assert heavy_Hz == pytest.approx(light_Hz, rel=0.01)
    assert (power_at(HEAVY_W, heavy_Hz) + power_at(LIGHT_W, light_Hz)) / 2 == pytest.approx(560.0, rel=0.005)


def test_turns_long_enough_are_held_each_by_itself() -> None:
    heavy_Hz, light_Hz = settled((HEAVY_W, 60.0), (LIGHT_W, 60.0), limit_W=560.0)
    assert heavy_Hz == pytest.approx(settled((HEAVY_W, 1.0), limit_W=560.0)[0], rel=0.01)
    assert light_Hz == pytest.approx(TOP_HZ, rel=0.01)


def mean_W(turn_s: float, gain: float, limit_W: float = 560.0) -> float:
    clocks = settled((HEAVY_W, turn_s), (LIGHT_W, turn_s), limit_W=limit_W, gain=gain)
    return sum(power_at(p, f) for p, f in zip((HEAVY_W, LIGHT_W), clocks, strict=True)) / 2


def test_longer_turns_give_more_away_and_so_does_a_faster_answer() -> None:
    by_turn = [mean_W(turn_s, 9e6) for turn_s in np.geomspace(1e-3, 10, 15)]
    by_gain = [mean_W(0.1, gain) for gain in np.geomspace(1e5, 1e9, 15)]
    for found in (by_turn, by_gain):
        assert (np.diff(found) < 0.5).all()
        assert found[0] == pytest.approx(560.0, rel=0.005)
        assert found[-1] < 535.0
    assert mean_W(0.1, 9e6) == pytest.approx(mean_W(0.01, 90e6), rel=1e-3)  # only their product counts


def test_a_higher_limit_never_slows_it() -> None:
    found = np.array([settled((HEAVY_W, 0.1), (LIGHT_W, 0.2), limit_W=w) for w in np.linspace(300, 1000, 20)])
    assert (np.diff(found, axis=0) > -1e5).all()


def test_where_the_cycle_begins_does_not_matter() -> None:
    phases = [(HEAVY_W, 0.1), (LIGHT_W, 0.05), (0.7 * HEAVY_W, 0.2)]
    first = settled(*phases, limit_W=560.0)
    assert settled(*phases[1:], phases[0], limit_W=560.0) == pytest.approx([*first[1:], first[0]], rel=1e-3)


def test_a_phase_of_no_length_changes_nothing() -> None:
    first = settled((HEAVY_W, 0.1), (LIGHT_W, 0.05), limit_W=560.0)
    assert settled((5 * HEAVY_W, 0.0), (HEAVY_W, 0.1), (LIGHT_W, 0.05), limit_W=560.0)[1:] == pytest.approx(first)


def test_lengths_are_those_at_the_clocks_it_settles_at() -> None:
    """A heavy phase that takes longer the lower its clock is counts for longer, and the light one pays for it."""
    stretched, fixed = (settled((HEAVY_W, 0.02), (LIGHT_W, 0.02), limit_W=500.0, follows=f) for f in (True, False))
    slowdown = TOP_HZ / stretched[0]
    longer = settled((HEAVY_W, 0.02 * slowdown), (LIGHT_W, 0.02 * TOP_HZ / stretched[1]), limit_W=500.0)
    assert stretched == pytest.approx(longer, rel=0.01)
    assert stretched[0] != pytest.approx(fixed[0], rel=1e-6)


def test_rows_are_cycles_of_their_own() -> None:
    limits, tops = np.array([500.0, 650.0]), np.array([1980e6, 1500e6])
    cycle = [
        PowerSegment(time_s_UK=np.full((2, len(CLOCKS_HZ)), seconds), power_W_UK=np.stack([power_W, power_W]))
        for power_W, seconds in ((HEAVY_W, 0.1), (LIGHT_W, 0.2))
    ]
    found = steady_state_clocks(cycle, CLOCKS_HZ, limit_W_P=limits, highest_Hz_P=tops, gain_Hz_per_J=9e6)
    for row in range(2):
        alone = settled((HEAVY_W, 0.1), (LIGHT_W, 0.2), limit_W=limits[row], highest_Hz=tops[row])
        assert [float(clock[row]) for clock in found] == pytest.approx(alone)


# --- the fast limit --------------------------------------------------------------------------------------------------


def true_Hz(limit: TensorLimit, use: float) -> FloatArray:
    return limit.true_clock_Hz(CLOCKS_HZ, np.full((1, len(CLOCKS_HZ)), use))[0]


def test_without_tensor_cores_a_kernel_runs_at_the_clock_that_is_set() -> None:
    assert true_Hz(LIMIT, 0.0) == pytest.approx(CLOCKS_HZ, rel=1e-12)


def test_with_nothing_else_it_runs_at_the_lower_of_the_two() -> None:
    sharp = TensorLimit(clock_Hz=1.6e9, sharpness=400.0)
    assert true_Hz(sharp, 1.0) == pytest.approx(np.minimum(CLOCKS_HZ, 1.6e9), rel=0.002)
    at_limit = LIMIT.true_clock_Hz(np.array([1.6e9]), np.array([[1.0]]))
    assert at_limit.item() == pytest.approx(1.6e9 * 2**-0.1)  # the corner, where the two are alike


def test_in_between_it_takes_the_time_of_both_parts() -> None:
    """Period: the shares' periods added up."""
    whole, half = 1 / true_Hz(LIMIT, 1.0), 1 / true_Hz(LIMIT, 0.5)
    assert half == pytest.approx((whole + 1 / CLOCKS_HZ) / 2)


@pytest.mark.parametrize("sharpness", [4.0, 10.0, 40.0])
def test_a_higher_clock_or_less_use_never_slows_it(sharpness: float) -> None:
    limit = TensorLimit(clock_Hz=1.6e9, sharpness=sharpness)
    by_use = np.array([true_Hz(limit, use) for use in np.linspace(0, 1, 11)])
    assert (np.diff(by_use, axis=1) > -1e-3).all()
    assert (np.diff(by_use, axis=0) <= 1e-3).all()
    assert (by_use <= CLOCKS_HZ * (1 + 1e-12)).all()


def test_no_limit_known_is_none() -> None:
    assert true_Hz(TensorLimit(clock_Hz=math.inf, sharpness=1.0), 1.0) == pytest.approx(CLOCKS_HZ, rel=1e-12)


# --- between the clocks that were priced -----------------------------------------------------------------------------


def test_times_between_clocks_are_exact_for_both_kinds_of_work() -> None:
    """Work that follows the clock, work that doesn't, and any sum of them."""
    cycles, fixed_s = np.array([[3e6], [0.0], [2e6]]), np.array([[0.0], [2e-3], [5e-4]])
    wanted = np.random.default_rng(0).uniform(CLOCKS_HZ[0], CLOCKS_HZ[-1], (3, 5))
    found = time_at_clocks(cycles / CLOCKS_HZ + fixed_s, CLOCKS_HZ, wanted)
    assert found == pytest.approx(cycles / wanted + fixed_s)


def test_several_clocks_a_row_are_one_clock_a_row_several_times() -> None:
    rng = np.random.default_rng(1)
    values = np.cumsum(rng.uniform(0, 1, (4, len(CLOCKS_HZ))), axis=1)
    wanted = rng.uniform(CLOCKS_HZ[0], CLOCKS_HZ[-1], (4, 6))
    for many, one in ((at_clocks, at_clock), (time_at_clocks, time_at_clock)):
        found = many(values, CLOCKS_HZ, wanted)
        for column in range(wanted.shape[1]):
            assert found[:, column] == pytest.approx(one(values, CLOCKS_HZ, wanted[:, column]))
    whole = at_clocks(values, CLOCKS_HZ, np.tile(CLOCKS_HZ, (4, 1)))
    assert whole == pytest.approx(values)
