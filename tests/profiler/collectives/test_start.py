"""Processes that measure collectives are followed, and ended when they fail or hang."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from moemodel.model.core.errors import DeviceError
from moemodel.profiler.collectives.start import follow
from moemodel.profiler.jobs.failures import RankFailure, write_failure
from moemodel.profiler.jobs.launcher import Program

TELL = "import json, sys, time; f = open(sys.argv[1], 'a'); t = lambda **e: print(json.dumps(e), file=f, flush=True); "


def run(tmp_path: Path, code: str, *, stall_s: float = 20.0, start_s: float = 20.0) -> list[dict[str, Any]]:
    heard: list[dict[str, Any]] = []
    events = tmp_path / "events.jsonl"
    follow(program(code, events), tmp_path, heard.append, stall_s=stall_s, start_s=start_s)
    return heard


def program(code: str, events: Path) -> list[Program]:
    return [Program(command=[sys.executable, "-c", TELL + code, str(events)], environment=os.environ, name="0")]


def test_everything_told_is_heard_in_order(tmp_path: Path) -> None:
    heard = run(tmp_path, "[t(event='at', what=i) for i in range(5)]")
    assert [event["what"] for event in heard] == [0, 1, 2, 3, 4]


def test_a_failure_says_where_and_why(tmp_path: Path) -> None:
    write_failure(tmp_path, 1, RankFailure(visit=None, kind="crash", reason="rank 1: no memory"))
    code = "t(event='at', what='all_reduce of 1,024 B'); sys.exit(1)"
    with pytest.raises(
        DeviceError,
        match=r"^collectives: all_reduce of 1,024 B: rank 1: no memory; what was measured before it is kept",
    ):
        run(tmp_path, code)


def test_a_death_without_a_word_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"^collectives: starting the processes: .*ZeroDivisionError"):
        run(tmp_path, "1 / 0")


def test_a_signal_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="exit status -9"):
        run(tmp_path, "import os; os.kill(os.getpid(), 9)")


def test_one_that_hangs_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = (
        f"import os; open({str(pid)!r}, 'w').write(str(os.getpid())); t(event='at', what='send_recv'); time.sleep(99)"
    )
    with pytest.raises(DeviceError, match=r"collectives: send_recv: no answer for 0 s; .* leave collectives out"):
        run(tmp_path, code, stall_s=0.3)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_one_that_never_starts_is_ended_too(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="starting the processes: no answer for 1 s"):
        run(tmp_path, "time.sleep(99)", stall_s=0.1, start_s=0.6)


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    def stop(_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    events, pid = tmp_path / "events.jsonl", tmp_path / "pid"
    code = f"import os; open({str(pid)!r}, 'w').write(str(os.getpid())); t(event='at', what=0); time.sleep(99)"
    with pytest.raises(KeyboardInterrupt):
        follow(program(code, events), tmp_path, stop, stall_s=20.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
