"""What configurations of decoders have in common: heads in groups, windows, norms, experts.

A family of configurations is a class: its fields are the keys that it reads, its class variables what all of its models
have, its methods what differs from layer to layer. Families of decoders stand in `dense_families`, `sparse_families`
and `latent_families`; which key of `model_type` means which family in `families`.

Sizes that fix the shape (vocabulary, widths, layers, heads, experts) have to be there, though `transformers` has
defaults for most of them: a file without them is more likely broken than meant. Other keys default as in `transformers`
5.24; each default stands beside its key.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

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
from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp, Moe, Norm, Router

QkNorm = Literal["none", "per_head", "full"]

_ENDLESS = 2**31
# What `layer_types` says of layers that this package doesn't model.
OTHER_LAYERS = {
    "linear_attention": "linear attention (gated DeltaNet, lightning attention)",
    "mamba": "Mamba (state-space) layers",
    "hybrid": "Mamba (state-space) layers beside attention",
    "conv": "short convolutions",
    "recurrent": "recurrent layers",
}
# `transformers` writes either name.
Experts = Annotated[Count, Field(validation_alias=AliasChoices("num_experts", "num_local_experts"))]
RoutedExperts = Annotated[
    Count, Field(validation_alias=AliasChoices("n_routed_experts", "num_experts", "num_local_experts"))
]


class Family(BaseModel):
    """What every configuration has. Keys that a family doesn't name are looked up in `keys`."""

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)
    ignored: ClassVar[frozenset[str]] = frozenset()  # keys that its files have, and that change nothing
    ends_in_vocabulary: ClassVar[bool] = False  # it has no other head, as its class in `architectures` may ask for

    @abstractmethod
    def architecture(self, name: str, source: str) -> Architecture:
        """The architecture that the configuration describes."""


class Decoder(Family):
    """The common ground of the decoders that are stacks of attention and feed-forward blocks.

    Class variables:
        norm, norm_bias, norm_scale, second_norm: as in `Layer`.
        mlp_gated: whether dense blocks have a gate.
    """

    norm: ClassVar[Norm] = "rms"
    norm_bias: ClassVar[bool] = False
    norm_scale: ClassVar[bool] = True
    second_norm: ClassVar[bool] = False
    mlp_gated: ClassVar[bool] = True

    vocab_size: Count
    hidden_size: Count
    num_hidden_layers: Layers
    num_attention_heads: Count
    hidden_act: ActivationName = Field(
        default="silu", validation_alias=AliasChoices("hidden_act", "hidden_activation", "activation_function")
    )
    max_position_embeddings: Count | None = None
    tie_word_embeddings: Flag = False
    attention_bias: Flag = False
    is_causal: Flag | None = None  # true
    use_bidirectional_attention: Flag | Literal["all", "vision"] | None = None  # vision: of images alone
    multi_token_modules: CountOrZero | None = Field(
        default=None,
        validation_alias=AliasChoices(
            "num_nextn_predict_layers", "num_mtp_modules", "num_mtp_layers", "mtp_num_layers", "mtp_num_hidden_layers"
        ),
    )
    use_mtp: Flag | None = None

    @model_validator(mode="after")
    def _activation_fits(self) -> Decoder:
        if self.hidden_act == "silu" and not self.mlp_gated:  # a file of another family, under this one's type
            reject(
                "hidden_act", "silu", "gelu, relu or relu2, since feed-forward blocks of this model_type have no gate"
            )
        return self

    @abstractmethod
    def attention(self, index: int) -> Attention:
        """The attention of a layer, counted from 0."""

    @abstractmethod
    def feed_forward(self, index: int) -> Mlp | Moe:
        """The feed-forward block of a layer, counted from 0."""

    def dense(self, width: int, *, bias: bool = False) -> Mlp:
        """A dense block of this family."""
        return Mlp(width=width, activation=self.hidden_act, gated=self.mlp_gated, bias=bias)

    @property
    def causal(self) -> bool:
        """Whether queries look at the tokens before them alone."""
        return self.is_causal is not False and self.use_bidirectional_attention not in (True, "all")

    @property
    def parallel(self) -> bool:
        """Whether one norm feeds attention and feed-forward block."""
        return False

    @property
    def head_bias(self) -> bool:
        """Biases of the vocabulary head."""
        return False

    def architecture(self, name: str, source: str) -> Architecture:
        """A stack of layers."""
        decoder = tuple(self.layer(index) for index in range(self.num_hidden_layers))
        modules = 0 if self.use_mtp is False else self.multi_token_modules or 0
        return Architecture(
            name=name,
            hidden=self.hidden_size,
            vocab=self.vocab_size,
            embedding_width=self.hidden_size,
            tied=self.tie_word_embeddings,
            decoder=decoder,
            head_bias=self.head_bias,
            max_seq=self.max_position_embeddings,
            source=source,
            notes=self.notes(decoder),
            multi_token=decoder[-1:] * modules,
        )

    def layer(self, index: int) -> Layer:
        """A layer, counted from 0."""
        return Layer(
            attentions=(self.attention(index),),
            feed_forward=self.feed_forward(index),
            norm=self.norm,
            norm_bias=self.norm_bias,
            norm_scale=self.norm_scale,
            second_norm=self.second_norm,
            parallel=self.parallel,
        )

    def notes(self, decoder: tuple[Layer, ...]) -> tuple[str, ...]:
        """What a reader has to know of these layers: windows and chunks, attention without a mask."""
        attentions = [attention for layer in decoder for attention in layer.attentions]
        found = []
        longest = self.max_position_embeddings or _ENDLESS
        for size, word in (("window", "a sliding window"), ("chunk", "attention in chunks")):
            sizes = Counter(getattr(attention, size) for attention in attentions)
            for tokens, layers in sizes.items():
                if tokens is None or tokens >= longest:
                    continue
                found.append(
                    f"{layers} of {len(decoder)} layers have {word} of {tokens} tokens: attention there is counted "
                    "within these, as FlashAttention runs it; a kernel that masks the rest takes as long as without."
                )
        if not self.causal:
            found.append(
                "Attention is not causal (is_causal, use_bidirectional_attention): pairs to both sides are counted."
            )
        return tuple(found)


