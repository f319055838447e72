"""Whether a plan fits in memory. Refusals say what was found and what would do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.core.interval import INTERVAL
from moemodel.model.plan.batch import batch_of, joined
from moemodel.model.plan.checks import check_architecture
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.prediction import Prediction
from moemodel.model.schedule import registry as schedules
from moemodel.model.step.memory_fit import peak_memory
from moemodel.model.step.system import System, framework_as_run

Verdict = Literal["fits", "may not fit", "does not fit"]

SURE = (1 + INTERVAL) / 2  # probability from which a verdict is sure: the interval lies on one side of what there is
_TERMS_NAMED = 3  # largest of memory, in an error: what a person reads
_CHANGES_NAMED = 4  # that would make it fit, or come nearest


def verdict_of(probability: float) -> Verdict:
    """Whether a plan fits, if so likely it does: not sure where its interval holds what there is."""
    if probability >= SURE:
        return "fits"
    return "does not fit" if probability < 1 - SURE else "may not fit"


def fits(architecture: Architecture, plans: list[Plan], machine: System) -> NDArray[np.bool_]:
    """Which of some plans fit in memory."""
    return np.asarray(peak_memory(architecture, joined(plans), machine).peak_B <= machine.memory_B)


def refuse_too_large(plan: Plan, architecture: Architecture, machine: System, prediction: Prediction) -> None:
    """Refuse a plan that doesn't fit in memory.

    Raises:
        InfeasiblePlanError: the peak, what there is, the largest terms, and which single changes would help.
    """
    if verdict_of(float(prediction.fit_probability[0])) != "does not fit":
        return
    terms = sorted(((float(size[0]), name) for name, size in prediction.memory_terms_B.items()), reverse=True)
    largest = ", ".join(f"{name.replace('_', ' ')} {_GB(size)}" for size, name in terms[:_TERMS_NAMED])
    raise InfeasiblePlanError(
        f"{plan.name} does not fit in memory: the fullest GPU needs {_GB(float(prediction.memory_B[0]))}, "
        f"{machine.calibration.gpu} has {_GB(machine.memory_B)}. Largest terms: {largest}. "
        f"{_advice(plan, architecture, machine, float(prediction.memory_B[0]))}"
    )


def _advice(plan: Plan, architecture: Architecture, machine: System, needed_B: float) -> str:
    """Which single changes would make the plan fit, or at least smaller."""
    changes = dict(_changes(plan, architecture))
    if not changes:
        return "No single change of the plan makes it smaller; use more GPUs."
    sized = [(_peak_B(architecture, changed, machine), change) for change, changed in changes.items()]  # mildest first
    fitting = [(size, change) for size, change in sized if size <= machine.memory_B]
    smaller = sorted((size, change) for size, change in sized if size < needed_B)
    named = ", ".join(f"{change} ({_GB(size)})" for size, change in (fitting or smaller)[:_CHANGES_NAMED])
    if fitting:
        return f"Any one of these would make it fit: {named}."
    if smaller:
        return f"No single change makes it fit; the most helpful: {named}. Combine them, or use more GPUs."
    return "No single change of the plan makes it smaller; use more GPUs."


def _peak_B(architecture: Architecture, plan: Plan, machine: System) -> float:
    """Peak of a plan on the same hardware, its software as it says."""
    return float(
        peak_memory(architecture, batch_of(plan), replace(machine, framework=framework_as_run(plan))).peak_B[0]
    )


def _changes(plan: Plan, architecture: Architecture) -> Iterator[tuple[str, Plan]]:
    """Legal plans that differ from a plan in one choice, on the same GPUs, with what differs."""
    for change, update in _updates(plan):
        data = plan.model_dump()
        data["parallel"] |= update.pop("parallel", {})
        try:
            changed = Plan.model_validate(data | update)
            check_architecture(changed, architecture)
        except (InputError, InfeasiblePlanError):
            continue
        yield change, changed


def _updates(plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    p = plan.parallel
    for size in sorted({plan.micro_batch // 2, 1}, reverse=True):
        if 0 < size < plan.micro_batch:
            yield f"micro_batch {size}", {"micro_batch": size}
    stronger = {"none": ("selective", "full"), "full": ()}.get(plan.recompute, ("full",))
    for recompute in stronger:
        yield f"recompute {recompute}", {"recompute": recompute}
    for stage in range(p.zero_stage + 1, 4):
        yield f"parallel.zero_stage {stage}", {"parallel": {"zero_stage": stage}}
    yield f"parallel.ep {p.ep * 2}", {"parallel": {"ep": p.ep * 2}}
    if p.tp > 1 and not p.sequence_parallel:
        yield "parallel.sequence_parallel true", {"parallel": {"sequence_parallel": True}}
    if p.dp % 2 == 0:
        for name in ("tp", "pp"):
            degree = getattr(p, name) * 2
            changed = {"dp": p.dp // 2, name: degree}
            yield f"parallel.{name} {degree} with dp {p.dp // 2}", {"parallel": changed}
    if plan.cross_entropy != "fused":
        yield "cross_entropy fused", {"cross_entropy": "fused"}
    if plan.micro_batches_per_schedule is None and 1 < p.pp < plan.micro_batches:
        yield f"micro_batches_per_schedule {p.pp}", {"micro_batches_per_schedule": p.pp}
    if schedules.find(plan.schedule, p.virtual_stages).keeps_every_micro_batch:
        yield f"schedule {schedules.DEFAULT}", {"schedule": schedules.DEFAULT}


def _GB(size_B: float) -> str:
    return f"{size_B / 1e9:.1f} GB"
