"""What is left to do with gradients once all backward passes are done: sums that nobody else takes, and clipping.

Each rank counts the squares of what it holds, divided by how many ranks hold the same; the sum over all ranks of the
plan is the square of the global norm, with each parameter in it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moemodel.profiler.backends.torch_native.mappings import Group
from moemodel.profiler.backends.torch_native.optimizer import MAX_NORM, local

_EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_ adds to the norm
_SMALL_B = 1 << 20  # tensors below are sent together: an all-reduce of 1 MiB takes hardly longer than an empty one


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A parameter of this rank.

    Attributes:
        parameter: whole, or sharded by FSDP.
        replicas: ranks that hold the same values of it.
        scale: by which its gradient is still to be multiplied, to be that of the mean loss.
        sums: groups over which its gradient is still to be summed, in this order.
    """

    parameter: nn.Parameter
    replicas: int
    scale: float
    sums: tuple[Group, ...]


class Gradients:
    """The gradients of one rank.

    Args:
        trained: its parameters.
        everybody: all ranks of the plan; None where there is one.
    """

    def __init__(self, trained: Sequence[Trained], everybody: Group | None) -> None:
        self._trained, self._everybody = trained, everybody
        self._groups = list(dict.fromkeys(group for t in trained for group in t.sums))
        weights = [t.scale**2 / t.replicas for t in trained]
        self._weights = torch.tensor(weights, dtype=torch.float32, device=trained[0].parameter.device)
        self._scaled = any(t.scale != 1 for t in trained)

    @torch.no_grad()
    def finish(self) -> None:
        """Queue the sums that are left to take."""
        for group in self._groups:
            own = [t.parameter.grad for t in self._trained if group in t.sums]
            _sum([local(gradient) for gradient in own if gradient is not None], group)

    @torch.no_grad()
    def clip(self) -> Tensor:
        """Queue scaling all gradients to a global norm of at most 1; the norm before, on the device."""
        held = [(i, t, local(t.parameter.grad)) for i, t in enumerate(self._trained) if t.parameter.grad is not None]
        tensors = [gradient for _, _, gradient in held]
        weights = self._weights if len(held) == len(self._trained) else self._weights[[i for i, _, _ in held]]
        # In the gradients' precision, as torch.nn.utils.clip_grad_norm_: kernels over all tensors take no other.
        norms = torch.stack(torch._foreach_norm(tensors, 2)).float()
        square = (norms * norms * weights).sum()
        if self._everybody is not None:
            dist.all_reduce(square, group=self._everybody)
        norm = square.sqrt()
        factor = (MAX_NORM / (norm + _EPSILON)).clamp(max=1.0)
        if not self._scaled:
            torch._foreach_mul_(tensors, factor.to(tensors[0].dtype))
            return norm
        for scale in dict.fromkeys(t.scale for _, t, _ in held):
            torch._foreach_mul_([g for _, t, g in held if t.scale == scale], (factor * scale).to(tensors[0].dtype))
        return norm


def _sum(tensors: list[Tensor], group: Group) -> None:
    """Sum tensors over a group in place: large ones as they are, small ones of a kind together."""
    small = [t for t in tensors if t.nbytes < _SMALL_B]
    works = [dist.all_reduce(t, group=group, async_op=True) for t in tensors if t.nbytes >= _SMALL_B]
    if small:
        flat = torch.cat([t.reshape(-1) for t in small])
        dist.all_reduce(flat, group=group)
        parts = torch.split(flat, [t.numel() for t in small])
        torch._foreach_copy_(small, [part.view_as(t) for part, t in zip(parts, small, strict=True)])
    for work in works:
        if work is not None:
            work.wait()
