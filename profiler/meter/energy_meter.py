"""A meter for anybody's training loop: time, power and energy of its steps and phases, on one GPU or several.

    from moemodel import Meter

    with Meter(folder="energy") as meter:
        for batch in loader:
            with meter.step():
                with meter.phase("forward"):
                    loss = model(batch)
                with meter.phase("backward"):
                    loss.backward()
    print(meter.summary().to_json())

Nothing waits for the device inside a step: on CUDA phases are timed by events on the current stream, read some steps
later. Device time is tied to host time by a synchronisation at the start, at the end, and every half minute after a
step. A GPU's energy counter is read by a small process of its own (`counter_feed`), other sensors by a thread, and
phases get their power from it by `attribution`. No setting of a device is ever changed. In a job of several processes
each rank meters its own GPU (`jobs.place`, `ranks`).
"""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from moemodel.model.core.errors import DeviceError, InputError, MoeModelError
from moemodel.model.core.files import write_atomic
from moemodel.model.records.profile import DeviceInfo
from moemodel.profiler.devices.base import MeteredDevice
from moemodel.profiler.devices.cpu import CpuDevice
from moemodel.profiler.devices.names import REPLAYED
from moemodel.profiler.instruments.counter_feed import CounterFeed
from moemodel.profiler.instruments.counter_reading import CounterWatch, EdgeFinder, Finder
from moemodel.profiler.jobs.place import Place, own_place
from moemodel.profiler.meter.batches import StepBatches, Told
from moemodel.profiler.meter.device_meter import CudaEventTimer, DeviceMeter, EventTimer, FinishedStep, HostEventTimer
from moemodel.profiler.meter.ranks import own_gpus
from moemodel.profiler.meter.recording import RecordingDevice, ReplayDevice
from moemodel.profiler.meter.summary import Summary
from moemodel.profiler.platforms.vendors import vendor_here

_READ_EVERY = 16  # steps between two readings of events: each costs the host, and events pile up until then
_HOST = (0, 0)  # a record's changes of stream, where the host's clock alone makes its marks
_now_s = time.perf_counter
READERS = ("process", "thread")
_SYNC_EVERY_S = 30.0  # between two synchronisations, by which the clocks of device and host are compared


# --- files -----------------------------------------------------------------------------------------------------------


class _Files:
    """`rank0-steps.jsonl`, a line a step, and `rank0-summary.json`; of a later session in the same folder `rank0.2-…`.

    Lines are appended whole, those of a second in one write; the summary is written beside its place and renamed.
    """

    def __init__(self, folder: Path, rank: int, unix_s: float) -> None:
        self._rank, self._unix_s = rank, unix_s  # what to add to the host's clock
        self.error: OSError | None = None
        folder.mkdir(parents=True, exist_ok=True)
        session = 1
        while True:
            stem = f"rank{rank}" if session == 1 else f"rank{rank}.{session}"
            self._steps, self._summary = folder / f"{stem}-steps.jsonl", folder / f"{stem}-summary.json"
            try:
                self._steps.touch(exist_ok=False)
            except FileExistsError:
                session += 1
                continue
            return

    def write(self, rows: Sequence[FinishedStep], batches: Mapping[int, StepBatches]) -> None:
        """Append rows, with what the loop told of their steps; an error is kept, and ends the writing."""
        lines = [self._line(row, batches.get(row.step.index)) for row in rows]
        if not lines or self.error is not None:
            return
        try:
            with self._steps.open("ab", buffering=0) as file:
                file.write("".join(lines).encode())
        except OSError as error:
            self.error = error

    def finish(self, summary: Summary) -> None:
        write_atomic(self._summary, summary.to_json() + "\n")

    def _line(self, row: FinishedStep, batches: StepBatches | None) -> str:
        step = row.step
        values: dict[str, Any] = {
            "rank": self._rank,
            "device": row.device,
            "step": step.index,
            "start_unix_s": round(step.begin_s + self._unix_s, 6),
            "time_s": round(step.end_s - step.begin_s, 9),
            "energy_J": None if row.energy_J is None else round(row.energy_J, 4),
            "phase_time_s": {name: round(seconds, 9) for name, seconds in step.phases_s.items()},
        }
        if batches is not None:
            values |= batches.values()
        return json.dumps(values) + "\n"


