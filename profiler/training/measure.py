"""Measure whole training steps of a plan: time by phase, energy, true clock, memory, loss, expert load.

One run: build the model; step for at least 2 s, so that the governor and the die settle; then at least 20 steps and 3 s
of them with no synchronisation inside, marking every phase boundary with a CUDA event; read everything after the last
step; then a few steps that each begin on an idle device, for the host's time. On the CPU the same code runs with
wall-clock marks, and what has no sensor is None. Of several ranks each measures its own device; all take the same
steps, which rank 0 counts (`RankBarrier`), and begin the measured ones together.

What the columns of `iterations` mean here:

- `step_time_s` is the whole stretch over its steps; its deviation is over single steps. Phases are means, and a forward
  or backward phase is the sum over the step's micro-batches; in a pipeline they interleave, and are None.
- `host_time_s`: from a step's start until its last launch was queued. Long steps fill the launch queue (about a
  thousand kernels) and then wait for the device, so it is an upper bound wherever it comes near the step's time.
- `energy_J` is mean power, from counter edges inside the stretch, times the step's time; of this rank's GPU alone.
- Clocks are true ones, from the SM cycle counter, over some of the steps, spread over the stretch.
- `peak_allocated_B` leaves out what was allocated before the run (the clock reader's ring, the data of others), and
  what building the model took.
- `parameters` are those of the rank's share of the model, before ZeRO shards them.
- `expert_skew` is what the router did; a plan's `routing.skew` is for predictions and imposes nothing here.
- `loss_first` and `loss_last` are of the first warm-up step and the last measured one, means over the global batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from moemodel.model.core.errors import DeviceError, InputError, MoeModelError
from moemodel.model.plan.spec import Plan, read_plan
from moemodel.model.records.profile import IterationRow, Value
from moemodel.profiler.backends.base import BACKENDS, Builder, Run, TrainingRun, architecture_in, builder, check_runs
from moemodel.profiler.devices.base import Device
from moemodel.profiler.devices.memory import free_memory
from moemodel.profiler.instruments.cycle_counter import ClockReader, Stamp
from moemodel.profiler.instruments.energy_sampler import EnergySampler
from moemodel.profiler.jobs.rendezvous import Alone, RankBarrier

WARM_S = 2.0  # of steps before the measured ones: the die heats by 10 degrees within 2 s of load
MEASURED_S = 3.0  # 30 ticks of a 100 ms energy counter
_HOST_STEPS = 5  # of which the median is taken, each on an idle device
_COUNTER_INTERVAL_S = 0.02  # a quarter of what the bench polls at: here the host's time is measured too
_STAMPS = 512  # of the clock reader, a run; its ring holds 2048
_PHASES = ("forward", "backward", "optimizer")


class Writer(Protocol):
    """Where rows go: what is needed of `profile_writer.ProfileWriter`."""

    def append(self, rows: Iterable[IterationRow]) -> None:
        """Add rows to their table."""
        ...

    def has(self, kind: type[IterationRow], /, **columns: Value) -> bool:
        """Whether there is a row with these values in these columns."""
        ...

    def flush(self) -> None:
        """Write what is not written yet."""
        ...


# --- marks: when did which phase end? --------------------------------------------------------------------------------


class _WallEvent:
    """What `torch.cuda.Event` is, for a device that works while the host waits."""

    def record(self) -> None:
        self._at_s = time.perf_counter()

    def elapsed_time(self, later: _WallEvent) -> float:
        """Milliseconds."""
        return (later._at_s - self._at_s) * 1e3


class _Mark(NamedTuple):
    phase: str  # that ends here; "start" where a step begins
    event: Any
    stamp: Stamp | None


def _elapsed_s(a: _Mark, b: _Mark) -> float:
    """Time between two marks, once the device has passed both."""
    return float(a.event.elapsed_time(b.event)) * 1e-3


class _Timeline:
    """Marks on the device's own time line; nothing waits until they are read."""

    def __init__(self, device: torch.device, clock: ClockReader) -> None:
        self._clock = clock
        self._event: Callable[[], Any] = _WallEvent
        if device.type == "cuda":
            self._event = partial(torch.cuda.Event, enable_timing=True)
        self.stamped = False  # whether marks read the clock too
        self.steps: list[list[_Mark]] = []

    def mark(self, phase: str) -> None:
        if phase == "start":
            self.steps.append([])
        stamp = self._clock.stamp() if self.stamped else None
        event = self._event()
        event.record()
        self.steps[-1].append(_Mark(phase, event, stamp))

    def step_times_s(self) -> list[float]:
        """From each step's start to the next one's; of the last, to its end."""
        starts = [*(marks[0] for marks in self.steps), self.steps[-1][-1]]
        return [_elapsed_s(a, b) for a, b in pairwise(starts)]

    def phase_times_s(self) -> dict[str, float | None]:
        """Mean time of each phase in a step; None of those that were not told apart."""
        total_s: dict[str, float] = {}
        for a, b in self._spans():
            total_s[b.phase] = total_s.get(b.phase, 0.0) + _elapsed_s(a, b)
        return {phase: total_s[phase] / len(self.steps) if phase in total_s else None for phase in _PHASES}

    def clocks_Hz(self) -> dict[str, float | None]:
        """Mean true clock of each phase, weighted by time, and of whole steps."""
        spans = [(a, b) for a, b in self._spans() if a.stamp and b.stamp]
        means_Hz = self._clock.means_Hz([(a.stamp, b.stamp) for a, b in spans])
        read = [(b.phase, hz, _elapsed_s(a, b)) for (a, b), hz in zip(spans, means_Hz, strict=True) if hz is not None]
        by_phase = {phase: _weighted([(hz, s) for name, hz, s in read if name == phase]) for phase in _PHASES}
        return {**by_phase, "step": _weighted([(hz, s) for _, hz, s in read])}

    def _spans(self) -> Iterator[tuple[_Mark, _Mark]]:
        for marks in self.steps:
            yield from pairwise(marks)


