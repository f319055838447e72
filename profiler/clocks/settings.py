"""Settings of a GPU that the profiler may change: locked clocks and the power limit. `clock_control` changes them.

The guardian process runs this too, so it imports nothing heavy: no torch, no numpy.
"""

from __future__ import annotations

from typing import Literal, Protocol

from moemodel.model.core.errors import DeviceError
from moemodel.profiler.devices.address import Address

Clocks = Literal["passive", "lock", "as-is"]  # how a profile deals with them
AskedClocks = Literal["auto", "passive", "lock", "as-is"]  # auto: the best that is permitted


class SettingError(DeviceError):
    """The driver did not do as it was told.

    Attributes:
        lasting: asking again won't help, and nothing was changed.
    """

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class SettingsDriver(Protocol):
    """Sets the clocks and the power limit of one GPU; every method raises SettingError where the driver refuses."""

    def lock(self, low_Hz: float, high_Hz: float) -> None:
        """Hold the SM clock between two bounds, as far as power and heat allow."""
        ...

    def unlock(self) -> None:
        """Leave the clock to the driver."""
        ...

    def power_limit_W(self) -> float:
        """The limit in force, W."""
        ...

    def set_power_limit(self, power_W: float) -> None:
        """Limit the power, W, until it is set again."""
        ...

    def by_hand(self, power_W: float | None) -> str:
        """The command by which a person unlocks the clocks, or sets a power limit if one is given."""
        ...


def open_driver(address: Address) -> SettingsDriver:
    """What sets the settings at an address that `DeviceSettings` gave.

    Raises:
        SettingError: they can't be reached.
    """
    opened: SettingsDriver = address.open()
    return opened
