"""The whole path on the processor at hand, as a user takes it: profile, calibrate, predict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result

from moemodel.calibration.store.profile_reader import read_table
from moemodel.cli import main
from moemodel.model.operators.work import PASSES, Kind
from moemodel.model.records.calibration import Calibration, read_calibration
from moemodel.model.records.profile import MANIFEST
from moemodel.profiler import run as profiler
from moemodel.profiler.host_overhead import single_gpu as host_lane
from moemodel.profiler.microbench import budget

PLAN = """\
name: tiny
architecture: opt-350m
layers: 2
sequence_length: 256
global_batch: 4
micro_batch: 2
cluster: {gpu: cpu, gpus: 1}
tokens: 1e6
"""


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="moemodel", catch_exceptions=False)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny operators gain nothing from threads, and on a busy machine lose much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def profile(folder: Path) -> Path:
    """A real profile of this processor: every operator; the host's part on dense layers only, where it is quick."""
    quick = replace(budget.budget_for(torch.device("cpu")), host_repeats=1, power_window_s=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiler, "budget_for", lambda _: quick)
        patch.setattr(host_lane, "KINDS", host_lane.KINDS[:2])
        arguments = ("--gpu", "cpu", "--budget", "60", "--sections", "mixed,power,solo,host")
        result = _run("profile", *arguments, "-o", folder / "profile")
    assert result.exit_code == 0, result.output
    return folder / "profile"


@pytest.fixture(scope="module")
def calibration_file(folder: Path, profile: Path) -> Path:
    path = folder / "mine.json"
    result = _run("calibrate", profile, "-o", path)
    assert result.exit_code == 0, result.output
    assert "gemm" in result.stdout
    return path


@pytest.fixture(scope="module")
def calibration(calibration_file: Path) -> Calibration:
    return read_calibration(calibration_file)


@pytest.fixture(scope="module")
def plan(folder: Path) -> Path:
    path = folder / "plan.yaml"
    path.write_text(PLAN, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def answer(plan: Path, calibration_file: Path) -> dict[str, Any]:
    result = _run("predict", plan, "--calibration", calibration_file, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_every_operator_was_measured_and_fitted(profile: Path, calibration: Calibration) -> None:
    measured = read_table(profile, "operators").groupby(["kind", "direction"])
    every = {(str(kind), str(direction)) for kind in Kind for direction in PASSES[kind]}
    assert set(measured.groups) == every
    assert {(str(fit.kind), str(fit.direction)) for fit in calibration.operators} == every


def test_a_calibration_of_a_processor_says_what_it_is(calibration: Calibration) -> None:
    assert calibration.gpu == "cpu"
    assert "Measured" in calibration.provenance
    assert calibration.power.points == 0
    assert {p.origin for p in calibration.chip.values()} <= {"measured", "assumed"}
    forward = calibration.host[0].blocks["dense_layer/forward"]
    assert forward.value > 0 or "noise" in forward.source  # a difference of two times, lost in it on a busy machine


def test_a_step_is_predicted(answer: dict[str, Any]) -> None:
    """Within what any processor does: 4 sequences of 256 tokens through 54 M parameters are 0.3 TFLOP."""
    step = answer["step"]
    assert 0.01 < step["step_time_s"]["value"] < 60
    low, high = step["step_time_s"]["interval"]
    assert low < step["step_time_s"]["value"] < high
    assert sum(phase["time_s"] for phase in answer["phases"].values()) == pytest.approx(step["step_time_s"]["value"])
    assert answer["memory"]["fits"]
    assert answer["memory"]["available_B"] is None


def test_what_was_not_measured_is_null_and_said(answer: dict[str, Any]) -> None:
    """No power readings and no datasheet: no energy, carbon, cost or utilisation; and no number that looks like one."""
    step = answer["step"]
    assert step["mfu"] is None
    for name in ("power_per_gpu_W", "energy_J", "energy_per_token_J", "hottest_gpu_power_W"):
        assert step[name]["value"] is None, name
    assert answer["run"]["energy_kWh"]["value"] is None
    assert answer["run"]["emissions_kgCO2e"]["value"] is None
    assert answer["run"]["hours"]["value"] > 0
    assert any("ower was not measured" in note for note in answer["notes"])


def test_a_person_gets_the_same(plan: Path, calibration_file: Path, answer: dict[str, Any]) -> None:
    result = _run("predict", plan, "--calibration", calibration_file)
    assert result.exit_code == 0, result.output
    assert "tokens/s" in result.stdout
    assert "nan" not in result.stdout.lower()
    assert all(note.split(":")[0] in " ".join(result.stdout.split()) for note in answer["notes"])


def test_profiling_again_measures_nothing_anew(profile: Path) -> None:
    before = read_table(profile, "operators")
    result = _run("profile", "--gpu", "cpu", "-o", profile, "--budget", "60", "--sections", "mixed,solo")
    assert result.exit_code == 0, result.output
    assert read_table(profile, "operators").equals(before)


def test_a_plan_of_another_gpu_is_refused(plan: Path, folder: Path, calibration_file: Path) -> None:
    other = folder / "h100.yaml"
    other.write_text(plan.read_text(encoding="utf-8").replace("gpu: cpu", "gpu: h100-sxm-80gb"), encoding="utf-8")
    result = _run("predict", other, "--calibration", calibration_file)
    assert result.exit_code == 2
    assert "calibration cpu is of cpu" in result.stderr
    assert "Traceback" not in result.output


def test_a_profile_that_was_cut_short_is_refused(profile: Path, tmp_path: Path) -> None:
    """A budget that ended before the first product leaves nothing to call this processor's rate."""
    rest = tmp_path / "profile"
    rest.mkdir()
    (rest / MANIFEST).write_bytes((profile / MANIFEST).read_bytes())
    table = pq.read_table(profile / "operators.parquet")
    pq.write_table(table.filter(pc.field("kind") == "copy"), rest / "operators.parquet")
    result = _run("calibrate", rest, "-o", tmp_path / "mine.json")
    assert result.exit_code == 2
    assert "gemm" in result.stderr
