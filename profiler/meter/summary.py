"""What the meter found out: figures with their units in the names, and what to know before using them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class PhaseSummary:
    """One phase on one device.

    Attributes:
        calls: how often it ran.
        time_s: in all.
        mean_time_s: of one call, with its standard error over calls.
        power_W: mean; None where it cannot be told apart (see the notes, and `GroupSummary`).
        power_standard_error_W: see `attribution`; None also for a power at its bound of 0 W.
        energy_J: power times time, of all calls.
    """

    calls: int
    time_s: float
    mean_time_s: float
    mean_time_standard_error_s: float | None
    power_W: float | None = None
    power_standard_error_W: float | None = None
    energy_J: float | None = None
    energy_standard_error_J: float | None = None


@dataclass(frozen=True, kw_only=True)
class GroupSummary:
    """Phases that come in the same mix in every interval of the counter: their mean power is all that can be told."""

    phases: tuple[str, ...]
    power_W: float | None
    power_standard_error_W: float | None


@dataclass(frozen=True, kw_only=True)
class DeviceSummary:
    """One device over the session.

    Attributes:
        steps: that were read.
        step_time_s: mean, with its standard error over steps and the deviation of a single step.
        step_energy_J: mean, likewise. Of a single step shorter than the counter's tick it is smoothed over the tick.
        duration_s: of the session, what lies between steps included.
        energy_J: of the session; None where nothing measures it.
        energy_source: "counter", or "power readings" (about one a second) where the counter can't be trusted.
        phases: by name.
        groups: phases that cannot be told apart.
        read_by: what read the sensors: "process", one of its own, or a "thread" of this one; None: nothing did.
        counter_lag_s, residual_share, intervals: of the attribution; None where there is none.
        notes: what to know before using these figures.
    """

    device: str
    name: str
    uuid: str | None
    steps: int
    step_time_s: float | None
    step_time_standard_error_s: float | None
    step_time_deviation_s: float | None
    step_energy_J: float | None
    step_energy_standard_error_J: float | None
    duration_s: float
    energy_J: float | None
    power_W: float | None
    energy_source: str | None
    phases: dict[str, PhaseSummary]
    groups: tuple[GroupSummary, ...]
    counter_lag_s: float | None
    residual_share: float | None
    intervals: int | None
    notes: tuple[str, ...]
    read_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A session of one process.

    Attributes:
        rank: of the process; 0 where there is one only.
        world_size: processes in the job.
        start_unix_s: when the session began.
        devices: metered by this process.
        micro_batches, samples, tokens: of the steps that were told (`Meter.add_batch`); None where one was not.
        notes: of the meter itself: what failed.
    """

    rank: int
    world_size: int
    start_unix_s: float
    devices: tuple[DeviceSummary, ...]
    notes: tuple[str, ...]
    micro_batches: int | None = None
    samples: int | None = None
    tokens: int | None = None

    @property
    def energy_J(self) -> float | None:
        """Of all devices of this process; None if any is unknown."""
        energies_J = [device.energy_J for device in self.devices]
        known_J = [energy_J for energy_J in energies_J if energy_J is not None]
        return sum(known_J) if known_J and len(known_J) == len(energies_J) else None

    def to_json(self) -> str:
        """Names carry units; unknown figures are null."""
        return json.dumps({**asdict(self), "energy_J": self.energy_J}, indent=2, allow_nan=False)
