"""Plans of frameworks that share out data and experts alone; no framework here, so that they can be refused before any.

Their models are the torch backend's, with Mixture-of-Experts blocks of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.core.errors import InputError
from moemodel.model.plan.checks import check_architecture
from moemodel.model.plan.routing import RoutingSpec
from moemodel.model.plan.spec import Plan
from moemodel.profiler.backends.expert_plans import expert_mistakes
from moemodel.profiler.backends.stated import stated
from moemodel.profiler.backends.torch_native.supported_models import check_supported


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a framework's backend takes of a plan.

    Attributes:
        zero_stages: of ZeRO.
        routers: how experts may be chosen.
        routing: mistakes of what a plan asks of the routers of a block.
    """

    zero_stages: Sequence[int]
    routers: Sequence[str]
    routing: Callable[[RoutingSpec, Moe], Iterable[str]]


def check_plan(plan: Plan, architecture: Architecture, limits: Limits) -> None:
    """Refuse a plan that a backend does not run.

    Args:
        plan: checked by itself.
        architecture: of the plan, with its routers and as many layers as it asks for.
        limits: of the backend.

    Raises:
        InputError: a part of the plan or of the architecture is predicted, not run; what is allowed.
        InfeasiblePlanError: a degree does not divide the architecture.
    """
    check_supported(architecture)
    check_architecture(plan, architecture)
    mistakes = [*_outside(plan, limits), *_routers(plan, architecture, limits), *expert_mistakes(plan)]
    if mistakes:
        raise InputError(f"{plan.name}: " + "; ".join(mistakes) + ". `moemodel predict` takes all of these")


def blocks_of(architecture: Architecture) -> list[Moe]:
    """Mixture-of-Experts blocks that differ."""
    found = [layer.feed_forward for layer in architecture.layers]
    return list(dict.fromkeys(block for block in found if isinstance(block, Moe)))


def _outside(plan: Plan, limits: Limits) -> Iterator[str]:
    where = f"allowed for plans that {plan.backend} runs"
    if plan.precision not in ("bf16", "bf16-mixed"):
        yield f"precision: found {plan.precision!r}; {where}: bf16, bf16-mixed"
    if plan.recompute not in ("none", "full"):
        yield f"recompute: found {plan.recompute!r}; {where}: none, full"
    yield from stated(plan, where)
    for degree in ("tp", "pp", "cp"):
        if (found := getattr(plan.parallel, degree)) > 1:
            yield f"parallel.{degree}: found {found}; {where}: 1"
    if plan.parallel.zero_stage not in limits.zero_stages:
        allowed = ", ".join(str(stage) for stage in limits.zero_stages)
        yield f"parallel.zero_stage: found {plan.parallel.zero_stage}; {where}: {allowed}"
    if plan.power_cap_W is not None:
        yield f"power_cap_W: found {plan.power_cap_W:g}; power limits are left alone, allowed: null"


def _routers(plan: Plan, architecture: Architecture, limits: Limits) -> Iterator[str]:
    blocks = blocks_of(architecture)
    for router in dict.fromkeys(block.router for block in blocks):
        if router not in limits.routers:
            yield f"routing.router: found {router!r}; allowed for {plan.backend}: {', '.join(limits.routers)}"
    for block in blocks:
        if block.router in limits.routers:
            yield from limits.routing(plan.routing, block)
