"""Strategies that a plan can say, found among plans that are predicted as any other.

    one-clock     one clock for all GPUs: the one of least energy of all that the GPU has
    power-limit   one power cap for all GPUs (You et al. 2023, Zeus, NSDI): the one of least energy, 25 W apart as there
    joint         a clock for each stage, or for each stage and phase: from one clock, and what the pipeline's frontier
                  gives for steps within the deadline, to where no stage's clock, or phase's, or all stages', makes it
                  better by some steps of itself

None may take longer than the deadline; energy is that of GPUs and hosts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.frontier.choices import Shared
from moemodel.model.frontier.frontier import Point, Solver
from moemodel.model.frontier.pipeline import Pipeline
from moemodel.model.plan.batch import joined
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.clock import ClocksSpec, PhaseClocks
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.schedule.base import Work
from moemodel.model.step.system import System

_CAPS_W = 25.0  # between power caps
_SAME = 1e-9  # of a deadline: rounding
_WORTH = 1e-4  # of an energy: what saves less is the same, and the simpler choice stands
_SHARES = (0.0, 0.5, 1.0)  # of the time that a step may take longer, which the frontier is asked for
_MOVES = (-8, -2, -1, 1, 2, 8)  # steps of a clock
_ROUNDS = 12  # of moves, at most

Stage = tuple[float | None, float | None, float | None]  # forward, backward, optimizer; MHz, None: the governor's
Clocks = tuple[Stage, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A plan, its step and the energy of GPUs and hosts in it."""

    plan: Plan
    step_s: float
    it_J: float


