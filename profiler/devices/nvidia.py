"""An NVIDIA GPU through NVML (nvidia-ml-py): its sensors, and how it is found. Reads only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from moemodel.model.core.errors import DeviceError
from moemodel.model.records.profile import DeviceInfo
from moemodel.profiler.devices.base import ACTIVITIES, Activity, ActivityMeter, NoActivity
from moemodel.profiler.devices.nvml import LASTING_ERRORS, supported_clocks_MHz, text

_MILLI = 1e-3
_MEGA = 1e6
_GPM_METRICS = {
    "sm_activity": "NVML_GPM_METRIC_SM_UTIL",
    "sm_occupancy": "NVML_GPM_METRIC_SM_OCCUPANCY",
    "tensor_activity": "NVML_GPM_METRIC_ANY_TENSOR_UTIL",
    "fp32_activity": "NVML_GPM_METRIC_FP32_UTIL",
    "dram_activity": "NVML_GPM_METRIC_DRAM_BW_UTIL",
}


class NvidiaDevice:
    """An NVIDIA GPU through NVML (nvidia-ml-py).

    Args:
        torch_device: the CUDA device, as torch numbers it (CUDA_VISIBLE_DEVICES applies).
        nvml: the `pynvml` module, or something that behaves like it; it must be initialised.
        handle: NVML's handle of the same GPU.
        multiprocessors: as torch reports them; NVML does not.
    """

    def __init__(self, torch_device: torch.device, nvml: Any, handle: Any, multiprocessors: int | None = None) -> None:
        self.torch_device = torch_device
        self._nvml = nvml
        self._handle = handle
        # A sensor that this GPU or this user cannot read fails the same way each time: ask once, then stop asking.
        self._missing: set[str] = set()
        self._lasting = {getattr(nvml, name, None) for name in LASTING_ERRORS}
        self._meter: ActivityMeter | None = None
        self.info = self._describe(multiprocessors)

    @property
    def driver(self) -> tuple[Any, Any]:
        """`pynvml` and its handle of this GPU."""
        return self._nvml, self._handle

    def energy_J(self) -> float | None:
        """NVML's counter; it changes every 100 ms on an H100."""
        return self._read("energy", lambda n, h: n.nvmlDeviceGetTotalEnergyConsumption(h), _MILLI)

    def power_W(self) -> float | None:
        """Instantaneous power where the driver has it, else its own average."""
        instant = self._field("NVML_FI_DEV_POWER_INSTANT", _MILLI)
        if instant is not None:
            return instant
        return self._read("power", lambda n, h: n.nvmlDeviceGetPowerUsage(h), _MILLI)

    def reported_clock_Hz(self) -> float | None:
        """What the driver says the SM clock is: under load it can be 500 MHz above the true one (see `clock`)."""
        return self._read("clock", lambda n, h: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM), _MEGA)

    def temperature_C(self) -> float | None:
        return self._read("temperature", lambda n, h: n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU))

    def memory_temperature_C(self) -> float | None:
        temperature_C = self._field("NVML_FI_DEV_MEMORY_TEMP", 1.0)
        return temperature_C if temperature_C else None  # NVML gives 0 where the memory has no sensor

    def used_memory_B(self) -> float | None:
        """As the driver sees it, other processes on this GPU included."""
        return self._read("memory", lambda n, h: n.nvmlDeviceGetMemoryInfo(h).used)

    def activity(self) -> ActivityMeter:
        """The one meter of this device: don't use it for two windows at a time."""
        if self._meter is None:
            supported = self._read("gpm", lambda n, h: n.nvmlGpmQueryDeviceSupport(h).isSupportedDevice)
            self._meter = _GpmMeter(self._nvml, self._handle) if supported else NoActivity()
        return self._meter

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _read(self, what: str, read: Callable[[Any, Any], Any], scale: float = 1.0) -> float | None:
        if what in self._missing:
            return None
        try:
            return float(read(self._nvml, self._handle)) * scale
        except AttributeError:  # an older nvidia-ml-py
            self._missing.add(what)
        except self._nvml.NVMLError as error:
            if error.value in self._lasting:
                self._missing.add(what)
        return None

    def _field(self, name: str, scale: float) -> float | None:
        def read(nvml: Any, handle: Any) -> int:
            field = nvml.nvmlDeviceGetFieldValues(handle, [getattr(nvml, name)])[0]
            if field.nvmlReturn != nvml.NVML_SUCCESS:
                raise nvml.NVMLError(field.nvmlReturn)
            return int(field.value.uiVal)

        return self._read(name, read, scale)

    def _describe(self, multiprocessors: int | None) -> DeviceInfo:
        n, h = self._nvml, self._handle
        low_W = self._read("limit low", lambda n, h: n.nvmlDeviceGetPowerManagementLimitConstraints(h)[0], _MILLI)
        high_W = self._read("limit high", lambda n, h: n.nvmlDeviceGetPowerManagementLimitConstraints(h)[1], _MILLI)
        memory_Hz = self._read("memory clock", lambda n, h: n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_MEM), _MEGA)
        return DeviceInfo(
            name=text(n.nvmlDeviceGetName(h)),
            vendor="nvidia",
            uuid=text(n.nvmlDeviceGetUUID(h)),
            memory_B=int(n.nvmlDeviceGetMemoryInfo(h).total),
            multiprocessors=multiprocessors,
            power_limit_W=self._read("limit", lambda n, h: n.nvmlDeviceGetEnforcedPowerLimit(h), _MILLI),
            power_limit_range_W=None if low_W is None or high_W is None else (low_W, high_W),
            clock_max_Hz=self._read("clock max", lambda n, h: n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_SM), _MEGA),
            clock_min_Hz=self._read("clock min", lambda n, h: min(supported_clocks_MHz(n, h)), _MEGA),
            memory_clock_max_Hz=memory_Hz,
            slowdown_temperature_C=self._read(
                "slowdown",
                lambda n, h: n.nvmlDeviceGetTemperatureThreshold(h, n.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
            ),
            driver=text(n.nvmlSystemGetDriverVersion()),
            power_source="nvml",
        )


