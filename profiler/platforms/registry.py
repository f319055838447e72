"""How a kind of device is profiled: its time, sampler, instruments, host lane. The one place that tells kinds apart."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from moemodel.model.core.errors import DeviceError
from moemodel.model.hardware.gpu import list_gpus, read_gpu
from moemodel.profiler.clocks.device_settings import Controls, NvmlControls
from moemodel.profiler.devices.base import Device
from moemodel.profiler.devices.cpu import CpuDevice
from moemodel.profiler.devices.names import REPLAYED, SIMULATED, check_is, resolve
from moemodel.profiler.devices.nvidia import NvidiaDevice, nvml_handle
from moemodel.profiler.devices.nvml import load_nvml
from moemodel.profiler.host_overhead import single_gpu as host_lane
from moemodel.profiler.instruments.energy_sampler import EnergySampler
from moemodel.profiler.microbench.budget import Effort
from moemodel.profiler.microbench.harness import Instruments, TorchInstruments
from moemodel.profiler.microbench.stream_timer import HostTimer, Timer
from moemodel.profiler.simulated.instruments import (
    SimulatedControls,
    SimulatedDevice,
    SimulatedPlatform,
    open_simulated,
)


class Platform(Protocol):
    """What a run needs beside the device."""

    trains: bool  # whole training steps can be run on it

    @property
    def timer(self) -> Timer: ...
    def sampler(self) -> EnergySampler: ...
    def instruments(self, effort: Effort, seed: int) -> Instruments: ...
    def host_rows(self, repeats: int) -> list[dict[str, Any]]:
        """Rows of table `host`."""
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

    def host_rows(self, repeats: int) -> list[dict[str, Any]]:
        return host_lane.measure(self._device, repeats=repeats)


def open_named(gpu: str) -> tuple[Device, str]:
    """The device, and the name of its description."""
    descriptions = [read_gpu(name) for name in list_gpus()]
    if Path(gpu).suffix == ".json" and not gpu.startswith(SIMULATED):
        described = read_gpu(Path(gpu))
        descriptions.append(described)
        gpu = described.name
    known = {alias: d.name for d in descriptions for alias in (d.name, *d.aliases)}
    device = open_device(gpu, known)
    return device, resolve(gpu, known)


def open_device(gpu: str, known: Mapping[str, str]) -> Device:
    """The device called `gpu`, checked against what is there.

    Args:
        gpu: "cpu", a GPU's name or alias, or "sim:" and one of these for a simulated one.
        known: every alias (NVML device names too) -> the GPU's name. Case and punctuation are ignored.

    Raises:
        DeviceError: there is no such GPU here; the message says what was found and what can be done.
    """
    if gpu.startswith(REPLAYED):
        raise DeviceError(
            f"--gpu {gpu}: a recording has what sensors said, and no work can be timed on it; replay it by "
            "Meter(devices=[...]) or evaluate it by profiler.recording.recorded_session"
        )
    if gpu.startswith(SIMULATED):
        return open_simulated(gpu, known)
    wanted = "cpu" if gpu == "cpu" else resolve(gpu, known)
    if wanted == "cpu":
        return CpuDevice(guess=True)
    nvml = load_nvml(gpu)
    if not torch.cuda.is_available():
        raise DeviceError(
            f"--gpu {gpu}: the driver is there, but torch {torch.__version__} finds no CUDA device; "
            f"install a CUDA build of torch, or check CUDA_VISIBLE_DEVICES ({os.environ.get('CUDA_VISIBLE_DEVICES')})"
        )
    index = torch.cuda.current_device()
    properties = torch.cuda.get_device_properties(index)
    device = NvidiaDevice(
        torch.device("cuda", index), nvml, nvml_handle(nvml, properties), properties.multi_processor_count
    )
    check_is(wanted, device.info.name, gpu, known)
    return device


def platform_of(device: Device) -> Platform:
    """The platform of a device."""
    if isinstance(device, SimulatedDevice):
        return SimulatedPlatform(device)
    return TorchPlatform(device)


def controls_of(device: Device) -> Controls | None:
    """The controls of a device; None where it has none."""
    if isinstance(device, NvidiaDevice):
        return NvmlControls(device)
    if isinstance(device, SimulatedDevice):
        return SimulatedControls(device)
    return None
