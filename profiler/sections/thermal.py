"""Section `heat`: how the GPU heats and cools, how its power follows, and over how long the power limit averages.

The GPU is heated, left to cool, and heated again by a heavy load, with a memory-bound load before and after: the trace
of power and temperature goes into table `thermal` with the rest of the run's. The memory-bound load and the idle GPU
keep the highest clock, so what their power gains or loses with temperature is the effect of temperature. Then heavy and
memory-bound load in turns: the longer the turns, the less the mean power stays below the limit that holds over a window
(`model.device.dvfs`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from statistics import fmean, median

import numpy as np

from moemodel.model.device.stuck_temperature import stuck_temperature
from moemodel.model.operators.work import Kind
from moemodel.model.records.profile import HEAVY, IDLE, LIGHT, AlternatingRow, DeviceState, ThermalRow
from moemodel.profiler.instruments.energy_sampler import EnergySampler, EnergyWindow, SensorReading, stuck_since
from moemodel.profiler.microbench.cases import Case
from moemodel.profiler.microbench.harness import Cost, Harness
from moemodel.profiler.microbench.points import Point
from moemodel.profiler.microbench.stream_timer import Sample, TimedRegion
from moemodel.profiler.sections.base import Item, ItemSection, SkippedError
from moemodel.profiler.sections.power import Load
from moemodel.profiler.sections.progress import Progress
from moemodel.profiler.store.profile_writer import ProfileWriter

TURNS_S = (0.03, 0.06, 0.12, 0.2)  # of each load: where an H100's slow limit gives power away (model.device.dvfs)
_PARTS = 5  # of the trace
_AHEAD = 4  # regions queued while one runs
_WINDOWS = 8  # over which the mean power of an alternation is taken
_SETTLED_S = 2.0  # of the alternation, before its window: the slow limit takes about as long


@dataclass(frozen=True, kw_only=True)
class _Side:
    """A load: its case, and calls that last about `seconds`."""

    case: Case
    cost: Cost

    def calls_in(self, seconds: float) -> int:
        return max(1, round(seconds / self.cost.time_s))


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """The two loads, and what the memory-bound one draws by itself; None without a counter."""

    heavy: _Side
    light: _Side
    light_W: float | None


class Heat(ItemSection):
    """The trace, then the alternations.

    Args:
        loads: of section `power`; the first product and the copy among them are used.
    """

    name = "heat"
    steps = _PARTS + len(TURNS_S)

    def __init__(self, loads: Sequence[Load]) -> None:
        self._heavy_point, self._light_point = (_first(loads, kind) for kind in (Kind.GEMM, Kind.COPY))
        self._pair: _Pair | None = None  # once it was made

    def items(self, bench: Harness, writer: ProfileWriter, progress: Progress) -> list[Item]:
        """See `ItemSection`; a trace that was cut off is made again."""
        turns = {f"gemm and copy, {turn_s * 1e3:.0f} ms each": turn_s for turn_s in TURNS_S}
        left = {name: turn_s for name, turn_s in turns.items() if not writer.has(AlternatingRow, load=name)}
        ended = "heat" in writer.manifest.sections or len(left) < len(turns)
        traced = ended and writer.has(ThermalRow, load=LIGHT)  # a kill may have come before the trace was written
        if traced and not left:
            return []
        first = Item(
            title="heat",
            measure=partial(self._prepare, bench, None if traced else progress),
            steps=0 if traced else _PARTS,
            needed=True,
        )
        return [first, *(self._item(bench, name, turn_s) for name, turn_s in left.items())]

    def _item(self, bench: Harness, name: str, turn_s: float) -> Item:
        return Item(title="heat", told=name, measure=partial(self._turns, bench, name, turn_s))

    def _prepare(self, bench: Harness, progress: Progress | None) -> list[AlternatingRow]:
        """Make the loads, run the trace where somebody is to be told of it, and see what the light load draws."""
        if self._heavy_point is None or self._light_point is None:
            raise SkippedError("the loads have no product or no copy, which it holds in turns")
        heavy, light = _side(bench, self._heavy_point), _side(bench, self._light_point)
        if progress is not None:
            _trace(bench, heavy, light, progress)
        self._pair = _Pair(heavy=heavy, light=light, light_W=_power_W(bench, light))
        return []

    def _turns(self, bench: Harness, name: str, turn_s: float) -> list[AlternatingRow]:
        """The row of one alternation; none where the counter says nothing."""
        pair = self._pair
        if pair is None or pair.light_W is None:
            return []
        row = _alternate(bench, pair, name, turn_s)
        return [] if row is None else [row]


def _first(loads: Sequence[Load], kind: Kind) -> Point | None:
    return next((load.point for load in loads if load.point is not None and load.point.kind is kind), None)


def _side(bench: Harness, point: Point) -> _Side:
    case = bench.build(point)
    return _Side(case=case, cost=bench.warm_up(case))


def _trace(bench: Harness, heavy: _Side, light: _Side, progress: Progress) -> None:
    """Heat up, cool, and heat up again between two regions of the memory-bound load."""
    budget = bench.budget
    reheating_s = budget.heating_s / 2
    parts = (
        (HEAVY, heavy, budget.heating_s),  # before the cooling, whose range of temperatures tells what leaks
        (IDLE, None, budget.cooling_s),
        (LIGHT, light, reheating_s),
        (HEAVY, heavy, reheating_s),
        (LIGHT, light, reheating_s),
    )
    for label, side, lasting_s in parts:
        progress.step(label)
        bench.sampler.label = label
        end_s = bench.timer.now_s() + lasting_s
        if side is None:
            bench.timer.sleep(lasting_s)
        else:
            _keep(bench, cycle([(side, side.calls_in(budget.burst_s))]), end_s)
            bench.stream.synchronize()
    bench.sampler.label = "heat"


def _keep(bench: Harness, turns: Iterator[tuple[_Side, int]], end_s: float) -> list[tuple[_Side, TimedRegion, float]]:
    """Turns back to back until `end_s`; what was queued, and when."""
    queued: deque[TimedRegion] = deque()
    ran: list[tuple[_Side, TimedRegion, float]] = []
    while bench.timer.now_s() < end_s:
        side, calls = next(turns)
        region = bench.stream.queue(side.case, calls)
        ran.append((side, region, bench.timer.now_s()))
        queued.append(region)
        while len(queued) > _AHEAD:
            bench.stream.wait(queued.popleft())
    return ran


def _power_W(bench: Harness, side: _Side) -> float | None:
    """Mean power of one load without a break; None without a counter."""
    begun_s = bench.timer.now_s() + bench.budget.power_settle_s
    _keep(bench, cycle([(side, side.calls_in(bench.budget.burst_s))]), begun_s + bench.budget.power_window_s)
    window = bench.sampler.window(begun_s, bench.timer.now_s())
    bench.stream.synchronize()
    return None if window is None else window.power_W


def _alternate(bench: Harness, pair: _Pair, name: str, turn_s: float) -> AlternatingRow | None:
    """Both loads in turns; None where the counter says nothing."""
    turns = cycle([(side, side.calls_in(turn_s)) for side in (pair.heavy, pair.light)])
    start_s = bench.timer.now_s()
    settled_s = start_s + min(_SETTLED_S, bench.budget.alternating_s / 2)
    ran = _keep(bench, turns, start_s + bench.budget.alternating_s)
    end_s = bench.timer.now_s()
    state = bench.state()
    samples = bench.stream.read([region for _, region, _ in ran])
    settled = [(side, s) for (side, _, at_s), s in zip(ran, samples, strict=True) if at_s > settled_s]
    heavy, light = ([sample for other, sample in settled if other is side] for side in (pair.heavy, pair.light))
    heavy_s, light_s = _turn_s(heavy), _turn_s(light)
    windows = _windows(bench, settled_s, end_s, (heavy_s or 0.0) + (light_s or 0.0))
    if not windows:
        return None
    return AlternatingRow(
        load=name,
        heavy_s=heavy_s,
        light_s=light_s,
        heavy_clock_Hz=_clock_Hz(heavy),
        light_clock_Hz=_clock_Hz(light),
        light_power_W=pair.light_W,
        duration_s=fmean(w.duration_s for w in windows),
        power_W=fmean(w.power_W for w in windows),
        clock_reported_Hz=state.clock_reported_Hz,
        temperature_C=state.temperature_C,
        wall_s=state.wall_s,
    )


def _windows(bench: Harness, start_s: float, end_s: float, round_s: float) -> list[EnergyWindow]:
    """Windows of one length that begin all over a round: a part of a round too many weighs nothing in their mean."""
    length_s = max(end_s - start_s - round_s, (end_s - start_s) / 2)
    shifts_s = [(end_s - start_s - length_s) * index / _WINDOWS for index in range(_WINDOWS)]
    found = [bench.sampler.window(start_s + shift_s, start_s + shift_s + length_s) for shift_s in shifts_s]
    return [window for window in found if window is not None]


def _turn_s(samples: Sequence[Sample]) -> float | None:
    """Length of a load's turns."""
    return median(s.time_s * s.calls for s in samples) if samples else None


