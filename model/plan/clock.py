"""What a plan asks of the SM clock: nothing, or one that it is held at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Auto:
    """The governor decides, up to the highest clock of the GPU."""

    def highest_Hz(self, top_Hz: float) -> float:
        """Clock that may be set at most, on a GPU whose highest is `top_Hz`."""
        return top_Hz


@dataclass(frozen=True)
class Locked:
    """No higher than this; the power limit may still hold it lower."""

    clock_Hz: float

    def highest_Hz(self, top_Hz: float) -> float:  # noqa: ARG002
        """Clock that may be set at most."""
        return self.clock_Hz


Clock = Auto | Locked


def clock_of(clock_MHz: float | None) -> Clock:
    """As a plan writes it: MHz, or null."""
    return Auto() if clock_MHz is None else Locked(clock_MHz * 1e6)
