"""Profile, calibrate, predict without a GPU: the chain finds what the simulated GPU hides, and answers its failures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from moemodel.calibration.fit import operators
from moemodel.calibration.fit.power import loads_of
from moemodel.cli import main
from moemodel.cli.profile import profile_command
from moemodel.model.core.errors import DeviceError
from moemodel.model.device.roofline import Chip as Datasheet
from moemodel.model.device.roofline import operator_time
from moemodel.model.device.sustained_load import Part, held_load
from moemodel.model.operators.work import SHAPE_FIELDS, Kind, Pass, Shape
from moemodel.model.records.calibration import Calibration, read_calibration
from moemodel.profiler import run as run_module
from moemodel.profiler.microbench.grid import gpu_grid, gpu_sweep
from moemodel.profiler.microbench.points import Point, Sizes
from moemodel.profiler.run import ProfileReport, Workload, profile
from moemodel.profiler.sections.loads import gpu_loads
from moemodel.profiler.simulated.chip import CHIPS, Chip
from moemodel.profiler.simulated.gpu import VirtualGpu
from moemodel.profiler.simulated.kernels import kernel

H100, A100 = "h100-sxm-80gb", "a100-sxm-80gb"
AIM = 0.05  # of every hidden parameter
# What a step of OPT-350M is made of; a few shapes each, so that the fits take seconds.
KINDS = (
    Kind.GEMM, Kind.ATTENTION, Kind.LAYER_NORM, Kind.RELU, Kind.RESIDUAL_ADD, Kind.BIAS, Kind.EMBEDDING,
    Kind.CROSS_ENTROPY, Kind.ADAMW_MIXED, Kind.GRAD_NORM, Kind.ACCUMULATE, Kind.COPY, Kind.GELU,
)  # fmt: skip
SHAPES = {Kind.GEMM: 14, Kind.GELU: 12, Kind.ATTENTION: 11}
PLAN = """\
name: simulated
architecture: opt-350m
sequence_length: 2048
global_batch: 8
micro_batch: 4
cluster: {gpu: h100-sxm-80gb, gpus: 1}
"""


def few_points() -> list[Point]:
    """Some shapes of each operator and pass."""
    ordered = sorted((p for p in gpu_grid(0) if p.kind in KINDS), key=lambda p: (p.kind, p.direction))
    return [
        point
        for (kind, _), points in groupby(ordered, key=lambda p: (p.kind, p.direction))
        for point in list(points)[: SHAPES.get(kind, 6)]
    ]


@pytest.fixture(scope="module")
def work() -> Workload:
    sweep = [point for point in gpu_sweep() if point.kind in KINDS]
    return Workload(points=few_points(), sweep=sweep, loads=gpu_loads())


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A profile of a simulated GPU, beside what it hid."""

    chip: Chip
    outcome: ProfileReport

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.outcome.folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def h100(tmp_path_factory: pytest.TempPathFactory, work: Workload) -> Truth:
    folder = tmp_path_factory.mktemp("h100") / "profile"
    return Truth(chip=CHIPS[H100](), outcome=profile("sim:h100", folder, workload=work))


@pytest.fixture(scope="module")
def a100(tmp_path_factory: pytest.TempPathFactory, work: Workload) -> Truth:
    folder = tmp_path_factory.mktemp("a100") / "profile"
    return Truth(
        chip=CHIPS[A100](), outcome=profile("sim:a100", folder, workload=work, sections=["power", "heat", "solo"])
    )


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, work: Workload) -> Truth:
    folder = tmp_path_factory.mktemp("locked") / "profile"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MOEMODEL_CLOCKS", raising=False)  # a site may forbid locking its own GPUs
        return Truth(chip=CHIPS[H100](), outcome=profile("sim:h100", folder, workload=work, clocks="lock"))


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


def test_measured_times_are_the_true_ones(h100: Truth) -> None:
    """Time, at the true clock that was measured with it, is what the hidden roofline says; each within its noise."""
    rows = h100.table("operators")
    points = {tuple(p.operator().columns().values()): kernel(h100.chip, p) for p in (*few_points(), *gpu_sweep())}
    names = list(few_points()[0].operator().columns())
    errors = [
        row.time_s / points[tuple(getattr(row, n) for n in names)].time_s(row.clock_Hz) - 1
        for row in rows.itertuples()
        if tuple(getattr(row, n) for n in names) in points
    ]
    assert len(errors) == len(rows)
    assert abs(float(np.mean(errors))) < 0.002
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
            expected_W = row.duty * gpu.static_W(row.clock_Hz) + (1 - row.duty) * expected_W
            calls_J = gpu.energy_J(kernel(truth.chip, load.point), row.clock_Hz)
            expected_W += row.duty / row.time_s * calls_J
        errors.append(row.power_W / expected_W - 1)
    assert abs(float(np.median(errors))) < 0.005
    assert np.abs(errors).max() < 0.04  # the governor was still moving


