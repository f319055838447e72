"""Multi-token prediction: what modules that a configuration states would add to a model counted without them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.layers.flops import model_flops
from moemodel.model.layers.norms import norm_parameters
from moemodel.model.layers.parameters import layer_parameters

_INPUTS = 2  # hidden states of the layer before, and the next token's embedding, joined and projected
_NORMS = 3  # of either input, and before the head


def multi_token_parameters(architecture: Architecture) -> int:
    """Parameters of the modules' own: a layer each, a projection, norms (DeepSeek-V3, arXiv:2412.19437, section 2.2).

    Embedding and head are the model's.
    """
    hidden = architecture.hidden
    return sum(
        layer_parameters(layer, hidden).total + _INPUTS * hidden**2 + _NORMS * norm_parameters(layer, hidden)
        for layer in architecture.multi_token
    )


def multi_token_flops(architecture: Architecture, sequence_length: int) -> float:
    """Model FLOPs of the modules on one sequence, forward and backward, with the head that each passes again."""
    seq = np.array([sequence_length])
    alone = replace(architecture, encoder=(), decoder=architecture.multi_token)
    heads = len(architecture.multi_token) - 1  # one is counted with the layers
    products = heads * architecture.head_outputs * architecture.embedding_width
    products += len(architecture.multi_token) * _INPUTS * architecture.hidden**2
    return float(model_flops(alone, seq)[0]) + 6.0 * products * sequence_length


def multi_token_note(architecture: Architecture, sequence_length: int) -> str | None:
    """What leaving the modules out leaves out; None: there are none."""
    modules = len(architecture.multi_token)
    if not modules:
        return None
    share = multi_token_flops(architecture, sequence_length) / model_flops(architecture, np.array([sequence_length]))[0]
    word = "module" if modules == 1 else "modules"
    return (
        f"The configuration states {modules} multi-token-prediction {word}, left out here: "
        f"{multi_token_parameters(architecture) / 1e9:.2f} B parameters of their own; training with them adds "
        f"{share:.1%} model FLOPs at sequences of {sequence_length} (multi_token: true)."
    )
