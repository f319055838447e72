"""Energy counters: when they are read, and what their readings show.

A counter that ticks (NVML's: every 100 ms) says something only where it changes: an edge, known to within the two
readings between which it lies. One that changes at every reading (RAPL) is an edge at each. `EdgeDetector` alone
decides what an edge is, for sections, training runs, the meter and recordings; *when* to read is one of two policies.
`FixedInterval`, for measurements that own the machine, polls all the time. `AroundTick`, for the meter, reads densely
only around the tick that is due, so that its edge is known to a few milliseconds at a handful of readings.

The meter's reader process runs this too, so it imports nothing heavy: no torch, no numpy.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple, Protocol

# An edge known to within this is known well: it says when the next is due, and makes an equation of `attribution`. One
# NVML reading takes up to 15 ms on a busy H100; where the counter ticks at a steady rhythm, the line through the
# edges makes up for it.
WIDEST_EDGE_S = 0.025

_TICKLESS_CHANGES = 3  # more changes in a row, with no reading between them that found none: the counter does not tick
_TICKLESS_WIDTH_S = 1e-3  # how exactly an edge is known then, beside the time that the reading took
_SEARCH_S = 0.005  # between readings while the tick is not known
_CLOSE_S = 0.002  # around the tick that is due
_AHEAD_S = 0.004  # dense readings begin so long before it, and before what the last edge's width leaves open
_LATE_S = 0.015  # after so long without it, it is searched anew
_STEADY_S = 0.1  # between readings of a counter without ticks
_POWER_S = 1.0  # between power readings that only check the counter: each takes milliseconds of a busy driver
_POWER_ALONE_S = 0.1  # between them where there is no counter: as often as NVML's change
_SLOWEST_TICK_S = 1.0  # assumed, of a counter of which no edge is known yet
# A counter that rises faster than any such device can make it has jumped (assumed, both): three times the highest power
# limit, or what a node takes; and it may hold back what it adds for so long.
_MOST_OF_LIMIT, _MOST_W = 3.0, 20_000.0
_HELD_BACK_S = 0.2


# --- edges -----------------------------------------------------------------------------------------------------------


class Edge(NamedTuple):
    """The counter was seen to change: between two readings `width_s` apart, `time_s` in their middle.

    `energy_J` is the counter just after.
    """

    time_s: float
    width_s: float
    energy_J: float


def most_power_W(device: object) -> float:
    """A mean power, W, that a device cannot have between two edges of its counter, by its highest power limit."""
    limits_W = getattr(getattr(device, "info", None), "power_limit_range_W", None)
    return _MOST_W if limits_W is None else min(_MOST_OF_LIMIT * float(limits_W[1]), _MOST_W)


def most_rise_J(most_W: float, seconds: Any) -> Any:
    """What a counter can rise by between two edges that lie at most so many seconds apart, J; of floats or arrays."""
    return most_W * (seconds + _HELD_BACK_S)


class EdgeDetector:
    """Finds the edges of one counter in its readings. What is no number, or negative, is a reading that failed.

    Args:
        most_W: more than the device can draw (`most_power_W`).

    Attributes:
        last: (time_s, energy_J) of the last reading that said something; None before.
        resets_s: times of the edges at which the counter ran backwards.
        jumps_s: of those at which it rose by more than any device can have used since the edge before.
    """

    def __init__(self, most_W: float = _MOST_W) -> None:
        self._most_W = most_W
        self.last: tuple[float, float] | None = None
        self.resets_s: list[float] = []
        self.jumps_s: list[float] = []
        self._running = 0  # readings in a row that all changed
        self._since_s: float | None = None  # before it, the energy that the next edge adds was not used

    @property
    def ticks(self) -> bool:
        """Whether readings lie between the changes of the counter; if not, a reading itself is the edge."""
        return self._running <= _TICKLESS_CHANGES

    def observe(self, before_s: float, after_s: float, energy_J: float | None) -> Edge | None:
        """The edge that a reading shows, if any.

        Args:
            before_s, after_s: when the reading began and ended.
            energy_J: what it said; None where it failed.
        """
        if energy_J is not None and not 0 <= energy_J < math.inf:
            energy_J = None
        last, at_s = self.last, (before_s + after_s) / 2
        changed = energy_J is not None and last is not None and energy_J != last[1]
        self._running = self._running + 1 if changed else 0
        if energy_J is None:
            return None
        self.last = (at_s, energy_J)
        if last is None:
            self._since_s = at_s - _SLOWEST_TICK_S
        if last is None or not changed:
            return None
        edge = Edge((last[0] + at_s) / 2, at_s - last[0], energy_J)
        if not self.ticks:
            edge = Edge(at_s, after_s - before_s + _TICKLESS_WIDTH_S, energy_J)
        self._check(edge, last, at_s)
        return edge

    def _check(self, edge: Edge, last: tuple[float, float], at_s: float) -> None:
        rise_J = edge.energy_J - last[1]
        if rise_J < 0:
            self.resets_s.append(edge.time_s)
        elif self._since_s is not None and rise_J > most_rise_J(self._most_W, at_s - self._since_s):
            self.jumps_s.append(edge.time_s)
        self._since_s = last[0]  # the edge may lie anywhere after the reading before it


# --- when to read ----------------------------------------------------------------------------------------------------


class Sensors(Protocol):
    """What is read of a device."""

    def energy_J(self) -> float | None:
        """Cumulative energy counter, J; None where there is none."""
        ...

    def power_W(self) -> float | None:
        """Power now, W; None where there is no sensor."""
        ...


class Policy(Protocol):
    """When a counter is read next."""

    def wait_s(self, now_s: float, edge: Edge | None, *, ticks: bool) -> float:
        """Time until the next reading.

        Args:
            now_s: when the last reading ended.
            edge: that it showed.
            ticks: of the counter (`EdgeDetector.ticks`).
        """
        ...


class FixedInterval:
    """Always the same time between two readings."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s

    def wait_s(self, now_s: float, edge: Edge | None, *, ticks: bool) -> float:
        del now_s, edge, ticks
        return self._interval_s