# --- observers -------------------------------------------------------------------------------------------------------


class Observer(Protocol):
    """Another instrument, told what the meter is told, so that a loop is annotated once.

    One is `emissions.codecarbon.CodeCarbonLevels`. It is told before a step or phase begins and after it has ended, so
    that a step's own time does not contain what an observer does at its ends; what it does at the ends of phases is
    part of the step. One that raises is not told any more.
    """

    def begin_session(self, devices: Sequence[MeteredDevice]) -> None:
        """The meter begins, on these devices."""
        ...

    def begin_step(self, index: int) -> None:
        """A step begins, the first with index 0."""
        ...

    def end_step(self) -> None:
        """It has ended."""
        ...

    def begin_phase(self, name: str) -> None:
        """A phase begins, in a step or outside one."""
        ...

    def end_phase(self) -> None:
        """It has ended."""
        ...

    def drop(self) -> None:
        """An exception of the user's ends what is open."""
        ...

    def add_steps(self, rows: Sequence[FinishedStep]) -> None:
        """Steps whose time and energy are known now; from another thread."""
        ...

    def end_session(self) -> None:
        """The last step is over; the summary is not known yet."""
        ...

    def close(self, summary: Summary) -> Sequence[str]:
        """The session's summary, when nothing more will come; what is returned goes to the meter's notes."""
        ...


# --- the meter -------------------------------------------------------------------------------------------------------