class _GpmMeter:
    """GPM counters (Hopper and later, no root needed), read at two instants."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._metrics = {name: getattr(nvml, constant) for name, constant in _GPM_METRICS.items()}
        # The samples live as long as the process: NVML has no owner for them, and there are two a device.
        self._samples = (nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc())
        self._begun = False

    def begin(self) -> None:
        self._begun = self._sample(0)

    def end(self) -> Activity:
        if not (self._begun and self._sample(1)):
            return dict.fromkeys(ACTIVITIES)
        request = self._nvml.c_nvmlGpmMetricsGet_t()
        request.version = self._nvml.NVML_GPM_METRICS_GET_VERSION
        request.sample1, request.sample2 = self._samples
        request.numMetrics = len(self._metrics)
        for i, metric in enumerate(self._metrics.values()):
            request.metrics[i].metricId = metric
        try:
            self._nvml.nvmlGpmMetricsGet(request)
        except self._nvml.NVMLError:
            return dict.fromkeys(ACTIVITIES)
        return {name: self._share(request.metrics[i]) for i, name in enumerate(self._metrics)}

    def _sample(self, i: int) -> bool:
        try:
            self._nvml.nvmlGpmSampleGet(self._handle, self._samples[i])
        except self._nvml.NVMLError:
            return False
        return True

    def _share(self, metric: Any) -> float | None:
        value = float(metric.value)
        readable = metric.nvmlReturn == self._nvml.NVML_SUCCESS and math.isfinite(value) and value >= 0
        return value / 100 if readable else None


def nvml_handle(nvml: Any, properties: Any) -> Any:
    """NVML's handle of the GPU that torch describes by `properties` (`torch.cuda.get_device_properties`).

    NVML numbers every GPU of the machine while torch numbers those that CUDA_VISIBLE_DEVICES leaves, so go by UUID,
    or else by PCI address.

    Raises:
        DeviceError: neither finds it.
    """
    uuid = getattr(properties, "uuid", None)
    if uuid is not None:
        text = str(uuid)
        try:
            return nvml.nvmlDeviceGetHandleByUUID(text if text.startswith("GPU-") else f"GPU-{text}")
        except nvml.NVMLError:
            pass
    bus = getattr(properties, "pci_bus_id", None)
    if bus is not None:
        domain, slot = getattr(properties, "pci_domain_id", 0), getattr(properties, "pci_device_id", 0)
        try:
            return nvml.nvmlDeviceGetHandleByPciBusId(f"{domain:08x}:{bus:02x}:{slot:02x}.0")
        except nvml.NVMLError:
            pass
    raise DeviceError(
        f"NVML does not know the GPU that torch uses ({properties.name}, uuid {uuid}); "
        "a MIG slice, or a container that hides it: run on a whole GPU that nvidia-smi lists"
    )