class PlanStrategies:
    """Strategies for one plan, whose own clock does not count.

    Args:
        plan: that fits its architecture and GPU.
        machine: what it runs on.
    """

    def __init__(self, plan: Plan, machine: System) -> None:
        self._change_ms = change_ms(plan)
        self._plan = plan.model_copy(update={"clock_MHz": None})
        self._machine, self._architecture = machine, architecture_of(plan)
        (self.highest,) = self._predicted([self._plan])

    def one_clock(self, deadline_s: float) -> Found:
        """One clock for all GPUs."""
        return self._best([self._with(clock_MHz=clock) for clock in self._clocks_MHz()], deadline_s)

    def power_limit(self, deadline_s: float) -> Found:
        """One power cap for all GPUs."""
        return self._best([self._with(power_cap_W=cap_W) for cap_W in self._caps_W()], deadline_s)

    def joint(self, deadline_s: float, pipeline: Pipeline | None) -> Found:
        """Clocks by stage, or stage and phase.

        Args:
            deadline_s: of the step.
            pipeline: of the plan; None: only one clock is started from.
        """
        start = self.one_clock(deadline_s)
        starts = [self._uniform(start.plan.clock_MHz)]
        if pipeline is not None:
            starts += self._from_frontier(pipeline, deadline_s - self.highest.step_s)
        clocks, best = self._best_clocks(starts, deadline_s)
        for _ in range(_ROUNDS):
            moved, found = self._best_clocks([clocks, *self._moves(clocks)], deadline_s)
            if found.it_J >= best.it_J * (1 - _SAME):
                break
            clocks, best = moved, found
        return best if best.it_J < start.it_J * (1 - _WORTH) else start

    # ---- clocks ------------------------------------------------------------------------------------------------------

    def _from_frontier(self, pipeline: Pipeline, longer_s: float) -> list[Clocks]:
        """What the frontier gives for stages, and stages and phases, and a share of the time that there is."""
        found = []
        shared: tuple[Shared, ...] = ("stage", "stage-phase")
        for each in shared:
            solver = Solver(pipeline, shared=each, exact=False)
            highest_s = solver.at({w: float(pipeline.table(w).clock_Hz.max()) for w in pipeline.operations}).time_s
            runs = self._runs(pipeline)
            for share in _SHARES:
                point = solver.least_energy(highest_s + share * longer_s / runs)
                found.append(self._asked(pipeline, point, whole_stages=each == "stage"))
        return found

    def _runs(self, pipeline: Pipeline) -> int:
        return max(1, int(joined([self._plan]).micro_batches[0]) // pipeline.sizes.micro_batches)

    def _asked(self, pipeline: Pipeline, point: Point, *, whole_stages: bool) -> Clocks:
        stages: list[Stage] = []
        for stage in range(pipeline.sizes.stages):
            works = pipeline.schedule.order(stage, pipeline.sizes)
            forward, backward = (
                _asked_MHz(pipeline, point, next(work for work in works if (work.kind == "F") == is_forward))
                for is_forward in (True, False)
            )
            stages.append((forward, backward, forward if whole_stages else None))
        return tuple(stages)

    def _moves(self, clocks: Clocks) -> Iterable[Clocks]:
        """Each stage, or one of its phases, slower or faster; and all stages."""
        scopes: list[tuple[int, ...]] = [(0, 1, 2)]
        if any(len(set(stage)) > 1 for stage in clocks):
            scopes += [(0,), (1,)]
        for by in _MOVES:
            for scope in scopes:
                for s in range(len(clocks)):
                    yield tuple(self._moved(stage, scope, by) if i == s else stage for i, stage in enumerate(clocks))
            yield tuple(self._moved(stage, (0, 1, 2), by) for stage in clocks)
            yield tuple(self._moved(stage, (2,), by) for stage in clocks)

    def _moved(self, stage: Stage, scope: tuple[int, ...], by: int) -> Stage:
        moved = [self._step(clock, by) if phase in scope else clock for phase, clock in enumerate(stage)]
        return (moved[0], moved[1], moved[2])

    def _step(self, clock_MHz: float | None, by: int) -> float | None:
        """So many steps of the clock from one; none is above the governor's."""
        every = self._clocks_MHz()
        place = len(every) if clock_MHz is None else int(np.abs(np.array(every) - clock_MHz).argmin())
        place = max(place + by, 0)
        return None if place >= len(every) else every[place]

    def _uniform(self, clock_MHz: object) -> Clocks:
        clock = clock_MHz if isinstance(clock_MHz, float) else None
        return ((clock, clock, clock),) * self._plan.parallel.pp

    def _best_clocks(self, every: Sequence[Clocks], deadline_s: float) -> tuple[Clocks, Found]:
        distinct = list(dict.fromkeys(every))
        plans = [self._with(clock_MHz=_spec(clocks, self._change_ms)) for clocks in distinct]
        found = self._predicted(plans)
        allowed = [i for i, each in enumerate(found) if each.step_s <= deadline_s * (1 + _SAME)]
        if not allowed:
            return self._uniform(None), self.highest
        best = min(allowed, key=lambda i: found[i].it_J)
        return distinct[best], found[best]

    def _clocks_MHz(self) -> list[float]:
        """That can be set, the lowest first."""
        gpu, (low_Hz, high_Hz) = self._machine.gpu, self._machine.calibration.clock_range_Hz
        if gpu.clock_min_Hz is None or gpu.clock_max_Hz is None or gpu.clock_step_Hz is None:
            return []
        count = round((gpu.clock_max_Hz - gpu.clock_min_Hz) / gpu.clock_step_Hz)
        every = gpu.clock_min_Hz + gpu.clock_step_Hz * np.arange(count + 1)
        return [round(hz / 1e6, 6) for hz in every.tolist() if low_Hz <= hz <= high_Hz]

    def _caps_W(self) -> list[float]:
        gpu = self._machine.gpu
        highest_W = gpu.power_limit_W if self._plan.power_cap_W is None else self._plan.power_cap_W
        if gpu.power_limit_min_W is None or highest_W is None:
            return []
        caps: FloatArray = np.arange(gpu.power_limit_min_W, highest_W, _CAPS_W)
        return [float(cap_W) for cap_W in caps]

    # ---- plans -------------------------------------------------------------------------------------------------------

    def _with(self, **changes: object) -> Plan:
        return self._plan.model_copy(update=changes)

    def _best(self, plans: Sequence[Plan], deadline_s: float) -> Found:
        """Of least energy within the deadline; the highest clock is always there."""
        found = [each for each in self._predicted(plans) if each.step_s <= deadline_s * (1 + _SAME)]
        best = min([self.highest, *found], key=lambda each: each.it_J)
        return best if best.it_J < self.highest.it_J * (1 - _WORTH) else self.highest

    def _predicted(self, plans: Sequence[Plan]) -> list[Found]:
        if not plans:
            return []
        figures = predict(self._architecture, joined(plans), self._machine)
        hosts_W = self._plan.cluster.gpus * self._plan.site.host_power_W
        it_J = figures.energy_J + hosts_W * figures.step_time_s
        rows = zip(plans, figures.step_time_s.tolist(), it_J.tolist(), strict=True)
        return [Found(plan=plan, step_s=step_s, it_J=joules) for plan, step_s, joules in rows]


def change_ms(plan: Plan) -> float:
    """Until a clock that is set stands, as the plan says it or by default."""
    return plan.clock_MHz.change_ms if isinstance(plan.clock_MHz, ClocksSpec) else ClocksSpec().change_ms


def _spec(clocks: Clocks, change: float) -> ClocksSpec | float | None:
    """As a plan writes it."""
    if len({clock for stage in clocks for clock in stage}) == 1:
        return clocks[0][0]
    return ClocksSpec(stages=tuple(_stage(stage) for stage in clocks), change_ms=change)


def _stage(stage: Stage) -> PhaseClocks | float | None:
    if len(set(stage)) == 1:
        return stage[0]
    return PhaseClocks(forward=stage[0], backward=stage[1], optimizer=stage[2])


def _asked_MHz(pipeline: Pipeline, point: Point, work: Work) -> float | None:
    """Of a pass; None at the highest clock of its table, which is the governor's."""
    table, clock_Hz = pipeline.table(work), point.clock_Hz[work]
    return None if clock_Hz >= table.clock_Hz.max() else round(clock_Hz / 1e6, 6)
