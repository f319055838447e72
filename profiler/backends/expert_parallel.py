"""Experts shared out over ranks, for Mixture-of-Experts blocks of other frameworks in the torch backend's model.

Shapes: E experts, L of them on this rank, D hidden, F width; `up` is [E, D, 2F] in a gated block, the gate first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from moemodel.model.architecture.spec import Layer, Moe
from moemodel.profiler.backends.torch_native.mappings import Group
from moemodel.profiler.backends.torch_native.strategy import ShardingStrategy


@dataclass(frozen=True, kw_only=True)
class ExpertShare(ShardingStrategy):
    """All of each layer but for its experts, of which this rank holds a share. Who sends them rows is the block's part.

    Attributes:
        ep: ranks that share out the experts.
        ep_rank: this one among them.
        ep_group: theirs; None for one.
    """

    ep: int = 1
    ep_rank: int = 0
    ep_group: Group | None = None

    def layer(self, layer: Layer) -> Layer:
        """See `ShardingStrategy`."""
        block = layer.feed_forward
        if not isinstance(block, Moe):
            return layer
        return replace(layer, feed_forward=replace(block, experts=block.experts // self.ep))

    def own(self, whole_E: Tensor) -> Tensor:
        """Of a tensor with a row an expert, those of this rank [L, ...]."""
        return whole_E.chunk(self.ep)[self.ep_rank]

    def whole_gradient(self, own_L: Tensor) -> Tensor:
        """Gradients of all experts [E, ...], of the mean of the ranks' losses, from those of this rank's.

        A rank's experts have the sum over the losses of all ranks that sent them rows.
        """
        if self.ep_group is None:
            return own_L
        gathered = [torch.empty_like(own_L) for _ in range(self.ep)]
        dist.all_gather(gathered, own_L.contiguous(), group=self.ep_group)
        return torch.cat(gathered) / self.ep


def share_of(sharding: ShardingStrategy) -> ExpertShare:
    """A model's strategy as a share of its experts; that of a whole model is the share of one rank."""
    return sharding if isinstance(sharding, ExpertShare) else ExpertShare()