class AroundTick:
    """Densely around the tick that is due, seldom otherwise; every 100 ms where there are no ticks."""

    def __init__(self) -> None:
        self._gaps_s: deque[float] = deque(maxlen=9)  # a second of ticks, whose median is the rhythm
        self._edge_s: float | None = None  # the last one, if it is known well
        self._width_s = 0.0  # of the last edge

    def wait_s(self, now_s: float, edge: Edge | None, *, ticks: bool) -> float:
        if not ticks:
            return _STEADY_S
        if edge is not None:
            self._learn(edge)
        if self._edge_s is None or len(self._gaps_s) < 3:
            return _SEARCH_S
        due_s = self._edge_s + median(self._gaps_s)
        if now_s > due_s + _LATE_S:
            return _SEARCH_S
        return max(due_s - _AHEAD_S - self._width_s - now_s, _CLOSE_S)

    def _learn(self, edge: Edge) -> None:
        sharp = edge.width_s < WIDEST_EDGE_S
        if self._edge_s is not None and sharp:
            self._gaps_s.append(edge.time_s - self._edge_s)
        self._width_s = min(edge.width_s, WIDEST_EDGE_S)
        self._edge_s = edge.time_s if sharp else None


class CounterReader:
    """Reads one counter, and says when it is to be read again.

    Args:
        device: whose counter.
        now_s: the clock of its edges.
        policy: when to read.

    Attributes:
        detector: of its edges.
        due_s: when to read next.
        asked_s: when it was read last, whether it answered or not; None before.
    """

    def __init__(self, device: Sensors, now_s: Callable[[], float], policy: Policy) -> None:
        self.asked_s: float | None = None
        self.detector = EdgeDetector(most_power_W(device))
        self.due_s = now_s()
        self._device, self._now_s, self._policy = device, now_s, policy

    def read(self) -> Edge | None:
        """Read the counter once; the edge that this shows."""
        before_s = self._now_s()
        energy_J = self._device.energy_J()
        after_s = self._now_s()
        self.asked_s = after_s
        edge = self.detector.observe(before_s, after_s, energy_J)
        self.due_s = after_s + self._policy.wait_s(after_s, edge, ticks=self.detector.ticks)
        return edge


