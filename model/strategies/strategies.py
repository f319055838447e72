"""One table: what each strategy takes, and how far that is from the highest clock, on one job.

Errors that two choices of clocks for one plan share cancel in their difference (`search.distinguish`): intervals are of
the difference, and narrower than those of either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from moemodel.model.core.errors import CalibrationError, InputError
from moemodel.model.core.interval import Z
from moemodel.model.frontier.pipeline import Pipeline
from moemodel.model.frontier.plan_pipeline import pipeline_of
from moemodel.model.plan.clock import PHASES, ClocksSpec, clock_text
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.energy import StepEnergy
from moemodel.model.results.estimate import Estimate, finite
from moemodel.model.results.outcome import Outcome, outcome
from moemodel.model.search.distinguish import difference_errors
from moemodel.model.step.system import System, system_of
from moemodel.model.strategies.passes import MOST_PASSES, GraphStrategies, Passes
from moemodel.model.strategies.plans import Found, PlanStrategies, change_ms

NAMES = ("max-clock", "one-clock", "power-limit", "envpipe", "perseus", "joint")
_MOST_LONGER = 10.0  # of the step: more is surely a mistake (5 for 0.05)
_NEVER_MEASURED = (
    "Locked clocks were never measured on a real card by this project: what rests on them, all but max-clock and "
    "power-limit, is the model's word alone."
)
_MUST_BE_SET = (
    "Clocks are bounds that somebody must be permitted to set (a GPU's lock); the governor stays on, and grants no "
    "clock above what the power limit lets stand."
)


@dataclass(frozen=True, kw_only=True)
class Change:
    """Of a figure against that at the highest clock, as a share, with its 90 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, ratio: float, error: float) -> Change:
        """From a ratio and the standard error of its logarithm."""
        factor = math.exp(Z * error)
        return cls(value=ratio - 1, low=ratio / factor - 1, high=ratio * factor - 1)

    def to_json(self) -> dict[str, Any]:
        return {"value": finite(self.value), "interval": [finite(self.low), finite(self.high)]}


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """What one strategy takes.

    Attributes:
        name: of `NAMES`.
        answer: its step; of one without a plan, that at the highest clock, with what its passes change.
        time, energy: against max-clock; energy is that of GPUs and hosts.
        clocks: in words, MHz.
        plan: that says it; None of clocks that differ between micro-batches, which no plan says.
    """

    name: str
    answer: Outcome
    time: Change
    energy: Change
    clocks: str
    plan: Plan | None

    def to_json(self) -> dict[str, Any]:
        answer = self.answer
        return {
            "name": self.name,
            "step_time_s": answer.step_time_s.to_json(),
            "gpu_energy_J": answer.gpu_energy_J.to_json(),
            "it_energy_J": answer.it_energy_J.to_json(),
            "power_per_gpu_W": answer.power_W.to_json(),
            "time_change": self.time.to_json(),
            "it_energy_change": self.energy.to_json(),
            "clocks_MHz": self.clocks,
            "counted_by": "graph" if self.plan is None else "prediction",
            "plan": None if self.plan is None else self.plan.model_dump(mode="json"),
        }


