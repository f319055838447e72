"""The figures over committed reports: closed forms on made-up ones, and the aims where there are measured ones."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from moemodel.model.plan.spec import Plan, plan_text
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.measured import predict_as_run
from moemodel.model.results.validation import Report, Visit, row_of
from moemodel.validation.records.session import RequestedPlan, RunRecord, ValidationSpec
from moemodel.validation.report.build import report_of
from studies.comparison import predicted_again
from tests.reports import environment_of

ROOT = Path(__file__).parents[2]
REPORTS = sorted((ROOT / "bench" / "measured" / "validation").glob("*.json"))
Run = Callable[..., subprocess.CompletedProcess[str]]
ENVIRONMENT = environment_of(gpus=1)


@pytest.fixture(scope="module")
def bench(bench_module: Callable[[str], ModuleType]) -> ModuleType:
    return bench_module("validate")


@pytest.fixture
def reported(plan_of: Callable[..., Plan], calibration: Calibration) -> Callable[..., Report]:
    """A report on two micro-batches of OPT-350M, which took so many times what is forecast."""

    def make(**factors: float) -> Report:
        plans = {"small": plan_of(name="small", micro_batch=1), "big": plan_of(name="big", micro_batch=4)}
        asked = tuple(
            RequestedPlan(name=name, asked_yaml=plan_text(plan), plan_yaml=plan_text(plan), roles=(), notes=())
            for name, plan in plans.items()
        )
        spec = ValidationSpec(
            plans=asked,
            set_aside=(),
            search=None,
            repeats=1,
            seconds=1.0,
            warm_s=1.0,
            seed=0,
            asked_clocks="auto",
            environment=ENVIRONMENT,
            notes=(),
        )
        records = []
        for name, factor in factors.items():
            values = predict_as_run(plans[name], calibration).values
            row = row_of(
                {
                    "step_time_s": factor * values["step_time"],
                    "energy_J": values["energy"],
                    "peak_allocated_B": int(values["memory"]),
                }
            )
            records.append(RunRecord(plan=name, visit=Visit(repeat=0, clock_held=None, seconds=1.0, rows=(row,))))
        return report_of(spec, records, calibration)

    return make


def test_errors_over_all_plans_of_all_reports(bench: ModuleType, reported: Callable[..., Report]) -> None:
    found = bench.figures([reported(small=1.25, big=1.0), reported(small=0.8)])
    assert found["step_time_mape"] == pytest.approx((0.2 + 0.0 + 0.25) / 3)
    assert found["step_time_worst"] == pytest.approx(0.25)
    assert found["energy_mape"] == pytest.approx(0, abs=1e-9)
    assert found["memory_mape"] == pytest.approx(0, abs=1e-6)
    assert found["power_mape"] is None
    assert (found["plans"], found["runs"], found["reports"]) == (3, 3, 2)


def test_agreement_and_regret_are_the_worse_of_time_and_energy_within_reports(
    bench: ModuleType, reported: Callable[..., Report]
) -> None:
    """The one forecast to be faster took three times as long in one report of two; energies are as forecast."""
    right, wrong = reported(small=1.0, big=1.0), reported(small=1.0, big=3.0)
    times_s = {plan.name: plan.quantities["step_time"].forecast.value for plan in right.plans}  # type: ignore[union-attr]
    assert times_s["big"] < times_s["small"] < 3 * times_s["big"]
    found = bench.figures([right, wrong])
    assert found["pairs"] == 2
    assert found["kendall_tau"] == pytest.approx(0)
    regret = 3 * times_s["big"] / times_s["small"] - 1
    assert found["regret"] == pytest.approx(regret / 2)
    assert found["regret_worst"] == pytest.approx(regret)


def test_predictions_follow_the_calibration(reported: Callable[..., Report], calibration: Calibration) -> None:
    report = reported(small=1.0, big=1.0)
    assert predicted_again(report, calibration) == report
    flops = calibration.chip["flops_per_cycle"]
    twice = flops.model_copy(update={"value": 2 * flops.value})
    faster = calibration.model_copy(update={"chip": calibration.chip | {"flops_per_cycle": twice}})
    again = predicted_again(report, faster)
    assert again.errors["step_time"].mape > 0.1
    assert again.calibration != report.calibration
    assert [plan.visits for plan in again.plans] == [plan.visits for plan in report.plans]


def test_predictions_are_made_anew(
    reported: Callable[..., Report], calibration: Calibration, tmp_path: Path, run_bench: Run
) -> None:
    """What a report says of predictions doesn't count."""
    report = reported(small=1.0, big=1.0)
    lies = report.model_copy(
        update={"plans": tuple(p.model_copy(update={"quantities": {}}) for p in report.plans), "errors": {}}
    )
    assert predicted_again(lies, calibration) == report
    (tmp_path / "one.json").write_text(lies.to_json(), encoding="utf-8")
    file = tmp_path / "calibration" / "c.json"
    file.parent.mkdir()
    file.write_text(calibration.model_dump_json(), encoding="utf-8")
    done = run_bench("validate.py", "--json", "--reports", tmp_path, "--calibration", file)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["step_time_mape"] == pytest.approx(0, abs=1e-9)
    assert found["kendall_tau"] == 1
    assert found["regret"] == 0


def test_without_reports_it_says_so(tmp_path: Path, rerun_bench: Run) -> None:
    done = rerun_bench("validate.py", "--json", "--reports", tmp_path)
    assert json.loads(done.stdout) == {"skipped": f"skipped: there is no report in {tmp_path}"}


@pytest.mark.skipif(not REPORTS, reason="no measured validation is committed")
def test_how_near_the_aims_the_project_is(rerun_bench: Run) -> None:
    done = rerun_bench("validate.py", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["plans"] >= 14
    assert 0 < found["step_time_mape"] <= 0.05
    assert found["step_time_worst"] <= 0.12
    assert 0 < found["energy_mape"] <= 0.06
    assert 0 < found["memory_mape"] <= 0.05
    assert found["kendall_tau"] >= 0.85  # the aim, 0.9, is met only by plans that measurement tells apart
    assert found["kendall_tau_told_apart"] >= 0.9
    assert found["regret"] <= 0.01
