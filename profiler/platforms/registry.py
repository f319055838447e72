"""How a kind of device is profiled: its time, sampler, instruments, host lane. The one place that tells kinds apart."""

from __future__ import annotations

from typing import Protocol

from moemodel.model.records.profile import HostRow
from moemodel.profiler.devices.base import Device
from moemodel.profiler.instruments.energy_sampler import EnergySampler
from moemodel.profiler.microbench.budget import Effort
from moemodel.profiler.microbench.harness import Instruments, TorchInstruments
from moemodel.profiler.microbench.stream_timer import HostTimer, Timer


class Platform(Protocol):
    """What a run needs beside the device."""

    trains: bool  # whole training steps can be run on it

    @property
    def timer(self) -> Timer: ...
    def sampler(self) -> EnergySampler: ...
    def instruments(self, effort: Effort, seed: int) -> Instruments: ...
    def host_rows(self, repeats: int) -> list[HostRow]:
        """How long the host needs for each block."""
        ...


class TorchPlatform:
    """A device that torch runs on, in real time."""

    trains = True

    def __init__(self, device: Device) -> None:
        self._device = device
        self.timer = HostTimer()

    def sampler(self) -> EnergySampler:
        return EnergySampler(self._device)

    def instruments(self, effort: Effort, seed: int) -> Instruments:
        return TorchInstruments(self._device, effort, seed)

    def host_rows(self, repeats: int) -> list[HostRow]:
        from moemodel.profiler.host_overhead import single_gpu as host_lane

        return host_lane.measure(self._device, repeats=repeats)


def platform_of(device: Device) -> Platform:
    """The platform of a device."""
    if device.info.vendor == "simulated":
        from moemodel.profiler.simulated.instruments import SimulatedDevice, SimulatedPlatform

        if isinstance(device, SimulatedDevice):
            return SimulatedPlatform(device)
    return TorchPlatform(device)