class Meter:
    """Measures the steps and phases of a training loop: times in s, powers in W, energies in J.

    >>> import moemodel, torch
    >>> layer = torch.nn.Linear(64, 64)
    >>> with moemodel.Meter(devices=["cpu"]) as meter:
    ...     for _ in range(3):
    ...         with meter.step(), meter.phase("forward"):
    ...             output = layer(torch.ones(8, 64))
    >>> device = meter.summary().devices[0]
    >>> device.steps, device.phases["forward"].calls
    (3, 3)

    Args:
        folder: where files go, one pair for each rank; None: no files.
        devices: torch devices, their names or numbers, `profiler.devices.base.Device`s, or "replay:FILE". None: in a
            job of several processes the rank's own GPU (`ranks`), else every visible one; the CPU where there is none.
        read_every: steps between two readings of what the device has done.
        sync_every_s: time between two synchronisations after a step.
        strict: raise what goes wrong in metering; else it becomes a warning and a note in the summary, and training
            goes on.
        observers: other instruments, told the same.
        record: file that all readings, phases and steps are written to, for `recording.recorded_session`; of several
            devices, the second goes to `FILE.1.jsonl` and so on. None: no recording.
        reader: what reads a GPU's sensors: "process", one of its own, which costs the training loop nothing, or where
            that does not start, and of other devices and for a recording, a "thread".
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        devices: Sequence[Any] | None = None,
        *,
        read_every: int = _READ_EVERY,
        sync_every_s: float = _SYNC_EVERY_S,
        strict: bool = False,
        observers: Sequence[Observer] = (),
        record: str | Path | None = None,
        reader: str = "process",
    ) -> None:
        if read_every < 1:
            raise InputError(f"read_every: found {read_every}; it is a number of steps, at least 1")
        if reader not in READERS:
            raise InputError(f"reader: found {reader!r}; allowed: {', '.join(READERS)}")
        self._reader = reader
        self._folder = None if folder is None else Path(folder)
        self._wanted = devices
        self._read_every, self._sync_every_s, self._strict = read_every, sync_every_s, strict
        self._observers = tuple(observers)
        self._record = None if record is None else Path(record)
        self._recorders: list[RecordingDevice] = []
        self._place = own_place()  # asked again when the session begins
        self._meters: list[DeviceMeter] = []
        self._only: DeviceMeter | None = None  # the one device, while it is the only one to be told
        self._opened: list[MeteredDevice] = []
        self._watch: CounterWatch | None = None
        self._feed: CounterFeed | None = None
        self._files: _Files | None = None
        self._notes: list[str] = []
        self._state = "new"  # then "running", "stopped"; or "failed", after which calls do nothing
        self._index = 0
        self._in_step = False
        self._phase: str | None = None
        self._synced_s = 0.0
        self._start_unix_s = 0.0
        self._batches: dict[int, StepBatches] = {}  # of steps that are not written yet
        self._written: Counter[int] = Counter()  # step -> devices that are done with it, until all are
        self._told = Told()
        self._marks_s: list[float] | None = None  # of a step that the host's clock alone marks, while it is open
        self._names: list[str] = []  # of its phases
        self._step_scope = _StepScope(self)
        self._phase_scopes: dict[str, _PhaseScope] = {}

    # Sessions.

    def start(self) -> None:
        """Begin a session: devices are opened, and their counters watched."""
        self._try(self._start)

    def stop(self) -> None:
        """End the session: wait for the devices, read the rest, write the files."""
        self._try(self._stop, always=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._drop()
        self.stop()

    # Steps and phases.

    def begin_step(self) -> None:
        """Begin a step; what goes wrong in metering is a note, unless `strict`."""
        self._step_scope.__enter__()

    def end_step(self) -> None:
        """End the step."""
        self._step_scope.__exit__(None, None, None)

    def begin_phase(self, name: str) -> None:
        """Begin a phase; phases follow each other, in a step or outside one, and do not nest."""
        self.phase(name).__enter__()

    def end_phase(self) -> None:
        """End the phase."""
        if self._phase is None:
            self._try(self._end_phase)
        else:
            self.phase(self._phase).__exit__(None, None, None)

    def step(self) -> AbstractContextManager[None]:
        """`begin_step` and `end_step` as a context; a step that an exception ends does not count."""
        return self._step_scope

    def phase(self, name: str) -> AbstractContextManager[None]:
        """`begin_phase` and `end_phase` as a context."""
        scope = self._phase_scopes.get(name)
        if scope is None:
            scope = self._phase_scopes[name] = _PhaseScope(self, name)
        return scope

    def summary(self) -> Summary:
        """What is known so far; after `stop`, all of it. Waits for nothing."""
        return Summary(
            rank=self._place.rank,
            world_size=self._place.size,
            start_unix_s=self._start_unix_s,
            devices=tuple(each.summary() for each in self._meters),
            micro_batches=self._told.micro_batches,
            samples=self._told.samples,
            tokens=self._told.tokens,
            notes=(*self._notes, *self._told.notes()),
        )

    def add_batch(self, *, samples: int | None = None, tokens: int | None = None, loss: Any = None) -> None:
        """One micro-batch of the step that is open, so that its line in the file tells them.

        Args:
            samples, tokens: of the micro-batch; those of a step are added up.
            loss: a number or a tensor of one; the step's is the mean over its micro-batches. It is not waited for.
        """
        self._try(self._add_batch, samples, tokens, loss)

    @property
    def reader_pid(self) -> int | None:
        """Process id of what reads the sensors while the session runs; None where this process does."""
        return None if self._feed is None else self._feed.pid

    # Behind them.

    def _try(self, action: Callable[..., None], *args: Any, always: bool = False) -> None:
        if self._state == "failed" and not always:
            return
        try:
            action(*args)
        except Exception as error:  # noqa: BLE001 - metering must not end a training run that took days
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if self._strict:
            raise error
        if isinstance(error, InputError):
            self._note(str(error))
            return
        self._state = "failed"
        self._only = self._marks_s = None
        self._note(f"metering ended, training goes on: {type(error).__name__}: {error}")

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)
            warnings.warn(f"moemodel.Meter: {text}", RuntimeWarning, stacklevel=5)

    def _start(self) -> None:
        if self._state != "new":
            raise InputError("start: this meter has been started before; make a new Meter for a new session")
        self._start_unix_s = time.time()
        self._place = own_place()
        devices, self._opened, notes = open_devices(self._wanted, self._place)
        if self._record is not None:
            self._recorders = [RecordingDevice(d, _numbered(self._record, i)) for i, d in enumerate(devices)]
            devices = list(self._recorders)
        if self._folder is not None:
            self._files = _Files(self._folder, self._place.rank, time.time() - time.perf_counter())
        self._tell("begin_session", devices)  # it may take seconds: before the session's time begins
        finders = self._finders(devices)
        for device, finder in zip(devices, finders, strict=True):
            on_gpu = device.torch_device.type == "cuda"
            timer: EventTimer = CudaEventTimer(device.torch_device) if on_gpu else HostEventTimer(time.perf_counter)
            self._meters.append(DeviceMeter(device, timer, finder, self._ready))
        here = [
            finder
            for device, finder in zip(devices, finders, strict=True)
            if isinstance(finder, EdgeFinder) and _has_sensors(device)
        ]
        self._watch = CounterWatch(here, self._write)
        self._watch.start()
        self._synced_s = time.perf_counter()
        self._state = "running"
        self._only = self._meters[0] if len(self._meters) == 1 and not self._observers else None
        for text in notes:
            self._note(text)

    def _finders(self, devices: Sequence[MeteredDevice]) -> list[Finder]:
        """What finds the edges of each device's counter: the reader where it can, else this process's thread."""
        addresses = [getattr(device, "sensors_at", None) for device in devices]
        known = [address for address in addresses if address is not None]
        fed: dict[int, Finder] = {}
        if self._reader == "process" and not self._recorders and known:
            with suppress(DeviceError):  # else the thread reads them, and the summary says so
                self._feed = CounterFeed(known)
                numbers = [number for number, address in enumerate(addresses) if address is not None]
                for number, finder in zip(numbers, self._feed.finders, strict=True):
                    fed[number] = finder
        return [fed.get(number) or EdgeFinder(device, time.perf_counter) for number, device in enumerate(devices)]

    def _stop(self) -> None:
        failed = self._state == "failed"
        self._only = None
        try:
            if self._state == "running":
                if self._phase is not None or self._in_step:
                    self._drop()
                self._tell("end_session")
                self._check_place()
                for each in self._meters:
                    each.finish()
        finally:
            self._close()
        if self._meters:
            self._tell("close", self.summary())
        if self._files is not None and self._meters:
            self._files.finish(self.summary())
        if not failed:
            self._state = "stopped"

    def _check_place(self) -> None:
        """A job may be joined after the meter began: then it took itself for alone."""
        place, before = own_place(), self._place
        if self._wanted is None and (place.rank, place.size) != (before.rank, before.size) and place.size > 1:
            self._note(
                f"this is process {place.rank} of {place.size}, as {place.source} says now; when the meter began it "
                f"was taken for {before.rank} of {before.size}: start it after the process group is initialised, or "
                "sums over ranks count GPUs several times"
            )

    def _close(self) -> None:
        if self._watch is not None:
            watch, self._watch = self._watch, None
            watch.stop()
            if watch.error is not None:
                self._note(f"the energy counters were not watched to the end: {watch.error!r}")
            if self._files is not None and self._files.error is not None:
                self._note(f"steps were not all written: {self._files.error}")
        if self._feed is not None:
            feed, self._feed = self._feed, None
            if feed.error is not None:
                self._note(f"the energy counters were not watched to the end: {feed.error}")
            feed.close()
        for recorder in self._recorders:
            recorder.finish()
        opened, self._opened = self._opened, []
        for device in opened:
            device.close()

    def _begin_step(self) -> None:
        self._check_running("begin_step")
        if self._in_step:
            raise InputError("begin_step: the step before has not ended; call end_step")
        if self._phase is not None:
            raise InputError(f"begin_step: phase {self._phase!r} has not ended; call end_phase")
        self._in_step = True
        if self._observers:
            self._tell("begin_step", self._index)
        for each in self._meters:
            each.begin_step(self._index)

    def _end_step(self) -> None:
        self._check_running("end_step")
        if not self._in_step:
            raise InputError("end_step: no step has begun")
        open_phase = self._phase
        if open_phase is not None:
            self._end_phase()
        marks_s, self._marks_s = self._marks_s, None
        if marks_s is not None and self._only is not None:
            marks_s.append(time.perf_counter())
            self._only.pending.append((self._index, None, self._names, marks_s, _HOST))
        else:
            for each in self._meters:
                each.end_step()
        if self._observers:
            self._tell("end_step")
        self._in_step = False
        self._index += 1
        if self._index % self._read_every == 0 or time.perf_counter() - self._synced_s > self._sync_every_s:
            self._read()
        if open_phase is not None:
            raise InputError(f"end_step: phase {open_phase!r} was still open, and ends with its step; call end_phase")

    def _read(self) -> None:
        if time.perf_counter() - self._synced_s > self._sync_every_s:
            for each in self._meters:
                each.synchronize()
            self._synced_s = time.perf_counter()
        else:
            for each in self._meters:
                each.read()

    def _begin_phase(self, name: str) -> None:
        self._check_running("begin_phase")
        if self._phase is not None:
            raise InputError(f"begin_phase {name!r}: {self._phase!r} has not ended; phases do not nest")
        self._phase = name
        if self._observers:
            self._tell("begin_phase", name)
        if self._marks_s is not None:
            self._marks_s.append(time.perf_counter())
        else:
            for each in self._meters:
                each.begin_phase()

    def _add_batch(self, samples: int | None, tokens: int | None, loss: Any) -> None:
        self._check_running("add_batch")
        if not self._in_step:
            raise InputError("add_batch: no step has begun")
        self._batches.setdefault(self._index, StepBatches()).add(samples, tokens, loss)

    def _ready(self, index: int) -> bool:
        """Whether what was told of a step is known."""
        batches = self._batches.get(index)
        return batches is None or batches.ready()

    def _end_phase(self) -> None:
        self._check_running("end_phase")
        if self._phase is None:
            raise InputError("end_phase: no phase has begun")
        name, self._phase = self._phase, None
        if self._marks_s is not None:
            self._marks_s.append(time.perf_counter())
            self._names.append(name)
        else:
            for each in self._meters:
                each.end_phase(name)
        if self._observers:
            self._tell("end_phase")

    def _drop(self) -> None:
        """An exception of the user's ends what is open."""
        self._phase, self._marks_s, self._in_step = None, None, False
        self._batches.pop(self._index, None)
        for each in self._meters:
            each.drop()
        self._tell("drop")

    def _tell(self, what: str, *values: Any) -> None:
        for observer in self._observers:
            try:
                found = getattr(observer, what)(*values)
            except Exception as error:  # another instrument's failure must not end this one
                self._observers = tuple(other for other in self._observers if other is not observer)
                with suppress(Exception):  # its threads, if it can
                    observer.end_session()
                if self._strict:
                    raise
                reason = str(error) if isinstance(error, MoeModelError) else f"{type(error).__name__}: {error}"
                self._note(f"{type(observer).__name__} ended, metering goes on: {reason}")
            else:
                for note in found or ():
                    self._note(note)

    def _check_running(self, call: str) -> None:
        if self._state != "running":
            raise InputError(f"{call}: this meter is {self._state}, not running; use it between start and stop")

    def _write(self) -> None:
        for each in self._meters:
            rows = [each.rows.popleft() for _ in range(len(each.rows))]
            self._tell("add_steps", rows)
            if self._files is not None:
                self._files.write(rows, self._batches)
            for row in rows:
                self._forget(row.step.index)
        for recorder in self._recorders:
            recorder.flush()

    def _forget(self, index: int) -> None:
        """One device more is done with a step; after the last, what was told of it is counted and let go."""
        self._written[index] += 1
        if self._written[index] == len(self._meters):
            del self._written[index]
            self._told.add(self._batches.pop(index, None))


