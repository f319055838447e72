"""Which plans of a search fit in memory: sure enough not to be refused, within its risk, and within its share.

Axes: P plans.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.arrays import FloatArray
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.results.feasibility import SURE
from moemodel.model.search.problem import SearchProblem
from moemodel.model.step.memory_fit import fit_probability

_MEMORY_RISK = 0.5  # of not fitting, below which a plan is kept where a search does not say: more likely than not


@dataclass(frozen=True, kw_only=True)
class Room:
    """What becomes of plans for their memory; each is one of these. [P]

    Attributes:
        too_large: those that do not fit, as `feasibility.verdict_of` has it, whatever risk the search takes.
        risky: those that may fit, by less than its `limits.memory_risk` asks.
        over: those beyond its `limits.memory_share`.
        kept: all others.
    """

    too_large: NDArray[np.bool_]
    risky: NDArray[np.bool_]
    over: NDArray[np.bool_]
    kept: NDArray[np.bool_]


def room_of(problem: SearchProblem, plans: PlanBatch, peak_B: FloatArray) -> Room:
    """What becomes of plans of which the peaks are known.

    Args:
        problem: whose limits hold.
        plans: some of them.
        peak_B: of the fullest GPU of each. [P]
    """
    likely = fit_probability(problem.architecture, plans, problem.machine, peak_B)
    too_large = likely < 1 - SURE
    risky = ~too_large & (likely <= 1 - memory_risk(problem))
    over = ~too_large & ~risky & (peak_B > memory_B(problem))
    return Room(too_large=too_large, risky=risky, over=over, kept=~(too_large | risky | over))


def memory_risk(problem: SearchProblem) -> float:
    """Probability of not fitting, below which a plan is kept."""
    return problem.document.limits.memory_risk or _MEMORY_RISK


def memory_B(problem: SearchProblem) -> float:
    """What a plan may take of a GPU's memory; infinite: what it may take is for the probability to say."""
    share = problem.document.limits.memory_share
    return math.inf if share is None else problem.machine.memory_B * share
