"""`moemodel calibrate`: what it writes and prints, and what it says where it can't."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from rich.console import Console

from moemodel.calibration.fit import calibration as fit
from moemodel.calibration.fit.operators import HeldOut
from moemodel.calibration.update import from_reports as update
from moemodel.calibration.update.fitter import FittedFactor, Part
from moemodel.calibration.update.fitter import HeldOut as HeldOutPlans
from moemodel.calibration.update.from_reports import Update
from moemodel.cli.output import working
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.records.calibration import Calibration, Parameter, ThermalFit, fingerprint, read_calibration
from moemodel.model.results import validation

Run = Callable[..., Result]

ERRORS = [
    HeldOut(kind=Kind.GEMM, direction=Pass.BACKWARD_INPUT, shapes=12, median=0.031, mean=0.04, p90=0.09, worst=0.2)
]


@pytest.fixture
def fitted(calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> Calibration:
    """A profile of which the fit is known."""
    monkeypatch.setattr(fit, "calibrate_profile", lambda _, **__: (calibration, ERRORS))
    return calibration


def test_writes_the_calibration_and_prints_the_errors(fitted: Calibration, moemodel: Run, folder: Path) -> None:
    result = moemodel("calibrate", "profile", "-o", "mine.json")
    assert result.exit_code == 0
    assert read_calibration(folder / "mine.json") == fitted
    row = next(line for line in result.stdout.splitlines() if line.startswith("gemm"))
    assert row.split() == ["gemm", "backward_input", "12", "3.1%", "4.0%", "9.0%", "20.0%"]
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert moemodel("predict", "plan.yaml", "--calibration", "mine.json").exit_code == 0


def test_says_what_is_not_as_good_as_it_looks(
    calibration: Calibration, moemodel: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assumed = Parameter.assumed(0.0, "K/W", "the sensor stands still: no rise is modelled")
    heat = {**calibration.thermal.parameters, "die_C_per_W": assumed}
    poor = calibration.model_copy(
        update={"trial": "For trying the commands only: 3 of 4.", "thermal": ThermalFit(parameters=heat)}
    )
    monkeypatch.setattr(fit, "calibrate_profile", lambda _, **__: (poor, ERRORS))
    result = moemodel("calibrate", "profile", "-o", "mine.json")
    lines = result.stdout.splitlines()
    assert "For trying the commands only: 3 of 4." in lines
    assert "Temperature: the sensor stands still: no rise is modelled." in lines
    assert result.stderr == ""  # no terminal, no bar
    read = read_calibration(folder / "mine.json")
    assert read.trial == "For trying the commands only: 3 of 4."
    assert fingerprint(read) == fingerprint(read.model_copy(update={"trial": None}))


def test_says_what_predictions_will_lack(
    calibration: Calibration, moemodel: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that a prediction comes next, which refuses."""
    kept = [each for each in calibration.operators if each.kind is not Kind.ADAMW_MIXED]
    partial = calibration.model_copy(update={"operators": kept})
    monkeypatch.setattr(fit, "calibrate_profile", lambda _, **__: (partial, ERRORS))
    said = " ".join(moemodel("calibrate", "profile", "-o", "mine.json").stdout.split())
    assert "Not fitted: adamw_mixed/step. moemodel predict refuses every plan that has one of these." in said
    assert said.endswith("next: the same moemodel profile and calibrate, to add what is missing")
    refused = moemodel("predict", "plan.yaml", "--calibration", "mine.json")
    assert refused.exit_code == 2
    assert "no fit for adamw_mixed/step" in refused.stderr


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Console, "is_terminal", True)
    with working("reading") as tell:
        tell(1, 4, "gemm forward")
    shown = capsys.readouterr()
    assert "gemm forward" in shown.err
    assert not shown.out


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
    [("calibrate profile -o mine.json", "calibration", "pandas"), ("profile --gpu cpu", "profiler", "torch")],
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


# ---- from validations -----------------------------------------------------------------------------------------------


