"""Models as Megatron-LM's arguments state them (megatron/training/arguments.py, transformer_config.py).

Keys are the arguments' names without dashes in front, underscores between; defaults are Megatron's. `model` says which
of its classes: GPT; BERT, whose attention has no mask; or T5, whose `num_layers` are the decoder's. `vocab_size` is
that of the embedding, padding included. What Megatron adds to BERT behind its layers (two products of the model's
width, token types) is left out.
"""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, field_validator, model_validator

from moemodel.model.architecture.family import Family
from moemodel.model.architecture.fields import (
    Count,
    CountOrZero,
    Flag,
    Layers,
    reject,
    require_at_most,
    require_divides,
)
from moemodel.model.architecture.hybrid_families import ATTENTION, DENSE, EXPERTS, LETTERS, STATE_SPACE
from moemodel.model.architecture.spec import (
    Activation,
    Architecture,
    Attention,
    Latent,
    Layer,
    Mlp,
    Moe,
    Router,
    StateSpace,
)

_SUM_OF_LISTS = re.compile(r"[\[\]()\d\s,*+]+")


class MegatronModel(Family):
    """A model of Megatron-LM. Unknown keys are errors: an argument that is not read must not look as if it were."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ends_in_vocabulary: ClassVar[bool] = True

    model_type: Literal["megatron"]
    model: Literal["gpt", "bert", "t5"] = "gpt"
    vocab_size: Count
    num_layers: Layers
    encoder_num_layers: Count | None = None  # of T5: num_layers
    hidden_size: Count
    num_attention_heads: Count
    ffn_hidden_size: Count | None = None  # four times hidden_size; of swiglu two thirds of it, in steps of 64
    kv_channels: Count | None = None  # hidden_size over num_attention_heads
    num_query_groups: Count | None = None  # with group_query_attention; else as many as heads
    normalization: Literal["LayerNorm", "RMSNorm"] = "LayerNorm"
    qk_layernorm: Flag = False
    swiglu: Flag = False
    squared_relu: Flag = False
    add_bias_linear: Flag = True
    add_qkv_bias: Flag = False
    position_embedding_type: Literal["learned_absolute", "rope", "yarn", "none"] = "learned_absolute"
    max_position_embeddings: Count
    untie_embeddings_and_output_weights: Flag = False
    window_size: Count | None = None

    num_experts: CountOrZero = 0
    moe_layer_freq: Count | str = 1  # every so many-th layer has experts, the first among them; or a list of 0 and 1
    moe_ffn_hidden_size: Count | None = None  # ffn_hidden_size
    moe_router_topk: Count = 2
    moe_router_score_function: Literal["softmax", "sigmoid"] = "softmax"
    moe_router_enable_expert_bias: Flag = False
    moe_shared_expert_intermediate_size: CountOrZero = 0
    moe_shared_expert_gate: Flag = False
    moe_expert_capacity_factor: float | None = None
    moe_latent_size: Count | None = None

    multi_latent_attention: Flag = False
    q_lora_rank: Count | None = None
    kv_lora_rank: Count = 32  # MLATransformerConfig
    qk_head_dim: Count = 128
    qk_pos_emb_head_dim: Count = 64
    v_head_dim: Count = 128

    mtp_num_layers: CountOrZero = 0

    # a letter a layer; `|` between stages, `/` before each module of multi-token prediction
    hybrid_layer_pattern: str | None = None
    mamba_state_dim: Count = 128  # transformer_config.py
    mamba_head_dim: Count = 64
    mamba_num_groups: Count = 8
    mamba_num_heads: Count | None = None  # of twice the model's width (ssm/mamba_mixer.py, expand)

    @field_validator("moe_layer_freq", mode="after")
    @classmethod
    def _freq_can_be_read(cls, value: int | str) -> int | str:
        if isinstance(value, str):
            layer_pattern(value)
        return value

    @model_validator(mode="after")
    def _shape_fits(self) -> MegatronModel:
        if self.kv_channels is None and not self.multi_latent_attention:
            require_divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        groups = self.num_query_groups or self.num_attention_heads
        require_divides("num_query_groups", groups, "num_attention_heads", self.num_attention_heads)
        if self.num_experts:
            require_at_most("moe_router_topk", self.moe_router_topk, "num_experts", self.num_experts)
        if isinstance(self.moe_layer_freq, str) and len(layer_pattern(self.moe_layer_freq)) != self.num_layers:
            found = len(layer_pattern(self.moe_layer_freq))
            reject("moe_layer_freq", f"{found} layers", f"num_layers ({self.num_layers})")
        return self

    @model_validator(mode="after")
    def _pattern_fits(self) -> MegatronModel:
        if self.hybrid_layer_pattern is None:
            return self
        for letter in self.hybrid_layer_pattern:
            if letter not in (*LETTERS, "|", "/"):
                reject("hybrid_layer_pattern", repr(letter), f"{' '.join(LETTERS)}, | and /")
        if len(self.pattern) != self.num_layers:
            reject("hybrid_layer_pattern", f"{len(self.pattern)} layers", f"num_layers ({self.num_layers})")
        if EXPERTS in self.pattern and not self.num_experts:
            reject("num_experts", 0, "a number, since hybrid_layer_pattern has experts")
        require_divides("mamba_num_groups", self.mamba_num_groups, "mamba_num_heads", self._state_space().heads)
        return self

    @model_validator(mode="after")
    def _encoder_fits(self) -> MegatronModel:
        if self.encoder_num_layers is not None and self.model != "t5":
            reject("encoder_num_layers", self.encoder_num_layers, "nothing, unless model is t5")
        if self.model == "t5" and (self.num_experts or self.multi_latent_attention or self.hybrid_layer_pattern):
            reject("model", "t5 with experts, latent attention or a pattern", "dense layers")
        return self

    @property
    def pattern(self) -> str:
        """A letter a layer of the model itself; empty where all are of one kind."""
        return (self.hybrid_layer_pattern or "").split("/")[0].replace("|", "")

    @property
    def width(self) -> int:
        """Of a dense block (validate_args)."""
        if self.ffn_hidden_size is not None:
            return self.ffn_hidden_size
        return int(4 * self.hidden_size * 2 / 3) // 64 * 64 if self.swiglu else 4 * self.hidden_size

    @property
    def activation(self) -> Activation:
        """Of feed-forward blocks."""
        return "silu" if self.swiglu else "relu2" if self.squared_relu else "gelu"

    def is_sparse(self, index: int) -> bool:
        """Whether a layer has experts (gpt_layer_specs.py, moe_layer_freq)."""
        if not self.num_experts:
            return False
        if isinstance(self.moe_layer_freq, str):
            return layer_pattern(self.moe_layer_freq)[index] == 1
        return index % self.moe_layer_freq == 0

    def architecture(self, name: str, source: str) -> Architecture:
        """A stack of layers between embedding and head."""
        learned = self.position_embedding_type == "learned_absolute"
        encoder, decoder = self._stacks()
        return Architecture(
            name=name,
            hidden=self.hidden_size,
            vocab=self.vocab_size,
            embedding_width=self.hidden_size,
            tied=not self.untie_embeddings_and_output_weights,
            encoder=encoder,
            decoder=decoder,
            head_bias=self.model != "gpt",
            learned_positions=self.max_position_embeddings if learned else 0,
            max_seq=self.max_position_embeddings,
            source=source,
            multi_token=self._modules(decoder),
        )

    def _stacks(self) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
        """Layers of the encoder, if there is one, and of the decoder."""
        if self.model != "t5":
            return (), tuple(self._layer(index) for index in range(self.num_layers))
        attention, block = self._attention(), self._dense()
        read = self._of_blocks((attention,), block)
        written = self._of_blocks((replace(attention, causal=True), replace(attention, cross=True)), block)
        return (read,) * (self.encoder_num_layers or self.num_layers), (written,) * self.num_layers

    def _modules(self, decoder: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """Of multi-token prediction: a layer each, the last one's like or of the blocks that the pattern says."""
        patterns = (self.hybrid_layer_pattern or "").split("/")[1:]
        if not self.hybrid_layer_pattern:
            return decoder[-1:] * self.mtp_num_layers
        return tuple(self._of_letters(pattern) for pattern in patterns if pattern)

    def _layer(self, index: int) -> Layer:
        if self.pattern:
            return self._of_letters(self.pattern[index])
        return self._of_blocks((self._attention(),), self._experts() if self.is_sparse(index) else self._dense())

    def _of_letters(self, letters: str) -> Layer:
        """A layer of these blocks: of a hybrid model's own layers one each."""
        return self._of_blocks(
            (self._attention(),) * letters.count(ATTENTION),
            self._experts() if EXPERTS in letters else self._dense() if DENSE in letters else None,
            self._state_space() if STATE_SPACE in letters else None,
        )

    def _of_blocks(
        self, attentions: tuple[Attention, ...], feed_forward: Mlp | Moe | None, state_space: StateSpace | None = None
    ) -> Layer:
        layer_norm = self.normalization == "LayerNorm"
        return Layer(
            attentions=attentions,
            state_space=state_space,
            feed_forward=feed_forward,
            norm="layer" if layer_norm else "rms",
            norm_bias=layer_norm,
        )

    def _state_space(self) -> StateSpace:
        heads = self.mamba_num_heads or 2 * self.hidden_size // self.mamba_head_dim
        return StateSpace(
            heads=heads, head_dim=self.mamba_head_dim, state_dim=self.mamba_state_dim, groups=self.mamba_num_groups
        )

    def _attention(self) -> Attention:
        heads = self.num_attention_heads
        return Attention(
            heads=heads,
            kv_heads=heads if self.multi_latent_attention else self.num_query_groups or heads,
            head_dim=self.qk_head_dim if self.multi_latent_attention else self.kv_channels or self.hidden_size // heads,
            causal=self.model == "gpt",
            bias_qkv=(self.add_bias_linear or self.add_qkv_bias) and not self.multi_latent_attention,
            bias_out=self.add_bias_linear,
            qk_norm="per_head" if self.qk_layernorm and not self.multi_latent_attention else "none",
            rotary=self.position_embedding_type in ("rope", "yarn") or self.multi_latent_attention,
            latent=self._latent() if self.multi_latent_attention else None,
            window=self.window_size,
        )

    def _latent(self) -> Latent:
        return Latent(
            q_rank=self.q_lora_rank,
            kv_rank=self.kv_lora_rank,
            rope_head_dim=self.qk_pos_emb_head_dim,
            value_head_dim=self.v_head_dim,
        )

    def _dense(self) -> Mlp:
        return Mlp(width=self.width, activation=self.activation, gated=self.swiglu, bias=self.add_bias_linear)

    def _experts(self) -> Moe:
        router: Router = "sigmoid_topk" if self.moe_router_score_function == "sigmoid" else "softmax_topk"
        return Moe(
            experts=self.num_experts,
            top_k=self.moe_router_topk,
            width=self.moe_ffn_hidden_size or self.width,
            activation=self.activation,
            gated=self.swiglu,
            bias=self.add_bias_linear,
            shared_width=self.moe_shared_expert_intermediate_size,
            shared_gate=self.moe_shared_expert_gate and self.moe_shared_expert_intermediate_size > 0,
            router=router,
            score_correction=self.moe_router_enable_expert_bias,
            capacity_factor=self.moe_expert_capacity_factor,
            latent_width=self.moe_latent_size,
        )


