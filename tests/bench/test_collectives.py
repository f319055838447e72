"""The benchmark of collectives, over a profile whose times obey a formula."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from moemodel.model.network.collectives import Collective
from moemodel.model.records.profile import EXCHANGE, IDLE_LINKS, CollectiveRow, DeviceInfo, Manifest, OverlapRow
from moemodel.profiler.collectives.points import link_points, overlap_points, scale_for
from moemodel.profiler.store.profile_writer import ProfileWriter

Run = Callable[..., str]
Started = Callable[..., subprocess.CompletedProcess[str]]
SCALE = scale_for(cpu=False, ranks=4)


@pytest.fixture(scope="session")
def run(rerun_bench: Started) -> Run:
    """What `python bench/collectives.py ...` prints."""

    def printed(*arguments: str | Path) -> str:
        done = rerun_bench("collectives.py", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return printed


def write(folder: Path, rows: Sequence[CollectiveRow | OverlapRow]) -> Path:
    manifest = Manifest(
        created="2026-01-02T03:04:05+00:00",
        moemodel_version="0",
        gpu="h100-sxm-80gb",
        device=DeviceInfo(name="NVIDIA H100 80GB HBM3", vendor="nvidia", memory_B=1),
        clocks="passive",
        dtype="bf16",
        libraries={},
        seed=0,
    )
    writer = ProfileWriter(folder, manifest)
    writer.append(rows)
    writer.consolidate()
    return folder


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four GPUs: 5 us and a bandwidth, all of a skew counting, 0.75 of it hidden."""
    rows: list[CollectiveRow | OverlapRow] = []
    for point in link_points(4, SCALE):
        time_s = None
        if point.collective != IDLE_LINKS:
            turns = 2 if point.collective == Collective.ALL_REDUCE else 1
            message = point.collective in (Collective.SEND_RECV, EXCHANGE)
            part = 1.0 if message else turns * (point.ranks - 1) / point.ranks
            time_s = 5e-6 + part * point.skew * point.size_B / 300e9
        row = CollectiveRow(
            collective=point.collective, ranks=point.ranks, nodes=1, size_B=point.size_B, skew=point.skew, time_s=time_s
        )
        rows.append(row)
    rows += [
        OverlapRow(
            **asdict(point),
            nodes=1,
            computation_time_s=1e-3,
            collective_time_s=1e-3,
            together_computation_time_s=2e-3,
            together_collective_time_s=0.5e-3,
        )
        for point in overlap_points(4, SCALE)
    ]
    return write(tmp_path_factory.mktemp("profile") / "p", rows)


def test_figures_of_a_profile(profile: Path, run_bench: Started) -> None:
    done = run_bench("collectives.py", "--json", "--profile", profile)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    names = {f"{collective}_mape" for collective in Collective}
    assert set(found) == {"mape", "worst", *names, "sizes", "profiles", "skewed_error", "hidden"}
    assert found["sizes"] == 18 * 2 * len(Collective)
    assert 0 <= found["mape"] <= found["worst"] < 1e-3
    assert found["skewed_error"] < 1e-3
    assert set(found["hidden"].values()) == {0.75}


def test_a_table_has_a_line_for_every_collective_and_group(profile: Path, run: Run) -> None:
    lines = run("--profile", profile).splitlines()
    groups = [tuple(line.split()[:3]) for line in lines if line.startswith(tuple(Collective)) and "mape" not in line]
    assert sorted(groups) == sorted((str(collective), ranks, "18") for collective in Collective for ranks in ("2", "4"))


def test_profiles_of_one_gpu_say_nothing(tmp_path: Path, run: Run) -> None:
    folder = write(tmp_path / "p", [])
    assert run("--profile", folder) == f"skipped: no collectives in {folder}\n"
    assert json.loads(run("--json", "--profile", folder)) == {"skipped": f"skipped: no collectives in {folder}"}
