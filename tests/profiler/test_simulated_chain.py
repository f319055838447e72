"""Profile, calibrate, predict without a GPU: how wrong predictions are of a simulated GPU, and what its failures do.

The simulated GPU has physics of its own, so nothing here finds hidden parameters again but those that mean the same to
the predictor. The chain is held to the errors of its predictions: `bench/simulated_gpu.py` prints them for more seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from moemodel.calibration.fit import operators
from moemodel.calibration.fit.calibration import calibrate_profile
from moemodel.calibration.fit.power import loads_of
from moemodel.calibration.store.profile_tables import PowerTable
from moemodel.cli import main
from moemodel.cli.profile import profile_command
from moemodel.model.core.errors import DeviceError
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.records.calibration import Calibration, read_calibration
from moemodel.profiler import run as run_module
from moemodel.profiler.microbench.points import Point, Sizes
from moemodel.profiler.run import ProfileReport, Workload, profile
from moemodel.profiler.sections.loads import gpu_loads
from moemodel.profiler.simulated.chip import CHIPS, SimulatedChip
from moemodel.profiler.simulated.gpu import VirtualGpu
from moemodel.profiler.simulated.kernels import kernel

H100, A100 = "h100-sxm-80gb", "a100-sxm-80gb"
PLAN = """\
name: simulated
architecture: opt-350m
sequence_length: 2048
global_batch: 8
micro_batch: 4
cluster: {gpu: h100-sxm-80gb, gpus: 1}
"""
# What the A100 is compared in, loads alone, is made of; and what the H100 at locked clocks is, one training step.
FEW = {
    (Kind.GEMM, Pass.FORWARD),
    (Kind.COPY, Pass.FORWARD),
    (Kind.ATTENTION, Pass.FORWARD),
    (Kind.ATTENTION, Pass.BACKWARD),
}
BESIDE_A_STEP = (Kind.GELU,)


@pytest.fixture(scope="session")
def bench(bench_module: Callable[[str], ModuleType]) -> ModuleType:
    return bench_module("simulated_gpu")


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A profile of a simulated GPU, beside what it hid."""

    chip: SimulatedChip
    outcome: ProfileReport

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.outcome.folder / f"{name}.parquet")


@pytest.fixture(scope="session")
def h100(tmp_path_factory: pytest.TempPathFactory, bench: ModuleType) -> Truth:
    folder = tmp_path_factory.mktemp("h100") / "profile"
    return Truth(chip=CHIPS[H100](), outcome=profile("sim:h100", folder, workload=bench.profiled()))


@pytest.fixture(scope="session")
def a100(tmp_path_factory: pytest.TempPathFactory, bench: ModuleType) -> Truth:
    folder = tmp_path_factory.mktemp("a100") / "profile"
    whole = bench.profiled()
    few = Workload(points=[p for p in whole.points if (p.kind, p.direction) in FEW], sweep=[], loads=whole.loads)
    outcome = profile("sim:a100", folder, workload=few, sections=["mixed", "power", "heat", "solo"])
    return Truth(chip=CHIPS[A100](), outcome=outcome)


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory, bench: ModuleType) -> Truth:
    folder = tmp_path_factory.mktemp("locked") / "profile"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MOEMODEL_CLOCKS", raising=False)  # a site may forbid locking its own GPUs
        work = bench.profiled([kind for kind in bench.KINDS if kind not in BESIDE_A_STEP])
        outcome = profile("sim:h100", folder, workload=work, clocks="lock")
    return Truth(chip=CHIPS[H100](), outcome=outcome)


@pytest.fixture(params=["h100", "a100"])
def truth(request: Any) -> Truth:
    found: Truth = request.getfixturevalue(request.param)
    return found


# --- the profile -----------------------------------------------------------------------------------------------------


def test_every_section_is_there(h100: Truth) -> None:
    outcome = h100.outcome
    assert not outcome.skips
    assert list(outcome.sections) == ["mixed", "power", "heat", "solo", "sweep", "host"]
    beside = {"iterations", "collectives", "overlap"}  # training runs, and what takes several devices
    assert all(rows > 0 for table, rows in outcome.rows.items() if table not in beside)
    manifest = json.loads((outcome.folder / "manifest.json").read_text())
    assert manifest["gpu"] == H100
    assert manifest["device"]["vendor"] == "simulated"
    assert 100 < outcome.seconds < 280  # virtual ones