def layer_pattern(text: str) -> list[int]:
    """Which layers have experts, of an expression such as `([0]*1+[1]*26)`: nothing of it is run.

    Raises:
        ValueError: it is no sum of lists of 0 and 1.
    """
    if _SUM_OF_LISTS.fullmatch(text):
        try:
            found = _value(ast.parse(text.strip(), mode="eval").body)
        except (SyntaxError, TypeError):
            found = None
        if isinstance(found, list) and set(found) <= {0, 1} and found:
            return found
    raise ValueError(f"moe_layer_freq: found {text!r}; allowed: a number, or a sum of lists such as ([0]*1+[1]*26)")


_MOST_LAYERS = 10_000


def _value(node: ast.expr) -> Any:
    """Of sums of lists and products of these with numbers.

    Raises:
        TypeError: it is anything else, or of more layers than there are.
    """
    match node:
        case ast.Constant(value=int()):
            return node.value
        case ast.List():
            return [_value(element) for element in node.elts]
        case ast.BinOp(op=ast.Add()):
            return [*_list(node.left), *_list(node.right)]
        case ast.BinOp(op=ast.Mult(), left=left, right=ast.Constant(value=int(times))):
            some = _list(left)
            if len(some) * times <= _MOST_LAYERS:
                return some * times
    raise TypeError(ast.dump(node))


def _list(node: ast.expr) -> list[int]:
    found = _value(node)
    if not isinstance(found, list) or len(found) > _MOST_LAYERS:
        raise TypeError(ast.dump(node))
    return found
