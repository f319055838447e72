"""One rank of a training run: steps under the meter, and what is known of each of them once all are done.

Nothing waits for the device while it trains, but once in `_FLUSH` steps, when what lies on it is copied: losses and
routing of single steps are kept there, the true clock is stamped on the device's time line, and the meter reads events
as they come.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from moemodel.model.core.files import write_atomic
from moemodel.model.records.run import (
    PhaseEnergy,
    RankResult,
    RoutingRecord,
    StepRecord,
    rank_file,
    routing_file,
    steps_file,
)
from moemodel.profiler.backends.base import Run, StepStatistics
from moemodel.profiler.devices.base import Device, MeteredDevice
from moemodel.profiler.instruments.cycle_counter import ClockReader, Stamp
from moemodel.profiler.meter.device_meter import FinishedStep
from moemodel.profiler.meter.energy_meter import Meter, Observer
from moemodel.profiler.meter.summary import DeviceSummary, Summary

_FLUSH = 256  # steps whose statistics lie on the device: of 24 layers with 128 experts, 6 MB
_STAMPS = 1024  # of the clock in a run, of the 2048 that the reader keeps
_ENTROPIES = 16  # steps of which one records entropies, which costs routers a softmax and a sum
_LOOK_S = 1.0  # between readings of temperature and memory, which take the host tens of microseconds

Progress = Callable[[int], None]  # told the steps that are queued


@dataclass(kw_only=True)
class _Step:
    """What is kept of one step until the end."""

    stamps: tuple[Stamp | None, Stamp | None] = (None, None)
    temperature_C: float | None = None
    allocated_B: int | None = None
    reserved_B: int | None = None
    task_loss: float | None = None
    router_loss: float | None = None
    routing: list[tuple[int, list[int], int, float | None]] = field(default_factory=list)


class _Finished:
    """Steps as the meter finishes them: an observer of it."""

    def __init__(self) -> None:
        self.rows: dict[int, FinishedStep] = {}

    def begin_session(self, devices: Sequence[MeteredDevice]) -> None:
        del devices

    def begin_step(self, index: int) -> None:
        del index

    def end_step(self) -> None:
        return None

    def begin_phase(self, name: str) -> None:
        del name

    def end_phase(self) -> None:
        return None

    def drop(self) -> None:
        return None

    def add_steps(self, rows: Sequence[FinishedStep]) -> None:
        self.rows |= {row.step.index: row for row in rows}

    def end_session(self) -> None:
        return None

    def close(self, summary: Summary) -> Sequence[str]:
        del summary
        return ()


def phases_of(run: Run, micro_batches: int) -> list[str]:
    """The phases of a step, in their order: what `Run.step` tells the ends of."""
    if run.marks == 2:  # of a program of its own, whose log tells no phases
        return ["step"]
    if run.marks == 3:
        return ["pipeline", "optimizer"]
    return ["forward", "backward"] * micro_batches + ["optimizer"]


class Recorder:
    """Trains and keeps what is known of every measured step.

    Args:
        run: this rank's part.
        device: that it runs on.
        folder: of the run.
        rank: this one.
        micro_batches, samples, tokens: of a step on this rank: passes, sequences and tokens.
        base_B: that torch's allocator held before the run was built.
    """

    def __init__(
        self,
        run: Run,
        device: Device,
        folder: Path,
        *,
        rank: int,
        micro_batches: int,
        samples: int,
        tokens: int,
        base_B: int,
    ) -> None:
        self._run, self._device, self._folder, self._rank = run, device, folder, rank
        self._phases = phases_of(run, micro_batches)
        self._micro_batches, self._samples, self._tokens = micro_batches, samples, tokens
        self._clock = ClockReader(device)
        self._finished = _Finished()
        self._steps: list[_Step] = []
        self._waiting: list[StepStatistics] = []
        self._looked_s, self._base_B = 0.0, base_B

    def train(
        self, steps: int, *, ready: Callable[[], None], progress: Progress, observers: Sequence[Observer] = ()
    ) -> RankResult:
        """Train for so many steps and write what was measured.

        Args:
            steps: measured.
            ready: returns once all ranks are about to begin.
            progress: told how far it is.
            observers: other instruments beside the meter.
        """
        instruments = (self._finished, *observers)
        meter = Meter(self._folder / "energy", devices=[self._device], observers=instruments)
        every = max(1, -(-2 * steps // _STAMPS))
        with meter:
            ready()
            for number in range(steps):
                self._run.record_entropies(number % _ENTROPIES == 0)
                self._step(meter, stamped=number % every == 0)
                if (number + 1) % _FLUSH == 0:
                    self._flush()
                progress(number + 1)
            self._run.wait()
        self._flush()
        return self._write(meter.summary())

    # ---- a step ---------------------------------------------------------------------------------------------------

    def _step(self, meter: Meter, *, stamped: bool) -> None:
        step = _Step()
        phases = iter(self._phases)
        meter.begin_step()
        first = self._clock.stamp() if stamped else None

        def mark(ended: str) -> None:
            if ended != "start":
                meter.end_phase()
            following = next(phases, None)
            if following is not None:
                meter.begin_phase(following)

        self._run.step(mark)
        step.stamps = (first, self._clock.stamp() if stamped else None)
        for _ in range(self._micro_batches):
            meter.add_batch(samples=self._samples // self._micro_batches, tokens=self._tokens // self._micro_batches)
        meter.end_step()
        self._waiting.append(self._run.statistics())
        self._look(step)
        self._steps.append(step)

    def _look(self, step: _Step) -> None:
        """Temperature and memory, now and then; between, as they were."""
        now_s = time.monotonic()
        if self._steps and now_s - self._looked_s < _LOOK_S:
            last = self._steps[-1]
            step.temperature_C, step.allocated_B, step.reserved_B = (
                last.temperature_C,
                last.allocated_B,
                last.reserved_B,
            )
            return
        self._looked_s = now_s
        step.temperature_C = self._device.temperature_C()
        step.allocated_B, step.reserved_B = self._peaks_B()

    def _peaks_B(self) -> tuple[int | None, int | None]:
        device = self._device.torch_device
        if device.type != "cuda" or getattr(self._run, "elsewhere", False):  # of another process none is known
            return None, None
        return torch.cuda.max_memory_allocated(device) - self._base_B, torch.cuda.max_memory_reserved(device)

    def _flush(self) -> None:
        """Copy what lies on the device of the last steps."""
        steps = self._steps[len(self._steps) - len(self._waiting) :]
        for step, found in zip(steps, self._waiting, strict=True):
            step.task_loss = None if found.task_loss is None else float(found.task_loss)
            step.router_loss = None if found.router_loss is None else float(found.router_loss)
            step.routing = [
                (each.layer, [int(n) for n in each.rows_E.tolist()], int(each.dropped), _number(each.entropy))
                for each in found.routing
            ]
        self._waiting = []

    # ---- at the end -----------------------------------------------------------------------------------------------

    def _write(self, summary: Summary) -> RankResult:
        clocks_Hz = self._clock.means_Hz([step.stamps for step in self._steps])
        rows = [self._row(i, step, clocks_Hz[i]) for i, step in enumerate(self._steps)]
        _write_lines(self._folder / steps_file(self._rank), rows)
        _write_lines(
            self._folder / routing_file(self._rank),
            [
                RoutingRecord(step=i, layer=layer, rows_E=rows_E, dropped=dropped, entropy=entropy)
                for i, step in enumerate(self._steps)
                for layer, rows_E, dropped, entropy in step.routing
            ],
        )
        result = self._result(rows, summary)
        write_atomic(self._folder / rank_file(self._rank), result.model_dump_json(indent=1))
        return result

    def _row(self, number: int, step: _Step, clock_Hz: float | None) -> StepRecord:
        finished = self._finished.rows.get(number)
        phases_s = {} if finished is None else finished.step.phases_s
        return StepRecord(
            step=number,
            time_s=None if finished is None else finished.step.end_s - finished.step.begin_s,
            forward_s=phases_s.get("forward"),
            backward_s=phases_s.get("backward"),
            optimizer_s=phases_s.get("optimizer"),
            energy_J=None if finished is None else finished.energy_J,
            clock_Hz=clock_Hz,
            temperature_C=step.temperature_C,
            allocated_B=step.allocated_B,
            reserved_B=step.reserved_B,
            task_loss=step.task_loss,
            router_loss=step.router_loss,
        )

    def _result(self, rows: Sequence[StepRecord], summary: Summary) -> RankResult:
        device = summary.devices[0] if summary.devices else None
        power_W = None if device is None else device.power_W
        times_s = [row.time_s for row in rows if row.time_s is not None]
        allocated_B, reserved_B = self._peaks_B()
        return RankResult(
            rank=self._rank,
            duration_s=sum(times_s) if len(times_s) == len(rows) else None,
            energy_J=None if power_W is None or len(times_s) < len(rows) else power_W * sum(times_s),
            power_W=power_W,
            clock_Hz=_mean(row.clock_Hz for row in rows),
            temperature_C=_mean(row.temperature_C for row in rows),
            peak_allocated_B=allocated_B,
            peak_reserved_B=reserved_B,
            parameters=self._run.parameters,
            phases={} if device is None else _phases(device),
            notes=[*summary.notes, *(device.notes if device is not None else ())],
        )


def _number(value: torch.Tensor) -> float | None:
    """None where it is none."""
    number = float(value)
    return number if math.isfinite(number) else None


def _phases(device: DeviceSummary) -> dict[str, PhaseEnergy]:
    return {
        name: PhaseEnergy(
            time_s=phase.time_s, energy_J=phase.energy_J, energy_standard_error_J=phase.energy_standard_error_J
        )
        for name, phase in device.phases.items()
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _write_lines(file: Path, rows: Sequence[StepRecord] | Sequence[RoutingRecord]) -> None:
    write_atomic(file, "".join(row.model_dump_json() + "\n" for row in rows))
