"""The measuring harness: a device with its stream, clock, meters, operands and heavy load, as sections need them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from moemodel.model.core.errors import DeviceError
from moemodel.model.records.profile import DeviceState
from moemodel.profiler.devices.base import Device
from moemodel.profiler.devices.memory import make_room
from moemodel.profiler.instruments.cycle_counter import ClockReader
from moemodel.profiler.instruments.energy_sampler import EnergySampler
from moemodel.profiler.microbench.budget import MeasurementBudget
from moemodel.profiler.microbench.cases import Case, build
from moemodel.profiler.microbench.load_generator import BackgroundLoad, background_load
from moemodel.profiler.microbench.operands import Pool
from moemodel.profiler.microbench.points import Point
from moemodel.profiler.microbench.skips import Skip
from moemodel.profiler.microbench.stream_timer import HostTimer, Stream, StreamTimer, open_stream

_SPIN_MARGIN = 1.5  # of the host time that a spin has to cover
_SPIN_EXTRA_S = 150e-6  # stamps and events
_SPIN_MOST_S = 20e-3
_LAUNCH_S = 3e-6  # assumed: host time of a launch, at least; bounds the number of launches in a region
_LAUNCHES_MOST = 800  # a stream holds about 1000 (forums.developer.nvidia.com/t/68937); past that the host waits for it
_CALLS_MOST = 64  # of a stretch; assumed: enough for a mean, and their host time has to be covered


@dataclass(frozen=True, kw_only=True)
class Cost:
    """About what one call takes on the device and on the host."""

    time_s: float
    host_s: float

    def spin_s(self, calls: int) -> float:
        """How long to hold the device back so that the host queues that many calls first."""
        return min(_SPIN_MOST_S, _SPIN_MARGIN * calls * self.host_s + _SPIN_EXTRA_S)

    def calls_in(self, seconds: float, samples: int = 1) -> int:
        """Calls that last about that long, as far as `samples` regions of them fit into the launch queue."""
        launches = max(1.0, self.host_s / _LAUNCH_S)
        room = _LAUNCHES_MOST / (samples * launches)
        return max(1, min(_CALLS_MOST, math.floor(room), math.ceil(seconds / self.time_s)))


class Clock(Protocol):
    """A reader of the true clock (`cycle_counter.ClockReader`)."""

    note: str | None  # why there are no true clocks; None where there are

    def stamp(self) -> Any:
        """Queue a stamp."""
        ...

    def mean_Hz(self, a: Any, b: Any) -> float | None:
        """Mean clock between two stamps, after the work between them is done."""
        ...


class Instruments(Protocol):
    """What a kind of device is measured with: the seam between the sections and the hardware."""

    @property
    def timer(self) -> StreamTimer: ...
    @property
    def stream(self) -> Stream: ...
    @property
    def heavy(self) -> BackgroundLoad: ...
    @property
    def clock(self) -> Clock: ...

    def build(self, point: Point) -> Case:
        """A point's case, with caches cold where that fits."""
        ...

    def make_room(self) -> None:
        """Free what can be freed."""
        ...


class TorchInstruments:
    """Those of a device that torch runs on.

    Args:
        device: what is measured.
        budget: how long to measure.
        seed: of operands.
    """

    def __init__(self, device: Device, budget: MeasurementBudget, seed: int) -> None:
        self._torch_device = device.torch_device
        self._cold_B = budget.cold_B
        reader = ClockReader(device)
        self.timer: StreamTimer = HostTimer()
        self.clock: Clock = reader
        self.stream: Stream = open_stream(device, reader)
        self._pool = Pool(device.torch_device, budget.pool_elements, seed)
        self.heavy = background_load(device.torch_device, self.stream)

    def build(self, point: Point) -> Case:
        try:
            return build(point, self._pool, self._cold_B)
        except torch.OutOfMemoryError:
            pass  # outside the handler, whose traceback holds the operands made so far
        self.make_room()
        return build(point, self._pool, self._cold_B)

    def make_room(self) -> None:
        make_room(self._torch_device)


class Harness:
    """Everything that a section measures with.

    Args:
        device: what is measured.
        budget: how long to measure.
        seed: of operands.
        sampler: running.
        instruments: instead of torch's.
    """

    def __init__(
        self,
        device: Device,
        budget: MeasurementBudget,
        seed: int,
        sampler: EnergySampler,
        instruments: Instruments | None = None,
    ) -> None:
        self.device = device
        self.budget = budget
        self.sampler = sampler
        self._instruments = instruments or TorchInstruments(device, budget, seed)
        self.timer = self._instruments.timer
        self.stream = self._instruments.stream
        self.heavy = self._instruments.heavy
        self.clock = self._instruments.clock

    def build(self, point: Point) -> Case:
        """A point's case, with caches cold where that fits."""
        return self._instruments.build(point)

    def warm_up(self, case: Case) -> Cost:
        """Run every operand set once, then time two calls."""
        begun_s = self.timer.now_s()
        case.run(len(case.calls))
        first_s = (self.timer.now_s() - begun_s) / len(case.calls)
        guess = Cost(time_s=first_s, host_s=first_s)
        sample = self.stream.read([self.stream.queue(case, 2, guess.spin_s(2))])[0]
        return Cost(time_s=max(sample.time_s, 1e-7), host_s=sample.host_time_s or 0.0)  # to divide by

    def state(self) -> DeviceState:
        """What the device is like now; the true clock is for the caller to add."""
        return DeviceState(
            clock_reported_Hz=self.device.reported_clock_Hz(),
            temperature_C=self.device.temperature_C(),
            wall_s=self.timer.wall_s(),
        )

    def skip(self, what: str, error: Exception) -> Skip:
        """Note what torch could not run, and make room again.

        Raises:
            DeviceError: the error left the device unusable.
        """
        text = str(error).strip()
        reason = (text.splitlines()[0] if text else type(error).__name__)[:200]
        try:
            self.stream.synchronize()
        except RuntimeError:
            raise DeviceError(
                f"{what}: {reason}; the GPU can't be used by this process any more, run again to go on"
            ) from error
        self._instruments.make_room()
        return Skip(what=what, reason=reason)
