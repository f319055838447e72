"""Which plans DeepSpeed runs; neither it nor torch here, so that plans can be refused before any process starts."""

from __future__ import annotations

from collections.abc import Iterator

from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.core.errors import InputError
from moemodel.model.plan.routing import RoutingSpec
from moemodel.model.plan.spec import Plan
from moemodel.profiler.backends.data_parallel_plans import Limits, blocks_of, check_plan

JITTER = 1e-2  # deepspeed/moe/sharded_moe.py, multiplicative_jitter's epsilon, which no option changes
MIN_CAPACITY = 4  # deepspeed/moe/layer.py, MoE's default


def _routing(routing: RoutingSpec, block: Moe) -> Iterator[str]:
    if routing.normalize is not None and routing.normalize != (block.top_k > 1):
        yield (
            f"routing.normalize: found {routing.normalize} with {block.top_k} experts a token; DeepSpeed normalises "
            f"the weights of 2 and more and leaves those of one alone, allowed: null, {block.top_k > 1}"
        )
    if routing.pad is False:
        yield "routing.pad: found False; DeepSpeed pads experts to the busiest or to the capacity, allowed: null, True"
    if routing.jitter not in (0.0, JITTER):
        yield f"routing.jitter: found {routing.jitter:g}; DeepSpeed's is {JITTER:g}, allowed: 0, {JITTER:g}"
    for name, neutral in (("temperature", 1.0), ("z_loss", 0.0), ("bias_rate", 0.0)):
        if (found := getattr(routing, name)) != neutral:
            yield f"routing.{name}: found {found:g}; DeepSpeed has no such thing, allowed: {neutral:g}"
    yield from _choice(routing, block)


def _choice(routing: RoutingSpec, block: Moe) -> Iterator[str]:
    allowed = {"noisy_topk": 1, "switch_top1": 1, "gshard_top2": 2}.get(block.router, block.top_k)
    if block.top_k != allowed:
        yield f"routing.top_k: found {block.top_k}; allowed with DeepSpeed's {block.router}: {allowed}"
    if routing.jitter and block.router == "noisy_topk":
        yield f"routing.jitter: found {routing.jitter:g} with noisy_topk; DeepSpeed takes one noise, allowed: 0"


_LIMITS = Limits(
    zero_stages=(0, 1, 2), routers=("softmax_topk", "switch_top1", "gshard_top2", "noisy_topk"), routing=_routing
)


def check_runs(plan: Plan, architecture: Architecture) -> None:
    """Refuse a plan that DeepSpeed does not run.

    Args:
        plan: checked by itself.
        architecture: of the plan, with its routers and as many layers as it asks for.

    Raises:
        InputError: a part of the plan or of the architecture is predicted, not run; what is allowed.
        InfeasiblePlanError: a degree does not divide the architecture.
    """
    check_plan(plan, architecture, _LIMITS)
    if plan.precision == "bf16" and plan.parallel.zero_stage == 0:
        raise InputError(
            f"{plan.name}: precision: found 'bf16' with parallel.zero_stage 0; DeepSpeed keeps states in bf16 with "
            "ZeRO 1 and 2 alone, allowed: bf16-mixed, or a zero_stage of 1 or 2"
        )
    tokens = plan.micro_batch * plan.sequence_length
    if blocks_of(architecture) and tokens < MIN_CAPACITY:
        raise InputError(
            f"{plan.name}: found {tokens} tokens in a micro-batch; DeepSpeed's experts take {MIN_CAPACITY} rows at "
            f"least, allowed: {MIN_CAPACITY} or more"
        )
    _check_recompute(plan, architecture)


def _check_recompute(plan: Plan, architecture: Architecture) -> None:
    if plan.recompute == "none":
        return
    for block in blocks_of(architecture):
        # of jitter the random state is kept (torch_native.layer); the others draw after it was given back
        if block.router in ("noisy_topk", "gshard_top2") or (block.top_k == 1 and block.capacity_factor is not None):
            raise InputError(
                f"{plan.name}: recompute: found {plan.recompute!r} with routers that draw lots, which would choose "
                "otherwise the second time; allowed: none"
            )
