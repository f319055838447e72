"""Power and NVLink traffic of one GPU while a load is held."""

from __future__ import annotations

import math
from typing import Any, Protocol

from moemodel.profiler.devices.base import Device
from moemodel.profiler.devices.nvidia import NvidiaDevice

_MIB = 1 << 20
_METRICS = ("NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC", "NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC")


class LinkMeter(Protocol):
    """Mean traffic over all NVLinks of a GPU between `begin` and `end`."""

    def begin(self) -> None: ...
    def end(self) -> tuple[float | None, float | None]:
        """Bytes a second sent, and received; None where it can't be read."""
        ...


class NoLinks:
    """The meter of a device without such counters."""

    def begin(self) -> None:
        return None

    def end(self) -> tuple[float | None, float | None]:
        return None, None


class NvlinkMeter:
    """GPM counters (Hopper and later, no root needed), which NVML gives in MiB a second."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        # The samples live as long as the process: NVML has no owner for them, and there are two a device.
        self._samples = (nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc())
        self._begun = False

    def begin(self) -> None:
        self._begun = self._sample(0)

    def end(self) -> tuple[float | None, float | None]:
        if not (self._begun and self._sample(1)):
            return None, None
        request = self._nvml.c_nvmlGpmMetricsGet_t()
        request.version = self._nvml.NVML_GPM_METRICS_GET_VERSION
        request.sample1, request.sample2 = self._samples
        request.numMetrics = len(_METRICS)
        for index, name in enumerate(_METRICS):
            request.metrics[index].metricId = getattr(self._nvml, name)
        try:
            self._nvml.nvmlGpmMetricsGet(request)
        except self._nvml.NVMLError:
            return None, None
        return self._bps(request.metrics[0]), self._bps(request.metrics[1])

    def _sample(self, index: int) -> bool:
        try:
            self._nvml.nvmlGpmSampleGet(self._handle, self._samples[index])
        except self._nvml.NVMLError:
            return False
        return True

    def _bps(self, metric: Any) -> float | None:
        value = float(metric.value)
        readable = metric.nvmlReturn == self._nvml.NVML_SUCCESS and math.isfinite(value) and value >= 0
        return value * _MIB if readable else None


def link_meter(device: Device) -> LinkMeter:
    """The NVLink meter of a device."""
    if not isinstance(device, NvidiaDevice):
        return NoLinks()
    nvml, handle = device.driver
    try:
        supported = nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice
        if supported and all(hasattr(nvml, name) for name in _METRICS):
            return NvlinkMeter(nvml, handle)
    except (AttributeError, nvml.NVMLError):  # an older nvidia-ml-py, or a GPU without GPM
        pass
    return NoLinks()
