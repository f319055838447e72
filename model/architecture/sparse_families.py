"""Decoders with routed experts and grouped attention."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from moemodel.model.architecture.family import (
    Decoder,
    DenseFirst,
    Experts,
    GroupedDecoder,
    QkNorm,
    RoutedExperts,
    SparseDecoder,
    experts_of,
)
from moemodel.model.architecture.fields import (
    ActivationName,
    Count,
    CountOrZero,
    Flag,
    Layers,
    reject,
    require_at_most,
    require_divides,
)
from moemodel.model.architecture.spec import Attention, Mlp, Moe, Norm, Router

_PerLayer = Count | tuple[Count, ...]


class Mixtral(SparseDecoder):
    """Mixtral: experts in every layer, a window in every layer if there is one."""

    intermediate_size: Count

    def feed_forward(self, index: int) -> Mlp | Moe:  # noqa: ARG002
        """The same experts in every layer."""
        return self.sparse(self.intermediate_size)

    def is_windowed(self, index: int) -> bool:  # noqa: ARG002
        """Every layer."""
        return True


class Olmoe(Mixtral):
    """OLMoE, FlexOlmo: experts in every layer, norms over all heads of queries and keys together, no windows."""

    num_key_value_heads: Count | None = None  # as many as heads

    @property
    def qk_norm(self) -> QkNorm:
        """Over all heads together."""
        return "full"

    def is_windowed(self, index: int) -> bool:  # noqa: ARG002
        """None."""
        return False


class MiniMaxM2(Mixtral):
    """MiniMax-M2: OLMoE's norms, experts chosen by corrected sigmoid scores."""

    ignored: ClassVar[frozenset[str]] = frozenset({"use_routing_bias", "mtp_transformer_layers"})
    router: ClassVar[Router] = "sigmoid_topk"
    score_correction: ClassVar[bool] = True
    use_qk_norm: Flag = True
    qk_norm_type: Literal["per_layer"] = "per_layer"  # a norm over all heads together
    shared_intermediate_size: Literal[0] = 0

    @property
    def qk_norm(self) -> QkNorm:
        """Over all heads together."""
        return "full" if self.use_qk_norm else "none"

    def is_windowed(self, index: int) -> bool:  # noqa: ARG002
        """None."""
        return False


class PhiMoe(Mixtral):
    """Phi-3.5-MoE: layer norms, biases of attention and head."""

    norm: ClassVar[Norm] = "layer"
    norm_bias: ClassVar[bool] = True
    lm_head_bias: Flag = False

    @property
    def head_bias(self) -> bool:
        """Its key."""
        return self.lm_head_bias


class GraniteMoe(Mixtral):
    """Granite 3 with experts, and a shared one where the file has it."""

    num_key_value_heads: Count | None = None  # as many as heads
    shared_intermediate_size: CountOrZero = 0

    def feed_forward(self, index: int) -> Mlp | Moe:  # noqa: ARG002
        """The same experts in every layer."""
        return self.sparse(self.intermediate_size, shared_width=self.shared_intermediate_size)

    def is_windowed(self, index: int) -> bool:  # noqa: ARG002
        """None."""
        return False


