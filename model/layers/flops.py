"""Model FLOPs of training: what the mathematics needs, whatever an implementation adds."""

from __future__ import annotations

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.layers.layer import layer_blocks
from moemodel.model.schedule.pipeline_layout import distinct_layers


def model_flops(
    architecture: Architecture, seq: IntArray, *, decoder_seq: IntArray | None = None, adapters: float | None = None
) -> FloatArray:
    """FLOPs of forward and backward for one sequence, of `seq` tokens, or of a decoder behind an encoder `decoder_seq`.

    6 FLOPs for each parameter of a product and token (Kaplan et al. 2020, section 2.1) over the experts that a token
    passes, and 3 x 2 x heads x (width of a query + width of a value) x pairs for attention, where causal attention
    looks at half of the pairs (FlashAttention-2, section 4.1), or at those of its windows. The head counts, the
    embedding lookup doesn't; nor does recomputation. Where weights are frozen they have no gradients: 4 FLOPs for each,
    and 6 for each of so many parameters of `adapters`.
    """
    read = seq.astype(np.float64)
    written = read if decoder_seq is None else decoder_seq.astype(np.float64)
    products: FloatArray = architecture.head_outputs * architecture.embedding_width * written
    cores = np.zeros_like(read)
    for layer in distinct_layers(architecture):
        blocks, count = layer_blocks(layer, architecture.hidden), architecture.layers.count(layer)
        own = written if blocks.crosses else read
        for block in blocks.blocks:
            of_read = block.read_parameters()
            products = products + count * ((block.matmul_parameters() - of_read) * own + of_read * read)
            cores = cores + count * block.core_flops(own) * (read / own if of_read else 1.0)
    if adapters is not None:
        return np.asarray(4.0 * products + 6.0 * adapters * read + 3.0 * cores)
    return np.asarray(6.0 * products + 3.0 * cores)
