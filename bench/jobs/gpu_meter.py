"""What a GPU does while a program runs on it. Needs pynvml, and nothing of this project."""

from __future__ import annotations

import threading
from statistics import fmean
from types import TracebackType
from typing import Self

import pynvml

WARM_UP_S, MEASURED_S = 5.0, 8.0

_EVERY_S = 0.05


class GpuMeter:
    """Energy, by the GPU's own counter, and readings every 50 ms, from entry to exit.

    Attributes:
        found: behind it, `energy_J`, and means of `clock_MHz`, `power_W` and `temperature_C`.
    """

    def __init__(self, index: int) -> None:
        pynvml.nvmlInit()
        self.found: dict[str, float] = {}
        self._gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
        self._done = threading.Event()
        self._rows: list[tuple[float, float, float]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._begin_mJ = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        energy_J = (pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu) - self._begin_mJ) / 1e3
        self._done.set()
        self._thread.join()
        if kind is None:
            clocks, powers, temperatures = zip(*self._rows, strict=True)
            self.found = {
                "energy_J": energy_J,
                "clock_MHz": fmean(clocks),
                "power_W": fmean(powers),
                "temperature_C": fmean(temperatures),
            }

    def _read(self) -> None:
        while not self._done.wait(_EVERY_S):
            clock = pynvml.nvmlDeviceGetClockInfo(self._gpu, pynvml.NVML_CLOCK_SM)
            power = pynvml.nvmlDeviceGetPowerUsage(self._gpu) / 1e3
            self._rows.append((clock, power, pynvml.nvmlDeviceGetTemperature(self._gpu, pynvml.NVML_TEMPERATURE_GPU)))
