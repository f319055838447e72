"""Temperature and what it does to power: closed forms of the two masses, of leakage, and of their steady state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moemodel.model.device.power import PowerModel, power_model
from moemodel.model.device.thermal import ThermalModel, thermal_model
from moemodel.model.records.calibration import Calibration

DIE = ThermalModel(die_C_per_W=0.02, die_s=1.5, sink_C_per_W=0.03, sink_s=25.0, inlet_C=30.0)
LONG = np.array([1e5])


@pytest.fixture(scope="module")
def power(calibration: Calibration) -> PowerModel:
    return replace(power_model(calibration), rise_per_C=0.0016)


# --- the two masses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.0, 0.8, 2.0])
def test_at_first_it_is_as_it_was(slope: float) -> None:
    found_C, found_W = DIE.after(np.zeros(1), 600.0, before_W=100.0, slope_W_per_C=slope, reference_C=50.0)
    assert found_C[0] == pytest.approx(30.0 + 0.05 * 100.0)
    assert found_W[0] == pytest.approx(600.0 + slope * (35.0 - 50.0))
    started_C, _ = DIE.after(np.zeros(1), 600.0, before_W=100.0, start_C=52.0, slope_W_per_C=slope, reference_C=50.0)
    assert started_C[0] == pytest.approx(52.0)


def test_without_leakage_it_is_two_exponentials() -> None:
    time_s = np.linspace(0, 120, 50)
    found_C, found_W = DIE.after(time_s, 600.0, before_W=100.0)
    expected = 30.0 + sum(
        r * (600.0 - 500.0 * np.exp(-time_s / tau)) for r, tau in ((0.02, DIE.die_s), (0.03, DIE.sink_s))
    )
    assert found_C == pytest.approx(expected)
    assert found_W == pytest.approx(600.0)


def test_a_start_that_is_given_is_the_sinks() -> None:
    """The die follows what it drew just before; what else there is of warmth is the sink's, and goes as slowly."""
    time_s = np.linspace(0, 120, 50)
    found_C, _ = DIE.after(time_s, 100.0, before_W=100.0, start_C=50.0)
    assert found_C == pytest.approx(35.0 + 15.0 * np.exp(-time_s / DIE.sink_s))


def test_leakage_feeds_on_itself() -> None:
    """Against the differential equations, step by step, and what they say of the energy: P is T's, at every instant."""
    r, tau = np.array([0.02, 0.03]), np.array([DIE.die_s, DIE.sink_s])
    rise, step_s = r * 100.0, 1e-3
    for _ in range(round(30 / step_s)):
        rise = rise + step_s * (r * (600.0 + 2.0 * (30.0 + rise.sum() - 50.0)) - rise) / tau
    found_C, found_W = DIE.after(np.array([30.0]), 600.0, before_W=100.0, slope_W_per_C=2.0, reference_C=50.0)
    assert found_C[0] == pytest.approx(30.0 + rise.sum(), abs=0.01)
    assert found_W[0] == pytest.approx(600.0 + 2.0 * (found_C[0] - 50.0))
    constant_C, _ = DIE.after(np.array([30.0]), found_W[0], before_W=100.0)
    assert found_C[0] < constant_C[0]  # it has not drawn so much all along


def test_power_and_temperature_rise_with_time_after_idling() -> None:
    time_s = np.linspace(0, 200, 100)
    for values in DIE.after(time_s, 600.0, before_W=100.0, slope_W_per_C=1.5, reference_C=50.0):
        assert (np.diff(values) > 0).all()


def test_masses_of_one_time_constant_have_an_answer() -> None:
    alike = replace(DIE, die_s=10.0, sink_s=10.0)
    found_C, _ = alike.after(np.array([10.0]), 600.0, before_W=0.0)
    assert found_C[0] == pytest.approx(30.0 + 30.0 * (1 - np.exp(-1)))


# --- the steady state ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic_W", [0.0, 150.0, 600.0])
def test_steady_power_and_temperature_solve_both_equations(power: PowerModel, dynamic_W: float) -> None:
    (steady_W,), (die_C,) = power.steady(np.array([dynamic_W]))
    assert die_C == pytest.approx(power.inlet_C + power.thermal_C_per_W * steady_W)
    assert steady_W == pytest.approx(float(power.total_W(np.array(dynamic_W), float(die_C))))


def test_steady_has_a_closed_form(power: PowerModel) -> None:
    """Without leakage P = base + D; with it the loop gain L R, L = leak + rise D."""
    dead = replace(power, leak_W_per_C=0.0, rise_per_C=0.0)
    assert dead.steady(np.array([400.0]))[0] == pytest.approx(power.base_W + 400.0)
    slope = power.leak_W_per_C + 0.0016 * 400.0
    at_inlet_W = power.base_W + 400.0 + slope * (power.inlet_C - power.leak_reference_C)
    assert power.steady(np.array([400.0]))[0] == pytest.approx(at_inlet_W / (1 - slope * power.thermal_C_per_W))


@pytest.mark.parametrize("dynamic_W", [0.0, 400.0])
def test_in_the_long_run_a_load_is_in_its_steady_state(
    power: PowerModel, calibration: Calibration, dynamic_W: float
) -> None:
    thermal = thermal_model(calibration)
    assert thermal.total_C_per_W == power.thermal_C_per_W
    found = thermal.after(
        LONG,
        power.base_W + dynamic_W,
        before_W=100.0,
        slope_W_per_C=power.leak_W_per_C + power.rise_per_C * dynamic_W,
        reference_C=power.leak_reference_C,
    )
    steady = power.steady(np.array([dynamic_W]))
    assert [float(x[0]) for x in found] == pytest.approx([float(steady[1][0]), float(steady[0][0])])


def test_dynamic_power_rises_in_proportion(power: PowerModel) -> None:
    """Ten degrees: 1.6 % of what the work takes, and the idle GPU's leakage."""
    dynamic_W = np.array([0.0, 100.0, 500.0])
    gained_W = power.total_W(dynamic_W, 60.0) - power.total_W(dynamic_W, 50.0)
    assert gained_W == pytest.approx(10 * (power.leak_W_per_C + 0.0016 * dynamic_W))
    assert power.total_W(dynamic_W, power.leak_reference_C) == pytest.approx(power.base_W + dynamic_W)


def test_another_inlet_is_that_of_the_power_model(calibration: Calibration) -> None:
    assert power_model(calibration).inlet_C == thermal_model(calibration).inlet_C == 30.0
    warm = power_model(calibration, inlet_C=45.0)
    assert warm.inlet_C == 45.0
    assert warm.steady(np.array([500.0]))[1] > power_model(calibration).steady(np.array([500.0]))[1]
