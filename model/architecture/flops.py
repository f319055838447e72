"""Model FLOPs of training: what the mathematics needs, whatever an implementation adds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moemodel.model.architecture.parameters import layer_parameters
from moemodel.model.architecture.spec import Architecture, Attention, Layer, Moe
from moemodel.model.core.arrays import FloatArray


def model_flops(architecture: Architecture, seq: NDArray[np.int64]) -> FloatArray:
    """FLOPs of forward and backward for one sequence.

    6 FLOPs for each parameter of a product and token (Kaplan et al. 2020, section 2.1) over the experts that a token
    passes, and 3 x 2 x 2 x heads x head_dim x pairs for attention, where causal attention looks at half of the pairs
    (FlashAttention-2, section 4.1). The head counts, the embedding lookup doesn't; nor does recomputation.
    """
    products = sum(_products(layer, architecture.hidden) for layer in architecture.layers)
    if architecture.has_head:
        products += architecture.vocab * architecture.embedding_width
    per_pair = sum(_per_pair(attention) for layer in architecture.layers for attention in layer.attentions)
    tokens = seq.astype(np.float64)
    return np.asarray(6.0 * products * tokens + 3.0 * per_pair * tokens**2)


def _products(layer: Layer, hidden: int) -> int:
    p = layer_parameters(layer, hidden)
    router = layer.feed_forward.experts * hidden if isinstance(layer.feed_forward, Moe) else 0
    return p.attention + p.latent + p.feed_forward + router + p.shared_experts + p.expert * p.top_k


def _per_pair(attention: Attention) -> float:
    """FLOPs for each pair of a query and a key, forward."""
    latent = attention.latent
    wide = (
        2 * attention.head_dim if latent is None else attention.head_dim + latent.rope_head_dim + latent.value_head_dim
    )
    return 2.0 * attention.heads * wide * (0.5 if attention.causal and not attention.cross else 1.0)
