"""Time and power under caps: the governor's properties, and programs that obey the equations give them back."""

from __future__ import annotations

import numpy as np
import pytest

from moemodel.model.core.arrays import FloatArray, take_rows
from studies.power_caps import CODE_PARAMETERS, GPU_PARAMETERS, CapModel, CapRows, fit_caps

LOWEST_HZ, TOP_HZ = 0.15e9, 1.5e9
SHARE = 0.97
BASE_W, CLOCKED_W, ACTIVE_W = 45.0, 15.0, 20.0
CAPS_W = np.arange(100.0, 301.0, 25.0)
# time of work at the top clock, waiting, share that doesn't follow the clock, dynamic power, spread
CODES = np.array(
    [
        [np.log(100.0), 0.05, 0.1, np.log(220.0), 0.1],
        [np.log(30.0), 0.4, 0.5, np.log(150.0), 0.3],
        [np.log(700.0), 0.1, 0.8, np.log(110.0), 0.2],
        [np.log(5.0), 2.0, 0.3, np.log(120.0), 0.2],
        [np.log(5.0), 0.0, 0.0, np.log(200.0), 0.0],
    ]
)
TRUTH = CapModel(
    gpu=np.array([BASE_W, CLOCKED_W, ACTIVE_W, 0.7, 1.2, 0.25, SHARE]),
    code=CODES,
    lowest_Hz=LOWEST_HZ,
    reference_Hz=TOP_HZ,
)
LAST = len(CODES) - 1


def rows(code: int, cap_W: FloatArray, clock_Hz: float = np.inf) -> CapRows:
    """A program under caps; nothing measured yet."""
    count = len(cap_W)
    return CapRows(
        code_N=np.full(count, code),
        cap_W=cap_W,
        clock_Hz=np.full(count, clock_Hz),
        time_s=np.zeros(count),
        power_W=np.zeros(count),
    )


def measured(caps_W: FloatArray) -> CapRows:
    """All programs under all of these caps."""
    parts = [rows(code, caps_W) for code in range(len(CODES))]
    whole = CapRows(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in vars(parts[0])})
    time_s, power_W = TRUTH.predict(whole)
    return CapRows(code_N=whole.code_N, cap_W=whole.cap_W, clock_Hz=whole.clock_Hz, time_s=time_s, power_W=power_W)


@pytest.mark.parametrize("code", range(len(CODES)))
def test_a_higher_cap_is_never_slower_nor_cooler(code: int) -> None:
    time_s, power_W = TRUTH.predict(rows(code, np.linspace(80, 400, 81)))
    assert np.all(np.diff(time_s) <= 1e-9)
    assert np.all(np.diff(power_W) >= -1e-9)


def test_work_alone_draws_the_share_of_its_cap_until_it_draws_its_own() -> None:
    power_W = TRUTH.predict(rows(LAST, np.array([120.0, 200.0, 250.0, 400.0, 800.0])))[1]
    own_W = BASE_W + CLOCKED_W + ACTIVE_W + 200.0
    assert power_W[:3] == pytest.approx(SHARE * np.array([120.0, 200.0, 250.0]), rel=5e-3)
    assert power_W[3:] == pytest.approx(own_W)


def test_below_the_lowest_clock_a_cap_is_not_kept() -> None:
    time_s, power_W = TRUTH.predict(rows(LAST, np.array([20.0, 40.0])))
    assert time_s == pytest.approx(5.0 * TOP_HZ / LOWEST_HZ)
    assert power_W[0] == power_W[1] > 40.0


@pytest.mark.parametrize("clock_Hz", [0.5e9, 1.0e9, 1.5e9])
def test_work_that_follows_the_clock_takes_its_cycles_at_a_locked_one(clock_Hz: float) -> None:
    time_s = TRUTH.predict(rows(LAST, np.array([900.0]), clock_Hz))[0]
    assert time_s[0] == pytest.approx(5.0 * TOP_HZ / clock_Hz)


def test_waiting_draws_what_an_idle_gpu_does_and_takes_its_time_under_any_cap() -> None:
    busy, waits = TRUTH.predict(rows(LAST, CAPS_W)), CODES[LAST].copy()
    waits[1] = 3.0
    model = CapModel(gpu=TRUTH.gpu, code=waits[None, :], lowest_Hz=LOWEST_HZ, reference_Hz=TOP_HZ)
    time_s, power_W = model.predict(rows(0, CAPS_W))
    assert time_s - busy[0] == pytest.approx(3.0 * 5.0)
    assert time_s * power_W - busy[0] * busy[1] == pytest.approx(15.0 * (BASE_W + CLOCKED_W))


def test_caps_between_and_beyond_those_of_the_fit_are_predicted() -> None:
    every = measured(CAPS_W)
    seen = np.isin(every.cap_W, CAPS_W[1::2])
    model = fit_caps(take_rows(every, seen), len(CODES), LOWEST_HZ, TOP_HZ)
    time_s, power_W = model.predict(take_rows(every, ~seen))
    between = take_rows(every, ~seen).cap_W > CAPS_W[1]
    off_time = np.abs(time_s / take_rows(every, ~seen).time_s - 1)
    off_power = np.abs(power_W / take_rows(every, ~seen).power_W - 1)
    assert off_time[between].mean() < 0.01
    assert off_power[between].mean() < 0.015
    assert off_time[~between].mean() < 0.1
    assert model.parameters["sustained_share"] == pytest.approx(SHARE, abs=0.03)
    assert model.parameters["knee"] == pytest.approx(0.7, abs=0.08)


def test_rows_that_were_not_seen_do_not_matter() -> None:
    every = measured(CAPS_W)
    seen = np.isin(every.cap_W, CAPS_W[::2])
    spoilt = CapRows(
        code_N=every.code_N,
        cap_W=every.cap_W,
        clock_Hz=every.clock_Hz,
        time_s=np.where(seen, every.time_s, np.nan),
        power_W=np.where(seen, every.power_W, np.nan),
    )
    models = [fit_caps(take_rows(table, seen), len(CODES), LOWEST_HZ, TOP_HZ) for table in (every, spoilt)]
    assert np.array_equal(models[0].predict(every)[0], models[1].predict(spoilt)[0])


def test_a_fit_stays_in_its_bounds() -> None:
    every = measured(CAPS_W)
    noise = np.random.default_rng(0).normal(0, 0.1, (2, len(every.cap_W)))
    noisy = CapRows(
        code_N=every.code_N,
        cap_W=every.cap_W,
        clock_Hz=every.clock_Hz,
        time_s=every.time_s * np.exp(noise[0]),
        power_W=every.power_W * np.exp(noise[1]),
    )
    model = fit_caps(noisy, len(CODES), LOWEST_HZ, TOP_HZ)
    for values, table in ((model.gpu[None, :], GPU_PARAMETERS), (model.code, CODE_PARAMETERS)):
        assert np.all(values >= [r.low for r in table.values()])
        assert np.all(values <= [r.high for r in table.values()])
