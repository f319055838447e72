"""What may be set on a kind of device, and what stands against it, found out without changing anything."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from moemodel.profiler.clocks.nvml_settings import OPEN_NVML, NvmlDriver
from moemodel.profiler.clocks.settings import SettingsDriver
from moemodel.profiler.devices.address import Address
from moemodel.profiler.devices.nvidia import NvidiaDevice
from moemodel.profiler.devices.nvml import supported_clocks_MHz

_SYS_ADMIN = 21  # the bit of CAP_SYS_ADMIN in Linux' capability sets
_MEGA = 1e6
_LOOK_S = 1.2  # NVML's utilization is a mean over a second at most


class DeviceSettings(Protocol):
    """The settings of one device, and whether they may be touched."""

    @property
    def driver(self) -> SettingsDriver:
        """What sets them."""
        ...

    @property
    def address(self) -> Address | None:
        """Where another process finds the settings; None where they die with this process."""
        ...

    def clocks_Hz(self) -> list[float]:
        """Clocks that can be locked."""
        ...

    def obstacle(self) -> str | None:
        """Why its clocks must not be touched even if they can be; None where nothing stands against it."""
        ...

    def company(self) -> str | None:
        """Who else computes on it now; None where nobody is known to."""
        ...

    def missing_privilege(self) -> str | None:
        """Why the driver will refuse; None where it may not."""
        ...


class NvidiaSettings:
    """Of an NVIDIA GPU.

    Args:
        device: the GPU.
        look_s: between two looks at whether the GPU is busy.
    """

    def __init__(self, device: NvidiaDevice, look_s: float = _LOOK_S) -> None:
        self._nvml, self._handle = device.driver
        self._torch_device = device.torch_device
        self._clock_range_Hz = (device.info.clock_min_Hz, device.info.clock_max_Hz)
        self._look_s = look_s
        self._begun = False
        uuid = str(device.info.uuid)
        self.driver: SettingsDriver = NvmlDriver(self._nvml, self._handle, uuid)
        self.address: Address | None = Address(opener=OPEN_NVML, argument=uuid)

    def clocks_Hz(self) -> list[float]:
        """The SM clocks that the driver lists at the highest memory clock, ascending."""
        try:
            listed_MHz = supported_clocks_MHz(self._nvml, self._handle)
        except self._nvml.NVMLError:
            listed_MHz = []
        clocks_Hz = sorted(clock_MHz * _MEGA for clock_MHz in listed_MHz)
        return clocks_Hz or sorted(clock_Hz for clock_Hz in self._clock_range_Hz if clock_Hz is not None)

    def obstacle(self) -> str | None:
        """MIG, or another process that computes on this GPU.

        A container may hide the processes of others from NVML. So before this process does anything on the GPU, it
        must also be at rest.
        """
        if self._mig():
            return "the GPU is cut into MIG slices, whose users would get the locked clock too"
        if self._others() is None:
            return "NVML does not tell who else computes on this GPU"
        company = self.company()
        if company is not None:
            return company
        if not self._begun and self._ours_B() == 0 and self._busy():
            return "the GPU is busy, with a process that NVML does not show from here"
        self._begun = True  # from now on it may be this process that keeps it busy
        return None

    def company(self) -> str | None:
        """Other processes that compute on this GPU, as far as NVML shows them from here."""
        others = self._others()
        return f"another process computes on this GPU ({others} of them; see nvidia-smi)" if others else None

    def _others(self) -> int | None:
        return other_processes(self._nvml, self._handle, os.getpid(), self._ours_B())

    def missing_privilege(self) -> str | None:
        """The Linux driver lets those change clocks who have CAP_SYS_ADMIN (`NV_IS_SUSER` in its kernel module).

        NVML's own `nvmlDeviceGetAPIRestriction` speaks of application clocks only. A container's root may have the
        capability in its own name space alone: then the driver refuses, and says so when it is asked.
        """
        return None if is_administrator() else "it takes root (CAP_SYS_ADMIN), which this process is not"

    def _ours_B(self) -> int:
        """Memory of this process on the GPU; 0 until it has begun to use it."""
        return int(torch.cuda.memory_reserved(self._torch_device))  # 0 too where CUDA isn't initialised

    def _mig(self) -> bool:
        nvml = self._nvml
        try:
            return bool(nvml.nvmlDeviceGetMigMode(self._handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE)
        except (nvml.NVMLError, AttributeError):  # a GPU, or a library, that knows no MIG
            return False

    def _busy(self) -> bool:
        """Whether kernels ran in two windows; one may still show what has just ended."""
        return self._utilization() > 0 and self._later_utilization() > 0

    def _later_utilization(self) -> int:
        time.sleep(self._look_s)
        return self._utilization()

    def _utilization(self) -> int:
        try:
            return int(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
        except (self._nvml.NVMLError, AttributeError):
            return 0


def other_processes(nvml: Any, handle: Any, own_pid: int, ours_B: int) -> int | None:
    """How many processes but this one compute on the GPU; None where NVML does not tell.

    Inside a container NVML may number processes otherwise than we do, so our own number may be missing from its list.
    Then, if we hold memory on the GPU, one of those listed is us: the one that holds at least as much as we do, or
    whose memory is not told. Where we hold none, all of them are others.

    Args:
        nvml: the initialised `pynvml` module, or something that behaves like it.
        handle: NVML's handle of the GPU.
        own_pid: process id of this process, as it knows itself.
        ours_B: memory that this process holds on the GPU.
    """
    try:
        listed = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except (nvml.NVMLError, AttributeError):  # or a library that has another name for it
        return None
    others = [process for process in listed if process.pid != own_pid]
    if len(others) < len(listed) or ours_B == 0:
        return len(others)
    ours = [p for p in others if p.usedGpuMemory is None or p.usedGpuMemory >= ours_B]
    return len(others) - 1 if ours else len(others)


def is_administrator(status: Path = Path("/proc/self/status")) -> bool:
    """Whether this process has CAP_SYS_ADMIN; where the system doesn't tell, whether it is root."""
    try:
        lines = dict(line.partition(":")[::2] for line in status.read_text().splitlines())
        return bool(int(lines["CapEff"], 16) >> _SYS_ADMIN & 1)
    except (OSError, KeyError, ValueError):
        return os.geteuid() == 0
