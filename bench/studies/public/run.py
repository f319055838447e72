"""One published run and the answer that a user would get to its plan.

A run is read into plans once, by the documents of whoever published it. Where these leave open what ran (which layers
were computed again), a run has several plans, from the one that computes least again to the one that computes most; it
is taken for the first that is said to fit, then for the first that may fit, then for the last: who measures speed takes
the fastest plan that runs. The error is never looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moemodel.calibration.store.catalogue import calibration_or_stand_in
from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.errors import InputError, MoeModelError
from moemodel.model.plan.batch import PlanBatch, batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.estimate import Estimate
from moemodel.model.results.feasibility import Verdict
from moemodel.model.results.measured import BESIDE_THE_ALLOCATOR
from moemodel.model.results.outcome import outcome
from moemodel.model.schedule.pipeline_layout import stages
from moemodel.model.step.memory import Memory, MemoryModel
from moemodel.model.step.system import System, system_of

OfMemory = Literal["allocated", "reserved", "device"]
_LEFT_OUT: dict[OfMemory, tuple[str, ...]] = {"allocated": BESIDE_THE_ALLOCATOR, "reserved": ("context",), "device": ()}


@dataclass(frozen=True, kw_only=True)
class PublicRun:
    """One run as it was published.

    Attributes:
        label: names it in a table.
        plans: what ran; several where the source leaves it open, those first that compute least again. A text stands
            for a plan that the product does not take: why.
        time_s: of a step; several where the source leaves open what it counted; none: not published.
        memory_B: of the fullest GPU, or of `stage`; NaN: not published.
        of_memory: what that counts: what the allocator gave out, what it reserved, or all that the device held.
        stage: of the pipeline, whose memory that is; None: the fullest.
        is_read: False where nobody here can make a plan of it; `plans` then say why.
        ran: it did, rather than run out of memory; None: nobody says.
        job: runs of one job, other plans of which were measured too; empty: none were.
    """

    label: str
    plans: tuple[Plan | str, ...]
    time_s: tuple[float, ...] = ()
    memory_B: float = np.nan
    of_memory: OfMemory = "allocated"
    stage: int | None = None
    is_read: bool = True
    ran: bool | None = True
    job: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a user is told of a run.

    Attributes:
        plan: that it was taken for; None: the product takes none of them.
        time: of a step; None: it can't be told.
        memory_B: that should be counted; NaN: it can't be told.
        fit_probability: that it fits in memory.
        verdict: on memory; None: it can't be told.
        reason: why there is no answer; empty: there is one.
    """

    plan: Plan | None = None
    time: Estimate | None = None
    memory_B: float = np.nan
    fit_probability: float = np.nan
    verdict: Verdict | None = None
    reason: str = ""

    @property
    def refused(self) -> bool:
        """Whether `moemodel predict` refuses the plan."""
        return bool(self.reason) or self.verdict == "does not fit"


_BEST_FIRST: tuple[Verdict, ...] = ("fits", "may not fit")


def answer_to(run: PublicRun) -> Answer:
    """What is said of a run."""
    answers = [_answer(run, plan) for plan in run.plans]
    for verdict in _BEST_FIRST:
        for answer in answers:
            if answer.verdict == verdict:
                return answer
    known = [answer for answer in answers if not answer.reason]
    return (known or answers)[-1]


def calibration_of(plan: Plan) -> Calibration:
    """What a user's plan is predicted by."""
    return calibration_or_stand_in(None, plan.cluster.gpu)


def _answer(run: PublicRun, plan: Plan | str) -> Answer:
    if isinstance(plan, str):
        return Answer(reason=plan)
    try:
        calibration = calibration_of(plan)
        found = outcome(plan, calibration, even_if_it_does_not_fit=True)
        memory_B = counted_B(run, found.memory_B.value, found.memory_terms_B)
        if run.stage is not None:
            memory_B = stage_memory_B(run, plan, calibration)
    except MoeModelError as error:
        return Answer(reason=first_line(error))
    is_timed = np.isfinite(found.step_time_s.value)
    return Answer(
        plan=plan,
        time=found.step_time_s if is_timed else None,
        memory_B=memory_B,
        fit_probability=found.fit_probability,
        verdict=found.verdict,
        reason="" if is_timed else f"nothing is known of how fast {plan.cluster.gpu} is",
    )


def counted_B(run: PublicRun, peak_B: float, terms_B: Mapping[str, float]) -> float:
    """Of a predicted peak, what the source counts."""
    return peak_B - sum(terms_B.get(name, 0.0) for name in _LEFT_OUT[run.of_memory])


def stage_memory_B(run: PublicRun, plan: Plan, calibration: Calibration) -> float:
    """What the source counts of the stage that it measured."""
    memory = stage_memory(architecture_of(plan), batch_of(plan), system_of(plan, calibration), run.stage or 0)
    return counted_B(run, float(memory.peak_B[0]), at(memory.terms_B, 0))


def stage_memory(architecture: Architecture, plans: PlanBatch, system: System, stage: int) -> Memory:
    """What a stage of some plans holds, which share their pipeline. [P]"""
    model = MemoryModel(
        architecture,
        plans,
        framework=system.framework,
        precision=system.precision,
        calibration=system.calibration,
    )
    classes = stages(architecture, int(plans.pp[0]), int(plans.virtual_stages[0]))
    return model.stage(next(c for c in reversed(classes) if c.first <= stage))


def at(terms_B: Mapping[str, FloatArray], row: int) -> dict[str, float]:
    """Terms of memory of one plan of many."""
    return {name: float(size_B[row]) for name, size_B in terms_B.items()}


def plan_or_refusal(document: Mapping[str, Any]) -> Plan | str:
    """A plan, or why the product takes no such plan."""
    try:
        return Plan.model_validate(document)
    except InputError as error:
        return first_line(error)


def first_line(error: MoeModelError) -> str:
    """Of what an error says."""
    return str(error).splitlines()[0]
