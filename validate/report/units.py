"""How quantities of a report are called and written, in a table and in a page."""

from __future__ import annotations

from dataclasses import dataclass

DIGITS_FROM = 1000  # a number from here on is written without decimals: it has its four digits


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A quantity's name for a reader, the same in a word, its unit, and what SI values are multiplied by."""

    label: str
    short: str
    symbol: str
    scale: float


UNITS: dict[str, Unit] = {
    "step_time": Unit(label="step time", short="time", symbol="ms", scale=1e3),
    "energy": Unit(label="energy of a step", short="energy", symbol="J", scale=1.0),
    "power": Unit(label="power of a GPU", short="power", symbol="W", scale=1.0),
    "memory": Unit(label="peak memory", short="memory", symbol="GB", scale=1e-9),
    "clock": Unit(label="true SM clock", short="clock", symbol="MHz", scale=1e-6),
}
PHASES: dict[str, Unit] = {
    "forward": Unit(label="forward pass", short="forward", symbol="ms", scale=1e3),
    "backward": Unit(label="backward pass", short="backward", symbol="ms", scale=1e3),
    "optimizer": Unit(label="optimizer", short="optimizer", symbol="ms", scale=1e3),
}


def number(value: float) -> str:
    """Four digits, and no decimals from a thousand on; trailing zeros left out."""
    return f"{value:,.0f}" if abs(value) >= DIGITS_FROM else f"{value:.4g}"


def percent(share: float | None, *, signed: bool = False) -> str:
    """A share in per cent; empty where there is none."""
    if share is None:
        return ""
    return f"{share:+.1%}" if signed else f"{share:.1%}"
