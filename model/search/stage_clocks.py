"""Plans of a front with clocks of their own for each stage, or each stage and phase (`clocks_MHz: {per: ...}`).

From each plan of the front, at its one clock, a descent over the clocks that the GPU has: the clock of one stage (later
of one stage's phase) goes down or up by some steps, then by fewer, down to one. What is kept has less of

    second x first^k        k: what the front gives of the second objective for the first where the plan stands

several moves at once where they gain together; with one objective, less of that. All plans of a round are predicted in
one batch, as every other plan of a search is; the front is then that of all plans, enumerated and found. So it is
dominated by nothing that was enumerated; that no clocks are better is not said.

Axes: B plans to refine, P plans of a round, S stages, F phases, O objectives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.plan.batch import PlanBatch, batch_of, concatenated
from moemodel.model.plan.clock import PHASES, ClocksSpec, PhaseClocks
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.search.pareto import pareto, picks, thin
from moemodel.model.search.problem import SearchProblem, constraint_values, costs_of, limits_of
from moemodel.model.search.quantities import QUANTITIES
from moemodel.model.search.state import SearchState

_STEPS = (16, 8, 4, 2, 1)  # of the GPU's clock, that a clock moves by: 240 MHz of an H100's to 15
_ROUNDS = 4  # at most with each; what moves on after that does so with the next
_MOST = 20_000  # predictions of a search, in all: seconds to a minute
_LESS = 1e-4  # assumed, of a cost: what saves less is no reason to set a clock
_STEEPEST = 100.0  # exchange between the objectives, where plans on the front hardly differ in the first
_STEP_MHz = 15.0  # of a GPU whose own isn't known: that of NVIDIA's

Clocks = tuple[tuple[float, ...], ...]  # MHz by stage and phase; infinite: the governor's


@dataclass(frozen=True, kw_only=True)
class Member:
    """A plan on a front: one that was enumerated, at other clocks or at its own.

    Attributes:
        place: among all candidates.
        clocks_MHz: by stage and phase; None: its one clock.
    """

    place: int
    clocks_MHz: Clocks | None = None

    def plan(self, state: SearchState, name: str) -> Plan:
        """As a user would write it."""
        plan = state.plan(self.place, name)
        return plan if self.clocks_MHz is None else plan.model_copy(update={"clock_MHz": clocks_spec(self.clocks_MHz)})


@dataclass(frozen=True, kw_only=True)
class Front:
    """The best plans, the best in the first objective first.

    Attributes:
        members: of it.
        costs_FO: what they cost.
        note: what has to be said about its clocks; "": nothing.
    """

    members: tuple[Member, ...]
    costs_FO: FloatArray
    note: str = ""


def front_of(state: SearchState) -> Front:
    """The front of what was enumerated."""
    return Front(members=tuple(Member(place=place) for place in state.index.tolist()), costs_FO=state.costs_FO)


def refined_front(state: SearchState, progress: Callable[[int, int], None]) -> Front:
    """The front of what was enumerated and of clocks by stage, or by stage and phase, as the search asks.

    Args:
        state: of a search that has found something.
        progress: is told how many of how many predictions are done, at most.
    """
    problem, before = state.problem, front_of(state)
    if problem.document.clocks_per is None:
        return before
    descent = Descent.of(state, before)
    if not descent.bases:
        return replace(before, note="No kept plan of the front has several stages, so none has clocks by stage.")
    descent.run(problem.document.clocks_per == "phase", progress)
    members = [*before.members, *descent.found]
    costs = np.concatenate([before.costs_FO, descent.costs_PO])
    best = pareto(costs[:, 0], costs[:, -1])
    kept = tuple(members[row] for row in best.tolist())
    found = sum(isinstance(clocks_spec(member.clocks_MHz), ClocksSpec) for member in kept if member.clocks_MHz)
    return Front(
        members=kept,
        costs_FO=costs[best],
        note=f"Clocks by stage were sought by a descent from {len(descent.bases)} plans of the front at one clock "
        f"({descent.predicted:,} predictions more): {found} of the {len(kept)} plans on the front have them. None that "
        "was enumerated beats these; other clocks by stage may.",
    )


def clocks_spec(clocks_MHz: Clocks) -> float | ClocksSpec | None:
    """Clocks by stage as a plan has them: one where all, or the phases of a stage, share it."""
    if len({clock for stage in clocks_MHz for clock in stage}) == 1:
        return None if math.isinf(clocks_MHz[0][0]) else clocks_MHz[0][0]
    return ClocksSpec(stages=tuple(_stage(stage) for stage in clocks_MHz))


def _stage(stage: Sequence[float]) -> float | PhaseClocks | None:
    given = [None if math.isinf(clock) else clock for clock in stage]
    return given[0] if len(set(given)) == 1 else PhaseClocks(**dict(zip(PHASES, given, strict=True)))


class Descent:
    """Clocks of some plans, on their way down.

    Args:
        problem: the search.
        bases: members of its front to begin with, and their batches of one.
        costs_BO: what they cost at one clock.
        exchange_B: k of the module's docstring.
        clocks_MHz: that the GPU has, ascending.

    Attributes:
        found, costs_PO: the best of all plans that were predicted, and what they cost.
        predicted: plans so far.
    """

    def __init__(
        self,
        problem: SearchProblem,
        bases: Sequence[tuple[Member, Plan]],
        costs_BO: FloatArray,
        exchange_B: FloatArray,
        clocks_MHz: FloatArray,
    ) -> None:
        self._problem, self._clocks_MHz = problem, clocks_MHz
        self._exchange_B = exchange_B
        self._limits = limits_of(problem)
        self._plans = [batch_of(plan) for _, plan in bases]
        self.bases = [member for member, _ in bases]
        self._at = [self._start(plan) for _, plan in bases]  # places among the clocks, [S, F]
        self._cost_B = _joint(costs_BO, exchange_B)
        self.found: list[Member] = []
        self.costs_PO = np.zeros((0, costs_BO.shape[1]))
        self.predicted = 0

    @classmethod
    def of(cls, state: SearchState, front: Front) -> Descent:
        """Of the plans of a front that a search keeps: those that have several stages, or phases."""
        problem, document = state.problem, state.problem.document
        named = picks(
            front.costs_FO,
            names=[QUANTITIES[name].best for name in problem.objectives],
            slack=document.within_of_fastest,
        )
        kept = thin(len(front.members), document.keep, named.values())
        plans = [(row, front.members[row], front.members[row].plan(state, document.name)) for row in kept]
        some = [one for one in plans if one[2].parallel.pp > 1 or document.clocks_per == "phase"]
        return cls(
            problem,
            [(member, plan) for _, member, plan in some],
            front.costs_FO[[row for row, _, _ in some]],
            exchange(front.costs_FO)[[row for row, _, _ in some]],
            gpu_clocks_MHz(problem),
        )

    def run(self, phases: bool, progress: Callable[[int, int], None]) -> None:
        """First by stage, then, if it is asked for, by stage and phase."""
        for by_phase in (False, True) if phases else (False,):
            for step in _STEPS:
                for _ in range(_ROUNDS):
                    progress(self.predicted, _MOST)
                    if not self._round(step, by_phase):
                        break
                    if self.predicted >= _MOST:
                        return

    def _start(self, plan: Plan) -> IntArray:
        """The one clock of a plan for every stage and phase; the governor's: the highest."""
        clock = plan.clock.highest_Hz(math.inf) / 1e6
        place = int(np.searchsorted(self._clocks_MHz, clock - 1e-6)) if math.isfinite(clock) else len(self._clocks_MHz)
        return np.full((plan.parallel.pp, len(PHASES)), place)

    def _round(self, step: int, by_phase: bool) -> bool:
        """Every clock a step down and a step up, then those that gain together; whether anything got better."""
        moves = [
            (base, self._moved(at, where, change))
            for base, at in enumerate(self._at)
            for where in self._coordinates(at, by_phase)
            for change in (-step, step)
        ]
        moves = [(base, at) for base, at in moves if (at != self._at[base]).any()]
        gains = self._gains(moves)
        together = [joined for base in range(len(self._at)) for joined in self._together(base, moves, gains)]
        gains_together = self._gains(together)
        return self._take([*moves, *together], np.concatenate([gains, gains_together]))

    @staticmethod
    def _coordinates(at: IntArray, by_phase: bool) -> list[tuple[int, slice]]:
        phases = [slice(f, f + 1) for f in range(at.shape[1])] if by_phase else [slice(None)]
        return [(stage, phase) for stage in range(len(at)) for phase in phases]

    def _moved(self, at: IntArray, where: tuple[int, slice], change: int) -> IntArray:
        moved = at.copy()
        moved[where] = np.clip(moved[where] + change, 0, len(self._clocks_MHz))
        return moved

    def _together(
        self, base: int, moves: Sequence[tuple[int, IntArray]], gains: FloatArray
    ) -> list[tuple[int, IntArray]]:
        """The best move of one plan, the best two, and so on, of those that gain by themselves."""
        rows = [row for row, (of, _) in enumerate(moves) if of == base and gains[row] > 0]
        rows.sort(key=lambda row: -gains[row])
        at, joined = self._at[base].copy(), []
        for row in rows:
            changed = (moves[row][1] != self._at[base]) & (at == self._at[base])
            at = np.where(changed, moves[row][1], at)
            joined.append((base, at))
        return joined[1:]

    def _gains(self, moves: Sequence[tuple[int, IntArray]]) -> FloatArray:
        """What each saves, as a share of the joint cost; nothing where it breaks a limit. [P]"""
        if not moves:
            return np.zeros(0)
        clocks = [self._clocks(at) for _, at in moves]
        plans = concatenated([self._batch(base, one) for (base, _), one in zip(moves, clocks, strict=True)])
        prediction = predict(self._problem.architecture, plans, self._problem.machine)
        values = constraint_values(self._problem, plans, prediction)
        costs, bases = costs_of(self._problem, values), [base for base, _ in moves]
        self.predicted += len(moves)
        allowed = np.ones(len(moves), dtype=np.bool_)
        for name, limit in self._limits.items():
            allowed &= values[name] <= limit
        saved = -np.expm1(_joint(costs, self._exchange_B[bases]) - self._cost_B[bases])
        gains = np.where(allowed, saved, 0.0)
        some = np.flatnonzero(allowed)
        self._keep([Member(place=self.bases[bases[row]].place, clocks_MHz=clocks[row]) for row in some], costs[some])
        return np.where(gains > _LESS, gains, 0.0)

    def _keep(self, members: Sequence[Member], costs_PO: FloatArray) -> None:
        """Those that none of the others beats."""
        together, costs = [*self.found, *members], np.concatenate([self.costs_PO, costs_PO])
        best = pareto(costs[:, 0], costs[:, -1])
        self.found, self.costs_PO = [together[row] for row in best.tolist()], costs[best]

    def _take(self, moves: Sequence[tuple[int, IntArray]], gains: FloatArray) -> bool:
        """The best move of each plan; whether there is any."""
        best: dict[int, int] = {}
        for row, (base, _) in enumerate(moves):
            if gains[row] > max(0.0, gains[best[base]] if base in best else 0.0):
                best[base] = row
        for base, row in best.items():
            self._at[base] = moves[row][1]
            self._cost_B[base] += np.log1p(-gains[row])
        return bool(best)

    def _clocks(self, at: IntArray) -> Clocks:
        """At places among the clocks; beyond the highest, the governor's."""
        known = np.append(self._clocks_MHz, np.inf)
        return tuple(tuple(stage) for stage in known[at].tolist())

    def _batch(self, base: int, clocks_MHz: Clocks) -> PlanBatch:
        """A plan at clocks of its own, as a batch of one: what `batch_of` makes of the plan that a user is given."""
        one, limits_Hz = self._plans[base], np.array(clocks_MHz) * 1e6
        if (limits_Hz == limits_Hz[0, 0]).all():
            return replace(one, clock_Hz=limits_Hz[0, :1], clock_limits_Hz=one.clock_limits_Hz[:, :0])
        return one.with_limits_Hz(limits_Hz)


