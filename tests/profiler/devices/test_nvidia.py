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
from tests.profiler.conftest import FakeNvml, FakeNvmlError

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
    with pytest.raises(DeviceError, match=r"there are: cpu, a100-sxm-80gb, (?!.*cpu)"):
        open_device("h900", {**KNOWN, "cpu": "cpu"})


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


# --- slices, superchips, and GPUs that answer little -----------------------------------------------------------------


def _mig(**changes: Any) -> SimpleNamespace:
    """As torch describes a slice: its own UUID, its card's PCI address."""
    known: dict[str, Any] = {
        "name": "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "uuid": "c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
        "pci_domain_id": 0,
        "pci_bus_id": 0x1B,
        "pci_device_id": 0,
    }
    return SimpleNamespace(**(known | changes))


@pytest.mark.parametrize(
    "properties",
    [
        _mig(),
        _mig(name=H100),  # a driver that names the card
        _mig(uuid=None),  # a torch without UUIDs
        _mig(uuid="MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", name=H100),
        _mig(uuid="11111111-2222-3333-4444-555555555555"),  # one that gives the card's
    ],
)
def test_a_slice_is_not_its_card(fake_nvml: Any, properties: SimpleNamespace) -> None:
    with pytest.raises(DeviceError, match=r"slice.*whole card's, with all its tenants: run on a whole GPU"):
        nvml_handle(fake_nvml, properties)


