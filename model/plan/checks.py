"""A plan against the architecture that it trains and the GPU that it runs on. Refusals say what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.plan.clock import ClocksSpec
from moemodel.model.plan.routing import routed_architecture
from moemodel.model.plan.rules import architecture_rules, messages
from moemodel.model.plan.skew import skew_of
from moemodel.model.plan.spec import Plan
from moemodel.model.plan.stage_layers import cut_as_said, cut_by_cost
from moemodel.model.schedule.pipeline_layout import PipelineLayout

_ON_STEP = 1e-3  # of a clock step: rounding of MHz to Hz


def architecture_of(plan: Plan) -> Architecture:
    """The architecture that a plan trains, with its routers, cut to its `layers`, and its modules where it says so.

    Raises:
        InputError: unknown architecture, more layers than it has, layers of stages that don't add up to them, or
            experts that the framework multiplies in float32.
    """
    cut = _as_cut(plan, _decoder_of(plan))
    _check_experts(plan, cut)
    if not plan.multi_token:
        return cut
    if not cut.multi_token:
        raise InputError(
            f"multi_token: found true; {cut.name} states no modules of multi-token prediction; allowed: null"
        )
    return cut.with_modules()


def _check_experts(plan: Plan, architecture: Architecture) -> None:
    framework, alone = framework_of(plan.backend), plan.parallel.zero_stage == 0
    in_float32 = framework.float32_experts and framework.precisions[plan.precision].master_weights and alone
    if in_float32 and architecture.has_experts:
        raise InputError(
            f"precision: found {plan.precision} with experts and zero_stage 0, whose products backend {plan.backend} "
            "takes in float32 then, which is not predicted; allowed: bf16, or zero_stage 3"
        )


def _decoder_of(plan: Plan) -> Architecture:
    architecture = routed_architecture(read_architecture(plan.architecture), plan.routing)
    if plan.layers is None:
        return architecture
    held = len(architecture.decoder)
    if plan.layers > held:
        raise InputError(
            f"layers: found {plan.layers}; {architecture.name} has {held} decoder layers; allowed: 1 to {held}"
        )
    return replace(architecture, decoder=architecture.decoder[: plan.layers])


def _as_cut(plan: Plan, architecture: Architecture) -> Architecture:
    """As the plan says; else with its ends counted as a layer each where a pipeline that is not torch's has more chunks
    than layers, as Megatron's `account_for_embedding_in_pipeline_split` and `account_for_loss_in_pipeline_split` do.
    """
    pp, virtual = plan.distinct_stages, plan.parallel.virtual_stages
    if plan.stage_layers is not None:
        return cut_as_said(architecture, plan.stage_layers, pp=pp, virtual=virtual)
    if framework_of(plan.backend).cuts_by_cost:
        return cut_by_cost(architecture)
    chunks, layers = pp * virtual, len(architecture.layers)
    if framework_of(plan.backend).pipeline != "torch" and layers < chunks <= layers + 2:
        return PipelineLayout.of(architecture, account_for_embedding=1, account_for_loss=1)
    return architecture


def check_power_and_clock(plan: Plan, gpu: Gpu) -> None:
    """Refuse a clock or a power cap that the GPU can't be set to.

    Raises:
        InputError: with the range allowed, and the nearest clocks where one lies between two steps.
    """
    if isinstance(plan.clock_MHz, ClocksSpec):
        for key, clock_MHz in plan.clock_MHz.named_MHz():
            _check_clock(clock_MHz, gpu, key=f"clock_MHz.{key}")
    elif plan.clock_MHz is not None:
        _check_clock(plan.clock_MHz, gpu)
    if plan.power_cap_W is not None:
        _check_power_cap(plan.power_cap_W, gpu)


def _check_clock(clock_MHz: float, gpu: Gpu, *, key: str = "clock_MHz") -> None:
    if gpu.clock_min_Hz is None or gpu.clock_max_Hz is None:
        raise InputError(f"{key}: found {clock_MHz:g}; the clocks of {gpu.name} aren't known; allowed: null")
    low, high = gpu.clock_min_Hz / 1e6, gpu.clock_max_Hz / 1e6
    step = (gpu.clock_step_Hz or 0.0) / 1e6
    steps = f" in steps of {step:g}" if step else ""
    message = f"{key}: found {clock_MHz:g}; allowed on {gpu.name}: {low:g} to {high:g}{steps}, or null"
    if not low <= clock_MHz <= high:
        raise InputError(message)
    if step:
        count = (clock_MHz - low) / step
        if abs(count - round(count)) > _ON_STEP:
            below = low + math.floor(count) * step
            raise InputError(f"{message}; the nearest are {below:g} and {min(below + step, high):g}")


def _decoder_length(plan: Plan, architecture: Architecture) -> Iterator[str]:
    """Of a decoder whose sequences are of another length than its encoder's."""
    found, p = plan.decoder_sequence_length, plan.parallel
    if found is None:
        return
    said = f"decoder_sequence_length: found {found}"
    if not any(attention.cross for layer in architecture.layers for attention in layer.attentions):
        yield f"{said} with {architecture.name}, whose layers attend to no encoder; allowed: null"
    elif max(p.pp, p.cp) > 1:
        yield f"{said} with pp {p.pp} and cp {p.cp}; allowed: null, or pp 1 and cp 1"
    elif p.sequence_parallel and found % p.tp:
        yield f"{said}; allowed with sequence_parallel: multiples of tp {p.tp}"
    positions = architecture.learned_positions
    if positions and found > positions:
        yield f"{said}; {architecture.name} has {positions} learned positions, allowed: at most that"


def _check_power_cap(power_cap_W: float, gpu: Gpu) -> None:
    highest_W = gpu.power_limit_max_W or gpu.power_limit_W
    if highest_W is None:
        raise InputError(
            f"power_cap_W: found {power_cap_W:g}; the range of {gpu.name} isn't known; allowed: null (its own limit)"
        )
    if not (gpu.power_limit_min_W or 0.0) <= power_cap_W <= highest_W:
        low = "above 0" if gpu.power_limit_min_W is None else f"{gpu.power_limit_min_W:g}"
        raise InputError(f"power_cap_W: found {power_cap_W:g}; allowed on {gpu.name}: {low} to {highest_W:g}, or null")


def check_architecture(plan: Plan, architecture: Architecture) -> None:
    """Refuse a plan whose degrees do not divide the architecture, or cut it into more chunks than it has layers.

    Raises:
        InfeasiblePlanError: every such degree, and what is allowed.
    """
    rules = architecture_rules(
        architecture, sequence_length=plan.sequence_length, skew=skew_of(plan), cp_comm=plan.cp_comm
    )
    mistakes = list(dict.fromkeys([*messages(rules, plan.choices), *_decoder_length(plan, architecture)]))
    if mistakes:
        raise InfeasiblePlanError(f"{plan.name}: " + "; ".join(mistakes))
