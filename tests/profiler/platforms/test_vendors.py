"""Another vendor's GPU: one entry of `VENDORS` has it opened, set, metered and described."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moemodel.model.core.errors import DeviceError
from moemodel.model.records.profile import DeviceInfo, Topology
from moemodel.profiler.meter.energy_meter import open_devices
from moemodel.profiler.platforms import vendors
from moemodel.profiler.platforms.registry import open_device, platform_of
from moemodel.profiler.platforms.vendors import NVIDIA, Vendor, vendor_here, vendor_of

KNOWN = {"mi300x": "mi300x-192gb", "AMD Instinct MI300X": "mi300x-192gb"}


@pytest.fixture
def other(bare_device: Any) -> Vendor:
    """A vendor of GPUs that say no more than a bare device does."""
    bare = type(bare_device)

    class Other(bare):  # type: ignore[valid-type,misc]
        def __init__(self, torch_device: torch.device) -> None:
            self.info = DeviceInfo(name="AMD Instinct MI300X", vendor="nvidia", memory_B=1 << 30)
            self.torch_device = torch_device

    def topology(_: Other, properties: Sequence[Any]) -> Topology:
        return Topology(gpus=[], pairs=[]) if len(properties) == 2 else pytest.fail("two GPUs take part")

    return Vendor(
        device=Other,
        check=lambda: None,
        open=Other,
        settings=lambda device: SimpleNamespace(of=device),  # type: ignore[arg-type,return-value]
        topology=topology,
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, other: Vendor) -> Vendor:
    """A machine with eight GPUs of that vendor, and a torch built for them."""
    monkeypatch.setattr(torch.version, "hip", "6.2")
    monkeypatch.setitem(vendors.VENDORS, "hip", other)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: None)
    return other


def test_a_name_opens_it(machine: Vendor) -> None:
    device = open_device("mi300x", KNOWN)
    assert isinstance(device, machine.device)
    assert device.torch_device == torch.device("cuda", 3)


@pytest.mark.usefixtures("machine")
def test_its_platform_has_its_settings_and_links() -> None:
    device = open_device("mi300x", KNOWN)
    platform = platform_of(device)
    assert platform.settings() == SimpleNamespace(of=device)
    assert platform.topology(2) == Topology(gpus=[], pairs=[])
    assert platform.links


def test_the_meter_opens_it(machine: Vendor) -> None:
    (device,), _, notes = open_devices([1])
    assert isinstance(device, machine.device)
    assert device.torch_device == torch.device("cuda", 1)
    assert notes == []


@pytest.mark.usefixtures("machine")
def test_a_missing_driver_says_which_gpu_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def check() -> None:
        raise DeviceError("no driver of these found")

    monkeypatch.setitem(vendors.VENDORS, "hip", SimpleNamespace(check=check))
    with pytest.raises(DeviceError, match=r"--gpu mi300x: no driver of these found, or try .* --gpu cpu"):
        open_device("mi300x", KNOWN)


def test_a_vendor_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.2")
    with pytest.raises(DeviceError, match=r"torch .* is built for hip, whose GPUs moemodel cannot read yet"):
        vendor_here()


def test_a_torch_built_for_no_gpu_looks_for_nvidias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert vendor_here() is NVIDIA


def test_a_processor_has_no_vendor_no_settings_and_no_topology(bare_device: Any) -> None:
    assert vendor_of(bare_device) is None
    platform = platform_of(bare_device)
    assert platform.settings() is None
    assert platform.topology(2) is None
