"""CodeCarbon beside the meter, at three levels: session, step, and phase (forward, backward, optimizer).

    carbon = CodeCarbonLevels("energy", run="r1", model="olmoe", country="CAN", region="quebec")
    with Meter(folder="energy", observers=[carbon]) as meter:      # annotates the loop once, for both
        ...
    print(carbon.summary().to_json(), carbon.reconciliation)

or alone: `with carbon:` around the loop, `with carbon.step():`, `with carbon.phase("forward"):` in it.

One tracker for each level, not one with tasks for all. CodeCarbon 3 allows one task at a time, so steps and their
phases need two; and `start_task` reads the counters afresh, resets the tracker's clock and pauses its schedule, so that
a tracker loses what lies between its tasks: the session needs one without any. Trackers of one process do not disturb
each other: each has its own last reading of the counter.

The session is `start` and `stop`, with CodeCarbon's own schedule in between, in threads. A step or a phase is
`start_task` and `stop_task`, in the thread that trains: two readings of the counter by the host. The device is
asynchronous, so those levels wait for it before each reading (`synchronize`); without that, CodeCarbon would read while
the device is still at the work of steps ago. The session level waits for nothing, and costs least. What a level costs
is measured: seconds inside CodeCarbon's calls, seconds of waiting, seconds in its threads. Waiting costs a step what
the host would have queued meanwhile, and a phase its overlap with the next; phases measured so run slower than they do
without, and the meter's times of them are then of these slower ones.

A GPU's counter ticks every 100 ms: a step or phase shorter than that reads zero or a whole tick. Single readings mean
little, their sum is right. `reconciliation` says which to trust.

CodeCarbon is always offline here: no network, and no settings from its configuration files that would change that.
Energies in files are CodeCarbon's (kWh), in summaries joules.
"""

from __future__ import annotations

import csv
import io
import logging
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from moemodel.model.core.errors import DeviceError, InputError
from moemodel.model.core.extras import how_to_install
from moemodel.model.core.files import write_atomic
from moemodel.model.results.regions import Region, find_part, parts_of
from moemodel.profiler.devices.base import MeteredDevice
from moemodel.profiler.devices.nvml import load_nvml
from moemodel.profiler.emissions.reconciliation import Reconciliation, reconcile
from moemodel.profiler.emissions.records import CarbonReading, CarbonSummary, LevelSummary
from moemodel.profiler.jobs.place import own_place
from moemodel.profiler.meter.device_meter import FinishedStep
from moemodel.profiler.meter.energy_meter import open_devices
from moemodel.profiler.meter.scope import Scope
from moemodel.profiler.meter.summary import Summary

LEVELS = ("session", "step", "phase")
_FILES = {"session": "emissions_session", "step": "emissions_steps", "phase": "emissions_phases"}
_J_PER_KWH = 3.6e6
_KEEP = 200_000  # readings of a level that are kept for reconciliation; totals cover all
_WRITE_EVERY_S = 1.0  # what a killed run loses, against a write to a slow disk every step
_GUESSING = ("cpu_load", "constant")  # ways of CodeCarbon's to have a processor's power without a sensor
_SAME_INTENSITY = 1e-3  # of two tables' values, which are rounded to five digits


# --- what it costs --------------------------------------------------------------------------------------------------


@dataclass
class _Cost:
    """Seconds that a level takes from the training loop, and beside it."""

    setup_s: float = 0.0
    inside_s: float = 0.0
    waited_s: float = 0.0
    background_s: float = 0.0
    background_known: bool = True


# --- files -----------------------------------------------------------------------------------------------------------


