"""A decoder-only architecture as a PyTorch module, built of the operators in `operators`.

What the profiler times operator by operator is what this model runs, so a prediction can be checked against it.
Choices that a prediction has to share:

- Norms come first in a layer (pre-norm), whatever the original did: the operators are the same.
- Queries, keys, values and output are four products. Gate and up-projection are two in a dense block and one of
  width 2F in experts, of which `swiglu` reads the two halves in place.
- Learned positions are looked up for every token, as Hugging Face's models do.
- Activations between blocks are [T, D]. The head's logits are in the model's precision, the loss in float32.
- Routers have no loss unless a plan asks for one; the load is measured, not assumed.
- Weights depend on a seed and on each parameter's name alone, so that whoever holds a part of the model can draw it.

A rank of several builds the same modules for what it holds: some of the layers (`Span`), and of these a part
(`ShardingStrategy`).

Recompute. `full`: a layer keeps its input and runs again in the backward pass. `selective`: so it does, but for every
other product and the core of attention, whose outputs it keeps (torchtitan's `selective_ac_option: op`).

Shapes: T tokens (batch x seq), D hidden, B batch, H heads, G key/value heads, S seq, K head_dim, E experts, k experts
per token, F width, R = T k rows, V vocabulary, W embedding width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.core.errors import InputError
from moemodel.profiler.backends.torch_native import operators as torch_ops
from moemodel.profiler.backends.torch_native.blocks import Norm, Positions
from moemodel.profiler.backends.torch_native.layer import Making, ModelLayer
from moemodel.profiler.backends.torch_native.mixture import reference_shapes
from moemodel.profiler.backends.torch_native.router_passes import RoutingPass, mixtures
from moemodel.profiler.backends.torch_native.supported_models import check_routing, check_supported

_INIT_STD = 0.02  # GPT-2 (Radford et al. 2019) and most models since
_ROTARY_THETA = 10_000.0  # any base costs the same


@dataclass(frozen=True, kw_only=True)
class Span:
    """Consecutive layers of a model, `first` to before `stop`, and which ends come with them."""

    first: int
    stop: int
    embedding: bool
    head: bool


class DecoderModel(nn.Module):
    """Token and target ids [B, S] in, mean loss out. Build it with `build_model`.

    Args:
        architecture: decoder-only.
        making: how its layers are made.
        span: the layers and ends that are there; None: all of them. Without both ends there is no `forward`: call
            `embed`, `run_layers` and `loss`.
    """

    def __init__(self, architecture: Architecture, making: Making, *, span: Span | None = None) -> None:
        super().__init__()
        self.architecture, self.making = architecture, making
        self._sharding, self._passes = making.sharding, making.passes
        self.span = span or Span(first=0, stop=len(architecture.decoder), embedding=True, head=True)
        first, last = self.span.embedding, self.span.head
        width, hidden = architecture.embedding_width, architecture.hidden
        vocab, projected = making.sharding.vocabulary(architecture.vocab), architecture.embedding_width != hidden
        top = architecture.decoder[-1]
        assert top.norm is not None
        tied_head = last and architecture.tied
        self.embedding_VW = nn.Parameter(torch.empty(vocab, width)) if first or tied_head else None
        rows = architecture.learned_positions if first else 0
        self.position_PD = nn.Parameter(torch.empty(rows, hidden)) if rows else None
        self.project_in = nn.Linear(width, hidden, bias=False) if first and projected else None
        self.project_out = nn.Linear(hidden, width, bias=False) if last and projected else None
        held = architecture.decoder[self.span.first : self.span.stop]
        self.layers = nn.ModuleList(ModelLayer(layer, hidden, making) for layer in held)
        self.norm = Norm(hidden, kind=top.norm, bias=top.norm_bias) if last and architecture.final_norm else None
        self.head_VW = nn.Parameter(torch.empty(vocab, width)) if last and not architecture.tied else None
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def forward(self, tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
        batch, seq = tokens_BS.shape
        return self.loss(self.run_layers(self.embed(tokens_BS), batch, seq), targets_BS)

    def embed(self, tokens_BS: Tensor) -> Tensor:
        """Token ids to the first layer's input.

        Raises:
            InputError: there are fewer learned positions than tokens in a sequence.
        """
        assert self.embedding_VW is not None
        rows, seq = self.architecture.learned_positions, tokens_BS.shape[1]
        if rows and seq > rows:
            raise InputError(
                f"sequence_length {seq}: {self.architecture.name} has {rows} learned positions; allowed: at most that"
            )
        x = self._sharding.embed(tokens_BS, self.embedding_VW)
        if self.project_in is not None:
            x = self.project_in(x)
        if self.position_PD is not None:
            position_BS = torch.arange(seq, device=tokens_BS.device).expand_as(tokens_BS)
            x = x + functional.embedding(self._sharding.own_rows(position_BS), self.position_PD)
        return x.flatten(0, -2)

    def run_layers(self, x_TD: Tensor, batch: int, seq: int) -> Tensor:
        """The layers that are there; `x_TD` holds that many sequences of that many tokens."""
        positions = self._positions(batch, seq, x_TD)
        for layer in self.layers:
            x_TD = layer(x_TD, positions)
        return x_TD

    def loss(self, x_TD: Tensor, targets_BS: Tensor) -> Tensor:
        """Mean loss, from the last layer's output."""
        if self.norm is not None:
            x_TD = self.norm(x_TD)
        x_TW = x_TD if self.project_out is None else self.project_out(x_TD)
        head_VW = self.embedding_VW if self.head_VW is None else self.head_VW
        assert head_VW is not None
        return self._sharding.loss(x_TW, head_VW, targets_BS.reshape(-1))

    def expert_loads(self) -> list[Tensor]:
        """Rows of each expert [E], one tensor a MoE layer and forward pass since they were cleared."""
        return [record.counts_E for _, passes in self.routing_passes() for record in passes]

    def clear_expert_loads(self) -> None:
        """Forget the loads counted so far."""
        for _, block in mixtures(self):
            block.records.clear()  # type: ignore[union-attr,operator]  # a deque

    def routing_passes(self) -> list[tuple[int, list[RoutingPass]]]:
        """What the routers did since they were cleared: number of each layer that has one, and its forward passes."""
        first = self.span.first
        return [
            (first + i, list(block.records))  # type: ignore[arg-type]
            for i, layer in enumerate(self.layers)
            for _, block in mixtures(layer)
        ]

    def record_entropies(self, wanted: bool) -> None:
        """Whether routers record from now on what costs something to know: the entropy of their probabilities."""
        for _, block in mixtures(self):
            block.recording = wanted  # type: ignore[assignment]  # of blocks that know it

    def router_loss(self) -> Tensor | None:
        """What routers added to the loss: their losses times their coefficients, summed over layers.

        The mean over the last step's passes, as far as they were not cleared; None without any. It has no gradient, and
        nobody adds it to the loss: layers attach their routers' losses to the backward pass themselves.
        """
        recent = [passes[-self._passes :] for _, passes in self.routing_passes()]
        means = [
            torch.stack([p.router_loss.float() for p in passes if p.router_loss is not None]).mean()
            for passes in recent
            if any(p.router_loss is not None for p in passes)
        ]
        return torch.stack(means).sum() if means else None

    def _positions(self, batch: int, seq: int, like: Tensor) -> Positions:
        attentions = [attention for layer in self.architecture.decoder for attention in layer.attentions]
        widths = {attention.head_dim for attention in attentions if attention.rotary}
        return Positions(batch, seq, {width: self._table(seq, width, like) for width in widths})

    def _table(self, seq: int, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary tables, computed once for each length and head width."""
        if (seq, head_dim) not in self._tables:
            cos_Sh, sin_Sh = torch_ops.rotary_tables(seq, head_dim, _ROTARY_THETA, like.device, like.dtype)
            self._tables[seq, head_dim] = cos_Sh.unsqueeze(1), sin_Sh.unsqueeze(1)
        return self._tables[seq, head_dim]


def build_model(
    architecture: Architecture,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    making: Making | None = None,
    seed: int = 0,
) -> DecoderModel:
    """A model with fresh weights; see `draw`.

    Args:
        architecture: decoder-only.
        device: where its parameters are allocated; never on the host first.
        dtype: of parameters and activations.
        making: how its layers are made; None: without recompute, by the routers of the architecture.
        seed: of the weights.

    Raises:
        InputError: the architecture has a part that this backend does not run.
    """
    making = making or Making()
    check_supported(architecture)
    check_routing(architecture, making.routing)
    with torch.device("meta"):
        model = DecoderModel(architecture, making)
    model = model.to(dtype=dtype).to_empty(device=device)
    initialise(model, seed)
    return model


@torch.no_grad()
def initialise(model: DecoderModel, seed: int) -> None:
    """Fill every parameter of a model that is whole.

    A block of another framework gets the weights that `Mixture` would have.
    """
    for name, parameter in model.named_parameters():
        draw(parameter, name, seed, tied=model.architecture.tied)
    for i, layer in enumerate(model.layers):
        foreign = getattr(layer.feed_forward, "load_reference", None)
        if foreign is not None:
            foreign(*reference_weights(model, i, seed))


def reference_weights(model: DecoderModel, index: int, seed: int) -> list[Tensor]:
    """Weights of a Mixture-of-Experts block as `Mixture` has them: router [E, D], up [E, D, F or 2F], down [E, F, D].

    Args:
        model: on the device that the weights shall be on, in their precision.
        index: of the layer in `model.layers`.
        seed: of the model.
    """
    number = index + model.span.first
    block = model.architecture.decoder[number].feed_forward
    assert isinstance(block, Moe)
    like = next(model.parameters())
    weights = []
    for name, shape in reference_shapes(block, model.architecture.hidden).items():
        weights.append(torch.empty(shape, dtype=like.dtype, device=like.device))
        draw(weights[-1], f"layers.{number}.feed_forward.{name}", seed, tied=False)
    return weights


@torch.no_grad()
def draw(parameter: Tensor, name: str, seed: int, *, tied: bool) -> None:
    """Fill a parameter: matrices normal with deviation 0.02, norms one, biases zero.

    The values depend on the seed, the name and the shape, and on no other parameter.

    An embedding of its own (not the head's as well) gets unit variance, PyTorch's default: beside it the first
    layers' output, much the same for every token, is small, so that tokens differ where routers see them. With a small
    one, a router sends every token to the same experts.

    Args:
        parameter: whole, in its own precision.
        name: in the whole model.
        seed: of the model.
        tied: whether the embedding is the head's as well.
    """
    if parameter.dim() > 1:
        digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=7).digest()  # a seed has less than 64 bits
        generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest))
        std = 1.0 if name == "embedding_VW" and not tied else _INIT_STD
        nn.init.normal_(parameter, std=std, generator=generator)
    elif name.endswith("bias"):
        nn.init.zeros_(parameter)
    else:
        nn.init.ones_(parameter)
