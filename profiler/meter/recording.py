"""A device's sensors written down as they are read, and played back.

    with RecordingDevice(device, "session.jsonl") as recorded:      # or Meter(record="session.jsonl")
        ...                                                         # read its sensors, as a meter or a sampler does
    session = recorded_session("session.jsonl")
    session.attribute()                                             # powers of phases, again, without the device

A recording is a file of JSON lines. The first is the header: schema version, the device, when it began. Each of the
others is a list: its kind, then what it says. Times are seconds since the recording began, on the host's clock.

    ["energy", last, first, 2716.4]   the counter: still the old value at `last`, the new one first seen at `first`
    ["power", ...], ["clock", ...], ["temperature", ...], ["memory_temperature", ...], ["used_memory", ...]   likewise
    ["phase", "forward", begin, end]  on the device's time line, and ["step", index, begin, end]
    ["mark", at, "text"]              a remark of whoever measured
    ["end", at]                       the last line of a recording that was closed

Only changes are written: a counter that is polled every 5 ms and ticks every 100 ms makes 10 lines a second. Readings
that changed nothing are lost, but for the last one before each change, so that edges are known as exactly as they were.
Activity counters are not recorded.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from pydantic import ValidationError

from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.errors import InputError
from moemodel.model.records.profile import DeviceInfo
from moemodel.profiler.devices.base import ActivityMeter, LinkMeter, MeteredDevice, NoActivity, NoLinks
from moemodel.profiler.instruments.counter_edges import CounterEdges
from moemodel.profiler.instruments.counter_reading import Edge, EdgeDetector, most_power_W
from moemodel.profiler.meter.attribution import Attribution, attribute, check_counter

SCHEMA_VERSION = 1
SENSORS = ("energy", "power", "clock", "temperature", "memory_temperature", "used_memory")

_LINES = 256  # written together: one write for some seconds of readings, and what a kill may lose
_DIGITS = 6  # of times: microseconds


# --- recording -------------------------------------------------------------------------------------------------------


class _Lines:
    """Appends whole lines to a new file, many at a time; callable from any thread."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            file.touch(exist_ok=False)
        except FileExistsError as error:
            raise InputError(f"{file}: is there already; a recording is never written over, so name another") from error
        self._file = file
        self._lines: deque[str] = deque()
        self._lock = threading.Lock()

    def add(self, values: Any) -> None:
        self._lines.append(json.dumps(values, separators=(",", ":"), allow_nan=False) + "\n")
        if len(self._lines) >= _LINES:
            self.flush()

    def flush(self) -> None:
        with self._lock:
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            with self._file.open("ab", buffering=0) as file:
                file.write("".join(lines).encode())


@dataclass(slots=True)
class _Sensor:
    """What one sensor said last, and when."""

    value: float | None = None
    read_s: float | None = None


