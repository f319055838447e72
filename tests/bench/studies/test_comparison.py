"""Predicted against measured: what is compared, what reaches the prediction, and what does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml

from moemodel.model.core.errors import CalibrationError, InputError
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.predict.prediction import Prediction
from moemodel.model.records.calibration import Calibration
from moemodel.model.records.profile import TABLES
from moemodel.model.results.measured import QUANTITIES
from moemodel.model.step.system import system_of
from studies.comparison import Comparison, Quantity, compare, coverage, mape, runs_of

Row = dict[str, Any]
PlanOf = Callable[..., Plan]

MOE = {  # experts on two GPUs, so that uneven routing costs time
    "architecture": "olmoe-1b-7b",
    "layers": 2,
    "sequence_length": 4096,
    "global_batch": 2,
    "cluster": {"gpus": 2},
    "parallel": {"dp": 2, "ep": 2},
}
INPUTS = {"plan", "plan_yaml", "expert_skew", "temperature_C"}


def _row(plan: Plan, **columns: Any) -> Row:
    """A row of `iterations`: everything is null but the plan and what is given."""
    empty: Row = dict.fromkeys(TABLES["iterations"])
    return empty | {"plan": plan.name, "plan_yaml": yaml.safe_dump(plan.model_dump())} | columns


@pytest.fixture
def dense(plan_of: PlanOf) -> Plan:
    return plan_of(micro_batch=4)


@pytest.fixture
def moe(plan_of: PlanOf) -> Plan:
    return plan_of(**MOE)


def _predict(plan: Plan, calibration: Calibration, temperature_C: float | None = None) -> Prediction:
    machine = system_of(plan, calibration)
    return predict(architecture_of(plan), batch_of(plan), machine, temperature_C=temperature_C)


def _one_run(rows: list[Row], calibration: Calibration) -> Comparison:
    (found,) = compare(rows, calibration)
    return found


def _one(row: Row, calibration: Calibration) -> Comparison:
    return _one_run([row], calibration)


def _measured_as_predicted(plan: Plan, calibration: Calibration, factor: float = 1.0) -> Row:
    """A run that measured `factor` times what is predicted, at 50 degrees."""
    p = _predict(plan, calibration, 50.0)
    beside_B = p.memory_terms_B["context"] + p.memory_terms_B["fragmentation"]  # not the allocator's
    measured = {
        "step_time_s": p.step_time_s,
        "energy_J": p.energy_J,
        "power_W": p.power_W,
        "clock_Hz": p.clock_Hz,
        "peak_allocated_B": p.memory_B - beside_B,
        "forward_time_s": p.forward_s,
        "backward_time_s": p.backward_s,
        "optimizer_time_s": p.optimizer_s,
    }
    values = {name: factor * column.item() for name, column in measured.items()}
    return _row(plan, temperature_C=50.0, **values)


# ---- one quantity ---------------------------------------------------------------------------------------------------


def test_the_error_is_relative_to_the_measurement_and_signed() -> None:
    assert Quantity(predicted=110.0, measured=100.0).error == pytest.approx(0.1)
    assert Quantity(predicted=90.0, measured=100.0).error == pytest.approx(-0.1)
    assert Quantity(predicted=5.0, measured=5.0).error == 0


def test_a_measurement_is_covered_within_the_central_ninety_per_cent() -> None:
    """Of a log-normal of spread 0.1: a factor of exp(0.1645) either way."""
    edge = math.exp(1.645 * 0.1)
    for inside in (1.0, 0.999 * edge, 1.001 / edge):
        assert Quantity(predicted=100.0 * inside, measured=100.0, spread=0.1).covered
    for outside in (1.001 * edge, 0.999 / edge):
        assert not Quantity(predicted=100.0 * outside, measured=100.0, spread=0.1).covered


def test_without_a_spread_nothing_is_covered() -> None:
    assert not Quantity(predicted=1.0, measured=1.0).covered


# ---- one run --------------------------------------------------------------------------------------------------------


def test_a_run_that_measures_what_is_predicted_has_no_error(dense: Plan, calibration: Calibration) -> None:
    found = _one(_measured_as_predicted(dense, calibration), calibration)
    assert found.name == dense.name
    assert set(found.quantities) == set(QUANTITIES)
    for name, quantity in found.quantities.items():
        assert quantity.error == pytest.approx(0.0, abs=1e-9), name
    assert found.quantities["step_time"].covered
    assert found.quantities["energy"].covered


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 4.0])
def test_a_run_that_takes_so_many_times_more(factor: float, dense: Plan, calibration: Calibration) -> None:
    found = _one(_measured_as_predicted(dense, calibration, factor), calibration)
    for quantity in found.quantities.values():
        assert quantity.error == pytest.approx(1 / factor - 1)


def test_the_share_of_waiting_is_that_of_the_prediction(plan_of: PlanOf, calibration: Calibration) -> None:
    plan = plan_of(sequence_length=128)
    prediction = _predict(plan, calibration)
    found = _one(_row(plan), calibration)
    assert found.host_share == pytest.approx(float(prediction.host_wait_s[0] / prediction.step_time_s[0]))
    assert found.host_share > 0.1


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_what_was_not_measured_is_not_compared(nothing: float | None, dense: Plan, calibration: Calibration) -> None:
    row = _measured_as_predicted(dense, calibration) | {"power_W": nothing, "energy_J": nothing}
    assert set(_one(row, calibration).quantities) == set(QUANTITIES) - {"power", "energy"}


def test_rows_of_ranks_are_one_run(plan_of: PlanOf, calibration: Calibration) -> None:
    """Two GPUs that share energy evenly, of which one holds less and waits for the other."""
    plan = plan_of(micro_batch=4, cluster={"gpus": 2}, parallel={"tp": 2})
    whole = _measured_as_predicted(plan, calibration)
    half = whole | {"energy_J": whole["energy_J"] / 2}
    second = half | {"rank": 1, "peak_allocated_B": 1, "step_time_s": 0.9 * half["step_time_s"]}
    found = _one_run([half | {"rank": 0}, second], calibration)
    for name in ("step_time", "energy", "memory", "power"):
        assert found.quantities[name].error == pytest.approx(0.0, abs=1e-9), name


# ---- what reaches the prediction ------------------------------------------------------------------------------------


def _predicted(found: Comparison) -> dict[str, float]:
    return {name: quantity.predicted for name, quantity in found.quantities.items()} | {"host": found.host_share}


def _everything(plan: Plan, calibration: Calibration) -> Row:
    numbers = {name: 1.0 for name, kind in TABLES["iterations"].items() if kind != "string"}
    return numbers | _measured_as_predicted(plan, calibration) | {"expert_skew": 1.2}


@pytest.mark.parametrize("column", sorted(set(TABLES["iterations"]) - INPUTS))
def test_no_measurement_reaches_the_prediction(column: str, moe: Plan, calibration: Calibration) -> None:
    row = _everything(moe, calibration)
    changed = row | {column: 3.0 * row[column] if row[column] is not None else 7.0}
    assert _predicted(_one(changed, calibration)) == _predicted(_one(row, calibration))


def test_what_the_router_did_reaches_it(moe: Plan, calibration: Calibration) -> None:
    row = _everything(moe, calibration)
    times = [_predicted(_one(row | {"expert_skew": skew}, calibration))["step_time"] for skew in (1.0, 1.5, 3.0)]
    assert (np.diff(times) > 0).all()


def test_without_it_the_plans_own_skew_stands(plan_of: PlanOf, calibration: Calibration) -> None:
    plan = plan_of(**MOE, routing={"skew": 1.7})
    row = _everything(plan, calibration)
    none, same = (_predicted(_one(row | {"expert_skew": skew}, calibration)) for skew in (None, 1.7))
    assert none == same
    assert _predicted(_one(row | {"expert_skew": math.nan}, calibration)) == same


def test_how_warm_it_was_reaches_power_and_energy(dense: Plan, calibration: Calibration) -> None:
    row = _everything(dense, calibration)
    cool, warm = (_predicted(_one(row | {"temperature_C": t}, calibration)) for t in (40.0, 70.0))
    assert cool["energy"] < warm["energy"]
    assert cool["memory"] == warm["memory"]


def test_without_it_the_steady_state_stands(dense: Plan, calibration: Calibration) -> None:
    steady = _predict(dense, calibration)
    row = _everything(dense, calibration)
    for nothing in (None, math.nan):
        found = _predicted(_one(row | {"temperature_C": nothing}, calibration))
        assert found["energy"] == steady.energy_J[0]
        assert found["step_time"] == steady.step_time_s[0]


# ---- many runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def runs() -> list[Comparison]:
    """Errors in time of +10, -20 and 0 %; energy of one run only, and no power."""

    def run(name: str, time: float, **others: Quantity) -> Comparison:
        measured = Quantity(predicted=time, measured=1.0, spread=0.1)
        return Comparison(name=name, quantities={"step_time": measured, **others}, host_share=0.0)

    return [run("a", 1.1), run("b", 0.8, energy=Quantity(predicted=3.0, measured=4.0, spread=0.01)), run("c", 1.0)]


def test_mape_is_the_mean_of_absolute_errors(runs: list[Comparison]) -> None:
    assert mape(runs, "step_time") == pytest.approx(0.1)


def test_mape_is_over_the_runs_that_have_the_quantity(runs: list[Comparison]) -> None:
    assert mape(runs, "energy") == pytest.approx(0.25)


def test_a_quantity_that_nobody_measured_has_no_mape(runs: list[Comparison]) -> None:
    with pytest.raises(ValueError, match="no run measured power"):
        mape(runs, "power")


def test_coverage_is_the_share_of_runs_in_their_interval(runs: list[Comparison]) -> None:
    assert coverage(runs, "step_time") == pytest.approx(2 / 3)
    assert coverage(runs, "energy") == 0


def test_runs_keep_their_order(dense: Plan, moe: Plan, calibration: Calibration) -> None:
    rows = [_row(plan) | {"plan": name} for name, plan in (("b", dense), ("a", moe), ("c", dense))]
    assert [run.name for run in compare(rows, calibration)] == ["b", "a", "c"]
    assert compare([], calibration) == []


# ---- what is wrong --------------------------------------------------------------------------------------------------


def test_a_plan_that_is_none_is_named(dense: Plan, calibration: Calibration) -> None:
    row = _row(dense) | {"plan": "broken", "plan_yaml": "architecture: opt-350m\ncolour: blue\n"}
    with pytest.raises(InputError, match=r"broken:2: unknown key 'colour'"):
        compare([row], calibration)


def test_a_calibration_of_another_gpu_is_refused(plan_of: PlanOf, calibration: Calibration) -> None:
    plan = plan_of(cluster={"gpu": "a100-sxm-80gb", "gpus": 1})
    with pytest.raises(CalibrationError, match=r"test-h100 is of h100-sxm-80gb, but cluster\.gpu is a100-sxm-80gb"):
        compare([_row(plan)], calibration)


def _ranked(rank: int | None, **columns: Any) -> Row:
    return dict.fromkeys(TABLES["iterations"]) | {"plan": "a", "rank": rank} | columns


def test_rows_of_a_plan_with_ascending_ranks_are_a_run() -> None:
    ranks = [_ranked(0), _ranked(1), _ranked(3)]
    again, other = [row | {"step_time_s": 1.0} for row in ranks], [_ranked(0, plan="b"), _ranked(1, plan="b")]
    assert list(runs_of([*ranks, *again, *other])) == [ranks, again, other]
    assert list(runs_of([])) == []


def test_rows_without_a_rank_are_runs_by_themselves() -> None:
    rows = [_ranked(None), _ranked(None)]
    assert [len(run) for run in runs_of(rows)] == [1, 1]
