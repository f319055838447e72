"""Section `collectives` of a profile, over gloo on two processes; the rates of loads that are held."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moemodel.model.core.errors import DeviceError, InputError
from moemodel.profiler.collectives import section
from moemodel.profiler.collectives.collective_timer import CollectiveTimer, TimedInterval
from moemodel.profiler.collectives.points import LinkPoint, link_points, overlap_points, scale_for
from moemodel.profiler.collectives.section import Collectives, check_enough, devices_at_hand
from moemodel.profiler.collectives.start import follow
from moemodel.profiler.collectives.sustained import Work, _Feed
from moemodel.profiler.devices.cpu import CpuDevice
from moemodel.profiler.instruments.cycle_counter import ClockReader, Stamp
from moemodel.profiler.jobs.launcher import Program, local_programs
from moemodel.profiler.platforms.base import TorchPlatform
from moemodel.profiler.platforms.registry import platform_of
from moemodel.profiler.run import ProfileReport, profile
from moemodel.profiler.simulated.instruments import open_simulated

TINY = replace(
    scale_for(cpu=True, ranks=2),
    sizes_B=(1 << 10, 1 << 16),
    held_B=(1 << 16,),
    overlap_B=(1 << 16,),
    computations=(("gemm", 64, 64, 64),),
    stretches=1,
    calls_most=4,
    settle_s=0.01,
    window_s=0.02,
)


def measure(folder: Path, **options: Any) -> ProfileReport:
    return profile("cpu", folder, **({"sections": ["collectives"], "ranks": 2, "scale": TINY} | options))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> ProfileReport:
    return measure(tmp_path_factory.mktemp("profile") / "p")


def table(outcome: ProfileReport, name: str) -> pd.DataFrame:
    return pd.read_parquet(outcome.folder / f"{name}.parquet")


def test_every_point_has_its_row(measured: ProfileReport) -> None:
    assert list(measured.sections) == ["collectives"]
    assert not measured.skips
    rows = table(measured, "collectives")
    found = list(zip(rows.collective, rows.ranks, rows.size_B, rows["skew"], strict=True))
    assert found == [(p.collective, p.ranks, p.size_B, p.skew) for p in link_points(2, TINY)]
    timed = rows[rows.collective != "idle"]
    assert (timed.time_s > 0).all()
    assert (timed.calls >= 1).all()
    assert set(rows.nodes) == {1}
    assert rows.power_W.isna().all()  # a processor's power is never its links'
    assert rows.host_time_s.isna().all()


def test_only_some_sizes_are_held(measured: ProfileReport) -> None:
    rows = table(measured, "collectives")
    held = rows[rows.held_time_s.notna()]
    assert set(held.size_B) == {1 << 16}
    assert set(held.collective) == {"all_reduce", "reduce_scatter", "all_gather", "all_to_all", "exchange", "send_recv"}
    assert (held.duration_s > 0).all()


def test_every_overlap_has_its_row(measured: ProfileReport) -> None:
    rows = table(measured, "overlap")
    assert list(rows.collective) == [p.collective for p in overlap_points(2, TINY)]
    for column in ("computation_time_s", "collective_time_s", "together_computation_time_s"):
        assert (rows[column] > 0).all()
    assert (rows.together_collective_time_s > 0).all()
    assert rows.computation_time_s.nunique() == 1  # alone it is measured once


def test_running_again_starts_nobody(measured: ProfileReport, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("processes were started")

    monkeypatch.setattr(section, "follow", start)
    again = measure(measured.folder)
    assert again.rows == measured.rows


def test_only_what_is_missing_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def one_row(programs: list[Program], _events: Path, tell: Any, **_: object) -> None:
        asked.append(Path(programs[0].command[-1]).read_text())
        row = {"collective": "all_reduce", "ranks": 2, "size_B": 1024, "skew": 1.0, "time_s": 1e-5}
        tell({"event": "at", "what": "all_reduce"})
        tell({"event": "row", "table": "collectives", "row": row})
        tell({"event": "note", "text": "slow"})
        tell({"event": "note", "text": "slow"})
        tell({"event": "left", "count": 7})

    monkeypatch.setattr(section, "follow", one_row)
    first = measure(tmp_path / "p")
    assert first.rows["collectives"] == 1
    assert first.notes.count("slow") == 1
    assert [skip.what for skip in first.skips] == ["collectives"]
    assert "7 of 19 left out, the budget was spent; run again to add them" in first.skips[0].reason
    measure(tmp_path / "p")
    assert [text.count('"size_B": 1024, "skew": 1.0') for text in asked] == [6, 5]


def test_rows_before_a_failure_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_command: object, _events: Path, tell: Any, **_: object) -> None:
        tell(
            {"event": "row", "table": "collectives", "row": {"collective": "idle", "ranks": 2, "size_B": 0, "skew": 1}}
        )
        raise DeviceError("collectives: all_reduce: no answer")

    monkeypatch.setattr(section, "follow", fail)
    with pytest.raises(DeviceError, match="no answer"):
        measure(tmp_path / "p")
    assert pd.read_parquet(tmp_path / "p" / "collectives.parquet").collective.to_list() == ["idle"]


def test_a_rank_that_fails_says_at_what(tmp_path: Path) -> None:
    events, request = tmp_path / "events.jsonl", tmp_path / "request.json"
    asked = section.Request(
        gpu="cpu",
        points=(LinkPoint(collective="gossip", ranks=2, size_B=1024),),
        overlaps=(),
        scale=TINY,
        seed=0,
        until_wall_s=math.inf,
        events=events,
    )
    request.write_text(asked.text())
    programs = local_programs(section.WORKER, [str(request)], processes=2, environment=os.environ)
    reason = r"gossip of 1,024 B over 2 ranks: rank \d: ValueError: no such collective: gossip; what was measured"
    with pytest.raises(DeviceError, match=reason):
        follow(programs, tmp_path, lambda _: None, stall_s=60.0, meet_here=True)


# --- who takes part ------------------------------------------------------------------------------------------------


def test_one_device_alone_talks_to_nobody(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"collectives needs two devices or more, found 1; .*--gpu cpu --ranks 2"):
        measure(tmp_path / "p", ranks=None)
    assert not (tmp_path / "p").exists()
    check_enough(2)


def test_without_asking_one_device_has_no_such_section(tmp_path: Path) -> None:
    outcome = measure(tmp_path / "p", sections=[], ranks=None)
    assert outcome.sections == {}


def test_a_launcher_says_how_many(bare_device: Any) -> None:
    platform = TorchPlatform(bare_device)
    assert devices_at_hand(bare_device, platform, None, {"WORLD_SIZE": "4"}) == 4
    with pytest.raises(InputError, match="--ranks: found 2; the launcher started 4 processes: leave --ranks out"):
        devices_at_hand(bare_device, platform, 2, {"WORLD_SIZE": "4"})
    assert devices_at_hand(bare_device, platform, 3, {}) == 3
    assert devices_at_hand(bare_device, platform, None, {}) == 1


def test_a_simulated_gpu_talks_to_nobody() -> None:
    device = open_simulated("sim:h100", {"h100": "h100-sxm-80gb"})
    platform = platform_of(device)
    assert devices_at_hand(device, platform, None, {}) == 1
    with pytest.raises(InputError, match="--ranks: a simulated GPU has no links to others; leave --ranks out"):
        devices_at_hand(device, platform, 2, {})


def test_nodes_are_filled_one_after_another(bare_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    helped = Collectives(
        gpu="cpu",
        device=bare_device,
        platform=TorchPlatform(bare_device),
        writer=None,  # type: ignore[arg-type]
        ranks=8,
        seed=0,
        helpers=object(),  # type: ignore[arg-type]
    )
    assert [helped._nodes(ranks) for ranks in (2, 4, 6, 8)] == [1, 1, 2, 2]


# --- rates ---------------------------------------------------------------------------------------------------------


@dataclass
class Mark:
    at_s: float
    stamp: Stamp | None = None

    def done(self) -> bool:
        return True

    def time_s(self) -> float:
        return self.at_s


def feed(*ends_s: float, call_s: float = 2.5e-3, messages: int = 1) -> _Feed:
    work = Work(run=lambda _: None, time_s=call_s, messages=messages)
    return _Feed(stream=None, work=work, left=0, markers=[Mark(at_s) for at_s in ends_s])  # type: ignore[arg-type]


def test_a_rate_is_counted_from_one_chunks_end_to_anothers() -> None:
    chunks = feed(0.0, 0.9, 1.0, 1.1, 1.2)  # slow at first
    assert chunks.work.calls == 2
    assert chunks.call_s(chunks.kept(0.5, math.inf)) == pytest.approx(0.1 / 2)
    assert chunks.call_s(chunks.kept(0.95, 1.15)) == pytest.approx(0.1 / 2)


def test_a_call_of_several_messages_gives_the_time_of_one() -> None:
    chunks = feed(0.0, 1.0, 2.0, messages=2)
    assert chunks.call_s(chunks.kept(0.0, math.inf)) == pytest.approx(1.0 / 2 / 2)


def test_too_short_a_window_takes_everything() -> None:
    chunks = feed(0.0, 1.0, 2.0)
    assert len(chunks.kept(0.5, 1.5)) == 3


class Recorder:
    """A stream that ends what it is given at once."""

    def __init__(self) -> None:
        self.queued = 0

    def queue(self, work: Any) -> Mark:
        work()
        self.queued += 1
        return Mark(float(self.queued))

    def close(self) -> None: ...


def test_a_fixed_feed_queues_its_chunks_and_no_more() -> None:
    stream, calls = Recorder(), []
    fixed = _Feed(stream=stream, work=Work(run=calls.append, time_s=1e-3), left=6)
    while not fixed.finished:
        fixed.feed()
    assert stream.queued == 6
    assert calls == [5] * 6


# --- stretches -----------------------------------------------------------------------------------------------------


class Alone:
    """A group whose other ranks say what this one does."""

    ranks, rank = 2, 0

    def barrier(self) -> None: ...

    def most(self, value: float) -> float:
        return value


def stretches_of(monkeypatch: pytest.MonkeyPatch, late: list[bool]) -> tuple[list[TimedInterval], list[float]]:
    """Three stretches, where those that are taken one after another are late or not; and the host times expected."""
    expected: list[float] = []
    answers = iter(late)

    def stretch(_self: object, _operation: object, _group: object, _calls: int, host_s: float) -> TimedInterval:
        expected.append(host_s)
        return TimedInterval(time_s=1.0, host_time_s=host_s * 2, clock_Hz=None, late=next(answers))

    monkeypatch.setattr(CollectiveTimer, "_stretch", stretch)
    device = CpuDevice()
    return CollectiveTimer(device, ClockReader(device))._stretches(None, Alone(), 8, 1.0, 3), expected  # type: ignore[arg-type]


def test_a_stretch_that_waited_for_its_host_is_taken_again_with_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, expected = stretches_of(monkeypatch, [True, False, True, False, False])
    assert [stretch.late for stretch in taken] == [False] * 3
    assert expected == [1.0, 2.0, 4.0, 8.0, 16.0]


def test_hosts_that_are_always_late_are_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, expected = stretches_of(monkeypatch, [True] * 20)
    assert len(taken) == len(expected) == 6


def test_one_good_stretch_is_better_than_many_late_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, _ = stretches_of(monkeypatch, [True, True, False, True, True, True, True])
    assert [stretch.late for stretch in taken] == [False]
