"""Decoders whose layers are one block each, state spaces and attention in a pattern with feed-forward blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field, model_validator

from moemodel.model.architecture.family import Decoder
from moemodel.model.architecture.fields import (
    ActivationName,
    Count,
    CountOrZero,
    Flag,
    reject,
    require_at_most,
    require_divides,
)
from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp, Moe, StateSpace

# How files call a layer: by a letter of a pattern (Megatron-LM, hybrid_layer_allocation.py), or by a word of a list,
# older and newer ones.
STATE_SPACE, ATTENTION, DENSE, EXPERTS = "M", "*", "-", "E"
_WORDS = {
    "mamba": STATE_SPACE,
    "linear_attention": STATE_SPACE,
    "attention": ATTENTION,
    "full_attention": ATTENTION,
    "mlp": DENSE,
    "moe": EXPERTS,
}
LETTERS = (STATE_SPACE, ATTENTION, DENSE, EXPERTS)


class NemotronH(Decoder):
    """Nemotron-H, Nemotron Nano 2, Nemotron 3 (`transformers`, models/nemotron_h): Mamba-2, attention without
    positions, dense blocks and experts of squared ReLU, each with a norm before it and a residual around it."""

    mlp_gated: ClassVar[bool] = False
    ignored: ClassVar[frozenset[str]] = frozenset(
        {"expand", "mamba_expand", "time_step_min", "time_step_max", "time_step_limit", "time_step_floor"}
        | {"time_step_rank", "mamba_dt_min", "mamba_dt_max", "mamba_dt_limit", "mamba_dt_init_floor", "use_bias"}
        | {"mamba_ssm_cache_dtype", "sliding_window"}
        | {"moe_shared_expert_overlap"}
    )

    hidden_act: ActivationName = Field(default="relu2", validation_alias=AliasChoices("mlp_hidden_act"))
    hybrid_override_pattern: str | None = None
    layers_block_type: tuple[str, ...] | None = Field(
        default=None, validation_alias=AliasChoices("layers_block_type", "layer_types")
    )
    mtp_hybrid_override_pattern: str | None = None
    mtp_layers_block_type: tuple[str, ...] | None = None  # attention and experts
    num_key_value_heads: Count | None
    head_dim: Count = 128
    intermediate_size: Count
    mlp_bias: Flag = False

    mamba_num_heads: Count
    mamba_head_dim: Count
    ssm_state_size: Count
    n_groups: Count = Field(validation_alias=AliasChoices("n_groups", "mamba_n_groups"))
    conv_kernel: Count = Field(default=4, validation_alias=AliasChoices("conv_kernel", "mamba_d_conv"))
    chunk_size: Count = Field(default=128, validation_alias=AliasChoices("chunk_size", "mamba_chunk_size"))
    use_conv_bias: Flag = Field(default=True, validation_alias=AliasChoices("use_conv_bias", "mamba_conv_bias"))
    mamba_proj_bias: Flag = False
    mamba_hidden_act: Literal["silu"] = "silu"

    n_routed_experts: CountOrZero = Field(
        default=0, validation_alias=AliasChoices("n_routed_experts", "num_local_experts")
    )
    num_experts_per_tok: Count = 2
    moe_intermediate_size: Count | None = None
    n_shared_experts: CountOrZero = 1
    moe_shared_expert_intermediate_size: CountOrZero | None = None
    moe_latent_size: Count | None = None
    n_group: CountOrZero | None = 1
    topk_group: CountOrZero | None = 1

    @model_validator(mode="before")
    @classmethod
    def _count_layers(cls, config: Any) -> Any:
        """Newer files leave out how many layers their list has."""
        if isinstance(config, Mapping) and config.get("num_hidden_layers") is None:
            listed = next((config[key] for key in _LISTS if isinstance(config.get(key), (list, str))), None)
            if listed is not None:
                return {**config, "num_hidden_layers": len(listed)}
        return config

    @model_validator(mode="after")
    def _pattern_fits(self) -> NemotronH:
        if self.hybrid_override_pattern is None and self.layers_block_type is None:
            raise ValueError("the key 'layers_block_type' is missing, or 'hybrid_override_pattern' in its place")
        for key in ("layers_block_type", "mtp_layers_block_type"):
            for word in getattr(self, key) or ():
                if word not in _WORDS:
                    reject(key, repr(word), ", ".join(_WORDS))
        for key in ("hybrid_override_pattern", "mtp_hybrid_override_pattern"):
            for letter in getattr(self, key) or "":
                if letter not in LETTERS:
                    reject(key, repr(letter), " ".join(LETTERS))
        if len(self.pattern) != self.num_hidden_layers:
            key = "hybrid_override_pattern" if self.layers_block_type is None else "layers_block_type"
            reject(key, f"{len(self.pattern)} layers", f"num_hidden_layers ({self.num_hidden_layers})")
        require_divides("n_groups", self.n_groups, "mamba_num_heads", self.mamba_num_heads)
        heads = self.num_attention_heads
        require_divides("num_key_value_heads", self.num_key_value_heads or heads, "num_attention_heads", heads)
        return self

    @model_validator(mode="after")
    def _experts_fit(self) -> NemotronH:
        if EXPERTS not in self.pattern:
            return self
        if not self.n_routed_experts or self.moe_intermediate_size is None:
            key = "moe_intermediate_size" if self.n_routed_experts else "n_routed_experts"
            raise ValueError(f"the key '{key}' is missing, since some layers are experts")
        require_at_most("num_experts_per_tok", self.num_experts_per_tok, "n_routed_experts", self.n_routed_experts)
        return self

    @property
    def pattern(self) -> str:
        """What each layer is, by its letter."""
        return _letters(self.hybrid_override_pattern, self.layers_block_type)

    def architecture(self, name: str, source: str) -> Architecture:
        """A module of multi-token prediction has the blocks that its own pattern says, as one layer."""
        found = super().architecture(name, source)
        pattern = _letters(self.mtp_hybrid_override_pattern, self.mtp_layers_block_type) or ATTENTION + EXPERTS
        modules = tuple(self._of_letters(pattern) for _ in found.multi_token)
        return replace(found, multi_token=modules)

    def layer(self, index: int) -> Layer:
        """One block, with a norm before it."""
        return self._of_letters(self.pattern[index])

    def _of_letters(self, letters: str) -> Layer:
        """A layer of these blocks."""
        return Layer(
            attentions=(self.attention(0),) * letters.count(ATTENTION),
            state_space=self._state_space() if STATE_SPACE in letters else None,
            feed_forward=self._experts() if EXPERTS in letters else self._dense() if DENSE in letters else None,
            norm="rms",
        )

    def attention(self, index: int) -> Attention:  # noqa: ARG002
        """Grouped queries, without positions."""
        return Attention(
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads or self.num_attention_heads,
            head_dim=self.head_dim,
            causal=self.causal,
            bias_qkv=self.attention_bias,
            bias_out=self.attention_bias,
            rotary=False,
        )

    def _state_space(self) -> StateSpace:
        return StateSpace(
            heads=self.mamba_num_heads,
            head_dim=self.mamba_head_dim,
            state_dim=self.ssm_state_size,
            groups=self.n_groups,
            kernel=self.conv_kernel,
            chunk=self.chunk_size,
            bias=self.mamba_proj_bias,
            conv_bias=self.use_conv_bias,
        )

    def feed_forward(self, index: int) -> Mlp | Moe:
        """A dense block, or experts."""
        return self._dense() if self.pattern[index] == DENSE else self._experts()

    def _dense(self) -> Mlp:
        return self.dense(self.intermediate_size, bias=self.mlp_bias)

    def _experts(self) -> Moe:
        """Chosen by corrected sigmoid scores."""
        shared = self.moe_shared_expert_intermediate_size
        groups, best = self.n_group or 1, self.topk_group or 1
        limits = best < groups and self.n_routed_experts % groups == 0
        return Moe(
            experts=self.n_routed_experts,
            top_k=self.num_experts_per_tok,
            width=self.moe_intermediate_size or 0,
            activation=self.hidden_act,
            gated=False,
            shared_width=(shared or 0) * (self.n_shared_experts > 0),
            router="sigmoid_topk",
            score_correction=True,
            groups=groups if limits else 1,
            top_groups=best if limits else 1,
            latent_width=self.moe_latent_size,
        )


def _letters(pattern: str | None, words: tuple[str, ...] | None) -> str:
    """A letter a layer, of words where a file has them."""
    return (pattern or "") if words is None else "".join(_WORDS[word] for word in words)


_LISTS = ("layers_block_type", "layer_types", "hybrid_override_pattern")