class GraniteMoeHybrid(GroupedDecoder):
    """Granite 4 where all layers are attention (350M, 1B): a dense block that every token passes, experts if any."""

    kinds: ClassVar[tuple[str, ...]] = ("attention", "full_attention")
    ignored: ClassVar[frozenset[str]] = frozenset(  # of Mamba layers, which it doesn't have then
        {
            "intermediate_size",
            *(f"mamba_{part}" for part in ("n_heads", "n_groups", "d_state", "d_head", "d_conv", "expand")),
            *(f"mamba_{part}" for part in ("chunk_size", "conv_bias", "proj_bias")),
            "time_step_limit",
        }
    )
    num_key_value_heads: Count | None = None  # as many as heads
    layer_types: tuple[str, ...]
    shared_intermediate_size: Count
    num_local_experts: CountOrZero = 0
    num_experts_per_tok: CountOrZero = 0
    expert_width: Count | None = Field(default=None, validation_alias="intermediate_size")

    @model_validator(mode="after")
    def _experts_fit(self) -> GraniteMoeHybrid:
        require_at_most("num_experts_per_tok", self.num_experts_per_tok, "num_local_experts", self.num_local_experts)
        if self.num_local_experts and not (self.num_experts_per_tok and self.expert_width):
            reject("num_local_experts", self.num_local_experts, "0 without num_experts_per_tok and intermediate_size")
        return self

    def feed_forward(self, index: int) -> Mlp | Moe:  # noqa: ARG002
        """The same in every layer."""
        if not self.num_local_experts:
            return self.dense(self.shared_intermediate_size)
        return experts_of(
            self,
            experts=self.num_local_experts,
            top_k=self.num_experts_per_tok,
            width=self.expert_width or 0,
            shared_width=self.shared_intermediate_size,
        )


class GptOss(Mixtral):
    """gpt-oss: biases everywhere, sinks, windows in every other layer, YaRN, experts whose inner rows are clamped."""

    head_dim: Count | None = 64
    attention_bias: Flag = True
    sliding_window: CountOrZero | None = 128

    @property
    def router_bias(self) -> bool:
        """Always."""
        return True

    def is_windowed(self, index: int) -> bool:
        """The first, the third, and so on."""
        return index % 2 == 0

    def attention(self, index: int) -> Attention:
        """With sinks."""
        return replace(super().attention(index), sinks=True, scaled_rotary=True)

    def feed_forward(self, index: int) -> Mlp | Moe:  # noqa: ARG002
        """The same experts in every layer."""
        return replace(self.sparse(self.intermediate_size, bias=True), clamped=True)


class Grok1(Mixtral):
    """Grok-1: norms before and behind each block."""

    second_norm: ClassVar[bool] = True
    hidden_act: ActivationName = "gelu"
    tie_word_embeddings: Flag = True
    sliding_window: CountOrZero | None = None

    def is_windowed(self, index: int) -> bool:  # noqa: ARG002
        """None."""
        return False


class Qwen3Moe(SparseDecoder):
    """Qwen 3 with experts in every `decoder_sparse_step`-th layer but `mlp_only_layers`."""

    ignored: ClassVar[frozenset[str]] = frozenset({"use_qk_norm", "qkv_bias"})  # as files of Qwen3-Coder say
    windows_need_a_flag: ClassVar[bool] = True
    intermediate_size: Count
    moe_intermediate_size: Count
    decoder_sparse_step: Count = 1
    mlp_only_layers: tuple[CountOrZero, ...] | None = None  # none
    sliding_window: CountOrZero | None = 4096

    @property
    def qk_norm(self) -> QkNorm:
        """Of each head."""
        return "per_head"

    @property
    def shared_width(self) -> int:
        """Width of the shared experts together."""
        return 0

    def is_windowed(self, index: int) -> bool:  # noqa: ARG002
        """Every layer."""
        return True

    def feed_forward(self, index: int) -> Mlp | Moe:
        """Experts or a dense block, as `Qwen3MoeDecoderLayer` chooses."""
        dense_only = index in (self.mlp_only_layers or ())
        if dense_only or (index + 1) % self.decoder_sparse_step:
            return self.dense(self.intermediate_size)
        return self.sparse(self.moe_intermediate_size, shared_width=self.shared_width)


