"""What it is worth to change clocks within a step, and from which length of passes on.

Held against the same plan with one clock a stage: the mean of its phases' clocks by their time, all stages faster or
slower by the same factor, so that it takes as long. The share of a pass that runs at the wrong clock is that of the
change in the pass, so what changes twice as slow do to a plan, passes half as long do, too: the longest change that
still pays says how long passes have to be. What else grows with passes (bubbles, exposed messages) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.clock import ByStage
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.predict.prediction import Prediction, stage_figures
from moemodel.model.step.system import System

_LONGEST = 64.0  # changes that are tried, over the plan's: passes so much shorter run at the wrong clock throughout
_TRIED = 24
_FACTORS = np.geomspace(0.5, 2.0, 33)  # of the clocks of one clock a stage
_SAME = 1e-4  # of the energy: rounding, and where bisections end


@dataclass(frozen=True, kw_only=True)
class ChangeWorth:
    """Of the changes of a plan's clocks within a step.

    Attributes:
        change_s: what one takes.
        changes: in a step, on the stage that has most.
        lasting_s: of a pass of one micro-batch through a chunk of the mean stage, and of the optimizer, by phase.
        saving: of the energy, against one clock a stage in as much time; negative: more.
        pays_from: how long these have to last for a saving, over what they do; 0: changes always pay; infinite: they
            never do.
    """

    change_s: float
    changes: int
    lasting_s: dict[str, float]
    saving: float
    pays_from: float

    def text(self) -> str:
        """In sentences."""
        taken = (
            f"A change of the clock takes {self.change_s * 1e3:g} ms (clock_MHz.change_ms), in which work goes on at "
            f"the clock before; there are up to {self.changes} a step on a stage. Phases last "
            f"{_lengths(self.lasting_s, 1.0)}."
        )
        return f"{taken} {self._worth()}"

    def _worth(self) -> str:
        kind = "saves" if self.saving > 0 else "costs"
        found = (
            f"Against one clock a stage in as much time, changing within the step {kind} {abs(self.saving):.1%} of the "
            "GPU energy"
        )
        if np.isinf(self.pays_from):
            return f"{found}; with phases so long that changes hardly count it would save nothing."
        if self.pays_from == 0.0:
            return f"{found}; it saves with phases of any length."
        return f"{found}; it saves from phases of about {_lengths(self.lasting_s, self.pays_from)} on."


def _lengths(lasting_s: dict[str, float], factor: float) -> str:
    """So many times as long, in words."""
    times_ms = {phase: factor * time_s * 1e3 for phase, time_s in lasting_s.items()}
    return ", ".join(f"{time_ms:.{0 if time_ms >= 9.95 else 1}f} ms {phase}" for phase, time_ms in times_ms.items())


def change_worth(plan: Plan, architecture: Architecture, machine: System, prediction: Prediction) -> ChangeWorth | None:
    """Of a plan whose clocks change within a step; None of another, and where power is not known.

    Args:
        plan: of a batch of one.
        architecture, machine: that it trains, and on what.
        prediction: of it.
    """
    clock, figures = plan.clock, stage_figures(prediction)
    if not isinstance(clock, ByStage) or not clock.changes_within_a_step or figures is None:
        return None
    if machine.calibration.power.points == 0:
        return None
    changes_s = np.array([0.0, *np.geomspace(1 / _LONGEST, _LONGEST, _TRIED)]) * clock.change_s
    time_s, energy_J = _with_changes(plan, architecture, machine, changes_s)
    others = _one_clock_a_stage(plan, architecture, machine, _mean_clocks_Hz(prediction, figures.set_Hz[0]))
    saved = 1 - energy_J / _energy_in(time_s, *others)
    chunks, stages = plan.parallel.virtual_stages, plan.parallel.pp
    passes = plan.micro_batches * chunks
    counted = [batch_of(plan).schedules.changes(stage)[0] for stage in range(stages)]
    return ChangeWorth(
        change_s=clock.change_s,
        changes=max(counted),
        lasting_s={
            "forward": float(prediction.forward_s[0]) / passes,
            "backward": float(prediction.backward_s[0]) / passes,
            "optimizer": float(prediction.optimizer_s[0]),
        },
        saving=float(np.interp(clock.change_s, changes_s, saved)),
        pays_from=_pays_from(changes_s, saved, clock.change_s),
    )


def _with_changes(
    plan: Plan, architecture: Architecture, machine: System, changes_s: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Time and energy of a step if changes took so long."""
    one = batch_of(plan)
    rows = one.take(np.zeros(len(changes_s), dtype=np.int64))
    found = predict(architecture, replace(rows, clock_change_s=changes_s), machine)
    return found.step_time_s, found.energy_J


def _one_clock_a_stage(
    plan: Plan, architecture: Architecture, machine: System, clock_Hz_S: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Time and energy of a step with each stage at one clock, for several factors."""
    low_Hz, high_Hz = machine.calibration.clock_range_Hz
    clocks = np.clip(_FACTORS[:, None] * clock_Hz_S, low_Hz, high_Hz)
    one = batch_of(plan)
    rows = one.take(np.zeros(len(clocks), dtype=np.int64))
    found = predict(architecture, rows.with_limits_Hz(np.repeat(clocks[:, :, None], 3, axis=2)), machine)
    return found.step_time_s, found.energy_J


def _mean_clocks_Hz(prediction: Prediction, set_Hz_SF: FloatArray) -> FloatArray:
    """Of the phases of each stage, by their time on the mean stage, [S]."""
    lasting = np.array([prediction.forward_s[0], prediction.backward_s[0], prediction.optimizer_s[0]])
    return np.asarray(set_Hz_SF @ lasting / lasting.sum())


def _energy_in(time_s: FloatArray, others_s: FloatArray, others_J: FloatArray) -> FloatArray:
    """Least energy of the others in no more than each time, linear between them; of the fastest beyond it."""
    order = np.argsort(others_s)
    return np.asarray(np.interp(time_s, others_s[order], np.minimum.accumulate(others_J[order])))


def _pays_from(changes_s: FloatArray, saved: FloatArray, change_s: float) -> float:
    """Length of passes over what they take, from which on changes that take `change_s` save energy."""
    pays = saved > _SAME
    if not pays[0]:
        return float("inf")
    if pays.all() or change_s == 0.0:
        return 0.0
    first = int(np.argmin(pays))  # change that no longer pays
    share = (saved[first - 1] - _SAME) / (saved[first - 1] - saved[first])
    longest_s = changes_s[first - 1] + share * (changes_s[first] - changes_s[first - 1])
    return float(change_s / longest_s) if longest_s > 0 else float("inf")