def test_a_slice_that_only_the_environment_tells(fake_nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f")
    with pytest.raises(DeviceError, match="is a MIG slice of a card, as CUDA_VISIBLE_DEVICES says"):
        nvml_handle(fake_nvml, SimpleNamespace(name=H100, uuid="11111111-2222-3333-4444-555555555555"))


def test_a_card_in_mig_mode_runs_slices_only(fake_nvml: Any, fake_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SimpleNamespace(name=H100, uuid="11111111-2222-3333-4444-555555555555")
    for mode, refused in (([0, 0], False), ([0, 1], False), ([1, 1], True), ([1, 0], True)):
        monkeypatch.setattr(fake_nvml, "nvmlDeviceGetMigMode", lambda _, mode=mode: mode, raising=False)
        if refused:
            with pytest.raises(DeviceError, match="MIG mode"):
                nvml_handle(fake_nvml, whole)
        else:
            assert nvml_handle(fake_nvml, whole) is fake_gpu


@pytest.mark.parametrize(
    "name", ["NVIDIA GH200 480GB", "NVIDIA GH200 144G HBM3e", "NVIDIA GB200", "NVIDIA GB300 NVL72"]
)
def test_a_superchips_counter_is_not_the_gpus(fake_nvml: Any, fake_gpu: Any, name: str) -> None:
    fake_gpu.name = name
    device = NvidiaDevice(torch.device("cuda", 0), fake_nvml, fake_gpu)
    assert device.energy_J() is None
    assert device.power_W() == pytest.approx(73.889)
    assert "superchip" in device.remarks[0]
    fake_gpu.refuses.add("power instant")  # what is left is the module's
    assert device.power_W() is None


@pytest.mark.parametrize("name", [H100, "NVIDIA GB10", "NVIDIA B200", "NVIDIA RTX PRO 6000", "Orin (nvgpu)"])
def test_others_have_counters_of_their_own(fake_nvml: Any, fake_gpu: Any, name: str) -> None:
    fake_gpu.name = name
    device = NvidiaDevice(torch.device("cuda", 0), fake_nvml, fake_gpu)
    assert device.energy_J() == pytest.approx(2716.422)
    assert device.remarks == ()


QUESTIONS = [name for name in dir(FakeNvml) if name.startswith(("nvmlDeviceGet", "nvmlSystem", "nvmlGpm"))]


def _refuse(error: Exception) -> Any:
    def refuse(*_: Any) -> Any:
        raise error

    return refuse


@pytest.mark.parametrize("error", [FakeNvmlError(3), FakeNvmlError(999), AttributeError("old"), OSError(5, "library")])
@pytest.mark.parametrize("questions", [[name] for name in QUESTIONS] + [QUESTIONS], ids=[*QUESTIONS, "all"])
def test_any_question_may_be_refused(
    fake_nvml: Any, fake_gpu: Any, monkeypatch: pytest.MonkeyPatch, questions: list[str], error: Exception
) -> None:
    for question in questions:
        monkeypatch.setattr(fake_nvml, question, _refuse(error))
    device = NvidiaDevice(torch.device("cuda", 0), fake_nvml, fake_gpu, 132, name="as torch says", memory_B=1 << 37)
    info = device.info
    assert info.name == (H100 if "nvmlDeviceGetName" not in questions else "as torch says")
    assert info.memory_B == (85_520_809_984 if "nvmlDeviceGetMemoryInfo" not in questions else 1 << 37)
    readings = [device.energy_J(), device.power_W(), device.reported_clock_Hz(), device.temperature_C()]
    readings += [device.memory_temperature_C(), device.used_memory_B()]
    assert readings == [None] * 6 or questions is not QUESTIONS
    for meter in (device.activity(), device.link_traffic()):
        meter.begin()
        meter.end()
    device.close()


class _AllBits:
    """What NVML gives where it has no reading: all bits set."""

    nvmlReturn = 0
    value = SimpleNamespace(uiVal=2**32 - 1)
    total = used = 2**64 - 1


@pytest.mark.parametrize("value", [2**32 - 1, 2**64 - 1, float("nan"), float("inf"), -5, None, "n/a"])
def test_what_is_no_reading_is_none(fake_nvml: Any, fake_gpu: Any, monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    device = NvidiaDevice(torch.device("cuda", 0), fake_nvml, fake_gpu)
    for question in ("PowerUsage", "ClockInfo", "Temperature"):
        monkeypatch.setattr(fake_nvml, f"nvmlDeviceGet{question}", lambda *_: value)
    energy = 2**64 - 1 if value == 2**32 - 1 else value  # a counter of 64 bits
    monkeypatch.setattr(fake_nvml, "nvmlDeviceGetTotalEnergyConsumption", lambda _: energy)
    monkeypatch.setattr(fake_nvml, "nvmlDeviceGetFieldValues", lambda *_: [_AllBits])
    monkeypatch.setattr(fake_nvml, "nvmlDeviceGetMemoryInfo", lambda _: _AllBits)
    readings = [device.energy_J(), device.power_W(), device.reported_clock_Hz(), device.temperature_C()]
    readings += [device.memory_temperature_C(), device.used_memory_B()]
    assert readings == [None] * 6
    assert any("which cannot be: taken as no reading" in remark for remark in device.remarks)


@pytest.mark.parametrize("value", [2**32 - 1, 2**64 - 1])
def test_what_is_no_limit_is_none(fake_nvml: Any, fake_gpu: Any, monkeypatch: pytest.MonkeyPatch, value: int) -> None:
    for question in ("EnforcedPowerLimit", "MaxClockInfo", "TemperatureThreshold"):
        monkeypatch.setattr(fake_nvml, f"nvmlDeviceGet{question}", lambda *_: value)
    monkeypatch.setattr(fake_nvml, "nvmlDeviceGetSupportedGraphicsClocks", lambda *_: [value])
    monkeypatch.setattr(fake_nvml, "nvmlDeviceGetPowerManagementLimitConstraints", lambda _: [200_000, value])
    monkeypatch.setattr(fake_nvml, "nvmlDeviceGetMemoryInfo", lambda _: _AllBits)
    device = NvidiaDevice(torch.device("cuda", 0), fake_nvml, fake_gpu, memory_B=1 << 37)
    info = device.info
    assert (info.power_limit_W, info.power_limit_range_W, info.memory_B) == (None, None, 1 << 37)
    assert (info.clock_min_Hz, info.clock_max_Hz, info.memory_clock_max_Hz) == (None, None, None)
    assert info.slowdown_temperature_C is None
    assert sum("which cannot be" in remark for remark in device.remarks) == 7


def test_zero_of_a_missing_sensor_is_none(fake_nvml: Any, fake_gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that held it would be refused when it is read."""
    for question in ("ClockInfo", "Temperature", "EnforcedPowerLimit", "PowerUsage"):
        monkeypatch.setattr(fake_nvml, f"nvmlDeviceGet{question}", lambda *_: 0)
    monkeypatch.setattr(fake_nvml, "nvmlDeviceGetFieldValues", lambda *_: [SimpleNamespace(nvmlReturn=1)])
    device = NvidiaDevice(torch.device("cuda", 0), fake_nvml, fake_gpu)
    assert (device.temperature_C(), device.reported_clock_Hz(), device.info.power_limit_W) == (None, None, None)
    assert device.power_W() == 0.0
    assert device.remarks == ()


@pytest.mark.usefixtures("machine")
def test_a_gpu_that_hides_its_memory_opens(monkeypatch: pytest.MonkeyPatch, machine: Any, fake_gpu: Any) -> None:
    properties = SimpleNamespace(name=H100, uuid=fake_gpu.uuid, multi_processor_count=132, total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(machine, "nvmlDeviceGetMemoryInfo", _refuse(FakeNvmlError(3)))
    device = open_device("h100", KNOWN)
    assert device.info.memory_B == 80 << 30
    assert device.used_memory_B() is None
