"""The locked sweep: which clocks, in which order, what is measured at them, and the simulated lock beneath."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moemodel.calibration.store.profile_reader import read_table
from moemodel.model.core.errors import DeviceError
from moemodel.model.operators.work import Kind, Pass
from moemodel.profiler import run
from moemodel.profiler.clocks import clock_control
from moemodel.profiler.clocks.clock_control import ClockControl
from moemodel.profiler.microbench.grid import gpu_sweep
from moemodel.profiler.microbench.points import Point, Sizes
from moemodel.profiler.run import ProfileReport, Workload, profile
from moemodel.profiler.sections import locked_sweep
from moemodel.profiler.sections.loads import gpu_loads
from moemodel.profiler.sections.locked_sweep import coarse_first, locked_loads, locked_steps, power_steps
from moemodel.profiler.sections.progress import Silent
from moemodel.profiler.simulated.chip import CHIPS
from moemodel.profiler.simulated.gpu import VirtualGpu
from moemodel.profiler.simulated.instruments import SimulatedDevice, SimulatedSettings, open_simulated
from moemodel.profiler.simulated.kernels import kernel
from moemodel.profiler.simulated.state import State, StoredSettings

H100 = "h100-sxm-80gb"
KNOWN = {"h100": H100}
H100_CLOCKS = [clock * 1e6 for clock in range(345, 1981, 15)]
GEMM = Point(kind=Kind.GEMM, direction=Pass.FORWARD, sizes=Sizes(m=8192, n=8192, k=8192))
WORK = Workload(points=[], sweep=gpu_sweep()[:3], loads=gpu_loads())


@pytest.fixture(autouse=True)
def permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(clock_control.VARIABLE, raising=False)


# --- which clocks ----------------------------------------------------------------------------------------------------


def test_about_a_dozen_clocks_from_the_lowest_to_the_highest() -> None:
    steps = locked_steps(H100_CLOCKS)
    assert steps == [c * 1e6 for c in (345, 555, 780, 990, 1110, 1230, 1365, 1485, 1605, 1725, 1860, 1980)]
    assert set(steps) <= set(H100_CLOCKS)


@pytest.mark.parametrize("clocks", [H100_CLOCKS, [c * 1e6 for c in range(210, 1411, 15)], np.linspace(4e8, 3e9, 500)])
def test_they_are_denser_above_half_of_the_highest(clocks: Sequence[float]) -> None:
    steps = np.array(locked_steps(clocks))
    assert steps[0] == min(clocks)
    assert steps[-1] == max(clocks)
    assert 10 <= len(steps) <= 13
    gaps, upper = np.diff(steps), steps[:-1] >= 0.49 * max(clocks)
    assert gaps[upper].max() < gaps[~upper].min()


@pytest.mark.parametrize("clocks", [[1e9], [1e9, 2e9], [1.9e9, 2e9, 1.95e9], list(reversed(H100_CLOCKS))])
def test_a_gpu_of_few_clocks_or_another_order(clocks: list[float]) -> None:
    steps = locked_steps(clocks)
    assert steps == sorted(set(steps) & set(clocks))
    assert {min(clocks), max(clocks)} <= set(steps)


def test_the_order_spreads_whatever_time_there_is() -> None:
    steps = locked_steps(H100_CLOCKS)
    order = coarse_first(steps)
    assert sorted(order) == steps
    assert order[:2] == [steps[-1], steps[0]]
    for count in range(3, len(order)):
        widest = np.diff(sorted(order[:count])).max()
        assert widest <= 2.5 * np.diff(np.linspace(steps[0], steps[-1], count)).max()


def test_loads_are_held_below_what_the_governor_reaches_too() -> None:
    steps = locked_steps(H100_CLOCKS)
    held = power_steps(steps)
    assert held == [780e6, 990e6, 1230e6, 1605e6]
    assert [load.name for load in locked_loads(gpu_loads())][:2] == ["idle", "gemm 8192"]
    kinds = [load.point.kind for load in locked_loads(gpu_loads()) if load.point]
    assert kinds == [Kind.GEMM, Kind.COPY, Kind.ATTENTION]


# --- a sweep ---------------------------------------------------------------------------------------------------------


def sweep(folder: Path, gpu: str = "sim:h100", clocks: Any = "lock", **options: Any) -> ProfileReport:
    return profile(gpu, folder, clocks=clocks, workload=WORK, **({"sections": ["sweep"]} | options))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> ProfileReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(clock_control.VARIABLE, raising=False)
        return sweep(tmp_path_factory.mktemp("locked") / "p")


def test_every_operator_is_measured_at_every_step(outcome: ProfileReport) -> None:
    assert not outcome.skips
    rows = read_table(outcome.folder, "operators")
    labels = [f"locked {clock / 1e6:.0f} MHz" for clock in locked_steps(H100_CLOCKS)]
    counts = rows.groupby(["sweep", "kind"]).size()
    assert set(rows["sweep"]) == set(labels)
    assert (counts == 8).all()
    assert len(counts) == len(labels) * len(WORK.sweep)


def test_rows_have_the_true_clock_and_the_time_at_it(outcome: ProfileReport) -> None:
    rows = read_table(outcome.folder, "operators")
    locked_Hz = rows["sweep"].str.extract(r"locked (\d+) MHz")[0].astype(float) * 1e6
    assert (rows["clock_reported_Hz"] <= locked_Hz).all()
    low = rows[locked_Hz <= 1110e6]
    assert np.allclose(low["clock_Hz"], locked_Hz[low.index], rtol=0.005)  # what no limit holds back runs as locked
    gemm = rows[rows["kind"] == "gemm"]
    chip = CHIPS[H100]()
    one = kernel(chip, WORK.sweep[0])
    assert np.allclose(gemm["time_s"], [one.time_s(f) for f in gemm["clock_Hz"]], rtol=0.02)
    assert gemm["clock_Hz"].min() < 0.18 * chip.clock_max_Hz


def test_power_goes_on_below_the_clocks_that_the_governor_reaches(outcome: ProfileReport) -> None:
    rows = read_table(outcome.folder, "power").set_index("load")
    assert len(rows) == 16
    idle_W = rows.loc[[f"idle at {clock} MHz" for clock in (780, 990, 1230, 1605)], "power_W"]
    assert (np.diff(idle_W) > 0).all()  # the clock tree
    assert set(rows.index) >= {f"gemm 8192 at {clock} MHz" for clock in (780, 990, 1230, 1605)}
    low = rows.loc["gemm 8192 at 780 MHz"]
    assert low["clock_Hz"] == pytest.approx(780e6, rel=0.005)
    gpu = VirtualGpu(CHIPS[H100]())
    gpu.die_C = low["temperature_C"]
    assert low["power_W"] == pytest.approx(gpu.busy_W(kernel(gpu.chip, GEMM), 780e6), rel=0.03)
    assert low["power_W"] < rows.loc["gemm 8192 at 1230 MHz", "power_W"]


def test_the_manifest_says_what_was_done_with_the_clocks(outcome: ProfileReport, tmp_path: Path) -> None:
    assert json.loads((outcome.folder / "manifest.json").read_text())["clocks"] == "lock"
    assert any("clocks: lock" in note for note in outcome.notes)
    busy = sweep(tmp_path / "p", "sim:h100?busy=1", "auto", budget_s=1)
    assert json.loads((tmp_path / "p" / "manifest.json").read_text())["clocks"] == "passive"
    assert any("clocks: passive, not locked: another process" in note for note in busy.notes)


def test_the_other_sections_run_as_ever(tmp_path: Path) -> None:
    small = Workload(points=WORK.sweep, sweep=WORK.sweep[:1], loads=WORK.loads)
    made = profile("sim:h100", tmp_path / "p", clocks="lock", workload=small)
    assert not made.skips
    assert list(made.sections) == list(run.SECTIONS)
    operators = read_table(tmp_path / "p", "operators")
    assert {"mixed", "solo"} < set(operators["sweep"])
    assert operators[operators["sweep"] == "mixed"]["clock_reported_Hz"].nunique() > 1  # the governor moved it


# --- interrupted, hindered -------------------------------------------------------------------------------------------


def test_a_spent_budget_is_said_and_can_be_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sweep(tmp_path / "p", budget_s=6)
    assert any("run again to add them" in skip.reason for skip in first.skips)
    assert 0 < first.rows["operators"] < 288
    locks: list[float] = []
    lock = ClockControl.lock

    def counted(self: ClockControl, clock_Hz: float) -> None:
        locks.append(clock_Hz)
        lock(self, clock_Hz)

    monkeypatch.setattr(ClockControl, "lock", counted)
    second = sweep(tmp_path / "p")
    assert not second.skips
    assert second.rows["operators"] == 288
    assert second.rows["power"] == 16
    assert 0 < len(locks) < 12  # what is there is not measured again
    locks.clear()
    third = sweep(tmp_path / "p")
    assert third.rows["operators"] == 288
    assert locks == []


def test_no_time_no_lock(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    none = sweep(tmp_path / "p", f"sim:h100?state={state}", budget_s=0)
    assert [skip.what for skip in none.skips] == ["sweep"]
    assert StoredSettings(state).state.locks == 1  # that which was tried


def test_somebody_else_who_comes_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[None] = []

    def obstacle(_: SimulatedSettings) -> str | None:
        asked.append(None)
        return "somebody came" if len(asked) > 6 else None

    monkeypatch.setattr(SimulatedSettings, "obstacle", obstacle)
    state = tmp_path / "state.json"
    made = sweep(tmp_path / "p", f"sim:h100?state={state}")
    (skip,) = made.skips
    assert "left out: somebody came; run again" in skip.reason
    assert StoredSettings(state).state.locked_Hz is None
    assert made.rows["operators"] > 0


def test_a_lock_that_the_driver_does_not_hold_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StoredSettings, "lock", lambda *_: None)
    made = sweep(tmp_path / "p")
    assert len(made.skips) == 11  # all but the highest
    assert "the driver took the lock, but says that the clock is 1980 MHz" in made.skips[0].reason
    assert set(read_table(tmp_path / "p", "operators")["sweep"]) == {"locked 1980 MHz"}


class _Looking(Silent):
    """Looks at the settings when a section has ended."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self.seen: list[State] = []

    def end(self) -> None:
        self.seen.append(StoredSettings(self._state).state)