class DenseFirst(Decoder):
    """A decoder whose first layers are dense, if any, and all others have experts."""

    first_k_dense_replace: CountOrZero = 0
    moe_layer_freq: Literal[1] = 1

    @model_validator(mode="after")
    def _dense_layers_fit(self) -> DenseFirst:
        require_at_most(
            "first_k_dense_replace", self.first_k_dense_replace, "num_hidden_layers", self.num_hidden_layers
        )
        return self

    def is_sparse(self, index: int) -> bool:
        """Dense first, then experts (arXiv:2412.19437, section 2.1.2)."""
        return index >= self.first_k_dense_replace


def experts_of(
    decoder: Decoder,
    *,
    experts: int,
    top_k: int,
    width: int,
    shared_width: int = 0,
    router: Router = "softmax_topk",
    score_correction: bool = False,
) -> Moe:
    """A block of experts of a family, each with a gate, dropless and without biases; keys as of `Moe`."""
    return Moe(
        experts=experts,
        top_k=top_k,
        width=width,
        activation=decoder.hidden_act,
        gated=True,
        shared_width=shared_width,
        router=router,
        score_correction=score_correction,
    )


class GroupedDecoder(Decoder):
    """A decoder whose heads share keys and values in groups, some or all layers of it with a window.

    A window is on in layers that `layer_types` calls sliding_attention; where the file has no such list, in those that
    the family says (`is_windowed`).

    Class variables:
        windows_need_a_flag: no window unless `use_sliding_window` is true (Qwen).
        kinds: what `layer_types` may say of a layer.
    """

    windows_need_a_flag: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = ("full_attention", "sliding_attention")

    num_key_value_heads: Count | None
    head_dim: Count | None = None  # hidden_size over num_attention_heads
    sliding_window: CountOrZero | None = None
    use_sliding_window: Flag | None = None
    layer_types: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _heads_fit(self) -> GroupedDecoder:
        heads = self.num_attention_heads
        if self.head_dim is None:
            require_divides("num_attention_heads", heads, "hidden_size", self.hidden_size)
        require_divides("num_key_value_heads", self.num_key_value_heads or heads, "num_attention_heads", heads)
        return self

    @model_validator(mode="after")
    def _layer_types_fit(self) -> GroupedDecoder:
        if self.layer_types is None:
            return self
        for kind in self.layer_types:
            if kind in OTHER_LAYERS:
                raise ValueError(f"layer_types: found {kind!r}: {OTHER_LAYERS[kind]}, which this package doesn't model")
            if kind not in self.kinds:
                reject("layer_types", repr(kind), ", ".join(self.kinds))
        if len(self.layer_types) != self.num_hidden_layers:
            reject("layer_types", f"{len(self.layer_types)} of them", f"num_hidden_layers ({self.num_hidden_layers})")
        off = self.use_sliding_window is False or (self.windows_need_a_flag and not self.use_sliding_window)
        if "sliding_attention" in self.layer_types and not self.sliding_window and not off:
            reject("sliding_window", self.sliding_window, "a number of tokens, since layer_types has sliding_attention")
        return self

    def is_windowed(self, index: int) -> bool:  # noqa: ARG002 - families differ by it
        """Whether a layer has a window where the file has no `layer_types`."""
        return False

    def window(self, index: int) -> int | None:
        """Keys that a query of a layer sees, itself among them, or as many to each side (`Attention`); None: all."""
        if self.use_sliding_window is False or (self.windows_need_a_flag and not self.use_sliding_window):
            return None
        if self.layer_types is None:
            return (self.sliding_window or None) if self.is_windowed(index) else None
        return self.sliding_window if self.layer_types[index] == "sliding_attention" else None

    def chunk(self, index: int) -> int | None:  # noqa: ARG002 - families differ by it
        """Tokens of the chunks that a layer's attention stays in; None: no chunks."""
        return None

    @property
    def qk_norm(self) -> QkNorm:
        """Norm of queries and keys."""
        return "none"

    @property
    def bias_qkv(self) -> bool:
        """Biases of queries, keys and values."""
        return self.attention_bias

    @property
    def bias_out(self) -> bool:
        """Biases of the output."""
        return self.attention_bias

    def attention(self, index: int) -> Attention:
        """Grouped-query attention."""
        return Attention(
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads or self.num_attention_heads,
            head_dim=self.head_dim or self.hidden_size // self.num_attention_heads,
            causal=self.causal,
            bias_qkv=self.bias_qkv,
            bias_out=self.bias_out,
            qk_norm=self.qk_norm,
            window=self.window(index),
            chunk=self.chunk(index),
        )

    def notes(self, decoder: tuple[Layer, ...]) -> tuple[str, ...]:
        """Also: a window that this family doesn't have."""
        found = super().notes(decoder)
        windows = any(layer.attentions[0].window for layer in decoder)
        if not self.sliding_window or windows or self.layer_types is not None or self.use_sliding_window is False:
            return found
        if self.windows_need_a_flag and self.use_sliding_window is None:
            return found
        return (
            *found,
            f"sliding_window {self.sliding_window}: no layer of this model_type has a window in transformers, so that "
            "attention is counted as full. If yours have one, list it in layer_types.",
        )


