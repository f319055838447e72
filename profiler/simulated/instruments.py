"""The simulated GPU behind the profiler's seams: device, timer, stream, cases, heavy load, sampler."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qsl

import torch

from moemodel.model.core.errors import DeviceError
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.records.profile import DeviceInfo, HostRow
from moemodel.profiler.clocks.settings import SettingsDriver
from moemodel.profiler.devices.address import Address
from moemodel.profiler.devices.base import ACTIVITIES, Activity, ActivityMeter, LinkMeter, NoActivity, NoLinks
from moemodel.profiler.devices.names import resolve
from moemodel.profiler.host_overhead.single_gpu import KINDS
from moemodel.profiler.instruments.energy_sampler import EnergySampler
from moemodel.profiler.microbench.budget import MeasurementBudget
from moemodel.profiler.microbench.cases import Case
from moemodel.profiler.microbench.load_generator import BackgroundLoad
from moemodel.profiler.microbench.points import Point, Sizes
from moemodel.profiler.microbench.stream_timer import Sample, TimedRegion
from moemodel.profiler.simulated.chip import CHIPS, SimulatedChip
from moemodel.profiler.simulated.faults import Faults, parse_faults
from moemodel.profiler.simulated.gpu import TimelineMark, Totals, VirtualGpu
from moemodel.profiler.simulated.kernels import Kernel, kernel
from moemodel.profiler.simulated.noise import Flicker
from moemodel.profiler.simulated.state import LOCKING, OPEN_STORED, State, StoredSettings

_OPTIONS = ("seed", "fail", "state", "locking", "busy", "pace")
_PACE_PERIOD_S = 0.05  # of virtual time, after which `pace` waits as long in real time
_LANES = 128  # of an SM, whatever the chip; as `model.device.roofline`
_HEAVY = Point(kind=Kind.GEMM, direction=Pass.FORWARD, sizes=Sizes(m=8192, n=8192, k=8192))
_HOST_NOISE = 0.03  # relative; made up
_HOST_ROW_S = 0.3  # that a row of table `host` takes to measure
# Host time of the training model's blocks, forward, backward and step, microseconds: made up, like an H100's.
_HOST_US: dict[str, tuple[float, float, float]] = {
    "dense_layer": (190.0, 260.0, 45.0),
    "dense_layer_gated": (215.0, 290.0, 40.0),
    "dense_layer_gated_qk_norm": (250.0, 345.0, 48.0),
    "moe_layer": (420.0, 530.0, 42.0),
    "moe_layer_qk_norm": (455.0, 585.0, 50.0),
}
_ENDS_US = (105.0, 130.0)  # embedding, head and loss, forward and backward; made up too
_STEP_US = 480.0  # of an optimizer's step beside its layers; made up too


class SimulatedDevice:
    """A `Device` that is not there.

    Args:
        gpu: what it does.
        busy: another process computes on it.
        state_file: where its settings are; None if they die with this process.
    """

    def __init__(self, gpu: VirtualGpu, *, busy: bool = False, state_file: Path | None = None) -> None:
        self.gpu = gpu
        self.busy = busy
        self.state_file = state_file
        self.torch_device = torch.device("meta")
        d = gpu.chip.gpu
        limits_W = (d.power_limit_min_W, d.power_limit_max_W)
        self.info = DeviceInfo(
            name=f"simulated {d.product}",
            vendor="simulated",
            uuid=f"SIM-{d.name}",
            memory_B=d.memory_B or 0,
            multiprocessors=d.multiprocessors,
            power_limit_W=gpu.settings.state.power_limit_W or d.power_limit_W,
            power_limit_range_W=None if limits_W[0] is None or limits_W[1] is None else (limits_W[0], limits_W[1]),
            clock_max_Hz=d.clock_max_Hz,
            clock_min_Hz=d.clock_min_Hz,
            slowdown_temperature_C=d.slowdown_C,
            driver="simulated",
        )

    def energy_J(self) -> float | None:
        return self._read("energy", private=True)

    def power_W(self) -> float | None:
        return self._read("power", private=True)

    def reported_clock_Hz(self) -> float | None:
        return self._read("clock")

    def temperature_C(self) -> float | None:
        return self._read("temperature")

    def memory_temperature_C(self) -> float | None:
        return None

    def used_memory_B(self) -> float | None:
        return None

    def activity(self) -> ActivityMeter:
        readable = self.gpu.chip.sensors.activity and not self.gpu.faults.no_permission
        return _Activity(self.gpu) if readable else NoActivity()

    def link_traffic(self) -> LinkMeter:
        return NoLinks()

    def close(self) -> None:
        return None

    def _read(self, sensor: str, *, private: bool = False) -> float | None:
        if self.gpu.lost or (private and self.gpu.faults.no_permission):
            return None
        return self.gpu.read(sensor)


class SimulatedSettings:
    """What may be set on it (`clocks.device_settings.DeviceSettings`)."""

    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device
        self.driver: SettingsDriver = device.gpu.settings
        file = device.state_file
        self.address = None if file is None else Address(opener=OPEN_STORED, argument=str(file.absolute()))

    def clocks_Hz(self) -> list[float]:
        chip = self._device.gpu.chip
        steps = round((chip.clock_max_Hz - chip.clock_min_Hz) / chip.clock_step_Hz)
        return [chip.clock_min_Hz + step * chip.clock_step_Hz for step in range(steps + 1)]

    def obstacle(self) -> str | None:
        return self.company()

    def company(self) -> str | None:
        return "another process computes on this GPU (simulated)" if self._device.busy else None

    def missing_privilege(self) -> str | None:
        return None


class _Activity:
    """Shares of the units' peak between two instants."""

    def __init__(self, gpu: VirtualGpu) -> None:
        self._gpu = gpu
        self._from = gpu.totals.copy()

    def begin(self) -> None:
        self._from = self._gpu.totals.copy()

    def end(self) -> Activity:
        gpu = self._gpu
        if gpu.lost:
            return dict.fromkeys(ACTIVITIES)
        a, b, chip = self._from, gpu.totals, gpu.chip
        seconds = max(b.time_s - a.time_s, 1e-9)
        cycles = seconds * chip.multiprocessors * gpu.set_Hz

        def share(used: float) -> float:
            return round(min(1.0, max(0.0, used)), 4)

        return {
            "sm_activity": share(_since(a, b, "busy_s") / seconds),
            "sm_occupancy": None,
            "tensor_activity": share(_since(a, b, "flops") / (cycles * chip.flops_per_cycle)),
            "fp32_activity": share(_since(a, b, "vector_ops") / (cycles * _LANES)),
            "dram_activity": share(_since(a, b, "bytes_B") / (seconds * chip.bandwidth_Bps)),
        }


