"""Decoders with multi-head latent attention and experts."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import model_validator

from moemodel.model.architecture.family import DenseFirst, RoutedExperts, experts_of
from moemodel.model.architecture.fields import Count, CountOrZero, reject, require_at_most
from moemodel.model.architecture.spec import Attention, Latent, Mlp, Moe, Router

_MLP_LAYER_TYPES = ("dense", "sparse")


class DeepseekV3(DenseFirst):
    """DeepSeek-V3: latent attention, a few dense layers first, then experts chosen by corrected sigmoid scores."""

    ignored: ClassVar[frozenset[str]] = frozenset({"num_key_value_heads", "head_dim", "qk_head_dim"})
    router: ClassVar[Router] = "sigmoid_topk"
    score_correction: ClassVar[bool] = True

    intermediate_size: Count
    moe_intermediate_size: Count
    n_routed_experts: RoutedExperts
    num_experts_per_tok: Count
    first_k_dense_replace: CountOrZero
    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count
    q_lora_rank: Count | None = 1536  # null: queries have no latent
    n_shared_experts: CountOrZero | None = 1
    n_group: CountOrZero | None = None
    topk_group: CountOrZero | None = None
    topk_method: str | None = None
    use_mla: Literal[True] = True

    @model_validator(mode="after")
    def _experts_fit(self) -> DeepseekV3:
        require_at_most("num_experts_per_tok", self.num_experts_per_tok, "n_routed_experts", self.n_routed_experts)
        return self

    def attention(self, index: int) -> Attention:  # noqa: ARG002
        """Multi-head latent attention (arXiv:2412.19437, section 2.1.1)."""
        return Attention(
            heads=self.num_attention_heads,
            kv_heads=self.num_attention_heads,
            head_dim=self.qk_nope_head_dim,
            causal=self.causal,
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
        """A dense block, or experts."""
        if not self.is_sparse(index):
            return self.dense(self.intermediate_size)
        block = experts_of(
            self,
            experts=self.n_routed_experts,
            top_k=self.num_experts_per_tok,
            width=self.moe_intermediate_size,
            shared_width=(self.n_shared_experts or 0) * self.moe_intermediate_size,
            router=self.router,
            score_correction=self.score_correction,
        )
        groups, best = self._groups
        return replace(block, groups=groups, top_groups=best)

    @property
    def _groups(self) -> tuple[int, int]:
        """Groups of experts, and how many of them a token's lie in; (1, 1): they are chosen among all."""
        groups, best = self.n_group or 1, self.topk_group or 1
        limits = best < groups and self.n_routed_experts % groups == 0 and self.topk_method != "greedy"
        return (groups, best) if limits else (1, 1)


class DeepseekV2(DeepseekV3):
    """DeepSeek-V2: experts chosen by the softmax of their scores, without a correction."""

    router: ClassVar[Router] = "softmax_topk"
    score_correction: ClassVar[bool] = False
    mlp_bias: Literal[False] = False


class Glm4MoeLite(DeepseekV3):
    """GLM-4.7-Flash: DeepSeek-V3's shape; newer files list which layers are dense."""

    first_k_dense_replace: CountOrZero = 1
    mlp_layer_types: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _list_fits(self) -> Glm4MoeLite:
        for kind in self.mlp_layer_types or ():
            if kind not in _MLP_LAYER_TYPES:
                reject("mlp_layer_types", repr(kind), ", ".join(_MLP_LAYER_TYPES))
        if self.mlp_layer_types is not None and len(self.mlp_layer_types) != self.num_hidden_layers:
            found, allowed = len(self.mlp_layer_types), f"num_hidden_layers ({self.num_hidden_layers})"
            reject("mlp_layer_types", f"{found} of them", allowed)
        return self

    def is_sparse(self, index: int) -> bool:
        """By the list, where there is one."""
        if self.mlp_layer_types is not None:
            return self.mlp_layer_types[index] == "sparse"
        return super().is_sparse(index)
