"""Clocks of a plan's own for each stage and phase: what stages they make differ, and which clocks the governor grants.

A clock that is asked for is an upper bound. The governor has one ceiling for the GPU; in each phase this runs at the
ceiling or at the phase's bound, whichever is lower. So the governor is solved as for any plan (`sustained_clock`), with
every phase priced at no more than its bound and the others' stages at theirs, and each phase's clock is the lower one.

Where phases of a stage have bounds that differ, its clock changes within the step. Until the new clock stands, the work
goes on at the one before: of each pass that follows another phase's, a share runs at that phase's clock, all of a pass
that is shorter than the change. What is left out: that a change which is asked for before a wait is hidden by it, and
that the governor, too, needs time.

Axes: P plans that share their pipeline, K clocks that blocks are priced at, G clocks that the governor chooses from; R
runs of stages that do the same at the same clocks, S stages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import groupby, product

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray, largest
from moemodel.model.device.dvfs import at_clocks, time_at_clocks
from moemodel.model.plan.batch import PlanBatch
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
class ClockChanges:
    """How the clock of a run of stages changes within a step.

    Attributes:
        shares: of the passes of a phase, those before which the clock changes from that of another phase: by both
            phases, the later first, [P, 1]; without those that are none.
        change_s: until a clock that is set stands, [P, 1].
        virtual: passes that a micro-batch's falls into, one for each chunk of a stage, [P, 1].
    """

    shares: dict[str, dict[str, FloatArray]]
    change_s: FloatArray
    virtual: FloatArray

    @classmethod
    def of(cls, stages: Sequence[int], limits_Hz: FloatArray, plans: PlanBatch) -> ClockChanges | None:
        """Of stages with the same clocks, [P, 3]; the mean over them."""
        if (limits_Hz == limits_Hz[:, :1]).all():
            return None
        follow = np.mean([plans.schedules.phase_changes(stage) for stage in stages], axis=0)
        shares: dict[str, dict[str, FloatArray]] = {}
        for (i, later), (j, earlier) in product(enumerate(PHASES), repeat=2):
            share = np.where(limits_Hz[:, i] != limits_Hz[:, j], follow[:, i, j], 0.0)
            if share.any():
                shares.setdefault(later, {})[earlier] = share[:, None]
        return cls(
            shares=shares,
            change_s=plans.clock_change_s[:, None],
            virtual=plans.virtual_stages[:, None].astype(np.float64),
        )

    def take(self, rows: IntArray) -> ClockChanges:
        """Those of the plans at these rows."""
        return ClockChanges(
            shares={phase: {p: s[rows] for p, s in before.items()} for phase, before in self.shares.items()},
            change_s=self.change_s[rows],
            virtual=self.virtual[rows],
        )

    def cost(self, phase: str, clocks: ByPhase[FloatArray], at: Callable[[FloatArray], ClockedCost]) -> ClockedCost:
        """Of a phase that begins, some of its passes, at the clock of another.

        Args:
            phase: its name.
            clocks: of the phases.
            at: what the phase costs at clocks, [P, X].
        """
        found = at(getattr(clocks, phase))
        chunks = 1.0 if phase == "optimizer" else self.virtual
        parts, in_time = [], np.ones_like(found.time_s)
        for earlier, share in self.shares.get(phase, {}).items():
            before = at(getattr(clocks, earlier))
            pass_s = np.maximum(before.time_s / chunks, np.finfo(np.float64).tiny)
            late = share * np.minimum(1.0, self.change_s / pass_s)
            parts.append((late, before))
            in_time = in_time - late
        parts.append((in_time, found))
        return ClockedCost(
            time_s=np.asarray(sum(part * cost.time_s for part, cost in parts)),
            energy_J=np.asarray(sum(part * cost.energy_J for part, cost in parts)),
            cycles=np.asarray(sum(part * cost.cycles for part, cost in parts)),
        )


@dataclass(frozen=True, kw_only=True)
class StageRuns:
    """Stages of a pipeline, put together where they do the same at the same clocks.

    Attributes:
        stages: of each run, in the order of the classes of stages, as where one clock holds for all.
        limits_Hz: clocks that may be set at most in each run.
        changes: of the clock within a step; None where no plan has any.
    """

    stages: list[tuple[int, ...]]
    limits_Hz: list[ByPhase[FloatArray]]
    changes: list[ClockChanges | None]

    @classmethod
    def of(cls, classes: Sequence[Sequence[int]], plans: PlanBatch) -> StageRuns:
        """Of classes of stages that do the same.

        Args:
            classes: stages of each.
            plans: that share their pipeline, all with clocks by stage and phase.
        """
        limits_Hz = plans.clock_limits_Hz
        runs = [run for members in classes for run in _equal(members, limits_Hz)]
        bounds = [limits_Hz[:, run[0]] for run in runs]
        return cls(
            stages=runs,
            limits_Hz=[ByPhase(**dict(zip(PHASES, bound.T, strict=True))) for bound in bounds],
            changes=[ClockChanges.of(run, bound, plans) for run, bound in zip(runs, bounds, strict=True)],
        )

    def take(self, rows: IntArray) -> StageRuns:
        """Those of the plans at these rows, cut in the same way."""
        return StageRuns(
            stages=self.stages,
            limits_Hz=[limits.map(lambda limit_Hz: limit_Hz[rows]) for limits in self.limits_Hz],
            changes=[None if change is None else change.take(rows) for change in self.changes],
        )

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
    """Stages of a class, cut where the clocks of any plan differ between one and the next, or change within a step: how
    often they do depends on the stage."""
    here, before = limits_Hz[:, list(members[1:])], limits_Hz[:, list(members[:-1])]
    cut = ((here != before) | (here != here[..., :1])).any(axis=(0, 2))
    numbered = zip(members, [0, *np.cumsum(cut).tolist()], strict=True)
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
    device: DeviceCosts,
    limits: ByPhase[FloatArray],
    changes: ClockChanges | None,
    clock_Hz_K: FloatArray,
    clock_Hz_G: FloatArray,
) -> DeviceCosts:
    """What a stage does if the governor's ceiling is one of G clocks and each phase has a bound, [P, G]."""
    clocks = limits.map(lambda limit_Hz: np.minimum(clock_Hz_G, limit_Hz[:, None]))

    def at(cost: ClockedCost, clock_Hz_PG: FloatArray) -> ClockedCost:
        period_like_s = time_at_clocks(cost.cycles / clock_Hz_K, clock_Hz_K, clock_Hz_PG)
        return ClockedCost(
            time_s=time_at_clocks(cost.time_s, clock_Hz_K, clock_Hz_PG),
            energy_J=at_clocks(cost.energy_J, clock_Hz_K, clock_Hz_PG),
            cycles=period_like_s * clock_Hz_PG,
        )

    return _changing(device, clocks, changes, at)