def _weighted(values: list[tuple[float, float]]) -> float | None:
    weight = sum(w for _, w in values)
    return sum(v * w for v, w in values) / weight if weight > 0 else None


# --- one run ---------------------------------------------------------------------------------------------------------


def _ignore(_: str) -> None:
    return None


def measure_run(
    run: TrainingRun,
    device: Device,
    *,
    clock: ClockReader | None = None,
    warm_s: float = WARM_S,
    measured_s: float = MEASURED_S,
    build: Builder,
    peers: RankBarrier | None = None,
) -> IterationRow:
    """Train for a few seconds and measure: one row of the table `iterations`.

    Args:
        run: what to train.
        device: where.
        clock: a reader to share between runs; default: a new one.
        warm_s: time of steps before the measured ones, at least.
        measured_s: time of measured steps, at least.
        build: what makes this rank's part of the run; it has one.
        peers: the ranks of the run, all of which call this; default: this is the only one.

    Raises:
        InputError: the architecture or precision is not one that this backend runs.
        DeviceError: the loss is no number any more.
        torch.OutOfMemoryError: it does not fit.
    """
    clock = clock or ClockReader(device)
    free_memory(device.torch_device)
    row = _Measurement(run, device, clock, peers or Alone()).row(build, warm_s, measured_s)
    free_memory(device.torch_device)
    return row


