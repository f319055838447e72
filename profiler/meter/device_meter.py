"""One device under the meter: marks on its time line, its energy counter, and what is known of it so far.

Marks are made inside the user's step and cost microseconds; everything else happens after steps, every so many of them.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from moemodel.model.core.errors import DeviceError, MoeModelError
from moemodel.profiler.devices.base import MeteredDevice
from moemodel.profiler.instruments.counter_edges import CounterEdges
from moemodel.profiler.instruments.counter_reading import WIDEST_EDGE_S, Edge, Finder, most_power_W, most_rise_J
from moemodel.profiler.meter.attribution import STUCK_S, Attribution, attribute, check_counter
from moemodel.profiler.meter.host_lag import HostLag
from moemodel.profiler.meter.recording import RecordingDevice
from moemodel.profiler.meter.summary import DeviceSummary, GroupSummary, PhaseSummary

KEEP_S = 1800.0  # of spans and edges, for the power of phases: 18,000 equations
_LAST_EDGE_S = 0.3  # to wait at the end for the counter to tick once more
_UNREAD_S = 5.0  # assumed: a reader that was held up, or a counter that stood still, for so long is gone
_DISAGREE = 0.10  # assumed: counter against the mean of power readings, of which there is one a second
_FEWEST_READINGS = 30  # half a minute of them: the mean of fewer scatters by more than that
_EVENT_NOISE_S = 1e-5  # assumed: events resolve 0.5 us (CUDA Runtime API), the rest is what launching adds


# --- time ------------------------------------------------------------------------------------------------------------


class EventTimer(Protocol):
    """Marks on a device's time line."""

    noise_s: float
    stream_changes: int  # how often the stream that marks go to was another one than before

    def mark(self) -> Any:
        """An event, now."""
        ...

    def done(self, mark: Any) -> bool:
        """Whether the device has got to it."""
        ...

    def time_s(self, mark: Any) -> float:
        """On the host's clock (`time.perf_counter`), of a mark that is done."""
        ...

    def release(self, mark: Any) -> None:
        """The event is not needed any more."""
        ...

    def synchronize(self) -> float:
        """Wait for the device: the host's time at which it had done all."""
        ...

    def rebase(self) -> None:
        """Count from the last `synchronize`; marks older than it must have been read."""
        ...

    def idle_lag_s(self) -> float:
        """How far an idle device is behind the host, and by how much the host was late when their clocks were tied."""
        ...


class HostEventTimer:
    """A device that has done its work when the call returns."""

    noise_s = _EVENT_NOISE_S
    stream_changes = 0

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.mark = now_s
        self.synchronize = now_s

    def done(self, mark: float) -> bool:
        del mark
        return True

    def time_s(self, mark: float) -> float:
        return mark

    def release(self, mark: float) -> None:
        del mark

    def rebase(self) -> None:
        return None

    def idle_lag_s(self) -> float:
        return 0.0


class CudaEventTimer:
    """Events on the current stream. CUDA gives times as differences in float32, so they count from a recent event."""

    noise_s = 2 * _EVENT_NOISE_S

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.stream_changes = 0
        # torch builds a stream's object at each question; the number of the current one is had for a tenth of that.
        self._number: Callable[[int | None], int] | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
        self._index = device.index
        self._stream: Any = None  # the current one, as of the last mark, and its number
        self._stream_number: int | None = None
        self._pool: list[torch.cuda.Event] = []
        self._rate = 1.0  # host seconds in a device second
        self._probe: tuple[torch.cuda.Event, float] | None = None  # made when the device was idle
        self._idle_s = 0.0
        self._next = self._base = self._anchor()

    def mark(self) -> torch.cuda.Event:
        if self._number is None or self._number(self._index) != self._stream_number:
            self._change_stream()
        event = self._pool.pop() if self._pool else _event()
        event.record(self._stream)
        return event

    def done(self, mark: torch.cuda.Event) -> bool:
        return bool(mark.query())  # type: ignore[no-untyped-call]

    def time_s(self, mark: torch.cuda.Event) -> float:
        event, host_s = self._base
        return host_s + self._rate * float(event.elapsed_time(mark)) * 1e-3

    def release(self, mark: torch.cuda.Event) -> None:
        self._pool.append(mark)

    def synchronize(self) -> float:
        self._next = self._anchor()
        return self._next[1]

    def rebase(self) -> None:
        (old, old_s), (new, new_s) = self._base, self._next
        passed_s = float(old.elapsed_time(new)) * 1e-3
        if passed_s > 5.0:  # else the two readings of the host's clock say too little
            self._rate = min(max((new_s - old_s) / passed_s, 1 - 1e-3), 1 + 1e-3)
        self._base = self._next
        if self._probe is not None:
            probe, made_s = self._probe
            self._idle_s = self.time_s(probe) - made_s

    def _change_stream(self) -> None:
        self._stream_number = None if self._number is None else self._number(self._index)
        self._stream = torch.cuda.current_stream(self._device)
        self.stream_changes += 1

    def idle_lag_s(self) -> float:
        return self._idle_s

    def _anchor(self) -> tuple[torch.cuda.Event, float]:
        event, probe = _event(), _event()
        stream = torch.cuda.current_stream(self._device)
        event.record(stream)
        event.synchronize()
        now_s = time.perf_counter()
        self._probe = (probe, now_s)
        probe.record(stream)
        probe.synchronize()
        return event, now_s


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


