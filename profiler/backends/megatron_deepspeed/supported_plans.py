"""Which plans Megatron-DeepSpeed's pretrain_gpt.py runs, by its own arguments; nothing of it is loaded.

Sources: megatron/arguments.py, megatron/model/transformer.py and pretrain_gpt.py of deepspeedai/Megatron-DeepSpeed at
4efb479 (2025-07-16).
"""

from __future__ import annotations

from collections.abc import Iterator

from moemodel.model.architecture.spec import Architecture, Layer, Mlp, Moe
from moemodel.model.core.errors import InputError
from moemodel.model.plan.checks import check_architecture
from moemodel.model.plan.spec import Plan
from moemodel.profiler.backends.expert_plans import expert_mistakes
from moemodel.profiler.backends.stated import stated

# A layer's gate is DeepSpeed's `MoE`; of two experts a token weights add up to one (`top2gating`), of one they do not.
_ROUTERS = ("softmax_topk", "switch_top1", "gshard_top2")
_RECOMPUTE = ("none", "full")


def check_runs(plan: Plan, architecture: Architecture) -> None:
    """Refuse a plan that it does not run.

    Args:
        plan: checked by itself.
        architecture: of the plan, with as many layers as it asks for.

    Raises:
        InputError: a part of the plan or of the architecture is predicted, not run; what is allowed.
        InfeasiblePlanError: a degree does not divide the architecture.
    """
    gaps = [
        *_model_gaps(architecture),
        *(gap for layer in dict.fromkeys(architecture.decoder) for gap in _layer(layer)),
    ]
    missing = [name for name, found in gaps if found] or [name for name, found in _unlike(architecture) if found]
    if missing:
        raise InputError(
            f"{architecture.name}: the megatron-deepspeed backend does not run {', '.join(dict.fromkeys(missing))}; it "
            "runs what its pretrain_gpt.py has arguments for (GPT-3, Llama, Mixtral). `moemodel predict` takes all "
            "architectures"
        )
    check_architecture(plan, architecture)
    mistakes = [*_outside(plan), *_experts(plan, architecture), *expert_mistakes(plan)]
    if mistakes:
        raise InputError(f"{plan.name}: " + "; ".join(mistakes) + ". `moemodel predict` takes all of these")


def expert_interval(architecture: Architecture) -> int | None:
    """Every how many layers one has experts, as --expert-interval counts: the last of so many; None: no such number."""
    places = [i + 1 for i, layer in enumerate(architecture.decoder) if isinstance(layer.own_feed_forward, Moe)]
    if not places:
        return None
    interval, layers = places[0], len(architecture.decoder)
    return interval if places == list(range(interval, layers + 1, interval)) else None


def _model_gaps(architecture: Architecture) -> Iterator[tuple[str, bool]]:
    layers = architecture.decoder
    yield "encoders", bool(architecture.encoder)
    yield "models without layers", not layers
    yield "models without a vocabulary head", not architecture.has_head or architecture.classes > 0
    yield "biases of the head", architecture.head_bias
    yield "norms behind the embedding", architecture.embedding_norm
    yield "models without a final norm", not architecture.final_norm
    yield "token embeddings of another width than the model's", architecture.embedding_width != architecture.hidden
    rotary = any(attention.rotary for layer in layers for attention in layer.attentions)
    yield "models without positions, or with two kinds of them", rotary == (architecture.learned_positions > 0)