def test_the_same_seed_gives_the_same_profile(tmp_path: Path) -> None:
    small = Workload(points=[], sweep=[], loads=gpu_loads()[:4])

    def power(gpu: str, name: str) -> list[float]:
        folder = profile(gpu, tmp_path / name, workload=small, sections=["power"]).folder
        return list(pd.read_parquet(folder / "power.parquet")["power_W"])

    first = power("sim:h100?seed=7", "a")
    assert power("sim:h100?seed=7", "b") == first
    assert power("sim:h100?seed=8", "c") != first


# --- what the calibration recovers -----------------------------------------------------------------------------------


# Within 5 % for seeds 0 to 4; the worst is leakage, 4.3 % low on the A100 for one of them. Not tested is what a profile
# does not recover: how energy divides between cache and memory, whose sum counts (up to 32 % off each); the clock tree
# where no idle GPU was seen at another clock (its share is assumed: 12 % high, and base 4 % low for it); and, without
# activity counters (A100), how power divides between work and active SMs (active 17 % low, flop 7 % high), and with it
# the voltage curve.
POWER = ("base_W", "flop_J", "vector_op_J", "active_W", "knee_Hz", "voltage_slope")
HEAT = ("leak_W_per_C", "die_C_per_W", "die_time", "sink_C_per_W", "sink_time", "inlet_C")
LIMITS = ("tensor_clock", "sustained_share")
FOUND = dict[str, tuple[float, float]]
Recovered = Callable[[Truth], FOUND]


@pytest.fixture(scope="module")
def recovered(bench_module: Callable[[str], ModuleType]) -> Recovered:
    """Parameter -> hidden and found, as `bench/simulated_gpu.py` prints it for several seeds."""
    bench = bench_module("simulated_gpu")
    return lambda truth: bench.recovered(truth.outcome.folder, truth.chip)


@pytest.fixture(scope="module")
def found_h100(h100: Truth, recovered: Recovered) -> FOUND:
    return recovered(h100)


@pytest.fixture(scope="module")
def found_a100(a100: Truth, recovered: Recovered) -> FOUND:
    return recovered(a100)


@pytest.fixture(scope="module")
def found_locked(locked: Truth, recovered: Recovered) -> FOUND:
    return recovered(locked)


@pytest.mark.parametrize("name", [*POWER, *HEAT, *LIMITS])
def test_h100_hidden_parameters(found_h100: FOUND, name: str) -> None:
    hidden, value = found_h100[name]
    assert value / hidden == pytest.approx(1, rel=AIM)


@pytest.mark.parametrize("name", ["base_W", "vector_op_J", *HEAT, *LIMITS])
def test_a100_hidden_parameters(found_a100: FOUND, name: str) -> None:
    hidden, value = found_a100[name]
    assert value / hidden == pytest.approx(1, rel=AIM)


@pytest.mark.parametrize("name", ["tree_W", *POWER, *HEAT, *LIMITS])
def test_hidden_parameters_at_locked_clocks(found_locked: FOUND, name: str) -> None:
    hidden, value = found_locked[name]
    assert value / hidden == pytest.approx(1, rel=AIM)


def test_locked_clocks_reach_below_the_knee(locked: Truth, h100: Truth) -> None:
    """Where the governor never goes by itself, so that the voltage curve need not be extrapolated."""
    knee_Hz = locked.chip.electrics.knee_Hz
    lowest_Hz = [float(t.table("power")["clock_Hz"].min()) for t in (locked, h100)]
    assert lowest_Hz[0] < 0.6 * knee_Hz < 0.85 * knee_Hz < lowest_Hz[1]


# --- through the command line ----------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="moemodel", catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def calibrated(h100: Truth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("calibration") / "sim.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "_FOLDS", 2)  # errors of held-out shapes are not the subject here, and take most time
        run("calibrate", h100.outcome.folder, "-o", file)
    return file


@pytest.fixture(scope="module")
def calibration(calibrated: Path) -> Calibration:
    return read_calibration(calibrated)