def test_measured_times_are_the_true_ones(h100: Truth, bench: ModuleType) -> None:
    """Time, at the true clock that was measured with it, is what the hidden kernel takes; each within its noise."""
    rows, work = h100.table("operators"), bench.profiled()
    kernels = {tuple(p.operator().columns().values()): kernel(h100.chip, p) for p in (*work.points, *work.sweep)}
    names = list(work.points[0].operator().columns())
    errors = [
        row.time_s / kernels[tuple(getattr(row, n) for n in names)].time_s(row.clock_Hz) - 1
        for row in rows.itertuples()
        if tuple(getattr(row, n) for n in names) in kernels
    ]
    assert len(errors) == len(rows)
    assert abs(float(np.mean(errors))) < 2 * h100.chip.sensors.time_noise  # noise that lasts moves all of them
    assert np.quantile(np.abs(errors), 0.98) < 0.02


def test_clocks_move_without_being_set(h100: Truth) -> None:
    rows = h100.table("operators")
    gemm = rows[(rows["kind"] == "gemm") & (rows["sweep"] != "solo")]
    assert gemm["clock_Hz"].min() < 0.75 * h100.chip.clock_max_Hz
    assert rows["clock_Hz"].max() > 0.98 * h100.chip.clock_max_Hz


def test_measured_power_is_the_true_one(truth: Truth) -> None:
    """Energy counter, ticks and all, against the physics at the clock and temperature measured with it."""
    gpu = VirtualGpu(truth.chip)
    errors = []
    for load, row in zip(gpu_loads(), truth.table("power").itertuples(), strict=True):
        gpu.die_C = row.temperature_C
        expected_W = gpu.static_W()
        if load.point is not None:
            clock_Hz = min(row.clock_Hz, truth.chip.clock_max_Hz)  # noise beyond it would be the regulator's next step
            busy_W = gpu.busy_W(kernel(truth.chip, load.point), clock_Hz, row.time_s)
            expected_W = row.duty * busy_W + (1 - row.duty) * expected_W
        errors.append(row.power_W / expected_W - 1)
    assert abs(float(np.median(errors))) < 2 * truth.chip.sensors.power_noise
    assert np.abs(errors).max() < 0.05  # the governor was still moving


def test_the_same_seed_gives_the_same_profile(tmp_path: Path) -> None:
    small = Workload(points=[], sweep=[], loads=gpu_loads()[:4])

    def power(gpu: str, name: str) -> list[float]:
        folder = profile(gpu, tmp_path / name, workload=small, sections=["power"]).folder
        return list(pd.read_parquet(folder / "power.parquet")["power_W"])

    first = power("sim:h100?seed=7", "a")
    assert power("sim:h100?seed=7", "b") == first
    assert power("sim:h100?seed=8", "c") != first


def test_locked_clocks_reach_where_the_governor_never_goes(locked: Truth, h100: Truth) -> None:
    lowest = [t.table("operators")["clock_Hz"].min() / t.chip.clock_max_Hz for t in (locked, h100)]
    assert lowest[0] < 0.2
    assert lowest[1] > 0.5


# --- through the command line ----------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="moemodel", catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def spare_held_out_shapes(patch: pytest.MonkeyPatch) -> None:
    """Fits that leave shapes out tell how far to trust a prediction, which is not the subject, and take most time."""
    patch.setattr(operators, "_held_out", lambda data, _: np.zeros(len(data)))


