"""Opens the device of a name, and its platform."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from moemodel.model.core.errors import DeviceError
from moemodel.model.hardware.gpu import list_gpus, read_gpu
from moemodel.profiler.devices.base import Device
from moemodel.profiler.devices.cpu import CpuDevice
from moemodel.profiler.devices.names import REPLAYED, SIMULATED, check_is, resolve
from moemodel.profiler.platforms.base import Platform, TorchPlatform
from moemodel.profiler.platforms.vendors import vendor_here
from moemodel.profiler.simulated.instruments import SimulatedDevice, SimulatedPlatform, open_simulated


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
            "Meter(devices=[...]) or evaluate it by profiler.meter.recording.recorded_session"
        )
    if gpu.startswith(SIMULATED):
        return open_simulated(gpu, known)
    wanted = "cpu" if gpu == "cpu" else resolve(gpu, known)
    if wanted == "cpu":
        return CpuDevice(guess=True)
    device = _open_here(gpu)
    check_is(wanted, device.info.name, gpu, known)
    return device


def _open_here(gpu: str) -> Device:
    """The GPU that torch computes on.

    Raises:
        DeviceError: there is none, no driver, or a torch that does not find it.
    """
    vendor = vendor_here()
    try:
        vendor.check()
    except DeviceError as error:
        raise DeviceError(f"--gpu {gpu}: {error}, or try the chain without a GPU by --gpu cpu") from error
    if not torch.cuda.is_available():
        raise DeviceError(
            f"--gpu {gpu}: the driver is there, but torch {torch.__version__} finds no CUDA device; "
            f"install a CUDA build of torch, or check CUDA_VISIBLE_DEVICES ({os.environ.get('CUDA_VISIBLE_DEVICES')})"
        )
    return vendor.open(torch.device("cuda", torch.cuda.current_device()))


def platform_of(device: Device) -> Platform:
    """The platform of a device."""
    if isinstance(device, SimulatedDevice):
        return SimulatedPlatform(device)
    return TorchPlatform(device)
