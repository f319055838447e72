"""Decoders with learned positions: OPT, GPT-2 and 3, GPT-BigCode."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from moemodel.model.architecture.family import Family
from moemodel.model.architecture.fields import ActivationName, Count, Flag, Layers, require_divides
from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp


class Opt(Family):
    """OPT: learned positions with two spare rows, norms before or after, a narrower embedding in OPT-350M."""

    vocab_size: Count
    hidden_size: Count
    num_hidden_layers: Layers
    num_attention_heads: Count
    ffn_dim: Count
    max_position_embeddings: Count
    word_embed_proj_dim: Count | None = None  # as wide as the model
    activation_function: ActivationName = "relu"
    do_layer_norm_before: Flag = True
    remove_final_layer_norm: Flag = Field(default=False, alias="_remove_final_layer_norm")
    layer_norm_elementwise_affine: Literal[True] = True
    enable_bias: Flag = True
    tie_word_embeddings: Flag = True

    @model_validator(mode="after")
    def _shape_fits(self) -> Opt:
        require_divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        return self

    def architecture(self, name: str, source: str) -> Architecture:
        """OPT as in Zhang et al. 2022 (arXiv:2205.01068)."""
        heads, bias = self.num_attention_heads, self.enable_bias
        layer = Layer(
            attentions=(_plain_attention(heads, self.hidden_size, bias=bias),),
            feed_forward=Mlp(width=self.ffn_dim, activation=self.activation_function, gated=False, bias=bias),
            norm="layer",
            norm_bias=True,
            post_norm=not self.do_layer_norm_before,
        )
        return Architecture(
            name=name,
            hidden=self.hidden_size,
            vocab=self.vocab_size,
            embedding_width=self.word_embed_proj_dim or self.hidden_size,
            tied=self.tie_word_embeddings,
            decoder=(layer,) * self.num_hidden_layers,
            learned_positions=self.max_position_embeddings + 2,  # `OPTLearnedPositionalEmbedding.offset`
            final_norm=self.do_layer_norm_before and not self.remove_final_layer_norm,
            max_seq=self.max_position_embeddings,
            source=source,
        )


class Gpt2(Family):
    """GPT-2, and GPT-3, which has its shape."""

    vocab_size: Count
    n_embd: Count
    n_layer: Layers
    n_head: Count
    n_positions: Count
    n_inner: Count | None = None  # four times n_embd
    activation_function: ActivationName = "gelu"
    tie_word_embeddings: Flag = True

    @property
    def kv_heads(self) -> int:
        """As many as heads."""
        return self.n_head

    @model_validator(mode="after")
    def _shape_fits(self) -> Gpt2:
        require_divides("n_head", self.n_head, "n_embd", self.n_embd)
        return self

    def architecture(self, name: str, source: str) -> Architecture:
        """GPT-2 as `transformers` builds it."""
        width = self.n_inner or 4 * self.n_embd
        attention = replace(_plain_attention(self.n_head, self.n_embd, bias=True), kv_heads=self.kv_heads)
        layer = Layer(
            attentions=(attention,),
            feed_forward=Mlp(width=width, activation=self.activation_function, gated=False, bias=True),
            norm="layer",
            norm_bias=True,
        )
        return Architecture(
            name=name,
            hidden=self.n_embd,
            vocab=self.vocab_size,
            embedding_width=self.n_embd,
            tied=self.tie_word_embeddings,
            decoder=(layer,) * self.n_layer,
            learned_positions=self.n_positions,
            max_seq=self.n_positions,
            source=source,
        )


class GptBigCode(Gpt2):
    """GPT-BigCode (SantaCoder, StarCoder 1): GPT-2 with one head of keys and values."""

    ignored: ClassVar[frozenset[str]] = frozenset({"num_key_value_heads"})  # what multi_query says again
    multi_query: Flag = True

    @property
    def kv_heads(self) -> int:
        """One, or as many as heads."""
        return 1 if self.multi_query else self.n_head


def _plain_attention(heads: int, hidden: int, *, bias: bool) -> Attention:
    return Attention(heads=heads, kv_heads=heads, head_dim=hidden // heads, bias_qkv=bias, bias_out=bias, rotary=False)
