"""Balancing experts without a loss: biases of the choice, moved after each step (Wang et al. 2024, arXiv:2408.15664).

Algorithm 1: b_e += u sign(mean c - c_e), u the rate and c_e how often expert e was chosen in the step, by all replicas.
Biases have no gradient, and no optimizer knows them.

Shapes: E experts, L layers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moemodel.model.architecture.spec import Moe
from moemodel.model.plan.routing import RoutingSpec
from moemodel.profiler.backends.torch_native.mappings import Group
from moemodel.profiler.backends.torch_native.router_passes import is_repeated


class BiasBalance:
    """Biases of one router, and how often its experts were chosen since they last moved.

    Args:
        experts: number of them.
        rate: step of the biases; 0: they stay zero.
        used: whether the choice looks at them.
    """

    def __init__(self, experts: int, rate: float, *, used: bool) -> None:
        self._experts, self._rate, self._used = experts, rate, used
        self.bias_E: Tensor | None = None  # None: zero yet
        self.load_E: Tensor | None = None

    @classmethod
    def of(cls, block: Moe, routing: RoutingSpec) -> BiasBalance:
        """Of a block: where a plan asks for it, or its router has corrections that such a rule moves."""
        return cls(block.experts, routing.bias_rate, used=block.score_correction or routing.bias_rate > 0)

    def bias_on(self, like: Tensor) -> Tensor | None:
        """The biases, float32, on the device of a tensor; None where the choice has none."""
        if not self._used:
            return None
        if self.bias_E is None:
            self.bias_E = torch.zeros(self._experts, device=like.device)
        return self.bias_E

    def count(self, counts_E: Tensor) -> None:
        """Add the choices of a forward pass, unless a backward pass repeats it."""
        if self._rate and not is_repeated():
            self.load_E = counts_E.clone() if self.load_E is None else self.load_E + counts_E

    def move(self, load_E: Tensor) -> None:
        """Move the biases after a step in which experts were chosen so often, by all replicas."""
        load_E = load_E.float()
        step_E = self._rate * torch.sign(load_E.mean() - load_E)
        self.bias_E = step_E if self.bias_E is None else self.bias_E + step_E
        self.load_E = None


@torch.no_grad()
def move_biases(models: Iterable[nn.Module], group: Group | None) -> None:
    """Queue the step of all biases of some models; nothing where none are balanced so.

    Args:
        models: of this rank.
        group: replicas that have the same layers; None for one.
    """
    balances = [b for model in models for m in model.modules() if (b := getattr(m, "balance", None)) is not None]
    due = [b for b in balances if isinstance(b, BiasBalance) and b.load_E is not None]
    loads = [b.load_E for b in due if b.load_E is not None]
    if not loads:
        return
    flat = torch.cat(loads)
    if group is not None:
        dist.all_reduce(flat, group=group)
    for balance, load_E in zip(due, torch.split(flat, [len(load) for load in loads]), strict=True):
        balance.move(load_E)