class _Measurement:
    """One run on one device, with its peers."""

    def __init__(self, run: TrainingRun, device: Device, clock: ClockReader, peers: RankBarrier) -> None:
        self._run, self._device, self._clock, self._peers = run, device, clock, peers

    def row(self, build: Builder, warm_s: float, measured_s: float) -> IterationRow:
        base_B = _allocated_B(self._device.torch_device)
        trainer = build(self._run, self._device.torch_device)
        assert trainer is not None  # ranks that the plan does without measure nothing
        try:
            return self._row(trainer, base_B, warm_s, measured_s)
        finally:
            trainer.close()

    def _row(self, trainer: Run, base_B: int, warm_s: float, measured_s: float) -> IterationRow:
        run, device = self._run, self._device
        loss_first, step_s = self._warm_up(trainer, warm_s)
        if trainer.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.device)
        trainer.clear_expert_loads()
        steps = int(self._peers.agree(max(run.steps, math.ceil(measured_s / step_s))))
        timeline = _Timeline(trainer.device, self._clock)
        with EnergySampler(device, interval_s=_COUNTER_INTERVAL_S) as sampler:
            self._peers.barrier()
            begin_s = time.perf_counter()
            _run_steps(trainer, timeline, steps)
            reported_Hz, temperature_C = device.reported_clock_Hz(), device.temperature_C()  # while it still works
            trainer.wait()
            window = sampler.window(begin_s, time.perf_counter())
        wall_s, loss_last = time.time(), trainer.loss()
        if not math.isfinite(loss_last):
            raise DeviceError(f"{run.name}: the loss became {loss_last}; time and power of such a run mean nothing")
        steps_s = timeline.step_times_s()
        row = IterationRow(
            plan=run.name,
            plan_yaml=run.plan_yaml,
            rank=self._peers.rank,
            steps=len(steps_s),
            step_time_s=fmean(steps_s),
            step_time_std_s=stdev(steps_s) if len(steps_s) > 1 else None,
            parameters=trainer.parameters,
            loss_first=loss_first,
            loss_last=loss_last,
            expert_skew=expert_skew(trainer.expert_loads()),
            clock_reported_Hz=reported_Hz,
            temperature_C=temperature_C,
            wall_s=wall_s,
        )
        row = _with_phases(row, timeline, None if window is None else window.power_W)
        row = _with_memory(row, device, base_B)
        return replace(row, host_time_s=self._host_time_s(trainer))  # last: its steps count in nothing else

    def _warm_up(self, trainer: Run, seconds: float) -> tuple[float, float]:
        """Step until clock and temperature have settled: first loss, and time of a step."""
        begin_s, steps = time.perf_counter(), max(self._run.warmup, 1)
        trainer.step(_ignore)
        loss_first = trainer.loss()
        while True:
            chunk_s = time.perf_counter()
            for _ in range(steps):
                trainer.step(_ignore)
            trainer.wait()
            now_s = time.perf_counter()
            if self._peers.agree(now_s - begin_s) >= seconds:
                return loss_first, (now_s - chunk_s) / steps

    def _host_time_s(self, trainer: Run) -> float:
        """Time to queue a step on an idle device: the median of a few."""
        times_s = []
        for _ in range(_HOST_STEPS):
            trainer.wait()
            self._peers.barrier()
            begin_s = time.perf_counter()
            trainer.step(_ignore)
            times_s.append(time.perf_counter() - begin_s)
        trainer.wait()
        return median(times_s)


def _run_steps(trainer: Run, timeline: _Timeline, steps: int) -> None:
    """The measured steps; clocks are read in at most `_STAMPS / marks` of them, evenly spread."""
    every = max(1, math.ceil(steps * trainer.marks / _STAMPS))
    for i in range(steps):
        timeline.stamped = i % every == 0
        trainer.step(timeline.mark)


def _with_phases(row: IterationRow, timeline: _Timeline, power_W: float | None) -> IterationRow:
    phases_s, clocks_Hz = timeline.phase_times_s(), timeline.clocks_Hz()
    return replace(
        row,
        forward_time_s=phases_s["forward"],
        backward_time_s=phases_s["backward"],
        optimizer_time_s=phases_s["optimizer"],
        forward_clock_Hz=clocks_Hz["forward"],
        backward_clock_Hz=clocks_Hz["backward"],
        optimizer_clock_Hz=clocks_Hz["optimizer"],
        clock_Hz=clocks_Hz["step"],
        energy_J=None if power_W is None else power_W * row.step_time_s,
        power_W=power_W,
    )


