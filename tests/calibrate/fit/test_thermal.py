"""Fits of temperature and leakage: traces of a device with known masses and slopes give them back."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from moemodel.calibration.fit.thermal import LEAK_W_PER_C, RISE_PER_C, fit_leakage, fit_thermal, stuck_reading
from moemodel.calibration.store.profile_reader import read_profile
from moemodel.calibration.store.profile_tables import ThermalTable
from moemodel.model.core.arrays import FloatArray
from moemodel.model.records.calibration import Parameter, ThermalFit
from moemodel.model.records.profile import HEAVY, IDLE, LIGHT, TABLES

Mass = tuple[float, float]  # K/W, time constant in s

STEP_S = 0.1
MADE_UP = "made up"


def _table(load: NDArray[np.str_] | str, power_W: FloatArray, temperature_C: FloatArray) -> pd.DataFrame:
    """Rows of the table `thermal`."""
    elapsed_s = STEP_S * np.arange(len(power_W))
    columns = {"load": load, "elapsed_s": elapsed_s, "power_W": power_W, "temperature_C": temperature_C}
    return pd.DataFrame(columns | {"wall_s": 1.8e9 + elapsed_s, "clock_reported_Hz": 1.98e9}).reindex(
        columns=list(TABLES["thermal"])
    )


def _warmth(power_W: FloatArray, *, inlet_C: float, die: Mass, sink: Mass) -> FloatArray:
    """Temperature at the end of each step of a device that was in the steady state of the first."""
    resistance, time_constant = np.array([die, sink]).T
    rise = resistance * power_W[0]
    out = []
    for watts in power_W:
        rise = resistance * watts + (rise - resistance * watts) * np.exp(-STEP_S / time_constant)
        out.append(inlet_C + rise.sum())
    return np.array(out)


# ---- temperature ----------------------------------------------------------------------------------------------------


def _trace(
    *, inlet_C: float = 27.0, die: Mass = (0.022, 2.0), sink: Mass = (0.031, 20.0), seed: int = 0
) -> pd.DataFrame:
    """A device under loads that change every few seconds; a reading of power is of the step before, in whole degrees
    that of temperature."""
    rng = np.random.default_rng(seed)
    power_W = np.repeat(rng.choice([120.0, 250.0, 400.0, 550.0, 700.0], 60), 40)
    warm_C = _warmth(power_W, inlet_C=inlet_C, die=die, sink=sink)
    read_W = np.roll(power_W, 1) / 2 + power_W / 2  # half of it in the step before, as a sensor's ticks are
    read_W = read_W * (1 + 0.004 * rng.standard_normal(len(power_W)))
    return _table("mixed", read_W, np.round(warm_C))


def _rise(fit: ThermalFit) -> float:
    return fit.parameters["die_C_per_W"].value + fit.parameters["sink_C_per_W"].value


@pytest.mark.parametrize(("die_s", "sink_s"), [(2.0, 20.0), (2.5, 37.0), (1.4, 12.0), (4.0, 60.0)])
@pytest.mark.parametrize("seed", [0, 1])
def test_both_masses_come_back(die_s: float, sink_s: float, seed: int) -> None:
    fit = fit_thermal(ThermalTable.of(_trace(die=(0.022, die_s), sink=(0.031, sink_s), seed=seed)), MADE_UP)
    hidden = {"die_C_per_W": 0.022, "die_time": die_s, "sink_C_per_W": 0.031, "sink_time": sink_s, "inlet_C": 27.0}
    for name, value in hidden.items():
        assert fit.parameters[name].value == pytest.approx(value, rel=0.05), name
        assert fit.parameters[name].origin == "measured"
        error = fit.parameters[name].error
        assert error is not None
        assert 0 < error < 0.05
    assert [fit.parameters[name].unit for name in hidden] == ["K/W", "s", "K/W", "s", "C"]


def test_what_was_done_before_the_trace_does_not_matter() -> None:
    """It begins somewhere in the middle: both masses carry warmth of which the trace does not show the cause."""
    fit = fit_thermal(ThermalTable.of(_trace().iloc[700:]), MADE_UP)
    assert fit.parameters["inlet_C"].value == pytest.approx(27.0, rel=0.05)
    assert _rise(fit) == pytest.approx(0.053, rel=0.05)


def test_readings_that_are_missing_do_not_matter() -> None:
    trace = _trace()
    trace.loc[trace.index[::7], "temperature_C"] = np.nan
    assert _rise(fit_thermal(ThermalTable.of(trace), MADE_UP)) == pytest.approx(0.053, rel=0.05)


def test_of_a_profile_that_was_resumed_the_longest_trace_counts() -> None:
    """The other one is of a room that was ten degrees warmer."""
    first, second = _trace(seed=1), _trace(inlet_C=37.0, seed=2).head(900)
    second["wall_s"] += 1000.0
    fit = fit_thermal(ThermalTable.of(pd.concat([second, first], ignore_index=True)), MADE_UP)
    assert fit.parameters["inlet_C"].value == pytest.approx(27.0, rel=0.05)
    assert _rise(fit) == pytest.approx(0.053, rel=0.05)


def test_a_trace_too_short_models_no_rise_and_says_so() -> None:
    fit = fit_thermal(ThermalTable.of(_trace().head(99)), MADE_UP)
    assert _rise(fit) == 0
    for parameter in fit.parameters.values():
        assert parameter.origin == "assumed"
        assert "no temperature trace" in parameter.source


def test_no_mass_cools_when_heated() -> None:
    """A temperature that falls with power is no device's; resistances are not negative all the same."""
    trace = _trace()
    trace["temperature_C"] = 100 - trace["temperature_C"]
    fit = fit_thermal(ThermalTable.of(trace), MADE_UP)
    assert min(fit.parameters["die_C_per_W"].value, fit.parameters["sink_C_per_W"].value) >= 0


