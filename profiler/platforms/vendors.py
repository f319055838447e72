"""Vendors of GPUs that torch calls CUDA devices: the one place that tells them apart.

Another vendor's GPU takes a device (`devices/`), its settings (`clocks/`), and a line in `VENDORS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from moemodel.model.core.errors import DeviceError
from moemodel.model.records.profile import Topology
from moemodel.profiler.clocks.device_settings import DeviceSettings, NvidiaSettings
from moemodel.profiler.devices.base import Device
from moemodel.profiler.devices.nvidia import NvidiaDevice, load_driver, open_nvidia
from moemodel.profiler.devices.nvidia_topology import read_topology


@dataclass(frozen=True, kw_only=True)
class Vendor:
    """What is a vendor's own.

    Attributes:
        device: class of its GPUs.
        check: raises DeviceError where its driver is missing or finds no GPU.
        open: its GPU that torch numbers so; raises DeviceError.
        settings: of one of its GPUs.
        topology: how GPUs are connected, of which one is given, and torch's descriptions of all.
    """

    device: type[Any]
    check: Callable[[], object]
    open: Callable[[torch.device], Device]
    settings: Callable[[Any], DeviceSettings]
    topology: Callable[[Any, Sequence[Any]], Topology]


NVIDIA = Vendor(
    device=NvidiaDevice,
    check=load_driver,
    open=open_nvidia,
    settings=NvidiaSettings,
    topology=lambda device, properties: read_topology(device.driver[0], properties),
)
VENDORS = {"cuda": NVIDIA}  # what torch is built for -> whose GPUs it then finds


def vendor_here() -> Vendor:
    """The vendor whose GPUs this torch finds; NVIDIA where it is built for none.

    Raises:
        DeviceError: it is built for another's.
    """
    built_for = "hip" if torch.version.hip else "cuda"
    if built_for not in VENDORS:
        raise DeviceError(f"torch {torch.__version__} is built for {built_for}, whose GPUs moemodel cannot read yet")
    return VENDORS[built_for]


def vendor_of(device: object) -> Vendor | None:
    """The vendor of a device; None of what is no GPU that torch computes on."""
    return next((vendor for vendor in VENDORS.values() if isinstance(device, vendor.device)), None)
