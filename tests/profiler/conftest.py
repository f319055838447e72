"""A fake NVML, a device without sensors, and quiet threads for the profiler's tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from moemodel.model.records.profile import DeviceInfo, Manifest
from moemodel.profiler.devices.base import ActivityMeter, LinkMeter, NoActivity, NoLinks


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny operators gain nothing from threads, and on a busy machine lose much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class FakeNvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


@dataclass
class FakeGpu:
    """What one GPU answers; a name in `refuses` raises 'not supported'."""

    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = "GPU-11111111-2222-3333-4444-555555555555"
    bus_id: str = "00000000:1b:00.0"
    energy_mJ: int = 2_716_422
    refuses: set[str] = field(default_factory=set)
    gpm: tuple[float, ...] = (95.0, 12.5, 60.0, 3.0, 40.0)


class _Metric:
    def __init__(self) -> None:
        self.metricId = 0
        self.nvmlReturn = 0
        self.value = 0.0


class _MetricsGet:
    def __init__(self) -> None:
        self.version = self.numMetrics = 0
        self.sample1: Any = None
        self.sample2: Any = None
        self.metrics = [_Metric() for _ in range(98)]


class _Plain:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


class FakeNvml:
    """The part of `pynvml` that the profiler uses, with the figures of a real H100 (`h100-measured/gpu_facts.json`)."""

    NVMLError = FakeNvmlError
    NVML_SUCCESS = 0
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NO_PERMISSION = 4
    NVML_ERROR_NOT_FOUND = 6
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0
    NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1
    NVML_FI_DEV_MEMORY_TEMP = 82
    NVML_FI_DEV_POWER_INSTANT = 186
    NVML_GPM_METRIC_SM_UTIL = 2
    NVML_GPM_METRIC_SM_OCCUPANCY = 3
    NVML_GPM_METRIC_ANY_TENSOR_UTIL = 5
    NVML_GPM_METRIC_DRAM_BW_UTIL = 10
    NVML_GPM_METRIC_FP32_UTIL = 12
    NVML_GPM_METRICS_GET_VERSION = 1
    c_nvmlGpmMetricsGet_t = _MetricsGet

    def __init__(self, *gpus: FakeGpu, init_error: int | None = None) -> None:
        self.gpus = gpus
        self.init_error = init_error
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml"):
            object.__getattribute__(self, "calls").append(name)
        return object.__getattribute__(self, name)

    def _check(self, gpu: FakeGpu, what: str) -> None:
        if what in gpu.refuses:
            raise FakeNvmlError(self.NVML_ERROR_NOT_SUPPORTED)

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise FakeNvmlError(self.init_error)

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.159.04"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        return self._find(lambda gpu: gpu.uuid == uuid)

    def nvmlDeviceGetHandleByPciBusId(self, bus_id: str) -> FakeGpu:
        return self._find(lambda gpu: gpu.bus_id == bus_id)

    def _find(self, matches: Any) -> FakeGpu:
        found = [gpu for gpu in self.gpus if matches(gpu)]
        if not found:
            raise FakeNvmlError(self.NVML_ERROR_NOT_FOUND)
        return found[0]

    def nvmlDeviceGetName(self, gpu: FakeGpu) -> str:
        return gpu.name

    def nvmlDeviceGetUUID(self, gpu: FakeGpu) -> str:
        return gpu.uuid

    def nvmlDeviceGetMemoryInfo(self, _gpu: FakeGpu) -> _Plain:
        return _Plain(total=85_520_809_984, used=1_000_000_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: FakeGpu) -> int:
        self._check(gpu, "energy")
        return gpu.energy_mJ

    def nvmlDeviceGetPowerUsage(self, gpu: FakeGpu) -> int:
        self._check(gpu, "power")
        return 73_578

    def nvmlDeviceGetClockInfo(self, gpu: FakeGpu, _kind: int) -> int:
        self._check(gpu, "clock")
        return 1935

    def nvmlDeviceGetMaxClockInfo(self, _gpu: FakeGpu, kind: int) -> int:
        return {self.NVML_CLOCK_SM: 1980, self.NVML_CLOCK_MEM: 2619}[kind]

    def nvmlDeviceGetSupportedGraphicsClocks(self, _gpu: FakeGpu, memory_MHz: int) -> list[int]:
        assert memory_MHz == 2619
        return list(range(1980, 344, -15))

    def nvmlDeviceGetTemperature(self, gpu: FakeGpu, _sensor: int) -> int:
        self._check(gpu, "temperature")
        return 38

    def nvmlDeviceGetTemperatureThreshold(self, _gpu: FakeGpu, _threshold: int) -> int:
        return 89

    def nvmlDeviceGetEnforcedPowerLimit(self, _gpu: FakeGpu) -> int:
        return 700_000

    def nvmlDeviceGetPowerManagementLimitConstraints(self, _gpu: FakeGpu) -> list[int]:
        return [200_000, 700_000]

    def nvmlDeviceGetFieldValues(self, gpu: FakeGpu, fields: list[int]) -> list[_Plain]:
        values = {self.NVML_FI_DEV_POWER_INSTANT: 73_889, self.NVML_FI_DEV_MEMORY_TEMP: 40}
        refused = {self.NVML_FI_DEV_POWER_INSTANT: "power instant", self.NVML_FI_DEV_MEMORY_TEMP: "memory temperature"}
        return [_Plain(nvmlReturn=3 if refused[f] in gpu.refuses else 0, value=_Plain(uiVal=values[f])) for f in fields]

    def nvmlGpmQueryDeviceSupport(self, gpu: FakeGpu) -> _Plain:
        return _Plain(isSupportedDevice=0 if "gpm" in gpu.refuses else 1)

    def nvmlGpmSampleAlloc(self) -> object:
        return object()

    def nvmlGpmSampleGet(self, gpu: FakeGpu, sample: object) -> object:
        self._check(gpu, "gpm sample")
        return sample

    def nvmlGpmMetricsGet(self, request: _MetricsGet) -> _MetricsGet:
        by_metric = dict(zip((2, 3, 5, 12, 10), self.gpus[0].gpm, strict=True))
        for metric in request.metrics[: request.numMetrics]:
            metric.value = by_metric[metric.metricId]
        return request


@pytest.fixture
def fake_gpu() -> FakeGpu:
    return FakeGpu()


@pytest.fixture
def fake_nvml(fake_gpu: FakeGpu) -> FakeNvml:
    """An NVML that knows one H100; its class is `type(fake_nvml)`, for others."""
    return FakeNvml(fake_gpu)


class BareDevice:
    """A CPU with no sensor at all; tests override what they need."""

    def __init__(self) -> None:
        self.info = DeviceInfo(name="a fake", vendor="cpu", memory_B=1 << 30)
        self.torch_device = torch.device("cpu")

    def energy_J(self) -> float | None:
        return None

    def power_W(self) -> float | None:
        return None

    def reported_clock_Hz(self) -> float | None:
        return None

    def temperature_C(self) -> float | None:
        return None

    def memory_temperature_C(self) -> float | None:
        return None

    def used_memory_B(self) -> float | None:
        return None

    def activity(self) -> ActivityMeter:
        return NoActivity()

    def link_traffic(self) -> LinkMeter:
        return NoLinks()

    def close(self) -> None: ...


@pytest.fixture
def bare_device() -> BareDevice:
    return BareDevice()


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        created="2026-01-02T03:04:05+00:00",
        moemodel_version="0",
        gpu="h100-sxm-80gb",
        device=DeviceInfo(name="NVIDIA H100 80GB HBM3", vendor="nvidia", uuid="GPU-1", memory_B=1),
        clocks="passive",
        dtype="bf16",
        libraries={},
        seed=0,
    )
