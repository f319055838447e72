"""An NVIDIA GPU through NVML (nvidia-ml-py): its sensors, and how it is found. Reads only."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch

from moemodel.model.core.errors import DeviceError
from moemodel.model.records.profile import DeviceInfo
from moemodel.profiler.devices.address import Address
from moemodel.profiler.devices.base import ActivityMeter, LinkMeter, NoActivity, NoLinks
from moemodel.profiler.devices.gpm import GpmCounters
from moemodel.profiler.devices.nvml import advice, load_nvml, supported_clocks_MHz, text
from moemodel.profiler.devices.nvml_sensors import OPEN_SENSORS, NvmlSensors, oddity

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
_OF_THE_MODULE = (
    "{name} is a superchip: its energy counter and the driver's average power are those of the module, CPU and memory "
    "included, and are not used; power and energy here are of the GPU alone, from its instantaneous power"
)


class NvidiaDevice:
    """An NVIDIA GPU through NVML (nvidia-ml-py).

    Args:
        torch_device: the CUDA device, as torch numbers it (CUDA_VISIBLE_DEVICES applies).
        nvml: the `pynvml` module, or something that behaves like it; it must be initialised.
        handle: NVML's handle of the same GPU.
        multiprocessors: as torch reports them; NVML does not.
        name, memory_B: as torch reports them, for where NVML does not.
    """

    def __init__(
        self,
        torch_device: torch.device,
        nvml: Any,
        handle: Any,
        multiprocessors: int | None = None,
        *,
        name: str = "unknown NVIDIA GPU",
        memory_B: int = 0,
    ) -> None:
        self.torch_device = torch_device
        self._nvml = nvml
        self._handle = handle
        self._sensors = NvmlSensors(nvml, handle)
        self._activity: ActivityMeter | None = None
        self._links: LinkMeter | None = None
        self.info = self._describe(multiprocessors, name, memory_B)

    @property
    def driver(self) -> tuple[Any, Any]:
        """`pynvml` and its handle of this GPU."""
        return self._nvml, self._handle

    @property
    def sensors_at(self) -> Address | None:
        """By which a process of its own reads energy and power; None where it could not find this GPU again."""
        real = isinstance(self._nvml, ModuleType)  # not what merely behaves like it: another process has the real one
        return Address(opener=OPEN_SENSORS, argument=self.info.uuid) if real and self.info.uuid else None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know of what its sensors say."""
        odd = [oddity(what, value) for what, value in self._sensors.oddities.items()]
        return (*odd, *([_OF_THE_MODULE.format(name=self.info.name)] if self._sensors.superchip else []))

    def energy_J(self) -> float | None:
        """NVML's counter; it changes every 100 ms on an H100. None on a superchip, where it is not the GPU's alone."""
        return self._sensors.energy_J()

    def power_W(self) -> float | None:
        """Instantaneous power where the driver has it, else its own average."""
        return self._sensors.power_W()

    def reported_clock_Hz(self) -> float | None:
        """What the driver says the SM clock is: under load it can be 500 MHz above the true one.

        `instruments.cycle_counter` measures that.
        """
        return self._sensors.reported_clock_Hz()

    def temperature_C(self) -> float | None:
        return self._sensors.temperature_C()

    def memory_temperature_C(self) -> float | None:
        return self._sensors.memory_temperature_C()

    def used_memory_B(self) -> float | None:
        """As the driver sees it, other processes on this GPU included."""
        return self._sensors.used_memory_B()

    def activity(self) -> ActivityMeter:
        """The one meter of this device: don't use it for two windows at a time."""
        if self._activity is None:
            self._activity = self._gpm(_ACTIVITY_METRICS, _PERCENT) or NoActivity()
        return self._activity

    def link_traffic(self) -> LinkMeter:
        """The one meter of its NVLinks: don't use it for two windows at a time."""
        if self._links is None:
            self._links = self._gpm(_NVLINK_METRICS, _MIB) or NoLinks()
        return self._links

    def close(self) -> None:
        self._sensors.close()

    def _gpm(self, metrics: Mapping[str, str], scale: float) -> GpmCounters | None:
        if not self._sensors.ask("gpm", lambda n, h: bool(n.nvmlGpmQueryDeviceSupport(h).isSupportedDevice)):
            return None
        try:
            return GpmCounters(self._nvml, self._handle, metrics, scale)
        except (AttributeError, OSError, self._nvml.NVMLError):  # an older nvidia-ml-py; no room for samples
            return None

    def _describe(self, multiprocessors: int | None, name: str, memory_B: int) -> DeviceInfo:
        ask, read = self._sensors.ask, self._sensors.read
        low_W = read("limit low", lambda n, h: n.nvmlDeviceGetPowerManagementLimitConstraints(h)[0], _MILLI)
        high_W = read("limit high", lambda n, h: n.nvmlDeviceGetPowerManagementLimitConstraints(h)[1], _MILLI)
        in_nvml_B = read("memory size", lambda n, h: n.nvmlDeviceGetMemoryInfo(h).total)
        return DeviceInfo(
            name=self._sensors.name or name,
            vendor="nvidia",
            uuid=ask("uuid", lambda n, h: text(n.nvmlDeviceGetUUID(h))),
            memory_B=memory_B if in_nvml_B is None else int(in_nvml_B),
            multiprocessors=multiprocessors,
            power_limit_W=read("limit", lambda n, h: n.nvmlDeviceGetEnforcedPowerLimit(h), _MILLI),
            power_limit_range_W=None if low_W is None or high_W is None else (low_W, high_W),
            clock_max_Hz=read("clock max", lambda n, h: n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_SM), _MEGA),
            clock_min_Hz=read("clock min", lambda n, h: min(supported_clocks_MHz(n, h)), _MEGA),
            memory_clock_max_Hz=read(
                "clock of the memory", lambda n, h: n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_MEM), _MEGA
            ),
            slowdown_temperature_C=read(
                "temperature of slowdown",
                lambda n, h: n.nvmlDeviceGetTemperatureThreshold(h, n.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
            ),
            driver=ask("driver", lambda n, _: text(n.nvmlSystemGetDriverVersion())),
            power_source="nvml",
        )


