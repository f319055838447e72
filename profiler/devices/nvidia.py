"""An NVIDIA GPU through NVML (nvidia-ml-py): its sensors, and how it is found. Reads only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from moemodel.model.core.errors import DeviceError
from moemodel.model.records.profile import DeviceInfo
from moemodel.profiler.devices.base import ActivityMeter, LinkMeter, NoActivity, NoLinks
from moemodel.profiler.devices.gpm import GpmCounters
from moemodel.profiler.devices.nvml import LASTING_ERRORS, advice, load_nvml, supported_clocks_MHz, text

_MILLI = 1e-3
_MEGA = 1e6
_ACTIVITY_METRICS = {
    "sm_activity": "NVML_GPM_METRIC_SM_UTIL",
    "sm_occupancy": "NVML_GPM_METRIC_SM_OCCUPANCY",
    "tensor_activity": "NVML_GPM_METRIC_ANY_TENSOR_UTIL",
    "fp32_activity": "NVML_GPM_METRIC_FP32_UTIL",
    "dram_activity": "NVML_GPM_METRIC_DRAM_BW_UTIL",
}
_PERCENT = 1 / 100
_NVLINK_METRICS = {
    "sent_Bps": "NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC",
    "received_Bps": "NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC",
}
_MIB = 1 << 20


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
        self._activity: ActivityMeter | None = None
        self._links: LinkMeter | None = None
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
        """What the driver says the SM clock is: under load it can be 500 MHz above the true one.

        `instruments.cycle_counter` measures that.
        """
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
        if self._activity is None:
            gpm = self._has_gpm()
            self._activity = GpmCounters(self._nvml, self._handle, _ACTIVITY_METRICS, _PERCENT) if gpm else NoActivity()
        return self._activity

    def link_traffic(self) -> LinkMeter:
        """The one meter of its NVLinks: don't use it for two windows at a time."""
        if self._links is None:
            self._links = NoLinks()
            if self._has_gpm():
                with suppress(AttributeError, self._nvml.NVMLError):  # an older nvidia-ml-py; no room for samples
                    self._links = GpmCounters(self._nvml, self._handle, _NVLINK_METRICS, _MIB)
        return self._links

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _has_gpm(self) -> bool:
        return bool(self._read("gpm", lambda n, h: n.nvmlGpmQueryDeviceSupport(h).isSupportedDevice))

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


def load_driver() -> Any:
    """The initialised `pynvml` module, where the driver finds a GPU.

    Raises:
        DeviceError: it is not installed, or finds no driver, no permission or no GPU; the message says what to do.
    """
    nvml = load_nvml()
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        raise DeviceError(advice(nvml, error)) from error
    if count == 0:
        raise DeviceError("the NVIDIA driver is there, but no GPU; run on a machine that has one")
    return nvml


def open_nvidia(torch_device: torch.device) -> NvidiaDevice:
    """The GPU that torch numbers so.

    Raises:
        DeviceError: there is no driver, or NVML does not know the GPU.
    """
    nvml, properties = load_driver(), torch.cuda.get_device_properties(torch_device)
    return NvidiaDevice(torch_device, nvml, nvml_handle(nvml, properties), properties.multi_processor_count)