class Qwen2Moe(Qwen3Moe):
    """Qwen 2 with experts and a gated shared expert."""

    shared_gate: ClassVar[bool] = True
    shared_expert_intermediate_size: Count
    attention_bias: Flag = Field(default=True, validation_alias="qkv_bias")  # of queries, keys and values
    max_window_layers: CountOrZero = 28

    @property
    def qk_norm(self) -> QkNorm:
        """None."""
        return "none"

    @property
    def bias_out(self) -> bool:
        """Never."""
        return False

    @property
    def shared_width(self) -> int:
        """One shared expert."""
        return self.shared_expert_intermediate_size

    def is_windowed(self, index: int) -> bool:
        """Every other layer up to `max_window_layers`."""
        return index % 2 == 0 and index < self.max_window_layers


class SharedExpertsDecoder(DenseFirst, SparseDecoder):
    """A few dense layers first, then experts beside shared ones, each as wide as a routed one."""

    num_experts: RoutedExperts
    intermediate_size: Count
    moe_intermediate_size: Count
    shared_experts: CountOrZero | None = Field(
        default=None, validation_alias=AliasChoices("n_shared_experts", "num_shared_experts")
    )

    def feed_forward(self, index: int) -> Mlp | Moe:
        """Dense first, then experts."""
        if not self.is_sparse(index):
            return self.dense(self.intermediate_size)
        return self.sparse(self.moe_intermediate_size, shared_width=self.shared_width)

    @property
    def shared_width(self) -> int:
        """Width of the shared experts together."""
        return (self.shared_experts or 0) * self.moe_intermediate_size


class Deepseek(SharedExpertsDecoder):
    """DeepSeekMoE 16B, before latent attention."""

    num_key_value_heads: Count | None = None  # as many as heads


class BailingMoe(SharedExpertsDecoder):
    """Ling 1 and 1.5: biases of queries, keys and values have one key, that of the output another."""

    use_bias: Flag = False
    use_qkv_bias: Flag = False

    @property
    def bias_qkv(self) -> bool:
        """Its key."""
        return self.use_qkv_bias

    @property
    def bias_out(self) -> bool:
        """Its key."""
        return self.use_bias


class BailingMoeV2(BailingMoe):
    """Ling 2: norms of each head of queries and keys, experts chosen by corrected sigmoid scores."""

    router: ClassVar[Router] = "sigmoid_topk"
    score_correction: ClassVar[bool] = True
    use_qk_norm: Flag = True
    moe_shared_expert_intermediate_size: Count | None = None  # moe_intermediate_size

    @property
    def qk_norm(self) -> QkNorm:
        """Of each head."""
        return "per_head" if self.use_qk_norm else "none"

    @property
    def shared_width(self) -> int:
        """The shared experts may be of another width than the routed ones."""
        return (self.shared_experts or 0) * (self.moe_shared_expert_intermediate_size or self.moe_intermediate_size)


class Dots1(SharedExpertsDecoder):
    """dots.llm1: norms of each head of queries and keys, experts chosen by corrected sigmoid scores."""

    router: ClassVar[Router] = "sigmoid_topk"
    score_correction: ClassVar[bool] = True
    num_key_value_heads: Count | None = None  # as many as heads
    sliding_window: CountOrZero | None = 4096
    max_window_layers: CountOrZero | None = 62

    @property
    def qk_norm(self) -> QkNorm:
        """Of each head."""
        return "per_head"

    def is_windowed(self, index: int) -> bool:
        """Layers from `max_window_layers` on."""
        return self.max_window_layers is not None and index >= self.max_window_layers


class Glm4Moe(SharedExpertsDecoder):
    """GLM-4.5 and 4.6: biases of queries, keys and values, experts chosen by corrected sigmoid scores."""

    router: ClassVar[Router] = "sigmoid_topk"
    score_correction: ClassVar[bool] = True
    first_k_dense_replace: CountOrZero = 1
    shared_experts: CountOrZero | None = Field(default=1, validation_alias="n_shared_experts")
    use_qk_norm: Flag = False

    @property
    def bias_out(self) -> bool:
        """Never."""
        return False

    @property
    def qk_norm(self) -> QkNorm:
        """Of each head, where there is one."""
        return "per_head" if self.use_qk_norm else "none"


