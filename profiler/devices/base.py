"""The device being measured: what it is and what its sensors say. Reads only: `clocks` alone changes settings.

Every sensor returns a float in SI units (temperatures in degrees Celsius) or None where the device has no such sensor.
"""

from __future__ import annotations

from typing import Protocol

import torch

from moemodel.model.records.profile import DeviceInfo

ACTIVITIES = ("sm_activity", "sm_occupancy", "tensor_activity", "fp32_activity", "dram_activity")
Activity = dict[str, float | None]  # each of ACTIVITIES -> share of the time (0 to 1), None where unreadable
LINK_TRAFFIC = ("sent_Bps", "received_Bps")
LinkTraffic = dict[str, float | None]  # each of LINK_TRAFFIC -> bytes a second over all links, None where unreadable


class ActivityMeter(Protocol):
    """Mean activity of the device's units between `begin` and `end`."""

    def begin(self) -> None: ...
    def end(self) -> Activity: ...


class LinkMeter(Protocol):
    """Mean traffic over the device's links to others between `begin` and `end`."""

    def begin(self) -> None: ...
    def end(self) -> LinkTraffic: ...


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
    def link_traffic(self) -> LinkMeter: ...
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


class NoLinks:
    """The meter of a device whose links have no counters: every reading is None."""

    def begin(self) -> None:
        return None

    def end(self) -> LinkTraffic:
        return dict.fromkeys(LINK_TRAFFIC)