def test_the_section_leaves_the_clock_to_those_that_follow(tmp_path: Path) -> None:
    looking = _Looking(tmp_path / "state.json")
    sweep(tmp_path / "p", f"sim:h100?state={tmp_path / 'state.json'}", progress=looking, budget_s=5)
    (seen,) = looking.seen
    assert seen.locks > 1
    assert seen.locked_Hz is None


class _Failing(Silent):
    def step(self, what: str) -> None:
        if "locked 1110" in what:
            raise ZeroDivisionError


def test_a_mistake_of_ours_leaves_nothing_locked(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    with pytest.raises(ZeroDivisionError):
        sweep(tmp_path / "p", f"sim:h100?state={state}", progress=_Failing())
    assert StoredSettings(state).state.locked_Hz is None
    assert StoredSettings(state).state.locks > 2


def test_an_operator_that_does_not_run_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = locked_sweep._samples

    def fail(bench: Any, point: Point, label: str) -> list[dict[str, Any]]:
        if point is WORK.sweep[1]:
            raise RuntimeError("no such operator")
        return samples(bench, point, label)

    monkeypatch.setattr(locked_sweep, "_samples", fail)
    made = sweep(tmp_path / "p")
    assert len(made.skips) == 12
    assert made.rows["operators"] == 192


# --- the simulated lock ----------------------------------------------------------------------------------------------


def busy(gpu: VirtualGpu, seconds: float) -> float:
    """The mean clock reported in the second half of some time under a large product."""
    one, clocks = kernel(gpu.chip, GEMM), []
    end_s = gpu.now_s + seconds
    while gpu.now_s < end_s:
        gpu.launch(one, 5)
        gpu.synchronize()
        clocks.append(gpu.set_Hz)
    return float(np.mean(clocks[len(clocks) // 2 :]))


def test_a_lock_holds_the_clock_down_and_not_up() -> None:
    gpu = VirtualGpu(CHIPS[H100]())
    free_Hz = busy(gpu, 4)
    gpu.settings.lock(990e6, 990e6)
    gpu.sleep(0.1)
    assert busy(gpu, 1) == 990e6
    gpu.settings.lock(1980e6, 1980e6)
    assert busy(gpu, 4) == pytest.approx(free_Hz, rel=0.03)  # the power limit goes before it
    gpu.settings.unlock()
    assert busy(gpu, 4) == pytest.approx(free_Hz, rel=0.03)


def test_the_power_limit_is_held() -> None:
    gpu = VirtualGpu(CHIPS[H100]())
    free_Hz = busy(gpu, 4)
    gpu.settings.set_power_limit(450)
    assert busy(gpu, 6) < 0.85 * free_Hz
    energy_J, time_s = gpu.totals.energy_J, gpu.totals.time_s
    busy(gpu, 2)
    assert (gpu.totals.energy_J - energy_J) / (gpu.totals.time_s - time_s) == pytest.approx(450, rel=0.03)


def test_another_process_sees_and_changes_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    device = open_simulated(f"sim:h100?state={file}", KNOWN)
    device.gpu.settings.lock(990e6, 990e6)
    other = StoredSettings(file)
    assert other.state == State(locked_Hz=(990e6, 990e6), power_limit_W=700, locks=1)
    other.unlock()
    other.set_power_limit(500)
    device.gpu.sleep(0.1)
    assert device.gpu.set_Hz == device.gpu.chip.clock_max_Hz
    later = open_simulated(f"sim:h100?state={file}", KNOWN)
    assert later.info.power_limit_W == 500


def test_a_simulation_without_a_file_needs_no_guardian() -> None:
    device = open_simulated("sim:h100", KNOWN)
    with ClockControl(device, SimulatedSettings(device)) as control:
        control.lock(990e6)
        control.set_power_limit(500)
        assert control.guardian is None
    assert device.gpu.settings.state == State(power_limit_W=700, locks=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("locking=maybe", "locking: found 'maybe'; allowed: allowed, refused, unsupported"),
        ("busy=yes", "busy: found 'yes'; allowed: 0, 1"),
        ("pace=fast", "pace: found 'fast'; allowed: a number"),
        ("state=no/where/s.json", "where: no such folder; make it first"),
        ("fail=unlock-fails", "allowed: .*unlock-fails-TIMES-times"),
    ],
)
def test_what_cannot_be_simulated_is_said(options: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        open_simulated(f"sim:h100?{options}", KNOWN)


def test_a_file_that_is_no_state_is_said(tmp_path: Path) -> None:
    for text in ("", "[]", '{"locked_Hz": 3}', '{"volume": 11}'):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(DeviceError, match=r"s\.json: not the state of a simulated GPU .*delete it"):
            open_simulated(f"sim:h100?state={tmp_path / 's.json'}", KNOWN)


def test_settings_do_not_change_a_run_without_them(tmp_path: Path) -> None:
    """The same seed gives the same samples, with the state in a file or not."""
    tables = []
    for name, options in (("a", "seed=3"), ("b", f"seed=3&state={tmp_path / 's.json'}")):
        sweep(tmp_path / name, f"sim:h100?{options}", "passive")
        tables.append(pd.read_parquet(tmp_path / name / "operators.parquet").drop(columns="wall_s"))
    pd.testing.assert_frame_equal(*tables)


def test_a_simulated_device_is_free_unless_asked_otherwise() -> None:
    device = SimulatedDevice(VirtualGpu(CHIPS[H100]()))
    assert ClockControl(device, SimulatedSettings(device)).obstacle() is None
    assert ClockControl(device, SimulatedSettings(device)).clocks_Hz() == pytest.approx(H100_CLOCKS)
