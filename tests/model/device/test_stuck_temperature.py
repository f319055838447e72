"""A temperature that does not follow the power is no reading; one that has no reason to change is."""

from __future__ import annotations

import numpy as np
import pytest

from moemodel.model.device.stuck_temperature import stuck_temperature

AT_S = np.arange(600) / 10  # a minute, at 10 Hz
IN_TURNS_W = np.where(AT_S % 20 >= 10, 700.0, 100.0)  # idle and full load, ten seconds each
NOTHING = np.full(600, np.nan)


@pytest.mark.parametrize(
    "temperature_C",
    [np.full(600, 36.0), 36.0 + (np.arange(600) % 3 == 0), np.minimum(30 + AT_S // 1, 37)],
    ids=["from the start", "wavering by a degree", "from 7 s on"],
)
def test_a_temperature_that_does_not_follow_the_power_is_stuck(temperature_C: np.ndarray) -> None:
    said = stuck_temperature(AT_S, IN_TURNS_W, temperature_C)
    assert said is not None
    assert said.endswith("while power went from 100 to 700 W, so its sensor stands still")


def test_the_order_of_the_readings_is_their_times() -> None:
    shuffled = np.random.default_rng(1).permutation(600)
    in_order = stuck_temperature(AT_S, IN_TURNS_W, np.full(600, 36.0))
    assert stuck_temperature(AT_S[shuffled], IN_TURNS_W[shuffled], np.full(600, 36.0)) == in_order


@pytest.mark.parametrize(
    ("power_W", "temperature_C"),
    [
        (350.0 + 20 * (AT_S // 1 % 2), np.full(600, 61.0)),
        (np.where(np.arange(600) % 2, 700.0, 100.0), np.full(600, 55.0)),  # whose mean stays the same
        (IN_TURNS_W, 36 + IN_TURNS_W // 60),
        (IN_TURNS_W, NOTHING),
        (NOTHING, np.full(600, 36.0)),
    ],
    ids=["steady power", "short bursts", "following", "no temperature", "no power"],
)
def test_a_temperature_that_has_no_reason_to_change_is_not(power_W: np.ndarray, temperature_C: np.ndarray) -> None:
    assert stuck_temperature(AT_S, power_W, temperature_C) is None


def test_without_readings_nothing_shows() -> None:
    nothing = np.array([])
    assert stuck_temperature(nothing, nothing, nothing) is None
