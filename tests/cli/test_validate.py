"""`moemodel validate`: what it prints and writes, its exit codes, and what it says to a question that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.validation import Environment, Failed, Visit, read_report, row_of
from moemodel.validation import run
from moemodel.validation.records.session import RunRecord, ValidationSpec
from moemodel.validation.report.build import report_of
from moemodel.validation.select.runnable import Hardware
from tests.reports import environment_of

Run = Callable[..., Result]

PLAN = """\
name: {name}
architecture: opt-350m
sequence_length: 2048
global_batch: 16
micro_batch: {micro}
cluster: {{gpu: h100-sxm-80gb, gpus: 1}}
"""
SEARCH = """\
name: small
architecture: opt-350m
sequence_length: 2048
global_batch: 16
cluster: {gpu: h100-sxm-80gb, gpus: 2}
search: {cp: 1, micro_batch: [2, 4], recompute: none}
clocks_MHz: null
"""
ENVIRONMENT = environment_of(libraries={"torch": "2.11.0"})


def _report(spec: ValidationSpec, calibration: Calibration, failing: str | None) -> Any:
    """Runs that measured a little more than a second a step."""
    records = []
    for asked, repeat in spec.order():
        if asked.name == failing:
            failed = Failed(repeat=repeat, kind="out of memory", reason="it needs more", log="jobs/0")
            records.append(RunRecord(plan=asked.name, failed=failed))
            continue
        measured = {
            "step_time_s": 1.1 + 0.1 * len(asked.name) + 0.01 * repeat,
            "energy_J": 700.0,
            "power_W": 650.0,
            "peak_allocated_B": 5e9,
        }
        visit = Visit(repeat=repeat, clock_held=None, seconds=5.0, rows=(row_of(measured | {"rank": 0}),))
        records.append(RunRecord(plan=asked.name, visit=visit))
    return report_of(spec, records, calibration)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two H100 that run nothing; what was asked of them, and `failing`, `interrupted`, `signal` to say how it went."""
    seen: dict[str, Any] = {"failing": None, "interrupted": False, "signal": None}

    def probe_hardware(gpu: str, **how: Any) -> tuple[Hardware, Environment]:
        seen.update({"looked": gpu, "how": how})
        plain = {"gpus": 2, "no_locks": "--clocks passive", "power_limit_W": 700.0}
        return Hardware(gpu=read_gpu(gpu), unable=lambda _: None, **plain), ENVIRONMENT

    def validate(spec: ValidationSpec, folder: Path, calibration: Calibration, options: Any, **others: Any) -> Any:
        seen.update({"question": spec, "folder": folder, "gpu": others["gpu"], "used": options})
        report = _report(spec, calibration, seen["failing"])
        folder.mkdir(parents=True)
        run.write(report, folder)
        return run.ValidationResult(
            report=report, folder=folder, interrupted=seen["interrupted"], signal=seen["signal"]
        )

    monkeypatch.setattr(run, "probe_hardware", probe_hardware)
    monkeypatch.setattr(run, "validate", validate)
    return seen


@pytest.fixture
def plans(folder: Path) -> list[Path]:
    """Two plan files."""
    found = []
    for name, micro in (("big", 4), ("small", 2)):
        found.append(folder / f"{name}.yaml")
        found[-1].write_text(PLAN.format(name=name, micro=micro), encoding="utf-8")
    return [Path(path.name) for path in found]


def test_plans_of_files(
    asked: dict[str, Any], moemodel: Run, plans: list[Path], calibration_file: Path, folder: Path
) -> None:
    result = moemodel("validate", *plans, "--no-controls", "--calibration", calibration_file)
    assert result.exit_code == 0, result.output
    for text in ("NVIDIA H100", "big", "small", "step time", "Kendall's tau", "regret", "mean error", "report.html"):
        assert text in result.stdout, text
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\x1b" not in result.stdout
    assert "plan big: file big.yaml" in result.stderr
    assert "2 plans, 3 rounds: about " in result.stderr
    assert asked["looked"] == asked["gpu"] == "h100-sxm-80gb"
    assert read_report(folder / "validation-big").plans[0].name in ("big", "small")


def test_options_are_passed_on(
    asked: dict[str, Any], moemodel: Run, plans: list[Path], calibration_file: Path, folder: Path
) -> None:
    options = "--repeats 2 --seconds 1 --warm-seconds 0.5 --seed 7 --clocks as-is --launcher slurm --timeout 60 -o out"
    result = moemodel("validate", *plans, *options.split(), "--gpu", "h100", "--calibration", calibration_file)
    assert result.exit_code == 0, result.output
    assert asked["used"] == run.Options(
        repeats=2, seconds=1.0, warm_s=0.5, seed=7, clocks="passive", launcher="slurm", timeout_s=60.0
    )
    assert asked["looked"] == "h100"
    assert asked["how"] == {"clocks": "passive", "launcher": "slurm"}
    assert (folder / "out" / "report.json").exists()
    roles = [role for plan in asked["question"].plans for role in plan.roles]
    assert {"control: default", "control: random"} <= set(roles)


