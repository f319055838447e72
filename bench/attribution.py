"""How right the power of short phases is: phases of 5 to 40 ms in a mix, against the same phases alone.

    python bench/attribution.py [--gpu h100] [--record FILE] [--json]
    python bench/attribution.py --gpu sim:h100          # without a GPU; the same chain on a simulated one
    python bench/attribution.py --from FILE             # evaluates a recording, without any device

Phases: a burst of optimizer steps, one of embedding gradients, one of memory copies, one of causal attention, and an
idle gap, in random order and of random lengths, so that every tick of the energy counter holds another mix. Before and
after that, each runs alone for stretches of 0.7 s, which is enough to be read off the counter's ticks directly, and not
so long that the die heats or cools to another power (0.8 W per degree on an H100): stretches of all phases take turns,
so that it stays about as warm as in the mix.

    attribution_mape     mean over phases of |power attributed - power alone| / power alone
    attribution_worst    the largest of them

Each is the largest of a few sizes that stay well below the power cap: above it the clock would differ between the mix
and a phase alone, and so would the power. (Large matrix products don't stay below it.)

Everything goes through a recording (`profiler/meter/recording.py`), and is evaluated from it alone.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from moemodel.model.core.errors import DeviceError, InputError, MoeModelError
from moemodel.model.hardware.gpu import list_gpus, read_gpu
from moemodel.model.operators.work import Kind, Pass
from moemodel.profiler.devices.names import SIMULATED
from moemodel.profiler.instruments.counter_edges import regular_times
from moemodel.profiler.instruments.counter_reading import WIDEST_EDGE_S
from moemodel.profiler.instruments.energy_sampler import EnergySampler
from moemodel.profiler.meter.attribution import PhasePower
from moemodel.profiler.meter.energy_meter import Meter
from moemodel.profiler.meter.recording import RecordedSession, RecordingDevice, recorded_session
from moemodel.profiler.microbench.budget import budget_for
from moemodel.profiler.microbench.cases import Case
from moemodel.profiler.microbench.harness import Instruments
from moemodel.profiler.microbench.points import Point, Sizes
from moemodel.profiler.platforms.registry import open_device, platform_of
from moemodel.profiler.simulated.gpu import TimelineMark
from moemodel.profiler.simulated.instruments import SimulatedDevice

IDLE = "idle"
_SHORTEST_S, _LONGEST_S = 0.005, 0.040
_CHUNK_S = 0.05  # that a phase alone is queued in
_LIMIT_SHARE = 0.78  # of the power cap, for a phase alone
_TRIED_S = 1.2
_WARM_S = 4.0
_SENSE_S = 0.25
_ALONE_S = 0.7  # a stretch
_SETTLE_S = 0.1  # of it before its power is counted: the counter lags
_TIMING_NOISE_S = 2e-5


def _attention(heads: int, seq: int) -> Point:
    sizes = Sizes(batch=1, heads=heads, kv_heads=heads, seq=seq, head_dim=128)
    return Point(kind=Kind.ATTENTION, direction=Pass.FORWARD, sizes=sizes)


# The heaviest first.
_CANDIDATES: dict[str, list[Point]] = {
    "optimizer": [
        Point(kind=Kind.ADAMW_MIXED, direction=Pass.STEP, sizes=Sizes(m=m)) for m in (100_000_000, 10_000_000)
    ],
    "embedding": [
        Point(kind=Kind.EMBEDDING, direction=Pass.BACKWARD, sizes=Sizes(m=m, n=4096, k=50304)) for m in (16384, 1024)
    ],
    "copy": [Point(kind=Kind.COPY, direction=Pass.FORWARD, sizes=Sizes(m=m)) for m in (1 << 28, 1 << 24)],
    "attention": [
        _attention(*at) for at in ((8, 8192), (4, 8192), (2, 8192), (1, 8192), (1, 4096), (1, 2048), (1, 1024))
    ],
}


# --- what it runs on -------------------------------------------------------------------------------------------------


class Rig(Protocol):
    """A device under a recording meter."""

    recorder: RecordingDevice

    @property
    def instruments(self) -> Instruments: ...
    def now_s(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...
    def synchronize(self) -> None: ...
    def checkpoint(self) -> Any: ...
    def wait_for(self, checkpoint: Any) -> None: ...
    def step(self) -> AbstractContextManager[None]: ...
    def phase(self, name: str) -> AbstractContextManager[None]: ...


class CudaRig:
    """A GPU under the meter, as training loops have it."""

    def __init__(self, recorder: RecordingDevice, meter: Meter, instruments: Instruments) -> None:
        self.recorder, self.instruments, self._meter = recorder, instruments, meter
        self._device = recorder.torch_device
        self.now_s, self.sleep = time.perf_counter, time.sleep
        self.step, self.phase = meter.step, meter.phase

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    def checkpoint(self) -> torch.cuda.Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def wait_for(self, checkpoint: torch.cuda.Event) -> None:
        checkpoint.synchronize()


class SimulatedRig:
    """A simulated GPU, whose time passes with its work; marks stand for events."""

    def __init__(self, device: SimulatedDevice, recorder: RecordingDevice, instruments: Instruments) -> None:
        self.recorder, self.instruments, self._gpu = recorder, instruments, device.gpu
        self.sleep, self.checkpoint, self.wait_for = device.gpu.sleep, device.gpu.mark, device.gpu.wait
        self._pending: list[tuple[str, TimelineMark, TimelineMark]] = []

    def now_s(self) -> float:
        return self._gpu.now_s

    def synchronize(self) -> None:
        self._gpu.synchronize()
        for name, begin, end in self._pending:
            self.recorder.phase(name, begin.time_s, end.time_s)
        self._pending = []

    @contextmanager
    def step(self) -> Iterator[None]:
        yield

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = self._gpu.mark()
        yield
        self._pending.append((name, begin, self._gpu.mark()))


@contextmanager
def rig_on(gpu: str, record: Path, seed: int) -> Iterator[Rig]:
    """The device called `gpu`, its recording open.

    Raises:
        DeviceError: it is not here.
    """
    known = {alias: d.name for d in map(read_gpu, list_gpus()) for alias in (d.name, *d.aliases)}
    device = open_device(gpu, known)
    instruments = platform_of(device).instruments(budget_for(device.torch_device), seed)
    if isinstance(device, SimulatedDevice):
        with _simulated(device, record, instruments) as simulated:
            yield simulated
    elif device.torch_device.type == "cuda":
        with RecordingDevice(device, record) as recorder, Meter(devices=[recorder], read_every=4, strict=True) as meter:
            yield CudaRig(recorder, meter, instruments)
    else:
        raise DeviceError(f"--gpu {gpu}: phases are attributed on a GPU; without one, try --gpu sim:h100")


@contextmanager
def _simulated(device: SimulatedDevice, record: Path, instruments: Instruments) -> Iterator[Rig]:
    with RecordingDevice(device, record, now_s=lambda: device.gpu.now_s) as recorder:
        rig = SimulatedRig(device, recorder, instruments)
        sampler = EnergySampler(recorder, now_s=rig.now_s)
        end = device.gpu.every(sampler.interval_s, sampler.read_counter)
        yield rig
        rig.synchronize()
        end()


# --- the session -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Burst:
    """A phase: calls of one operator, or nothing."""

    name: str
    case: Case | None
    call_s: float = 0.0

    def run(self, rig: Rig, seconds: float) -> None:
        """Queue about that much of it; an idle gap begins when the device has nothing left to do."""
        if self.case is None:
            rig.sleep(seconds)
        else:
            self.case.run(max(1, round(seconds / self.call_s)))


class Session:
    """What is run: phases chosen, warmed up, alone, mixed, and alone again.

    Args:
        rig: to run it on.
        seed: of order and lengths.
    """

    def __init__(self, rig: Rig, seed: int) -> None:
        self._rig = rig
        self._random = random.Random(seed)
        self._sense_s = 0.0
        limit_W = rig.recorder.info.power_limit_W
        self._limit_W = float("inf") if limit_W is None else _LIMIT_SHARE * limit_W
        self._bursts = [*(self._chosen(name) for name in _CANDIDATES), Burst(name=IDLE, case=None)]

    def run(self, mixed_s: float, alone_s: float) -> None:
        """All of it; `alone_s` for each phase, half before and half after the mix."""
        turns = max(1, round(alone_s / 2 / _ALONE_S))
        self._mix(_WARM_S)
        self._alone(turns)
        self._mix(_WARM_S / 2)
        with self._section("mixed"):
            self._mix(mixed_s)
        self._alone(turns)
        self._mix(0.4)  # the counter's last ticks

    def _chosen(self, name: str) -> Burst:
        """The heaviest candidate that stays below the limit; the lightest, if none does."""
        for point in _CANDIDATES[name]:
            burst = self._burst(name, point)
            power_W = self._tried_W(burst)
            if power_W is None or power_W <= self._limit_W:
                break
        self._rig.recorder.mark(f"chosen {name}: {point}, {burst.call_s * 1e6:.0f} us, {power_W or 0.0:.0f} W")
        return burst

    def _burst(self, name: str, point: Point) -> Burst:
        case = self._rig.instruments.build(point)
        case.run(3)
        self._rig.synchronize()
        begun_s = self._rig.now_s()
        case.run(100)
        self._rig.synchronize()
        return Burst(name=name, case=case, call_s=(self._rig.now_s() - begun_s) / 100)

    def _tried_W(self, burst: Burst) -> float | None:
        """Mean of the power readings over the second half of a try."""
        readings: list[tuple[float, float]] = []

        def read() -> None:
            power_W = self._rig.recorder.power_W()
            if power_W is not None:
                readings.append((self._rig.now_s(), power_W))

        begun_s = self._rig.now_s()
        self._hold(burst, _TRIED_S, read)
        late_W = [power_W for at_s, power_W in readings if at_s > begun_s + _TRIED_S / 2]
        return float(np.mean(late_W)) if late_W else None

    def _alone(self, turns: int) -> None:
        """Stretches of all phases, as often as that, each time in another order."""
        for _ in range(turns):
            for burst in self._random.sample(self._bursts, len(self._bursts)):
                self._rig.synchronize()
                with self._section(f"alone {burst.name}"):
                    self._hold(burst, _ALONE_S, self._sense)

    def _hold(self, burst: Burst, seconds: float, meanwhile: Callable[[], None]) -> None:
        """One phase without a gap: a chunk is always queued behind the one that runs."""
        end_s = self._rig.now_s() + seconds
        before = self._rig.checkpoint()
        while self._rig.now_s() < end_s:
            burst.run(self._rig, _CHUNK_S)
            now = self._rig.checkpoint()
            self._rig.wait_for(before)
            before = now
            meanwhile()
        self._rig.synchronize()

    def _mix(self, seconds: float) -> None:
        end_s = self._rig.now_s() + seconds
        while self._rig.now_s() < end_s:
            with self._rig.step():
                for burst in self._random.sample(self._bursts, len(self._bursts)):
                    if burst.case is None:
                        self._rig.synchronize()
                    with self._rig.phase(burst.name):
                        burst.run(self._rig, self._random.uniform(_SHORTEST_S, _LONGEST_S))
            self._rig.synchronize()
            self._sense()

    @contextmanager
    def _section(self, name: str) -> Iterator[None]:
        self._rig.recorder.mark(f"begin {name}")
        yield
        self._rig.recorder.mark(f"end {name}")

    def _sense(self) -> None:
        if self._rig.now_s() > self._sense_s:
            self._sense_s = self._rig.now_s() + _SENSE_S
            for read in (self._rig.recorder.reported_clock_Hz, self._rig.recorder.temperature_C):
                read()


# --- evaluation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """One phase: attributed in the mix, and alone."""

    name: str
    time_share: float
    attributed_W: float | None
    standard_error_W: float | None
    alone_W: float
    alone_error_W: float  # from the spread of its stretches
    clock_MHz: float | None
    temperature_C: float | None

    @property
    def off_share(self) -> float | None:
        """Attributed over alone, less one."""
        return None if self.attributed_W is None else self.attributed_W / self.alone_W - 1


def evaluate(session: RecordedSession) -> tuple[list[Row], dict[str, Any]]:
    """Rows, and the figures.

    Raises:
        InputError: not a recording of this script, or it was cut off.
    """
    sections = _sections(session)
    if "mixed" not in sections:
        raise InputError("the recording has no mixed section: it was cut off, or made by something else")
    mixed = session.between(*sections["mixed"][0])
    found = mixed.attribute(timing_noise_s=_TIMING_NOISE_S)
    attributed = {group.phases[0]: group for group in found.groups if len(group.phases) == 1}
    names = [name for name in (*_CANDIDATES, IDLE) if f"alone {name}" in sections]
    rows = [_row(session, name, sections[f"alone {name}"], attributed.get(name)) for name in names]
    off = [abs(row.off_share) for row in rows if row.off_share is not None]
    figures: dict[str, Any] = {
        "attribution_mape": float(np.mean(off)) if off else None,
        "attribution_worst": max(off) if off else None,
        "phases_not_told": len(rows) - len(off),
        "mixed_s": found.duration_s,
        "intervals": found.intervals,
        "residual_share": found.residual_share,
        "lag_s": found.lag_s,
        "mixed_clock_MHz": _mean(session, "clock", [sections["mixed"][0]], 1e-6),
        "mixed_temperature_C": _mean(session, "temperature", [sections["mixed"][0]], 1.0),
        "device": session.info.name,
        "chosen": [text.removeprefix("chosen ") for _, text in session.marks if text.startswith("chosen ")],
        "phases": {row.name: _figures(row) for row in rows},
        "notes": list(found.notes),
    }
    return rows, figures


def _sections(session: RecordedSession) -> dict[str, list[tuple[float, float]]]:
    begun: dict[str, float] = {}
    found: dict[str, list[tuple[float, float]]] = {}
    for at_s, text in session.marks:
        verb, _, name = text.partition(" ")
        if verb == "begin":
            begun[name] = at_s
        elif verb == "end" and name in begun:
            found.setdefault(name, []).append((begun.pop(name), at_s))
    return found


def _row(session: RecordedSession, name: str, alone: list[tuple[float, float]], group: PhasePower | None) -> Row:
    powers_W = _counted_W(session, alone)
    if len(powers_W) < 2:
        raise InputError(
            f"{name}: {len(powers_W)} stretches alone with enough ticks of the counter; use a larger --alone"
        )
    return Row(
        name=name,
        time_share=group.time_share if group else 0.0,
        attributed_W=group.power_W if group else None,
        standard_error_W=group.standard_error_W if group else None,
        alone_W=float(np.mean(powers_W)),
        alone_error_W=float(np.std(powers_W, ddof=1) / len(powers_W) ** 0.5),
        clock_MHz=_mean(session, "clock", alone, 1e-6),
        temperature_C=_mean(session, "temperature", alone, 1.0),
    )


def _counted_W(session: RecordedSession, stretches: list[tuple[float, float]]) -> list[float]:
    """Mean power from the first to the last tick of the counter in each stretch, its begin left out."""
    edges = session.edges
    sharp = edges.width_s <= WIDEST_EDGE_S
    time_s, energy_J = regular_times(edges.time_s[sharp], edges.width_s[sharp]), edges.energy_J[sharp]
    powers_W = []
    for begin_s, end_s in stretches:
        inside = np.flatnonzero((time_s >= begin_s + _SETTLE_S) & (time_s <= end_s))
        if len(inside) > 3:
            a, b = inside[0], inside[-1]
            powers_W.append(float((energy_J[b] - energy_J[a]) / (time_s[b] - time_s[a])))
    return powers_W


def _mean(session: RecordedSession, sensor: str, stretches: list[tuple[float, float]], scale: float) -> float | None:
    track = session.tracks.get(sensor)
    if track is None:
        return None
    said = [track.at(at_s) for a, b in stretches for at_s in np.arange(a + _SETTLE_S, b, _SENSE_S)]
    known = [value for value in said if value is not None]
    return float(np.mean(known)) * scale if known else None


def _figures(row: Row) -> dict[str, Any]:
    return {
        "time_share": row.time_share,
        "attributed_W": row.attributed_W,
        "standard_error_W": row.standard_error_W,
        "alone_W": row.alone_W,
        "alone_error_W": row.alone_error_W,
        "off_share": row.off_share,
        "clock_MHz": row.clock_MHz,
        "temperature_C": row.temperature_C,
    }


def table(rows: list[Row], figures: Mapping[str, Any]) -> str:
    """For a reader."""
    lines = [f"{'phase':10} {'share':>6} {'attributed, W':>16} {'alone, W':>16} {'apart':>7} {'MHz':>6} {'C':>4}"]
    for row in rows:
        attributed = "not told"
        if row.attributed_W is not None:
            attributed = f"{row.attributed_W:.1f} +- {row.standard_error_W or 0.0:.1f}"
        apart = "" if row.off_share is None else f"{row.off_share:+.1%}"
        state = f"{_shown(row.clock_MHz):>6} {_shown(row.temperature_C):>4}"
        alone = f"{row.alone_W:.1f} +- {row.alone_error_W:.1f}"
        lines.append(f"{row.name:10} {row.time_share:6.1%} {attributed:>16} {alone:>16} {apart:>7} {state}")
    shown = ("attribution_mape", "attribution_worst", "residual_share", "lag_s", "intervals", "mixed_clock_MHz")
    lines += ["", *(f"{name:20} {figures[name]}" for name in (*shown, "mixed_temperature_C", "device"))]
    return "\n".join([*lines, *(f"chosen: {text}" for text in figures["chosen"]), *figures["notes"]])


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def record(gpu: str, file: Path, *, mixed_s: float, alone_s: float, seed: int) -> None:
    """Run a session on a device and record it.

    Raises:
        DeviceError: no such device.
        InputError: the file is there already.
    """
    with rig_on(gpu, file, seed) as rig:
        Session(rig, seed).run(mixed_s, alone_s)


def main() -> None:
    """Measure, or read a recording, and print."""
    parser = argparse.ArgumentParser(description="Power of short phases, mixed against alone.")
    default = "h100" if torch.cuda.is_available() else f"{SIMULATED}h100"
    parser.add_argument("--gpu", default=default, help="as moemodel profile has it; sim:h100 without one")
    parser.add_argument("--record", type=Path, metavar="FILE", help="where the recording goes; must not be there")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="evaluate this recording instead")
    parser.add_argument("--seconds", type=float, default=40.0, help="of the mix")
    parser.add_argument("--alone", type=float, default=5.6, help="seconds of each phase alone, in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = arguments.source or arguments.record or Path(folder) / "attribution.jsonl"
            if arguments.source is None:
                seed = arguments.seed
                record(arguments.gpu, file, mixed_s=arguments.seconds, alone_s=arguments.alone, seed=seed)
            rows, figures = evaluate(recorded_session(file))
            figures["recording_B"] = file.stat().st_size
    except MoeModelError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(json.dumps(figures) if arguments.json else table(rows, figures))


if __name__ == "__main__":
    main()