class Finder(Protocol):
    """Where a counter's edges come from: read in this process, or in one of its own.

    Attributes:
        edges: found and not yet taken.
        powers: (time_s, power_W), not yet taken.
        read_by: "process" or "thread".
        remarks: what to know of what was read.
    """

    read_by: str
    remarks: list[str]
    edges: deque[Edge]
    powers: deque[tuple[float, float]]

    @property
    def asked_s(self) -> float | None:
        """When the counter was asked last, whether it answered or not; None before."""
        ...

    @property
    def read_s(self) -> float | None:
        """When it answered last; None before."""
        ...

    def poll(self) -> None:
        """Take in what has come from elsewhere; waits for nothing."""
        ...


class EdgeFinder:
    """Keeps one counter's edges, read around its ticks, and now and then the power: every 0.1 s where no counter is.

    Attributes:
        edges: found and not yet taken; taken from another thread.
        powers: (time_s, power_W), not yet taken.
    """

    read_by = "thread"

    def __init__(self, device: Sensors, now_s: Callable[[], float]) -> None:
        self.edges: deque[Edge] = deque()
        self.powers: deque[tuple[float, float]] = deque()
        self.remarks: list[str] = []  # none: the device's own are in this process
        self._reader = CounterReader(device, now_s, AroundTick())
        self._device, self._now_s = device, now_s
        self._power_due_s = self._reader.due_s

    @property
    def due_s(self) -> float:
        """When to read next."""
        return self._reader.due_s

    @property
    def asked_s(self) -> float | None:
        """When the counter was asked last, whether it answered or not; None before."""
        return self._reader.asked_s

    @property
    def read_s(self) -> float | None:
        """When the counter answered last; None before."""
        last = self._reader.detector.last
        return None if last is None else last[0]

    def poll(self) -> None:
        """Nothing comes from elsewhere."""

    def read(self) -> None:
        """Read the counter once, and the power if it is time to."""
        before_s = self._now_s()
        edge = self._reader.read()
        if edge is not None:
            self.edges.append(edge)
        if before_s >= self._power_due_s:
            counted = self.read_s is not None
            self._power_due_s = before_s + (_POWER_S if counted else _POWER_ALONE_S)
            power_W = self._device.power_W()
            if power_W is not None and math.isfinite(power_W):
                self.powers.append((before_s, power_W))
            if not counted:
                self._reader.due_s = self._power_due_s  # there is no tick to be found


# --- the thread ------------------------------------------------------------------------------------------------------


class Watched(Protocol):
    """What the thread reads."""

    @property
    def due_s(self) -> float:
        """When to read next, on the clock of `time.perf_counter`."""
        ...

    def read(self) -> None: ...


class CounterWatch:
    """One thread for all counters of a process, and for what else must not hold up a training step.

    Args:
        watched: counters to read whenever they are due.
        chore: called about once a second, and a last time by `stop`.

    Attributes:
        error: what ended the thread early; None if nothing did.
    """

    def __init__(self, watched: Sequence[Watched], chore: Callable[[], None] = lambda: None) -> None:
        self._watched, self._chore = watched, chore
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="energy-counters", daemon=True)
        self.error: Exception | None = None

    def start(self) -> None:
        """Begin to watch, in a thread."""
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
            wait_s = 0.5 if self._watched else 1.0
            for each in self._watched:
                if time.perf_counter() >= each.due_s:
                    each.read()
                wait_s = min(wait_s, each.due_s - time.perf_counter())
            self._stop.wait(max(wait_s, 1e-4))
        self._chore()