class Glm4vMoe(Glm4Moe):
    """The language model of GLM-4.5V."""

    attention_bias: Flag = True


class Ernie45Moe(SparseDecoder):
    """ERNIE 4.5 with experts in layers from one to another, without biases."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        {"moe_capacity", "compression_ratio", "weight_share_add_bias", "moe_multimodal_dispatch_use_allgather"}
    )
    num_experts: Count = Field(validation_alias=AliasChoices("moe_num_experts", "num_experts"))
    num_experts_per_tok: Count = Field(validation_alias=AliasChoices("moe_k", "num_experts_per_tok"))
    intermediate_size: Count
    moe_intermediate_size: Count
    shared_experts: CountOrZero = Field(default=2, validation_alias="moe_num_shared_experts")
    moe_layer_start_index: CountOrZero = 1
    moe_layer_end_index: int = -1  # the last
    moe_layer_interval: Count = 1
    use_bias: Literal[False] = False
    tie_word_embeddings: Flag = True

    @property
    def router_bias(self) -> bool:
        """A correction of each expert's score; here a parameter, which no gradient trains."""
        return True

    def feed_forward(self, index: int) -> Mlp | Moe:
        """Experts or a dense block, as `Ernie4_5_MoeDecoderLayer` chooses."""
        last = self.num_hidden_layers - 1 if self.moe_layer_end_index == -1 else self.moe_layer_end_index
        inside = self.moe_layer_start_index <= index <= last
        if not inside or (index + 1) % self.moe_layer_interval:
            return self.dense(self.intermediate_size)
        width = self.moe_intermediate_size
        return self.sparse(width, shared_width=self.shared_experts * width)