# ---- leakage --------------------------------------------------------------------------------------------------------

PARTS = ((HEAVY, 12.0), (IDLE, 22.0), (LIGHT, 6.0), (HEAVY, 6.0), (LIGHT, 6.0))
DYNAMIC_W = {HEAVY: 570.0, IDLE: 0.0, LIGHT: 400.0}


def _leakage(trace: pd.DataFrame) -> dict[str, Parameter]:
    table = ThermalTable.of(trace)
    return fit_leakage(table, fit_thermal(table, MADE_UP), MADE_UP)


ROOT = Path(__file__).parents[3]
H200_PROFILES = [
    *sorted((ROOT / "calibrate" / "profiles").glob("h200-*")),
    ROOT / "bench" / "measured" / "h200-sxm-141gb-profile",
]

H100 = (0.02, 1.8), (0.028, 25.0)  # K/W and s of die and sink
H200 = (0.028, 0.34), (0.006, 6.0)


def _heat(
    *,
    leak: float = 0.7,
    rise: float = 0.0016,
    noise: float = 0.004,
    masses: tuple[tuple[float, float], ...] = H100,
    seed: int = 0,
) -> pd.DataFrame:
    """The trace of section `heat` of a device that leaks as given (at 50 C it draws 120 W when idle)."""
    rng = np.random.default_rng(seed)
    resistance, time_constant = np.array(masses).T
    warm = resistance * 400.0
    label, power_W, temperature_C = [], [], []
    for load, lasting_s in PARTS:
        for _ in range(round(lasting_s / STEP_S)):
            excess_C = 30.0 + warm.sum() - 50.0
            watts = 120.0 + leak * excess_C + DYNAMIC_W[load] * (1 + rise * excess_C)
            warm = resistance * watts + (warm - resistance * watts) * np.exp(-STEP_S / time_constant)
            label.append(load)
            power_W.append(watts * (1 + noise * rng.standard_normal()))
            temperature_C.append(30.0 + warm.sum())
    return _table(np.array(label), np.array(power_W), np.round(temperature_C))


