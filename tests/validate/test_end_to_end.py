"""The whole chain for real, on this machine's processor: profile, calibrate, validate on one and two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from moemodel.cli import main
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.validation import read_report
from tests.small_plans import CONFIG, small_plan


@pytest.fixture
def processor(calibration: Calibration) -> Calibration:
    """Of the processor, without power and with times out of thin air."""
    return calibration.model_copy(
        update={"gpu": "cpu", "name": "cpu", "power": calibration.power.model_copy(update={"points": 0})}
    )


def test_plans_are_run_by_real_processes(
    processor: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two plans in two processes that talk through gloo; run again, it runs nothing."""
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    Path("cpu.json").write_text(processor.model_dump_json(), encoding="utf-8")
    for name, gpus in (("one", 1), ("two", 2)):
        Path(f"{name}.yaml").write_text(small_plan(name, gpus), encoding="utf-8")
    command = (
        "validate one.yaml two.yaml --no-controls --repeats 1 --seconds 0.05 --warm-seconds 0 -o out --timeout 120"
    )
    arguments = [*command.split(), "--calibration", "cpu.json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    report = read_report(Path("out"))
    assert report.complete
    assert {plan.name: len(plan.visits[0].rows) for plan in report.plans} == {"one": 1, "two": 2}
    assert report.errors["step_time"].plans == 2
    assert "energy" not in report.errors
    losses = {row["loss_first"] for plan in report.plans for row in plan.visits[0].rows}
    assert max(losses) == pytest.approx(min(losses), rel=0.01)  # type: ignore[type-var]
    jobs = list(Path("out/jobs").iterdir())
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 0, again.output
    assert list(Path("out/jobs").iterdir()) == jobs
    assert read_report(Path("out")).plans == report.plans
