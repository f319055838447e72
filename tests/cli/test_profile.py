"""`moemodel profile`: what the options become. What is measured is tested in `tests/profiler`."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from moemodel.profiler import run
from moemodel.profiler.run import ProfileReport

Run = Callable[..., Result]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the command asks of the profiler, which does nothing but what `outcome` says."""
    found: dict[str, Any] = {"outcome": ProfileReport(folder=tmp_path)}

    def profile(gpu: str, folder: Path, **options: Any) -> ProfileReport:
        found.update(gpu=gpu, folder=folder, **options)
        options["announce"]("something is going to be [changed]")
        outcome: ProfileReport = found["outcome"]
        return outcome

    monkeypatch.delenv("MOEMODEL_CLOCKS", raising=False)
    monkeypatch.setattr(run, "profile", profile)
    return found


def test_the_best_that_is_permitted_is_the_default(asked: dict[str, Any], moemodel: Run) -> None:
    result = moemodel("profile", "--gpu", "cpu")
    assert result.exit_code == 0
    assert asked["clocks"] == "auto"
    assert "note: something is going to be [changed]" in result.stderr


def test_a_site_sets_another(asked: dict[str, Any], moemodel: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEMODEL_CLOCKS", "passive")
    moemodel("profile", "--gpu", "cpu")
    assert asked["clocks"] == "passive"
    assert "MOEMODEL_CLOCKS" in moemodel("profile", "--help").stdout


def test_a_site_forbids_locking_even_to_those_who_ask(moemodel: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEMODEL_CLOCKS", "passive")
    result = moemodel("profile", "--gpu", "sim:h100", "--clocks", "lock", "--sections", "")
    assert result.exit_code == 2
    assert "moemodel: --clocks lock: MOEMODEL_CLOCKS=passive in the environment forbids it" in result.stderr


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        ("cpu", "has no clocks that moemodel can lock"),
        ("sim:h100?busy=1", "another process computes on this GPU"),
        ("sim:h100?locking=refused", "no permission"),
    ],
)
def test_a_lock_that_is_refused_names_the_way_out(
    gpu: str, reason: str, moemodel: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOEMODEL_CLOCKS", raising=False)
    result = moemodel("profile", "--gpu", gpu, "--clocks", "lock", "--sections", "", "-o", "mine")
    assert result.exit_code == 2
    assert "moemodel: --clocks lock: " in result.stderr
    assert reason in result.stderr
    assert "use --clocks passive" in result.stderr
    assert not (folder / "mine").exists()


def test_auto_prints_which_and_why(moemodel: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOEMODEL_CLOCKS", raising=False)
    arguments = ("profile", "--gpu", "sim:h100?busy=1", "--sections", "sweep", "--budget", "1", "-o", "mine")
    result = moemodel(*arguments)
    assert result.exit_code == 0
    assert "note: clocks: passive, not locked: another process computes on this GPU" in result.stdout
    assert json.loads((folder / "mine" / "manifest.json").read_text())["clocks"] == "passive"


@pytest.mark.parametrize(("number", "status"), [(None, 130), (int(signal.SIGTERM), 143)])
def test_what_interrupted_it_is_its_exit_status(
    number: int | None, status: int, asked: dict[str, Any], moemodel: Run, tmp_path: Path
) -> None:
    asked["outcome"] = ProfileReport(folder=tmp_path, interrupted=True, signal=number)
    assert moemodel("profile", "--gpu", "cpu").exit_code == status


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("h100", "profile-h100"),
        ("my/gpu.json", "profile-gpu"),
        ("sim:h100?state=/tmp/s.json", "profile-sim-h100-state-tmp-s.json"),
    ],
)
def test_the_folder_is_named_for_the_gpu(gpu: str, name: str, asked: dict[str, Any], moemodel: Run) -> None:
    moemodel("profile", "--gpu", gpu)
    assert asked["folder"] == Path(name)
