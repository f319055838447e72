"""What CodeCarbon measured: single readings, levels, a session; energies in joules, with the PUE."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple


class CarbonReading(NamedTuple):
    """What CodeCarbon says of a session, a step or a phase; energies as it multiplies them with the PUE.

    `step` is the step's index, -1 outside steps; `phase` is "" where it is a step or session.
    """

    step: int
    phase: str
    duration_s: float
    gpu_J: float
    cpu_J: float
    ram_J: float
    emissions_kg: float


@dataclass(frozen=True, kw_only=True)
class LevelSummary:
    """One level over the session.

    Attributes:
        readings: sessions, steps or phases measured.
        duration_s: they lasted, as CodeCarbon has it.
        gpu_J, cpu_J, ram_J: their energy.
        emissions_kg: of CO2-equivalent.
        setup_s: to make the tracker and find the hardware, before the session.
        inside_s: in CodeCarbon's calls, in the thread that trains.
        waited_s: for the device, before readings; not all of it is lost (the device worked meanwhile).
        background_s: in CodeCarbon's threads; None where this version of it does not let that be measured.
        share_of_time: `inside_s` over the session's time.
        inside_s_per_step: `inside_s` over the steps; None without steps.
    """

    readings: int
    duration_s: float
    gpu_J: float
    cpu_J: float
    ram_J: float
    emissions_kg: float
    setup_s: float
    inside_s: float
    waited_s: float
    background_s: float | None
    share_of_time: float
    inside_s_per_step: float | None


@dataclass(frozen=True, kw_only=True)
class CarbonSummary:
    """CodeCarbon's session on one rank.

    Attributes:
        folder: of its files.
        run, model, rank: as given.
        country, region: whose electricity.
        pue: that CodeCarbon multiplied energies with.
        steps: measured.
        duration_s: of the session.
        levels: "session", "step", "phase" -> what it measured and what it cost.
        notes: what to know before using these figures, and what CodeCarbon warned of.
    """

    folder: str
    run: str
    model: str
    rank: int
    country: str
    region: str | None
    pue: float
    steps: int
    duration_s: float
    levels: Mapping[str, LevelSummary]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """Names carry units; unknown figures are null."""
        return json.dumps(asdict(self), indent=2, allow_nan=False)
