"""Which architectures the torch backend runs; no torch here, so that plans can be refused before any is loaded."""

from __future__ import annotations

from collections.abc import Iterator

from moemodel.model.architecture.spec import Architecture, Layer, Moe
from moemodel.model.core.errors import InputError
from moemodel.model.plan.routing import RoutingSpec


def check_supported(architecture: Architecture) -> None:
    """Refuse what this backend does not run.

    Raises:
        InputError: every such part of the architecture.
    """
    missing = _model_gaps(architecture)
    for layer in dict.fromkeys(architecture.layers):
        missing += _layer_gaps(layer)
    if missing:
        raise InputError(
            f"{architecture.name}: the torch backend does not run {', '.join(dict.fromkeys(missing))}; it runs "
            "decoders, and encoder-decoders as T5 is one, with plain or grouped-query attention. "
            "`moemodel predict` takes all architectures"
        )


def check_routing(architecture: Architecture, routing: RoutingSpec) -> None:
    """Refuse routers that contradict themselves.

    Args:
        architecture: with the routers of the plan.
        routing: what the plan asks of them.

    Raises:
        InputError: each mistake, and what is allowed.
    """
    blocks = dict.fromkeys(layer.feed_forward for layer in architecture.layers if isinstance(layer.feed_forward, Moe))
    mistakes = [text for block in blocks for text in _mistakes(block, routing)]
    if mistakes:
        raise InputError(f"{architecture.name}: " + "; ".join(dict.fromkeys(mistakes)))


def _mistakes(block: Moe, routing: RoutingSpec) -> Iterator[str]:
    only = {"switch_top1": 1, "gshard_top2": 2}.get(block.router)
    if only is not None and block.top_k != only:
        yield f"routing.top_k: found {block.top_k} with router {block.router}; allowed: {only}"
    if block.router == "noisy_topk" and routing.normalize is False:
        yield "routing.normalize: found false with router noisy_topk, which adds up to one; allowed: null, true"
    if block.router == "expert_choice":
        for key in ("balance_loss", "bias_rate"):
            if found := getattr(routing, key):
                yield f"routing.{key}: found {found:g} with router expert_choice, balanced as it is; allowed: 0"
        if routing.normalize:
            yield "routing.normalize: found true with router expert_choice; allowed: null, false"
    elif routing.pad and block.capacity_factor is None:
        yield "routing.pad: found true without a capacity; allowed: null, false, or a routing.capacity_factor"


def _model_gaps(architecture: Architecture) -> list[str]:
    alone = () if architecture.encoder else architecture.decoder
    gaps = {
        "cross attention without an encoder": any(a.cross for layer in alone for a in layer.attentions),
        "relative position biases without an encoder": any(
            a.relative_buckets for layer in alone for a in layer.attentions
        ),
        "encoders with learned positions": bool(architecture.encoder) and architecture.learned_positions > 0,
        "encoders with rotary positions, or without relative position biases": bool(architecture.encoder)
        and not _has_relative_positions(architecture),
        "models without layers": not architecture.decoder,
        "models without a vocabulary head": not architecture.has_head or architecture.classes > 0,
        "biases of the head": architecture.head_bias,
        "norms behind the embedding": architecture.embedding_norm,
    }
    return [name for name, found in gaps.items() if found]


def _has_relative_positions(architecture: Architecture) -> bool:
    """Of both stacks, as T5's: biases of the first layer, and nothing else that tells positions apart."""
    return all(
        stack[0].attentions[0].relative_buckets > 0 for stack in (architecture.encoder, architecture.decoder)
    ) and not any(attention.rotary for layer in architecture.layers for attention in layer.attentions)


def _layer_gaps(layer: Layer) -> list[str]:
    block = layer.feed_forward
    if block is None or layer.state_space is not None:
        return ["state-space layers, and layers of one block"]
    gaps = {
        "layers without norms": layer.norm is None,
        "norms without a scale, or without a shift, of layers": not layer.norm_scale
        or (layer.norm == "layer" and not layer.norm_bias),
        "norms behind blocks": layer.second_norm,
        "blocks side by side": layer.parallel,
        "windows and chunks of attention": any(a.window or a.chunk for a in layer.attentions),
        "values of another width than keys": any(a.value_head_dim not in (None, a.head_dim) for a in layer.attentions),
        "attention sinks": any(a.sinks for a in layer.attentions),
        "squared ReLU": block.activation == "relu2",
        "latent attention": any(a.latent is not None for a in layer.attentions),
        "feed-forward blocks of more than one hidden layer": block.depth != 1,
        "feed-forward blocks of another output width": block.out_width is not None,
    }
    if isinstance(block, Moe):
        gaps |= {
            "experts of another width than the model's": block.latent_width is not None,
            "expert biases": block.bias,
            "router biases": block.router_bias,
        }
    return [name for name, found in gaps.items() if found]
