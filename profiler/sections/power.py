"""Section `power`: loads held for over a second each; mean power from the energy counter, activity from GPM."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

from moemodel.model.records.profile import DeviceState, PowerRow
from moemodel.profiler.devices.base import Activity
from moemodel.profiler.instruments.energy_sampler import EnergyWindow
from moemodel.profiler.microbench.cases import Case
from moemodel.profiler.microbench.harness import Cost, Harness
from moemodel.profiler.microbench.points import Point
from moemodel.profiler.microbench.stream_timer import Sample, StreamTimer, TimedRegion
from moemodel.profiler.sections.base import Item, ItemSection, SkippedError
from moemodel.profiler.sections.progress import Progress
from moemodel.profiler.store.profile_writer import ProfileWriter

_AHEAD = 2  # bursts queued while one runs


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is held: an operator for a share of the time, or nothing.

    Attributes:
        name: for a reader, and to know the load again.
        point: the operator; None for idle.
        duty: share of the time in which it is asked to run; 1 means without a break.
        settle_s: instead of the usual time before the window.
    """

    name: str
    point: Point | None
    duty: float = 1.0
    settle_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class SustainedLoad:
    """What a window of a held load showed."""

    start_s: float
    end_s: float
    samples: list[Sample]
    activity: Activity
    state: DeviceState

    @property
    def busy(self) -> float:
        """Share of the window in which the load ran."""
        return min(1.0, sum(s.time_s * s.calls for s in self.samples) / (self.end_s - self.start_s))


class PowerOfLoads(ItemSection):
    """Loads in order, each held for a while.

    Args:
        loads: to hold.
    """

    name = "power"

    def __init__(self, loads: Sequence[Load]) -> None:
        self._loads = loads

    @property
    def steps(self) -> int:
        """One a load."""
        return len(self._loads)

    def items(self, bench: Harness, writer: ProfileWriter, progress: Progress) -> list[Item]:
        """See `ItemSection`."""
        del progress
        return [power_item(bench, load, writer) for load in self._loads]


def power_item(bench: Harness, load: Load, writer: ProfileWriter) -> Item:
    """A load to hold."""
    return Item(
        title=f"power of {load.name}",
        told=load.name,
        measure=partial(_measure, bench, load),
        done=writer.has(PowerRow, load=load.name),
    )


def _measure(bench: Harness, load: Load) -> list[PowerRow]:
    """The row of a load.

    Raises:
        SkippedError: the energy counter can't be trusted meanwhile.
    """
    bench.sampler.label = f"power: {load.name}"
    held = hold(bench, load)
    window = bench.sampler.window(held.start_s, held.end_s)
    trouble = bench.sampler.trouble(held.start_s, held.end_s)
    if trouble:
        raise SkippedError(trouble)
    return [power_row(load, held, window)]


def hold(bench: Harness, load: Load) -> SustainedLoad:
    """Hold a load until it has settled, then for a window."""
    settle_s = bench.budget.power_settle_s if load.settle_s is None else load.settle_s
    timer = bench.timer
    runner = _Idle(timer) if load.point is None else _Runner(bench, load.point, load.duty)
    _run_until(runner, timer.now_s() + settle_s, timer)
    runner.forget()
    meter = bench.device.activity()
    start_s = timer.now_s()
    meter.begin()
    _run_until(runner, start_s + bench.budget.power_window_s, timer)
    activity = meter.end()
    end_s = timer.now_s()
    state = bench.state()
    warmth_C = _warmth_C(bench, start_s, end_s)
    state = state if warmth_C is None else replace(state, temperature_C=warmth_C)
    samples = bench.stream.read(runner.regions)
    return SustainedLoad(start_s=start_s, end_s=end_s, samples=samples, activity=activity, state=state)


def _warmth_C(bench: Harness, start_s: float, end_s: float) -> float | None:
    """Mean temperature in a window, as power is its mean: the die warms by degrees in it. None without readings."""
    trace = bench.sampler.trace(start_s)
    known_C = [r.temperature_C for r in trace if r.time_s <= end_s and r.temperature_C is not None]
    return fmean(known_C) if known_C else None


def _run_until(runner: _Runner | _Idle, end_s: float, timer: StreamTimer) -> None:
    while timer.now_s() < end_s:
        runner.burst()


class _Idle:
    """The device left alone, its context open."""

    def __init__(self, timer: StreamTimer) -> None:
        self._timer = timer
        self.regions: list[TimedRegion] = []

    def burst(self) -> None:
        self._timer.sleep(5e-3)  # between looks at the time

    def forget(self) -> None:
        return None


class _Runner:
    """Bursts of calls: at full duty always some queued ahead, else each followed by a pause."""

    def __init__(self, bench: Harness, point: Point, duty: float) -> None:
        self._bench = bench
        self._duty = duty
        self._case: Case = bench.build(point)
        self._calls = self._calls_in_burst(bench.warm_up(self._case))
        self._queued: deque[TimedRegion] = deque()
        self.regions: list[TimedRegion] = []

    def burst(self) -> None:
        timer = self._bench.timer
        begun_s = timer.now_s()
        region = self._bench.stream.queue(self._case, self._calls)
        self.regions.append(region)
        self._queued.append(region)
        if self._duty < 1:
            self._bench.stream.wait(self._queued.popleft())
            timer.pause((timer.now_s() - begun_s) * (1 - self._duty) / self._duty)
        elif len(self._queued) > _AHEAD:
            self._bench.stream.wait(self._queued.popleft())

    def forget(self) -> None:
        """Leave out what ran so far."""
        self.regions.clear()

    def _calls_in_burst(self, cost: Cost) -> int:
        return max(1, min(4096, round(self._bench.budget.burst_s / max(cost.time_s, cost.host_s))))


def power_row(load: Load, held: SustainedLoad, window: EnergyWindow | None) -> PowerRow:
    """The row of a load; the window's columns are null without an energy counter.

    Time and clock are means, as power is: the clock moves in the window where the power limit holds a load back.
    """
    timed = [(s, s.time_s * s.calls) for s in held.samples]
    busy_s, calls = sum(seconds for _, seconds in timed), sum(s.calls for s, _ in timed)
    counted = [(s.clock_Hz * seconds, seconds) for s, seconds in timed if s.clock_Hz is not None]
    clock_Hz = sum(cycles for cycles, _ in counted) / sum(s for _, s in counted) if counted else None
    row = PowerRow(
        operator=load.point.operator() if load.point else None,
        load=load.name,
        duty=_duty(load, held),
        time_s=busy_s / calls if calls else None,
        state=replace(held.state, clock_Hz=clock_Hz),
        **held.activity,
    )
    if window is None:
        return row
    return replace(row, duration_s=window.duration_s, energy_J=window.energy_J, power_W=window.power_W)


def _duty(load: Load, held: SustainedLoad) -> float:
    if load.point is None:
        return 0.0
    return held.busy if load.duty < 1 else 1.0