def _with_memory(row: IterationRow, device: Device, base_B: int) -> IterationRow:
    used_B = device.used_memory_B()
    on_gpu = device.torch_device.type == "cuda"
    where = device.torch_device
    return replace(
        row,
        peak_allocated_B=torch.cuda.max_memory_allocated(where) - base_B if on_gpu else None,
        peak_reserved_B=torch.cuda.max_memory_reserved(where) if on_gpu else None,
        device_used_B=None if used_B is None else int(used_B),
    )


def _allocated_B(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def expert_skew(loads: Sequence[Tensor]) -> float | None:
    """Rows of the busiest expert over the mean, averaged over layers and passes; None without experts."""
    skews = [load.max() * load.numel() / load.sum() for load in loads]
    return float(torch.stack(skews).double().mean()) if skews else None


# --- plans -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FailedRun:
    """A plan that could not be measured, and why."""

    plan: str
    reason: str


def training_run(plan: Plan, path: Path) -> TrainingRun:
    """The run that a plan file asks for.

    Args:
        plan: that the file holds, as `read_plan` gives it.
        path: of the file.

    Raises:
        InputError: the plan asks for what is not run on one GPU.
        InfeasiblePlanError: the sequence is longer than the architecture's learned positions.
    """
    _check_plan(plan, path)
    architecture = architecture_in(plan, Path())  # `read_plan` has found the file that it names
    check_runs(plan, architecture)
    name = plan.name if plan.name != "plan" else path.stem
    return TrainingRun.of(plan, architecture, name=name, plan_yaml=path.read_text(encoding="utf-8"))


def _check_plan(plan: Plan, path: Path) -> None:
    if plan.backend not in BACKENDS:
        raise InputError(f"{path}: backend: found {plan.backend!r}; allowed here: {', '.join(BACKENDS)}")
    if plan.cluster.gpus != 1:
        raise InputError(f"{path}: cluster.gpus: found {plan.cluster.gpus}; allowed here: 1 (no collectives are run)")
    if plan.clock_MHz is not None or plan.power_cap_W is not None:
        raise InputError(f"{path}: clock_MHz, power_cap_W: allowed here: null; no setting of the GPU is changed")


def measure_plans(
    paths: Iterable[Path],
    device: Device,
    writer: Writer,
    *,
    report: Callable[[str], None] = _ignore,
    warm_s: float = WARM_S,
    measured_s: float = MEASURED_S,
) -> list[FailedRun]:
    """Measure plan files in order, writing each row as it comes; one that fails does not stop the others.

    Args:
        paths: plan files.
        device: where to train.
        writer: takes the rows; plans whose row it already has are left out.
        report: told in a sentence how each went.
        warm_s: see `measure_run`.
        measured_s: see `measure_run`.

    Returns:
        The plans that failed: refused, or out of memory.
    """
    failed: list[FailedRun] = []
    clock = ClockReader(device)
    for path in paths:
        try:
            plan = read_plan(path)
            run = training_run(plan, path)
            if writer.has(IterationRow, plan=run.name, rank=0):
                continue
            build = builder(plan.backend)
            row = measure_run(run, device, clock=clock, warm_s=warm_s, measured_s=measured_s, build=build)
        except (MoeModelError, torch.OutOfMemoryError) as error:
            failed.append(FailedRun(plan=path.stem, reason=_reason(error)))
            report(f"{path.stem}: {failed[-1].reason}")
        else:
            writer.append([row])
            writer.flush()
            report(_summary(row))
        free_memory(device.torch_device)  # after an error too, whose frames held the model until here
    return failed


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return f"does not fit in the GPU's memory: {str(error).splitlines()[0]}"
    return str(error)


def _summary(row: IterationRow) -> str:
    power = "" if row.power_W is None else f", {row.power_W:.0f} W, {row.energy_J:.1f} J"
    return f"{row.plan}: {row.step_time_s * 1e3:.1f} ms a step{power} ({row.steps} steps)"
