"""What came of a step, for a `Run`: its losses and what its routers did, as tensors that nobody has waited for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from moemodel.profiler.backends.base import LayerRouting, StepStatistics, TrainingRun
from moemodel.profiler.backends.torch_native.layer import Making
from moemodel.profiler.backends.torch_native.router_passes import RoutingPass, sums


def seed_routers(run: TrainingRun, replica: int) -> None:
    """Seed torch's own generators where routers draw random numbers: alike on ranks that see the same tokens.

    Args:
        run: what is trained.
        replica: number of the data-parallel one.
    """
    making = Making(routing=run.routing)
    if any(making.is_random(layer.own_feed_forward) for layer in run.architecture.layers):
        torch.manual_seed(run.seed * run.parallel.dp + replica)


class Routed(Protocol):
    """A model, or a part of one, whose routers keep records."""

    def routing_passes(self) -> list[tuple[int, list[RoutingPass]]]:
        """Number of each layer that has a router, and its forward passes."""
        ...

    def router_loss(self) -> Tensor | None:
        """Sum over layers, mean over the last step's passes; None without any."""
        ...


def step_statistics(models: Sequence[Routed], task_loss: Tensor | None, passes: int) -> StepStatistics:
    """Of the last step.

    Args:
        models: of this rank.
        task_loss: mean over its micro-batches; None on a rank that computes none.
        passes: micro-batches of a step.
    """
    routers = [loss for model in models if (loss := model.router_loss()) is not None]
    return StepStatistics(
        task_loss=task_loss,
        router_loss=torch.stack(routers).sum() if routers else None,
        routing=tuple(
            _layer(layer, found[-passes:]) for model in models for layer, found in model.routing_passes() if found
        ),
    )


def _layer(layer: int, passes: Sequence[RoutingPass]) -> LayerRouting:
    found = sums(passes)
    return LayerRouting(layer=layer, rows_E=found.counts_E, dropped=found.dropped, entropy=found.entropy)
