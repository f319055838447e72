"""Whole profiles on the CPU: sections, resuming, budget, interruption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from moemodel.cli.profile import profile_command
from moemodel.model.core.errors import DeviceError, InputError, ProfileError
from moemodel.model.operators.work import Kind
from moemodel.model.records.profile import HostRow
from moemodel.profiler import run as run_module
from moemodel.profiler.host_overhead import single_gpu as host_lane
from moemodel.profiler.microbench.budget import MeasurementBudget, budget_for
from moemodel.profiler.microbench.grid import cpu_grid, cpu_sweep
from moemodel.profiler.run import SECTIONS, ProfileReport, Workload, profile, shares
from moemodel.profiler.sections import passive_sweep as sweep
from moemodel.profiler.sections.loads import cpu_loads
from moemodel.profiler.sections.progress import Silent

BENCH = ["mixed", "power", "solo", "sweep"]
POINTS = cpu_grid(0)[:6]
SWEEP = cpu_sweep()[:1]
LOADS = cpu_loads()[:2]


@pytest.fixture
def budget() -> MeasurementBudget:
    return replace(
        budget_for(torch.device("cpu")),
        pool_elements=1 << 18,
        sweep_settle_s=0.0,
        sweep_record_s=0.01,
        power_settle_s=0.01,
        power_window_s=0.05,
    )


@pytest.fixture
def measure(tmp_path: Path, budget: MeasurementBudget) -> Any:
    def run(sections: Sequence[str] | None = BENCH, **options: Any) -> ProfileReport:
        work = Workload(points=POINTS, sweep=SWEEP, loads=LOADS)
        defaults: dict[str, Any] = {"sections": sections, "budget": budget, "workload": work, "budget_s": 60}
        return profile("cpu", tmp_path / "p", **(defaults | options))

    return run


def _table(outcome: ProfileReport, table: str) -> pd.DataFrame:
    return pd.read_parquet(outcome.folder / f"{table}.parquet")


def test_every_section_writes_its_rows(measure: Any, budget: MeasurementBudget) -> None:
    outcome = measure()
    assert not outcome.skips
    assert list(outcome.sections) == BENCH
    operators = _table(outcome, "operators")
    counts = operators.groupby("sweep").size()
    assert counts["mixed"] == len(POINTS) * budget.mixed_samples
    assert counts["solo"] == len(POINTS) * budget.solo_samples
    assert set(counts.index) == {"mixed", "solo", *(mix.label for mix in sweep.MIXES)}
    assert (operators.time_s > 0).all()
    assert (operators.calls >= 1).all()
    assert operators.clock_Hz.isna().all()
    power = _table(outcome, "power").set_index("load")
    assert power.duty.to_dict() == {"idle": 0.0, "gemm": 1.0}
    assert pd.isna(power.kind["idle"])
    assert power.kind["gemm"] == Kind.GEMM
    thermal = _table(outcome, "thermal")
    assert thermal.elapsed_s.is_monotonic_increasing
    assert outcome.rows["thermal"] == len(thermal)
    assert any("true clock not measured" in note for note in outcome.notes)


def test_duty_is_what_was_reached(measure: Any) -> None:
    half = [load for load in cpu_loads() if load.duty == 0.5]
    outcome = measure(["power"], workload=Workload(points=[], sweep=[], loads=half))
    assert _table(outcome, "power").duty.item() == pytest.approx(0.5, abs=0.2)


def test_running_again_measures_only_what_is_missing(measure: Any) -> None:
    first = measure()
    second = measure()
    for table in ("operators", "power"):
        assert second.rows[table] == first.rows[table]
    assert set(_table(second, "operators").wall_s) == set(_table(first, "operators").wall_s)


def test_a_spent_budget_is_said_and_can_be_added_to(measure: Any) -> None:
    spent = measure(budget_s=0)
    assert spent.rows["operators"] == 0
    assert {skip.what for skip in spent.skips} == set(BENCH)
    assert all("run again" in skip.reason for skip in spent.skips)
    assert measure().rows["operators"] > 0


class _Interrupting(Silent):
    """Presses Ctrl-C at a step."""

    def __init__(self, at: int) -> None:
        self._left = at

    def step(self, what: str) -> None:
        del what
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt


def test_ctrl_c_leaves_a_profile_to_go_on_with(measure: Any) -> None:
    outcome = measure(["mixed"], progress=_Interrupting(at=4))
    assert outcome.interrupted
    assert outcome.rows["operators"] == 3 * 2
    assert outcome.rows["thermal"] >= 1
    assert sorted(f.suffix for f in outcome.folder.iterdir()) == [".json", ".parquet", ".parquet"]
    resumed = measure(["mixed"])
    assert not resumed.interrupted
    assert resumed.rows["operators"] == len(POINTS) * 2


def test_what_cannot_run_is_skipped_with_its_reason(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from moemodel.profiler.microbench import cases

    def fail(*_: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90 GiB")

    monkeypatch.setitem(cases.BUILDERS, POINTS[0].kind, fail)
    outcome = measure(["mixed", "solo"])
    failing = [p for p in POINTS if p.kind is POINTS[0].kind]
    assert len(outcome.skips) == 2 * len(failing)
    assert outcome.skips[0].what == str(POINTS[0])
    assert "Tried to allocate 90 GiB" in outcome.skips[0].reason
    assert outcome.rows["operators"] == (len(POINTS) - len(failing)) * 4


def test_host_section_is_measured_once(measure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def rows(device: object, repeats: int) -> list[HostRow]:
        del device
        calls.append(repeats)
        return [HostRow(block="dense_layer", direction="forward", detail="", host_time_s=1e-4)]

    monkeypatch.setattr(host_lane, "measure", rows)
    assert measure(["host"]).rows["host"] == 1
    assert measure(["host"]).rows["host"] == 1
    assert calls == [2]


def test_as_is_has_no_mixes(measure: Any) -> None:
    assert list(measure(["solo"], clocks="as-is").sections) == ["solo"]
    with pytest.raises(InputError, match="found 'mixed'; allowed with --clocks as-is: power, heat, solo, host"):
        measure(["mixed"], clocks="as-is")


def test_a_processor_cannot_be_locked(measure: Any) -> None:
    with pytest.raises(
        DeviceError, match=r"--clocks lock: .* has no clocks that moemodel can lock; .*--clocks passive"
    ):
        measure(["solo"], clocks="lock")
    outcome = measure(clocks="auto", budget_s=0)
    assert any("clocks: passive, not locked: " in note for note in outcome.notes)


def test_unknown_section(measure: Any) -> None:
    with pytest.raises(InputError, match=r"found 'everything'; allowed .*mixed, power, heat, solo, sweep, host"):
        measure(["everything"])


def test_another_profile_in_the_folder(measure: Any) -> None:
    measure(["solo"])
    with pytest.raises(ProfileError, match="found clocks passive, expected as-is"):
        measure(["solo"], clocks="as-is")


def test_shares_end_at_the_whole_budget() -> None:
    assert shares(list(SECTIONS))[-1] == pytest.approx(1)
    assert shares(["power"]) == [1]
    ends = shares(["mixed", "sweep"])
    assert ends == sorted(ends)


# --- command line --------------------------------------------------------------------------------------------------


def test_command_prints_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: MeasurementBudget) -> None:
    small = Workload(points=POINTS[:1], sweep=[], loads=[])
    monkeypatch.setattr(run_module, "budget_for", lambda _: budget)
    monkeypatch.setattr(run_module, "default_workload", lambda *_: small)
    folder = tmp_path / "out"
    arguments = ["--gpu", "cpu", "-o", str(folder), "--sections", "mixed, solo", "--budget", "30"]
    result = CliRunner().invoke(profile_command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert f"{folder}: done in" in result.output
    assert "rows: 4 operators" in result.output
    assert "note: true clock not measured" in result.output


def test_command_says_how_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = ProfileReport(folder=tmp_path, interrupted=True)
    monkeypatch.setattr(run_module, "profile", lambda *_, **__: interrupted)
    result = CliRunner().invoke(profile_command, ["--gpu", "cpu"])
    assert result.exit_code == 130
    assert "run the same command again" in result.output
