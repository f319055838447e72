"""The locked sweep: time and power against clock at clocks that are set, where that is permitted.

One lock a step, and every operator at it, since it is the change of clock that takes time to settle. A few loads are
held too, at the steps below those that the governor reaches by itself: the voltage curve goes on down there. A lock is
no promise (the power limit goes before it), so each row carries the true clock as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from moemodel.model.records.profile import OperatorRow, PowerRow
from moemodel.profiler.clocks.clock_control import ClockControl, ObstacleError
from moemodel.profiler.microbench.harness import Harness
from moemodel.profiler.microbench.points import Point
from moemodel.profiler.microbench.skips import Skip, not_reached
from moemodel.profiler.sections.base import Item, ItemSection
from moemodel.profiler.sections.operator_times import operator_row_is_there, sample_row
from moemodel.profiler.sections.power import Load, power_item
from moemodel.profiler.sections.progress import Progress
from moemodel.profiler.store.profile_writer import ProfileWriter

_LOW_STEPS = 3  # of all; below half of the highest clock
_POWER_SHARES = (0.4, 0.5, 0.65, 0.8)  # of the highest clock: where loads are held
_POWER_KINDS = 3  # of operators held there, the first of `profiler.sections.loads`: a product, a copy, attention
_NOT_HELD = 1.03  # times the clock that was locked: above that, some steps of 15 MHz, the driver does not hold it
_MEGA = 1e6


def locked_steps(supported_Hz: Sequence[float], count: int = 12) -> list[float]:
    """Which clocks to lock: the lowest, the highest, and what lies between, ascending.

    A quarter of them spread evenly below half of the highest clock. There voltage is at its least and operators are
    bound by the SMs, so that time x clock and energy hardly change. The others spread evenly from half of it up, where
    voltage rises and operators change from being bound by the SMs to being bound by memory (GELU on an H100: at 1700 of
    1980 MHz). An H100 gets 345, 555, 780, then 990 to 1980 MHz in steps of 120 to 135.

    Args:
        supported_Hz: clocks that can be locked; not empty.
        count: how many; fewer where the GPU has no more.
    """
    supported = np.unique(np.asarray(supported_Hz, dtype=np.float64))
    low_Hz, high_Hz = float(supported[0]), float(supported[-1])
    middle_Hz = max(low_Hz, high_Hz / 2)
    below = np.linspace(low_Hz, middle_Hz, _LOW_STEPS + 1)[:-1]
    wanted = np.concatenate([below, np.linspace(middle_Hz, high_Hz, count - _LOW_STEPS)])
    nearest = supported[np.abs(supported[:, None] - wanted[None, :]).argmin(axis=0)]
    return [float(clock_Hz) for clock_Hz in np.unique(nearest)]


def power_steps(steps_Hz: Sequence[float]) -> list[float]:
    """The steps at which loads are held: those nearest to some shares of the highest."""
    high_Hz = max(steps_Hz)
    return sorted({min(steps_Hz, key=lambda f: abs(f - share * high_Hz)) for share in _POWER_SHARES})


def coarse_first(steps_Hz: Sequence[float]) -> list[float]:
    """The steps in such an order that however many fit into the time, they spread over the whole range."""
    left = sorted(steps_Hz)
    order = [left.pop()]
    while left:
        order.append(max(left, key=lambda f: min(abs(f - done) for done in order)))
        left.remove(order[-1])
    return order


def locked_loads(loads: Sequence[Load]) -> list[Load]:
    """Those held at locked clocks: nothing, and the first one without pauses of each of the first kinds of operator."""
    idle = [load for load in loads if load.point is None][:1]
    by_kind: dict[str, Load] = {}
    for load in loads:
        if load.point is not None and load.duty == 1:
            by_kind.setdefault(load.point.kind, load)
    return idle + list(by_kind.values())[:_POWER_KINDS]


def locked_label(clock_Hz: float) -> str:
    """The `sweep` column of rows at a locked clock."""
    return f"locked {clock_Hz / _MEGA:.0f} MHz"


class _Step(ItemSection):
    """What the profile lacks at one clock.

    Args:
        clock_Hz: that is locked.
        points: to measure.
        loads: to hold.
    """

    def __init__(self, clock_Hz: float, points: Sequence[Point], loads: Sequence[Load]) -> None:
        self.clock_Hz = clock_Hz
        self.name = f"sweep {locked_label(clock_Hz)}"
        self._points, self._loads = points, loads

    @property
    def steps(self) -> int:
        return len(self._points) + len(self._loads)

    def items(self, bench: Harness, writer: ProfileWriter, progress: Progress) -> list[Item]:
        del progress
        label = locked_label(self.clock_Hz)
        points = [
            Item(
                title=f"{self.name} of {point}",
                told=f"{label}: {point}",
                measure=partial(_samples, bench, point, label),
            )
            for point in self._points
        ]
        return [*points, *(power_item(bench, load, writer) for load in self._loads)]


class LockedSweep:
    """All that is measured at locked clocks. A `Section`.

    Args:
        control: locks them.
        points: measured at every step.
        loads: some of which are held at a few steps.
    """

    def __init__(self, control: ClockControl, points: Sequence[Point], loads: Sequence[Load]) -> None:
        self._control = control
        self._points = points
        self._loads = locked_loads(loads)
        self._steps_Hz = locked_steps(control.clocks_Hz())
        self._power_Hz = power_steps(self._steps_Hz)

    @property
    def steps(self) -> int:
        """How many measurements it is made of."""
        return len(self._points) * len(self._steps_Hz) + len(self._loads) * len(self._power_Hz)

    def run(self, bench: Harness, writer: ProfileWriter, deadline_s: float, progress: Progress) -> list[Skip]:
        """Every step until `deadline_s` (of the bench's timer), leaving out what the profile has.

        The clocks are unlocked when it returns, or raises.

        Returns:
            What could not be measured.

        Raises:
            DeviceError: clocks can't be locked or unlocked any more.
        """
        skips: list[Skip] = []
        steps = [self._left(clock_Hz, writer) for clock_Hz in coarse_first(self._steps_Hz)]
        try:
            for i, step in enumerate(steps):
                if not step.steps:
                    continue
                left = sum(s.steps for s in steps[i:])
                if bench.timer.now_s() > deadline_s:
                    skips.append(not_reached("sweep", left, self.steps))
                    break
                try:
                    self._control.lock(step.clock_Hz)
                except ObstacleError as error:  # somebody else has come to this GPU
                    reason = f"{left} of {self.steps} left out: {error.reason}; run again to add them"
                    skips.append(Skip(what="sweep", reason=reason))
                    break
                ignored = _ignored_lock(bench, step.clock_Hz)
                skips += [ignored] if ignored else step.run(bench, writer, deadline_s, progress)
        finally:
            self._control.unlock()
        return skips

    def _left(self, clock_Hz: float, writer: ProfileWriter) -> _Step:
        """What the profile lacks at a clock."""
        label, suffix = locked_label(clock_Hz), f"at {clock_Hz / _MEGA:.0f} MHz"
        loads = self._loads if clock_Hz in self._power_Hz else []
        named = [replace(load, name=f"{load.name} {suffix}") for load in loads]
        return _Step(
            clock_Hz,
            [p for p in self._points if not operator_row_is_there(writer, p, label)],
            [load for load in named if not writer.has(PowerRow, load=load.name)],
        )


def _ignored_lock(bench: Harness, clock_Hz: float) -> Skip | None:
    """Let the clock settle; what to say where the driver does not keep to what was locked."""
    bench.timer.sleep(bench.budget.sweep_settle_s)
    reported_Hz = bench.device.reported_clock_Hz()
    if reported_Hz is None or reported_Hz <= _NOT_HELD * clock_Hz:
        return None
    reason = f"the driver took the lock, but says that the clock is {reported_Hz / _MEGA:.0f} MHz"
    return Skip(what=f"sweep {locked_label(clock_Hz)}", reason=reason)


def _samples(bench: Harness, point: Point, label: str) -> list[OperatorRow]:
    """Half as many samples as a mix of the passive sweep has: there are twice as many steps as mixes."""
    samples = max(1, bench.budget.sweep_samples // 2)
    case = bench.build(point)
    cost = bench.warm_up(case)
    calls = cost.calls_in(bench.budget.sample_s, samples)
    regions = [bench.stream.queue(case, calls, cost.spin_s(calls)) for _ in range(samples)]
    state = bench.state()  # while the device works
    return [sample_row(point, label, sample, state) for sample in bench.stream.read(regions)]
