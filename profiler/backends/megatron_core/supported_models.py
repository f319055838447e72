"""Which architectures Megatron Core's GPTModel is built for here; no Megatron, so that plans can be refused before any
process starts.

A GPTModel has one kind of attention, of norm and of dense block, and one kind of experts (`TransformerConfig`); which
layers have experts is free (`moe_layer_freq`).
"""

from __future__ import annotations

from collections.abc import Iterable

from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp, Moe
from moemodel.model.core.errors import InputError

# Routers that TopKRouter is (moe_router_score_function; a softmax over all experts or over the chosen ones).
ROUTERS = ("softmax_topk", "switch_top1", "sigmoid_topk")


def check_supported(architecture: Architecture) -> None:
    """Refuse what no GPTModel is.

    Raises:
        InputError: every such part of the architecture.
    """
    missing = [name for name, found in _model_gaps(architecture) if found]
    for layer in dict.fromkeys(architecture.decoder):
        missing += [name for name, found in _layer_gaps(layer) if found]
    if not missing:
        missing = [name for name, found in _unlike(architecture) if found]
    if missing:
        raise InputError(
            f"{architecture.name}: the megatron-core backend does not run {', '.join(dict.fromkeys(missing))}; it runs "
            "what maps to a TransformerConfig of Megatron Core (OLMoE, Qwen3-MoE, Mixtral, Llama, OPT). `moemodel "
            "predict` takes all architectures"
        )


def mixture_of(architecture: Architecture) -> Moe | None:
    """The block of its layers that have experts; None of a dense model."""
    return next((block for block in _blocks(architecture) if isinstance(block, Moe)), None)


def dense_of(architecture: Architecture) -> Mlp | None:
    """The block of its other layers; None where all have experts."""
    return next((block for block in _blocks(architecture) if isinstance(block, Mlp)), None)


def _blocks(architecture: Architecture) -> Iterable[Mlp | Moe]:
    return (layer.feed_forward for layer in architecture.decoder if layer.feed_forward is not None)


def _model_gaps(architecture: Architecture) -> Iterable[tuple[str, bool]]:
    layers = architecture.decoder
    yield "encoders", bool(architecture.encoder)
    yield "models without layers", not layers
    yield "models without a vocabulary head", not architecture.has_head or architecture.classes > 0
    yield "biases of the head", architecture.head_bias
    yield "norms behind the embedding", architecture.embedding_norm
    rotary = any(attention.rotary for layer in layers for attention in layer.attentions)
    yield "learned positions beside rotary ones", rotary and architecture.learned_positions > 0


def _layer_gaps(layer: Layer) -> Iterable[tuple[str, bool]]:
    if layer.feed_forward is None or layer.state_space is not None:
        yield "state-space layers, and layers of one block", True
        return
    block = layer.feed_forward
    yield "layers without norms", layer.norm is None
    shift = layer.norm == "layer"
    yield "RMS norms with a shift or layer norms without one", layer.norm is not None and layer.norm_bias != shift
    yield "norms without a scale", not layer.norm_scale
    yield "norms behind blocks", layer.second_norm or layer.post_norm
    yield "blocks side by side", layer.parallel
    yield "layers of other than one attention", len(layer.attentions) != 1
    for attention in layer.attentions:
        yield from _attention_gaps(attention)
        yield "norms of queries and keys in models of layer norms", attention.qk_norm != "none" and shift
    yield "squared ReLU", block.activation == "relu2"
    yield "feed-forward blocks of more than one hidden layer", block.depth != 1
    yield "feed-forward blocks of another output width", block.out_width is not None
    if isinstance(block, Moe):
        yield from _mixture_gaps(block)
    for attention in layer.attentions:
        kinds = (attention.bias_qkv, attention.bias_out, block.bias)
        some = kinds not in ((False, False, False), (True, False, False), (True, True, True))
        yield "biases of some products, other than of all or of queries, keys and values", some


def _attention_gaps(attention: Attention) -> Iterable[tuple[str, bool]]:
    yield "attention to later tokens", not attention.causal
    yield "cross attention", attention.cross
    yield "windows and chunks of attention", bool(attention.window or attention.chunk)
    yield "values of another width than keys", attention.value_head_dim not in (None, attention.head_dim)
    yield "attention sinks", attention.sinks
    yield "latent attention", attention.latent is not None
    yield "relative position biases", attention.relative_buckets > 0


def _mixture_gaps(block: Moe) -> Iterable[tuple[str, bool]]:
    yield f"{block.router} routers", block.router not in ROUTERS
    yield "switch_top1 routers with more than one expert a token", block.router == "switch_top1" and block.top_k != 1
    yield "experts of another width than the model's", block.latent_width is not None
    yield "expert biases", block.bias
    yield "router biases", block.router_bias
    yield "corrections of softmax scores", block.score_correction and block.router != "sigmoid_topk"


def _unlike(architecture: Architecture) -> Iterable[tuple[str, bool]]:
    layers = architecture.decoder
    yield "layers of more than one kind of attention", len({layer.attentions for layer in layers}) > 1
    yield "layers of more than one kind of norm", len({(layer.norm, layer.norm_bias) for layer in layers}) > 1
    kinds = {(block.activation, block.gated, block.bias) for block in _blocks(architecture)}
    yield "feed-forward blocks of more than one activation", len(kinds) > 1
    for kind, name in ((Mlp, "dense blocks"), (Moe, "experts")):
        alike = {block for block in _blocks(architecture) if isinstance(block, kind)}
        yield f"{name} of more than one shape", len(alike) > 1