# --- steps and phases as contexts ------------------------------------------------------------------------------------

# What most steps of a loop whose host is the bottleneck go through: inside a step, where the user's work has driven all
# this out of the caches, each function and object costs about a microsecond. So these are flat; what is not plain
# (events, several devices, observers, mistakes) goes to the meter's own methods.


class _StepScope(AbstractContextManager[None]):
    """A step of a meter, entered again and again."""

    __slots__ = ("_meter",)

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __enter__(self) -> None:
        meter = self._meter
        only = meter._only
        if only is None or not only.lag.left or meter._in_step or meter._phase is not None:
            meter._try(meter._begin_step)
            return
        only.lag.left -= 1
        meter._in_step = True
        meter._names = []
        meter._marks_s = [_now_s()]

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        meter = self._meter
        marks_s = meter._marks_s
        if kind is not None:
            meter._drop()
            return
        only = meter._only
        if marks_s is None or meter._phase is not None or only is None:
            meter._try(meter._end_step)
            return
        marks_s.append(_now_s())
        meter._marks_s = None
        meter._in_step = False
        only.pending.append((meter._index, None, meter._names, marks_s, _HOST))
        meter._index += 1
        if not meter._index % meter._read_every or marks_s[-1] - meter._synced_s > meter._sync_every_s:
            meter._try(meter._read)