@pytest.fixture
def updated(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """A report of which the update is known, and that may be forced; whether it helps is said."""

    def make(helps: bool) -> None:
        errors = HeldOutPlans(before=0.10, left_out=0.04 if helps else 0.12, fitted=0.03, plans=7)
        moved = FittedFactor(name="kernels", meaning="time of operators", factor=1.08, error=0.012, error_before=0.03)
        part = Part(name="time and power", moved=(moved,), errors={"step_time": errors})
        report = SimpleNamespace(environment=SimpleNamespace(gpu="h100-sxm-80gb"))

        def found(start: Calibration, reports: Any, source: str, *, force: bool) -> Update:
            assert reports == [report]
            assert source == "report.json"
            kept = ("time and power",) if helps or force else ()
            return Update(calibration=start, parts=(part,), kept=kept, plans=7, left_out="5 kinds of plans")

        monkeypatch.setattr(update, "update", found)
        monkeypatch.setattr(validation, "read_report", lambda _: report)

    return make


def test_an_update_that_helps(
    updated: Callable[[bool], None], calibration: Calibration, calibration_file: Path, moemodel: Run, folder: Path
) -> None:
    updated(True)
    result = moemodel("calibrate", "--update", "report.json", "--calibration", calibration_file, "-o", "new.json")
    assert result.exit_code == 0, result.output
    assert read_calibration(folder / "new.json") == calibration
    lines = result.stdout.splitlines()
    assert lines[0] == "7 plans; 5 kinds of plans"
    shown = next(line for line in lines if line.startswith("step time"))
    assert shown.split() == ["step", "time", "7", "10.0%", "4.0%", "3.0%"]
    assert next(line for line in lines if "operators" in line).split()[-3:] == ["1.080", "1.2%", "3.0%"]
    assert "time and power: helps plans left out" in lines
    assert max(map(len, lines)) <= 80


def test_an_update_that_does_not_help_is_written_only_if_forced(
    updated: Callable[[bool], None], calibration_file: Path, moemodel: Run, folder: Path
) -> None:
    updated(False)
    command = ("calibrate", "--update", "report.json", "--calibration", calibration_file, "-o", "new.json")
    result = moemodel(*command)
    assert result.exit_code == 1
    assert "time and power: does not help plans left out\n" in result.stdout
    assert "nothing written" in result.stdout
    assert not (folder / "new.json").exists()
    forced = moemodel(*command, "--force")
    assert forced.exit_code == 0
    assert "time and power: does not help plans left out (--force)" in forced.stdout
    assert (folder / "new.json").exists()


def test_a_report_that_is_not_there(moemodel: Run, folder: Path) -> None:
    result = moemodel("calibrate", "--update", "nowhere.json", "-o", "new.json")
    assert result.exit_code == 2
    assert result.stderr == "moemodel: nowhere.json: no such file\n"
    assert not (folder / "new.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("-o new.json", "give profiles, or --update and a report"),
        ("profile --update report.json -o new.json", "give profiles, or --update and a report"),
        ("profile --force -o new.json", "--calibration and --force go with --update"),
        ("profile --calibration mine.json -o new.json", "--calibration and --force go with --update"),
    ],
)
def test_profiles_or_reports(arguments: str, says: str, moemodel: Run) -> None:
    result = moemodel("calibrate", *arguments.split())
    assert result.exit_code == 2
    assert says in result.stderr


def test_readings_go_with_nothing_else(moemodel: Run) -> None:
    result = moemodel("calibrate", "--readings", "a.csv", "--force", "-o", "mine.json")
    assert (result.exit_code, "--calibration and --force go with --update" in result.stderr) == (2, True)
    result = moemodel("calibrate", "profile", "--gpu", "b200", "-o", "mine.json")
    assert (result.exit_code, "--gpu goes with --readings" in result.stderr) == (2, True)
    result = moemodel("calibrate", "profile", "--readings", "a.csv", "-o", "mine.json")
    assert (result.exit_code, "or --readings and a table" in result.stderr) == (2, True)


def test_readings_that_cannot_be(moemodel: Run, folder: Path) -> None:
    (folder / "a.csv").write_text("gemm_dtype,m,n,k,latency_ms,system\nbfloat16,8,8,0,1,b200\n")
    result = moemodel("calibrate", "--readings", "a.csv", "-o", "mine.json")
    assert result.exit_code == 2
    assert "a.csv: column k, row 1: found 0; allowed: whole numbers from 1" in result.stderr


def test_readings_make_a_calibration_that_predicts(moemodel: Run, folder: Path) -> None:
    rows = [
        f"bfloat16,{m},{n},{k},{5e-3 + 2e-9 * m * n * k / 800e3},b200"
        for m in (128, 512, 2048, 8192)
        for n in (512, 1024, 2048, 4096, 8192)
        for k in (512, 1024, 2048, 4096, 8192)
    ]
    (folder / "a.csv").write_text("\n".join(["gemm_dtype,m,n,k,latency_ms,system", *rows]) + "\n")
    result = moemodel("calibrate", "--readings", "a.csv", "-o", "mine.json")
    assert result.exit_code == 0, result.stderr
    assert "gemm/forward" in result.stdout
    made = read_calibration(folder / "mine.json")
    assert made.gpu == "b200-sxm-180gb"
    assert "100 readings of bfloat16" in made.provenance
    fit = made.operator(Kind.GEMM, Pass.FORWARD)
    assert fit is not None
    assert fit.parameters["t0"].origin == "fitted"
