"""`python -m moemodel.profiler.collectives.worker REQUEST.json`: one rank of a job that measures collectives."""

from __future__ import annotations

import sys
from pathlib import Path

from moemodel.profiler.collectives.events import Request, Teller, read_request
from moemodel.profiler.collectives.rank_measurement import Section
from moemodel.profiler.devices.base import Device
from moemodel.profiler.devices.cpu import CpuDevice
from moemodel.profiler.jobs import ranks as ranks_module
from moemodel.profiler.platforms.registry import open_named

_CPU = "cpu"


def serve(request: Request) -> None:
    """Join the others, measure what is asked, part.

    Raises:
        MoeModelError: the environment or the GPU is not what it should be.
        RuntimeError: as torch fails; the reason is told first.
    """
    teller = Teller(request.events)
    joined = None
    try:
        joined = ranks_module.join(cpu=request.gpu == _CPU, timeout_s=request.scale.timeout_s)
        device = _device(request.gpu)
        try:
            Section(joined, device, request, teller).run()
        finally:
            device.close()
    except Exception as error:
        teller.failed(joined.rank if joined else -1, _first_line(error))
        raise
    ranks_module.leave()


def _device(gpu: str) -> Device:
    """The device that this rank drives, checked to be the one that was asked for."""
    if gpu == _CPU:
        return CpuDevice()
    return open_named(gpu)[0]


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"[:300]


if __name__ == "__main__":
    serve(read_request(Path(sys.argv[1]).read_text(encoding="utf-8")))
