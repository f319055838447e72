"""A plan against the architecture that it trains and the GPU that it runs on. Refusals say what is allowed."""

from __future__ import annotations

import math
from dataclasses import replace

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.plan.spec import ParallelSpec, Plan

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


def _divides(name: str, value: int, what: str, size: int) -> str | None:
    return None if size % value == 0 else f"{name} {value} does not divide {what} {size}; allowed: divisors of {size}"


def _too_many_chunks(parallel: ParallelSpec, layers: int) -> str | None:
    """Every chunk of a pipeline holds a layer; they need not hold equally many."""
    chunks = parallel.pp * parallel.virtual_stages
    if chunks <= layers:
        return None
    return f"parallel.pp x virtual_stages {chunks} is more than the {layers} layers; allowed: at most {layers}"


def _splits_keys(tp: int, kv_heads: int) -> str | None:
    """Key/value heads are shared out, or each copied to as many ranks."""
    if kv_heads % tp == 0 or tp % kv_heads == 0:
        return None
    return f"parallel.tp {tp} and the key/value heads {kv_heads}: one must divide the other"


def _too_skewed(plan: Plan, moe: Moe) -> str | None:
    """A token passes an expert at most once: the busiest holds at most all tokens, experts / top_k times the mean."""
    skew, most = plan.routing.skew, moe.experts / moe.top_k
    if skew == "balanced" or skew <= most:
        return None
    return f"routing.skew {skew}: top {moe.top_k} of {moe.experts} experts; allowed: at most {most:g}"


def check_architecture(plan: Plan, architecture: Architecture) -> None:
    """Refuse a plan whose degrees do not divide the architecture, or cut it into more chunks than it has layers.

    Raises:
        InfeasiblePlanError: every such degree, and what is allowed.
    """
    p = plan.parallel
    found = [_too_many_chunks(p, len(architecture.layers))]
    for layer in dict.fromkeys(architecture.layers):
        for attention in layer.attentions:
            found.append(_divides("parallel.tp", p.tp, "the attention heads", attention.heads))
            if attention.latent is None:
                found.append(_splits_keys(p.tp, attention.kv_heads))
        feed_forward = layer.feed_forward
        if isinstance(feed_forward, Moe):
            found.append(_divides("parallel.ep", p.ep, "the experts", feed_forward.experts))
            found.append(_too_skewed(plan, feed_forward))
        found.append(_divides("parallel.tp", p.tp, "the feed-forward width", feed_forward.width))
    if p.cp > 1 and plan.sequence_length % (2 * p.cp):
        found.append(
            f"parallel.cp {p.cp}: twice cp, {2 * p.cp}, does not divide sequence_length {plan.sequence_length}, and "
            "every GPU takes two pieces of a sequence; change cp or sequence_length"
        )
    if p.ep > 1 and not any(isinstance(layer.feed_forward, Moe) for layer in architecture.layers):
        found.append(f"parallel.ep {p.ep}: {architecture.name} has no experts; use ep 1")
    if p.sequence_parallel and plan.sequence_length % p.tp:
        found.append(_divides("parallel.tp", p.tp, "sequence_length (sequence_parallel)", plan.sequence_length))
    positions = min(architecture.learned_positions, architecture.max_seq or architecture.learned_positions)
    if positions and plan.sequence_length > positions:
        found.append(
            f"sequence_length {plan.sequence_length}: {architecture.name} has {positions} "
            "learned positions; allowed: at most that"
        )
    mistakes = [message for message in dict.fromkeys(found) if message]
    if mistakes:
        raise InfeasiblePlanError(f"{plan.name}: " + "; ".join(mistakes))
