"""Devices: sensors through a fake NVML and fake RAPL files, and what is said when the wrong one is there."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moemodel.model.core.errors import DeviceError
from moemodel.profiler.devices.base import ACTIVITIES
from moemodel.profiler.devices.cpu import CpuDevice
from moemodel.profiler.devices.nvidia import NvidiaDevice, nvml_handle
from moemodel.profiler.platforms.registry import open_device

H100 = "NVIDIA H100 80GB HBM3"
KNOWN = {"h100": "h100-sxm-80gb", H100: "h100-sxm-80gb", "NVIDIA A100-SXM4-80GB": "a100-sxm-80gb", "cpu": "cpu"}


@pytest.fixture
def device(fake_nvml: Any, fake_gpu: Any) -> NvidiaDevice:
    return NvidiaDevice(torch.device("cuda", 0), fake_nvml, fake_gpu, multiprocessors=132)


def test_info_is_in_si_units(device: NvidiaDevice) -> None:
    info = device.info
    assert (info.name, info.vendor, info.uuid, info.multiprocessors) == (H100, "nvidia", info.uuid, 132)
    assert info.power_limit_W == pytest.approx(700)
    assert info.power_limit_range_W == pytest.approx((200, 700))
    assert (info.clock_min_Hz, info.clock_max_Hz, info.memory_clock_max_Hz) == (345e6, 1980e6, 2619e6)
    assert info.slowdown_temperature_C == 89
    assert info.driver == "580.159.04"


def test_sensors_are_in_si_units(device: NvidiaDevice) -> None:
    assert device.energy_J() == pytest.approx(2716.422)
    assert device.power_W() == pytest.approx(73.889)
    assert device.reported_clock_Hz() == 1935e6
    assert (device.temperature_C(), device.memory_temperature_C()) == (38, 40)
    assert device.used_memory_B() == 1e9


@pytest.mark.parametrize(
    ("refused", "sensor"),
    [
        ("energy", "energy_J"),
        ("clock", "reported_clock_Hz"),
        ("temperature", "temperature_C"),
        ("memory temperature", "memory_temperature_C"),
    ],
)
def test_a_missing_sensor_reads_none_and_is_asked_once(
    fake_nvml: Any, fake_gpu: Any, refused: str, sensor: str
) -> None:
    fake_gpu.refuses.add(refused)
    device = NvidiaDevice(torch.device("cuda", 0), fake_nvml, fake_gpu)
    assert getattr(device, sensor)() is None
    asked = len(fake_nvml.calls)
    assert getattr(device, sensor)() is None
    assert len(fake_nvml.calls) == asked


def test_a_passing_error_is_asked_again(device: NvidiaDevice, fake_nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise fake_nvml.NVMLError(999)

    with monkeypatch.context() as broken:
        broken.setattr(fake_nvml, "nvmlDeviceGetTotalEnergyConsumption", fail)
        assert device.energy_J() is None
    assert device.energy_J() == pytest.approx(2716.422)


def test_average_power_stands_in_for_instantaneous(fake_nvml: Any, fake_gpu: Any) -> None:
    fake_gpu.refuses.add("power instant")
    assert NvidiaDevice(torch.device("cuda", 0), fake_nvml, fake_gpu).power_W() == pytest.approx(73.578)


def test_nothing_is_ever_set(device: NvidiaDevice, fake_nvml: Any) -> None:
    device.activity().begin()
    device.close()
    assert not [name for name in fake_nvml.calls if "Set" in name or "Reset" in name]


def test_activity_is_a_share(device: NvidiaDevice) -> None:
    meter = device.activity()
    meter.begin()
    shares = (0.95, 0.125, 0.6, 0.03, 0.4)
    assert meter.end() == pytest.approx(dict(zip(ACTIVITIES, shares, strict=True)))


@pytest.mark.parametrize("refused", ["gpm", "gpm sample"])
def test_activity_without_gpm_is_none(fake_nvml: Any, fake_gpu: Any, refused: str) -> None:
    fake_gpu.refuses.add(refused)
    meter = NvidiaDevice(torch.device("cuda", 0), fake_nvml, fake_gpu).activity()
    meter.begin()
    assert meter.end() == dict.fromkeys(ACTIVITIES)


def test_an_unreadable_activity_is_none(fake_nvml: Any, fake_gpu: Any) -> None:
    fake_gpu.gpm = (float("nan"), 1.0, 2.0, 3.0, -1.0)
    meter = NvidiaDevice(torch.device("cuda", 0), fake_nvml, fake_gpu).activity()
    meter.begin()
    read = meter.end()
    assert read["sm_activity"] is None
    assert read["dram_activity"] is None
    assert read["sm_occupancy"] == pytest.approx(0.01)


def test_handle_by_uuid_whatever_the_numbering(fake_nvml: Any, fake_gpu: Any) -> None:
    other = type(fake_gpu)(uuid="GPU-other", bus_id="00000000:00:00.0")
    nvml = type(fake_nvml)(other, fake_gpu)
    bare = SimpleNamespace(name=H100, uuid="11111111-2222-3333-4444-555555555555")
    assert nvml_handle(nvml, bare) is fake_gpu


def test_handle_by_pci_address_without_a_uuid(fake_nvml: Any, fake_gpu: Any) -> None:
    properties = SimpleNamespace(name=H100, pci_domain_id=0, pci_bus_id=0x1B, pci_device_id=0)
    assert nvml_handle(fake_nvml, properties) is fake_gpu


def test_handle_not_found_says_what_to_do(fake_nvml: Any) -> None:
    with pytest.raises(DeviceError, match=r"NVML does not know .*uuid MIG-1.*whole GPU"):
        nvml_handle(fake_nvml, SimpleNamespace(name=H100, uuid="MIG-1"))


# --- opening --------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, fake_nvml: Any, fake_gpu: Any) -> Any:
    """A machine with the fake GPU, as torch and NVML see it."""
    properties = SimpleNamespace(name=fake_gpu.name, uuid=fake_gpu.uuid, multi_processor_count=132)
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    return fake_nvml


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("gpu", ["h100", "H100", "h100-sxm-80gb", "nvidia h100 80gb hbm3"])
def test_any_alias_opens_it(gpu: str) -> None:
    assert open_device(gpu, KNOWN).info.name == H100


def test_cpu_needs_no_gpu() -> None:
    assert open_device("cpu", {}).info.vendor == "cpu"


def test_unknown_gpu_lists_the_known() -> None:
    with pytest.raises(DeviceError, match=r"--gpu h900: no GPU of that name.*cpu, a100-sxm-80gb, .*h100-sxm-80gb"):
        open_device("h900", KNOWN)


@pytest.mark.usefixtures("machine")
def test_another_gpu_says_which(fake_gpu: Any) -> None:
    fake_gpu.name = "NVIDIA A100-SXM4-80GB"
    with pytest.raises(DeviceError, match=r"'NVIDIA A100-SXM4-80GB'.*run with --gpu a100-sxm-80gb"):
        open_device("h100", KNOWN)
    fake_gpu.name = "NVIDIA B200"
    with pytest.raises(DeviceError, match=r"'NVIDIA B200'.*add .* to the aliases"):
        open_device("h100", KNOWN)


@pytest.mark.parametrize(
    ("error", "says"), [(12, "no NVIDIA driver"), (9, "no NVIDIA driver"), (4, "no permission"), (99, "nvidia-smi")]
)
def test_no_driver_or_permission(machine: Any, error: int, says: str) -> None:
    machine.init_error = error
    with pytest.raises(DeviceError, match=says):
        open_device("h100", KNOWN)


def test_no_gpu(machine: Any) -> None:
    machine.gpus = ()
    with pytest.raises(DeviceError, match="but no GPU"):
        open_device("h100", KNOWN)


@pytest.mark.usefixtures("machine")
def test_torch_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="CUDA_VISIBLE_DEVICES"):
        open_device("h100", KNOWN)


# --- RAPL -----------------------------------------------------------------------------------------------------------


def _package(folder: Path, energy_uJ: int, range_uJ: int = 1_000_000) -> Path:
    folder.mkdir()
    (folder / "energy_uj").write_text(str(energy_uJ))
    (folder / "max_energy_range_uj").write_text(str(range_uJ))
    return folder / "energy_uj"


def test_rapl_sums_packages_and_survives_wrapping(tmp_path: Path) -> None:
    first = _package(tmp_path / "intel-rapl:0", 900_000)
    _package(tmp_path / "intel-rapl:1", 500_000)
    _package(tmp_path / "intel-rapl:0:0", 123)  # part of package 0
    device = CpuDevice(tmp_path)
    before_J = device.energy_J()
    first.write_text("100000")  # past its range of 1 J
    after_J = device.energy_J()
    assert before_J == pytest.approx(1.4)
    assert after_J == pytest.approx(1.6)


def test_no_rapl_means_no_energy(tmp_path: Path) -> None:
    assert CpuDevice(tmp_path).energy_J() is None