class _PhaseScope(AbstractContextManager[None]):
    """A phase of a meter, entered again and again."""

    __slots__ = ("_meter", "_name")

    def __init__(self, meter: Meter, name: str) -> None:
        self._meter, self._name = meter, name

    def __enter__(self) -> None:
        meter = self._meter
        marks_s = meter._marks_s
        if marks_s is None or meter._phase is not None:
            meter._try(meter._begin_phase, self._name)
            return
        meter._phase = self._name
        marks_s.append(_now_s())

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        meter = self._meter
        marks_s = meter._marks_s
        if kind is not None:
            meter._drop()
            return
        if marks_s is None or meter._phase is None:
            meter._try(meter._end_phase)
            return
        marks_s.append(_now_s())
        meter._names.append(meter._phase)
        meter._phase = None


def _has_sensors(device: MeteredDevice) -> bool:
    return device.energy_J() is not None or device.power_W() is not None


def _numbered(file: Path, device: int) -> Path:
    return file.with_name(f"{file.stem}.{device}{file.suffix or '.jsonl'}") if device else file


# --- devices ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _TimesOnly:
    """A GPU whose sensors can't be read."""

    info: DeviceInfo
    torch_device: torch.device

    def energy_J(self) -> float | None:
        return None

    def power_W(self) -> float | None:
        return None

    def close(self) -> None:
        return None