class _CsvFile:
    """A CSV file with CodeCarbon's columns. Rows are appended whole, those of about a second in one write."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._rows: list[Mapping[str, Any]] = []
        self._written_s = time.perf_counter()
        self._columns: list[str] | None = None

    def append(self, values: Mapping[str, Any]) -> None:
        self._rows.append(values)
        if time.perf_counter() - self._written_s > _WRITE_EVERY_S:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            text = self._text(self._rows, header=self._columns is None)
            with self.file.open("ab", buffering=0) as file:
                file.write(text.encode())
            self._rows = []
        self._written_s = time.perf_counter()

    def replace(self, values: Mapping[str, Any]) -> None:
        """One row, instead of all before; written beside its place and renamed."""
        self._columns = None
        write_atomic(self.file, self._text([values], header=True))

    def _text(self, rows: Sequence[Mapping[str, Any]], *, header: bool) -> str:
        self._columns = self._columns or list(rows[0])
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


class _SessionOutput:
    """CodeCarbon's output handler of the session level: the file always holds the session so far."""

    def __init__(self, file: _CsvFile) -> None:
        self._file = file
        self.total: Any = None

    def out(self, total: Any, delta: Any) -> None:
        del delta
        self.total = total
        self._file.replace(total.values)

    live_out = out

    def task_out(self, data: Any, experiment_name: str) -> None:
        del data, experiment_name

    def exit(self) -> None:
        return None


def _plain(name: str, what: str) -> str:
    """A name as that of a folder.

    Raises:
        InputError: nothing is left of it.
    """
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.")
    if not plain:
        raise InputError(f"{what}: found {name!r}; it names a folder: use letters, digits, '-', '_', '.'")
    return plain


# --- CodeCarbon ------------------------------------------------------------------------------------------------------


