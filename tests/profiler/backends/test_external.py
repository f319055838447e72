"""A program of its own is started, its steps are given while it runs, and its failure is told with its last words."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from moemodel.profiler.backends.external import Command, ProgramError, follow
from moemodel.profiler.backends.megatron_deepspeed.program import read_log

_LINE = (
    " iteration {0:8d}/{1:8d} | consumed samples: {0:12d} | elapsed time per iteration (ms): 10.0 | lm loss: "
    "1.0E+00 | number of skipped iterations:   0 |"
)


def _command(folder: Path, code: str) -> Command:
    script = f"import sys, time, os\nline = {_LINE!r}\n{code}"
    return Command(argv=(sys.executable, "-u", "-c", script), environment={"TOLD": "yes"}, folder=folder)


_TWO_STEPS = """
print('hello'); print(line.format(1, 2))
for _ in range(6000):  # a minute for whoever follows to have seen the first step
    if os.path.exists('seen'):
        print(line.format(2, 2)); sys.exit()
    time.sleep(0.01)
sys.exit(1)
"""


def test_steps_come_while_it_runs(tmp_path: Path) -> None:
    steps = follow(_command(tmp_path, _TWO_STEPS), read_log, tmp_path / "log.txt")
    assert next(steps).iteration == 1
    (tmp_path / "seen").touch()
    assert [step.iteration for step in steps] == [2]
    assert (tmp_path / "log.txt").read_text().startswith("hello\n iteration")


def test_it_has_its_environment_and_folder(tmp_path: Path) -> None:
    code = "print(os.environ['TOLD'], os.getcwd(), os.environ.get('PATH') is not None)"
    assert list(follow(_command(tmp_path, code), read_log, tmp_path / "log.txt")) == []
    assert (tmp_path / "log.txt").read_text() == f"yes {tmp_path} True\n"


def test_a_failure_says_its_last_words(tmp_path: Path) -> None:
    code = "print(line.format(1, 2)); print('out of memory', file=sys.stderr); sys.exit(3)"
    steps = follow(_command(tmp_path, code), read_log, tmp_path / "log.txt")
    assert next(steps).iteration == 1
    with pytest.raises(
        ProgramError, match=r"ended with 3; .*log\.txt has all that it wrote, at last:[\s\S]*out of memory"
    ):
        next(steps)


def test_what_cannot_be_started_is_named(tmp_path: Path) -> None:
    told = Command(argv=("no-such-launcher",), folder=tmp_path)
    with pytest.raises(ProgramError, match=r"no-such-launcher: it can't be started: .*No such file"):
        next(follow(told, read_log, tmp_path / "log.txt"))


def test_it_ends_with_whoever_follows_it(tmp_path: Path) -> None:
    code = "print(line.format(1, 2)); time.sleep(60); print('never')"
    steps = follow(_command(tmp_path, code), read_log, tmp_path / "log.txt")
    next(steps)
    begun_s = time.monotonic()
    steps.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begun_s < 15
    assert "never" not in (tmp_path / "log.txt").read_text()
