"""Warmer air: what it costs, and what happens where a die gets too hot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import PricedPlans, predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.inlet_sensitivity import WARMER_C, predict_with_sensitivity
from moemodel.model.results.outcome import outcome
from moemodel.model.step.system import System, system_of

Batch = Callable[..., PlanBatch]

INLETS_C = (15.0, 30.0, 45.0, 60.0, 75.0)


@pytest.fixture(scope="module")
def opt() -> Architecture:
    return read_architecture("opt-350m")


@pytest.mark.parametrize("cap_W", [300.0, 450.0, 700.0])
@pytest.mark.parametrize("slowdown_C", [85.0, np.inf])
def test_warmer_air_is_never_faster_nor_cheaper(
    opt: Architecture, batch: Batch, machine: System, cap_W: float, slowdown_C: float
) -> None:
    plan = batch(micro_batch=8, power_cap_W=cap_W)
    found = [predict(opt, plan, replace(machine, inlet_C=c, slowdown_C=slowdown_C)) for c in INLETS_C]
    times_s, temperatures_C = ([float(getattr(p, n)[0]) for p in found] for n in ("step_time_s", "temperature_C"))
    assert (np.diff(times_s) >= -1e-12).all()
    assert (np.diff(temperatures_C) > 0).all() or slowdown_C < np.inf
    if slowdown_C == np.inf and cap_W == 700.0:  # nothing holds the clock back
        assert times_s[0] == pytest.approx(times_s[-1])
        assert (np.diff([float(p.energy_J[0]) for p in found]) > 0).all()


def test_under_a_cap_the_clock_pays_for_leakage(opt: Architecture, batch: Batch, machine: System) -> None:
    """The cap holds the power, so what leaks is missing to the work."""
    plan = batch(micro_batch=8, power_cap_W=400.0)
    cool, warm = (predict(opt, plan, replace(machine, inlet_C=c)) for c in (25.0, 45.0))
    assert warm.clock_Hz[0] < 0.99 * cool.clock_Hz[0]
    assert warm.step_time_s[0] > cool.step_time_s[0]
    assert warm.power_W[0] == pytest.approx(cool.power_W[0], rel=0.01)
    assert warm.energy_J[0] > cool.energy_J[0]


def test_a_die_that_would_get_too_hot_is_slowed_to_its_limit(opt: Architecture, batch: Batch, machine: System) -> None:
    plan = batch(micro_batch=8)
    free = predict(opt, plan, replace(machine, inlet_C=70.0, slowdown_C=np.inf))
    held = predict(opt, plan, replace(machine, inlet_C=70.0, slowdown_C=89.0))
    assert free.temperature_C[0] > 95.0
    assert held.temperature_C[0] == pytest.approx(89.0, abs=0.5)
    assert held.clock_Hz[0] < 0.95 * free.clock_Hz[0]
    assert held.step_time_s[0] > free.step_time_s[0]
    cool = predict(opt, plan, replace(machine, inlet_C=20.0, slowdown_C=89.0))
    assert cool.step_time_s == pytest.approx(
        predict(opt, plan, replace(machine, inlet_C=20.0, slowdown_C=np.inf)).step_time_s
    )


def test_air_as_hot_as_the_limit_leaves_the_lowest_clock(opt: Architecture, batch: Batch, machine: System) -> None:
    held = predict(opt, batch(micro_batch=8), replace(machine, inlet_C=80.0, slowdown_C=80.0))
    assert held.clock_Hz[0] == pytest.approx(345e6, rel=0.01)


def test_a_short_run_at_a_known_temperature_is_not_slowed(opt: Architecture, batch: Batch, machine: System) -> None:
    there = replace(machine, inlet_C=70.0, slowdown_C=89.0)
    short = predict(opt, batch(micro_batch=8), there, temperature_C=60.0)
    assert short.step_time_s[0] < predict(opt, batch(micro_batch=8), there).step_time_s[0]


def test_what_ten_degrees_cost_is_two_predictions(opt: Architecture, batch: Batch, machine: System) -> None:
    plan = batch(micro_batch=8, power_cap_W=400.0)
    _, (found,) = predict_with_sensitivity(PricedPlans(opt, plan, machine), machine)
    assert found is not None
    assert (found.by_C, found.inlet_C) == (WARMER_C, 30.0)
    there = predict(opt, plan, replace(machine, inlet_C=30.0 + WARMER_C))
    here = predict(opt, plan, machine)
    assert found.time_share == pytest.approx(float(there.step_time_s[0] / here.step_time_s[0]) - 1)
    assert found.energy_share == pytest.approx(float(there.energy_J[0] / here.energy_J[0]) - 1)
    assert found.temperature_C == pytest.approx(float(there.temperature_C[0]))
    assert found.time_share > 0
    assert found.energy_share > 0


@pytest.mark.parametrize("part", ["thermal", "power"])
def test_where_temperature_is_not_modelled_nothing_is_said(
    opt: Architecture, batch: Batch, machine: System, calibration: Calibration, part: str
) -> None:
    thermal = calibration.thermal.parameters
    rise = {n: thermal[n].model_copy(update={"value": 0.0}) for n in ("die_C_per_W", "sink_C_per_W")}
    changed: dict[str, Any] = {
        "thermal": calibration.thermal.model_copy(update={"parameters": thermal | rise}),
        "power": calibration.power.model_copy(update={"points": 0}),
    }
    bare = replace(machine, calibration=calibration.model_copy(update={part: changed[part]}))
    priced = PricedPlans(opt, batch(), bare)
    prediction, (found,) = predict_with_sensitivity(priced, bare)
    assert found is None
    if part == "thermal":
        assert prediction.temperature_C[0] == 30.0


def test_a_plan_says_how_warm_the_air_is(plan_of: Callable[..., Plan], calibration: Calibration) -> None:
    assert system_of(plan_of(), calibration).inlet_C is None
    hot = system_of(plan_of(site={"inlet_C": 42.0}), calibration)
    assert hot.inlet_C == 42.0
    assert hot.slowdown_C == 89.0  # of the H100's description
    answers = [outcome(plan_of(site={"inlet_C": c}), calibration) for c in (20.0, 42.0)]
    assert answers[1].temperature_C - answers[0].temperature_C == pytest.approx(22.0, abs=3.0)
    assert answers[1].gpu_energy_J.value > answers[0].gpu_energy_J.value
    document = answers[1].to_json()["step"]["warmer_inlet"]
    assert document["inlet_C"] == 42.0
    assert document["energy_share"] > 0
