"""Rows of ranks as one run, and the prediction that is held against it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.records.profile import TABLES
from moemodel.model.results.measured import QUANTITIES, mean_of, predict_as_run, reduce_ranks
from moemodel.model.step.system import system_of

Row = dict[str, Any]
PlanOf = Callable[..., Plan]


def _row(rank: int | None = 0, **columns: Any) -> Row:
    return dict.fromkeys(TABLES["iterations"]) | {"plan": "a", "rank": rank} | columns


@pytest.fixture
def ranks() -> list[Row]:
    first = {"step_time_s": 0.10, "step_time_std_s": 0.01, "energy_J": 50.0, "power_W": 500.0}
    second = {"step_time_s": 0.11, "step_time_std_s": 0.02, "energy_J": 66.0, "power_W": 600.0}
    return [
        _row(0, **first, peak_allocated_B=10, clock_Hz=1e9),
        _row(1, **second, peak_allocated_B=30, clock_Hz=2e9),
    ]


def test_ranks_as_one_run(ranks: list[Row]) -> None:
    """The slowest decides the time, all draw energy, the fullest decides the memory."""
    run = reduce_ranks(ranks)
    assert run["step_time_s"] == 0.11
    assert run["step_time_std_s"] == 0.02
    assert run["energy_J"] == 116.0
    assert run["power_W"] == 550.0
    assert run["peak_allocated_B"] == 30
    assert run["clock_Hz"] == 1.5e9
    assert run["plan"] == "a"


def test_what_a_rank_did_not_measure(ranks: list[Row]) -> None:
    """Energy of some GPUs is not the job's; other means are over those that have them; nothing stays nothing."""
    ranks[0] |= {"energy_J": None, "clock_Hz": math.nan}
    run = reduce_ranks(ranks)
    assert run["energy_J"] is None
    assert run["clock_Hz"] == 2e9
    assert run["forward_time_s"] is None


def test_one_rank_stays_as_it_is() -> None:
    row = _row(step_time_s=0.1, energy_J=None)
    assert reduce_ranks([row]) == row


def test_mean_of_runs_is_over_those_that_know() -> None:
    found = mean_of([_row(step_time_s=1.0, power_W=None), _row(step_time_s=2.0, power_W=5.0)])
    assert found["step_time_s"] == 1.5
    assert found["power_W"] == 5.0
    assert found["energy_J"] is None
    assert found["plan"] is None


def test_figures_are_those_of_the_prediction(plan_of: PlanOf, calibration: Calibration) -> None:
    plan = plan_of(micro_batch=4, cluster={"gpus": 2}, parallel={"dp": 2})
    one = predict(architecture_of(plan), batch_of(plan), system_of(plan, calibration))
    found = predict_as_run(plan, calibration)
    assert set(found.values) == set(QUANTITIES)
    assert found.values["step_time"] == one.step_time_s[0]
    assert found.values["energy"] == one.energy_J[0]
    assert found.values["energy"] == pytest.approx(2 * found.values["power"] * found.values["step_time"])
    assert found.values["memory"] < one.memory_B[0]
    assert found.spreads["step_time"] == one.step_time_error[0]


def test_a_row_gives_temperature_and_skew_and_nothing_else(plan_of: PlanOf, calibration: Calibration) -> None:
    plan = plan_of(micro_batch=4)
    cool, warm = (predict_as_run(plan, calibration, _row(temperature_C=t)) for t in (40.0, 70.0))
    assert cool.values["power"] < warm.values["power"]
    nothing = predict_as_run(plan, calibration, _row(step_time_s=9.0, energy_J=9.0, peak_allocated_B=9))
    assert nothing == predict_as_run(plan, calibration)


def test_what_a_calibration_does_not_know_is_not_predicted(plan_of: PlanOf, calibration: Calibration) -> None:
    without = calibration.model_copy(update={"power": calibration.power.model_copy(update={"points": 0})})
    found = predict_as_run(plan_of(), without)
    assert {"energy", "power"}.isdisjoint(found.values)
    assert {"energy", "power"}.isdisjoint(found.spreads)
    assert "step_time" in found.values


def test_a_processor_has_no_clock(plan_of: PlanOf, calibration: Calibration) -> None:
    processor = calibration.model_copy(update={"gpu": "cpu"})
    assert "clock" not in predict_as_run(plan_of(cluster={"gpu": "cpu"}), processor).values
