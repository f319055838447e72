"""The device being measured: what it is and what its sensors say. Reads only: `clock_control` alone changes settings.

Every sensor returns a float in SI units (temperatures in degrees Celsius) or None where the device has no such sensor.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from moemodel.model.core.errors import DeviceError
from moemodel.model.records.profile import DeviceInfo
from moemodel.profiler.devices.cpu import CpuDevice

ACTIVITIES = ("sm_activity", "sm_occupancy", "tensor_activity", "fp32_activity", "dram_activity")
Activity = dict[str, float | None]  # each of ACTIVITIES -> share of the time (0 to 1), None where unreadable

SIMULATED = "sim:"  # before a GPU's name: not the GPU, but a simulation of it
REPLAYED = "replay:"  # before a file's name: a recording of a device (see `recording`)


class ActivityMeter(Protocol):
    """Mean activity of the device's units between `begin` and `end`."""

    def begin(self) -> None: ...
    def end(self) -> Activity: ...


class Device(Protocol):
    """What the rest of the profiler needs of a device."""

    @property
    def info(self) -> DeviceInfo: ...
    @property
    def torch_device(self) -> torch.device: ...
    def energy_J(self) -> float | None:
        """Cumulative energy counter; only differences mean anything."""
        ...

    def power_W(self) -> float | None: ...
    def reported_clock_Hz(self) -> float | None: ...
    def temperature_C(self) -> float | None: ...
    def memory_temperature_C(self) -> float | None: ...
    def used_memory_B(self) -> float | None: ...
    def activity(self) -> ActivityMeter: ...
    def close(self) -> None: ...


class MeteredDevice(Protocol):
    """What the meter and a recording need of a device; every `Device` has it."""

    @property
    def info(self) -> DeviceInfo: ...
    @property
    def torch_device(self) -> torch.device: ...
    def energy_J(self) -> float | None: ...
    def power_W(self) -> float | None: ...
    def close(self) -> None: ...


class NoActivity:
    """The meter of a device without activity counters: every reading is None."""

    def begin(self) -> None:
        return None

    def end(self) -> Activity:
        return dict.fromkeys(ACTIVITIES)


# --- NVIDIA ----------------------------------------------------------------------------------------------------------

_MILLI = 1e-3
_MEGA = 1e6
_LASTING_ERRORS = (
    "NVML_ERROR_NOT_SUPPORTED",
    "NVML_ERROR_NO_PERMISSION",
    "NVML_ERROR_INVALID_ARGUMENT",
    "NVML_ERROR_FUNCTION_NOT_FOUND",
)
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
        self._lasting = {getattr(nvml, name, None) for name in _LASTING_ERRORS}
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
            name=_text(n.nvmlDeviceGetName(h)),
            vendor="nvidia",
            uuid=_text(n.nvmlDeviceGetUUID(h)),
            memory_B=int(n.nvmlDeviceGetMemoryInfo(h).total),
            multiprocessors=multiprocessors,
            power_limit_W=self._read("limit", lambda n, h: n.nvmlDeviceGetEnforcedPowerLimit(h), _MILLI),
            power_limit_range_W=None if low_W is None or high_W is None else (low_W, high_W),
            clock_max_Hz=self._read("clock max", lambda n, h: n.nvmlDeviceGetMaxClockInfo(h, n.NVML_CLOCK_SM), _MEGA),
            clock_min_Hz=self._read("clock min", _lowest_clock_MHz, _MEGA),
            memory_clock_max_Hz=memory_Hz,
            slowdown_temperature_C=self._read(
                "slowdown",
                lambda n, h: n.nvmlDeviceGetTemperatureThreshold(h, n.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
            ),
            driver=_text(n.nvmlSystemGetDriverVersion()),
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


def _lowest_clock_MHz(nvml: Any, handle: Any) -> float:
    memory_MHz = nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)
    return float(min(nvml.nvmlDeviceGetSupportedGraphicsClocks(handle, memory_MHz)))


def _text(value: Any) -> str:
    """NVML gives bytes or text, depending on its version."""
    return value.decode() if isinstance(value, bytes) else str(value)


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


# --- opening ---------------------------------------------------------------------------------------------------------


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
        from moemodel.profiler.simulated.instruments import open_simulated

        return open_simulated(gpu, known)
    wanted = "cpu" if gpu == "cpu" else resolve(gpu, known)
    if wanted == "cpu":
        return CpuDevice(guess=True)
    nvml = _load_nvml(gpu)
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


def resolve(gpu: str, known: Mapping[str, str]) -> str:
    """The name of the GPU that an alias means; of a simulated one, what it simulates.

    Raises:
        DeviceError: no GPU has that name or alias.
    """
    by_alias = {_plain(alias): name for alias, name in known.items()} | {_plain(name): name for name in known.values()}
    if gpu.startswith(SIMULATED):
        gpu = gpu.removeprefix(SIMULATED).partition("?")[0]
    if _plain(gpu) not in by_alias:
        names = ", ".join(["cpu", *sorted(set(known.values()))])
        raise DeviceError(f"--gpu {gpu}: no GPU of that name is described; there are: {names}")
    return by_alias[_plain(gpu)]


def check_is(wanted: str, found: str, gpu: str, known: Mapping[str, str]) -> None:
    """Check that the device NVML found is the GPU that was asked for.

    Raises:
        DeviceError: it is another one.
    """
    by_alias = {_plain(alias): name for alias, name in known.items()}
    actual = by_alias.get(_plain(found))
    if actual == wanted:
        return
    if actual is None:
        hint = f"if that is a {wanted}, add {found!r} to the aliases in its description"
    else:
        hint = f"that is a {actual}: run with --gpu {actual}"
    raise DeviceError(f"--gpu {gpu} ({wanted}) was asked for, but the GPU here is {found!r}; {hint}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


def _load_nvml(gpu: str) -> Any:
    """The initialised `pynvml` module.

    Raises:
        DeviceError: it is not installed, or finds no driver, no permission or no GPU.
    """
    try:
        import pynvml
    except ImportError as error:
        raise DeviceError(f"--gpu {gpu}: nvidia-ml-py is missing; pip install 'moemodel[profile]'") from error
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        raise DeviceError(f"--gpu {gpu}: {_reason(pynvml, error)}") from error
    if count == 0:
        raise DeviceError(f"--gpu {gpu}: the NVIDIA driver is there, but no GPU; profile on a machine that has one")
    return pynvml


def _reason(nvml: Any, error: Any) -> str:
    if error.value == nvml.NVML_ERROR_NO_PERMISSION:
        return "no permission to read the GPU; ask for access to /dev/nvidia*, or run the container with --gpus"
    if error.value in (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED):
        return (
            "no NVIDIA driver found on this machine; profile on a machine with the GPU (in a container, with "
            "--gpus all), or try the chain without one by --gpu cpu"
        )
    return f"NVML says {error}; check that nvidia-smi works"
