"""How many parameters an architecture holds, per component and layer, and which of them a token meets.

Counted as the published checkpoints are: every weight and bias, the token embedding once where the head shares it.
Sums were checked against the models that `transformers` 5.23 builds from the same configurations.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from moemodel.model.architecture.spec import Architecture, Attention, Latent, Layer, Mlp, Moe


@dataclass(frozen=True, kw_only=True)
class LayerParameters:
    """Parameters of one layer. How a plan may split them is said for each.

    Attributes:
        attention: products and biases of all attentions, split over heads by tensor parallelism.
        latent: low-rank down-projections of queries, keys and values, the same on every tensor-parallel rank.
        norms: of the layer and of queries and keys, the same on every rank.
        feed_forward: a dense block, split over its width by tensor parallelism.
        router: scores, and the gate of the shared experts; the same on every rank.
        shared_experts: experts that every token passes, split like a dense block.
        expert: one routed expert.
        experts: how many routed experts there are, split over ranks by expert parallelism.
        top_k: how many of them one token passes.
    """

    attention: int = 0
    latent: int = 0
    norms: int = 0
    feed_forward: int = 0
    router: int = 0
    shared_experts: int = 0
    expert: int = 0
    experts: int = 0
    top_k: int = 0

    @property
    def routed(self) -> int:
        """All routed experts."""
        return self.expert * self.experts

    @property
    def non_expert(self) -> int:
        """All but the routed experts."""
        return self.attention + self.latent + self.norms + self.feed_forward + self.router + self.shared_experts

    @property
    def total(self) -> int:
        """All parameters of the layer."""
        return self.non_expert + self.routed

    @property
    def active(self) -> int:
        """Those that one token passes: `top_k` of the routed experts and everything else."""
        return self.non_expert + self.expert * self.top_k


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Parameters of an architecture.

    Attributes:
        embedding: the token embedding.
        positions: learned position embedding.
        projections: between the embedding's width and the model's, where they differ (OPT-350M): in and out.
        layers: one entry a layer, the encoder's first, as `Architecture.layers`.
        final_norms: the norm after each stack.
        head: the output head; 0 where it shares the embedding.
    """

    embedding: int
    positions: int
    projections: int
    layers: tuple[LayerParameters, ...]
    final_norms: int
    head: int

    @property
    def outside_layers(self) -> int:
        """All that belongs to no layer."""
        return self.embedding + self.positions + self.projections + self.final_norms + self.head

    @property
    def expert(self) -> int:
        """All routed experts of all layers."""
        return sum(layer.routed for layer in self.layers)

    @property
    def non_expert(self) -> int:
        """All but the routed experts."""
        return self.total - self.expert

    @property
    def total(self) -> int:
        """All parameters."""
        return self.outside_layers + sum(layer.total for layer in self.layers)

    @property
    def active(self) -> int:
        """Parameters active for one token: the total less the routed experts that it does not pass.

        Embedding and head count in full, as OLMoE (arXiv:2409.02060, 1.28 B) and Mixtral (arXiv:2401.04088, 12.9 B)
        count. DeepSeek-V3's 36.7 B leaves one of the two out, and published figures are often cut, not rounded, to two
        digits (Qwen3-30B-A3B says 3.3 B for 3.35 B).
        """
        return self.outside_layers + sum(layer.active for layer in self.layers)

    def by_component(self) -> dict[str, int]:
        """Parameters of each component over the whole model, in reading order; they add up to `total`."""
        components = {
            name: sum(getattr(layer, name) for layer in self.layers)
            for name in (field.name for field in fields(LayerParameters))
            if name not in ("expert", "experts", "top_k")
        }
        return {
            "embedding": self.embedding,
            "positions": self.positions,
            "projections": self.projections,
            **components,
            "experts": self.expert,
            "final_norms": self.final_norms,
            "head": self.head,
        }


def parameters(architecture: Architecture) -> Parameters:
    """Count the parameters of an architecture."""
    hidden, width, vocab = architecture.hidden, architecture.embedding_width, architecture.vocab
    projects = vocab > 0 and width != hidden
    sides = 2 if architecture.has_head else 1
    stacks = [stack for stack in (architecture.encoder, architecture.decoder) if stack]
    return Parameters(
        embedding=vocab * width,
        positions=architecture.learned_positions * hidden,
        projections=sides * width * hidden if projects else 0,
        layers=tuple(layer_parameters(layer, hidden) for layer in architecture.layers),
        final_norms=sum(norm_parameters(stack[-1], hidden) for stack in stacks) if architecture.final_norm else 0,
        head=vocab * width if architecture.has_head and not architecture.tied else 0,
    )


