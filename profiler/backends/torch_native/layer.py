"""One layer: attentions and a feed-forward block, each behind a norm and beside a residual, with or without recompute.

Shapes: as in `model`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from moemodel.model.architecture.spec import Layer, Mlp, Moe
from moemodel.model.plan.recompute import RecomputeName
from moemodel.model.plan.routing import RoutingSpec
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.torch_native.attention import AttentionBlock, Positions
from moemodel.profiler.backends.torch_native.blocks import DenseBlock, Norm
from moemodel.profiler.backends.torch_native.mixture import Mixture, MixtureFactory
from moemodel.profiler.backends.torch_native.router_passes import settle
from moemodel.profiler.backends.torch_native.routers import RANDOM_ROUTERS
from moemodel.profiler.backends.torch_native.selective import keep_some
from moemodel.profiler.backends.torch_native.strategy import WHOLE, ShardingStrategy


@dataclass(frozen=True, kw_only=True)
class Making:
    """How the layers of a model are made.

    Attributes:
        recompute: see `model`.
        sharding: how much of each layer is here.
        routing: what a plan asks of routers.
        mixture: makes Mixture-of-Experts blocks.
        passes: forward passes of a step, over which losses are averaged.
    """

    recompute: RecomputeName = "none"
    sharding: ShardingStrategy = WHOLE
    routing: RoutingSpec = field(default_factory=RoutingSpec)
    mixture: MixtureFactory = Mixture
    passes: int = 1

    @classmethod
    def of(cls, run: TrainingRun, mixture: MixtureFactory, sharding: ShardingStrategy = WHOLE) -> Making:
        """As a run asks for it."""
        return cls(
            recompute=run.recompute,
            sharding=sharding,
            routing=run.routing,
            mixture=mixture,
            passes=run.micro_batches,
        )

    def is_random(self, block: Mlp | Moe) -> bool:
        """Whether a block draws random numbers in training."""
        return isinstance(block, Moe) and (self.routing.jitter > 0 or block.router in RANDOM_ROUTERS)

    def feed_forward(self, block: Mlp | Moe, held: Mlp | Moe, hidden: int) -> nn.Module:
        """A block as the architecture has it, of which this device holds `held`."""
        if isinstance(block, Moe) and isinstance(held, Moe):
            return self.mixture(block, held, hidden, self.sharding, self.routing)
        assert isinstance(held, Mlp)
        return DenseBlock(held, hidden, self.sharding)


class ModelLayer(nn.Module):
    """One layer of a stack."""

    def __init__(self, layer: Layer, hidden: int, making: Making) -> None:
        super().__init__()
        self._recompute = making.recompute
        self._random = making.is_random(layer.own_feed_forward)
        self._router_share = 1 / (making.passes * making.sharding.loss_ranks)
        held = making.sharding.layer(layer)
        assert layer.norm is not None
        self._post_norm = layer.post_norm
        norms = [Norm(hidden, kind=layer.norm, bias=layer.norm_bias) for _ in range(len(layer.attentions) + 1)]
        self.norms = nn.ModuleList(norms)
        self.attentions = nn.ModuleList(AttentionBlock(a, hidden, sharding=making.sharding) for a in held.attentions)
        self.feed_forward = making.feed_forward(layer.own_feed_forward, held.own_feed_forward, hidden)

    def forward(self, x_TD: Tensor, positions: Positions) -> Tensor:
        """Rows [T, D] in and out."""
        if self._recompute == "none" or not torch.is_grad_enabled():
            return self._run(x_TD, positions)
        contexts = keep_some if self._recompute == "selective" else noop_context_fn
        out: Tensor = checkpoint(
            self._run, x_TD, positions, use_reentrant=False, preserve_rng_state=self._random, context_fn=contexts
        )
        return out

    def _run(self, x_TD: Tensor, positions: Positions) -> Tensor:
        return (self._norms_behind if self._post_norm else self._norms_before)(x_TD, positions)

    def _norms_behind(self, x_TD: Tensor, positions: Positions) -> Tensor:
        for norm, attention in zip(self.norms, self.attentions, strict=False):  # the last norm is the feed-forward's
            x_TD = norm(x_TD + attention(x_TD, positions))
        y_TD = x_TD + settle(self.feed_forward, self.feed_forward(x_TD), self._router_share)
        return cast(Tensor, self.norms[-1](y_TD))

    def _norms_before(self, x_TD: Tensor, positions: Positions) -> Tensor:
        for norm, attention in zip(self.norms, self.attentions, strict=False):  # the last norm is the feed-forward's
            x_TD = x_TD + attention(norm(x_TD), positions)
        y_TD = self.feed_forward(self.norms[-1](x_TD))
        return x_TD + settle(self.feed_forward, y_TD, self._router_share)