def _since(a: Totals, b: Totals, name: str) -> float:
    return float(getattr(b, name) - getattr(a, name))


class VirtualTimer:
    """The timeline's time; `wall_s` goes on from when the device was opened."""

    def __init__(self, gpu: VirtualGpu) -> None:
        self._gpu = gpu
        self._opened_s = time.time()

    def now_s(self) -> float:
        return self._gpu.now_s

    def wall_s(self) -> float:
        return self._opened_s + self._gpu.now_s

    def sleep(self, seconds: float) -> None:
        self._gpu.sleep(seconds)

    def pause(self, seconds: float) -> None:
        self._gpu.sleep(seconds)


@dataclass(frozen=True)
class SimulatedCase(Case):
    """A case whose calls the timeline takes many at a time."""

    gpu: VirtualGpu
    kernel: Kernel

    def run(self, count: int) -> None:
        self.gpu.launch(self.kernel, count)


@dataclass(frozen=True, kw_only=True)
class _SimulatedRegion(TimedRegion):
    marks: tuple[TimelineMark, TimelineMark]


class SimulatedStream:
    """The queue of a simulated GPU."""

    def __init__(self, gpu: VirtualGpu, clock: SimulatedClock) -> None:
        self._gpu = gpu
        self._clock = clock

    def queue(self, case: Case, calls: int, spin_s: float = 0.0) -> TimedRegion:
        gpu = self._gpu
        if spin_s > 0:
            gpu.hold(spin_s)
        before = gpu.mark()
        begun_s = gpu.now_s
        case.run(calls)
        host_s = gpu.now_s - begun_s
        return _SimulatedRegion(calls=calls, host_time_s=host_s / calls, marks=(before, gpu.mark()))

    def read(self, regions: Sequence[TimedRegion]) -> list[Sample]:
        self.synchronize()
        return [self._sample(region) for region in regions]

    def wait(self, region: TimedRegion) -> None:
        self._gpu.wait(_marks(region)[1])

    def synchronize(self) -> None:
        self._gpu.synchronize()

    def _sample(self, region: TimedRegion) -> Sample:
        gpu = self._gpu
        a, b = _marks(region)
        return Sample(
            calls=region.calls,
            time_s=(b.time_s - a.time_s) / region.calls * (1 + gpu.errors.time.at(b.time_s)),
            host_time_s=region.host_time_s,
            clock_Hz=self._clock.mean_Hz(a, b),
        )


