"""Megatron Core's parameters from those of the torch backend, so that both train the same model.

A parameter here is a linear function of some of the torch backend's, which are asked for by their names in the whole
model (`torch_native.model`); so the same functions bring gradients back (`torch.autograd`).

| Megatron Core                   | of                                                                          |
| ------------------------------- | --------------------------------------------------------------------------- |
| linear_qkv [(H/G + 2) K G, D]   | q, k, v: of each group of queries, its queries, its key, its value          |
| linear_fc1 [2F, D]              | gate and up; of an expert `up_EDF`, turned                                  |
| linear_fc2 [D, F]               | down; of an expert `down_EFD`, turned                                       |
| other products, norms, tables   | the same                                                                    |

Tensor parallelism shards gate and up each.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moemodel.model.architecture.spec import Architecture, Attention, Layer, Moe
from moemodel.profiler.backends.torch_native.model import draw

# A parameter of the torch backend's whole model, by its name and shape.
Whole = Callable[[str, tuple[int, ...]], Tensor]


@dataclass(frozen=True, kw_only=True)
class RankPart:
    """What of each layer a rank holds.

    Attributes:
        tp, tp_rank: tensor parallelism, of all but experts.
        ep, ep_rank: expert parallelism.
    """

    tp: int = 1
    tp_rank: int = 0
    ep: int = 1
    ep_rank: int = 0

    def of(self, whole: Tensor, dim: int) -> Tensor:
        """Its part of what tensor parallelism shards."""
        return whole.chunk(self.tp, dim)[self.tp_rank]


def drawn(seed: int, *, tied: bool, device: torch.device, dtype: torch.dtype) -> Whole:
    """The torch backend's fresh weights. Of the last layer's experts all are kept, since they are asked for one by one.

    Args:
        seed: of the run.
        tied: see `torch_native.model.draw`.
        device: that draws them.
        dtype: of the parameters.
    """
    last: dict[str, Tensor] = {}

    def whole(name: str, shape: tuple[int, ...]) -> Tensor:
        if name in last:
            return last[name]
        fresh = torch.empty(shape, device=device, dtype=dtype)
        draw(fresh, name, seed, tied=tied)
        if ".experts." in name:
            last.pop(next((old for old in last if old.endswith(name.rpartition(".")[2])), ""), None)
            last[name] = fresh
        return fresh

    return whole


@torch.no_grad()
def fill(model: nn.Module, architecture: Architecture, share: RankPart, whole: Whole, *, first_layer: int = 0) -> None:
    """Fill the parameters of a GPTModel, or of one stage of it.

    Args:
        model: the GPTModel itself, in no wrapper.
        architecture: of the whole model.
        share: of this rank.
        whole: where the weights come from.
        first_layer: number of its first layer in the whole model.
    """
    for name, parameter in model.named_parameters():
        parameter.copy_(of_model(name, architecture, share, whole, first_layer=first_layer))


def of_model(name: str, architecture: Architecture, share: RankPart, whole: Whole, *, first_layer: int = 0) -> Tensor:
    """One parameter of a GPTModel.

    Args:
        name: in the model.
        architecture, share, whole, first_layer: see `fill`.
    """
    vocab, width, hidden = architecture.vocab, architecture.embedding_width, architecture.hidden
    if name == "embedding.word_embeddings.project.weight":
        return whole("project_in.weight", (hidden, width))
    if name == "output_layer.project.weight":
        return whole("project_out.weight", (width, hidden))
    if name == "embedding.word_embeddings.weight" or (name == "output_layer.weight" and architecture.tied):
        return share.of(whole("embedding_VW", (vocab, width)), 0)
    if name == "output_layer.weight":
        return share.of(whole("head_VW", (vocab, width)), 0)
    if name == "embedding.position_embeddings.weight":
        return whole("position_PD", (architecture.learned_positions, hidden))
    if name.startswith("decoder.final_layernorm."):
        return whole(f"norm.{name.rpartition('.')[2]}", (hidden,))
    _, _, number, inner = name.split(".", 3)
    layer = first_layer + int(number)
    return _of_layer(inner, architecture.decoder[layer], hidden, share, _below(whole, f"layers.{layer}."))


def _below(whole: Whole, prefix: str) -> Whole:
    return lambda name, shape: whole(prefix + name, shape)


def _of_layer(name: str, layer: Layer, hidden: int, share: RankPart, whole: Whole) -> Tensor:
    module, _, kind = name.rpartition(".")
    kind = kind.removeprefix("layer_norm_")  # Transformer Engine's products hold the norm before them
    is_norm = "layernorm" in module or name.rpartition(".")[2].startswith("layer_norm_")
    if is_norm and module.startswith(("input_layernorm", "self_attention.linear_qkv")):
        return whole(f"norms.0.{kind}", (hidden,))
    if is_norm and module.startswith(("pre_mlp_layernorm", "mlp.linear_fc1")):
        return whole(f"norms.1.{kind}", (hidden,))
    if module.startswith("self_attention."):
        (attention,) = layer.attentions
        return _of_attention(name, attention, hidden, share, _below(whole, "attentions.0."))
    return of_feed_forward(name.removeprefix("mlp."), layer, hidden, share, _below(whole, "feed_forward."))


def _of_attention(name: str, attention: Attention, hidden: int, share: RankPart, whole: Whole) -> Tensor:
    heads, groups, width = attention.heads, attention.kv_heads, attention.head_dim
    part, kind = name.split(".")[1], name.rpartition(".")[2]
    last = (hidden,) if kind == "weight" else ()
    if part == "linear_qkv":
        q = whole(f"q.{kind}", (heads * width, *last)).view(groups, heads // groups * width, *last)
        k, v = (whole(f"{x}.{kind}", (groups * width, *last)).view(groups, width, *last) for x in "kv")
        return share.of(torch.cat((q, k, v), dim=1).flatten(0, 1), 0)
    if part == "linear_proj":
        o = whole(f"o.{kind}", (hidden, heads * width) if kind == "weight" else (hidden,))
        return share.of(o, 1) if kind == "weight" else o
    over = heads if part == "q_layernorm" else groups
    return whole(f"{part[0]}_norm.weight", (width if attention.qk_norm == "per_head" else over * width,))


def of_feed_forward(name: str, layer: Layer, hidden: int, share: RankPart, whole: Whole) -> Tensor:
    """One parameter of a feed-forward block, by its name in the block; `whole` is asked for names in the block too."""
    block = layer.own_feed_forward
    kind = name.rpartition(".")[2]
    if not isinstance(block, Moe):
        return _of_dense(name, block.width, hidden, share, whole, gated=block.gated)
    if name.startswith("router."):
        return whole(f"router.{kind}", (block.experts, hidden))
    if name == "shared_experts.gate_weight":
        return whole("shared_gate.weight", (1, hidden))
    if name.startswith("shared_experts."):
        below = _below(whole, "shared.")
        return _of_dense(name.partition(".")[2], block.shared_width, hidden, share, below, gated=block.gated)
    return _of_expert(name, block, hidden, share, whole)


def _of_dense(name: str, width: int, hidden: int, share: RankPart, whole: Whole, *, gated: bool) -> Tensor:
    part, kind = name.split(".")[0], name.rpartition(".")[2]
    weight = kind == "weight"
    if part == "linear_fc2":
        down = whole(f"down.{kind}", (hidden, width) if weight else (hidden,))
        return share.of(down, 1) if weight else down
    shape = (width, hidden) if weight else (width,)
    names = ("gate", "up") if gated else ("up",)
    return torch.cat([share.of(whole(f"{which}.{kind}", shape), 0) for which in names])


def _of_expert(name: str, block: Moe, hidden: int, share: RankPart, whole: Whole) -> Tensor:
    """`experts.local_experts.3.linear_fc1.weight`, or Transformer Engine's `experts.linear_fc1.weight3`."""
    found = re.fullmatch(r"experts\.(?:local_experts\.(\d+)\.)?linear_fc([12])\.weight(\d*)", name)
    assert found is not None, name
    local = int(found[1] or found[3])
    number = share.ep_rank * (block.experts // share.ep) + local
    if found[2] == "2":
        return whole("experts.down_EFD", (block.experts, block.width, hidden))[number].t()
    halves = 2 if block.gated else 1
    return whole("experts.up_EDF", (block.experts, hidden, halves * block.width))[number].t()