@pytest.fixture(scope="session")
def calibrated(h100: Truth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("calibration") / "sim.json"
    with pytest.MonkeyPatch.context() as patch:
        spare_held_out_shapes(patch)
        run("calibrate", h100.outcome.folder, "-o", file)
    return file


@pytest.fixture(scope="session")
def calibration(calibrated: Path) -> Calibration:
    return read_calibration(calibrated)


def test_a_plan_is_predicted_from_the_simulation(calibrated: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    answer = json.loads(run("predict", tmp_path / "plan.yaml", "--calibration", calibrated, "--json"))
    step = answer["step"]
    assert 0.05 < step["step_time_s"]["value"] < 2
    cap_W = CHIPS[H100]().cap_W
    assert 0.5 * cap_W < step["power_per_gpu_W"]["value"] < 1.01 * cap_W
    assert answer["provenance"].startswith("Measured: simulated ")


def test_how_fast_the_clock_answers_is_measured(calibration: Calibration) -> None:
    """From alternations of heavy and light load; the stepping governor has no such gain, so its value means nothing."""
    assert calibration.governor.parameters["gain"].origin == "measured"


# --- how wrong predictions are ---------------------------------------------------------------------------------------

# Shares of the true value, but for degrees; behind each bound the largest that was seen over seeds 0 to 3.
BOUNDS_H100 = {
    "operator_time_mape": 0.035,  # 0.026
    "operator_time_p90": 0.075,  # 0.058
    "operator_exponent_mae": 0.035,  # 0.027
    "load_time_mape": 0.014,  # 0.0095
    "load_clock_mape": 0.012,  # 0.0083
    "load_power_mape": 0.014,  # 0.0090
    "load_energy_mape": 0.018,  # 0.013
    "load_temperature_worst_C": 1.2,  # 0.78
    "step_time_mape": 0.014,  # 0.0094
    "step_clock_mape": 0.012,  # 0.0079
    "step_power_mape": 0.019,  # 0.014
    "step_energy_mape": 0.011,  # 0.0073
    "inlet_C": 0.02,  # 0.012
    "rise_C_per_W": 0.025,  # 0.015
    "sink_s": 0.12,  # 0.087: two masses for three
    "idle_W": 0.01,  # 0.0050
    "sustained_W": 0.01,  # 0.0063
}
BOUNDS_LOCKED = {
    "operator_time_mape": 0.055,  # 0.042: down to the lowest clock
    "operator_time_p90": 0.15,  # 0.12
    "operator_exponent_mae": 0.07,  # 0.057
    "idle_W": 0.025,  # 0.018
    "locked_time_mape": 0.012,  # 0.0084
    "locked_clock_mape": 0.005,  # 0.0030
    "locked_power_mape": 0.065,  # 0.048: worst at low clocks, whose voltage is taken to be flat
    "locked_energy_mape": 0.06,  # 0.046
    "locked_regret": 0.012,  # 0.0077
    "capped_time_mape": 0.008,  # 0.0052
    "capped_clock_mape": 0.016,  # 0.011
    "capped_power_mape": 0.01,  # 0.0068
    "capped_energy_mape": 0.014,  # 0.0096
}
BOUNDS_A100 = {
    "operator_time_mape": 0.015,  # 0.010
    "load_time_mape": 0.02,  # 0.015
    "load_clock_mape": 0.015,  # 0.011
    "load_power_mape": 0.025,  # 0.018
    "load_energy_mape": 0.032,  # 0.024
    "load_temperature_worst_C": 0.9,  # 0.57
    "inlet_C": 0.035,  # 0.026
    "rise_C_per_W": 0.045,  # 0.033
    "sink_s": 0.12,  # 0.084
    "idle_W": 0.01,  # 0.0051
    "sustained_W": 0.01,  # 0.0064
}
Figures = dict[str, float]


@pytest.fixture(scope="session")
def found_h100(bench: ModuleType, calibration: Calibration, h100: Truth) -> Figures:
    found: Figures = bench.figures(calibration, h100.chip, bench.Scope())
    return found


def fitted(truth: Truth) -> Calibration:
    """A calibration of its profile."""
    with pytest.MonkeyPatch.context() as patch:
        spare_held_out_shapes(patch)
        return calibrate_profile(truth.outcome.folder)[0]


@pytest.fixture(scope="session")
def found_locked(bench: ModuleType, locked: Truth) -> Figures:
    scope = bench.Scope(loads=("product",), steps=(), locked=bench.STEPS[:1])
    found: Figures = bench.figures(fitted(locked), locked.chip, scope)
    return found


@pytest.fixture(scope="session")
def found_a100(bench: ModuleType, a100: Truth) -> Figures:
    loads = ("product", "copy", "attention, a third of the time", "products, half of the time")
    found: Figures = bench.figures(fitted(a100), a100.chip, bench.Scope(loads=loads, steps=()))
    return found


@pytest.mark.parametrize("name", BOUNDS_H100)
def test_predictions_of_an_h100(found_h100: Figures, name: str) -> None:
    """Its clocks moved by the governor alone."""
    assert abs(found_h100[name]) <= BOUNDS_H100[name]


@pytest.mark.parametrize("name", BOUNDS_LOCKED)
def test_predictions_from_locked_clocks(found_locked: Figures, name: str) -> None:
    """Steps from low clocks to high, and under lower caps."""
    assert abs(found_locked[name]) <= BOUNDS_LOCKED[name]


@pytest.mark.parametrize("name", BOUNDS_A100)
def test_predictions_of_an_a100(found_a100: Figures, name: str) -> None:
    """Without activity counters."""
    assert abs(found_a100[name]) <= BOUNDS_A100[name]


def test_its_physics_are_not_the_predictors(found_h100: Figures, found_locked: Figures) -> None:
    """Who gave it the predictor's equations would find them again, to within the noise of its readings."""
    noise = CHIPS[H100]().sensors
    assert found_h100["operator_time_mape"] > 2 * noise.time_noise
    assert found_locked["locked_power_mape"] > 2 * noise.power_noise


# --- failures --------------------------------------------------------------------------------------------------------

GELU = Point(kind=Kind.GELU, direction=Pass.FORWARD, sizes=Sizes(m=16384, n=8192))


def failing(fault: str, folder: Path, *, points: Sequence[Point] = (), loads: int = 6) -> ProfileReport:
    small = Workload(points=points, sweep=[], loads=gpu_loads()[:loads])
    sections = ["mixed", "power"] if points else ["power"]
    return profile(f"sim:h100?fail={fault}", folder, workload=small, sections=sections)


def test_a_lost_gpu_ends_the_run_and_keeps_what_was_measured(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    with pytest.raises(DeviceError, match=r"GPU is lost .*can't be used by this process any more, run again to go on"):
        failing("lost-after-5s", folder, points=[GELU])
    kept = len(pd.read_parquet(folder / "power.parquet"))
    assert 0 < kept < 6
    assert len(pd.read_parquet(folder / "operators.parquet")) > 0
    assert len(pd.read_parquet(folder / "thermal.parquet")) > 30
    again = profile(
        "sim:h100", folder, workload=Workload(points=[GELU], sweep=[], loads=gpu_loads()[:6]), sections=["power"]
    )
    assert again.rows["power"] == 6


def test_a_gpu_lost_before_the_start_is_said(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="failed before anything was measured: CUDA error: the GPU is lost"):
        failing("lost-after-0s", tmp_path / "p")


def test_without_permission_there_is_time_but_no_power(tmp_path: Path) -> None:
    outcome = failing("no-permission", tmp_path / "p", points=[GELU])
    assert any(
        note.startswith("no energy: this device has no energy counter that may be read") for note in outcome.notes
    )
    power = pd.read_parquet(outcome.folder / "power.parquet")
    assert power["power_W"].isna().all()
    assert power["sm_activity"].isna().all()
    assert power["clock_Hz"].notna().sum() == 4
    assert len(loads_of(PowerTable.of(power), 1.98e9)) == 0  # so the calibration models none
    assert pd.read_parquet(outcome.folder / "operators.parquet")["time_s"].notna().all()


def test_a_counter_that_starts_again_spoils_one_load(tmp_path: Path) -> None:
    outcome = failing("counter-reset-after-4.2s", tmp_path / "p")
    assert [skip.what for skip in outcome.skips] == ["power of gemm 8192"]
    assert "ran backwards" in outcome.skips[0].reason
    assert (pd.read_parquet(outcome.folder / "power.parquet")["power_W"] > 0).all()
    assert failing("counter-reset-after-9999s", outcome.folder).rows["power"] == 6  # measured the next time


def test_a_counter_that_sticks_is_not_taken_for_zero_power(tmp_path: Path) -> None:
    outcome = failing("stuck-energy-after-4.2s", tmp_path / "p")
    assert len(outcome.skips) == 4
    assert all("did not move" in skip.reason for skip in outcome.skips)
    power_W = pd.read_parquet(outcome.folder / "power.parquet")["power_W"]
    assert len(power_W) == 2
    assert power_W.min() > 90


def test_a_power_reading_that_sticks_is_left_out(tmp_path: Path) -> None:
    outcome = failing("stuck-power-after-8s", tmp_path / "p", loads=24)
    assert any("did not change from 8 s on: it is stuck" in note for note in outcome.notes)
    trace = pd.read_parquet(outcome.folder / "thermal.parquet")
    assert trace[trace["elapsed_s"] > 8.2]["power_W"].isna().all()
    assert trace[trace["elapsed_s"] < 7.5]["power_W"].notna().all()
    assert pd.read_parquet(outcome.folder / "power.parquet")["power_W"].notna().all()  # from the counter


def test_a_clock_reading_that_sticks_does_not_matter(tmp_path: Path) -> None:
    """The true clock is measured beside it."""
    outcome = failing("stuck-clock-after-0s", tmp_path / "p")
    power = pd.read_parquet(outcome.folder / "power.parquet")
    assert power["clock_reported_Hz"].nunique() == 1
    assert power["clock_Hz"].min() < 0.8 * power["clock_reported_Hz"].iloc[0]


# --- command ---------------------------------------------------------------------------------------------------------


def test_training_is_not_simulated(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="runs operators only, no training steps; leave --train out"):
        profile("sim:h100", tmp_path, plans=[tmp_path / "plan.yaml"])


def test_default_folder_has_a_plain_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_module, "default_workload", lambda *_: Workload(points=[], sweep=[], loads=[]))
    result = CliRunner().invoke(profile_command, ["--gpu", "sim:h100?seed=1", "--sections", "power"])
    assert result.exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["profile-sim-h100-seed-1"]
