"""What a plan asks of the SM clock: nothing, one for all, or one for each stage of its pipeline and each phase.

What is asked for is an upper bound: the governor stays on, and holds the clock lower where the power limit needs it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from moemodel.model.core.documents import Strict

# What it takes until a clock that is set stands, in which work goes on at the one before. NVML's call to lock a Tesla
# V100-SXM2-32GB under load takes 4.5 ms in the median and 9.3 ms in the 95th percentile of 6,000, and the clock that is
# reported is the new one as soon as it returns (github.com/thynics/gpu_ctl_probe, d577316, dvfs_compute_high.csv and
# dvfs_compute_low.csv: all are at their target at the first poll). That others are as fast is assumed: Velicka, Vysocky
# and Riha (2025, arXiv 2502.20075) find A100, GH200 and Quadro RTX 6000 to differ much in it.
CHANGE_S = 4.5e-3

PHASES = ("forward", "backward", "optimizer")

Clock_MHz = Annotated[float, Field(ge=1, le=1e5, strict=True)]


def _clock_or(keys: str) -> BeforeValidator:
    """Refuses at once what is neither a clock nor a mapping."""

    def checked(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, float | int | Mapping | BaseModel | None):
            raise ValueError(  # noqa: TRY004 (pydantic takes this one)
                f"allowed: a clock in MHz, null, or a mapping of some of {keys}"
            )
        return value

    return BeforeValidator(checked)


class PhaseClocks(Strict):
    """The clock of each phase of a step; of those that are left out, what stands above them decides."""

    forward: Clock_MHz | None = None
    backward: Clock_MHz | None = None
    optimizer: Clock_MHz | None = None

    def given_MHz(self) -> dict[str, float]:
        """Those that are given, by phase."""
        found = {"forward": self.forward, "backward": self.backward, "optimizer": self.optimizer}
        return {phase: clock for phase, clock in found.items() if clock is not None}


StageClock = Annotated[Clock_MHz | PhaseClocks | None, _clock_or(", ".join(PHASES))]


class ClocksSpec(PhaseClocks):
    """Clocks by phase, and by stage of the pipeline; what a stage does not say is as the phases of all are."""

    stages: Annotated[tuple[StageClock, ...], Field(max_length=10_000)] | None = Field(
        default=None, description="for each stage of the pipeline a clock, null, or clocks by phase"
    )
    change_ms: Annotated[float, Field(ge=0, le=1e4, strict=True)] = Field(
        default=CHANGE_S * 1e3, description="until a clock that is set within a step stands"
    )

    def of_stages(self, pp: int) -> tuple[dict[str, float], ...]:
        """What is asked for, by phase, MHz, for each stage of so many."""
        everywhere = self.given_MHz()
        stages = (None,) * pp if self.stages is None else self.stages
        return tuple(everywhere | _by_phase(stage) for stage in stages)

    def named_MHz(self) -> Iterator[tuple[str, float]]:
        """Every clock that is written, behind its key."""
        yield from self.given_MHz().items()
        for number, stage in enumerate(self.stages or ()):
            if isinstance(stage, PhaseClocks):
                yield from ((f"stages.{number}.{phase}", clock) for phase, clock in stage.given_MHz().items())
            elif stage is not None:
                yield f"stages.{number}", stage


AskedClock = Annotated[Clock_MHz | ClocksSpec | None, _clock_or(", ".join((*PHASES, "stages")))]


def _by_phase(stage: StageClock) -> dict[str, float]:
    if stage is None:
        return {}
    return stage.given_MHz() if isinstance(stage, PhaseClocks) else dict.fromkeys(PHASES, stage)


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


@dataclass(frozen=True)
class ByStage:
    """No higher than these: for each stage of the pipeline that of each of `PHASES`, infinite where the governor
    decides; and how long it takes to change from one to another."""

    limits_Hz: tuple[tuple[float, ...], ...]
    change_s: float = CHANGE_S

    def highest_Hz(self, top_Hz: float) -> float:
        """Clock that may be set at most, in whichever stage and phase."""
        return min(top_Hz, max(max(stage) for stage in self.limits_Hz))

    @property
    def changes_within_a_step(self) -> bool:
        """Whether phases of a stage differ."""
        return any(len(set(stage)) > 1 for stage in self.limits_Hz)


Clock = Auto | Locked | ByStage


def clock_of(clock_MHz: float | None) -> Auto | Locked:
    """One clock as a plan writes it: MHz, or null."""
    return Auto() if clock_MHz is None else Locked(clock_MHz * 1e6)


def one_clock_MHz(clock: Clock) -> float | None:
    """The clock to hold on every GPU; None where the governor decides, or stages and phases differ."""
    return round(clock.clock_Hz / 1e6, 6) if isinstance(clock, Locked) else None


def asked_clock(asked: AskedClock, pp: int, *, trains: bool = True) -> Clock:
    """What a plan with so many stages asks for; the same for all stages and phases is one clock.

    Args:
        asked: as the plan writes it.
        pp: stages of the pipeline.
        trains: whether there are phases behind the forward pass.
    """
    if not isinstance(asked, ClocksSpec):
        return clock_of(asked)
    stages = asked.of_stages(pp)
    phases = PHASES if trains else ("forward",) * len(PHASES)
    limits_Hz = tuple(tuple(stage.get(phase, math.inf) * 1e6 for phase in phases) for stage in stages)
    values = {clock_Hz for stage in limits_Hz for clock_Hz in stage}
    if len(values) > 1:
        return ByStage(limits_Hz, asked.change_ms / 1e3)
    (one_Hz,) = values
    return Auto() if math.isinf(one_Hz) else Locked(one_Hz)


def check_clocks(asked: AskedClock, pp: int, *, trains: bool) -> None:
    """Refuse clocks of stages and phases that a plan doesn't have.

    Raises:
        ValueError: the key, what was found and what is allowed.
    """
    if not isinstance(asked, ClocksSpec):
        return
    if asked.stages is not None and len(asked.stages) != pp:
        raise ValueError(
            f"clock_MHz.stages: found {len(asked.stages)} entries; allowed: {pp}, one for each stage (parallel.pp)"
        )
    for key, clock in asked.named_MHz():
        if not trains and key.endswith(PHASES[1:]):
            raise ValueError(
                f"clock_MHz.{key}: found {clock:g} with mode inference, which trains nothing; allowed: null"
            )


def clock_text(asked: AskedClock) -> str:
    """Clocks as short as a reader can still tell them apart: MHz, `/` between phases, `,` between stages."""
    if not isinstance(asked, ClocksSpec):
        return "auto" if asked is None else f"{asked:g}"
    stages = asked.of_stages(1 if asked.stages is None else len(asked.stages))
    return ",".join(_stage_text(stage) for stage in stages)


def _stage_text(stage: dict[str, float]) -> str:
    values = ["auto" if phase not in stage else f"{stage[phase]:g}" for phase in PHASES]
    return values[0] if len(set(values)) == 1 else "/".join(values)
