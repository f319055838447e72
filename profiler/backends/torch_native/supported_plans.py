"""Which plans plain PyTorch runs; no torch here, so that plans can be refused before any process starts."""

from __future__ import annotations

from collections.abc import Iterator

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import InputError
from moemodel.model.plan.checks import check_architecture
from moemodel.model.plan.recompute import RECOMPUTE
from moemodel.model.plan.spec import Plan
from moemodel.profiler.backends.expert_plans import expert_mistakes
from moemodel.profiler.backends.stated import stated
from moemodel.profiler.backends.torch_native.supported_models import check_routing, check_supported

_SCHEDULES = ("1f1b", "gpipe", "zero-bubble")


def check_runs(plan: Plan, architecture: Architecture) -> None:
    """Refuse a plan that the torch runner does not run.

    Args:
        plan: checked by itself.
        architecture: of the plan, with as many layers as it asks for.

    Raises:
        InputError: a part of the plan or of the architecture is predicted, not run; what is allowed.
        InfeasiblePlanError: a degree does not divide the architecture.
    """
    check_supported(architecture)
    check_routing(architecture, plan.routing)
    check_architecture(plan, architecture)
    mistakes = [*_outside(plan, architecture), *_tensor(plan, architecture), *_pipeline(plan), *expert_mistakes(plan)]
    if mistakes:
        raise InputError(f"{plan.name}: " + "; ".join(mistakes) + ". `moemodel predict` takes all of these")


def _outside(plan: Plan, architecture: Architecture) -> Iterator[str]:
    if plan.mode != "training":
        yield f"mode: found {plan.mode}; allowed for plans that are run: training"
    if plan.precision not in ("bf16", "bf16-mixed"):
        yield f"precision: found {plan.precision!r}; allowed for plans that are run: bf16, bf16-mixed"
    if plan.recompute not in RECOMPUTE:
        yield f"recompute: found {plan.recompute!r}; allowed for plans that are run: {', '.join(RECOMPUTE)}"
    if plan.recompute == "selective" and max(plan.parallel.ep, plan.parallel.tp) > 1:  # collectives would run again
        yield "recompute: found 'selective' with ep or tp above 1; allowed for plans that are run: none, full"
    yield from stated(plan, "allowed for plans that are run")
    if plan.parallel.replicas > 1:
        yield f"parallel.replicas: found {plan.parallel.replicas}; allowed for plans that are run: 1"
    if plan.parallel.cp > 1:
        yield f"parallel.cp: found {plan.parallel.cp}; context parallelism is not run yet, allowed: 1"
    if architecture.encoder and plan.parallel.pp > 1:
        yield f"parallel.pp: found {plan.parallel.pp}; no pipeline cuts an encoder-decoder yet, allowed: 1"
    if architecture.encoder and plan.parallel.sequence_parallel:
        yield "parallel.sequence_parallel: found true, with an encoder-decoder; allowed: false"
    if plan.power_cap_W is not None:
        yield f"power_cap_W: found {plan.power_cap_W:g}; power limits are left alone, allowed: null"


def _tensor(plan: Plan, architecture: Architecture) -> Iterator[str]:
    tp = plan.parallel.tp
    for layer in dict.fromkeys(architecture.layers):
        for attention in layer.attentions:
            if attention.kv_heads % tp:
                yield f"parallel.tp: found {tp}; allowed: divisors of the {attention.kv_heads} key/value heads"
        shared = getattr(layer.feed_forward, "shared_width", 0)
        if shared % tp:
            yield f"parallel.tp: found {tp}; allowed: divisors of the shared experts' width {shared}"


def _pipeline(plan: Plan) -> Iterator[str]:
    p, m = plan.parallel, plan.micro_batches
    if p.pp == 1:
        return
    if plan.schedule not in _SCHEDULES:
        yield f"schedule: found {plan.schedule!r}; allowed for plans that are run: {', '.join(_SCHEDULES)}"
    if p.zero_stage > 1:
        yield f"parallel.zero_stage: found {p.zero_stage} with pp {p.pp}; allowed for plans that are run: 0, 1"
    if plan.schedule == "1f1b" and m < p.pp:
        yield f"parallel.pp: found {p.pp} with {m} micro-batches; schedule 1f1b needs at least one a stage"
    rounds = max(1, m // p.pp)
    if plan.schedule == "zero-bubble" and m % rounds:
        yield f"schedule zero-bubble: found {m} micro-batches; allowed with pp {p.pp}: a multiple of {rounds}"
    if plan.schedule == "zero-bubble" and plan.recompute != "none":
        yield (
            f"recompute: found {plan.recompute!r}; allowed with schedule zero-bubble: none (a backward pass in two "
            "parts cannot recompute)"
        )
