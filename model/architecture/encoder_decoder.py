"""Models with an encoder and a decoder: T5 and Switch Transformers."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from moemodel.model.architecture.family import Family
from moemodel.model.architecture.fields import (
    ACTIVATIONS,
    ActivationName,
    Count,
    CountOrZero,
    Flag,
    Layers,
    require_at_most,
)
from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp, Moe

# Capacity factor of Switch Transformers in pre-training: Fedus et al. 2022 (arXiv:2101.03961), section 2.2, who find
# low ones best. A Hugging Face file states `expert_capacity` instead: slots per expert and sequence, for inference.
_SWITCH_CAPACITY_FACTOR = 1.25


class T5(Family):
    """T5: an encoder and a decoder with relative position biases and RMS norms, no biases elsewhere."""

    ignored: ClassVar[frozenset[str]] = frozenset({"is_encoder_decoder", "is_gated_act", "dense_act_fn"})
    ends_in_vocabulary: ClassVar[bool] = True
    vocab_size: Count
    d_model: Count
    d_kv: Count
    d_ff: Count
    num_layers: Layers
    num_heads: Count
    num_decoder_layers: Layers | None = None  # as many as num_layers
    relative_attention_num_buckets: Count = 32
    feed_forward_proj: Literal["relu", "gated-gelu", "gated-silu"] = "relu"
    tie_word_embeddings: Flag = True

    def feed_forward(self, index: int, *, decoder: bool) -> Mlp | Moe:  # noqa: ARG002
        """The feed-forward block of a layer of either stack, counted from 0."""
        gated, _, activation = self.feed_forward_proj.rpartition("-")
        return Mlp(width=self.d_ff, activation=ACTIVATIONS[activation], gated=bool(gated))

    def architecture(self, name: str, source: str) -> Architecture:
        """T5 as in Raffel et al. 2020 (arXiv:1910.10683), its head tied unless the file says otherwise."""
        depth = self.num_decoder_layers or self.num_layers
        return Architecture(
            name=name,
            hidden=self.d_model,
            vocab=self.vocab_size,
            embedding_width=self.d_model,
            tied=self.tie_word_embeddings,
            encoder=tuple(self._layer(index, decoder=False) for index in range(self.num_layers)),
            decoder=tuple(self._layer(index, decoder=True) for index in range(depth)),
            source=source,
        )

    def _layer(self, index: int, *, decoder: bool) -> Layer:
        own = self._attention(causal=decoder, buckets=self.relative_attention_num_buckets if index == 0 else 0)
        cross = (self._attention(causal=False, cross=True),) if decoder else ()
        return Layer(attentions=(own, *cross), feed_forward=self.feed_forward(index, decoder=decoder), norm="rms")

    def _attention(self, *, causal: bool, cross: bool = False, buckets: int = 0) -> Attention:
        return Attention(
            heads=self.num_heads,
            kv_heads=self.num_heads,
            head_dim=self.d_kv,
            causal=causal,
            cross=cross,
            rotary=False,
            relative_buckets=buckets,
        )


class Mt5(T5):
    """mT5: T5 1.1 with a head of its own."""

    feed_forward_proj: Literal["relu", "gated-gelu", "gated-silu"] = "gated-gelu"
    tie_word_embeddings: Flag = False


class SwitchTransformers(T5):
    """Switch Transformers: T5 with one of many experts per token in some layers of each stack."""

    ignored: ClassVar[frozenset[str]] = frozenset(  # what the numbers of sparse layers say again
        {"is_encoder_decoder", "is_gated_act", "encoder_sparse_step", "decoder_sparse_step"}
    )
    num_experts: Count
    num_sparse_encoder_layers: CountOrZero
    num_sparse_decoder_layers: CountOrZero
    dense_act_fn: ActivationName = "relu"
    router_bias: Flag = False
    feed_forward_proj: Literal["relu"] = "relu"

    @model_validator(mode="after")
    def _sparse_layers_fit(self) -> SwitchTransformers:
        depth = self.num_decoder_layers or self.num_layers
        require_at_most("num_sparse_encoder_layers", self.num_sparse_encoder_layers, "num_layers", self.num_layers)
        require_at_most("num_sparse_decoder_layers", self.num_sparse_decoder_layers, "num_decoder_layers", depth)
        return self

    def feed_forward(self, index: int, *, decoder: bool) -> Mlp | Moe:
        """Experts or a dense block, as `SwitchTransformersStack` chooses."""
        if not self._is_sparse(index, decoder=decoder):
            return Mlp(width=self.d_ff, activation=self.dense_act_fn, gated=False)
        return Moe(
            experts=self.num_experts,
            top_k=1,
            width=self.d_ff,
            activation=self.dense_act_fn,
            gated=False,
            router="switch_top1",
            router_bias=self.router_bias,
            capacity_factor=_SWITCH_CAPACITY_FACTOR,
        )

    def _is_sparse(self, index: int, *, decoder: bool) -> bool:
        layers = (self.num_decoder_layers or self.num_layers) if decoder else self.num_layers
        sparse = self.num_sparse_decoder_layers if decoder else self.num_sparse_encoder_layers
        if sparse == 0:
            return False
        step = layers // sparse
        return step == 1 or index % step == 1
