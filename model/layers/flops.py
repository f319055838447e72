"""Model FLOPs of training: what the mathematics needs, whatever an implementation adds."""

from __future__ import annotations

from collections import Counter

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.layers.base import Block
from moemodel.model.layers.layer import layer_blocks
from moemodel.model.schedule.pipeline_layout import distinct_layers


def model_flops(architecture: Architecture, seq: IntArray, *, adapters: float | None = None) -> FloatArray:
    """FLOPs of forward and backward for one sequence.

    6 FLOPs for each parameter of a product and token (Kaplan et al. 2020, section 2.1) over the experts that a token
    passes, and 3 x 2 x heads x (width of a query + width of a value) x pairs for attention, where causal attention
    looks at half of the pairs (FlashAttention-2, section 4.1), or at those of its windows. The head counts, the
    embedding lookup doesn't; nor does recomputation. Where weights are frozen they have no gradients: 4 FLOPs for each,
    and 6 for each of so many parameters of `adapters`.
    """
    blocks = Counter[Block]()
    for layer in distinct_layers(architecture):
        blocks.update(layer_blocks(layer, architecture.hidden).blocks * architecture.layers.count(layer))
    products = sum(count * block.matmul_parameters() for block, count in blocks.items())
    products += architecture.head_outputs * architecture.embedding_width
    tokens = seq.astype(np.float64)
    cores = sum(count * block.core_flops(tokens) for block, count in blocks.items())
    if adapters is not None:
        return np.asarray((4.0 * products + 6.0 * adapters) * tokens + 3.0 * cores)
    return np.asarray(6.0 * products * tokens + 3.0 * cores)
