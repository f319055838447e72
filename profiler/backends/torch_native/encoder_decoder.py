"""An encoder and a decoder as one PyTorch module: T5 and Switch Transformers.

The decoder is asked for its targets, and sees those before (Raffel et al. 2020, section 2.1): its input is the target
behind one start token, 0. A head that shares the embedding sees its input divided by the root of the model's width, as
T5's does. No pipeline cuts such a model.

Shapes: as in `model`; M tokens of a target, U buckets of distances.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from moemodel.model.architecture.spec import Architecture, Layer
from moemodel.profiler.backends.torch_native.attention import Positions
from moemodel.profiler.backends.torch_native.blocks import Norm
from moemodel.profiler.backends.torch_native.decoder import DecoderModel
from moemodel.profiler.backends.torch_native.layer import Making, ModelLayer
from moemodel.profiler.backends.torch_native.relative_bias import buckets, position_bias

_START = 0  # T5's `decoder_start_token_id`


class EncoderDecoderModel(DecoderModel):
    """Input ids [B, S] and target ids [B, M] in, mean loss out. Build it with `model.build_model`.

    Args:
        architecture: with an encoder.
        making: how its layers are made.
    """

    def __init__(self, architecture: Architecture, making: Making) -> None:
        super().__init__(architecture, making)
        top = architecture.encoder[-1]
        assert top.norm is not None
        hidden = architecture.hidden
        self.encoder_layers = nn.ModuleList(ModelLayer(layer, hidden, making) for layer in architecture.encoder)
        self.encoder_norm = Norm(hidden, kind=top.norm, bias=top.norm_bias) if architecture.final_norm else None
        self.encoder_bias_UH = nn.Parameter(_table(architecture.encoder, making))
        self.decoder_bias_UH = nn.Parameter(_table(architecture.decoder, making))
        self._head_scale = hidden**-0.5 if architecture.tied else 1.0

    def forward(self, tokens_BS: Tensor, targets_BM: Tensor) -> Tensor:
        """Mean loss of all targets."""
        memory_TD = self.encode(tokens_BS)
        batch, length = targets_BM.shape
        bias = _bias(self.decoder_bias_UH, length, causal=True)
        positions = Positions(batch, length, {}, bias, memory_TD)
        x_TD = self.embed(functional.pad(targets_BM[:, :-1], (1, 0), value=_START))
        for layer in self.layers:
            x_TD = layer(x_TD, positions)
        return self.loss(x_TD, targets_BM)

    def encode(self, tokens_BS: Tensor) -> Tensor:
        """The encoder's output, normalised [T, D]."""
        batch, seq = tokens_BS.shape
        positions = Positions(batch, seq, {}, _bias(self.encoder_bias_UH, seq, causal=False))
        x_TD = self.embed(tokens_BS)
        for layer in self.encoder_layers:
            x_TD = layer(x_TD, positions)
        return x_TD if self.encoder_norm is None else self.encoder_norm(x_TD)

    def numbered_layers(self) -> list[tuple[int, str, ModelLayer]]:
        """See `DecoderModel`; the encoder's first."""
        found = [layer for layer in self.encoder_layers if isinstance(layer, ModelLayer)]
        return [(i, f"encoder_layers.{i}", layer) for i, layer in enumerate(found)] + super().numbered_layers()


def _table(stack: tuple[Layer, ...], making: Making) -> Tensor:
    """Biases of a stack, of the heads that are here."""
    attention = making.sharding.layer(stack[0]).attentions[0]
    return torch.empty(attention.relative_buckets, attention.heads)


def _bias(table_UH: Tensor, length: int, *, causal: bool) -> Tensor:
    bucket_SS = buckets(length, length, table_UH.shape[0], causal=causal, device=table_UH.device)
    return position_bias(table_UH, bucket_SS, causal=causal)