@pytest.mark.parametrize(("leak", "rise"), [(0.7, 0.0016), (0.45, 0.0), (1.2, 0.003)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_slopes_of_power_against_temperature_come_back(leak: float, rise: float, seed: int) -> None:
    found = _leakage(_heat(leak=leak, rise=rise, seed=seed))
    assert found["leak_W_per_C"].value == pytest.approx(leak, rel=0.06)
    assert found["rise_per_C"].value == pytest.approx(rise, abs=3e-4)  # of two slopes, each with its noise
    assert found["leak_W_per_C"].origin == found["rise_per_C"].origin == "measured"
    assert found["leak_reference_C"].value == 50.0


def test_its_error_is_the_scatter_of_repetitions() -> None:
    tries = [_leakage(_heat(seed=seed))["leak_W_per_C"] for seed in range(12)]
    scatter = float(np.std([p.value for p in tries]) / 0.7)
    errors = [p.error for p in tries if p.error is not None]
    assert len(errors) == len(tries)
    assert 0.4 * scatter < np.mean(errors) < 2.5 * scatter


def test_whole_degrees_do_not_flatten_the_slope() -> None:
    """Without noise only the rounding is left: no bias beyond a per cent in the mean of devices a little apart."""
    found = [_leakage(_heat(leak=leak, noise=0.0))["leak_W_per_C"].value / leak for leak in (0.6, 0.7, 0.8)]
    assert np.mean(found) == pytest.approx(1.0, abs=0.015)


def test_a_clock_that_still_rises_does_not_count() -> None:
    """A memory-bound load that begins while the clock recovers draws less, for that reason and not for the die's."""
    trace = _heat()
    light = np.flatnonzero((trace["load"] == LIGHT).to_numpy())
    late = light[np.flatnonzero(np.diff(light, prepend=-9) > 1)][:, None] + np.arange(20)
    trace.loc[late.ravel(), "clock_reported_Hz"] = 1.4e9
    trace.loc[late.ravel(), "power_W"] -= 120.0
    assert _leakage(trace)["rise_per_C"].value == pytest.approx(0.0016, rel=0.15)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_else_warms_up_between_two_stretches_is_not_the_die_s(seed: int) -> None:
    """The sink of a GPU that is cooled well hardly warms; its memory does, and draws 8 W more in the second stretch."""
    trace = _heat(masses=H200, noise=0.001, seed=seed)
    light = np.flatnonzero((trace["load"] == LIGHT).to_numpy())
    first, second = np.split(light, np.flatnonzero(np.diff(light) > 1) + 1)
    middle_C = [float(np.median(trace.loc[stretch, "temperature_C"])) for stretch in (first, second)]
    assert middle_C[1] - middle_C[0] < 3.0
    trace.loc[second, "power_W"] += 8.0
    assert _leakage(trace)["rise_per_C"].value == pytest.approx(0.0016, abs=8e-4)


@pytest.mark.parametrize("profile", H200_PROFILES, ids=lambda profile: profile.name)
def test_h200_leak_alike(profile: Path) -> None:
    """And as H100 do, 0.68 to 0.98 W/K and 0.17 to 0.22 % of dynamic power a kelvin, or somewhat less."""
    table = read_profile(profile).thermal
    found = fit_leakage(table, fit_thermal(table, MADE_UP), MADE_UP)
    assert found["leak_W_per_C"].origin == found["rise_per_C"].origin == "measured"
    assert 0.4 < found["leak_W_per_C"].value < 0.6
    assert 0.0005 < found["rise_per_C"].value < 0.0025


def test_no_profile_warms_a_die_without_end() -> None:
    found = _leakage(_heat(rise=0.008))
    assert (found["leak_W_per_C"].value, found["rise_per_C"].value) == (LEAK_W_PER_C, RISE_PER_C)
    assert "of the profile a die warms without end" in found["rise_per_C"].source


@pytest.mark.parametrize("clock_Hz", [np.nan, 1.98e9])
def test_a_device_without_a_clock_reading(clock_Hz: float) -> None:
    trace = _heat()
    trace["clock_reported_Hz"] = clock_Hz
    assert _leakage(trace)["leak_W_per_C"].value == pytest.approx(0.7, rel=0.06)


@pytest.mark.parametrize("what", ["no section", "too few readings", "no power", "too little cooling"])
def test_what_no_cooling_shows_is_as_on_another_gpu_and_says_so(what: str) -> None:
    trace = _heat()
    if what == "no section":
        trace["load"] = "mixed"
    elif what == "too few readings":
        trace = trace.groupby("load").head(15)
    elif what == "no power":
        trace["power_W"] = np.nan
    else:
        trace["temperature_C"] = 50 + (trace["temperature_C"] - 50) / 20
    found = _leakage(trace)
    assert found["leak_W_per_C"].value == LEAK_W_PER_C
    assert found["rise_per_C"].value == RISE_PER_C
    for name in ("leak_W_per_C", "rise_per_C"):
        assert found[name].origin == "assumed"
        assert "the profile has no cooling trace that shows it" in found[name].source


def test_power_that_falls_with_temperature_leaks_nothing() -> None:
    found = _leakage(_heat(leak=-0.5, rise=-0.001))
    assert found["leak_W_per_C"].value == 0
    assert found["rise_per_C"].value == 0
    assert found["leak_W_per_C"].error is None


# ---- a sensor that stands still -------------------------------------------------------------------------------------


def _stood_still(trace: pd.DataFrame, from_s: float, for_s: float, waver_C: float = 0.0) -> pd.DataFrame:
    still = (trace["elapsed_s"] >= from_s) & (trace["elapsed_s"] < from_s + for_s)
    wavering = 36.0 + waver_C * (np.arange(len(trace)) % 3 == 0)
    return trace.assign(temperature_C=np.where(still, wavering, trace["temperature_C"]))


@pytest.mark.parametrize(
    ("from_s", "for_s", "waver_C"), [(0.0, 1e9, 0.0), (3.0, 1e9, 0.0), (100.0, 15.0, 0.0), (0.0, 1e9, 1.0)]
)
def test_a_temperature_that_stands_still_under_changing_power_is_none(
    from_s: float, for_s: float, waver_C: float
) -> None:
    table = ThermalTable.of(_stood_still(_trace(), from_s, for_s, waver_C))
    said = stuck_reading(table)
    assert said is not None
    assert re.fullmatch(
        r"the temperature read 3[67] C for \d+ s, while power went from \d+ to \d+ W, so its sensor stands still", said
    )
    for parameter in fit_thermal(table, MADE_UP).parameters.values():
        assert parameter.origin == "assumed"
        assert parameter.source == f"{said}: no rise is modelled"
    leakage = fit_leakage(table, fit_thermal(table, MADE_UP), MADE_UP)
    assert all(parameter.origin == "assumed" for parameter in leakage.values())


def test_a_temperature_may_stand_still_while_power_does() -> None:
    assert stuck_reading(ThermalTable.of(_trace())) is None
    steady = _table("mixed", np.full(600, 500.0), np.full(600, 61.0))
    assert stuck_reading(ThermalTable.of(steady)) is None
    idle_and_bursts = _table("mixed", np.tile([100.0, 700.0], 300), np.full(600, 55.0))  # its mean stays the same
    assert stuck_reading(ThermalTable.of(idle_and_bursts)) is None
