"""The command line as a whole: help, errors, and how little it imports."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import moemodel as package
from moemodel import cli
from moemodel.cli.output import digits, prefixed

Run = Callable[..., Result]


def test_version_and_help(moemodel: Run) -> None:
    assert moemodel("--version").stdout == f"moemodel, version {package.__version__}\n"
    for command in ("predict", "optimize", "init", "models", "gpus", "profile", "calibrate"):
        assert command in moemodel("--help").stdout
        assert moemodel(command, "--help").exit_code == 0


def test_an_unknown_command(moemodel: Run) -> None:
    result = moemodel("predicts")
    assert result.exit_code == 2
    assert "No such command" in result.stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (package.InputError("fix it"), "moemodel: fix it\n"),
        (OSError(errno.ENOSPC, "No space left on device", "out.json"), "moemodel: out.json: No space left on device\n"),
    ],
)
def test_what_the_user_can_mend_is_no_traceback(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(cli, "_COMMANDS", {"failing": "unused:unused"})
    monkeypatch.setattr(type(cli.main), "get_command", lambda *_: failing)
    result = CliRunner().invoke(cli.main, ["failing"])
    assert result.exit_code == 2
    assert result.stderr == message


def test_a_prediction_imports_neither_torch_nor_pandas(
    folder: Path, calibration_file: Path, environment: dict[str, str]
) -> None:
    code = (
        "import sys; from moemodel.cli import main\n"
        f"main(['predict', 'plan.yaml', '--calibration', {str(calibration_file)!r}], standalone_mode=False)\n"
        "heavy = {'torch', 'pandas', 'sklearn', 'scipy', 'networkx', 'pynvml', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=folder, env=environment)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.001234, "0.00123"), (1.5, "1.5"), (99.99, "100"), (1914.2, "1,914"), (3_812_345.0, "3,810,000")],
)
def test_digits(value: float, text: str) -> None:
    assert digits(value) == text


def test_prefixes() -> None:
    for value, unit in ((5e-5, "us"), (0.02, "ms"), (2.0, "s"), (3e4, "ks")):
        factor, shown = prefixed(value, "s")
        assert shown == unit
        assert 1 <= value * factor < 1000