def open_devices(
    wanted: Sequence[Any] | None, place: Place | None = None
) -> tuple[list[MeteredDevice], list[MeteredDevice], list[str]]:
    """The devices to meter, those of them that were opened here (and are to be closed), and what is amiss.

    Args:
        wanted: as in `Meter`; None: this process's own.
        place: which process this is; None: asked for.

    Raises:
        InputError: something wanted is no device.
    """
    devices: list[MeteredDevice] = []
    opened: list[MeteredDevice] = []
    notes: list[str] = []
    place = own_place() if place is None else place
    if wanted is None:
        notes += place.notes
    for item in _own_devices(place, notes) if wanted is None else wanted:
        if isinstance(item, str) and item.startswith(REPLAYED):
            replayed = ReplayDevice(item.removeprefix(REPLAYED))
            devices.append(replayed)
            opened.append(replayed)
            continue
        if not isinstance(item, int | str | torch.device):
            devices.append(_device(item))
            continue
        device = _open(_torch_device(item), notes)
        if place.size > 1 and device.info.power_source == "rapl":
            notes.append("the processor's energy is the whole machine's, on every rank: add it up once a machine")
        devices.append(device)
        opened.append(device)
    if not devices:
        raise InputError("devices: an empty list; name at least one device, or None for all")
    return devices, opened, notes


def _own_devices(place: Place, notes: list[str]) -> list[torch.device]:
    count = torch.cuda.device_count()
    if count == 0:
        return [torch.device("cpu")]
    numbers, doubts = own_gpus(place, count)
    notes += doubts
    return [torch.device("cuda", number) for number in numbers]


def _device(item: Any) -> MeteredDevice:
    if not (hasattr(item, "energy_J") and hasattr(item, "torch_device")):
        raise InputError(f"devices: {item!r} is no device; name 0, 'cuda:0' or 'cpu'")
    device: MeteredDevice = item
    return device


def _torch_device(item: int | str | torch.device) -> torch.device:
    try:
        device = torch.device("cuda", item) if isinstance(item, int) else torch.device(item)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"devices: {item!r} is no device; name 0, 'cuda:0' or 'cpu'") from error
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise InputError(f"devices: {item!r}, but torch sees {torch.cuda.device_count()} CUDA devices")
        return torch.device("cuda", index)
    if device.type != "cpu":
        raise InputError(f"devices: {item!r} cannot be metered; CUDA devices and 'cpu' can")
    return device


def _open(device: torch.device, notes: list[str]) -> MeteredDevice:
    if device.type == "cpu":
        return CpuDevice()
    try:
        return vendor_here().open(device)
    except Exception as error:  # noqa: BLE001 - whatever a driver's library raises: times need no sensors
        properties = torch.cuda.get_device_properties(device)
        reason = str(error) if isinstance(error, MoeModelError) else f"{type(error).__name__}: {error}"
        notes.append(f"{device}: {reason}; its times are measured, its energy is not")
        info = DeviceInfo(name=properties.name, vendor="nvidia", memory_B=properties.total_memory)
        return _TimesOnly(info=info, torch_device=device)