# --- one device ------------------------------------------------------------------------------------------------------


# One step, or a phase outside any: the step's index (None of a phase); marks, of a step its begin, begin and end of
# each phase, its end, of a phase begin and end (None: the host's clock alone); names of the phases; the host's times of
# the marks; the timer's count of changes of stream at the first and the last. A plain tuple: it is made inside a step.
Record: TypeAlias = tuple[int | None, list[Any] | None, list[str], list[float] | None, tuple[int, int]]


@dataclass(slots=True)
class _Mean:
    """Running mean and deviation (Welford 1962)."""

    count: int = 0
    total: float = 0.0
    _mean: float = 0.0
    _squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        off = value - self._mean
        self._mean += off / self.count
        self._squares += off * (value - self._mean)

    @property
    def mean(self) -> float | None:
        return self._mean if self.count else None

    @property
    def deviation(self) -> float | None:
        return math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else None

    @property
    def error(self) -> float | None:
        deviation = self.deviation
        return None if deviation is None else deviation / math.sqrt(self.count)


@dataclass(frozen=True, slots=True)
class StepTimes:
    """A step whose times are read, s."""

    index: int
    begin_s: float
    end_s: float
    phases_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A step whose energy is known too."""

    device: str
    step: StepTimes
    energy_J: float | None


class DeviceMeter:
    """One device: its marks, its counter, and what is known so far.

    Args:
        device, timer, finder: of it.
        ready: of a step's index: whether what else belongs to the step is known.

    Attributes:
        mark: makes a mark.
        lag: of the device behind the host; says which steps the meter may mark by the host's clock alone.
        pending: steps and phases whose marks are not read yet; the meter adds to them, too.
        rows: finished steps, for the writer.
    """

    def __init__(
        self,
        device: MeteredDevice,
        timer: EventTimer,
        finder: Finder,
        ready: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self.device, self.finder = device, finder
        self._ready = ready
        self._recorder = device if isinstance(device, RecordingDevice) else None
        self.notes: list[str] = []
        self.rows: deque[FinishedStep] = deque()  # finished steps, for the writer
        self._timer = timer
        self.mark = timer.mark
        self.lag = HostLag(synchronous=isinstance(timer, HostEventTimer))
        self.pending: deque[Record] = deque()
        self._marks: list[Any] | None = None  # of the step that is open
        self._hosts_s: list[float] = []  # when they were made
        self._names: list[str] = []  # of its phases that have ended
        self._index = 0
        self._outside: Any = None  # the begin of a phase outside steps
        self._streams = 0
        self._steps: deque[StepTimes] = deque()  # read, and waiting for the counter
        self._step_s, self._step_J = _Mean(), _Mean()
        self._phase_s: dict[str, _Mean] = {}
        self._spans: dict[str, deque[tuple[float, float]]] = {}
        self._edges: deque[Edge] = deque()
        self._first: Edge | None = None
        self._last: Edge | None = None
        self._power_W = _Mean()
        self._fault: str | None = None
        self._most_W = most_power_W(device)
        self.start_s = timer.synchronize()
        timer.rebase()
        self.end_s: float | None = None

    # Marks: called inside the user's step, whose work has driven all this out of the processor's caches: there each
    # call of a function costs about a microsecond. Most steps of a loop whose host is the bottleneck don't come here.

    def begin_step(self, index: int) -> None:
        """Mark the beginning of a step."""
        self._index = index
        self._names = []
        self._hosts_s = [time.perf_counter()]
        self._marks = [self.mark()]
        self._streams = self._timer.stream_changes

    def end_step(self) -> None:
        """Mark the end of the step."""
        marks, self._marks = self._marks, None
        if marks is not None:
            self._hosts_s.append(time.perf_counter())
            marks.append(self.mark())
            streams = (self._streams, self._timer.stream_changes)
            self.pending.append((self._index, marks, self._names, self._hosts_s, streams))

    def begin_phase(self) -> None:
        """Mark the beginning of a phase."""
        if self._marks is not None:
            self._hosts_s.append(time.perf_counter())
            self._marks.append(self.mark())
        else:
            self._outside = self.mark()
            self._streams = self._timer.stream_changes

    def end_phase(self, name: str) -> None:
        """Mark the end of the phase, of the open step or of none."""
        if self._marks is not None:
            self._hosts_s.append(time.perf_counter())
            self._marks.append(self.mark())
            self._names.append(name)
        else:
            streams = (self._streams, self._timer.stream_changes)
            self.pending.append((None, [self._outside, self.mark()], [name], None, streams))

    def drop(self) -> None:
        """Forget what is open: an exception ended it."""
        self._marks = None

    # Readings: after steps.

    def read(self) -> None:
        """Account for all that the device has done, without waiting for it."""
        while self.pending:
            index, marks, names, hosts_s, streams = self.pending[0]
            # On one stream, whose order is that of time, all are done when the last is.
            awaited = () if marks is None else marks[-1:] if streams[0] == streams[1] else marks
            if not all(self._timer.done(mark) for mark in awaited) or not (index is None or self._ready(index)):
                break
            self.pending.popleft()
            self._account(index, names, self._times_s(index, marks, names, hosts_s))
        self._take_edges()
        self._finish_steps()

    def synchronize(self) -> float:
        """Wait for the device, read everything, and tie its clock to the host's anew."""
        now_s = self._timer.synchronize()
        self.read()
        self._timer.rebase()
        return now_s

    def finish(self) -> None:
        """The session is over: see the counter tick once more, then read the rest."""
        self.end_s = self.synchronize()
        until_s = time.perf_counter() + _LAST_EDGE_S
        while self._first and self._fault is None and self._edges[-1].time_s < self.end_s:
            if time.perf_counter() > until_s:
                break
            time.sleep(0.01)  # a tenth of a tick
            self._take_edges()
        self._check_counter()
        asked_s = self.finder.asked_s
        if self._fault is None and asked_s is not None and self.end_s - asked_s > _UNREAD_S:
            self._fault = (
                f"nothing read the energy counter in the last {self.end_s - asked_s:.1f} s of the session: trust the "
                "phase times only; no energy"
            )
        self._finish_steps(last=True)

    def _times_s(
        self, index: int | None, marks: list[Any] | None, names: list[str], hosts_s: list[float] | None
    ) -> list[float]:
        """When the device got to each mark."""
        if marks is None:
            return self.lag.times_s(names, hosts_s or [], self._timer.idle_lag_s())
        times_s = [self._timer.time_s(mark) for mark in marks]
        for mark in marks:
            self._timer.release(mark)
        if index is not None and hosts_s is not None and not isinstance(self._timer, HostEventTimer):
            self.lag.learn(names, hosts_s, times_s, self._timer.idle_lag_s())
        return times_s

    def _account(self, index: int | None, names: list[str], times_s: list[float]) -> None:
        first = 0 if index is None else 1
        phases_s: dict[str, float] = {}
        for number, name in enumerate(names):
            begin_s, end_s = times_s[first + 2 * number], times_s[first + 2 * number + 1]
            spans = self._spans.setdefault(name, deque())
            spans.append((begin_s, max(begin_s, end_s)))
            while spans[0][1] < end_s - KEEP_S:
                spans.popleft()
            self._phase_s.setdefault(name, _Mean()).add(end_s - begin_s)
            if self._recorder is not None:
                self._recorder.phase(name, begin_s, max(begin_s, end_s))
            phases_s[name] = phases_s.get(name, 0.0) + end_s - begin_s
        if index is not None:
            self._step_s.add(times_s[-1] - times_s[0])
            if self._recorder is not None:
                self._recorder.step(index, times_s[0], times_s[-1])
            self._steps.append(StepTimes(index, times_s[0], times_s[-1], phases_s))

    def _take_edges(self) -> None:
        self.finder.poll()
        while self.finder.powers:
            self._power_W.add(self.finder.powers.popleft()[1])
        while self.finder.edges:
            edge = self.finder.edges.popleft()
            if self._edges:
                still_s = edge.time_s - edge.width_s / 2 - self._edges[-1].time_s
                most_J = most_rise_J(self._most_W, _longest_s(self._edges[-1], edge))
                suspicious = not 0 <= edge.energy_J - self._edges[-1].energy_J <= most_J or still_s > STUCK_S
            else:
                suspicious = False
            self._edges.append(edge)
            if self._first is None or self._last is None or _sharp(self._first) < _sharp(edge):
                self._first = self._last = edge  # the first that is known well, if there is one
            elif _sharp(edge) >= _sharp(self._last):
                self._last = edge
            if suspicious:
                self._check_counter()
        while self._edges and self._edges[0].time_s < self._edges[-1].time_s - KEEP_S:
            self._edges.popleft()

    def _check_counter(self) -> None:
        if self._fault is not None or self.finder.read_s is None or not self._edges:
            if self.finder.read_s is not None and self.finder.read_s - self.start_s > STUCK_S and not self._edges:
                self._fault = "the energy counter never changed: trust the times and the power readings only"
            return
        start_s = max(self.start_s, self._edges[0].time_s)
        asked_s = self.finder.asked_s or start_s
        try:
            check_counter(
                self._counter(), start_s, max(self.finder.read_s, start_s), asked_s=asked_s, most_W=self._most_W
            )
        except DeviceError as error:
            self._fault = str(error)

    def _counter(self) -> CounterEdges:
        return CounterEdges.from_edges(self._edges)

    def _finish_steps(self, *, last: bool = False) -> None:
        """Give steps their energy once the counter has passed them; they do not wait for ever for one that is gone."""
        if not self._steps:
            return
        counted = self._fault is None and bool(self._edges)
        waiting = counted or self.finder.read_s is not None
        until_s = time.perf_counter() - _UNREAD_S
        if last or not waiting:
            until_s = math.inf
        elif counted:
            until_s = max(until_s, self._edges[-1].time_s)
        ready: list[StepTimes] = []
        while self._steps and self._steps[0].end_s <= until_s:
            ready.append(self._steps.popleft())
        if not ready:
            return
        energies_J = self._energies_J(ready) if counted else [None] * len(ready)
        for step, energy_J in zip(ready, energies_J, strict=True):
            if energy_J is not None:
                self._step_J.add(energy_J)
            self.rows.append(FinishedStep(str(self.device.torch_device), step, energy_J))

    def _energies_J(self, steps: Sequence[StepTimes]) -> list[float | None]:
        """Energy of each step, the counter interpolated between its edges; None where it does not reach."""
        recent: deque[Edge] = deque()
        for edge in reversed(self._edges):
            recent.appendleft(edge)
            if edge.time_s < steps[0].begin_s:
                break
        time_s = [edge.time_s for edge in recent]
        energy_J = [edge.energy_J for edge in recent]
        begin_J = np.interp([step.begin_s for step in steps], time_s, energy_J)
        end_J = np.interp([step.end_s for step in steps], time_s, energy_J)
        return [
            float(b - a) if step.begin_s >= time_s[0] and step.end_s <= time_s[-1] else None
            for a, b, step in zip(begin_J, end_J, steps, strict=True)
        ]

    # What is known.

    def summary(self) -> DeviceSummary:
        """What is known by now of this device."""
        duration_s = (self.end_s or time.perf_counter()) - self.start_s
        remarks: Sequence[str] = getattr(self.device, "remarks", ())
        notes = [*self.notes, *dict.fromkeys([*remarks, *self.finder.remarks]), *([self._fault] if self._fault else [])]
        power_W, source = self._session_power(notes)
        found = self._attribution(notes)
        return DeviceSummary(
            device=str(self.device.torch_device),
            name=self.device.info.name,
            uuid=self.device.info.uuid,
            steps=self._step_s.count,
            step_time_s=self._step_s.mean,
            step_time_standard_error_s=self._step_s.error,
            step_time_deviation_s=self._step_s.deviation,
            step_energy_J=self._step_J.mean,
            step_energy_standard_error_J=self._step_J.error,
            duration_s=duration_s,
            energy_J=None if power_W is None else power_W * duration_s,
            power_W=power_W,
            energy_source=source,
            phases={name: _phase_summary(name, times, found) for name, times in self._phase_s.items()},
            groups=_groups(found),
            read_by=None if self.finder.asked_s is None else self.finder.read_by,
            counter_lag_s=found.lag_s if found else None,
            residual_share=found.residual_share if found else None,
            intervals=found.intervals if found else None,
            notes=tuple(notes),
        )

    def _session_power(self, notes: list[str]) -> tuple[float | None, str | None]:
        read_W = self._power_W.mean
        counter_W = None
        first, last = self._first, self._last
        if self._fault is None and first is not None and last is not None and last.time_s > first.time_s:
            counter_W = (last.energy_J - first.energy_J) / (last.time_s - first.time_s)
        if counter_W is None:
            if read_W is None:
                notes.append("no energy counter and no power readings here: times only")
            elif self._fault is None and self.finder.read_s is None:
                notes.append(
                    f"no energy counter of this device alone: its energy is the mean of {self._power_W.count} power "
                    "readings times the session's length, and phases have no power"
                )
            return read_W, None if read_W is None else "power readings"
        if read_W is not None and self._power_W.count >= _FEWEST_READINGS:
            apart = abs(read_W - counter_W) / max(counter_W, 1e-9)
            if apart > _DISAGREE:
                notes.append(
                    f"the energy counter says {counter_W:.0f} W, the mean of {self._power_W.count} power readings "
                    f"{read_W:.0f} W: where power varies, trust the counter, which misses nothing in between; where it "
                    "hardly does, they are not of the same thing (a counter of a module with its CPU, or one that is "
                    "wrong at low load): trust the readings"
                )
        return counter_W, "counter"

    def _attribution(self, notes: list[str]) -> Attribution | None:
        if self._fault is not None or not self._spans or len(self._edges) < 2:
            return None
        spans = {name: np.array(list(span)) for name, span in self._spans.items()}
        try:
            found = attribute(spans, self._counter(), timing_noise_s=math.hypot(self._timer.noise_s, self.lag.noise_s))
        except MoeModelError as error:
            notes.append(f"no power by phase: {error}")
            return None
        notes.extend(found.notes)
        return found


def _longest_s(before: Edge, after: Edge) -> float:
    """The longest time that may lie between two edges."""
    return after.time_s - before.time_s + (after.width_s + before.width_s) / 2


def _sharp(edge: Edge) -> bool:
    return edge.width_s <= WIDEST_EDGE_S


def _phase_summary(name: str, times: _Mean, found: Attribution | None) -> PhaseSummary:
    alone = [group for group in found.groups if group.phases == (name,)] if found else []
    power_W = alone[0].power_W if alone else None
    error_W = alone[0].standard_error_W if alone else None
    return PhaseSummary(
        calls=times.count,
        time_s=times.total,
        mean_time_s=times.mean or 0.0,
        mean_time_standard_error_s=times.error,
        power_W=power_W,
        power_standard_error_W=error_W,
        energy_J=None if power_W is None else power_W * times.total,
        energy_standard_error_J=None if error_W is None else error_W * times.total,
    )


def _groups(found: Attribution | None) -> tuple[GroupSummary, ...]:
    return tuple(
        GroupSummary(phases=group.phases, power_W=group.power_W, power_standard_error_W=group.standard_error_W)
        for group in (found.groups if found else ())
        if len(group.phases) > 1
    )