def exchange(costs_FO: FloatArray) -> FloatArray:
    """By how many per cent the second objective falls where the first rises by one, along a front, [F]."""
    if costs_FO.shape[1] == 1 or len(costs_FO) < 2:
        return np.zeros(len(costs_FO))
    first, second = np.log(costs_FO).T
    before, after = np.maximum(np.arange(len(first)) - 1, 0), np.minimum(np.arange(len(first)) + 1, len(first) - 1)
    rise = np.maximum(first[after] - first[before], np.finfo(np.float64).tiny)
    return np.asarray(np.clip((second[before] - second[after]) / rise, 0.0, _STEEPEST))


def _joint(costs_PO: FloatArray, exchange_P: FloatArray) -> FloatArray:
    """Logarithm of what is brought down, [P]."""
    second = np.log(costs_PO[:, -1])
    return second if costs_PO.shape[1] == 1 else second + exchange_P * np.log(costs_PO[:, 0])


def gpu_clocks_MHz(problem: SearchProblem) -> FloatArray:
    """Clocks that can be set, ascending, no lower than those that were measured."""
    gpu, calibration = problem.machine.gpu, problem.machine.calibration
    measured_Hz, range_Hz = calibration.clock_measured_Hz, calibration.clock_range_Hz
    low, high = (gpu.clock_min_Hz or range_Hz[0]) / 1e6, (gpu.clock_max_Hz or range_Hz[1]) / 1e6
    step = (gpu.clock_step_Hz or 0.0) / 1e6 or _STEP_MHz
    clocks = low + step * np.arange(math.floor((high - low) / step + 1e-9) + 1)
    return np.asarray(clocks[clocks >= min(measured_Hz[0] / 1e6, high) - 1e-6])
