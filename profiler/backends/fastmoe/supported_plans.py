"""Which plans FastMoE runs; neither it nor torch here, so that plans can be refused before any process starts."""

from __future__ import annotations

from collections.abc import Iterator

from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.core.errors import InputError
from moemodel.model.plan.routing import RoutingSpec
from moemodel.model.plan.spec import Plan
from moemodel.profiler.backends.data_parallel_plans import Limits, blocks_of, check_plan

_LIMITED = ("switch_top1", "gshard_top2")  # gates with a capacity


def _routing(routing: RoutingSpec, block: Moe) -> Iterator[str]:
    normalises = block.router != "switch_top1"
    if routing.normalize is not None and routing.normalize != normalises:
        yield (
            f"routing.normalize: found {routing.normalize} with {block.router}; allowed with FastMoE's gate: null, "
            f"{normalises}"
        )
    if routing.pad:
        yield "routing.pad: found True; FastMoE pads nothing, allowed: null, False"
    if block.residual or routing.residual:
        yield "routing.residual: found True; FastMoE has no such thing, allowed: False"
    for name, neutral in (("temperature", 1.0), ("z_loss", 0.0), ("bias_rate", 0.0)):
        if (found := getattr(routing, name)) != neutral:
            yield f"routing.{name}: found {found:g}; FastMoE has no such thing, allowed: {neutral:g}"
    yield from _gate(routing, block)


def _gate(routing: RoutingSpec, block: Moe) -> Iterator[str]:
    allowed = {"switch_top1": 1, "gshard_top2": 2}.get(block.router, block.top_k)
    if block.top_k != allowed:
        yield f"routing.top_k: found {block.top_k}; allowed with FastMoE's {block.router}: {allowed}"
    if block.capacity_factor is not None and block.router not in _LIMITED:
        yield (
            f"routing.capacity_factor: found {block.capacity_factor:g} with {block.router}, which FastMoE limits by "
            f"nothing; allowed: null, or a router of {', '.join(_LIMITED)}"
        )
    if routing.jitter and block.router != "switch_top1":
        yield f"routing.jitter: found {routing.jitter:g} with {block.router}; allowed with FastMoE's gate: 0"
    if routing.balance_loss and block.router == "softmax_topk":
        yield (
            f"routing.balance_loss: found {routing.balance_loss:g} with softmax_topk, whose gate in FastMoE has no "
            "loss; allowed: 0, or a router of noisy_topk, switch_top1, gshard_top2"
        )


_LIMITS = Limits(
    zero_stages=(0,), routers=("softmax_topk", "noisy_topk", "gshard_top2", "switch_top1"), routing=_routing
)


def check_runs(plan: Plan, architecture: Architecture) -> None:
    """Refuse a plan that FastMoE does not run.

    Args:
        plan: checked by itself.
        architecture: of the plan, with its routers and as many layers as it asks for.

    Raises:
        InputError: a part of the plan or of the architecture is predicted, not run; what is allowed.
        InfeasiblePlanError: a degree does not divide the architecture.
    """
    check_plan(plan, architecture, _LIMITS)
    for block in blocks_of(architecture):
        if plan.recompute != "none" and (block.router != "softmax_topk" or block.capacity_factor is not None):
            raise InputError(
                f"{plan.name}: recompute: found {plan.recompute!r} with {block.router}, which would choose or drop "
                "otherwise the second time; allowed: none"
            )
