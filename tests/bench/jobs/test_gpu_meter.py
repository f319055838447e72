"""The meter of other people's trainers, on an NVML that is made up."""

from __future__ import annotations

import time
from typing import Any

import pytest


class _Nvml:
    """A GPU that draws 500 W at 1.5 GHz and 60 C, by the wall clock."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: int) -> float:
        assert gpu == 3
        return 500e3 * time.monotonic()

    def nvmlDeviceGetClockInfo(self, _gpu: int, kind: int) -> int:
        return {self.NVML_CLOCK_SM: 1500}[kind]

    def nvmlDeviceGetPowerUsage(self, _gpu: int) -> int:
        return 500_000

    def nvmlDeviceGetTemperature(self, _gpu: int, kind: int) -> int:
        return {self.NVML_TEMPERATURE_GPU: 60}[kind]


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Any:
    import gpu_meter

    monkeypatch.setattr(gpu_meter, "pynvml", _Nvml())
    return gpu_meter.GpuMeter(3)


def test_energy_is_the_counter_s_and_the_rest_means_of_readings(meter: Any) -> None:
    begin_s = time.monotonic()
    with meter:
        time.sleep(0.3)
    lasted_s = time.monotonic() - begin_s
    assert 500 * 0.3 <= meter.found["energy_J"] <= 500 * lasted_s
    means = [meter.found[name] for name in ("clock_MHz", "power_W", "temperature_C")]
    assert means == [1500, 500, 60]


def test_what_failed_has_no_figures(meter: Any) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), meter:
        raise RuntimeError("out of memory")
    assert meter.found == {}
