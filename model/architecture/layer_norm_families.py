"""Decoders with a dense feed-forward block in every layer, and layer norms or blocks without a gate."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from moemodel.model.architecture.dense_families import DenseDecoder, Llama, Mistral
from moemodel.model.architecture.family import Decoder, GroupedDecoder, QkNorm
from moemodel.model.architecture.fields import ActivationName, Count, CountOrZero, Flag, Layers, require_divides
from moemodel.model.architecture.spec import Architecture, Attention, Mlp, Moe, Norm


class _LayerNormsWithoutGates:
    """What most of them have in common: layer norms with a shift, and blocks without a gate."""

    norm: ClassVar[Norm] = "layer"
    norm_bias: ClassVar[bool] = True
    mlp_gated: ClassVar[bool] = False


class Olmo(DenseDecoder):
    """OLMo 1: layer norms without parameters."""

    norm: ClassVar[Norm] = "layer"
    norm_scale: ClassVar[bool] = False


class Jais2(_LayerNormsWithoutGates, Llama):
    """Jais 2: layer norms, blocks without a gate, squared ReLU."""

    hidden_act: ActivationName = "relu2"
    attention_bias: Flag = True
    mlp_bias: Flag = True


class NanoChat(Llama):
    """nanochat: no norm has parameters, blocks have no gate, squared ReLU."""

    norm_scale: ClassVar[bool] = False
    mlp_gated: ClassVar[bool] = False
    hidden_act: ActivationName = "relu2"


class Cohere(DenseDecoder):
    """Command R: one layer norm without shift for both blocks, which run side by side."""

    norm: ClassVar[Norm] = "layer"
    tie_word_embeddings: Flag = True
    use_qk_norm: Flag | None = False

    @property
    def parallel(self) -> bool:
        """Always."""
        return True

    @property
    def qk_norm(self) -> QkNorm:
        """Of each head, with a scale for each."""
        return "full" if self.use_qk_norm else "none"


class Cohere2(Cohere):
    """Command R7B and Command A: windows in three of four layers."""

    sliding_window: CountOrZero | None = 4096
    sliding_window_pattern: Count = Field(
        default=4, validation_alias=AliasChoices("sliding_window_pattern", "_sliding_window_pattern")
    )
    use_qk_norm: Literal[False] | None = None

    def is_windowed(self, index: int) -> bool:
        """All but every so many-th."""
        return (index + 1) % self.sliding_window_pattern != 0


class Starcoder2(_LayerNormsWithoutGates, Mistral):
    """StarCoder2: layer norms, blocks without a gate, biases everywhere."""

    hidden_act: ActivationName = "gelu"
    sliding_window: CountOrZero | None = None
    attention_bias: Flag = Field(default=True, validation_alias="use_bias")
    tie_word_embeddings: Flag = True

    @property
    def mlp_biased(self) -> bool:
        """The same key as of attention."""
        return self.attention_bias


class Nemotron(_LayerNormsWithoutGates, Llama):
    """Nemotron-4 and Minitron: layer norms, blocks without a gate, squared ReLU."""

    hidden_act: ActivationName = "relu2"


class Arcee(Llama):
    """AFM-4.5B: blocks without a gate, squared ReLU."""

    mlp_gated: ClassVar[bool] = False
    hidden_act: ActivationName = "relu2"


class StableLm(DenseDecoder):
    """StableLM: layer norms; blocks side by side if asked for."""

    norm: ClassVar[Norm] = "layer"
    norm_bias: ClassVar[bool] = True
    attention_bias: Flag = Field(default=False, validation_alias="use_qkv_bias")
    qk_layernorm: Flag = False
    use_parallel_residual: Flag = False

    @property
    def bias_out(self) -> bool:
        """Never."""
        return False

    @property
    def parallel(self) -> bool:
        """Its own key."""
        return self.use_parallel_residual

    @property
    def qk_norm(self) -> QkNorm:
        """A scale for each head."""
        return "full" if self.qk_layernorm else "none"


class Phi(_LayerNormsWithoutGates, DenseDecoder):
    """Phi-1.5 and Phi-2: one layer norm for both blocks side by side, no gate, biases everywhere."""

    hidden_act: ActivationName = "gelu"
    attention_bias: Literal[True] = True
    qk_layernorm: Literal[False] = False

    @property
    def mlp_biased(self) -> bool:
        """Always."""
        return True

    @property
    def parallel(self) -> bool:
        """Always."""
        return True

    @property
    def head_bias(self) -> bool:
        """Always."""
        return True


class GptNeoX(_LayerNormsWithoutGates, DenseDecoder):
    """GPT-NeoX and Pythia: layer norms, no gate, biases; each block has a norm, side by side or not."""

    hidden_act: ActivationName = "gelu"
    attention_bias: Flag = True
    use_parallel_residual: Flag = True  # side by side, but with a norm each: the same work

    @property
    def mlp_biased(self) -> bool:
        """Always."""
        return True


class GptJ(_LayerNormsWithoutGates, Decoder):
    """GPT-J: one layer norm for both blocks side by side, no gate, biases of the feed-forward block and the head."""

    hidden_size: Count = Field(validation_alias=AliasChoices("n_embd", "hidden_size"))
    num_hidden_layers: Layers = Field(validation_alias=AliasChoices("n_layer", "num_hidden_layers"))
    num_attention_heads: Count = Field(validation_alias=AliasChoices("n_head", "num_attention_heads"))
    max_position_embeddings: Count | None = Field(
        default=None, validation_alias=AliasChoices("n_positions", "max_position_embeddings")
    )
    n_inner: Count | None = None  # four times n_embd
    hidden_act: ActivationName = Field(default="gelu", validation_alias="activation_function")

    @model_validator(mode="after")
    def _heads_fit(self) -> GptJ:
        require_divides("n_head", self.num_attention_heads, "n_embd", self.hidden_size)
        return self

    @property
    def parallel(self) -> bool:
        """Always."""
        return True

    @property
    def head_bias(self) -> bool:
        """Always."""
        return True

    def attention(self, index: int) -> Attention:  # noqa: ARG002
        """Multi-head attention without biases."""
        heads = self.num_attention_heads
        return Attention(heads=heads, kv_heads=heads, head_dim=self.hidden_size // heads, causal=self.causal)

    def feed_forward(self, index: int) -> Mlp | Moe:  # noqa: ARG002
        """The same dense block in every layer."""
        return self.dense(self.n_inner or 4 * self.hidden_size, bias=True)


class Falcon(_LayerNormsWithoutGates, GroupedDecoder):
    """Falcon: blocks side by side with one norm (7B) or two (40B), no gate, one head of keys and values or a few."""

    hidden_act: ActivationName = Field(default="gelu", validation_alias="activation")
    tie_word_embeddings: Flag = True
    num_key_value_heads: Count | None = Field(default=None, validation_alias="num_kv_heads")
    attention_bias: Flag = Field(default=False, validation_alias="bias")
    new_decoder_architecture: Flag = False
    multi_query: Flag = True
    parallel_attn: Flag = True
    num_ln_in_parallel_attn: Literal[1, 2] | None = None
    ffn_hidden_size: Count | None = None  # four times hidden_size
    alibi: Flag = False

    @property
    def parallel(self) -> bool:
        """Whether there is one norm in place of two."""
        if self.new_decoder_architecture:
            return self.num_ln_in_parallel_attn == 1
        return self.parallel_attn

    def attention(self, index: int) -> Attention:  # noqa: ARG002
        """Heads share keys and values: all (multi-query), or in groups in the new architecture."""
        grouped = self.num_key_value_heads or self.num_attention_heads
        alone = 1 if self.multi_query else self.num_attention_heads
        return Attention(
            heads=self.num_attention_heads,
            kv_heads=grouped if self.new_decoder_architecture else alone,
            head_dim=self.head_dim or self.hidden_size // self.num_attention_heads,
            causal=self.causal,
            bias_qkv=self.attention_bias,
            bias_out=self.attention_bias,
            rotary=not self.alibi,
        )

    def feed_forward(self, index: int) -> Mlp | Moe:  # noqa: ARG002
        """The same dense block in every layer."""
        return self.dense(self.ffn_hidden_size or 4 * self.hidden_size, bias=self.attention_bias)


class Bloom(_LayerNormsWithoutGates, Decoder):
    """BLOOM: slopes in place of positions, a norm behind the embedding, no gate, biases everywhere."""

    hidden_size: Count = Field(validation_alias=AliasChoices("hidden_size", "n_embed", "n_embd"))
    num_hidden_layers: Layers = Field(validation_alias=AliasChoices("n_layer", "num_hidden_layers"))
    num_attention_heads: Count = Field(validation_alias=AliasChoices("n_head", "num_attention_heads"))
    max_position_embeddings: Count | None = Field(default=None, validation_alias="seq_length")
    hidden_act: Literal["gelu"] = "gelu"
    tie_word_embeddings: Flag = True

    @model_validator(mode="after")
    def _heads_fit(self) -> Bloom:
        require_divides("n_head", self.num_attention_heads, "hidden_size", self.hidden_size)
        return self

    def attention(self, index: int) -> Attention:  # noqa: ARG002
        """Multi-head attention."""
        heads, width = self.num_attention_heads, self.hidden_size
        return Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=width // heads,
            causal=self.causal,
            bias_qkv=True,
            bias_out=True,
            rotary=False,
        )

    def feed_forward(self, index: int) -> Mlp | Moe:  # noqa: ARG002
        """Four times as wide as the model."""
        return self.dense(4 * self.hidden_size, bias=True)

    def architecture(self, name: str, source: str) -> Architecture:
        """With a norm behind the embedding."""
        return replace(super().architecture(name, source), embedding_norm=True)


class _MptAttention(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    attn_type: Literal["multihead_attention"] = "multihead_attention"
    qk_ln: Literal[False] = False
    prefix_lm: Literal[False] = False


class Mpt(Decoder):
    """MPT: layer norms without shift, slopes in place of positions, no gate, no biases."""

    ignored: ClassVar[frozenset[str]] = frozenset({"embedding_fraction", "learned_pos_emb"})  # as transformers does
    norm: ClassVar[Norm] = "layer"
    mlp_gated: ClassVar[bool] = False

    hidden_size: Count = Field(validation_alias="d_model")
    num_hidden_layers: Layers = Field(validation_alias="n_layers")
    num_attention_heads: Count = Field(validation_alias="n_heads")
    max_position_embeddings: Count | None = Field(default=None, validation_alias="max_seq_len")
    hidden_act: Literal["gelu"] = "gelu"
    expansion_ratio: Count = 4
    no_bias: Literal[True] = True
    tie_word_embeddings: Flag = True
    attn_config: _MptAttention = _MptAttention()

    @model_validator(mode="after")
    def _heads_fit(self) -> Mpt:
        require_divides("n_heads", self.num_attention_heads, "d_model", self.hidden_size)
        return self

    def attention(self, index: int) -> Attention:  # noqa: ARG002
        """Multi-head attention."""
        heads = self.num_attention_heads
        return Attention(
            heads=heads, kv_heads=heads, head_dim=self.hidden_size // heads, causal=self.causal, rotary=False
        )

    def feed_forward(self, index: int) -> Mlp | Moe:  # noqa: ARG002
        """The same dense block in every layer."""
        return self.dense(self.expansion_ratio * self.hidden_size)