class _Overheard(logging.Filter):
    """Keeps CodeCarbon's warnings for the notes, off the terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        # Every tracker says that several trackers are allowed: they are meant to be.
        text = record.getMessage()
        if record.levelno >= logging.WARNING and text not in self.said and "Multiple instances" not in text:
            self.said.append(text)
        return False


def _load() -> Any:
    """The `codecarbon` module.

    Raises:
        InputError: it is not installed, or too old.
    """
    logging.getLogger("codecarbon").setLevel(logging.WARNING)
    try:
        import_module("codecarbon.core.hardware_cache")  # of version 3.3: what is used here is like this from then on
        return import_module("codecarbon")
    except ImportError as error:
        raise InputError(
            f"codecarbon cannot be imported ({error}), and its levels need it; {how_to_install('codecarbon')}"
        ) from error


def check_place(country: str, region: str | None) -> str | None:
    """Check that a country, and its region, is a place whose grid is known; what to know of it otherwise.

    Places are those of predictions (`model.results.regions`), and so are their names.

    Raises:
        InputError: no such country, or no such region of it.
    """
    place = find_part(country, region)
    notes = []
    if place.part is None and (parts := parts_of(place.country)):
        notes.append(
            f"CodeCarbon uses the mean grid of {place.country}; region may name one of {len(parts)} parts of it"
        )
    used = _intensity_kg_per_kWh(place)
    if abs(used - place.kgCO2e_per_kWh) > _SAME_INTENSITY * place.kgCO2e_per_kWh:
        notes.append(
            f"this version of CodeCarbon takes {used:.4g} kgCO2e/kWh for {place.code}, predictions "
            f"{place.kgCO2e_per_kWh:.4g}: its tables are others than those of version 3.3.2"
        )
    return "; ".join(notes) or None


def _intensity_kg_per_kWh(place: Region) -> float:
    """What the installed CodeCarbon multiplies a kilowatt-hour with at a place."""
    emissions = import_module("codecarbon.core.emissions").Emissions(import_module("codecarbon.input").DataSource())
    kWh = import_module("codecarbon.core.units").Energy.from_energy(kWh=1.0)
    geo = import_module("codecarbon.external.geography").GeoMetadata(country_iso_code=place.country, region=place.part)
    return float(emissions.get_private_infra_emissions(kWh, geo))


def gpu_indices(devices: Sequence[MeteredDevice]) -> list[int] | None:
    """NVML's numbers of GPUs, which CodeCarbon goes by; None for all (there is no GPU among the devices).

    CodeCarbon 3.3 also takes UUIDs, but strips their first letter and then finds no GPU: a silent zero.

    Raises:
        DeviceError: NVML does not know one.
    """
    uuids = [device.info.uuid for device in devices if device.info.vendor == "nvidia" and device.info.uuid]
    if not uuids:
        return None
    try:
        nvml = load_nvml()
        return [int(nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetHandleByUUID(uuid))) for uuid in uuids]
    except Exception as error:
        raise DeviceError(f"NVML has no number for {', '.join(uuids)} ({error}); CodeCarbon needs one") from error


class _Level:
    """One tracker, what it said and what it costs.

    Args:
        name: of `LEVELS`.
        file: of its rows.
        options: of `OfflineEmissionsTracker`.
    """

    def __init__(self, name: str, file: Path, options: Mapping[str, Any]) -> None:
        self.name = name
        self.cost = _Cost()
        self.readings: deque[CarbonReading] = deque(maxlen=_KEEP)
        self.count = 0
        self.sums = [0.0] * 5  # duration, GPU, CPU, RAM, emissions
        self._file = _CsvFile(file)
        self._output = _SessionOutput(self._file)
        self._open: tuple[int, str, str] | None = None
        begun_s = time.perf_counter()
        self._tracker = _load().OfflineEmissionsTracker(
            **options, output_handlers=[self._output] if name == "session" else []
        )
        for scheduler in ("_scheduler", "_scheduler_monitor_power"):
            self._time_thread(getattr(self._tracker, scheduler, None))
        self._tracker.get_detected_hardware()  # finds it: up to seconds
        if name != "session":  # the first task reads CodeCarbon's tables
            self._tracker.start_task("warm-up")
            if self._tracker.stop_task() is None:
                raise DeviceError("CodeCarbon could not measure a task; its own warnings say why")
            self._forget()
        self.cost.setup_s = time.perf_counter() - begun_s

    def guesses(self) -> list[str]:
        """What CodeCarbon does not measure here; it says so itself only the first time in a process."""
        modes = [getattr(part, "_mode", None) for part in getattr(self._tracker, "_hardware", ())]
        guessed = ["memory"] + ["processor"] * any(mode in _GUESSING for mode in modes)
        return [f"CodeCarbon guesses the energy of {' and '.join(guessed)}, from its size, TDP and load"]

    def start_session(self) -> None:
        """Begin the session.

        Raises:
            DeviceError: CodeCarbon did not start.
        """
        with self._inside():
            self._tracker.start()
        if getattr(self._tracker, "_start_time", 0.0) is None:  # it swallows what goes wrong
            raise DeviceError("CodeCarbon did not start; its own warnings say why")

    def stop_session(self) -> None:
        """End it, and take its reading."""
        with self._inside():
            self._tracker.stop()
        if self._output.total is not None:
            self._take(-1, "", self._output.total)

    def begin(self, step: int, phase: str, task: str) -> None:
        """Begin a step or phase."""
        self._open = (step, phase, task)
        with self._inside():
            self._tracker.start_task(task)

    def end(self, *, keep: bool = True) -> None:
        """End it, and take its reading, if it is to be kept."""
        if self._open is None:
            return
        (step, phase, task), self._open = self._open, None
        with self._inside():
            data = self._tracker.stop_task()
            self._forget()
            if keep and data is not None:
                self._take(step, phase, data)
                self._file.append(_task_row(task, data))

    def close(self) -> None:
        """Stop a tracker of tasks, and write what is left."""
        if self.name != "session":
            self.end(keep=False)
            self._tracker.stop()
            self._file.flush()

    def summary(self, duration_s: float, steps: int) -> LevelSummary:
        """What it measured and what it cost."""
        cost = self.cost
        seconds, gpu_J, cpu_J, ram_J, emissions_kg = self.sums
        return LevelSummary(
            readings=self.count,
            duration_s=seconds,
            gpu_J=gpu_J,
            cpu_J=cpu_J,
            ram_J=ram_J,
            emissions_kg=emissions_kg,
            setup_s=cost.setup_s,
            inside_s=cost.inside_s,
            waited_s=cost.waited_s,
            background_s=cost.background_s if cost.background_known else None,
            share_of_time=cost.inside_s / duration_s if duration_s > 0 else 0.0,
            inside_s_per_step=cost.inside_s / steps if steps else None,
        )

    def _take(self, step: int, phase: str, data: Any) -> None:
        gpu_J, cpu_J, ram_J = (float(kWh) * _J_PER_KWH for kWh in (data.gpu_energy, data.cpu_energy, data.ram_energy))
        reading = CarbonReading(step, phase, float(data.duration), gpu_J, cpu_J, ram_J, float(data.emissions))
        self.readings.append(reading)
        self.count += 1
        more = (reading.duration_s, gpu_J, cpu_J, ram_J, reading.emissions_kg)
        self.sums = [before + value for before, value in zip(self.sums, more, strict=True)]

    def _forget(self) -> None:
        """CodeCarbon keeps every task to write them all at the end: a week of steps would fill the memory."""
        tasks = getattr(self._tracker, "_tasks", None)
        if isinstance(tasks, dict):
            tasks.clear()

    @contextmanager
    def _inside(self) -> Iterator[None]:
        begun_s = time.perf_counter()
        try:
            yield
        finally:
            self.cost.inside_s += time.perf_counter() - begun_s

    def _time_thread(self, scheduler: Any) -> None:
        """Count the time of what CodeCarbon runs in a thread of its own."""
        work = getattr(scheduler, "function", None)
        if not callable(work):
            self.cost.background_known = False
            return

        def timed(*args: Any, **kwargs: Any) -> None:
            begun_s = time.perf_counter()
            work(*args, **kwargs)
            self.cost.background_s += time.perf_counter() - begun_s

        scheduler.function = timed


def _task_row(task: str, data: Any) -> dict[str, Any]:
    """CodeCarbon's row of a task: its `TaskEmissionsData`."""
    kind = import_module("codecarbon.output_methods.emissions_data").TaskEmissionsData
    names = [column.name for column in fields(kind) if column.name != "task_name"]
    return {"task_name": task} | {name: getattr(data, name, "") for name in names}


