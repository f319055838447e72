"""Locked clocks and power limit of an NVIDIA GPU, set through NVML.

The guardian process runs this too, so it imports nothing heavy: no torch, no numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moemodel.model.core.errors import DeviceError
from moemodel.profiler.clocks.settings import SettingError
from moemodel.profiler.devices.nvml import LASTING_ERRORS, advice, load_nvml

OPEN_NVML = "moemodel.profiler.clocks.nvml_settings:open_nvml"  # for the guardian, see `settings.Address`

_MEGA = 1e6
_MILLI = 1e-3


class NvmlDriver:
    """Those of an NVIDIA GPU.

    Args:
        nvml: the initialised `pynvml` module, or something that behaves like it.
        handle: NVML's handle of the GPU.
        uuid: of the GPU.
    """

    def __init__(self, nvml: Any, handle: Any, uuid: str) -> None:
        self._nvml = nvml
        self._handle = handle
        self._uuid = uuid

    def lock(self, low_Hz: float, high_Hz: float) -> None:
        low_MHz, high_MHz = round(low_Hz / _MEGA), round(high_Hz / _MEGA)
        self._call("lock clocks", lambda n, h: n.nvmlDeviceSetGpuLockedClocks(h, low_MHz, high_MHz))

    def unlock(self) -> None:
        self._call("unlock clocks", lambda n, h: n.nvmlDeviceResetGpuLockedClocks(h))

    def power_limit_W(self) -> float:
        limit_mW = self._call("read the power limit", lambda n, h: n.nvmlDeviceGetPowerManagementLimit(h))
        return float(limit_mW) * _MILLI

    def set_power_limit(self, power_W: float) -> None:
        limit_mW = round(power_W / _MILLI)
        self._call("set the power limit", lambda n, h: n.nvmlDeviceSetPowerManagementLimit(h, limit_mW))

    def by_hand(self, power_W: float | None) -> str:
        return f"nvidia-smi -i {self._uuid} {'-rgc' if power_W is None else f'-pl {power_W:.0f}'}"

    def _call(self, what: str, call: Callable[[Any, Any], Any]) -> Any:
        nvml = self._nvml
        try:
            return call(nvml, self._handle)
        except AttributeError as error:
            raise SettingError(
                f"nvidia-ml-py is too old to {what}; pip install --upgrade nvidia-ml-py", lasting=True
            ) from error
        except nvml.NVMLError as error:
            if error.value == nvml.NVML_ERROR_NO_PERMISSION:
                raise SettingError(
                    f"the driver gives no permission to {what}: it takes root, in a container also --cap-add=SYS_ADMIN",
                    lasting=True,
                ) from error
            if error.value == nvml.NVML_ERROR_NOT_SUPPORTED:
                raise SettingError(f"this GPU or driver can't {what}", lasting=True) from error
            lasting = error.value in {getattr(nvml, name, None) for name in LASTING_ERRORS}
            raise SettingError(f"NVML fails to {what}: {error}", lasting=lasting) from error


def open_nvml(uuid: str) -> NvmlDriver:
    """Those of the NVIDIA GPU with this UUID.

    Raises:
        SettingError: NVML does not reach it.
    """
    try:
        nvml = load_nvml()
    except DeviceError as error:
        raise SettingError(f"NVML does not reach the GPU {uuid}: {error}") from error
    try:
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError as error:
        raise SettingError(f"NVML does not reach the GPU {uuid}: {advice(nvml, error)}") from error
    return NvmlDriver(nvml, handle, uuid)