class SparseDecoder(GroupedDecoder):
    """A decoder with routed experts.

    Class variables:
        router, score_correction: as in `Moe`.
        shared_gate: the shared experts have a gate (Qwen 2).
    """

    router: ClassVar[Router] = "softmax_topk"
    score_correction: ClassVar[bool] = False
    shared_gate: ClassVar[bool] = False

    num_experts: Experts
    num_experts_per_tok: Count = Field(
        validation_alias=AliasChoices("num_experts_per_tok", "num_experts_per_token", "experts_per_token")
    )

    @model_validator(mode="after")
    def _experts_fit(self) -> SparseDecoder:
        require_at_most("num_experts_per_tok", self.num_experts_per_tok, "num_experts", self.num_experts)
        return self

    @property
    def router_bias(self) -> bool:
        """A bias of each expert's score."""
        return False

    def sparse(self, width: int, *, shared_width: int = 0, bias: bool = False) -> Moe:
        """A block of experts of this family, dropless."""
        block = experts_of(
            self,
            experts=self.num_experts,
            top_k=self.num_experts_per_tok,
            width=width,
            shared_width=shared_width,
            router=self.router,
            score_correction=self.score_correction,
        )
        shared_gate = self.shared_gate and shared_width > 0
        return replace(block, bias=bias, shared_gate=shared_gate, router_bias=self.router_bias)
