"""Streams: where work is queued so that two kinds of it run at once: CUDA streams, or a thread each on processors.

Work is queued in chunks; a marker is left behind each, to ask whether it has been reached, and when.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch

from moemodel.profiler.devices.base import Device
from moemodel.profiler.instruments.cycle_counter import ClockReader, Stamp


class Marker(Protocol):
    """The end of a chunk."""

    stamp: Stamp | None  # of the true clock there

    def done(self) -> bool:
        """Whether the device has got there."""
        ...

    def time_s(self) -> float:
        """When it was reached, after it was; only differences between markers of one job's streams mean anything."""
        ...


class CommStream(Protocol):
    """Work in order, beside other streams."""

    def queue(self, work: Callable[[], None]) -> Marker:
        """Queue work behind what is there; the marker of its end."""
        ...

    def close(self) -> None:
        """End the stream; what is queued is done first."""
        ...


class StreamMarker:
    """An event on a stream, timed against one that was recorded before."""

    def __init__(self, origin: torch.cuda.Event, event: torch.cuda.Event, stamp: Stamp | None) -> None:
        self._origin, self._event, self.stamp = origin, event, stamp

    def done(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def time_s(self) -> float:
        return float(self._origin.elapsed_time(self._event)) * 1e-3


class CudaCommStream:
    """A CUDA stream.

    Args:
        origin: an event that both streams' times count from; it must have been recorded.
        clock: stamps the end of every chunk.
        priority: of the stream: -1 before others, 0 as all.
    """

    def __init__(self, origin: torch.cuda.Event, clock: ClockReader, priority: int) -> None:
        self._origin, self._clock = origin, clock
        self._stream = torch.cuda.Stream(priority=priority)  # type: ignore[no-untyped-call]

    def queue(self, work: Callable[[], None]) -> StreamMarker:
        with torch.cuda.stream(self._stream):
            work()
            stamp = self._clock.stamp()  # before the event: once that is reached, the stamp can be read
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
        return StreamMarker(self._origin, event, stamp)

    def close(self) -> None:
        self._stream.synchronize()


class ThreadMarker:
    """The instant at which a thread ended a chunk."""

    stamp: Stamp | None = None

    def __init__(self, end_s: Future[float]) -> None:
        self._end_s = end_s

    def done(self) -> bool:
        return self._end_s.done()

    def time_s(self) -> float:
        return self._end_s.result()


class ThreadCommStream:
    """A thread that takes one chunk after another."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stream")

    def queue(self, work: Callable[[], None]) -> ThreadMarker:
        def timed() -> float:
            work()
            return time.perf_counter()

        return ThreadMarker(self._thread.submit(timed))

    def close(self) -> None:
        self._thread.shutdown(wait=True)


def open_streams(device: Device, clock: ClockReader, *priorities: int) -> list[CommStream]:
    """Streams of a device, one a priority."""
    if device.torch_device.type != "cuda":
        return [ThreadCommStream() for _ in priorities]
    torch.cuda.synchronize()
    origin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    origin.record()
    return [CudaCommStream(origin, clock, priority) for priority in priorities]
