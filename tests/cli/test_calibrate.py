"""`moemodel calibrate`: what it writes and prints, and what it says where it can't."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from moemodel.calibrate import fit
from moemodel.calibrate.operators import HeldOut
from moemodel.model.calibration import Calibration, read_calibration
from moemodel.model.operators import Kind, Pass

Run = Callable[..., Result]

ERRORS = [
    HeldOut(kind=Kind.GEMM, direction=Pass.BACKWARD_INPUT, shapes=12, median=0.031, mean=0.04, p90=0.09, worst=0.2)
]


@pytest.fixture
def fitted(calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> Calibration:
    """A profile of which the fit is known."""
    monkeypatch.setattr(fit, "calibrate_profile", lambda _: (calibration, ERRORS))
    return calibration


def test_writes_the_calibration_and_prints_the_errors(fitted: Calibration, moemodel: Run, folder: Path) -> None:
    result = moemodel("calibrate", "profile", "-o", "mine.json")
    assert result.exit_code == 0
    assert read_calibration(folder / "mine.json") == fitted
    row = next(line for line in result.stdout.splitlines() if line.startswith("gemm"))
    assert row.split() == ["gemm", "backward_input", "12", "3.1%", "4.0%", "9.0%", "20.0%"]
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert moemodel("predict", "plan.yaml", "--calibration", "mine.json").exit_code == 0


@pytest.mark.usefixtures("fitted")
def test_a_place_that_cannot_be_written(moemodel: Run, folder: Path) -> None:
    result = moemodel("calibrate", "profile", "-o", "no/where.json")
    assert result.exit_code == 2
    assert "no/where.json" in result.stderr
    assert [path.name for path in folder.iterdir()] == ["plan.yaml"]


def test_a_profile_that_is_not_there(moemodel: Run, folder: Path) -> None:
    result = moemodel("calibrate", "nowhere", "-o", "mine.json")
    assert result.exit_code == 2
    assert result.stderr.startswith("moemodel: nowhere")
    assert not (folder / "mine.json").exists()


@pytest.mark.parametrize(
    ("command", "room", "missing"),
    [("calibrate profile -o mine.json", "calibrate", "pandas"), ("profile --gpu cpu", "profiler", "torch")],
)
def test_what_is_not_installed_is_named(
    command: str, room: str, missing: str, moemodel: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(f"moemodel.{room}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    result = moemodel(*command.split())
    assert result.exit_code == 2
    name = command.split()[0]
    assert result.stderr.startswith(f"moemodel: {name} needs {missing}")
    assert f"pip install 'moemodel[{name}]'" in result.stderr