def _layer(layer: Layer) -> Iterator[tuple[str, bool]]:
    if layer.feed_forward is None or layer.state_space is not None:
        yield "state-space layers, and layers of one block", True
        return
    block = layer.feed_forward
    yield "layers without norms", layer.norm is None
    yield "RMS norms with a shift or layer norms without one", layer.norm_bias != (layer.norm == "layer")
    yield "norms without a scale", not layer.norm_scale
    yield "norms behind blocks", layer.second_norm
    yield "blocks side by side", layer.parallel
    yield "layers of other than one attention", len(layer.attentions) != 1
    for attention in layer.attentions:
        yield "attention to later tokens", not attention.causal
        yield "cross attention", attention.cross
        yield "norms of queries and keys", attention.qk_norm != "none"
        yield "windows and chunks of attention", bool(attention.window or attention.chunk)
        yield "values of another width than keys", attention.value_head_dim not in (None, attention.head_dim)
        yield "attention sinks", attention.sinks
        yield "latent attention", attention.latent is not None
        yield "relative position biases", attention.relative_buckets > 0
        biases = {attention.bias_qkv, attention.bias_out, block.bias}
        yield "biases of some products", len(biases) > 1
    kind = (block.activation, block.gated)
    yield "activations other than GELU and SwiGLU", kind not in (("gelu", False), ("silu", True))
    yield "feed-forward blocks of more than one hidden layer", block.depth != 1
    yield "feed-forward blocks of another output width", block.out_width is not None
    if isinstance(block, Moe):
        yield f"{block.router} routers", block.router not in _ROUTERS
        yield "router biases and corrections", block.router_bias or block.score_correction
        yield "shared experts", block.shared_width > 0
        yield "experts of another width than the model's", block.latent_width is not None


def _unlike(architecture: Architecture) -> Iterator[tuple[str, bool]]:
    layers = architecture.decoder
    blocks = [layer.feed_forward for layer in layers if layer.feed_forward is not None]
    yield "layers of more than one kind of attention", len({layer.attentions for layer in layers}) > 1
    yield "layers of more than one kind of norm", len({layer.norm for layer in layers}) > 1
    kinds = {(block.activation, block.gated, block.bias, block.width) for block in blocks}
    yield "feed-forward blocks of more than one shape, experts among them", len(kinds) > 1
    experts = {block for block in blocks if isinstance(block, Moe)}
    yield "experts of more than one shape", len(experts) > 1
    regular = not experts or expert_interval(architecture) is not None
    yield "experts in other layers than every n-th", not regular
    assert all(isinstance(block, (Mlp, Moe)) for block in blocks)


def _outside(plan: Plan) -> Iterator[str]:
    p = plan.parallel
    if plan.recompute not in _RECOMPUTE:
        yield f"recompute: found {plan.recompute!r}; allowed for plans that are run: {', '.join(_RECOMPUTE)}"
    yield from stated(plan, "allowed for plans that are run")
    if p.cp > 1:
        yield f"parallel.cp: found {p.cp}; allowed: 1"
    if p.virtual_stages > 1:
        yield f"parallel.virtual_stages: found {p.virtual_stages}; DeepSpeed's pipeline has none, allowed: 1"
    if p.pp > 1 and plan.schedule != "1f1b":
        yield f"schedule: found {plan.schedule!r}; allowed with backend megatron-deepspeed: 1f1b"
    if p.pp > 1 and p.zero_stage > 1:
        yield f"parallel.zero_stage: found {p.zero_stage} with pp {p.pp}; allowed for DeepSpeed's pipeline: 0, 1"
    if plan.power_cap_W is not None:
        yield f"power_cap_W: found {plan.power_cap_W:g}; power limits are left alone, allowed: null"


def _experts(plan: Plan, architecture: Architecture) -> Iterator[str]:
    block = next((b for layer in architecture.decoder if isinstance(b := layer.own_feed_forward, Moe)), None)
    if block is None:
        return
    p, routing = plan.parallel, plan.routing
    if p.pp > 1:
        yield f"parallel.pp: found {p.pp} with experts; Megatron-DeepSpeed's examples run them with 1 alone, allowed: 1"
    if p.zero_stage > 2:
        yield f"parallel.zero_stage: found {p.zero_stage} with experts; allowed: 0, 1, 2"
    if routing.normalize is not None and routing.normalize != (block.top_k > 1):
        yield (
            f"routing.normalize: found {str(routing.normalize).lower()}; DeepSpeed's gates normalise the weights of "
            "two experts or more, allowed: null"
        )
    for name, allowed in (("temperature", 1.0), ("jitter", 0.0), ("z_loss", 0.0), ("bias_rate", 0.0)):
        if (found := getattr(routing, name)) != allowed:
            yield f"routing.{name}: found {found:g}; it has no argument for it, allowed: {allowed:g}"
    if routing.pad is False and block.capacity_factor is not None:
        yield "routing.pad: found false with a capacity; DeepSpeed's experts are padded to theirs, allowed: true, null"
