"""Which plans Megatron Core runs; no Megatron here, so that plans can be refused before any process starts."""

from __future__ import annotations

from collections.abc import Iterator

from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.core.errors import InputError
from moemodel.model.plan.checks import check_architecture
from moemodel.model.plan.recompute import RECOMPUTE
from moemodel.model.plan.spec import Plan
from moemodel.profiler.backends.expert_plans import expert_mistakes
from moemodel.profiler.backends.megatron_core.supported_models import check_supported, mixture_of

_ZERO = (0, 1)  # its distributed optimizer shards states (`use_distributed_optimizer`), not gradients or parameters


def check_runs(plan: Plan, architecture: Architecture) -> None:
    """Refuse a plan that Megatron Core does not run here.

    Args:
        plan: checked by itself.
        architecture: of the plan, with as many layers as it asks for.

    Raises:
        InputError: a part of the plan or of the architecture is predicted, not run; what is allowed.
        InfeasiblePlanError: a degree does not divide the architecture.
    """
    check_supported(architecture)
    check_architecture(plan, architecture)
    mixture = mixture_of(architecture)
    mistakes = [*_outside(plan), *_tensor(plan, architecture), *_pipeline(plan, architecture)]
    mistakes += [*_projected(plan, architecture), *expert_mistakes(plan)]
    if mixture is not None:
        mistakes += [*_routing(plan, mixture), *_mixture(plan)]
    if mistakes:
        raise InputError(f"{plan.name}: " + "; ".join(mistakes) + ". `moemodel predict` takes all of these")


def _outside(plan: Plan) -> Iterator[str]:
    if plan.precision != "bf16-mixed":
        yield f"precision: found {plan.precision!r}; allowed for plans that are run: bf16-mixed"
    if plan.recompute not in RECOMPUTE:
        yield f"recompute: found {plan.recompute!r}; allowed for plans that are run: {', '.join(RECOMPUTE)}"
    for name, allowed in (
        ("attention", "unfused"),
        ("compile", False),
        ("cuda_graphs", False),
        ("cross_entropy", "plain"),
        ("deterministic", None),
        ("gradient_dtype", "bf16"),
        ("micro_batches_per_schedule", None),
        ("fp8_recipe", None),
        ("parameter_dtype", None),
        ("activation_input_dtype", None),
        ("tp_comm_overlap", False),
        ("loss_chunks", None),
        ("cp_comm", None),
        ("dropout", False),
        ("optimizer", None),
        ("lora", None),
        ("offload", None),
        ("stage_layers", None),
    ):
        if (found := getattr(plan, name)) not in (None, allowed):
            others = "" if allowed is None else f"{allowed}, "
            yield f"{name}: found {found!r}; allowed for plans that are run: {others}null"
    if plan.routing.products is not None:
        yield f"routing.products: found {plan.routing.products!r}; allowed for plans that are run: null"
    if plan.parallel.replicas > 1:
        yield f"parallel.replicas: found {plan.parallel.replicas}; allowed for plans that are run: 1"
    if plan.parallel.cp > 1:
        yield (
            f"parallel.cp: found {plan.parallel.cp}; context parallelism needs Transformer Engine and is not run yet, "
            "allowed: 1"
        )
    if plan.parallel.zero_stage not in _ZERO:
        yield f"parallel.zero_stage: found {plan.parallel.zero_stage}; allowed: 0, 1 (the distributed optimizer)"
    if plan.power_cap_W is not None:
        yield f"power_cap_W: found {plan.power_cap_W:g}; power limits are left alone, allowed: null"


def _tensor(plan: Plan, architecture: Architecture) -> Iterator[str]:
    tp, (attention,) = plan.parallel.tp, architecture.decoder[0].attentions
    if tp == 1:
        return
    if attention.kv_heads % tp:
        yield f"parallel.tp: found {tp}; allowed: divisors of the {attention.kv_heads} key/value heads"
    if attention.qk_norm == "full":
        yield (
            f"parallel.tp: found {tp}; norms over all heads, as {architecture.name} has them, know no tensor "
            "parallelism in Megatron Core; allowed: 1"
        )
    if architecture.vocab % tp:
        yield f"parallel.tp: found {tp}; allowed: divisors of the vocabulary of {architecture.vocab}"


def _pipeline(plan: Plan, architecture: Architecture) -> Iterator[str]:
    p, layers = plan.parallel, len(architecture.decoder)
    if p.pp == 1:
        return
    if plan.schedule != "1f1b":
        yield (
            f"schedule: found {plan.schedule!r}; allowed with backend megatron-core: 1f1b, which virtual stages "
            "interleave"
        )
    if layers % (p.pp * p.virtual_stages):
        yield (
            f"parallel.pp: found {p.pp} with virtual_stages {p.virtual_stages}; allowed: a product that divides the "
            f"{layers} layers"
        )


def _projected(plan: Plan, architecture: Architecture) -> Iterator[str]:
    if architecture.embedding_width == architecture.hidden:
        return
    for name in ("tp", "pp"):
        if (found := getattr(plan.parallel, name)) > 1:
            yield (
                f"parallel.{name}: found {found}; allowed: 1, since Megatron Core has no token embedding of another "
                f"width than the model's, as {architecture.name} has it, and the stand-in is on one rank"
            )


def _mixture(plan: Plan) -> Iterator[str]:
    p = plan.parallel
    if p.tp > 1 and not p.sequence_parallel:  # moe_layer.py refuses it
        yield f"parallel.sequence_parallel: found false with tp {p.tp}; Megatron Core trains experts so only with true"


def _routing(plan: Plan, block: Moe) -> Iterator[str]:
    routing = plan.routing
    if routing.temperature != 1.0:
        yield f"routing.temperature: found {routing.temperature:g}; allowed: 1"
    if routing.residual:
        yield "routing.residual: found true; allowed: false"
    if routing.normalize is False and block.router == "sigmoid_topk" and block.top_k > 1:
        yield "routing.normalize: found false with router sigmoid_topk; allowed: true, null"
    if routing.normalize is True and block.top_k == 1:
        yield (
            "routing.normalize: found true with one expert a token, whose weight would be 1 without a gradient; "
            "allowed: false, null"
        )
    if routing.bias_rate and block.router != "sigmoid_topk":
        yield (
            f"routing.bias_rate: found {routing.bias_rate:g} with router {block.router}; allowed: 0, or router "
            "sigmoid_topk"
        )
    yield from _padding(plan, block)


def _padding(plan: Plan, block: Moe) -> Iterator[str]:
    routing, most = plan.routing, block.experts / block.top_k
    if routing.pad and (block.capacity_factor or 0.0) > most:  # moe_utils.py, `permute`, gathers no token twice
        yield (
            f"routing.capacity_factor: found {block.capacity_factor:g} with pad; Megatron Core pads an expert to as "
            f"many rows as there are tokens at most, allowed: up to {most:g} (experts / top_k)"
        )
    if routing.pad and block.capacity_factor is None:
        yield "routing.pad: found true without a capacity; allowed: false, null, or true with routing.capacity_factor"
