"""The command line as a whole: help, errors, and how little it imports."""

from __future__ import annotations

import errno
import json
import re
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner, Result
from rich.text import Text

import moemodel as package
from moemodel import cli
from moemodel.cli.output import bullets, digits, prefixed
from moemodel.cli.safe_console import SafeConsole
from moemodel.cli.visible import visible

Run = Callable[..., Result]
ROOT = Path(__file__).parents[2]


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


# ---- what others' files send to the terminal ------------------------------------------------------------------------

ESCAPE = "\x1b]0;pwned\x07\x1b[31mEVIL\u202e\x9b"
SHOWN = "\\u001b]0;pwned\\u0007\\u001b[31mEVIL\\u202e\\u009b"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, größer, 東京\u3000タワー", "plain, größer, 東京\u3000タワー"),
        ("two\nlines", "two\nlines"),
        (ESCAPE, SHOWN),
        ("tab\tcr\rdel\x7f", "tab\\tcr\\rdel\\u007f"),
        ("half\udcff", "half\\udcff"),
    ],
)
def test_nothing_is_obeyed_by_a_terminal(text: str, shown: str) -> None:
    assert visible(text) == shown
    if "\n" not in text:
        assert json.loads(f'"{shown}"') == text


def _is_visible(text: str) -> bool:
    return all(character == "\n" or unicodedata.category(character) not in ("Cc", "Cf") for character in text)


def test_names_in_a_plan_a_gpu_and_a_model_are_shown(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    plan = yaml.safe_load((folder / "plan.yaml").read_text(encoding="utf-8"))
    del plan["tokens"]  # 1e10 is text to PyYAML
    plan["cluster"] |= {"gpus_per_node": 4, "internode": {"bandwidth_GBps": 50, "latency_us": 5, "source": ESCAPE}}
    (folder / "plan.yaml").write_text(json.dumps(plan), encoding="utf-8")
    gpu = json.loads((ROOT / "model/presets/gpus/h100-sxm-80gb.json").read_text(encoding="utf-8"))
    (folder / "gpu.json").write_text(json.dumps(gpu | {"product": ESCAPE, "name": ESCAPE}), encoding="utf-8")
    model = json.loads((ROOT / "model/presets/architectures/opt-350m.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(model | {"_source": ESCAPE}), encoding="utf-8")
    calibration = json.loads(calibration_file.read_text(encoding="utf-8")) | {"provenance": ESCAPE, "name": ESCAPE}
    (folder / "c.json").write_text(json.dumps(calibration), encoding="utf-8")
    for arguments in (
        ("predict", "plan.yaml", "--calibration", "c.json"),
        ("predict", "plan.yaml", "--calibration", "c.json", "--json"),
        ("gpus", "gpu.json"),
        ("models", "config.json"),
    ):
        result = moemodel(*arguments)
        assert result.exit_code == 0, result.stderr
        assert _is_visible(result.stdout)
        assert "EVIL" in result.stdout
    for arguments in (("predict", ESCAPE), ("models", ESCAPE), (ESCAPE,), ("predict", "plan.yaml", ESCAPE)):
        result = moemodel(*arguments)
        assert result.exit_code == 2
        assert _is_visible(result.stderr)


def test_markup_in_a_name_is_text(moemodel: Run, folder: Path, calibration_file: Path) -> None:
    text = (folder / "plan.yaml").read_text(encoding="utf-8").replace("name: small", "name: '[red]x[/red] [/]'")
    (folder / "plan.yaml").write_text(text, encoding="utf-8")
    assert "[red]x[/red] [/]\n" in moemodel("predict", "plan.yaml", "--calibration", calibration_file).stdout


def test_a_terminal_gets_the_consoles_own_codes_and_no_others() -> None:
    out = StringIO()
    shown = SafeConsole(file=out, force_terminal=True, color_system="standard", markup=False)
    shown.print(Text(ESCAPE, style="bold"))
    assert out.getvalue() == "\x1b[1m{}\x1b[0m\n".format(SHOWN.replace("\\u0007", ""))  # rich itself drops the bell


def test_notes_are_escaped_as_they_come_in() -> None:
    out = StringIO()
    SafeConsole(file=out, width=200).print(bullets([ESCAPE]))
    assert SHOWN in out.getvalue()  # the bell too, which rich drops of what it lays out


def test_commands_print_by_one_door() -> None:
    """`output` escapes; whatever prints past it does not."""
    for file in (ROOT / "cli").glob("*.py"):
        if file.name not in ("__init__.py", "output.py", "safe_console.py", "visible.py"):
            text = file.read_text(encoding="utf-8")
            past = re.search(r"click\.(?:secho|echo)\(|(?<![.\w])(?:print|Console|Table(?:\.grid)?)\(", text)
            assert past is None, f"{file.name}: {past.group()}"


def test_characters_that_the_output_lacks_are_escaped(
    folder: Path, calibration_file: Path, environment: dict[str, str]
) -> None:
    text = (folder / "plan.yaml").read_text(encoding="utf-8").replace("name: small", "name: größer")
    (folder / "plan.yaml").write_text(text, encoding="utf-8")
    for options in ((), ("--json",)):
        result = subprocess.run(
            [sys.executable, "-m", "moemodel", "predict", "plan.yaml", "--calibration", calibration_file, *options],
            env=environment | {"PYTHONIOENCODING": "ascii"},
            cwd=folder,
            capture_output=True,
            check=True,
        )
        assert b"gr\\xf6\\xdfer" in result.stdout or json.loads(result.stdout)["plan"]["name"] == "größer"


def test_a_nul_in_an_argument(moemodel: Run) -> None:
    for arguments in (("predict", "a\0b"), ("init", "-o", "a\0b"), ("models", "\0")):
        result = moemodel(*arguments)
        assert (result.exit_code, result.stderr) == (
            2,
            "moemodel: an argument holds a NUL; no file, option or name does\n",
        )


@pytest.mark.parametrize(
    "arguments",
    [
        ("profile", "--gpu", "cpu", "--budget", "nan"),
        ("profile", "--gpu", "cpu", "--budget", "inf"),
        ("validate", "plan.yaml", "--seconds", "nan"),
        ("validate", "plan.yaml", "--warm-seconds", "inf"),
        ("validate", "plan.yaml", "--timeout", "nan"),
    ],
)
def test_what_is_no_number_of_seconds(arguments: tuple[str, ...], moemodel: Run) -> None:
    result = moemodel(*arguments)
    assert result.exit_code == 2
    assert "is not a finite number" in result.stderr


def test_ctrl_c_is_no_traceback(folder: Path, environment: dict[str, str]) -> None:
    """Not once, and not twice."""
    code = (
        "import os, signal, click, moemodel.cli as cli\n"
        "@click.command()\n"
        "def slow():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "cli.main.get_command = lambda *_: slow\n"
        "try:\n"
        "    cli.main(['slow'])\n"
        "finally:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode in (128 + signal.SIGINT, -signal.SIGINT)  # the third comes while it ends, or behind it
    assert result.stderr == "moemodel: interrupted\n"