def nvml_handle(nvml: Any, properties: Any) -> Any:
    """NVML's handle of the GPU that torch describes by `properties` (`torch.cuda.get_device_properties`).

    NVML numbers every GPU of the machine while torch numbers those that CUDA_VISIBLE_DEVICES leaves, so go by UUID,
    or else by PCI address. A MIG slice has its own UUID, which NVML has no sensors for, and its card's PCI address,
    whose sensors are those of all its tenants: it is not found.

    Raises:
        DeviceError: neither finds it, or it is a slice of a card.
    """
    uuid = getattr(properties, "uuid", None)
    wanted = None if uuid is None else _whole(str(uuid))
    handle = _found(nvml, lambda: nvml.nvmlDeviceGetHandleByUUID(wanted)) if wanted else None
    bus = getattr(properties, "pci_bus_id", None)
    if handle is None and bus is not None:
        domain, slot = getattr(properties, "pci_domain_id", 0), getattr(properties, "pci_device_id", 0)
        address = f"{domain:08x}:{bus:02x}:{slot:02x}.0"
        handle = _found(nvml, lambda: nvml.nvmlDeviceGetHandleByPciBusId(address))
    if handle is not None:
        said = _slice_of(nvml, handle, properties, wanted)
        if said is None:
            return handle
        raise DeviceError(
            f"{properties.name}: {said}; NVML's power, energy and memory are the whole card's, with all its tenants: "
            "run on a whole GPU to have this run's"
        )
    raise DeviceError(
        f"NVML does not know the GPU that torch uses ({properties.name}, uuid {uuid}); "
        "a MIG slice, or a container that hides it: run on a whole GPU that nvidia-smi lists"
    )


def _whole(uuid: str) -> str:
    """torch gives a UUID without NVML's prefix."""
    return uuid if uuid.upper().startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def _found(nvml: Any, look: Callable[[], Any]) -> Any | None:
    try:
        return look()
    except (AttributeError, OSError, ValueError, nvml.NVMLError):
        return None


def _slice_of(nvml: Any, handle: Any, properties: Any, wanted: str | None) -> str | None:
    """Why a handle is that of a card of which torch has a slice; None where it is of a whole GPU."""
    if re.search(r"\bMIG\b", str(properties.name)):
        return "is a MIG slice of a card"
    if "MIG-" in os.environ.get("CUDA_VISIBLE_DEVICES", ""):
        return "is a MIG slice of a card, as CUDA_VISIBLE_DEVICES says"
    mode = _found(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle))
    if mode is not None and mode[0] == getattr(nvml, "NVML_DEVICE_MIG_ENABLE", 1):
        return "is on a card in MIG mode, where work runs in slices only"
    known = _found(nvml, lambda: text(nvml.nvmlDeviceGetUUID(handle)))
    if wanted and known and wanted.lower() != known.lower():
        return f"torch says {wanted}, and NVML at its PCI address {known}: it is a MIG slice or another part of a card"
    return None


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
    return NvidiaDevice(
        torch_device,
        nvml,
        nvml_handle(nvml, properties),
        properties.multi_processor_count,
        name=str(properties.name),
        memory_B=int(getattr(properties, "total_memory", 0)),
    )