@dataclass(frozen=True, kw_only=True)
class Strategies:
    """All of them, on one job.

    Attributes:
        plan: the job.
        longer: how much longer a step may take than at the highest clock, as a share.
        calibration: its name.
        rows: max-clock first.
        notes: what has to be known about them.
    """

    plan: Plan
    longer: float
    calibration: str
    rows: tuple[Strategy, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Units in the names; changes as shares."""
        return {
            "plan": self.plan.name,
            "gpu": self.plan.cluster.gpu,
            "gpus": self.plan.cluster.gpus,
            "calibration": self.calibration,
            "longer": self.longer,
            "strategies": [row.to_json() for row in self.rows],
            "notes": list(self.notes),
        }


def strategies(
    plan: Plan,
    calibration: Calibration,
    *,
    longer: float = 0.0,
    even_if_it_does_not_fit: bool = False,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Strategies:
    """What each strategy takes for a job.

    Args:
        plan: the job; its own clock does not count.
        calibration: of its GPU.
        longer: how much longer than at the highest clock a step may take, as a share. Of no strategy but one-clock,
            power-limit, perseus and joint: max-clock and envpipe never take longer.
        even_if_it_does_not_fit: answer also for a plan that needs more memory than the GPUs have.
        progress: is told which strategy comes, and how many of how many are done.

    Raises:
        InputError: a share that is negative or beyond all sense, or a plan of inference.
        InfeasiblePlanError: the plan does not divide, or does not fit.
        CalibrationError: of another GPU, or without power.
        MissingExtraError: networkx or scipy is not installed.
    """
    _check(plan, calibration, longer)
    job = _Job(plan, calibration, even_if_it_does_not_fit=even_if_it_does_not_fit)
    rows = []
    for done, name in enumerate(NAMES):
        progress(name, done, len(NAMES))
        row = job.row(name, longer)
        rows += [] if row is None else [row]
    return Strategies(plan=plan, longer=longer, calibration=calibration.name, rows=tuple(rows), notes=job.notes())


def _check(plan: Plan, calibration: Calibration, longer: float) -> None:
    if not 0 <= longer <= _MOST_LONGER:
        raise InputError(f"longer: found {longer:g}; allowed: 0 to {_MOST_LONGER:g}, a share of the step (0.05 is 5 %)")
    if plan.mode != "training":
        raise InputError(f"mode: found {plan.mode}; strategies are of training")
    if calibration.power.points == 0:
        raise CalibrationError(
            f"{calibration.name}: no power was measured, without which no strategy can be told apart"
        )


class _Job:
    """A plan, at the highest clock and by each strategy."""

    def __init__(self, plan: Plan, calibration: Calibration, *, even_if_it_does_not_fit: bool) -> None:
        self._calibration, self._fits = calibration, even_if_it_does_not_fit
        self._change_s = change_ms(plan) / 1e3
        self._plan = plan.model_copy(update={"clock_MHz": None})
        self._highest = self._outcome(self._plan)
        self._machine: System = system_of(self._plan, calibration)
        self._plans = PlanStrategies(plan, self._machine)
        self._pipeline: Pipeline = pipeline_of(self._plan, self._machine)
        self._passes: dict[str, Passes] = {}
        self._graph = None if self._is_long else GraphStrategies(self._pipeline, self._change_s)

    @property
    def _is_long(self) -> bool:
        return len(self._pipeline.operations) > MOST_PASSES

    def row(self, name: str, longer: float) -> Strategy | None:
        """What a strategy takes; None where the step has too many passes for it."""
        deadline_s = (1 + longer) * self._plans.highest.step_s
        if name in ("envpipe", "perseus"):
            return self._counted(name, longer)
        found: Found = {
            "max-clock": lambda: self._plans.highest,
            "one-clock": lambda: self._plans.one_clock(deadline_s),
            "power-limit": lambda: self._plans.power_limit(deadline_s),
            "joint": lambda: self._plans.joint(deadline_s, None if self._is_long else self._pipeline),
        }[name]()
        governed = found.plan.power_cap_W == self._plan.power_cap_W and None in _clocks_MHz(found.plan)
        return self._strategy(name, self._outcome(found.plan), found.plan, _in_words(found.plan), governed=governed)

    def _counted(self, name: str, longer: float) -> Strategy | None:
        """By the graph, as a change of what is predicted at the highest clock."""
        if self._graph is None:
            return None
        runs = self._runs
        passes = (
            self._graph.envpipe()
            if name == "envpipe"
            else self._graph.perseus(longer * self._plans.highest.step_s / runs)
        )
        self._passes[name] = passes
        gpus_of_stage = self._plan.cluster.gpus / self._plan.parallel.pp
        answer = _changed(self._highest, runs * passes.longer_s, runs * gpus_of_stage * passes.more_J, passes.clock_Hz)
        words = f"{passes.lowest_Hz / 1e6:.0f} to {passes.highest_Hz / 1e6:.0f}, by pass"
        return self._strategy(name, answer, None, words, governed=passes.keeps_highest)

    @property
    def _runs(self) -> int:
        """Of the schedule in a step."""
        p = self._plan
        micro_batches = p.global_batch // (p.micro_batch * p.parallel.dp)
        return max(1, micro_batches // self._pipeline.sizes.micro_batches)

    def _strategy(self, name: str, answer: Outcome, plan: Plan | None, clocks: str, *, governed: bool) -> Strategy:
        highest = self._highest
        errors = {"time": 0.0, "energy": 0.0}
        if plan != highest.plan:
            errors = _errors(highest, answer, self._machine, governed=governed)
        return Strategy(
            name=name,
            answer=answer,
            time=Change.of(answer.step_time_s.value / highest.step_time_s.value, errors["time"]),
            energy=Change.of(answer.it_energy_J.value / highest.it_energy_J.value, errors["energy"]),
            clocks=clocks,
            plan=None if plan is None else plan.model_copy(update={"name": f"{self._plan.name}-{name}"}),
        )

    def _outcome(self, plan: Plan) -> Outcome:
        return outcome(plan, self._calibration, even_if_it_does_not_fit=self._fits)

    def notes(self) -> tuple[str, ...]:
        """What has to be known."""
        found = [_NEVER_MEASURED, _MUST_BE_SET]
        if self._is_long:
            found.append(f"envpipe and perseus are left out: a step has more than {MOST_PASSES} passes of its stages.")
        for name, passes in self._passes.items():
            found.append(self._note(name, passes))
        return tuple(found)

    def _note(self, name: str, passes: Passes) -> str:
        runs, highest = self._runs, self._highest
        gpus_of_stage = self._plan.cluster.gpus / self._plan.parallel.pp
        at_once = _changed(highest, runs * passes.at_once_s, runs * gpus_of_stage * passes.at_once_J, passes.clock_Hz)
        time = at_once.step_time_s.value / highest.step_time_s.value - 1
        energy = at_once.it_energy_J.value / highest.it_energy_J.value - 1
        return (
            f"{name} has clocks by pass, which no plan says: counted on the graph of passes, as a change from "
            f"max-clock, with {self._change_s * 1e3:g} ms for each change of the clock; if clocks changed at once, its "
            f"step would take {time:+.1%} time and {energy:+.1%} energy."
        )


def _clocks_MHz(plan: Plan) -> list[float | None]:
    """Of every stage and phase; None: the governor's."""
    if not isinstance(plan.clock_MHz, ClocksSpec):
        return [plan.clock_MHz]
    stages = plan.clock_MHz.of_stages(plan.parallel.pp)
    return [stage.get(phase) for stage in stages for phase in PHASES]


def _in_words(plan: Plan) -> str:
    """Clocks, or the cap that stands for them."""
    clocks = _clocks_MHz(plan)
    set_MHz = [clock for clock in clocks if clock is not None]
    cap = "" if plan.power_cap_W is None else f", cap {plan.power_cap_W:g} W"
    if len(clocks) == 1:
        return f"{clock_text(plan.clock_MHz)}{cap}"
    highest = "auto" if None in clocks else f"{max(set_MHz):g}"
    return f"{min(set_MHz):g} to {highest}, by stage and phase{cap}"


def _changed(highest: Outcome, longer_s: float, more_J: float, clock_Hz: float) -> Outcome:
    """An answer whose step takes so much longer, and so much more energy of all GPUs, at such a mean clock."""
    step_s, gpu_J = highest.step_time_s.value + longer_s, highest.gpu_energy_J.value + more_J
    step = highest.step_time_s * (step_s / highest.step_time_s.value)
    gpu = highest.gpu_energy_J * (gpu_J / highest.gpu_energy_J.value)
    return replace(
        highest,
        step_time_s=step,
        energy=StepEnergy.of(highest.plan, gpu, step),
        power_W=highest.power_W * (gpu_J / highest.gpu_energy_J.value / (step_s / highest.step_time_s.value)),
        clock_Hz=Estimate(value=min(clock_Hz, highest.clock_Hz.value), low=None, high=None),
    )


def _errors(highest: Outcome, answer: Outcome, machine: System, *, governed: bool) -> dict[str, float]:
    """Standard errors of the logarithms of ratios of time and energy, of one plan at clocks that differ.

    Args:
        highest, answer: of the plan.
        machine: what it runs on.
        governed: what sets the pace keeps the governor's clock in both, so that the error of that is common.
    """
    clock_MHz = None if governed else answer.clock_Hz.value / 1e6
    plan = highest.plan.model_copy(update={"clock_MHz": clock_MHz})
    answers = [_of_balanced(highest), replace(_of_balanced(answer), plan=plan)]
    return {name: float(error[0, 1]) for name, error in difference_errors(answers, machine).items()}


def _of_balanced(answer: Outcome) -> Outcome:
    """Without what an interval reaches further up for want of a known skew, which is the same at every clock."""
    step = answer.step_time_s
    if step.low is None:
        return answer
    return replace(answer, step_time_s=Estimate(value=step.value, low=step.low, high=step.value**2 / step.low))