def test_a_plan_is_predicted_from_the_simulation(calibrated: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    answer = json.loads(run("predict", tmp_path / "plan.yaml", "--calibration", calibrated, "--json"))
    step = answer["step"]
    assert 0.1 < step["step_time_s"]["value"] < 2
    cap_W = CHIPS[H100]().cap_W
    assert 0.5 * cap_W < step["power_per_gpu_W"]["value"] < 1.01 * cap_W
    assert answer["provenance"].startswith("Measured: simulated ")


def test_the_governors_gain(calibration: Calibration, h100: Truth) -> None:
    """From alternations of heavy and light load; 1 to 5 % high for seeds 0 to 4 (on the A100, which they hardly bring
    to its limit, up to 11 % off either way)."""
    gain = calibration.governor.parameters["gain"]
    assert gain.origin == "measured"
    assert gain.value == pytest.approx(h100.chip.governor.gain_Hz_per_J, rel=AIM)


def held_true(chip: Chip, point: Point, seconds: float) -> tuple[float, float, float]:
    """Power, clock and temperature of the simulated GPU after an operator ran for so long: means over two seconds."""
    gpu, one = VirtualGpu(chip), kernel(chip, point)

    def run_until(end_s: float) -> None:
        while gpu.now_s < end_s:
            gpu.launch(one, max(1, round(8e-3 / one.time_s(gpu.set_Hz))))
            gpu.synchronize()

    run_until(seconds - 1.0)
    before, begun = gpu.totals.copy(), gpu.mark()
    run_until(seconds + 1.0)
    ended = gpu.mark()
    gpu.synchronize()
    lasted_s = gpu.totals.time_s - before.time_s
    clock_Hz = (ended.cycles - begun.cycles) / (ended.time_s - begun.time_s)
    return (gpu.totals.energy_J - before.energy_J) / lasted_s, clock_Hz, gpu.die_C


@pytest.mark.parametrize("point", [gpu_loads()[1].point, gpu_loads()[7].point], ids=["gemm", "copy"])
@pytest.mark.parametrize("seconds", [5.0, 40.0])
def test_a_held_load_is_predicted(h100: Truth, calibration: Calibration, point: Point, seconds: float) -> None:
    """Power, clock and temperature of a load that was never held for so long, from an idle GPU on."""
    power_W, clock_Hz, die_C = held_true(h100.chip, point, seconds)
    sizes = Shape(**{name: np.array([float(getattr(point.sizes, name))]) for name in SHAPE_FIELDS})
    part = Part(kind=point.kind, direction=point.direction, shape=sizes, calls=8)
    found = held_load([part], calibration, power_limit_W=h100.chip.cap_W, time_s=seconds)
    assert found.power_W == pytest.approx(power_W, rel=0.02)
    assert found.clock_Hz == pytest.approx(clock_Hz, rel=0.02)
    assert found.temperature_C == pytest.approx(die_C, abs=1.5)


UNSEEN = [
    *(Point(kind=Kind.GEMM, direction=Pass.FORWARD, sizes=Sizes(m=m, n=6144, k=4096)) for m in (2048, 10240)),
    Point(kind=Kind.GEMM, direction=Pass.BACKWARD_WEIGHT, sizes=Sizes(m=8192, n=6144, k=2048)),
    Point(
        kind=Kind.ATTENTION,
        direction=Pass.FORWARD,
        sizes=Sizes(batch=4, heads=16, kv_heads=16, seq=3584, head_dim=128),
    ),
    Point(kind=Kind.GELU, direction=Pass.FORWARD, sizes=Sizes(m=20480, n=8192)),
    Point(kind=Kind.LAYER_NORM, direction=Pass.BACKWARD, sizes=Sizes(m=20480, n=4096)),
]


@pytest.mark.parametrize("point", UNSEEN, ids=str)
def test_time_and_clock_sensitivity_of_unseen_shapes(h100: Truth, calibration: Calibration, point: Point) -> None:
    fit = calibration.operator(point.kind, point.direction)
    assert fit is not None
    chip = Datasheet(**{name: p.value for name, p in calibration.chip.items()}, clock_Hz=calibration.clock_reference_Hz)
    clocks = np.linspace(1300e6, 1980e6, 5)
    shape = Shape(**{name: np.array([float(getattr(point.sizes, name))]) for name in SHAPE_FIELDS})
    predicted = operator_time(fit, chip, shape, clocks).time_s_UK[0]
    true = np.array([kernel(h100.chip, point).time_s(f) for f in clocks])
    assert predicted == pytest.approx(true, rel=AIM)
    octaves = math.log(clocks[-1] / clocks[0])
    assert math.log(predicted[0] / predicted[-1]) / octaves == pytest.approx(
        math.log(true[0] / true[-1]) / octaves, abs=AIM
    )


@pytest.mark.parametrize(
    ("kind", "direction", "name"),
    [
        (Kind.GEMM, Pass.FORWARD, "efficiency_256x128"),
        (Kind.ATTENTION, Pass.FORWARD, "efficiency"),
        (Kind.ATTENTION, Pass.BACKWARD, "efficiency"),
        (Kind.COPY, Pass.FORWARD, "memory_efficiency"),
        (Kind.GELU, Pass.FORWARD, "memory_efficiency"),
        (Kind.GELU, Pass.FORWARD, "issue_efficiency"),
        (Kind.LAYER_NORM, Pass.FORWARD, "memory_efficiency"),
        (Kind.CROSS_ENTROPY, Pass.FORWARD, "memory_efficiency"),
    ],
)
def test_operator_efficiencies(h100: Truth, calibration: Calibration, kind: Kind, direction: Pass, name: str) -> None:
    timing = h100.chip.timing
    hidden = {
        "efficiency_256x128": timing.tiles[128, 256],
        "efficiency": timing.attention.get(direction),
        "memory_efficiency": timing.streams[kind].memory if kind in timing.streams else None,
        "issue_efficiency": timing.streams[kind].issue if kind in timing.streams else None,
    }[name]
    fit = calibration.operator(kind, direction)
    assert fit is not None
    assert hidden is not None
    assert fit.parameters[name].value == pytest.approx(hidden, rel=AIM)


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
    assert len(loads_of(power, 1.98e9)) == 0  # so the calibration models none
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
