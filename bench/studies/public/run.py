"""One published run and the answer that a user would get to its plan.

A run is read into plans once, by the documents of whoever published it. Where these leave open what ran (which layers
were computed again), a run has several plans, from the one that computes least again to the one that computes most; it
is taken for the first that is said to fit, then for the first that may fit, then for the last: who measures speed takes
the fastest plan that runs. The error is never looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moemodel.calibration.store.catalogue import calibration_or_stand_in
from moemodel.model.core.errors import MoeModelError
from moemodel.model.plan.spec import Plan
from moemodel.model.results.estimate import Estimate
from moemodel.model.results.feasibility import Verdict
from moemodel.model.results.measured import BESIDE_THE_ALLOCATOR
from moemodel.model.results.outcome import Outcome, outcome


@dataclass(frozen=True, kw_only=True)
class PublicRun:
    """One run as it was published.

    Attributes:
        label: names it in a table.
        plans: what ran; several where the source leaves it open, those first that compute least again. A text stands
            for a plan that the product does not take: why.
        time_s: of a step; several where the source leaves open what it counted; none: not published.
        memory_B: the allocator's count; NaN: not published.
        ran: it did, rather than run out of memory; None: nobody says.
        job: runs of one job, other plans of which were measured too; empty: none were.
    """

    label: str
    plans: tuple[Plan | str, ...]
    time_s: tuple[float, ...] = ()
    memory_B: float = np.nan
    ran: bool | None = True
    job: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a user is told of a run.

    Attributes:
        plan: that it was taken for; None: the product takes none of them.
        time: of a step; None: it can't be told.
        memory_B: that the allocator should count; NaN: it can't be told.
        verdict: on memory; None: it can't be told.
        reason: why there is no answer; empty: there is one.
        phases_s: parts of the step.
    """

    plan: Plan | None = None
    time: Estimate | None = None
    memory_B: float = np.nan
    verdict: Verdict | None = None
    reason: str = ""

    @property
    def refused(self) -> bool:
        """Whether `moemodel predict` refuses the plan."""
        return bool(self.reason) or self.verdict == "does not fit"


_BEST_FIRST: tuple[Verdict, ...] = ("fits", "may not fit")


def answer_to(run: PublicRun) -> Answer:
    """What is said of a run."""
    answers = [_answer(plan) for plan in run.plans]
    for verdict in _BEST_FIRST:
        for answer in answers:
            if answer.verdict == verdict:
                return answer
    known = [answer for answer in answers if not answer.reason]
    return (known or answers)[-1]


def _answer(plan: Plan | str) -> Answer:
    if isinstance(plan, str):
        return Answer(reason=plan)
    try:
        calibration = calibration_or_stand_in(None, plan.cluster.gpu)
        return _said(plan, outcome(plan, calibration, even_if_it_does_not_fit=True))
    except MoeModelError as error:
        return Answer(reason=first_line(error))


def _said(plan: Plan, found: Outcome) -> Answer:
    is_timed = np.isfinite(found.step_time_s.value)
    beside_B = sum(found.memory_terms_B.get(name, 0.0) for name in BESIDE_THE_ALLOCATOR)
    return Answer(
        plan=plan,
        time=found.step_time_s if is_timed else None,
        memory_B=found.memory_B.value - beside_B,
        verdict=found.verdict,
        reason="" if is_timed else f"nothing is known of how fast {plan.cluster.gpu} is",
    )


def first_line(error: MoeModelError) -> str:
    """Of what an error says."""
    return str(error).splitlines()[0]
