"""Clocks of a plan's own for each stage and phase: what stages they make differ, and which clocks the governor grants.

A clock that is asked for is an upper bound. The governor has one ceiling for the GPU; in each phase this runs at the
ceiling or at the phase's bound, whichever is lower. So the governor is solved as for any plan (`sustained_clock`), with
every phase priced at no more than its bound and the others' stages at theirs, and each phase's clock is the lower one.

Left out: what changing a clock costs.

Axes: P plans that share their pipeline, K clocks that blocks are priced at, G clocks that the governor chooses from; R
runs of stages that do the same at the same clocks, S stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.device.dvfs import at_clocks, time_at_clocks
from moemodel.model.plan.clock import PHASES
from moemodel.model.predict.phases import ByPhase, ClockedCost, DeviceCosts

# Between clocks of the grid that a GPU doesn't say its own step of: that of NVIDIA's (`nvidia-smi -q -d
# SUPPORTED_CLOCKS` on A100, H100: 15 MHz).
_STEP_Hz = 15e6


@dataclass(frozen=True, kw_only=True)
class StageFigures:
    """What is predicted of each stage. [P, S, 3] by phase (`plan.clock.PHASES`), [P, S] else; NaN of plans with one
    clock for all and of stages that a plan doesn't have.

    Attributes:
        asked_Hz: clocks that may be set at most; infinite where the governor decides.
        set_Hz: mean clock that is set.
        clock_Hz: true SM clock while kernels run, cycles that tensor cores skip left out.
        power_W: mean of a GPU of the stage over the step.
    """

    asked_Hz: FloatArray
    set_Hz: FloatArray
    clock_Hz: FloatArray
    power_W: FloatArray

    @classmethod
    def together(cls, parts: Sequence[tuple[IntArray, StageFigures]], shape: tuple[int, ...]) -> StageFigures:
        """Plans of several pipelines in one order.

        Args:
            parts: rows, and what stands there.
            shape: of what is made, [P, S, 3].
        """
        columns = {f.name: np.full(shape[:2] if f.name == "power_W" else shape, np.nan) for f in fields(cls)}
        for rows, part in parts:
            for name, column in columns.items():
                values = getattr(part, name)
                column[rows, : values.shape[1]] = values
        return cls(**columns)


@dataclass(frozen=True, kw_only=True)
class StageRuns:
    """Stages of a pipeline, put together where they do the same at the same clocks.

    Attributes:
        stages: of each run, in the order of the classes of stages, as where one clock holds for all.
        limits_Hz: clocks that may be set at most in each run.
    """

    stages: list[tuple[int, ...]]
    limits_Hz: list[ByPhase[FloatArray]]

    @classmethod
    def of(cls, classes: Sequence[Sequence[int]], limits_Hz: FloatArray) -> StageRuns:
        """Of classes of stages that do the same.

        Args:
            classes: stages of each.
            limits_Hz: clocks by stage and phase, [P, S, 3].
        """
        runs = [run for members in classes for run in _equal(members, limits_Hz)]
        bounds = [limits_Hz[:, run[0]] for run in runs]
        return cls(stages=runs, limits_Hz=[ByPhase(**dict(zip(PHASES, bound.T, strict=True))) for bound in bounds])

    def counts(self, classes: Sequence[Sequence[int]]) -> list[list[int]]:
        """How many stages each run has, by class."""
        return [[len(run) for run in self.stages if run[0] in members] for members in classes]

    def within(self, low_Hz: float, high_Hz: float) -> list[ByPhase[FloatArray]]:
        """The limits, no further than the clocks that are priced."""
        return [limits.map(lambda limit_Hz: np.clip(limit_Hz, low_Hz, high_Hz)) for limits in self.limits_Hz]

    def figures(
        self, clocks: Sequence[ByPhase[FloatArray]], devices: Sequence[DeviceCosts], powers_W: Sequence[FloatArray]
    ) -> StageFigures:
        """Of each stage.

        Args:
            clocks: that are set in each run, [P].
            devices: at these clocks, [P, 1].
            powers_W: of a GPU of each run, [P].
        """
        return StageFigures(
            asked_Hz=self.each([_phase_clocks(limits) for limits in self.limits_Hz]),
            set_Hz=self.each([_phase_clocks(clock) for clock in clocks]),
            clock_Hz=self.each([_phase_clocks(device.map(_true_clock_Hz)) for device in devices]),
            power_W=self.each(powers_W),
        )

    def each(self, values: Sequence[FloatArray]) -> FloatArray:
        """What is given for each run, for each stage in its order: [P, ...] each to [P, S, ...]."""
        place = {stage: run for run, stages in enumerate(self.stages) for stage in stages}
        return np.stack([values[place[stage]] for stage in range(len(place))], axis=1)


def _equal(members: Sequence[int], limits_Hz: FloatArray) -> list[tuple[int, ...]]:
    """Stages of a class, cut where the clocks of any plan change from one to the next."""
    changes = [
        index > 0 and bool((limits_Hz[:, members[index - 1]] != limits_Hz[:, stage]).any())
        for index, stage in enumerate(members)
    ]
    numbered = zip(members, np.cumsum(changes).tolist(), strict=True)
    return [tuple(stage for stage, _ in run) for _, run in groupby(numbered, key=lambda pair: pair[1])]


def governor_grid(clock_Hz_K: FloatArray, step_Hz: float | None) -> FloatArray:
    """Clocks that the governor is solved at: those that can be set, where the bounds lie, and those that are priced."""
    low_Hz, high_Hz = clock_Hz_K[0], clock_Hz_K[-1]
    steps = np.arange(low_Hz, high_Hz, step_Hz or _STEP_Hz)
    together = np.sort(np.concatenate([steps, clock_Hz_K]))
    apart = np.diff(together, prepend=-np.inf) > 1.0  # Hz: else one clock twice, but for rounding
    clock_Hz_G: FloatArray = together[apart]
    return clock_Hz_G


def bounded(
    device: DeviceCosts, limits: ByPhase[FloatArray], clock_Hz_K: FloatArray, clock_Hz_G: FloatArray
) -> DeviceCosts:
    """What a stage does if the governor's ceiling is one of G clocks and each phase has a bound, [P, G]."""

    def phase(cost: ClockedCost, limit_Hz_P: FloatArray) -> ClockedCost:
        clock_Hz_PG = np.minimum(clock_Hz_G, limit_Hz_P[:, None])
        period_like_s = time_at_clocks(cost.cycles / clock_Hz_K, clock_Hz_K, clock_Hz_PG)
        return ClockedCost(
            time_s=time_at_clocks(cost.time_s, clock_Hz_K, clock_Hz_PG),
            energy_J=at_clocks(cost.energy_J, clock_Hz_K, clock_Hz_PG),
            cycles=period_like_s * clock_Hz_PG,
        )

    return device.join(limits, phase)


def ceiling_Hz(limits: ByPhase[FloatArray]) -> FloatArray:
    """The highest clock of any phase, [P]."""
    return np.asarray(np.maximum.reduce([limits.forward, limits.backward, limits.optimizer]))


def _true_clock_Hz(cost: ClockedCost) -> FloatArray:
    """Of a phase, [P]; NaN where nothing runs."""
    unknown = np.full(np.shape(cost.time_s), np.nan)
    clock_Hz: FloatArray = np.divide(cost.cycles, cost.time_s, out=unknown, where=cost.time_s > 0)
    return clock_Hz[:, 0]


def _phase_clocks(phases: ByPhase[FloatArray]) -> FloatArray:
    """In the order of `PHASES`, [P, 3]."""
    return np.stack([phases.forward, phases.backward, phases.optimizer], axis=-1)
