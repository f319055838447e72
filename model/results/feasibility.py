"""Whether a plan can run as asked: layers, clock, power cap, memory. Refusals say what was found and what would do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.plan.spec import Plan, PlanBatch, batch_of, check_architecture
from moemodel.model.predict.predict import Prediction, predict
from moemodel.model.schedule import registry as schedules
from moemodel.model.step.system import Machine

_TERMS_NAMED = 3
_CHANGES_NAMED = 4
_ON_STEP = 1e-3  # of a clock step: rounding of MHz to Hz


def architecture_of(plan: Plan) -> Architecture:
    """The architecture that a plan trains, cut to its `layers`.

    Raises:
        InputError: unknown architecture, or more layers than it has.
    """
    architecture = read_architecture(plan.architecture)
    if plan.layers is None:
        return architecture
    held = len(architecture.decoder)
    if plan.layers > held:
        raise InputError(
            f"layers: found {plan.layers}; {architecture.name} has {held} decoder layers; allowed: 1 to {held}"
        )
    return replace(architecture, decoder=architecture.decoder[: plan.layers])


def check_power_and_clock(plan: Plan, gpu: Gpu) -> None:
    """Refuse a clock or a power cap that the GPU can't be set to.

    Raises:
        InputError: with the range allowed, and the nearest clocks where one lies between two steps.
    """
    if plan.clock_MHz is not None:
        _check_clock(plan.clock_MHz, gpu)
    if plan.power_cap_W is not None:
        _check_power_cap(plan.power_cap_W, gpu)


def _check_clock(clock_MHz: float, gpu: Gpu) -> None:
    if gpu.clock_min_Hz is None or gpu.clock_max_Hz is None:
        raise InputError(f"clock_MHz: found {clock_MHz:g}; the clocks of {gpu.name} aren't known; allowed: null")
    low, high = gpu.clock_min_Hz / 1e6, gpu.clock_max_Hz / 1e6
    step = (gpu.clock_step_Hz or 0.0) / 1e6
    steps = f" in steps of {step:g}" if step else ""
    message = f"clock_MHz: found {clock_MHz:g}; allowed on {gpu.name}: {low:g} to {high:g}{steps}, or null"
    if not low <= clock_MHz <= high:
        raise InputError(message)
    if step:
        count = (clock_MHz - low) / step
        if abs(count - round(count)) > _ON_STEP:
            below = low + math.floor(count) * step
            raise InputError(f"{message}; the nearest are {below:g} and {min(below + step, high):g}")


def _check_power_cap(power_cap_W: float, gpu: Gpu) -> None:
    if gpu.power_limit_min_W is None or gpu.power_limit_max_W is None:
        raise InputError(
            f"power_cap_W: found {power_cap_W:g}; the range of {gpu.name} isn't known; allowed: null (its own limit)"
        )
    if not gpu.power_limit_min_W <= power_cap_W <= gpu.power_limit_max_W:
        raise InputError(
            f"power_cap_W: found {power_cap_W:g}; allowed on {gpu.name}: "
            f"{gpu.power_limit_min_W:g} to {gpu.power_limit_max_W:g}, or null"
        )


def fits(architecture: Architecture, plans: list[Plan], machine: Machine) -> NDArray[np.bool_]:
    """Which of some plans fit in memory."""
    return predict(architecture, _batch(plans), machine).fits


def refuse_too_large(plan: Plan, architecture: Architecture, machine: Machine, prediction: Prediction) -> None:
    """Refuse a plan that doesn't fit in memory.

    Raises:
        InfeasiblePlanError: the peak, what there is, the largest terms, and which single changes would help.
    """
    if bool(prediction.fits[0]):
        return
    terms = sorted(((float(size[0]), name) for name, size in prediction.memory_terms_B.items()), reverse=True)
    largest = ", ".join(f"{name.replace('_', ' ')} {_GB(size)}" for size, name in terms[:_TERMS_NAMED])
    raise InfeasiblePlanError(
        f"{plan.name} does not fit in memory: the fullest GPU needs {_GB(float(prediction.memory_B[0]))}, "
        f"{machine.calibration.gpu} has {_GB(machine.memory_B)}. Largest terms: {largest}. "
        f"{_advice(plan, architecture, machine, float(prediction.memory_B[0]))}"
    )


def _advice(plan: Plan, architecture: Architecture, machine: Machine, needed_B: float) -> str:
    """Which single changes would make the plan fit, or at least smaller."""
    changes = dict(_changes(plan, architecture))
    if not changes:
        return "No single change of the plan makes it smaller; use more GPUs."
    sizes_B = predict(architecture, _batch(list(changes.values())), machine).memory_B
    sized = [(float(size), change) for size, change in zip(sizes_B, changes, strict=True)]  # least drastic first
    fitting = [(size, change) for size, change in sized if size <= machine.memory_B]
    smaller = sorted((size, change) for size, change in sized if size < needed_B)
    named = ", ".join(f"{change} ({_GB(size)})" for size, change in (fitting or smaller)[:_CHANGES_NAMED])
    if fitting:
        return f"Any one of these would make it fit: {named}."
    if smaller:
        return f"No single change makes it fit; the most helpful: {named}. Combine them, or use more GPUs."
    return "No single change of the plan makes it smaller; use more GPUs."


def _changes(plan: Plan, architecture: Architecture) -> Iterator[tuple[str, Plan]]:
    """Legal plans that differ from a plan in one choice, on the same GPUs, with what differs."""
    for change, update in _updates(plan):
        data = plan.model_dump()
        data["parallel"] |= update.pop("parallel", {})
        try:
            changed = Plan.model_validate(data | update)
            check_architecture(changed, architecture)
        except (ValidationError, InfeasiblePlanError):
            continue
        yield change, changed


def _updates(plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    p = plan.parallel
    for size in sorted({plan.micro_batch // 2, 1}, reverse=True):
        if 0 < size < plan.micro_batch:
            yield f"micro_batch {size}", {"micro_batch": size}
    stronger = {"none": ("selective", "full"), "selective": ("full",), "full": ()}[plan.recompute]
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
    if schedules.find(plan.schedule, p.virtual_stages).keeps_every_micro_batch:
        yield f"schedule {schedules.DEFAULT}", {"schedule": schedules.DEFAULT}


def _batch(plans: list[Plan]) -> PlanBatch:
    batches = [batch_of(plan) for plan in plans]
    return PlanBatch(**{f.name: np.concatenate([getattr(b, f.name) for b in batches]) for f in fields(PlanBatch)})


def _GB(size_B: float) -> str:
    return f"{size_B / 1e9:.1f} GB"