def _clock_Hz(samples: Sequence[Sample]) -> float | None:
    """True clock in a load's turns."""
    clocks_Hz = [s.clock_Hz for s in samples if s.clock_Hz is not None]
    return median(clocks_Hz) if clocks_Hz else None


# --- the trace of a run ----------------------------------------------------------------------------------------------


class ThermalTrace:
    """The trace of a run on its way into table `thermal`, a section at a time, so that a kill loses no more.

    A power reading that does not change may be stuck, which is known only when it changed again or the run ends: until
    then it is kept back.

    Args:
        sampler: of the run.
        writer: of the profile.
        begun_s: the timer at the rows' zero.
    """

    def __init__(self, sampler: EnergySampler, writer: ProfileWriter, begun_s: float) -> None:
        self._sampler, self._writer, self._begun_s = sampler, writer, begun_s
        self._written = 0  # readings

    def keep(self) -> None:
        """Write what cannot be stuck."""
        trace = self._sampler.trace()
        self._write(trace[: _changed(trace)], None)

    def end(self) -> list[str]:
        """Write the rest, without a power reading that is stuck; notes on what is.

        A temperature that is stuck stays in the trace: beside the power it is what shows so to a calibration, which
        then takes none of the profile's temperatures.
        """
        trace = self._sampler.trace()
        power_s = stuck_since(trace)
        self._write(trace, power_s)
        notes = []
        if power_s is not None:
            notes.append(
                f"the power reading did not change from {power_s - self._begun_s:.0f} s on: it is stuck and left out "
                "of the thermal trace; the energy counter is trusted"
            )
        if said := _stuck_temperature(trace):
            notes.append(f"{said}: a calibration takes no temperature from this profile")
        return notes

    def _write(self, trace: Sequence[SensorReading], power_s: float | None) -> None:
        new, self._written = trace[self._written :], max(self._written, len(trace))
        self._writer.append(_thermal_row(reading, self._begun_s, power_s) for reading in new)
        self._writer.flush()


def _thermal_row(reading: SensorReading, begun_s: float, power_s: float | None) -> ThermalRow:
    """A reading as a row, without a power that was stuck from some time on."""
    at_s = reading.time_s
    return ThermalRow(
        load=reading.label,
        elapsed_s=at_s - begun_s,
        power_W=None if power_s is not None and at_s >= power_s else reading.power_W,
        memory_temperature_C=reading.memory_temperature_C,
        state=DeviceState(
            clock_reported_Hz=reading.clock_reported_Hz,
            temperature_C=reading.temperature_C,
            wall_s=reading.wall_s,
        ),
    )


def _changed(trace: Sequence[SensorReading]) -> int:
    """Readings whose power changed later, or is not told."""
    if not trace or trace[-1].power_W is None:
        return len(trace)
    last_W = trace[-1].power_W
    return next((i + 1 for i in reversed(range(len(trace))) if trace[i].power_W != last_W), 0)


def _stuck_temperature(trace: Sequence[SensorReading]) -> str | None:
    """What shows that the temperature stood still; a sensor that says nothing is not a number here."""
    rows = [(r.wall_s, r.power_W, r.temperature_C) for r in trace]
    wall_s, power_W, temperature_C = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return stuck_temperature(wall_s, power_W, temperature_C)
