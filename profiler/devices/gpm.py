"""GPM: counters of an NVIDIA GPU's units and links (Hopper and later, no root needed), as means between two times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class GpmCounters:
    """Some metrics of one GPU between `begin` and `end`.

    Each object has samples of its own, so that the windows of two may overlap; one object has one window at a time.

    Args:
        nvml: the initialised `pynvml` module, or something that behaves like it.
        handle: NVML's handle of the GPU.
        metrics: our name -> NVML's constant (`NVML_GPM_METRIC_...`).
        scale: what one of NVML's units is in ours.

    Raises:
        AttributeError: this library does not know one of the metrics, or GPM.
        nvml.NVMLError: there is no room for samples.
    """

    def __init__(self, nvml: Any, handle: Any, metrics: Mapping[str, str], scale: float) -> None:
        self._nvml, self._handle, self._scale = nvml, handle, scale
        self._metrics = {name: getattr(nvml, constant) for name, constant in metrics.items()}
        # The samples live as long as the process: NVML has no owner for them, and there are two an object.
        self._samples = (nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc())
        self._begun = False

    def begin(self) -> None:
        """Take the first sample."""
        self._begun = self._sample(0)

    def end(self) -> dict[str, float | None]:
        """Our name -> mean since `begin`, scaled; None where it can't be read."""
        request = self._request() if self._begun and self._sample(1) else None
        if request is None:
            return dict.fromkeys(self._metrics)
        return {name: self._value(request.metrics[i]) for i, name in enumerate(self._metrics)}

    def _request(self) -> Any | None:
        """NVML's answer about both samples; None where it refuses."""
        request = self._nvml.c_nvmlGpmMetricsGet_t()
        request.version = self._nvml.NVML_GPM_METRICS_GET_VERSION
        request.sample1, request.sample2 = self._samples
        request.numMetrics = len(self._metrics)
        for i, metric in enumerate(self._metrics.values()):
            request.metrics[i].metricId = metric
        try:
            self._nvml.nvmlGpmMetricsGet(request)
        except (AttributeError, OSError, self._nvml.NVMLError):
            return None
        return request

    def _sample(self, i: int) -> bool:
        try:
            self._nvml.nvmlGpmSampleGet(self._handle, self._samples[i])
        except (AttributeError, OSError, self._nvml.NVMLError):
            return False
        return True

    def _value(self, metric: Any) -> float | None:
        value = float(metric.value)
        readable = metric.nvmlReturn == self._nvml.NVML_SUCCESS and math.isfinite(value) and value >= 0
        return value * self._scale if readable else None