def _marks(region: TimedRegion) -> tuple[TimelineMark, TimelineMark]:
    if not isinstance(region, _SimulatedRegion):
        raise TypeError("a region of another stream")
    return region.marks


class SimulatedClock:
    """The cycle counter (`microbench.harness.Clock`); always readable."""

    note: str | None = None

    def __init__(self, gpu: VirtualGpu) -> None:
        self._gpu = gpu

    def stamp(self) -> TimelineMark:
        return self._gpu.mark()

    def mean_Hz(self, a: TimelineMark, b: TimelineMark) -> float | None:
        if not (a.reached and b.reached and b.time_s > a.time_s):
            return None
        return (b.cycles - a.cycles) / (b.time_s - a.time_s) * (1 + self._gpu.errors.clock.at(b.time_s))


class SimulatedInstruments:
    """What the harness measures a simulated GPU with (`microbench.harness.Instruments`)."""

    def __init__(self, gpu: VirtualGpu) -> None:
        self._kernel = cache(partial(kernel, gpu.chip))  # one object a point: the timeline knows it again
        self._gpu = gpu
        self.timer = VirtualTimer(gpu)
        self.clock = SimulatedClock(gpu)
        self.stream = SimulatedStream(gpu, self.clock)
        factor = gpu.chip.electrics.heavy_factor
        self.heavy = BackgroundLoad("simulated 8192^3", self._case(_HEAVY, factor), self.stream)

    def build(self, point: Point) -> Case:
        return self._case(point, 1.0)

    def make_room(self) -> None:
        return None

    def _case(self, point: Point, factor: float) -> SimulatedCase:
        one = self._kernel(point, factor)
        return SimulatedCase(point, (partial(self._gpu.launch, one),), self._gpu, one)


class VirtualSampler(EnergySampler):
    """Polls at its interval of virtual time; without a thread, so that every run is the same."""

    def __init__(self, gpu: VirtualGpu, device: SimulatedDevice, timer: VirtualTimer) -> None:
        super().__init__(device, now_s=timer.now_s, wall_s=timer.wall_s)
        self._gpu = gpu
        self._end: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        self._end = self._gpu.every(self.interval_s, self.read)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._end is not None:
            self._end()


