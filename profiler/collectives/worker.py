"""`python -m moemodel.profiler.collectives.worker REQUEST.json`: one rank of a job that measures collectives."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from moemodel.profiler.collectives.rank_measurement import Section
from moemodel.profiler.collectives.request import Request, read_request
from moemodel.profiler.devices.base import Device
from moemodel.profiler.devices.cpu import CpuDevice
from moemodel.profiler.jobs.events import EventWriter
from moemodel.profiler.jobs.failures import write_failure
from moemodel.profiler.jobs.ranks import failure_of, join, leave
from moemodel.profiler.platforms.registry import open_named

_CPU = "cpu"


def serve(request: Request) -> None:
    """Join the others, measure what is asked, part.

    Raises:
        MoeModelError: the environment or the GPU is not what it should be.
        RuntimeError: as torch fails; the reason is left behind first.
    """
    try:
        joined = join(cpu=request.gpu == _CPU, timeout_s=request.scale.timeout_s)
        device = _device(request.gpu)
        try:
            Section(joined, device, request, EventWriter(request.events)).run()
        finally:
            device.close()
    except Exception as error:
        _leave_behind(error, request.events.parent)
        raise
    leave()


def _device(gpu: str) -> Device:
    """The device that this rank drives, checked to be the one that was asked for."""
    if gpu == _CPU:
        return CpuDevice()
    return open_named(gpu)[0]


def _leave_behind(error: Exception, folder: Path) -> None:
    """Why this rank fails; on another machine there is no such folder, and the launcher says it."""
    rank, failure = os.environ.get("RANK", "?"), failure_of(error, None)
    if folder.is_dir():
        reason = f"rank {rank}: {failure.reason.splitlines()[0]}"
        write_failure(folder, int(rank), failure.model_copy(update={"reason": reason}))


if __name__ == "__main__":
    serve(read_request(Path(sys.argv[1]).read_text(encoding="utf-8")))
