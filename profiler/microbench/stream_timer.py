"""Times regions of calls on a device, without waiting for it while they run.

On CUDA a region is: a spin long enough for the host to queue everything behind it, a clock stamp, an event, the calls,
an event, a clock stamp. So the device never waits for the host inside a region, and device time and host (queueing)
time come from the same calls. On a CPU calls are timed as they run, and there is no host time apart.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from moemodel.profiler.devices.base import Device
from moemodel.profiler.instruments.cycle_counter import ClockReader, Stamp
from moemodel.profiler.microbench.cases import Case

_FALLBACK_CLOCK_HZ = 2e9  # for the length of a spin only


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One region: device time and host time of one call, and the true clock over the region."""

    calls: int
    time_s: float
    host_time_s: float | None
    clock_Hz: float | None


@dataclass(frozen=True, kw_only=True)
class TimedRegion:
    """A region that was queued; read it with the stream that made it."""

    calls: int
    host_time_s: float | None = None
    time_s: float | None = None  # known at once on a CPU
    events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
    stamps: tuple[Stamp | None, Stamp | None] = (None, None)


class Timer(Protocol):
    """The time that a device lives in, and ways to let some pass."""

    def now_s(self) -> float:
        """Of a monotonic clock; only differences mean anything."""
        ...

    def wall_s(self) -> float:
        """Unix time."""
        ...

    def sleep(self, seconds: float) -> None:
        """At least so long."""
        ...

    def pause(self, seconds: float) -> None:
        """Exactly so long."""
        ...


class Stream(Protocol):
    """Where calls are queued and timed."""

    def queue(self, case: Case, calls: int, spin_s: float = 0.0) -> TimedRegion:
        """Queue `calls` calls as one region, the device held back by `spin_s` at its start."""
        ...

    def read(self, regions: Sequence[TimedRegion]) -> list[Sample]:
        """Wait for the device, then the samples of finished regions; one copy for all clocks."""
        ...

    def wait(self, region: TimedRegion) -> None:
        """Wait until one region has run."""
        ...

    def synchronize(self) -> None: ...


class CudaStream:
    """The current CUDA stream."""

    def __init__(self, device: Device, clock: ClockReader) -> None:
        self._clock = clock
        self._spin_Hz = device.info.clock_max_Hz or _FALLBACK_CLOCK_HZ

    def queue(self, case: Case, calls: int, spin_s: float = 0.0) -> TimedRegion:
        start, end = _event(), _event()
        if spin_s > 0:
            _spin(int(spin_s * self._spin_Hz))
        before = self._clock.stamp()
        start.record()
        begun_s = time.perf_counter()
        case.run(calls)
        host_s = time.perf_counter() - begun_s
        end.record()
        after = self._clock.stamp()
        return TimedRegion(calls=calls, host_time_s=host_s / calls, events=(start, end), stamps=(before, after))

    def read(self, regions: Sequence[TimedRegion]) -> list[Sample]:
        self.synchronize()
        clocks = self._clock.means_Hz([s.stamps for s in regions])
        return [
            Sample(calls=s.calls, time_s=_elapsed_s(s) / s.calls, host_time_s=s.host_time_s, clock_Hz=clock)
            for s, clock in zip(regions, clocks, strict=True)
        ]

    def wait(self, region: TimedRegion) -> None:
        if region.events is not None:
            region.events[1].synchronize()

    def synchronize(self) -> None:
        torch.cuda.synchronize()


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _spin(cycles: int) -> None:
    torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]


def _elapsed_s(region: TimedRegion) -> float:
    if region.events is None:
        raise ValueError("a region of another stream")
    start, end = region.events
    return float(start.elapsed_time(end)) * 1e-3


class CpuStream:
    """The calling thread; every call has returned when it is queued."""

    def queue(self, case: Case, calls: int, spin_s: float = 0.0) -> TimedRegion:
        del spin_s
        begun_s = time.perf_counter()
        case.run(calls)
        return TimedRegion(calls=calls, time_s=(time.perf_counter() - begun_s) / calls)

    def read(self, regions: Sequence[TimedRegion]) -> list[Sample]:
        return [
            Sample(calls=s.calls, time_s=s.time_s, host_time_s=None, clock_Hz=None)
            for s in regions
            if s.time_s is not None
        ]

    def wait(self, region: TimedRegion) -> None:
        del region

    def synchronize(self) -> None:
        return None


def open_stream(device: Device, clock: ClockReader) -> Stream:
    """The stream of a device."""
    return CudaStream(device, clock) if device.torch_device.type == "cuda" else CpuStream()


def pause(seconds: float) -> None:
    """Wait precisely: sleep (other threads may run), then spin for the last millisecond."""
    end_s = time.perf_counter() + seconds
    if seconds > 2e-3:
        time.sleep(seconds - 1e-3)
    while time.perf_counter() < end_s:
        pass


class HostTimer:
    """Real time: `time.perf_counter`."""

    def now_s(self) -> float:
        return time.perf_counter()

    def wall_s(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def pause(self, seconds: float) -> None:
        pause(seconds)