class SimulatedPlatform:
    """How a simulated GPU is profiled (`platforms.base.Platform`)."""

    trains = False
    links = False

    def __init__(self, device: SimulatedDevice) -> None:
        self._device = device
        self.timer = VirtualTimer(device.gpu)

    def sampler(self) -> EnergySampler:
        return VirtualSampler(self._device.gpu, self._device, self.timer)

    def instruments(self, budget: MeasurementBudget, seed: int) -> SimulatedInstruments:
        del budget, seed  # there are no operands
        return SimulatedInstruments(self._device.gpu)

    def settings(self) -> SimulatedSettings:
        return SimulatedSettings(self._device)

    def topology(self, devices: int) -> None:
        del devices

    def host_rows(self, repeats: int) -> list[HostRow]:
        """Rows of table `host`, drawn about made-up times."""
        del repeats
        rows: list[tuple[str, str, str, float]] = []
        for kind in KINDS:
            forward, backward, step = _HOST_US[kind.block]
            rows += [(kind.block, "forward", kind.detail, forward), (kind.block, "backward", kind.detail, backward)]
            rows.append(("optimizer_layer", "step", kind.detail, step))
        detail = KINDS[1].detail
        rows += [("head_and_loss", way, detail, us) for way, us in zip(("forward", "backward"), _ENDS_US, strict=True)]
        rows.append(("step", "step", "bf16-mixed", _STEP_US))
        off = Flicker(self._device.gpu.noise, _HOST_NOISE)
        return [
            HostRow(
                block=block,
                direction=direction,
                detail=detail,
                host_time_s=us * 1e-6 * (1 + off.at(index * _HOST_ROW_S)),
                wall_s=self.timer.wall_s(),
            )
            for index, (block, direction, detail, us) in enumerate(rows)
        ]


def open_simulated(gpu: str, known: Mapping[str, str]) -> SimulatedDevice:
    """The device called `sim:NAME`, or `sim:NAME?seed=1&fail=FAULT,FAULT` (see `faults`), and these options:

    state=FILE: its settings are in this file, and outlive the process. locking=refused (by the driver) or unsupported.
    busy=1: another process computes on it. pace=X: a virtual second takes X real ones at least.

    Args:
        gpu: as above.
        known: every alias -> the GPU's name.

    Raises:
        DeviceError: no such GPU can be simulated, or an option is not one.
    """
    wanted = resolve(gpu, known)
    if wanted not in CHIPS:
        raise DeviceError(f"--gpu {gpu}: that GPU is not simulated; there are: {', '.join(CHIPS)}")
    options = dict(parse_qsl(gpu.partition("?")[2], keep_blank_values=True))
    unknown = set(options) - set(_OPTIONS)
    if unknown:
        raise DeviceError(f"--gpu {gpu}: found option {min(unknown)!r}; allowed: {', '.join(_OPTIONS)}")
    seed, busy, pace = options.get("seed", "0"), options.get("busy", "0"), options.get("pace", "0")
    if not seed.isdecimal():
        raise DeviceError(f"--gpu {gpu}: seed: found {seed!r}; allowed: a whole number")
    if busy not in ("0", "1"):
        raise DeviceError(f"--gpu {gpu}: busy: found {busy!r}; allowed: 0, 1")
    if not re.fullmatch(r"\d+(\.\d+)?", pace):
        raise DeviceError(f"--gpu {gpu}: pace: found {pace!r}; allowed: a number of seconds")
    faults = parse_faults([f for f in options.get("fail", "").split(",") if f], gpu)
    chip, file = CHIPS[wanted](), Path(options["state"]) if "state" in options else None
    virtual = VirtualGpu(chip, int(seed), faults, _settings(gpu, chip, faults, options.get("locking", "allowed"), file))
    if float(pace) > 0:
        virtual.every(_PACE_PERIOD_S, lambda: time.sleep(_PACE_PERIOD_S * float(pace)))
    return SimulatedDevice(virtual, busy=busy == "1", state_file=file)


def _settings(gpu: str, chip: SimulatedChip, faults: Faults, locking: str, file: Path | None) -> StoredSettings:
    """The settings that a simulated GPU is found with."""
    if locking not in LOCKING:
        raise DeviceError(f"--gpu {gpu}: locking: found {locking!r}; allowed: {', '.join(LOCKING)}")
    if file is not None and not file.absolute().parent.is_dir():
        raise DeviceError(f"--gpu {gpu}: state: {file.absolute().parent}: no such folder; make it first")
    settings = StoredSettings(file, locking, State(power_limit_W=chip.cap_W))
    if faults.failing_unlocks:
        settings.fail_to_unlock(faults.failing_unlocks)
    return settings
