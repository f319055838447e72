"""Time of one collective: back-to-back calls that the host has queued before the device begins.

On a GPU a stretch is a spin, long enough for the host to queue everything behind it, one call that brings the ranks
together, a clock stamp, an event, the calls, an event, a clock stamp. So device time is free of the host's, and no
rank's time holds a wait for another's host. A stretch in which some rank's host was slower than its spin says nothing
of the device and is taken again with a longer one, a few times.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from moemodel.profiler.collectives.operations import Operation
from moemodel.profiler.collectives.process_groups import RankGroup
from moemodel.profiler.devices.base import Device
from moemodel.profiler.instruments.cycle_counter import ClockReader

_WARM_CALLS = 3  # NCCL connects at the first
_PILOT_CALLS = 4  # for a first guess of a call's time
_SPIN_MARGIN = 1.5  # of the host time that a spin has to cover
_SPIN_EXTRA_S = 0.5e-3  # ranks leave a barrier that far apart, and fill buffers first
_SPIN_MOST_S = 40e-3
_AGAIN = 5  # stretches more, at most, where hosts were late
_FALLBACK_CLOCK_HZ = 2e9  # for the length of a spin only


@dataclass(frozen=True, kw_only=True)
class TimedInterval:
    """Device time, host time and true clock of one call, mean over a stretch; `late`: the device waited for a host."""

    time_s: float
    host_time_s: float | None
    clock_Hz: float | None
    late: bool = False


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Medians over a point's stretches, of one message."""

    calls: int
    time_s: float
    host_time_s: float | None
    clock_Hz: float | None


class CollectiveTimer:
    """Times operations on the device of this rank.

    Args:
        device: that this rank drives.
        clock: reader of its true clock.
    """

    def __init__(self, device: Device, clock: ClockReader) -> None:
        self._cuda = device.torch_device.type == "cuda"
        self._spin_Hz = device.info.clock_max_Hz or _FALLBACK_CLOCK_HZ
        self._clock = clock

    def timing(self, operation: Operation, group: RankGroup, *, stretches: int, stretch_s: float, most: int) -> Timing:
        """Time of an operation over a group; every rank of it calls this at the same time."""
        host_s = self._warm_up(operation, group)
        pilot = self._stretch(operation, group, _PILOT_CALLS, host_s)
        time_s = group.most(pilot.time_s)
        host_s = group.most(pilot.host_time_s or 0.0)
        calls = max(1, min(most, operation.calls_most or most, round(stretch_s / time_s)))
        taken = self._stretches(operation, group, calls, host_s, stretches)
        messages = operation.per_call
        hosts_s = _known([stretch.host_time_s for stretch in taken])
        clocks_Hz = _known([stretch.clock_Hz for stretch in taken])
        return Timing(
            calls=calls * len(taken),
            time_s=median(stretch.time_s for stretch in taken) / messages,
            host_time_s=median(hosts_s) / messages if hosts_s else None,
            clock_Hz=median(clocks_Hz) if clocks_Hz else None,
        )

    def _stretches(
        self, operation: Operation, group: RankGroup, calls: int, host_s: float, count: int
    ) -> list[TimedInterval]:
        """So many stretches for which no rank's host was late; the same number on every rank."""
        good: list[TimedInterval] = []
        late: list[TimedInterval] = []
        while len(good) < count and len(late) <= _AGAIN:
            stretch = self._stretch(operation, group, calls, host_s)
            host_s = max(host_s, group.most(stretch.host_time_s or 0.0))
            (late if group.most(float(stretch.late)) else good).append(stretch)
        return good or late

    def _warm_up(self, operation: Operation, group: RankGroup) -> float:
        """Run it a few times, since NCCL connects at first use; the host's time of the last call."""
        operation.prepare()
        for _ in range(_WARM_CALLS):
            operation.call()
        self._synchronize()
        begun_s = time.perf_counter()
        operation.call()
        host_s = time.perf_counter() - begun_s
        self._synchronize()
        return group.most(host_s)

    def _stretch(self, operation: Operation, group: RankGroup, calls: int, host_s: float) -> TimedInterval:
        self._synchronize()
        group.barrier()
        return self._on_gpu(operation, calls, host_s) if self._cuda else _on_host(operation, calls)

    def _on_gpu(self, operation: Operation, calls: int, host_s: float) -> TimedInterval:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        spin_s = min(_SPIN_MOST_S, _SPIN_MARGIN * (calls + 1) * host_s + _SPIN_EXTRA_S)
        operation.prepare()
        spun_s = time.perf_counter()
        torch.cuda._sleep(int(spin_s * self._spin_Hz))  # type: ignore[no-untyped-call]
        operation.call()
        before = self._clock.stamp()
        start.record()
        begun_s = time.perf_counter()
        for _ in range(calls):
            operation.call()
        queued_s = time.perf_counter()
        end.record()
        after = self._clock.stamp()
        self._synchronize()
        return TimedInterval(
            time_s=float(start.elapsed_time(end)) * 1e-3 / calls,
            host_time_s=(queued_s - begun_s) / calls,
            clock_Hz=self._clock.mean_Hz(before, after),
            late=queued_s - spun_s > spin_s,
        )

    def _synchronize(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


def _on_host(operation: Operation, calls: int) -> TimedInterval:
    """On processors a call has ended when it returns, and there is no host time apart."""
    operation.prepare()
    operation.call()
    begun_s = time.perf_counter()
    for _ in range(calls):
        operation.call()
    return TimedInterval(time_s=(time.perf_counter() - begun_s) / calls, host_time_s=None, clock_Hz=None)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
