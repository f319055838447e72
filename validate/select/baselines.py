"""Plans to hold a choice against: what a user would run without a search, and a random one that could have been found.

They tell a good choice from a lucky one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.search.candidates import Candidates, candidates
from moemodel.model.search.document import Search
from moemodel.model.search.problem import SearchProblem, constraint_values, limits_of, memory_of
from moemodel.model.search.reference import reference_plan
from moemodel.model.step.system import system_of
from moemodel.validation.select.runnable import Hardware, PlanRequest, what_runs

_AT_ONCE = 1000  # random plans whose memory is counted at once
_MOST_TRIED = 200  # random plans that fit, until one can be run


@dataclass(frozen=True, kw_only=True)
class BaselinePlans:
    """Plans to run beside the chosen ones, and a note for each that there isn't."""

    requests: tuple[PlanRequest, ...]
    notes: tuple[str, ...]


def baselines_for(
    document: Search,
    reference: Plan | None,
    hardware: Hardware,
    calibration: Calibration,
    *,
    seed: int,
    others: Sequence[Plan],
) -> BaselinePlans:
    """The default plan and a random one of a search, on as many of its GPUs as there are.

    Args:
        document: what was searched.
        reference: the default plan, where it is known.
        hardware: at hand.
        calibration: of the GPU.
        seed: of the draw.
        others: plans that are run anyway: the random one is none of them.
    """
    counts = [count for count in document.cluster.gpus if count <= hardware.gpus]
    if not counts:
        note = f"No controls: search {document.name} asks for more GPUs than there are."
        return BaselinePlans(requests=(), notes=(note,))
    cluster = document.cluster.model_copy(update={"gpus": (max(counts),)})
    problem = _problem(document.model_copy(update={"cluster": cluster}), calibration)
    if reference is None or reference.cluster.gpus > hardware.gpus:
        reference = reference_plan(problem, candidates(problem, calibration))
    found = {
        "default": ("reference", reference),
        "random": ("random", _random_plan(problem, hardware, calibration, seed, others)),
    }
    missing = {
        "default": "nothing that `moemodel init` would try fits here within the limits",
        "random": "no other plan of its search can be run here",
    }
    return BaselinePlans(
        requests=tuple(
            PlanRequest(role=f"control: {role}", plan=plan.model_copy(update={"name": f"{document.name}-{name}"}))
            for role, (name, plan) in found.items()
            if plan is not None
        ),
        notes=tuple(
            f"{document.name} has no {role} control: {missing[role]}."
            for role, (_, plan) in found.items()
            if plan is None
        ),
    )


def _problem(document: Search, calibration: Calibration) -> SearchProblem:
    """What a search rests on; its document was checked when it was searched or made."""
    plan = document.plan()
    return SearchProblem(
        document=document,
        architecture=architecture_of(plan),
        machine=system_of(plan, calibration),
    )


def _random_plan(
    problem: SearchProblem, hardware: Hardware, calibration: Calibration, seed: int, others: Sequence[Plan]
) -> Plan | None:
    """A plan drawn at random of those that fit, keep the limits, can be run, and are none of `others`."""
    random = np.random.default_rng(seed)
    legal = candidates(problem, calibration)
    clocks = legal.clocks_MHz if hardware.no_locks is None else (None,)
    tried = 0
    for some in _in_random_order(legal, random):
        fits = memory_of(problem, some.batch(problem.document)).peak_B <= problem.machine.memory_B
        for row in np.flatnonzero(fits):
            plan = some.plan(problem.document, int(row), clocks[random.integers(len(clocks))] if clocks else None)
            taken = any(what_runs(plan) == what_runs(other) for other in others)
            if not taken and hardware.unable(plan) is None and _within_limits(problem, plan):
                return plan
            tried += 1
            if tried == _MOST_TRIED:
                return None
    return None


def _in_random_order(legal: Candidates, random: np.random.Generator) -> Iterator[Candidates]:
    order: NDArray[np.int64] = random.permutation(len(legal))
    for start in range(0, len(order), _AT_ONCE):
        yield legal.take(order[start : start + _AT_ONCE])


def _within_limits(problem: SearchProblem, plan: Plan) -> bool:
    batch = batch_of(plan)
    values = constraint_values(problem, batch, predict(problem.architecture, batch, problem.machine))
    return all(values[name][0] <= limit for name, limit in limits_of(problem).items())
