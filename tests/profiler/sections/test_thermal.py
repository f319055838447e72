"""Section `heat` on a simulated GPU: what it runs, what it writes, and what is left for the next run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moemodel.model.device.stuck_temperature import stuck_temperature
from moemodel.model.operators.work import Kind
from moemodel.model.records.profile import HEAVY, IDLE, LIGHT, TABLES
from moemodel.profiler.instruments.energy_sampler import SensorReading
from moemodel.profiler.run import ProfileReport, Workload, profile
from moemodel.profiler.sections.loads import gpu_loads
from moemodel.profiler.sections.progress import Silent
from moemodel.profiler.sections.thermal import TURNS_S, Heat, ThermalTrace
from moemodel.profiler.simulated.chip import CHIPS
from moemodel.profiler.store.profile_writer import ProfileWriter

LOADS = [load for load in gpu_loads() if load.point is None or load.point.kind in (Kind.GEMM, Kind.COPY)]


class Steps(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.sizes: list[int] = []

    def begin(self, section: str, steps: int) -> None:
        del section
        self.sizes.append(steps)

    def step(self, what: str) -> None:
        self.said.append(what)


def heat(folder: Path, gpu: str = "sim:h100", **options: Any) -> ProfileReport:
    work = Workload(points=[], sweep=[], loads=LOADS)
    return profile(gpu, folder, **({"workload": work, "sections": ["heat"]} | options))


def table(outcome: ProfileReport, name: str) -> pd.DataFrame:
    return pd.read_parquet(outcome.folder / f"{name}.parquet")


@pytest.fixture(scope="module")
def steps() -> Steps:
    return Steps()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, steps: Steps) -> ProfileReport:
    return heat(tmp_path_factory.mktemp("heat") / "p", progress=steps)


def test_it_is_finished(done: ProfileReport, steps: Steps) -> None:
    assert not done.skips
    assert list(done.sections) == ["heat"]
    assert steps.sizes == [Heat.steps]
    assert len(steps.said) == Heat.steps


def test_the_trace_has_every_part_in_order(done: ProfileReport) -> None:
    trace = table(done, "thermal")
    parts = trace["load"][trace["load"] != trace["load"].shift()]
    assert parts.tolist() == ["starting", HEAVY, IDLE, LIGHT, HEAVY, LIGHT, "heat"]
    assert trace["elapsed_s"].is_monotonic_increasing
    assert np.diff(trace["wall_s"]).max() < 0.3  # one stretch without a gap


def test_the_die_is_heated_cooled_and_heated(done: ProfileReport) -> None:
    trace = table(done, "thermal").set_index("load")
    heavy, idle, light = (trace.loc[name] for name in (HEAVY, IDLE, LIGHT))
    assert idle["temperature_C"].iloc[0] - idle["temperature_C"].iloc[-1] >= 12
    assert idle["temperature_C"].diff().max() <= 0
    assert light["temperature_C"].max() - light["temperature_C"].min() > 8
    assert idle["power_W"].median() < light["power_W"].median() < heavy["power_W"].median()


def test_what_shows_leakage_keeps_the_highest_clock(done: ProfileReport) -> None:
    trace = table(done, "thermal").set_index("load")
    top_Hz = CHIPS["h100-sxm-80gb"]().clock_max_Hz
    assert (trace.loc[IDLE, "clock_reported_Hz"].iloc[15:] == top_Hz).all()
    assert (trace.loc[LIGHT, "clock_reported_Hz"] == top_Hz).mean() > 0.9
    assert trace.loc[HEAVY, "clock_reported_Hz"].median() < 0.8 * top_Hz


def test_alternations_have_the_length_that_was_asked_for(done: ProfileReport) -> None:
    rows = table(done, "alternating")
    assert list(rows.columns) == list(TABLES["alternating"])
    assert rows["load"].tolist() == [f"gemm and copy, {turn_s * 1e3:.0f} ms each" for turn_s in TURNS_S]
    for side in ("heavy_s", "light_s"):
        # Fitted to the clock of the warm-up; a product takes longer at the clock that it is held at.
        assert (rows[side] / np.array(TURNS_S)).between(0.9, 1.8).all()
    assert rows.notna().all(axis=None)


def test_alternations_show_what_the_governor_does(done: ProfileReport) -> None:
    """The light load draws what it draws alone; the mean stays below what the cap lets through."""
    chip, rows = CHIPS["h100-sxm-80gb"](), table(done, "alternating")
    assert rows["light_power_W"].nunique() == 1
    assert 400 < rows["light_power_W"].iloc[0] < 600
    assert (rows["heavy_clock_Hz"] < rows["light_clock_Hz"]).all()
    assert (rows["light_clock_Hz"] <= chip.clock_max_Hz * 1.002).all()
    assert (rows["power_W"] < chip.governor.target * chip.cap_W * 1.01).all()
    assert (rows["duration_s"] > 1).all()


def test_a_second_run_adds_nothing(tmp_path: Path) -> None:
    first = heat(tmp_path / "p")
    before = {name: table(first, name) for name in ("alternating", "thermal")}
    again = heat(tmp_path / "p")
    assert not again.skips
    assert again.seconds < 0.1 * first.seconds
    pd.testing.assert_frame_equal(table(again, "alternating"), before["alternating"])
    added = table(again, "thermal").iloc[len(before["thermal"]) :]
    assert set(added["load"]) <= {"starting", "heat"}


class Interrupting(Silent):
    """Presses Ctrl-C when something is said."""

    def __init__(self, at: str) -> None:
        self._at = at

    def step(self, what: str) -> None:
        if what == self._at:
            raise KeyboardInterrupt


def test_a_trace_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    cut = heat(tmp_path / "p", progress=Interrupting(HEAVY))
    assert cut.interrupted
    resumed = heat(tmp_path / "p", progress=Interrupting("gemm and copy, 120 ms each"))
    assert resumed.interrupted
    assert resumed.rows["alternating"] == 2
    readings = (table(resumed, "thermal")["load"] == IDLE).sum()
    assert readings > 150
    last = heat(tmp_path / "p")
    assert last.rows["alternating"] == len(TURNS_S)
    assert (table(last, "thermal")["load"] == IDLE).sum() == readings


def test_a_budget_that_ends_among_the_turns_leaves_the_others(tmp_path: Path) -> None:
    short = heat(tmp_path / "p", budget_s=60)
    (skip,) = short.skips
    assert 0 < short.rows["alternating"] < len(TURNS_S)
    assert skip.reason.startswith(f"{len(TURNS_S) - short.rows['alternating']} of {Heat.steps} left out")
    readings = (table(short, "thermal")["load"] == IDLE).sum()
    later = heat(tmp_path / "p")
    assert later.rows["alternating"] == len(TURNS_S)
    assert (table(later, "thermal")["load"] == IDLE).sum() == readings  # the trace was there
    assert later.seconds < 0.5 * short.seconds


def test_what_the_budget_did_not_reach_is_said_and_added_by_the_next_run(tmp_path: Path) -> None:
    spent = heat(tmp_path / "p", budget_s=0)
    assert spent.rows["alternating"] == 0
    (skip,) = spent.skips
    assert skip.what == "heat"
    assert f"{Heat.steps} of {Heat.steps}" in skip.reason
    assert spent.seconds < 2
    assert "run again" in skip.reason
    later = heat(tmp_path / "p")
    assert not later.skips
    assert later.rows["alternating"] == len(TURNS_S)


def test_without_a_counter_there_are_no_turns(tmp_path: Path) -> None:
    outcome = heat(tmp_path / "p", "sim:h100?fail=no-permission")
    assert outcome.rows["alternating"] == 0
    assert not outcome.skips
    assert table(outcome, "thermal")["power_W"].isna().all()
    assert table(outcome, "thermal")["temperature_C"].notna().all()


def test_a_counter_that_sticks_makes_no_row(tmp_path: Path) -> None:
    outcome = heat(tmp_path / "p", "sim:h100?fail=stuck-energy-after-1s")
    assert outcome.rows["alternating"] == 0


def test_loads_without_a_product_or_a_copy(tmp_path: Path) -> None:
    """A workload of somebody's own may have neither; the rest of the profile goes on."""
    work = Workload(points=[], sweep=[], loads=LOADS[:1])
    outcome = heat(tmp_path / "p", workload=work, sections=["power", "heat"])
    assert outcome.rows["power"] == 1
    (skip,) = outcome.skips
    assert skip.what == "heat"
    assert "no product or no copy" in skip.reason