class RecordingDevice:
    """A device that writes down what its sensors say. Everything else is the device's own.

    Args:
        device: to record.
        file: that the recording goes to; must not be there.
        now_s: the clock of readings; that of phases and steps must be the same.

    Raises:
        InputError: the file is there already.
    """

    def __init__(self, device: MeteredDevice, file: str | Path, now_s: Callable[[], float] = time.perf_counter) -> None:
        self._device, self._now_s = device, now_s
        self._lines = _Lines(Path(file))
        self._sensors = {name: _Sensor() for name in SENSORS}
        self._start_s = now_s()
        self._closed = False
        self._lines.add(
            {
                "recording": SCHEMA_VERSION,
                "device": device.info.model_dump(mode="json", exclude_none=True),
                "torch_device": str(device.torch_device),
                "start_unix_s": round(time.time(), 3),
            }
        )
        self._lines.flush()

    @property
    def info(self) -> DeviceInfo:
        return self._device.info

    @property
    def torch_device(self) -> torch.device:
        return self._device.torch_device

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know of what its sensors say."""
        return tuple(getattr(self._device, "remarks", ()))

    def energy_J(self) -> float | None:
        return self._read("energy", self._device.energy_J)

    def power_W(self) -> float | None:
        return self._read("power", self._device.power_W)

    def reported_clock_Hz(self) -> float | None:
        return self._read_other("clock", "reported_clock_Hz")

    def temperature_C(self) -> float | None:
        return self._read_other("temperature", "temperature_C")

    def memory_temperature_C(self) -> float | None:
        return self._read_other("memory_temperature", "memory_temperature_C")

    def used_memory_B(self) -> float | None:
        return self._read_other("used_memory", "used_memory_B")

    def activity(self) -> ActivityMeter:
        make: Callable[[], ActivityMeter] = getattr(self._device, "activity", NoActivity)
        return make()

    def link_traffic(self) -> LinkMeter:
        make: Callable[[], LinkMeter] = getattr(self._device, "link_traffic", NoLinks)
        return make()

    def phase(self, name: str, begin_s: float, end_s: float) -> None:
        """Write down that a phase ran, on the clock of readings."""
        self._add("phase", name, self._since(begin_s), self._since(end_s))

    def step(self, index: int, begin_s: float, end_s: float) -> None:
        """Write down that a step ran, on the clock of readings."""
        self._add("step", index, self._since(begin_s), self._since(end_s))

    def mark(self, text: str) -> None:
        """Write down a remark, now."""
        self._add("mark", self._since(self._now_s()), text)

    def flush(self) -> None:
        """Have what is known so far in the file."""
        self._lines.flush()

    def finish(self) -> None:
        """End the recording; the device stays open, and its sensors readable."""
        if not self._closed:
            self._add("end", self._since(self._now_s()))
            self._closed = True
            self._lines.flush()

    def close(self) -> None:
        """End the recording and close the device."""
        self.finish()
        self._device.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_other(self, name: str, method: str) -> float | None:
        read: Callable[[], float | None] | None = getattr(self._device, method, None)
        return None if read is None else self._read(name, read)

    def _read(self, name: str, read: Callable[[], float | None]) -> float | None:
        before_s = self._now_s()
        value = read()
        at_s = (before_s + self._now_s()) / 2
        sensor = self._sensors[name]
        last_s = sensor.read_s
        if last_s is None or value != sensor.value:
            self._add(name, None if last_s is None else self._since(last_s), self._since(at_s), value)
        sensor.value, sensor.read_s = value, at_s
        return value

    def _since(self, time_s: float) -> float:
        return round(time_s - self._start_s, _DIGITS)

    def _add(self, *values: Any) -> None:
        if not self._closed:
            self._lines.add(values)


# --- reading a recording ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Track:
    """One sensor over a recording; row 0 is its first reading, each other one a change.

    Attributes:
        last_s: when the value before was read last; NaN in row 0.
        first_s: when this value was read first.
        value: in the sensor's unit; NaN where it could not be read.
    """

    last_s: FloatArray
    first_s: FloatArray
    value: FloatArray

    def at(self, time_s: float) -> float | None:
        """What the sensor said then; between two readings that differ, it changes halfway."""
        change_s = np.where(np.isnan(self.last_s), self.first_s, (self.last_s + self.first_s) / 2)
        row = int(np.searchsorted(change_s, time_s, side="right")) - 1
        value = float(self.value[max(row, 0)]) if len(self.value) else float("nan")
        return None if np.isnan(value) else value

    def edges(self) -> list[Edge]:
        """The changes of a counter, from the readings before and after each: how long these took is not known."""
        detector, found = EdgeDetector(), []
        before: float | None = float("nan")  # what was read before, and when: of row 0 another value, whatever it was
        before_s = float("nan")
        for last_s, first_s, value in zip(*(a.tolist() for a in (self.last_s, self.first_s, self.value)), strict=True):
            if not np.isnan(last_s) and last_s != before_s:
                detector.observe(last_s, last_s, before)
            before, before_s = None if np.isnan(value) else value, first_s
            found.append(detector.observe(first_s, first_s, before))
        return [edge for edge in found if edge is not None]

    def between(self, begin_s: float, end_s: float) -> Track:
        """The part of it whose readings, those before changes too, lie in a stretch of time."""
        since_s = np.where(np.isnan(self.last_s), self.first_s, self.last_s)
        inside = (since_s >= begin_s) & (self.first_s <= end_s)
        return Track(last_s=self.last_s[inside], first_s=self.first_s[inside], value=self.value[inside])


@dataclass(frozen=True, kw_only=True)
class RecordedSession:
    """What a recording says; times in seconds since it began.

    Attributes:
        info: of the device, as it was found.
        start_unix_s: when the recording began.
        end_s: its last instant.
        complete: whether it was closed, not cut off.
        tracks: sensor of `SENSORS` -> what it said; those that were never read are left out.
        spans: phase -> (start, end), shape (n, 2).
        steps: index -> (start, end).
        marks: remarks (instant, text).
    """

    info: DeviceInfo
    start_unix_s: float
    end_s: float
    complete: bool
    tracks: Mapping[str, Track]
    spans: Mapping[str, FloatArray]
    steps: Mapping[int, tuple[float, float]]
    marks: tuple[tuple[float, str], ...]

    @property
    def edges(self) -> CounterEdges:
        """The instants at which the energy counter was seen to change, as whoever read it then found them."""
        track = self.tracks.get("energy")
        return CounterEdges.from_edges([] if track is None else track.edges())

    def between(self, begin_s: float, end_s: float) -> RecordedSession:
        """The part of it in a stretch of time; phases and steps that lie in it wholly."""
        spans = {name: span[(span[:, 0] >= begin_s) & (span[:, 1] <= end_s)] for name, span in self.spans.items()}
        return replace(
            self,
            end_s=min(end_s, self.end_s),
            tracks={name: track.between(begin_s, end_s) for name, track in self.tracks.items()},
            spans={name: span for name, span in spans.items() if len(span)},
            steps={index: s for index, s in self.steps.items() if s[0] >= begin_s and s[1] <= end_s},
            marks=tuple(mark for mark in self.marks if begin_s <= mark[0] <= end_s),
        )

    def attribute(self, **options: Any) -> Attribution:
        """Mean power of each phase (`attribution.attribute`, whose options these are).

        Raises:
            InputError: no phases, or too few intervals.
            DeviceError: the counter ran backwards or stuck.
        """
        edges = self.edges
        if len(edges.time_s):
            check_counter(edges, float(edges.time_s[0]), float(edges.time_s[-1]), most_W=most_power_W(self))
        return attribute(self.spans, edges, **options)


def recorded_session(file: str | Path) -> RecordedSession:
    """Read a recording; a last line that was cut off is left out.

    Raises:
        InputError: there is none, or it is of another schema version or damaged.
    """
    lines = _read_lines(Path(file))
    header = _header(Path(file), lines)
    session = _Reader(Path(file))
    for number, line in enumerate(lines[1:], start=2):
        session.take(number, line)
    return session.result(header)


def _read_lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: no recording there ({error}); make one with Meter(record=...)") from error
    return text.split("\n")[:-1]  # a line without its end was cut off


def _header(file: Path, lines: list[str]) -> Mapping[str, Any]:
    try:
        header = json.loads(lines[0]) if lines else None
    except json.JSONDecodeError:
        header = None
    if not isinstance(header, dict) or "recording" not in header:
        raise InputError(f"{file}: line 1: no header of a recording; make one with Meter(record=...)")
    if header["recording"] != SCHEMA_VERSION:
        raise InputError(f"{file}: schema version {header['recording']}; this moemodel reads {SCHEMA_VERSION}")
    return header


@dataclass
class _Reader:
    """Sorts the lines of a recording."""

    file: Path
    _tracks: dict[str, list[tuple[float, float, float]]] = field(default_factory=dict)
    _spans: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _steps: dict[int, tuple[float, float]] = field(default_factory=dict)
    _marks: list[tuple[float, str]] = field(default_factory=list)
    _end_s: float = 0.0
    _complete: bool = False

    def take(self, number: int, line: str) -> None:
        """Sort one line.

        Raises:
            InputError: it is none of a recording.
        """
        try:
            kind, *values = json.loads(line)
            self._sort(kind, values)
        except (ValueError, TypeError) as error:
            shown = line if len(line) < 60 else f"{line[:57]}..."
            raise InputError(f"{self.file}: line {number}: found {shown!r}; the recording is damaged") from error

    def _sort(self, kind: str, values: list[Any]) -> None:
        if kind in SENSORS:
            last_s, first_s, value = (float("nan") if v is None else float(v) for v in values)
            self._tracks.setdefault(kind, []).append((last_s, first_s, value))
            self._end_s = max(self._end_s, first_s)
        elif kind in ("phase", "step"):
            name, begin_s, end_s = values
            if kind == "phase":
                self._spans.setdefault(str(name), []).append((float(begin_s), float(end_s)))
            else:
                self._steps[int(name)] = (float(begin_s), float(end_s))
            self._end_s = max(self._end_s, float(end_s))
        elif kind == "mark":
            self._marks.append((float(values[0]), str(values[1])))
        elif kind == "end":
            self._end_s, self._complete = float(values[0]), True
        else:
            raise ValueError(kind)

    def result(self, header: Mapping[str, Any]) -> RecordedSession:
        try:
            info = DeviceInfo.model_validate(header["device"])
            start_unix_s = float(header["start_unix_s"])
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            raise InputError(f"{self.file}: line 1: {error}") from error
        tracks = {name: _track(rows) for name, rows in self._tracks.items()}
        return RecordedSession(
            info=info,
            start_unix_s=start_unix_s,
            end_s=self._end_s,
            complete=self._complete,
            tracks=tracks,
            spans={name: np.array(spans, dtype=float) for name, spans in self._spans.items()},
            steps=self._steps,
            marks=tuple(self._marks),
        )


def _track(rows: list[tuple[float, float, float]]) -> Track:
    last_s, first_s, value = np.array(rows, dtype=float).T
    return Track(last_s=last_s, first_s=first_s, value=value)


# --- replaying -------------------------------------------------------------------------------------------------------


class VirtualClock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now_s(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        self._now_s += seconds


class ReplayDevice:
    """A `devices.base.Device` whose sensors say what a recording's did, as long after its opening as they did then.

    It does no work: what runs beside it does not change what it says. After the recording's end sensors keep their
    last values, so that a meter sees the counter stick.

    Args:
        file: the recording.
        now_s: the clock; default: real time. `VirtualClock().now_s` replays as fast as it is read.

    Attributes:
        session: the recording.

    Raises:
        InputError: it cannot be read.
    """

    def __init__(self, file: str | Path, now_s: Callable[[], float] = time.perf_counter) -> None:
        self.session = recorded_session(file)
        self.info = self.session.info
        self.torch_device = torch.device("meta")  # nothing can run on it
        self._now_s = now_s
        self._start_s = now_s()

    @property
    def ended(self) -> bool:
        """Whether the recording is over."""
        return self._now_s() - self._start_s > self.session.end_s

    def energy_J(self) -> float | None:
        return self._says("energy")

    def power_W(self) -> float | None:
        return self._says("power")

    def reported_clock_Hz(self) -> float | None:
        return self._says("clock")

    def temperature_C(self) -> float | None:
        return self._says("temperature")

    def memory_temperature_C(self) -> float | None:
        return self._says("memory_temperature")

    def used_memory_B(self) -> float | None:
        return self._says("used_memory")

    def activity(self) -> ActivityMeter:
        return NoActivity()

    def link_traffic(self) -> LinkMeter:
        return NoLinks()

    def close(self) -> None:
        return None

    def _says(self, name: str) -> float | None:
        track = self.session.tracks.get(name)
        return None if track is None else track.at(self._now_s() - self._start_s)