class HunyuanMoe(GroupedDecoder):
    """Hunyuan-A13B: experts in every layer; sizes may be lists, a value a layer."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        {"mlp_bias", "cla_share_factor", "attention_head_dim", "dense_list", "pool_type"}
    )
    num_experts: Experts
    top_k: _PerLayer = Field(validation_alias=AliasChoices("moe_topk", "num_experts_per_tok"))
    intermediate_size: Count
    moe_intermediate_size: _PerLayer | None = None  # intermediate_size
    shared_experts: _PerLayer = Field(default=1, validation_alias=AliasChoices("num_shared_expert", "n_shared_experts"))
    use_mixed_mlp_moe: Flag = True  # whether there is a shared expert
    use_qk_norm: Flag = True
    moe_layer_num_skipped: Literal[0] = 0  # first layers without experts
    num_key_value_heads: Count | None = None  # as many as heads
    head_dim: Count | None = Field(default=None, validation_alias=AliasChoices("head_dim", "attention_head_dim"))

    @model_validator(mode="after")
    def _lists_fit(self) -> HunyuanMoe:
        for key, value in (
            ("moe_topk", self.top_k),
            ("moe_intermediate_size", self.moe_intermediate_size),
            ("num_shared_expert", self.shared_experts),
        ):
            if isinstance(value, tuple) and len(value) != self.num_hidden_layers:
                reject(key, f"{len(value)} values", f"num_hidden_layers ({self.num_hidden_layers})")
        for index in range(self.num_hidden_layers):
            require_at_most("moe_topk", _at(self.top_k, index), "num_experts", self.num_experts)
        return self

    @property
    def qk_norm(self) -> QkNorm:
        """Of each head."""
        return "per_head" if self.use_qk_norm else "none"

    def feed_forward(self, index: int) -> Mlp | Moe:
        """The layer's experts, and shared ones, each `intermediate_size` wide (transformers' HunYuanMoEV1MLP)."""
        width = _at(self.moe_intermediate_size or self.intermediate_size, index)
        shared = _at(self.shared_experts, index) * self.use_mixed_mlp_moe
        return experts_of(
            self,
            experts=self.num_experts,
            top_k=_at(self.top_k, index),
            width=width,
            shared_width=shared * self.intermediate_size,
        )


def _at(value: int | tuple[int, ...], index: int) -> int:
    return value[index] if isinstance(value, tuple) else value


class Llama4(GroupedDecoder):
    """Llama 4, its language model: one routed and one shared expert in some layers, chunks in three of four."""

    kinds: ClassVar[tuple[str, ...]] = ("full_attention", "chunked_attention")
    num_experts: Experts
    num_experts_per_tok: Count = 1
    intermediate_size: Count  # of an expert
    intermediate_size_mlp: Count  # of a dense block
    interleave_moe_layer_step: Count = 1
    moe_layers: tuple[CountOrZero, ...] | None = None
    use_qk_norm: Flag = True  # without parameters
    attention_chunk_size: Count | None = 8192
    no_rope_layers: tuple[CountOrZero, ...] | None = None  # 1: a layer with positions, hence chunks
    no_rope_layer_interval: Count = 4

    @model_validator(mode="after")
    def _experts_fit(self) -> Llama4:
        require_at_most("num_experts_per_tok", self.num_experts_per_tok, "num_experts", self.num_experts)
        if self.no_rope_layers and len(self.no_rope_layers) != self.num_hidden_layers:
            found, allowed = len(self.no_rope_layers), f"num_hidden_layers ({self.num_hidden_layers})"
            reject("no_rope_layers", f"{found} values", allowed)
        return self

    def chunk(self, index: int) -> int | None:
        """Layers with positions stay in their chunk."""
        if self.layer_types is not None:
            return self.attention_chunk_size if self.layer_types[index] == "chunked_attention" else None
        if self.no_rope_layers:
            return self.attention_chunk_size if self.no_rope_layers[index] else None
        return self.attention_chunk_size if (index + 1) % self.no_rope_layer_interval else None

    def feed_forward(self, index: int) -> Mlp | Moe:
        """Experts in every so many-th layer, or in those that are listed."""
        step = self.interleave_moe_layer_step
        sparse = (index + 1) % step == 0 if self.moe_layers is None else index in self.moe_layers
        if not sparse:
            return self.dense(self.intermediate_size_mlp)
        return experts_of(
            self,
            experts=self.num_experts,
            top_k=self.num_experts_per_tok,
            width=self.intermediate_size,
            shared_width=self.intermediate_size,
            router="sigmoid_topk",
        )


class MimoV2Flash(SparseDecoder):
    """MiMo-V2-Flash: windows in some layers, with heads of their own; values narrower than keys."""

    ignored: ClassVar[frozenset[str]] = frozenset({"attention_chunk_size"})
    router: ClassVar[Router] = "sigmoid_topk"
    score_correction: ClassVar[bool] = True
    num_experts: RoutedExperts
    intermediate_size: Count
    moe_intermediate_size: Count
    moe_layer_freq: tuple[Literal[0, 1], ...]  # 1: experts
    hybrid_layer_pattern: tuple[Literal[0, 1], ...]  # 1: a window
    v_head_dim: Count
    swa_num_attention_heads: Count
    swa_num_key_value_heads: Count
    swa_head_dim: Count
    swa_v_head_dim: Count
    sliding_window: CountOrZero | None = Field(validation_alias=AliasChoices("sliding_window", "sliding_window_size"))
    add_swa_attention_sink_bias: Flag = True
    add_full_attention_sink_bias: Flag = False
    n_shared_experts: Literal[0] | None = None

    @model_validator(mode="after")
    def _patterns_fit(self) -> MimoV2Flash:
        layers = self.num_hidden_layers
        for key, value in (
            ("moe_layer_freq", self.moe_layer_freq),
            ("hybrid_layer_pattern", self.hybrid_layer_pattern),
        ):
            if len(value) != layers:
                reject(key, f"{len(value)} values", f"num_hidden_layers ({layers})")
        require_divides(
            "swa_num_key_value_heads",
            self.swa_num_key_value_heads,
            "swa_num_attention_heads",
            self.swa_num_attention_heads,
        )
        if 1 in self.hybrid_layer_pattern and self.layer_types is None and not self.sliding_window:
            allowed = "a number of tokens, since hybrid_layer_pattern has layers with a window (1)"
            reject("sliding_window", self.sliding_window, allowed)
        return self

    def is_windowed(self, index: int) -> bool:
        """By the pattern."""
        return index < len(self.hybrid_layer_pattern) and self.hybrid_layer_pattern[index] == 1

    def attention(self, index: int) -> Attention:
        """Of a layer with a window, or of one without."""
        if not self.is_windowed(index):
            return Attention(
                heads=self.num_attention_heads,
                kv_heads=self.num_key_value_heads or self.num_attention_heads,
                head_dim=self.head_dim or self.hidden_size // self.num_attention_heads,
                value_head_dim=self.v_head_dim,
                causal=self.causal,
                bias_qkv=self.attention_bias,
                sinks=self.add_full_attention_sink_bias,
            )
        return Attention(
            heads=self.swa_num_attention_heads,
            kv_heads=self.swa_num_key_value_heads,
            head_dim=self.swa_head_dim,
            value_head_dim=self.swa_v_head_dim,
            causal=self.causal,
            bias_qkv=self.attention_bias,
            window=self.window(index),
            sinks=self.add_swa_attention_sink_bias,
        )

    def feed_forward(self, index: int) -> Mlp | Moe:
        """By the list."""
        if not self.moe_layer_freq[index]:
            return self.dense(self.intermediate_size)
        return self.sparse(self.moe_intermediate_size)


class _DbrxAttention(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    kv_n_heads: Count


class _DbrxFeedForward(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    ffn_hidden_size: Count
    moe_num_experts: Count
    moe_top_k: Count


class Dbrx(Decoder):
    """DBRX: layer norms without shift, experts in every layer; heads and experts have objects of their own."""

    norm: ClassVar[Norm] = "layer"

    hidden_size: Count = Field(validation_alias="d_model")
    num_hidden_layers: Layers = Field(validation_alias="n_layers")
    num_attention_heads: Count = Field(validation_alias="n_heads")
    max_position_embeddings: Count | None = Field(default=None, validation_alias="max_seq_len")
    attn_config: _DbrxAttention
    ffn_config: _DbrxFeedForward

    @model_validator(mode="after")
    def _shape_fits(self) -> Dbrx:
        require_divides("n_heads", self.num_attention_heads, "d_model", self.hidden_size)
        require_divides("attn_config.kv_n_heads", self.attn_config.kv_n_heads, "n_heads", self.num_attention_heads)
        experts = self.ffn_config
        require_at_most("ffn_config.moe_top_k", experts.moe_top_k, "moe_num_experts", experts.moe_num_experts)
        return self

    def attention(self, index: int) -> Attention:  # noqa: ARG002
        """Grouped-query attention without biases."""
        heads = self.num_attention_heads
        return Attention(
            heads=heads, kv_heads=self.attn_config.kv_n_heads, head_dim=self.hidden_size // heads, causal=self.causal
        )

    def feed_forward(self, index: int) -> Mlp | Moe:  # noqa: ARG002
        """The same experts in every layer."""
        experts = self.ffn_config
        return experts_of(self, experts=experts.moe_num_experts, top_k=experts.moe_top_k, width=experts.ffn_hidden_size)


class Grok2(Grok1):
    """Grok-2: a dense block beside the experts, from the same input."""

    moe_intermediate_size: Count
    residual_moe: Literal[True]
    tie_word_embeddings: Flag = False

    def feed_forward(self, index: int) -> Mlp | Moe:  # noqa: ARG002
        """The dense block is an expert that every token passes."""
        return self.sparse(self.moe_intermediate_size, shared_width=self.intermediate_size)
