"""Families of Hugging Face configurations: the keys each one needs, and the architecture they describe.

Sizes that fix the shape (vocabulary, widths, layers, heads, experts) have to be there, though `transformers` has
defaults for most of them: a file without them is more likely broken than meant. Other keys default as in `transformers`
5.23; each default stands below beside its key.

Not in an `Architecture`, hence not read: sliding windows (attention is counted as full), rotary bases, whether norms
come before or after a block, and DeepSeek-V3's multi-token-prediction module.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from moemodel.model.architecture.spec import Activation, Architecture, Attention, Latent, Layer, Mlp, Moe

_LARGEST_COUNT = 2**31 - 1  # sizes beyond 32 bits are typing errors
_MOST_LAYERS = 10_000  # far above any published model; a typing error here would fill the memory
# Capacity factor of Switch Transformers in pre-training: Fedus et al. 2022 (arXiv:2101.03961), section 2.2, who find
# low ones best. A Hugging Face file states `expert_capacity` instead: slots per expert and sequence, for inference.
_SWITCH_CAPACITY_FACTOR = 1.25

_ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "quick_gelu": "gelu",
}


def _activation(name: object) -> object:
    return _ACTIVATIONS.get(name, name) if isinstance(name, str) else name


Count = Annotated[int, Field(strict=True, gt=0, le=_LARGEST_COUNT)]
CountOrZero = Annotated[int, Field(strict=True, ge=0, le=_LARGEST_COUNT)]
Flag = Annotated[bool, Field(strict=True)]
Layers = Annotated[int, Field(strict=True, gt=0, le=_MOST_LAYERS)]
ActivationName = Annotated[Activation, BeforeValidator(_activation)]
# `transformers` writes either name.
Experts = Annotated[
    int,
    Field(strict=True, gt=0, le=_LARGEST_COUNT, validation_alias=AliasChoices("num_experts", "num_local_experts")),
]


def _reject(key: str, found: int, allowed: str) -> None:
    raise ValueError(f"{key}: found {found}; allowed: {allowed}")


def _require_divides(key: str, divisor: int, of_key: str, of: int) -> None:
    if of % divisor:
        _reject(key, divisor, f"a divisor of {of_key} ({of})")


def _require_at_most(key: str, value: int, limit_key: str, limit: int) -> None:
    if value > limit:
        _reject(key, value, f"at most {limit_key} ({limit})")


class Family(BaseModel):
    """What every configuration has. Keys that a family doesn't name are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    @abstractmethod
    def architecture(self, name: str, source: str) -> Architecture:
        """The architecture that the configuration describes."""


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
        _require_divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        return self

    def architecture(self, name: str, source: str) -> Architecture:
        """OPT as in Zhang et al. 2022 (arXiv:2205.01068)."""
        heads, bias = self.num_attention_heads, self.enable_bias
        layer = Layer(
            attentions=(_plain_attention(heads, self.hidden_size, bias=bias),),
            feed_forward=Mlp(width=self.ffn_dim, activation=self.activation_function, gated=False, bias=bias),
            norm="layer",
            norm_bias=True,
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

    @model_validator(mode="after")
    def _shape_fits(self) -> Gpt2:
        _require_divides("n_head", self.n_head, "n_embd", self.n_embd)
        return self

    def architecture(self, name: str, source: str) -> Architecture:
        """GPT-2 as `transformers` builds it."""
        width = self.n_inner or 4 * self.n_embd
        layer = Layer(
            attentions=(_plain_attention(self.n_head, self.n_embd, bias=True),),
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


def _plain_attention(heads: int, hidden: int, *, bias: bool) -> Attention:
    return Attention(heads=heads, kv_heads=heads, head_dim=hidden // heads, bias_qkv=bias, bias_out=bias, rotary=False)


class Decoder(Family):
    """The common ground of the decoders with rotary positions, RMS norms and gated feed-forward blocks."""

    vocab_size: Count
    hidden_size: Count
    num_hidden_layers: Layers
    num_attention_heads: Count
    hidden_act: ActivationName = "silu"
    max_position_embeddings: Count | None = None
    tie_word_embeddings: Flag = False
    attention_bias: Flag = False

    @abstractmethod
    def attention(self) -> Attention:
        """The attention of every layer."""

    @abstractmethod
    def feed_forward(self, index: int) -> Mlp | Moe:
        """The feed-forward block of a layer, counted from 0."""

    def dense(self, width: int, *, bias: bool = False) -> Mlp:
        """A dense block of this family."""
        return Mlp(width=width, activation=self.hidden_act, gated=True, bias=bias)

    def architecture(self, name: str, source: str) -> Architecture:
        """A stack of layers that differ in their feed-forward block only."""
        attentions = (self.attention(),)
        decoder = tuple(
            Layer(attentions=attentions, feed_forward=self.feed_forward(index), norm="rms")
            for index in range(self.num_hidden_layers)
        )
        return Architecture(
            name=name,
            hidden=self.hidden_size,
            vocab=self.vocab_size,
            embedding_width=self.hidden_size,
            tied=self.tie_word_embeddings,
            decoder=decoder,
            max_seq=self.max_position_embeddings,
            source=source,
        )


class GroupedDecoder(Decoder):
    """A decoder whose heads share keys and values in groups."""

    num_key_value_heads: Count | None
    head_dim: Count | None = None  # hidden_size over num_attention_heads

    @model_validator(mode="after")
    def _heads_fit(self) -> GroupedDecoder:
        heads = self.num_attention_heads
        if self.head_dim is None:
            _require_divides("num_attention_heads", heads, "hidden_size", self.hidden_size)
        _require_divides("num_key_value_heads", self.num_key_value_heads or heads, "num_attention_heads", heads)
        return self

    @property
    def qk_norm(self) -> Literal["none", "per_head", "full"]:
        """Norm of queries and keys."""
        return "none"

    @property
    def bias_qkv(self) -> bool:
        """Biases of queries, keys and values."""
        return self.attention_bias

    def attention(self) -> Attention:
        """Grouped-query attention."""
        return Attention(
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads or self.num_attention_heads,
            head_dim=self.head_dim or self.hidden_size // self.num_attention_heads,
            bias_qkv=self.bias_qkv,
            bias_out=self.attention_bias,
            qk_norm=self.qk_norm,
        )


class Mistral(GroupedDecoder):
    """Mistral 7B and its like."""

    intermediate_size: Count

    def feed_forward(self, index: int) -> Mlp | Moe:  # noqa: ARG002
        """The same dense block in every layer."""
        return self.dense(self.intermediate_size)


class Llama(Mistral):
    """Llama 1 to 3."""

    num_key_value_heads: Count | None = None  # as many as heads
    mlp_bias: Flag = False

    def feed_forward(self, index: int) -> Mlp | Moe:  # noqa: ARG002
        """The same dense block in every layer."""
        return self.dense(self.intermediate_size, bias=self.mlp_bias)


class Olmo2(Mistral):
    """OLMo 2: norms over all heads of queries and keys together."""

    num_key_value_heads: Count | None = None  # as many as heads

    @property
    def qk_norm(self) -> Literal["none", "per_head", "full"]:
        """Over all heads together."""
        return "full"


class Qwen2(Mistral):
    """Qwen 2: biases of queries, keys and values, none of the output."""

    @property
    def bias_qkv(self) -> bool:
        """Always."""
        return True


class Qwen3(Mistral):
    """Qwen 3: norms of each head of queries and keys."""

    head_dim: Count | None = 128

    @property
    def qk_norm(self) -> Literal["none", "per_head", "full"]:
        """Of each head."""
        return "per_head"


class SparseDecoder(GroupedDecoder):
    """A decoder with routed experts."""

    num_experts: Experts
    num_experts_per_tok: Count

    @model_validator(mode="after")
    def _experts_fit(self) -> SparseDecoder:
        _require_at_most("num_experts_per_tok", self.num_experts_per_tok, "num_experts", self.num_experts)
        return self

    def sparse(self, width: int, *, shared_width: int = 0) -> Moe:
        """A block of experts of this family: softmax over the scores, dropless."""
        return Moe(
            experts=self.num_experts,
            top_k=self.num_experts_per_tok,
            width=width,
            activation=self.hidden_act,
            gated=True,
            shared_width=shared_width,
            shared_gate=shared_width > 0,
        )


class Mixtral(SparseDecoder):
    """Mixtral: experts in every layer."""

    intermediate_size: Count

    def feed_forward(self, index: int) -> Mlp | Moe:  # noqa: ARG002
        """The same experts in every layer."""
        return self.sparse(self.intermediate_size)


class Olmoe(Mixtral):
    """OLMoE: experts in every layer, norms over all heads of queries and keys together."""

    num_key_value_heads: Count | None = None  # as many as heads

    @property
    def qk_norm(self) -> Literal["none", "per_head", "full"]:
        """Over all heads together."""
        return "full"


class Qwen3Moe(SparseDecoder):
    """Qwen 3 with experts in every `decoder_sparse_step`-th layer but `mlp_only_layers`."""

    intermediate_size: Count
    moe_intermediate_size: Count
    decoder_sparse_step: Count = 1
    mlp_only_layers: tuple[CountOrZero, ...] | None = None  # none

    @property
    def qk_norm(self) -> Literal["none", "per_head", "full"]:
        """Of each head."""
        return "per_head"

    @property
    def shared_width(self) -> int:
        """Width of the shared experts together."""
        return 0

    def feed_forward(self, index: int) -> Mlp | Moe:
        """Experts or a dense block, as `Qwen3MoeDecoderLayer` chooses."""
        dense_only = index in (self.mlp_only_layers or ())
        if dense_only or (index + 1) % self.decoder_sparse_step:
            return self.dense(self.intermediate_size)
        return self.sparse(self.moe_intermediate_size, shared_width=self.shared_width)


class Qwen2Moe(Qwen3Moe):
    """Qwen 2 with experts and a gated shared expert."""

    shared_expert_intermediate_size: Count
    qkv_bias: Flag = True
    attention_bias: Literal[False] = False

    @property
    def qk_norm(self) -> Literal["none", "per_head", "full"]:
        """None."""
        return "none"

    @property
    def bias_qkv(self) -> bool:
        """Its own key, for queries, keys and values only."""
        return self.qkv_bias

    @property
    def shared_width(self) -> int:
        """One shared expert."""
        return self.shared_expert_intermediate_size


class DeepseekV3(Decoder):
    """DeepSeek-V3: latent attention, a few dense layers first, then experts chosen by corrected sigmoid scores."""

    intermediate_size: Count
    moe_intermediate_size: Count
    n_routed_experts: Count
    num_experts_per_tok: Count
    first_k_dense_replace: CountOrZero
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count
    q_lora_rank: Count | None = 1536  # null: queries have no latent
    n_shared_experts: CountOrZero | None = 1
    moe_layer_freq: Literal[1] = 1

    @model_validator(mode="after")
    def _shape_fits(self) -> DeepseekV3:
        _require_at_most("num_experts_per_tok", self.num_experts_per_tok, "n_routed_experts", self.n_routed_experts)
        _require_at_most(
            "first_k_dense_replace", self.first_k_dense_replace, "num_hidden_layers", self.num_hidden_layers
        )
        return self

    def attention(self) -> Attention:
        """Multi-head latent attention (arXiv:2412.19437, section 2.1.1)."""
        return Attention(
            heads=self.num_attention_heads,
            kv_heads=self.num_attention_heads,
            head_dim=self.qk_nope_head_dim,
            bias_qkv=self.attention_bias,
            bias_out=self.attention_bias,
            latent=Latent(
                q_rank=self.q_lora_rank,
                kv_rank=self.kv_lora_rank,
                rope_head_dim=self.qk_rope_head_dim,
                value_head_dim=self.v_head_dim,
            ),
        )

    def feed_forward(self, index: int) -> Mlp | Moe:
        """Dense first, then experts (arXiv:2412.19437, section 2.1.2)."""
        if index < self.first_k_dense_replace:
            return self.dense(self.intermediate_size)
        return Moe(
            experts=self.n_routed_experts,
            top_k=self.num_experts_per_tok,
            width=self.moe_intermediate_size,
            activation=self.hidden_act,
            gated=True,
            shared_width=(self.n_shared_experts or 0) * self.moe_intermediate_size,
            router="sigmoid_topk",
            router_bias=True,
        )


class T5(Family):
    """T5: an encoder and a decoder with relative position biases and RMS norms, no biases elsewhere."""

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
        return Mlp(width=self.d_ff, activation=_ACTIVATIONS[activation], gated=bool(gated))

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


class SwitchTransformers(T5):
    """Switch Transformers: T5 with one of many experts per token in some layers of each stack."""

    num_experts: Count
    num_sparse_encoder_layers: CountOrZero
    num_sparse_decoder_layers: CountOrZero
    dense_act_fn: ActivationName = "relu"
    router_bias: Flag = False
    feed_forward_proj: Literal["relu"] = "relu"

    @model_validator(mode="after")
    def _sparse_layers_fit(self) -> SwitchTransformers:
        depth = self.num_decoder_layers or self.num_layers
        _require_at_most("num_sparse_encoder_layers", self.num_sparse_encoder_layers, "num_layers", self.num_layers)
        _require_at_most("num_sparse_decoder_layers", self.num_sparse_decoder_layers, "num_decoder_layers", depth)
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


class MoemodelMlp(Family):
    """Our own: a stack of dense or Mixture-of-Experts MLPs on feature vectors, without attention, norms or residuals.

    Of the crossover study: when does an MoE beat a dense model of the same size in inferences per joule? Unknown keys
    are errors here, unlike in another program's file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_type: Literal["moemodel_mlp"]
    hidden_size: Count  # features in, and out of every block but the last
    intermediate_size: Count  # width of a block's hidden layers, or of an expert's
    output_size: Count | None = None  # features out of the last block; null: hidden_size
    num_hidden_layers: Layers = 1  # blocks
    hidden_layers_per_block: Layers = 1
    hidden_act: ActivationName = "relu"
    gated: Flag = False
    bias: Flag = True
    num_experts: CountOrZero = 0  # 0: dense
    num_experts_per_tok: CountOrZero = 0
    router_bias: Flag = True

    @model_validator(mode="after")
    def _shape_fits(self) -> MoemodelMlp:
        _require_at_most("num_experts_per_tok", self.num_experts_per_tok, "num_experts", self.num_experts)
        if self.num_experts and not self.num_experts_per_tok:
            _reject("num_experts_per_tok", 0, f"1 to num_experts ({self.num_experts})")
        if self.gated and self.hidden_layers_per_block > 1:
            _reject("hidden_layers_per_block", self.hidden_layers_per_block, "1 where gated is true")
        return self

    def architecture(self, name: str, source: str) -> Architecture:
        """A stack without embedding and head: its input is a feature vector for each sample."""
        last = self.num_hidden_layers - 1
        decoder = tuple(
            Layer(attentions=(), feed_forward=self._block(self.output_size if index == last else None), norm=None)
            for index in range(self.num_hidden_layers)
        )
        return Architecture(
            name=name,
            hidden=self.hidden_size,
            vocab=0,
            embedding_width=self.hidden_size,
            tied=False,
            decoder=decoder,
            has_head=False,
            final_norm=False,
            source=source,
        )

    def _block(self, out_width: int | None) -> Mlp | Moe:
        if self.num_experts == 0:
            return Mlp(
                width=self.intermediate_size,
                activation=self.hidden_act,
                gated=self.gated,
                bias=self.bias,
                depth=self.hidden_layers_per_block,
                out_width=out_width,
            )
        return Moe(
            experts=self.num_experts,
            top_k=self.num_experts_per_tok,
            width=self.intermediate_size,
            activation=self.hidden_act,
            gated=self.gated,
            bias=self.bias,
            router_bias=self.router_bias,
            depth=self.hidden_layers_per_block,
            out_width=out_width,
        )


FAMILIES: dict[str, type[Family]] = {
    "deepseek_v3": DeepseekV3,
    "gpt2": Gpt2,
    "llama": Llama,
    "mistral": Mistral,
    "mixtral": Mixtral,
    "moemodel_mlp": MoemodelMlp,
    "olmo2": Olmo2,
    "olmoe": Olmoe,
    "opt": Opt,
    "qwen2": Qwen2,
    "qwen2_moe": Qwen2Moe,
    "qwen3": Qwen3,
    "qwen3_moe": Qwen3Moe,
    "switch_transformers": SwitchTransformers,
    "t5": T5,
}
