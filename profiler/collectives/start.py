"""Starts the processes that measure collectives, and hands on what they tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from moemodel.model.core.errors import DeviceError
from moemodel.profiler.jobs.events import Event
from moemodel.profiler.jobs.launcher import JobProcesses, Patience, Program

_GRACE_S = 8.0  # assumed: for processes to end when they are asked to; then they are killed
_START_S = 180.0  # to load libraries from a cold disk, start CUDA and connect
_ADVICE = (
    "what was measured before it is kept: run again to go on, with NCCL_DEBUG=WARN to see more, or leave "
    "collectives out of --sections"
)


def follow(
    programs: Sequence[Program],
    folder: Path,
    tell: Callable[[Event], None],
    *,
    stall_s: float,
    start_s: float = _START_S,
    meet_here: bool = False,
) -> None:
    """Run a job until it ends, handing on what it tells.

    Args:
        programs: of its processes, the first of which writes events.
        folder: of the job, where it writes them.
        tell: called with every event.
        stall_s: without any event, the job is given up.
        start_s: the same for the first event, where that is longer.
        meet_here: see `jobs.launcher.JobProcesses`.

    Raises:
        DeviceError: it failed or stalled; says what it was at, and why if it told.
    """
    patience = Patience(start_s=max(stall_s, start_s), silence_s=stall_s, grace_s=_GRACE_S)
    job = JobProcesses(programs, folder, patience=patience, meet_here=meet_here)
    at = "starting the processes"
    with closing(job.events()) as events:
        for event in events:
            if event["event"] == "at":
                at = event["what"]
            tell(event)
    if job.hangs or job.exit_status != 0:
        raise DeviceError(f"collectives: {at}: {job.why_it_ended().reason}; {_ADVICE}")
