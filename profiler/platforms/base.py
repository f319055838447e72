"""How a device is profiled: its time, sampler, instruments, host overhead, links and settings."""

from __future__ import annotations

from typing import Protocol

import torch

from moemodel.model.records.profile import HostRow, Topology
from moemodel.profiler.clocks.device_settings import DeviceSettings
from moemodel.profiler.devices.base import Device
from moemodel.profiler.host_overhead import single_gpu
from moemodel.profiler.instruments.energy_sampler import EnergySampler
from moemodel.profiler.microbench.budget import MeasurementBudget
from moemodel.profiler.microbench.harness import Instruments, TorchInstruments
from moemodel.profiler.microbench.stream_timer import HostTimer, StreamTimer
from moemodel.profiler.platforms.vendors import vendor_of


class Platform(Protocol):
    """What a run needs beside the device.

    Attributes:
        trains: whether whole training steps can be run on it.
        links: whether it can talk to others of its kind.
    """

    trains: bool
    links: bool

    @property
    def timer(self) -> StreamTimer:
        """The clock that its seconds are of, real or virtual."""
        ...

    def sampler(self) -> EnergySampler:
        """What samples its energy, power and temperature."""
        ...

    def instruments(self, budget: MeasurementBudget, seed: int) -> Instruments:
        """What operators are measured with, on that budget; operands are drawn by `seed`."""
        ...

    def host_rows(self, repeats: int) -> list[HostRow]:
        """How long the host needs for each block."""
        ...

    def settings(self) -> DeviceSettings | None:
        """Of its settings; None where it has none."""
        ...

    def topology(self, devices: int) -> Topology | None:
        """How the first so many devices of this machine are connected; None where nothing says it."""
        ...


class TorchPlatform:
    """A device that torch runs on, in real time."""

    trains = True
    links = True

    def __init__(self, device: Device) -> None:
        self._device = device
        self._vendor = vendor_of(device)
        self.timer = HostTimer()

    def sampler(self) -> EnergySampler:
        return EnergySampler(self._device)

    def instruments(self, budget: MeasurementBudget, seed: int) -> Instruments:
        return TorchInstruments(self._device, budget, seed)

    def host_rows(self, repeats: int) -> list[HostRow]:
        return single_gpu.measure(self._device, repeats=repeats)

    def settings(self) -> DeviceSettings | None:
        return self._vendor.settings(self._device) if self._vendor else None

    def topology(self, devices: int) -> Topology | None:
        if self._vendor is None:
            return None
        visible = range(min(devices, torch.cuda.device_count()))
        return self._vendor.topology(self._device, [torch.cuda.get_device_properties(i) for i in visible])
