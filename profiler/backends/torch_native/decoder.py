"""A decoder as a PyTorch module, whole or a part of it.

Shapes: as in `model`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import InputError
from moemodel.profiler.backends.torch_native import operators as torch_ops
from moemodel.profiler.backends.torch_native.attention import Positions
from moemodel.profiler.backends.torch_native.blocks import Norm
from moemodel.profiler.backends.torch_native.layer import Making, ModelLayer
from moemodel.profiler.backends.torch_native.router_passes import RoutingPass, mixtures

_ROTARY_THETA = 10_000.0  # any base costs the same


@dataclass(frozen=True, kw_only=True)
class Span:
    """Consecutive layers of a model, `first` to before `stop`, and which ends come with them."""

    first: int
    stop: int
    embedding: bool
    head: bool


class DecoderModel(nn.Module):
    """Token and target ids [B, S] in, mean loss out. Build it with `model.build_model`.

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
        self._head_scale = 1.0
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
        if self._head_scale != 1.0:
            x_TD = x_TD * self._head_scale
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
        return [
            (number, list(block.records))  # type: ignore[arg-type]
            for number, _, layer in self.numbered_layers()
            for _, block in mixtures(layer)
        ]

    def numbered_layers(self) -> list[tuple[int, str, ModelLayer]]:
        """The layers that are there: number in `Architecture.layers`, name in the whole model, module."""
        first = self.span.first + len(self.architecture.encoder)
        found = [layer for layer in self.layers if isinstance(layer, ModelLayer)]
        return [(first + i, f"layers.{self.span.first + i}", layer) for i, layer in enumerate(found)]

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