def test_a_site_forbids_locking_by_the_environment(
    asked: dict[str, Any], moemodel: Run, plans: list[Path], calibration_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOEMODEL_CLOCKS", "passive")
    assert moemodel("validate", *plans, "--no-controls", "--calibration", calibration_file).exit_code == 0
    assert asked["used"].clocks == "passive"


def test_the_best_plans_of_the_last_search(
    asked: dict[str, Any], moemodel: Run, folder: Path, calibration_file: Path
) -> None:
    (folder / "search.yaml").write_text(SEARCH, encoding="utf-8")
    assert moemodel("optimize", "search.yaml", "--calibration", calibration_file).exit_code == 0
    result = moemodel("validate", "--top", "2", "--calibration", calibration_file)
    assert result.exit_code == 0, result.output
    assert asked["question"].search == "small"
    assert asked["folder"] == Path("validation-small")
    assert sum(role.startswith("front") for plan in asked["question"].plans for role in plan.roles) <= 2
    assert "small on 2 x NVIDIA H100 80GB HBM3" in result.stdout


def test_without_plans_and_without_a_search(moemodel: Run, folder: Path) -> None:
    result = moemodel("validate")
    assert result.exit_code == 2
    assert result.stderr == (
        "moemodel: moemodel-search.json: no such file; run `moemodel optimize SEARCH.yaml` first, or name plan files\n"
    )
    assert [path.name for path in folder.iterdir()] == ["plan.yaml"]


def test_for_machines_it_prints_what_it_writes(
    asked: dict[str, Any], moemodel: Run, plans: list[Path], calibration_file: Path, folder: Path
) -> None:
    asked["failing"] = "small"
    result = moemodel("validate", *plans, "--json", "--no-controls", "--calibration", calibration_file)
    assert result.exit_code == 3
    assert result.stdout == (folder / "validation-big" / "report.json").read_text(encoding="utf-8")
    assert json.loads(result.stdout)["errors"]["step_time"]["plans"] == 1


def test_a_plan_that_failed_is_told_and_the_exit_code_says_so(
    asked: dict[str, Any], moemodel: Run, plans: list[Path], calibration_file: Path
) -> None:
    asked["failing"] = "small"
    result = moemodel("validate", *plans, "--no-controls", "--calibration", calibration_file)
    assert result.exit_code == 3
    assert "failed: small, round 1: out of memory: it needs more (log: jobs/0)" in result.stdout


@pytest.mark.parametrize(("signal", "code"), [(None, 130), (15, 143)])
def test_an_interruption_says_how_to_go_on(
    signal: int | None, code: int, asked: dict[str, Any], moemodel: Run, plans: list[Path], calibration_file: Path
) -> None:
    asked |= {"interrupted": True, "signal": signal}
    result = moemodel("validate", *plans, "--no-controls", "--calibration", calibration_file)
    assert result.exit_code == code
    assert "interrupted; run the same command again to go on" in result.stdout


@pytest.mark.usefixtures("asked")
def test_what_is_set_aside_is_said(moemodel: Run, plans: list[Path], calibration_file: Path, folder: Path) -> None:
    huge = PLAN.format(name="huge", micro=2).replace("gpus: 1", "gpus: 8") + "parallel: {dp: 8}\n"
    (folder / "huge.yaml").write_text(huge, encoding="utf-8")
    result = moemodel("validate", *plans, "huge.yaml", "--no-controls", "--calibration", calibration_file)
    assert result.exit_code == 0
    assert "set aside: huge [file huge.yaml]: it needs 8 GPUs; here are 2" in result.stderr
    assert "Set aside: huge" in result.stdout


def test_long_names_and_failures_stay_within_the_terminal(
    asked: dict[str, Any], moemodel: Run, plans: list[Path], calibration_file: Path, folder: Path
) -> None:
    name = "a-plan-with-a-name-that-is-as-long-as-names-of-plans-come"
    (folder / "long.yaml").write_text(PLAN.format(name=name, micro=1), encoding="utf-8")
    asked["failing"] = "small"
    result = moemodel("validate", *plans, "long.yaml", "--no-controls", "--calibration", calibration_file)
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_a_gpu_that_is_not_here(moemodel: Run, plans: list[Path], calibration_file: Path, folder: Path) -> None:
    """No driver on a machine that runs these tests without a GPU, or another GPU."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    result = moemodel("validate", *plans, "--calibration", calibration_file)
    assert result.exit_code == 2
    assert result.stderr.startswith("moemodel: --gpu h100-sxm-80gb: ")
    assert not (folder / "validation-big").exists()
