"""From rows to a report: closed forms of its figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.measured import predict_as_run
from moemodel.model.results.validation import PlanReport, Visit, row_of
from moemodel.validation.records.session import RunRecord, ValidationSpec
from moemodel.validation.report.build import errors_of, ranking_of, report_of

Ask = Callable[..., ValidationSpec]
PlanOf = Callable[..., Plan]


def _records(
    spec: ValidationSpec, calibration: Calibration, factors: dict[str, Sequence[float]], **row: Any
) -> list[RunRecord]:
    """Runs of one rank, each so many times slower than forecast."""
    records = []
    for asked in spec.plans:
        values = predict_as_run(asked.plan, calibration).values
        for repeat, factor in enumerate(factors.get(asked.name, ())):
            measured = {"step_time_s": factor * values["step_time"], "energy_J": factor * values["energy"]}
            rows = (row_of(measured | {"rank": 0} | row),)
            visit = Visit(repeat=repeat, clock_held=None, seconds=1.0, rows=rows)
            records.append(RunRecord(plan=asked.name, visit=visit))
    return records


def test_errors_and_their_spread(ask: Ask, calibration: Calibration) -> None:
    spec = ask()
    report = report_of(spec, _records(spec, calibration, {"one": [1.0, 1.25], "two": [0.8]}), calibration)
    plans = {plan.name: plan for plan in report.plans}
    one, two = (plans[name].quantities["step_time"] for name in ("one", "two"))
    assert one.error == pytest.approx(1 / 1.125 - 1)
    assert one.error_std == pytest.approx(0.2 / math.sqrt(2))  # of 0 and -0.2
    assert two.error == pytest.approx(0.25)
    assert two.error_std is None
    assert plans["tensor"].quantities["step_time"].error is None
    errors = report.errors["step_time"]
    assert errors.mape == pytest.approx((0.25 + 1 / 9) / 2)
    assert errors.worst == pytest.approx(0.25)
    assert errors.worst_plan == "two"
    assert errors.plans == 2
    assert errors.covered == 0
    assert not report.complete


def test_forecast_and_prediction_differ_by_what_was_measured_of_the_state(ask: Ask, calibration: Calibration) -> None:
    spec = ask()
    report = report_of(spec, _records(spec, calibration, {"one": [1.0]}, temperature_C=80.0), calibration)
    (plan,) = [plan for plan in report.plans if plan.visits]
    energy = plan.quantities["energy"]
    assert plan.temperature_C == 80.0
    assert energy.forecast is not None
    assert energy.predicted is not None
    assert energy.measured is not None
    assert energy.forecast.value == pytest.approx(energy.measured.mean)
    assert energy.predicted.value > 1.01 * energy.forecast.value


def test_regret_is_that_of_the_forecast(ask: Ask, calibration: Calibration) -> None:
    """The plan predicted fastest took twice as long as it should have."""
    spec = ask()
    forecast = {a.name: predict_as_run(a.plan, calibration).values["step_time"] for a in spec.plans}
    first, second, _ = sorted(forecast, key=lambda name: forecast[name])
    factors = {name: [2.0 if name == first else 1.0] for name in forecast}
    ranking = report_of(spec, _records(spec, calibration, factors), calibration).ranking["step_time"]
    assert (ranking.chosen, ranking.best) == (first, second)
    assert ranking.regret == pytest.approx(2 * forecast[first] / forecast[second] - 1)
    assert ranking.pairs == 3


def test_without_measurements_there_are_no_figures(ask: Ask, calibration: Calibration) -> None:
    report = report_of(ask(), [], calibration)
    assert report.errors == report.ranking == {}
    nobody: list[PlanReport] = []
    assert errors_of(nobody, "step_time") is None
    assert ranking_of(nobody, "step_time") is None


def test_losses_that_differ_are_told(ask: Ask, calibration: Calibration) -> None:
    spec = ask()
    same = _records(spec, calibration, {"one": [1.0]}, loss_first=10.0)
    other = _records(spec, calibration, {"two": [1.0]}, loss_first=10.2)
    note = "one begins with a loss of 10, two with 10.2, from the same weights and data"
    assert any(note in text for text in report_of(spec, same + other, calibration).notes)
    near = _records(spec, calibration, {"two": [1.0]}, loss_first=10.05)
    assert not any("loss" in text for text in report_of(spec, same + near, calibration).notes)
