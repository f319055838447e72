"""Starts the processes that measure collectives, follows what they tell, and ends them when they say nothing more."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moemodel.model.core.errors import DeviceError
from moemodel.profiler.collectives.events import Follower

_POLL_S = 0.05
_GRACE_S = 35.0  # torchrun gives its own processes 30 s to end
_START_S = 180.0  # to load libraries from a cold disk, start CUDA and connect
_LOG_LINES = 5

Event = dict[str, Any]


def follow(
    command: Sequence[str],
    events: Path,
    tell: Callable[[Event], None],
    *,
    stall_s: float,
    start_s: float = _START_S,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Run a command until it ends, handing on what it tells in a file.

    Args:
        command: that writes events.
        events: the file that it writes; its log goes beside it.
        tell: called with every event.
        stall_s: without any event, the command is given up.
        start_s: the same for the first event, where that is longer.
        environment: of the command.

    Raises:
        DeviceError: it failed or stalled; says what it was at, and why if it told.
    """
    follower = Follower(events)
    watch = _Watch(tell)
    log = events.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=dict(environment)
        )
        try:
            while process.poll() is None:
                watch.see(follower)
                patience_s = stall_s if watch.heard else max(stall_s, start_s)
                if time.monotonic() - watch.heard_s > patience_s:
                    raise DeviceError(f"collectives: {watch.at}: no answer for {patience_s:.0f} s; {_ADVICE}")
                time.sleep(_POLL_S)
        finally:
            _end(process)
    watch.see(follower)
    if process.returncode != 0:
        reason = watch.reason or _last_lines(log) or f"exit status {process.returncode}"
        raise DeviceError(f"collectives: {watch.at}: {reason}; {_ADVICE}")


_ADVICE = (
    "what was measured before it is kept: run again to go on, with NCCL_DEBUG=WARN to see more, or leave "
    "collectives out of --sections"
)


class _Watch:
    """What was heard last, and when."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        self.at = "starting the processes"
        self.heard = False
        self.reason: str | None = None
        self.heard_s = time.monotonic()

    def see(self, follower: Follower) -> None:
        for event in follower.news():
            self.heard, self.heard_s = True, time.monotonic()
            if event["event"] == "at":
                self.at = event["what"]
            elif event["event"] == "failed":
                self.reason = self.reason or f"rank {event['rank']}: {event['reason']}"
            self._tell(event)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started, if they still run."""
    for number, patience_s in ((signal.SIGTERM, _GRACE_S), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, number)
            process.wait(patience_s)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _last_lines(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-_LOG_LINES:])[:600]