def layer_parameters(layer: Layer, hidden: int) -> LayerParameters:
    """Count the parameters of a layer in a model of width `hidden`."""
    attentions, block = layer.attentions, layer.feed_forward
    norms = (len(attentions) + 1) * norm_parameters(layer, hidden) + sum(map(attention_norm_parameters, attentions))
    return LayerParameters(
        attention=sum(attention_parameters(attention, hidden) for attention in attentions),
        latent=sum(latent_parameters(attention, hidden) for attention in attentions),
        norms=norms,
        feed_forward=mlp_parameters(block, hidden) if isinstance(block, Mlp) else 0,
        router=router_parameters(block, hidden) if isinstance(block, Moe) else 0,
        shared_experts=shared_parameters(block, hidden) if isinstance(block, Moe) else 0,
        expert=mlp_parameters(block, hidden) if isinstance(block, Moe) else 0,
        experts=block.experts if isinstance(block, Moe) else 0,
        top_k=block.top_k if isinstance(block, Moe) else 0,
    )


def parameter_tensors(layer: Layer) -> int:
    """How many tensors hold the parameters of a layer where queries, keys, values, gate and up-projection are apart."""
    norms = (len(layer.attentions) + 1) * (0 if layer.norm is None else 1 + layer.norm_bias)
    attention = sum(
        4 + 3 * a.bias_qkv + a.bias_out + 2 * (a.qk_norm != "none") + 3 * (a.latent is not None)
        for a in layer.attentions
    )
    block = layer.feed_forward
    one_each = 1 + block.bias
    if isinstance(block, Mlp):
        return norms + attention + (block.depth + 1 + block.gated) * one_each
    shared = (2 + block.gated) * (block.shared_width > 0) + block.shared_gate
    return norms + attention + 1 + (block.depth + 1) * one_each + shared


def norm_parameters(layer: Layer, hidden: int) -> int:
    """One norm of a layer: a scale, and a shift where it has one."""
    if layer.norm is None:
        return 0
    return hidden * (2 if layer.norm_bias else 1)


def attention_parameters(attention: Attention, hidden: int) -> int:
    """Products and biases of queries, keys, values and output, and relative position biases.

    With h heads of d (g of them for keys and values) in a model of width H: H(h d) + 2 H(g d) + (h d) H.
    """
    if attention.latent is not None:
        return _latent_heads(attention, attention.latent, hidden)
    queries, keys = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    products = hidden * (queries + 2 * keys) + queries * hidden
    biases = (queries + 2 * keys if attention.bias_qkv else 0) + (hidden if attention.bias_out else 0)
    return products + biases + attention.relative_buckets * attention.heads


def _latent_heads(attention: Attention, latent: Latent, hidden: int) -> int:
    """Up-projections and output of multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, appendix C)."""
    query_inputs = hidden if latent.q_rank is None else latent.q_rank
    queries = query_inputs * attention.heads * (attention.head_dim + latent.rope_head_dim)
    keys_values = latent.kv_rank * attention.heads * (attention.head_dim + latent.value_head_dim)
    output = attention.heads * latent.value_head_dim * hidden + (hidden if attention.bias_out else 0)
    return queries + keys_values + output


def latent_parameters(attention: Attention, hidden: int) -> int:
    """Down-projections of multi-head latent attention: of queries, and of keys and values with the rotary key."""
    latent = attention.latent
    if latent is None:
        return 0
    outputs = (latent.q_rank or 0) + latent.kv_rank + latent.rope_head_dim
    return hidden * outputs + (outputs if attention.bias_qkv else 0)


def attention_norm_parameters(attention: Attention) -> int:
    """Norms inside an attention: of queries and keys, or of their latents."""
    if attention.latent is not None:
        return (attention.latent.q_rank or 0) + attention.latent.kv_rank
    match attention.qk_norm:
        case "none":
            return 0
        case "per_head":
            return 2 * attention.head_dim
        case "full":
            return (attention.heads + attention.kv_heads) * attention.head_dim


def mlp_parameters(block: Mlp | Moe, hidden: int) -> int:
    """A dense block, or one routed expert: all its products, and biases where it has them."""
    matrices = mlp_products(block, hidden)
    return sum(inputs * outputs + (outputs if block.bias else 0) for inputs, outputs in matrices)


def mlp_products(block: Mlp | Moe, hidden: int) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) of each product of a dense block or of one routed expert, in order.

    A gate and its up-projection count as one product of twice the width, as kernels run them.
    """
    first = (hidden, block.width * (2 if block.gated else 1))
    last = (block.width, hidden if block.out_width is None else block.out_width)
    return (first, *[(block.width, block.width)] * (block.depth - 1), last)


def router_parameters(block: Moe, hidden: int) -> int:
    """Scores of the experts, their biases or corrections, and the gate of the shared experts."""
    return block.experts * (hidden + (1 if block.router_bias else 0)) + (hidden if block.shared_gate else 0)


def shared_parameters(block: Moe, hidden: int) -> int:
    """The experts that every token passes."""
    if block.shared_width == 0:
        return 0
    shared = Mlp(width=block.shared_width, activation=block.activation, gated=block.gated, bias=block.bias)
    return mlp_parameters(shared, hidden)
