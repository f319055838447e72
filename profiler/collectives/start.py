"""Starts the processes that measure collectives, and hands on what they tell."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from moemodel.model.core.errors import DeviceError
from moemodel.profiler.jobs.events import Event
from moemodel.profiler.jobs.launcher import JobProcesses, Patience

_GRACE_S = 35.0  # torchrun gives its own processes 30 s to end
_START_S = 180.0  # to load libraries from a cold disk, start CUDA and connect
_ADVICE = (
    "what was measured before it is kept: run again to go on, with NCCL_DEBUG=WARN to see more, or leave "
    "collectives out of --sections"
)


def follow(
    command: Sequence[str],
    folder: Path,
    tell: Callable[[Event], None],
    *,
    stall_s: float,
    start_s: float = _START_S,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Run a command until it ends, handing on what it tells.

    Args:
        command: that writes events.
        folder: of the job, where it writes them.
        tell: called with every event.
        stall_s: without any event, the command is given up.
        start_s: the same for the first event, where that is longer.
        environment: of the command.

    Raises:
        DeviceError: it failed or stalled; says what it was at, and why if it told.
    """
    patience = Patience(start_s=max(stall_s, start_s), silence_s=stall_s, grace_s=_GRACE_S)
    job = JobProcesses(command, folder, environment=environment, patience=patience)
    at = "starting the processes"
    with closing(job.events()) as events:
        for event in events:
            if event["event"] == "at":
                at = event["what"]
            tell(event)
    if job.hangs or job.exit_status != 0:
        raise DeviceError(f"collectives: {at}: {job.why_it_ended().reason}; {_ADVICE}")
