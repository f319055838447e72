"""Energy over a window of time, from a counter that ticks slowly.

NVML's energy counter changes every 100 ms, so the difference of two readings is wrong by up to a tick at each end: 10 %
of a one-second window. A background thread polls the counter and keeps the instants at which it changed (edges); a
window's energy is counted from its first edge to its last. Each edge is known to within a polling interval; where the
edges are regular, a straight line through them brings that down to a fraction of a millisecond.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from types import TracebackType
from typing import Self

from moemodel.profiler.devices.base import Device
from moemodel.profiler.instruments.counter_edges import CounterEdges, regular_times
from moemodel.profiler.instruments.counter_reading import CounterReader, CounterWatch, Edge, FixedInterval

TRACE_INTERVAL_S = 0.1  # as often as NVML's readings change (H100, measured for this project, 2026)
_STUCK_S = 20.0  # a power reading unchanged for so long, 200 times what it takes to change
_RHYTHM_EDGES = 64  # the last of them, by which the counter's rhythm is known
# A counter that stands still for longer than both is stuck (assumed: a tick may fail to come, and be seen late).
_STILL_TICKS, _STILL_S = 3.0, 0.3
_REGULAR_EDGES = 4  # of a window, whose load is steady: fewer say nothing about regularity


@dataclass(frozen=True, kw_only=True)
class EnergyWindow:
    """What was counted from the first to the last counter edge inside a window.

    Attributes:
        energy_J: between those edges (not of the whole window: use `power_W` times its length).
        duration_s: between those edges.
        power_W: mean power, the one over the other.
        edges: how many edges lay inside.
    """

    energy_J: float
    duration_s: float
    power_W: float
    edges: int


@dataclass(frozen=True, kw_only=True)
class SensorReading:
    """One row of the 10 Hz trace; `time_s` is `time.perf_counter`, `wall_s` Unix time."""

    time_s: float
    wall_s: float
    label: str
    power_W: float | None
    clock_reported_Hz: float | None
    temperature_C: float | None
    memory_temperature_C: float | None


class EnergySampler:
    """Polls the device's energy counter, and at 10 Hz its other sensors, while the context is open.

    Args:
        device: the device.
        interval_s: time between two readings of the counter.
        now_s: the clock that windows are given in.
        wall_s: Unix time, for the trace.

    Attributes:
        label: what is running now; goes into the trace.
        interval_s: as given.
    """

    def __init__(
        self,
        device: Device,
        interval_s: float = 0.005,  # a reading takes 2 to 9 ms on an H100 (docs/meter.md): more often is not to be had
        now_s: Callable[[], float] = time.perf_counter,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.label = ""
        self.interval_s = interval_s
        self._device = device
        self._now_s = now_s
        self._wall_s = wall_s
        self._next_trace_s = 0.0
        self._lock = threading.Lock()
        self._counter = CounterReader(device, now_s, FixedInterval(interval_s))
        self._watch = CounterWatch([self])
        self._edges: list[Edge] = []
        self._trace: list[SensorReading] = []

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.stop()

    def window(self, start_s: float, end_s: float) -> EnergyWindow | None:
        """Energy and mean power in the part of [start_s, end_s] (`time.perf_counter`) that counter edges bound.

        None if there is no counter, fewer than two edges lie inside, it ran backwards or jumped between them, or stood
        still or silent for a part of the window, for which the rest cannot stand.
        """
        inside = self._inside(start_s, end_s)
        if len(inside) < 2 or self._fault(inside, start_s, end_s) is not None:
            return None
        edges = CounterEdges.from_edges(inside)
        time_s = regular_times(edges.time_s - edges.time_s[0], edges.width_s, _REGULAR_EDGES)
        energy_J, duration_s = inside[-1].energy_J - inside[0].energy_J, float(time_s[-1] - time_s[0])
        return EnergyWindow(energy_J=energy_J, duration_s=duration_s, power_W=energy_J / duration_s, edges=len(inside))

    def trouble(self, start_s: float, end_s: float) -> str | None:
        """Why a window has no energy although there is a counter; None without one, or where nothing is wrong."""
        if self._counter.detector.last is None or self.window(start_s, end_s) is not None:
            return None
        if self._watch.error is not None:
            return f"the energy counter was not watched to the end: {self._watch.error!r}"
        fault = self._fault(self._inside(start_s, end_s), start_s, end_s)
        if fault is not None:
            return fault
        return (
            f"the energy counter did not move in {end_s - start_s:.1f} s: stuck, or the GPU is lost; "
            "check nvidia-smi and run again"
        )

    def trace(self, since_s: float = 0.0) -> list[SensorReading]:
        """Readings of the 10 Hz trace from `since_s` (`time.perf_counter`) on."""
        with self._lock:
            return [r for r in self._trace if r.time_s >= since_s]

    @property
    def due_s(self) -> float:
        """When to look next."""
        return self._counter.due_s

    def read_counter(self) -> None:
        """Look at the counter once."""
        edge = self._counter.read()
        if edge is not None:
            with self._lock:
                self._edges.append(edge)

    def read(self) -> None:
        """Look at the counter, and at the other sensors if it is time to; the background thread does."""
        now_s = self._now_s()
        self.read_counter()
        if now_s >= self._next_trace_s:
            self._next_trace_s = now_s + TRACE_INTERVAL_S
            self._read_sensors()

    def _inside(self, start_s: float, end_s: float) -> list[Edge]:
        with self._lock:
            return [edge for edge in self._edges if start_s <= edge.time_s <= end_s]

    def _fault(self, inside: Sequence[Edge], start_s: float, end_s: float) -> str | None:
        """What is wrong with the counter in a window, by its edges; None where nothing is."""
        detector = self._counter.detector
        first_s = inside[0].time_s if inside else start_s  # what an edge adds was used before it
        if any(first_s < reset_s <= end_s for reset_s in detector.resets_s):
            return "the energy counter ran backwards (was the driver reloaded?); run again to measure it"
        if any(first_s < jump_s <= end_s for jump_s in detector.jumps_s):
            return "the energy counter jumped by more than this device can use; run again to measure it"
        if not inside:
            return None
        still_s, from_s = self._longest_still(inside, start_s, min(end_s, self._counter.asked_s or end_s))
        if still_s > max(_STILL_TICKS * self._tick_s(), _STILL_S):
            return (
                f"the energy counter stood still for {still_s:.1f} s of {end_s - start_s:.1f} s, from "
                f"{max(from_s - start_s, 0.0):.1f} s on: stuck, or the GPU is lost; check nvidia-smi and run again"
            )
        return None

    def _longest_still(self, inside: Sequence[Edge], start_s: float, end_s: float) -> tuple[float, float]:
        """The longest time in which readings found no change, and when it began."""
        begins_s = [start_s, *(edge.time_s + edge.width_s / 2 for edge in inside)]
        ends_s = [*(edge.time_s - edge.width_s / 2 for edge in inside), end_s]
        return max((end - begin, begin) for begin, end in zip(begins_s, ends_s, strict=True))

    def _tick_s(self) -> float:
        """The counter's rhythm, by the edges so far."""
        with self._lock:
            times_s = [edge.time_s for edge in self._edges[-_RHYTHM_EDGES:]]
        gaps_s = [after - before for before, after in pairwise(times_s)]
        return median(gaps_s) if gaps_s else TRACE_INTERVAL_S

    def _read_sensors(self) -> None:
        reading = SensorReading(
            time_s=self._now_s(),
            wall_s=self._wall_s(),
            label=self.label,
            power_W=self._device.power_W(),
            clock_reported_Hz=self._device.reported_clock_Hz(),
            temperature_C=self._device.temperature_C(),
            memory_temperature_C=self._device.memory_temperature_C(),
        )
        with self._lock:
            self._trace.append(reading)


def stuck_since(trace: Sequence[SensorReading]) -> float | None:
    """When the power reading last changed, if that was long before the trace's end; None otherwise.

    A reading in milliwatts doesn't stay what it is for so long, whatever runs.
    """
    known = [r for r in trace if r.power_W is not None]
    if not known:
        return None
    last = known[-1]
    changed_s = next((r.time_s for r in reversed(known) if r.power_W != last.power_W), known[0].time_s)
    return changed_s if last.time_s - changed_s >= _STUCK_S else None
