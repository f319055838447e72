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

    def begin(self) -> None:
        """Begin a window."""
        ...

    def end(self) -> Activity:
        """End it: shares of its time, 0 to 1."""
        ...


class LinkMeter(Protocol):
    """Mean traffic over the device's links to others between `begin` and `end`."""

    def begin(self) -> None:
        """Begin a window."""
        ...

    def end(self) -> LinkTraffic:
        """End it: bytes a second in it."""
        ...


class Device(Protocol):
    """What the rest of the profiler needs of a device."""

    @property
    def info(self) -> DeviceInfo:
        """What it is: name, driver, limits."""
        ...

    @property
    def torch_device(self) -> torch.device:
        """As torch names it."""
        ...

    def energy_J(self) -> float | None:
        """Cumulative energy counter; only differences mean anything."""
        ...

    def power_W(self) -> float | None:
        """Power that the sensor says now, W."""
        ...

    def reported_clock_Hz(self) -> float | None:
        """SM clock that the driver says, Hz; under load the true one is lower."""
        ...

    def temperature_C(self) -> float | None:
        """Of the die, C."""
        ...

    def memory_temperature_C(self) -> float | None:
        """Of the memory, C."""
        ...

    def used_memory_B(self) -> float | None:
        """Memory in use by all processes, bytes."""
        ...

    def activity(self) -> ActivityMeter:
        """A meter of how busy its units are."""
        ...

    def link_traffic(self) -> LinkMeter:
        """A meter of what its links carry."""
        ...

    def close(self) -> None:
        """Give back what reading it takes."""
        ...


class MeteredDevice(Protocol):
    """What the meter and a recording need of a device; every `Device` has it."""

    @property
    def info(self) -> DeviceInfo:
        """What it is: name, driver, limits."""
        ...

    @property
    def torch_device(self) -> torch.device:
        """As torch names it."""
        ...

    def energy_J(self) -> float | None:
        """Cumulative energy counter, J; only differences mean anything."""
        ...

    def power_W(self) -> float | None:
        """Power that the sensor says now, W."""
        ...

    def close(self) -> None:
        """Give back what reading it takes."""
        ...


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