# --- the levels ------------------------------------------------------------------------------------------------------


class CodeCarbonLevels:
    """CodeCarbon's trackers of a session; an observer of a `Meter`, or on its own.

    Files go to `FOLDER/RUN/MODEL/rankR/`: `emissions_session.csv`, `emissions_steps.csv`, `emissions_phases.csv`, with
    CodeCarbon's columns; a later session in the same folder is `emissions_session.2.csv`, and so on. The session's is
    rewritten whole at each of CodeCarbon's measurements; of the others, a killed run keeps all but the last second.
    Beside a meter, `rank0-reconciliation.json` and `.txt`.

    Args:
        folder: see above.
        run, model: names of folders.
        country: whose electricity: ISO 3166 code, name, or region of a cloud, as a plan's `site.region` takes it.
        region: of it ("quebec", "CA-QC", "SE3"); None: the whole country, or the part that `country` names already.
        levels: of `LEVELS`.
        rank: of the process; None: as torch.distributed or who started it says (`profiler.jobs.place`), else 0.
        devices: torch devices, on its own; beside a meter, the meter's.
        pue: power usage effectiveness; CodeCarbon multiplies all it measures with it.
        synchronize: wait for the device before readings of steps and phases.
        measure_every_s: between two measurements of the session, in CodeCarbon's thread.

    Attributes:
        reconciliation: with the energy counter, after the meter's session; None before, and without a meter.
        rank, folder: of the files; known from the session's begin on.

    Raises:
        InputError: no such level, country or region, or a name that is none.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        run: str,
        model: str,
        country: str,
        region: str | None = None,
        levels: Sequence[str] = LEVELS,
        rank: int | None = None,
        devices: Sequence[Any] | None = None,
        pue: float = 1.0,
        synchronize: bool = True,
        measure_every_s: float = 15.0,  # CodeCarbon's own default (measure_power_secs)
    ) -> None:
        for level in levels:
            if level not in LEVELS:
                raise InputError(f"levels: found {level!r}; allowed: {', '.join(LEVELS)}")
        if not levels:
            raise InputError(f"levels: none; name at least one of {', '.join(LEVELS)}")
        self._names = [level for level in LEVELS if level in levels]
        self._run, self._model = run, model
        place = find_part(country, region)
        self._country, self._region, self._pue = place.country, place.part, pue
        self._wanted_rank = rank
        self._runs_folder = Path(folder) / _plain(run, "run") / _plain(model, "model")
        self._locate()
        self._wanted = devices
        self._opened: list[MeteredDevice] = []
        self._synchronize, self._every_s = synchronize, measure_every_s
        self._levels: dict[str, _Level] = {}
        self._cuda: list[torch.device] = []
        self._overheard = _Overheard()
        self._notes: list[str] = []
        self._steps = 0
        self._index = -1  # of the step that is open
        self._session = 1
        self._begun_s = self._duration_s = 0.0
        self._state = "new"
        self._counted: deque[FinishedStep] = deque(maxlen=_KEEP)
        self.reconciliation: Reconciliation | None = None
        self._step_scope = Scope(lambda: self.begin_step(self._steps), self.end_step, self.drop)

    def _locate(self) -> None:
        """Which rank this is: a job may be joined between the making of this and its session."""
        self.rank = own_place().rank if self._wanted_rank is None else self._wanted_rank
        self.folder = self._runs_folder / f"rank{self.rank}"

    # The session.

    def begin_session(self, devices: Sequence[MeteredDevice]) -> None:
        """Make the trackers and start the session's.

        Raises:
            InputError: codecarbon is not installed; or begun before.
            DeviceError: CodeCarbon cannot measure here.
        """
        if self._state != "new":
            raise InputError("these levels have had their session; make new ones for a new session")
        _load()
        logging.getLogger("codecarbon").addFilter(self._overheard)
        try:
            self._begin(devices)
        except Exception:
            logging.getLogger("codecarbon").removeFilter(self._overheard)
            raise
        self._state = "running"

    def _begin(self, devices: Sequence[MeteredDevice]) -> None:
        self._locate()
        note = check_place(self._country, self._region)
        self._notes += [note] if note else []
        self._cuda = [d.torch_device for d in devices if d.torch_device.type == "cuda"]
        options = self._options(gpu_indices(devices))
        self.folder.mkdir(parents=True, exist_ok=True)
        files = self._claim()
        for name in self._names:
            self._levels[name] = _Level(name, files[name], options)
        self._notes += next(iter(self._levels.values())).guesses()
        self._begun_s = time.perf_counter()
        if "session" in self._levels:
            self._levels["session"].start_session()

    def end_session(self) -> None:
        """Stop the trackers; the files are whole then."""
        if self._state != "running":
            return
        self._state = "stopped"
        self.drop()
        for device in self._cuda:
            torch.cuda.synchronize(device)
        if "session" in self._levels:
            self._levels["session"].stop_session()
        self._duration_s = time.perf_counter() - self._begun_s
        for level in self._levels.values():
            level.close()
        logging.getLogger("codecarbon").removeFilter(self._overheard)

    def close(self, summary: Summary) -> Sequence[str]:
        """Reconcile with the meter's summary, and write that down; what is found comes back as notes."""
        self.end_session()
        self.reconciliation = reconcile(self.summary(), self.readings(), summary, list(self._counted))
        self._write("reconciliation.json", self.reconciliation.to_json())
        self._write("reconciliation.txt", self.reconciliation.to_text())
        return [f"CodeCarbon: {finding.text}" for finding in self.reconciliation.findings if finding.level != "info"]

    def __enter__(self) -> Self:
        devices, self._opened, notes = open_devices(self._wanted)
        self._notes += notes
        self.begin_session(devices)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_session()
        for device in self._opened:
            device.close()

    # Steps and phases.

    def step(self) -> Scope:
        """A step as a context, on its own; beside a meter, the meter's."""
        return self._step_scope

    def phase(self, name: str) -> Scope:
        """A phase as a context, on its own; beside a meter, the meter's."""
        return Scope(lambda: self.begin_phase(name), self.end_phase, self.drop)

    def begin_step(self, index: int) -> None:
        """Begin the step of that number, once the device has done what came before."""
        self._index = index
        level = self._levels.get("step")
        if level is not None:
            self._wait(level)
            level.begin(index, "", f"step {index}")

    def end_step(self) -> None:
        """End the step, once the device has done it."""
        level = self._levels.get("step")
        if level is not None:
            self._wait(level)
            level.end()
        self._steps += 1
        self._index = -1

    def begin_phase(self, name: str) -> None:
        """Begin a phase, once the device has done what came before."""
        level = self._levels.get("phase")
        if level is not None:
            self._wait(level)
            level.begin(self._index, name, f"step {self._index} {name}" if self._index >= 0 else name)

    def end_phase(self) -> None:
        """End the phase, once the device has done it."""
        level = self._levels.get("phase")
        if level is not None:
            self._wait(level)
            level.end()

    def drop(self) -> None:
        """End what is open without a reading."""
        self._index = -1
        for level in self._levels.values():
            level.end(keep=False)

    def add_steps(self, rows: Sequence[FinishedStep]) -> None:
        """Steps as the energy counter has them."""
        self._counted.extend(rows)

    # What was found.

    def readings(self) -> Mapping[str, Sequence[CarbonReading]]:
        """Level -> its readings, the last 200,000."""
        return {name: list(level.readings) for name, level in self._levels.items()}

    def summary(self) -> CarbonSummary:
        """What is known so far; after the session, all of it."""
        duration_s = self._duration_s or (time.perf_counter() - self._begun_s if self._levels else 0.0)
        return CarbonSummary(
            folder=str(self.folder),
            run=self._run,
            model=self._model,
            rank=self.rank,
            country=self._country,
            region=self._region,
            pue=self._pue,
            steps=self._steps,
            duration_s=duration_s,
            levels={name: level.summary(duration_s, self._steps) for name, level in self._levels.items()},
            notes=(*self._notes, *(f"CodeCarbon says: {text}" for text in self._overheard.said)),
        )

    def _wait(self, level: _Level) -> None:
        if self._synchronize and self._cuda:
            begun_s = time.perf_counter()
            for device in self._cuda:
                torch.cuda.synchronize(device)
            level.cost.waited_s += time.perf_counter() - begun_s

    def _options(self, gpus: list[int] | None) -> dict[str, Any]:
        """Of every tracker; what is named here no configuration file can change."""
        return {
            "country_iso_code": self._country,
            "region": self._region,
            "cloud_provider": None,
            "cloud_region": None,
            "electricitymaps_api_token": "",  # none: it would ask the network
            "emissions_endpoint": None,
            "output_dir": str(self.folder),
            "output_methods": [],  # its rows are written here, whole
            "api_call_interval": 1,  # tell the handler at every measurement
            "measure_power_secs": self._every_s,
            "tracking_mode": "machine",
            "gpu_ids": gpus,
            "pue": self._pue,
            "project_name": f"{self._run} {self._model} rank{self.rank}",
            "allow_multiple_runs": True,
            "log_level": "warning",
        }

    def _claim(self) -> dict[str, Path]:
        """The files of this session: the first number of which there are none."""
        while True:
            files = {name: self.folder / self._numbered(_FILES[name], "csv") for name in self._names}
            if not any((self.folder / self._numbered(stem, "csv")).exists() for stem in _FILES.values()):
                for file in files.values():
                    file.touch()
                return files
            self._session += 1

    def _numbered(self, stem: str, suffix: str) -> str:
        return f"{stem}.{suffix}" if self._session == 1 else f"{stem}.{self._session}.{suffix}"

    def _write(self, name: str, text: str) -> None:
        stem = f"rank{self.rank}" if self._session == 1 else f"rank{self.rank}.{self._session}"
        write_atomic(self.folder / f"{stem}-{name}", text + "\n")