def settled(
    device: DeviceCosts,
    clocks: ByPhase[FloatArray],
    changes: ClockChanges | None,
    clock_Hz_K: FloatArray,
    row_P: IntArray | None = None,
) -> DeviceCosts:
    """What a stage does at the clocks of its phases, [P, 1]; `row_P` as in `ClockedCost.at`."""
    return _changing(device, clocks, changes, lambda cost, clock_Hz_P: cost.at(clock_Hz_K, clock_Hz_P, row_P))


def _changing(
    device: DeviceCosts,
    clocks: ByPhase[FloatArray],
    changes: ClockChanges | None,
    at: Callable[[ClockedCost, FloatArray], ClockedCost],
) -> DeviceCosts:
    """Each phase at its clock, but for what runs at that of the phase before it."""
    if changes is None:
        return device.join(clocks, at)
    found = {phase: changes.cost(phase, clocks, partial(at, getattr(device, phase))) for phase in PHASES}
    return ByPhase(**found)


def ceiling_Hz(limits: ByPhase[FloatArray]) -> FloatArray:
    """The highest clock of any phase, [P]."""
    return np.asarray(largest([limits.forward, limits.backward, limits.optimizer]))


def _true_clock_Hz(cost: ClockedCost) -> FloatArray:
    """Of a phase, [P]; NaN where nothing runs."""
    unknown = np.full(np.shape(cost.time_s), np.nan)
    clock_Hz: FloatArray = np.divide(cost.cycles, cost.time_s, out=unknown, where=cost.time_s > 0)
    return clock_Hz[:, 0]


def _phase_clocks(phases: ByPhase[FloatArray]) -> FloatArray:
    """In the order of `PHASES`, [P, 3]."""
    return np.stack([phases.forward, phases.backward, phases.optimizer], axis=-1)
