"""The shape of a model: layers of attention and feed-forward blocks. What they hold and do is in `layers`.

An architecture knows nothing of GPUs or plans. It is read from a Hugging Face `config.json`, see
`architecture.hf_config`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

Activation = Literal["gelu", "relu", "relu2", "silu"]
Norm = Literal["rms", "layer"]
Router = Literal["softmax_topk", "noisy_topk", "expert_choice", "switch_top1", "sigmoid_topk", "gshard_top2"]


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Low-rank queries, keys and values (multi-head latent attention, DeepSeek-V2, section 2.1)."""

    q_rank: int | None
    kv_rank: int
    rope_head_dim: int
    value_head_dim: int


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Attention of one layer; `cross` attends to the encoder's output.

    A causal query looks at all tokens up to its own; with a `window`, at the last so many of these, its own among them;
    with a `chunk`, at those of its own chunk of so many tokens. One that is not causal looks at all; with a `window`,
    at so many to each side.
    """

    heads: int
    kv_heads: int
    head_dim: int  # of queries and keys without the rotary part that `latent` adds
    value_head_dim: int | None = None  # of values, where it isn't `head_dim`; `latent` has its own
    causal: bool = True
    cross: bool = False
    bias_qkv: bool = False
    bias_out: bool = False
    qk_norm: Literal["none", "per_head", "full"] = "none"
    rotary: bool = True
    relative_buckets: int = 0  # learned relative position biases, buckets x heads, in the first layer of a stack
    latent: Latent | None = None
    window: int | None = None
    chunk: int | None = None
    sinks: bool = False  # a learned score per head that no key has (gpt-oss)
    scaled_rotary: bool = False  # what is turned is scaled, too (YaRN, Peng et al. 2023, section 3.4)


@dataclass(frozen=True, kw_only=True)
class StateSpace:
    """A Mamba-2 mixer (Dao and Gu 2024): a gate, inputs, B, C and steps from one product, a short causal convolution of
    inputs, B and C, the scan of every head over its state, chunk by chunk, a norm of each group, a product back.

    Attributes:
        heads, head_dim: of the inputs; their product is the inner width.
        state_dim: of a head's state, width of B and C.
        groups: of heads, each of which shares its B and C.
        kernel: tokens that the convolution sees.
        chunk: tokens that a kernel of the scan takes at once.
        bias: of either product; `conv_bias` of the convolution.
    """

    heads: int
    head_dim: int
    state_dim: int
    groups: int
    kernel: int = 4
    chunk: int = 128
    bias: bool = False
    conv_bias: bool = True

    @property
    def width(self) -> int:
        """Of all heads together."""
        return self.heads * self.head_dim

    @property
    def convolved(self) -> int:
        """Features that pass the convolution: inputs, B and C."""
        return self.width + 2 * self.groups * self.state_dim


@dataclass(frozen=True, kw_only=True)
class Mlp:
    """A dense feed-forward block."""

    width: int
    activation: Activation
    gated: bool
    bias: bool = False
    depth: int = 1  # hidden layers of `width`; transformers have one, the plain MLPs of the crossover study several
    out_width: int | None = None  # of the output; None: the model's width


@dataclass(frozen=True, kw_only=True)
class Moe:
    """A Mixture-of-Experts feed-forward block: `top_k` of `experts` for each token, plus shared ones."""

    experts: int
    top_k: int
    width: int  # of one expert
    activation: Activation
    gated: bool
    bias: bool = False
    clamped: bool = False  # gate and up-projection are kept within bounds before they are activated (gpt-oss)
    shared_width: int = 0  # total width of the experts that every token passes
    shared_gate: bool = False
    router: Router = "softmax_topk"
    router_bias: bool = False  # of each expert's score
    score_correction: bool = False  # added to scores by a rule that balances loads, no gradient: not a parameter
    capacity_factor: float | None = None  # None: dropless
    residual: bool = False  # a dense block as wide as an expert beside them (Rajbhandari et al. 2022, section 4.1.2)
    groups: int = 1  # of experts, of which a token's lie in the best `top_groups` (DeepSeek-V3, section 2.1.2)
    top_groups: int = 1
    depth: int = 1  # hidden layers of one expert, as in `Mlp`
    latent_width: int | None = None  # of what experts read and give, between two products that all share; None: hidden
    out_width: int | None = None  # of the output; None: the model's width


@dataclass(frozen=True, kw_only=True)
class MultiToken:
    """Ends of a module of multi-token prediction around its layer (DeepSeek-V3, section 2.2): hidden states and the
    next token's embedding, a norm of each, the product of both before it; final norm, head and loss behind it.
    Embedding and head are the model's.

    Attributes:
        vocab: rows of the embedding, outputs of the head.
    """

    vocab: int


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer: its attentions in order (none in a plain MLP), its state space, its feed-forward block, its norms.

    One norm (`norm`) before or after each block, each with a residual around it; a layer whose `norm` is None has
    neither norms nor residuals (a plain MLP). Layers of hybrid models are of one block each.

    Attributes:
        attentions, state_space, feed_forward: its blocks, in this order.
        multi_token: ends of a module of multi-token prediction, where the layer is one's; counted behind its blocks.
        norm, norm_bias, norm_scale: kind of the norms; whether they have a learned shift, and a learned scale.
        post_norm: a norm comes behind the sum of its block and the residual (OPT-350M), not before the block.
        second_norm: one before and one behind each block (Gemma 2).
        parallel: one norm feeds all blocks (GPT-J). Counted as if these ran one after another.
    """

    attentions: tuple[Attention, ...]
    feed_forward: Mlp | Moe | None
    norm: Norm | None
    state_space: StateSpace | None = None
    multi_token: MultiToken | None = None
    norm_bias: bool = False
    norm_scale: bool = True
    post_norm: bool = False
    second_norm: bool = False
    parallel: bool = False

    @property
    def own_feed_forward(self) -> Mlp | Moe:
        """Its feed-forward block, where all layers are known to have one.

        Raises:
            ValueError: it has none.
        """
        if self.feed_forward is None:
            raise ValueError("a layer without a feed-forward block")
        return self.feed_forward

    @property
    def blocks(self) -> tuple[Attention | StateSpace | Mlp | Moe | MultiToken, ...]:
        """All of its blocks, in order."""
        last = (block for block in (self.state_space, self.feed_forward, self.multi_token) if block is not None)
        return (*self.attentions, *last)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A model: a stack of layers (an encoder's first, if any), embeddings and head.

    Attributes:
        name: what the user calls it.
        hidden: model width.
        vocab: rows of the token embedding, as the model file has them (no padding).
        embedding_width: width of the token embedding; differs from `hidden` where the model projects (OPT-350M).
        tied: the output head shares the token embedding.
        has_head: the model ends in a head (a plain MLP or a bare encoder of text does not).
        classes: outputs of a classification head in the vocabulary's place, for each token; 0: a vocabulary head.
        head_bias: biases of the head.
        embedding_norm: a norm after the token embedding (BLOOM).
        encoder: layers of the encoder, in order; empty for a decoder-only model.
        decoder: layers of the decoder, in order.
        learned_positions: rows of a learned position embedding, 0 if none.
        final_norm: a norm after the last layer (of each stack).
        max_seq: longest sequence the configuration states, if it does.
        source: where the configuration comes from.
        notes: what a reader of counts and predictions has to know: what of the configuration isn't in them.
        multi_token: layers of multi-token-prediction modules that the configuration states, and that are not trained.
    """

    name: str
    hidden: int
    vocab: int
    embedding_width: int
    tied: bool
    decoder: tuple[Layer, ...]
    encoder: tuple[Layer, ...] = ()
    has_head: bool = True
    classes: int = 0
    head_bias: bool = False
    embedding_norm: bool = False
    learned_positions: int = 0
    final_norm: bool = True
    max_seq: int | None = None
    source: str = ""
    notes: tuple[str, ...] = ()
    multi_token: tuple[Layer, ...] = ()

    @property
    def head_outputs(self) -> int:
        """Width of what the head gives for a token; 0 without a head."""
        return (self.classes or self.vocab) if self.has_head else 0

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, the encoder's first, those of modules of multi-token prediction that are trained last."""
        return self.encoder + self.decoder

    @cached_property
    def modules(self) -> int:
        """Modules of multi-token prediction that are trained."""
        return sum(layer.multi_token is not None for layer in self.decoder)

    @cached_property
    def has_experts(self) -> bool:
        """Whether any of its layers has."""
        return any(isinstance(layer.feed_forward, Moe) for layer in self.layers)

    def with_modules(self) -> Architecture:
        """The same with the modules trained that its configuration states."""
        ends = MultiToken(vocab=self.vocab)
        modules = tuple(replace(layer, multi_token=ends) for layer in self.multi_token)
        return replace(self, decoder=self.decoder + modules, multi_token=())