# --- readings that are stuck ------------------------------------------------------------------------------------------


def test_a_temperature_that_is_stuck_is_said_and_kept(tmp_path: Path) -> None:
    """A calibration finds it by the same question, which needs the temperatures beside the powers."""
    outcome = heat(tmp_path / "p", "sim:h100?fail=stuck-temperature-after-3s")
    (note,) = (note for note in outcome.notes if "its sensor stands still" in note)
    assert note.endswith("a calibration takes no temperature from this profile")
    thermal = table(outcome, "thermal")
    assert thermal[["power_W", "temperature_C"]].notna().all(axis=None)
    columns = (thermal[name].to_numpy(dtype=float) for name in ("wall_s", "power_W", "temperature_C"))
    said = stuck_temperature(*columns)
    assert said is not None
    assert note.startswith(said)


def _readings(power_W: Callable[[float], float], temperature_C: Callable[[float], float]) -> list[SensorReading]:
    return [
        SensorReading(
            time_s=i / 10,
            wall_s=i / 10,
            label="",
            power_W=power_W(i / 10),
            clock_reported_Hz=None,
            temperature_C=temperature_C(i / 10),
            memory_temperature_C=None,
        )
        for i in range(600)
    ]


def test_a_trace_is_kept_a_section_at_a_time(tmp_path: Path, manifest: Any) -> None:
    """But for readings that may turn out to be stuck."""
    trace: list[SensorReading] = []
    writer = ProfileWriter(tmp_path / "p", manifest)
    sampler: Any = SimpleNamespace(trace=lambda: list(trace))
    kept = ThermalTrace(sampler, writer, 0.0)
    readings = _readings(lambda s: min(s, 30.0), lambda s: 40 + s // 10)  # power stays what it is from 30 s on
    for until in (0, 100, 350, 400, 600):
        trace[:] = readings[:until]
        kept.keep()
        on_disk = pd.concat(
            [pd.read_parquet(f) for f in sorted((tmp_path / "p").glob("thermal/*"))] or [pd.DataFrame()]
        )
        assert len(on_disk) <= min(until, 300)
    (note,) = kept.end()
    assert note.startswith("the power reading did not change from 30 s on: it is stuck")
    writer.consolidate()
    rows = pd.read_parquet(tmp_path / "p" / "thermal.parquet")
    assert rows.elapsed_s.to_list() == [reading.time_s for reading in readings]
    assert rows.power_W.isna().sum() == 300
