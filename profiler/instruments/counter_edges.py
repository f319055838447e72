"""Watches energy counters from a background thread, with as few readings as their edges need.

A counter that ticks every 100 ms is read densely only around the tick that is due, so that its edge is known to a few
milliseconds at a handful of readings; `energy.EnergySampler`, which polls all the time, is for measurements that own
the machine. Where a counter changes at every reading (RAPL), a reading every 100 ms is an edge by itself.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple, Protocol

_SEARCH_S = 0.005  # between readings while the tick is not known
_CLOSE_S = 0.002  # around the tick that is due
_AHEAD_S = 0.004  # dense readings begin so long before it, and before what the last edge's width leaves open
_LATE_S = 0.015  # after so long without it, it is searched anew
_STEADY_S = 0.1  # between readings of a counter without ticks
_POWER_S = 1.0
_SHARP_S = 0.025  # an edge known to within this says when the next is due; one reading takes up to 15 ms on a busy H100


class Sensors(Protocol):
    """What is read of a device."""

    def energy_J(self) -> float | None: ...

    def power_W(self) -> float | None: ...


class Edge(NamedTuple):
    """The counter was seen to change: between two readings `width_s` apart, `time_s` in their middle."""

    time_s: float
    width_s: float
    energy_J: float


class EdgeFinder:
    """Decides when to read one counter, and keeps its edges.

    Attributes:
        edges: found and not yet taken; taken from another thread.
        powers: (time_s, power_W) about once a second.
        due_s: when to read next.
        read_s: when the counter was read last; None before.
    """

    def __init__(self, device: Sensors, now_s: Callable[[], float]) -> None:
        self.edges: deque[Edge] = deque()
        self.powers: deque[tuple[float, float]] = deque()
        self.due_s = now_s()
        self.read_s: float | None = None
        self._device, self._now_s = device, now_s
        self._last: tuple[float, float] | None = None
        self._gaps_s: deque[float] = deque(maxlen=9)
        self._edge_s: float | None = None
        self._width_s = 0.0  # of the last edge
        self._power_due_s = self.due_s
        self._running = 0  # readings in a row that all changed

    def read(self) -> None:
        """Read the counter once, and set `due_s`."""
        before_s = self._now_s()
        energy_J = self._device.energy_J()
        after_s = self._now_s()
        at_s = (before_s + after_s) / 2
        changed = energy_J is not None and self._last is not None and energy_J != self._last[1]
        if energy_J is not None and self._last is not None and changed:
            self._running += 1
            self._found(at_s, energy_J, self._last[0], after_s - before_s)
        else:
            self._running = 0
        if energy_J is not None:
            self._last = (at_s, energy_J)
            self.read_s = at_s
        self.due_s = after_s + self._wait_s(after_s)
        if before_s >= self._power_due_s:
            self._power_due_s = before_s + _POWER_S
            power_W = self._device.power_W()
            if power_W is not None:
                self.powers.append((before_s, power_W))

    def _found(self, at_s: float, energy_J: float, last_s: float, reading_s: float) -> None:
        if self._running > 3:  # no ticks: the reading itself is the edge
            self.edges.append(Edge(at_s, reading_s + 1e-3, energy_J))
            return
        time_s = (at_s + last_s) / 2
        self.edges.append(Edge(time_s, at_s - last_s, energy_J))
        if self._edge_s is not None and at_s - last_s < _SHARP_S:
            self._gaps_s.append(time_s - self._edge_s)
        self._width_s = min(at_s - last_s, _SHARP_S)
        self._edge_s = time_s if at_s - last_s < _SHARP_S else None

    def _wait_s(self, now_s: float) -> float:
        if self._running > 3:
            return _STEADY_S
        if self._edge_s is None or len(self._gaps_s) < 3:
            return _SEARCH_S
        due_s = self._edge_s + median(self._gaps_s)
        if now_s > due_s + _LATE_S:
            return _SEARCH_S
        return max(due_s - _AHEAD_S - self._width_s - now_s, _CLOSE_S)


class CounterWatch:
    """One thread for all counters of a process, and for what else must not hold up a training step.

    Args:
        finders: of the counters to watch.
        chore: called about once a second, and a last time by `stop`.
    """

    def __init__(self, finders: Sequence[EdgeFinder], chore: Callable[[], None]) -> None:
        self._finders, self._chore = finders, chore
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="energy-meter", daemon=True)
        self.error: Exception | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns once the thread has ended."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        try:
            while not self._stop.is_set():
                self._turn()
            self._chore()
        except Exception as error:  # noqa: BLE001 - a thread of the user's process: told by the meter, not by a crash
            self.error = error

    def _turn(self) -> None:
        end_s = time.perf_counter() + 1.0
        while not self._stop.is_set() and time.perf_counter() < end_s:
            wait_s = 0.5
            for finder in self._finders:
                if time.perf_counter() >= finder.due_s:
                    finder.read()
                wait_s = min(wait_s, finder.due_s - time.perf_counter())
            self._stop.wait(max(wait_s, 1e-4))
        self._chore()
