"""A validation with a launcher whose measurements are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moemodel.model.core.documents import parse_yaml
from moemodel.model.core.errors import CalibrationError, DeviceError
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.validation import PlanReport, Report, read_report
from moemodel.validation.records.session import ValidationSpec
from moemodel.validation.run import PAGE, Options, ValidationResult, validate
from moemodel.validation.select.hardware import one_queue

Ask = Callable[..., ValidationSpec]
PlanOf = Callable[..., Plan]
Go = Callable[..., ValidationResult]


@pytest.fixture
def go(fake: Any, calibration: Calibration, tmp_path: Path) -> Go:
    """Validates a question in a folder of its own."""

    def run(spec: ValidationSpec, said: list[str] | None = None, **options: Any) -> ValidationResult:
        say = (lambda _: None) if said is None else said.append
        return validate(spec, tmp_path / "v", calibration, Options(**options), gpu="h100", say=say, launch=fake)

    return run


def _plan(report: Report, name: str) -> PlanReport:
    (found,) = [plan for plan in report.plans if plan.name == name]
    return found


def test_what_is_measured_as_predicted_has_no_error(ask: Ask, go: Go) -> None:
    """But for noise of 1 % in time, whose mean is known."""
    report = go(ask()).report
    assert report.complete
    for plan in report.plans:
        for name in ("power", "memory", "clock"):
            assert plan.quantities[name].error == pytest.approx(0, abs=1e-9), name
        time = plan.quantities["step_time"]
        assert time.error == pytest.approx(0, abs=1e-9)
        assert time.error_std == pytest.approx(0.01, rel=0.01)
        assert time.measured is not None
        assert time.measured.n == 3
        assert time.measured.std == pytest.approx(0.01 * time.measured.mean)
    assert report.errors["step_time"].mape == pytest.approx(0, abs=1e-9)
    assert report.errors["step_time"].covered == 1
    assert report.ranking["step_time"].tau == 1
    assert report.ranking["step_time"].regret == 0


def test_an_environment_that_lets_nothing_overlap_is_named(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def named() -> bool:
        return any("CUDA_DEVICE_MAX_CONNECTIONS is 1" in note for note in ask().notes)

    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS", raising=False)
    assert not named()
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "8")
    assert not named()
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    assert named()


def test_plans_on_one_gpu_and_of_megatron_are_not_told_of_queues(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    two = {"cluster": {"gpus": 2}, "parallel": {"tp": 2}}
    assert one_queue([plan_of(), plan_of(backend="megatron-core", **two)]) is None
    assert "torch" in (one_queue([plan_of(**two)]) or "")


def test_plans_are_run_in_turns(ask: Ask, go: Go, fake: Any) -> None:
    spec = ask()
    go(spec)
    assert fake.made == [(asked.name, repeat) for asked, repeat in spec.order()]
    assert fake.visits == [fake.made]  # one launch for all rounds


def test_plans_are_in_the_order_of_their_predicted_time(ask: Ask, go: Go) -> None:
    plans = go(ask()).report.plans
    times_s = [plan.quantities["step_time"].forecast.value for plan in plans]  # type: ignore[union-attr]
    assert times_s == sorted(times_s)


def test_what_is_written_is_the_report(ask: Ask, go: Go, tmp_path: Path) -> None:
    outcome = go(ask())
    assert read_report(tmp_path / "v") == outcome.report
    assert (tmp_path / "v" / PAGE).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not list((tmp_path / "v").glob(".*"))


# ---- failures -------------------------------------------------------------------------------------------------------


def test_a_plan_that_fails_is_reported_and_the_others_go_on(ask: Ask, go: Go, fake: Any) -> None:
    fake.failing = {"two": "memory"}
    said: list[str] = []
    report = go(ask(), said).report
    assert report.complete
    (failed,) = report.failed
    assert failed.name == "two"
    (one,) = failed.failures
    assert (one.kind, one.reason, one.log) == ("out of memory", "it did <that>", "jobs/0")
    assert failed.quantities["step_time"].measured is None
    assert failed.quantities["step_time"].forecast is not None
    assert [name for name, _ in fake.made].count("two") == 1
    assert sorted(name for name, _ in fake.made) == ["one"] * 3 + ["tensor"] * 3 + ["two"]
    assert any(text.startswith("two: out of memory: it did <that>") for text in said)
    assert report.errors["step_time"].plans == 2


def test_all_plans_fail(ask: Ask, go: Go, fake: Any) -> None:
    fake.failing = dict.fromkeys(("one", "two", "tensor"), "timeout")
    report = go(ask()).report
    assert report.complete
    assert len(report.failed) == 3
    assert {failed.kind for plan in report.plans for failed in plan.failures} == {"no progress"}
    assert report.errors == report.ranking == {}


def test_what_cannot_be_predicted_is_found_out_before_anything_runs(
    ask: Ask, calibration: Calibration, fake: Any, tmp_path: Path
) -> None:
    other = calibration.model_copy(update={"gpu": "a100-sxm-80gb"})
    with pytest.raises(CalibrationError):
        validate(ask(), tmp_path / "v", other, Options(), gpu="h100", launch=fake)
    assert not fake.visits
    assert not (tmp_path / "v").exists()


# ---- interruptions --------------------------------------------------------------------------------------------------


def test_an_interrupted_validation_goes_on(ask: Ask, go: Go, fake: Any) -> None:
    fake.until = 4
    first = go(ask())
    assert first.interrupted
    assert first.signal is None
    assert not first.report.complete
    assert sum(len(plan.visits) for plan in first.report.plans) == 4
    fake.until = None
    said: list[str] = []
    second = go(ask(), said)
    assert not second.interrupted
    assert second.report.complete
    assert sorted(fake.made) == sorted((a.name, r) for a, r in ask().order())  # none of them twice
    assert said[0].endswith("4 runs were made before; going on")


def test_one_that_is_done_runs_nothing(ask: Ask, go: Go, fake: Any) -> None:
    first = go(ask()).report
    again = go(ask()).report
    assert len(fake.visits) == 1
    assert again.plans == first.plans


def test_what_was_measured_is_reported_on_whatever_ended_it(
    ask: Ask, calibration: Calibration, fake: Any, tmp_path: Path
) -> None:
    def launch(visits: Any, **others: Any) -> Any:
        yield next(fake(visits, **others))
        raise DeviceError("no job could be started")

    with pytest.raises(DeviceError, match="no job could be started"):
        validate(ask(), tmp_path / "v", calibration, Options(), gpu="h100", launch=launch)
    assert sum(len(plan.visits) for plan in read_report(tmp_path / "v").plans) == 1


# ---- clocks and power -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [True, False])
def test_a_plan_is_predicted_at_the_clock_that_was_held(
    held: bool, ask: Ask, go: Go, fake: Any, plan_of: PlanOf
) -> None:
    fake.held = held
    plans = [plan_of(name="slow", micro_batch=4, clock_MHz=1200.0), plan_of(name="free", micro_batch=4)]
    report = go(ask(*plans)).report
    slow = _plan(report, "slow")
    assert slow.plan.clock_MHz == (1200.0 if held else None)
    assert slow.quantities["step_time"].error == pytest.approx(0, abs=1e-9)
    assert slow.quantities["clock"].error == pytest.approx(0, abs=1e-9)
    if not held:
        (note,) = slow.notes
        assert "asks for 1200 MHz, which was not held (no permission)" in note
        assert slow.quantities["step_time"].forecast == _plan(report, "free").quantities["step_time"].forecast
    assert "clock_MHz: 1200" in slow.asked_yaml


def test_the_power_limit_in_force_is_predicted_for_and_not_set(
    ask: Ask, calibration: Calibration, fake: Any, plan_of: PlanOf, tmp_path: Path
) -> None:
    seen: list[Plan] = []

    def launch(visits: Any, **others: Any) -> Any:
        seen.extend(visit.plan for visit in visits)
        assert all(parse_yaml(visit.plan_yaml, Plan, "visit") == visit.plan for visit in visits)
        return fake(visits, **others)

    spec = ask(plan_of(name="capped", micro_batch=4, power_cap_W=400.0))
    report = validate(spec, tmp_path / "v", calibration, Options(), gpu="h100", launch=launch).report
    assert all(plan.power_cap_W is None for plan in seen)
    (capped,) = report.plans
    assert capped.plan.power_cap_W == 400.0
    assert capped.quantities["power"].forecast is not None
    assert capped.quantities["power"].forecast.value < 410
