"""Clocks by stage and phase in the answer of one plan: what was asked for, what is granted, what a reader has to know
about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from moemodel.model.plan.clock import PHASES, ByStage
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.prediction import Prediction, stage_figures
from moemodel.model.results.clock_changes import ChangeWorth
from moemodel.model.results.estimate import finite

_GRANTED = 0.995  # of a clock: less is a step of an H100's lower
_MOST_SHOWN = 4  # clocks that are not granted, in a note


@dataclass(frozen=True, kw_only=True)
class StageOutcome:
    """One stage of a pipeline. Clocks by phase.

    Attributes:
        stage: counted from 0.
        asked_Hz: clock that may be set at most; None where the governor decides.
        set_Hz: mean clock that is set; NaN in phases that a plan of inference doesn't have.
        clock_Hz: true SM clock while kernels run.
        power_W: mean of a GPU of the stage over the step.
    """

    stage: int
    asked_Hz: dict[str, float | None]
    set_Hz: dict[str, float]
    clock_Hz: dict[str, float]
    power_W: float

    def to_json(self) -> dict[str, Any]:
        """Clocks in MHz."""
        return {
            "stage": self.stage,
            "clock_asked_MHz": {phase: None if hz is None else hz / 1e6 for phase, hz in self.asked_Hz.items()},
            "clock_set_MHz": {phase: finite(hz / 1e6) for phase, hz in self.set_Hz.items()},
            "clock_MHz": {phase: finite(hz / 1e6) for phase, hz in self.clock_Hz.items()},
            "power_per_gpu_W": finite(self.power_W),
        }


def stage_outcomes(plan: Plan, prediction: Prediction) -> tuple[StageOutcome, ...]:
    """Every stage of a plan with clocks by stage or phase; none of another."""
    figures = stage_figures(prediction)
    if figures is None:
        return ()
    phases = PHASES if plan.mode == "training" else PHASES[:1]
    return tuple(
        StageOutcome(
            stage=stage,
            asked_Hz={p: None if math.isinf(hz) else hz for p, hz in _by_phase(figures.asked_Hz[0, stage], phases)},
            set_Hz=dict(_by_phase(figures.set_Hz[0, stage], phases)),
            clock_Hz=dict(_by_phase(figures.clock_Hz[0, stage], phases)),
            power_W=float(figures.power_W[0, stage]),
        )
        for stage in range(plan.parallel.pp)
    )


def _by_phase(values: Any, phases: tuple[str, ...]) -> list[tuple[str, float]]:
    return list(zip(phases, values.tolist(), strict=False))


def notes_on_stage_clocks(plan: Plan, cap_W: float, prediction: Prediction, worth: ChangeWorth | None) -> list[str]:
    """What has to be said about clocks by stage and phase, a sentence or two each.

    Args:
        plan: of one batch.
        cap_W: power limit in force.
        prediction: of it.
        worth: of changing clocks within a step.
    """
    clock = plan.clock
    if not isinstance(clock, ByStage):
        return []
    found = [
        "Clocks by stage and phase are bounds that somebody must be permitted to set (a GPU's lock); steps at "
        "locked clocks were never measured on a real card by this project.",
    ]
    if worth is not None:
        found.append(worth.text())
    refused = _not_granted(stage_outcomes(plan, prediction))
    if refused:
        more = f" and {len(refused) - _MOST_SHOWN} more" if len(refused) > _MOST_SHOWN else ""
        found.append(
            f"Under the power limit of {cap_W:g} W not every clock is granted: "
            f"{'; '.join(refused[:_MOST_SHOWN])}{more}."
        )
    return found


def _not_granted(stages: tuple[StageOutcome, ...]) -> list[str]:
    """Clocks that were asked for and that the governor does not let stand."""
    return [
        f"stage {stage.stage} {phase} {stage.set_Hz[phase] / 1e6:.0f} of {asked_Hz / 1e6:.0f} MHz"
        for stage in stages
        for phase, asked_Hz in stage.asked_Hz.items()
        if asked_Hz is not None and stage.set_Hz[phase] < _GRANTED * asked_Hz
    ]
