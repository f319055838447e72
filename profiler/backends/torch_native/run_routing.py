"""What the routers of a run did, for a `Run`: summed over passes and data-parallel replicas. Here the host waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from moemodel.profiler.backends.base import LayerRouting
from moemodel.profiler.backends.torch_native.mappings import Group
from moemodel.profiler.backends.torch_native.router_passes import RoutingPass, sums


class Routed(Protocol):
    """A model, or a part of one, whose routers keep records."""

    def routing_passes(self) -> list[tuple[int, list[RoutingPass]]]:
        """Number of each layer that has a router, and its forward passes."""
        ...

    def router_loss(self) -> Tensor | None:
        """Sum over layers, mean over the last step's passes; None without any."""
        ...


def layer_routings(models: Sequence[Routed], group: Group | None) -> list[LayerRouting]:
    """A record a layer that had a forward pass.

    Args:
        models: of this rank.
        group: replicas that have the same layers; None for one.
    """
    found = [(layer, sums(passes)) for model in models for layer, passes in model.routing_passes() if passes]
    if not found:
        return []
    rows = [torch.cat([s.counts_E.double(), torch.stack([s.dropped.double(), s.entropy])]) for _, s in found]
    flat = torch.cat(rows)
    if group is not None:
        dist.all_reduce(flat, group=group)
    replicas = 1 if group is None else group.size()
    host = [row.tolist() for row in torch.split(flat, [len(row) for row in rows])]
    return [_record(layer, row, replicas) for (layer, _), row in zip(found, host, strict=True)]


def _record(layer: int, row: list[float], replicas: int) -> LayerRouting:
    *rows_E, dropped, entropy = row
    counts = [round(count) for count in rows_E]  # whole numbers, which float64 holds up to 2^53
    return LayerRouting(layer=layer, rows_E=counts, dropped=round(dropped), entropy=entropy / replicas)


def router_loss(models: Sequence[Routed], group: Group | None, copies: int, device: torch.device) -> float:
    """Sum over all layers of a plan, mean over its replicas.

    Args:
        models: of this rank.
        group: all ranks of the plan; None for one.
        copies: ranks that hold the same layers, each of which has the loss of its tokens.
        device: of this rank.
    """
    own = [loss for model in models if (loss := model.router_loss()) is not None]
    total = torch.stack(own).sum().double() if own else torch.zeros((), dtype=torch.float64, device=device)
    if group is not None:
        dist.all_reduce(total, group=group)
    return float(total) / copies
