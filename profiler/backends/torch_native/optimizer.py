"""Optimizers of the training runs: AdamW on bf16 parameters, or on float32 masters of them.

Memory, bytes per parameter:

| precision  | weight | gradient | states                    | transient in the step      |
| ---------- | ------ | -------- | ------------------------- | -------------------------- |
| bf16       | 2      | 2        | 2 x 2                     | 0                          |
| bf16-mixed | 2      | 2        | 12 (master, two moments)  | 4 (gradients in float32)   |

Transient memory lives while the step runs, when the activations are gone, so it adds to the peak only where
4 bytes a parameter are more than the activations.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from moemodel.model.core.errors import InputError
from moemodel.model.frameworks.base import Precision

MAX_NORM = 1.0  # GPT-3 (Brown et al. 2020, appendix B), as are the figures below; none of them changes the time
ADAMW: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "fused": True}


class Optimizer(Protocol):
    """What a training step needs of one."""

    def step(self) -> object:
        """Update the parameters by their gradients."""
        ...

    def zero_grad(self) -> None:
        """Drop the gradients."""
        ...


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor that FSDP may have sharded; no copy."""
    whole = getattr(tensor, "to_local", None)
    if whole is None:
        return tensor
    with torch.no_grad():  # else each call would be a node of autograd
        shard: Tensor = whole()
    return shard


class _Shards:
    """Parameters whose local parts take part in the step; an uneven shard may leave a rank without any."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        trained = [p for p in parameters if p.requires_grad]
        held = [(p, local(p).detach()) for p in trained]
        self.parameters = [p for p, shard in held if shard.numel()]
        self.local = [shard for _, shard in held if shard.numel()]
        self._all = trained

    def zero_grad(self, keep: bool) -> None:
        """Drop the gradients, or fill them with zeros where they have to stay where they are."""
        if keep:
            gradients = [p.grad for p in self._all if p.grad is not None]
            if gradients:
                torch._foreach_zero_(gradients)
            return
        for parameter in self._all:
            parameter.grad = None


class PlainAdamW:
    """AdamW in the parameters' own precision, on the parts that this rank holds."""

    def __init__(self, parameters: Iterable[Tensor], *, lr: float = 3e-4, keep_gradients: bool = False) -> None:
        self._shards, self._keep = _Shards(parameters), keep_gradients
        self._adamw = torch.optim.AdamW(self._shards.local, lr=lr, **ADAMW)

    def step(self) -> None:
        """AdamW on the parameters; those without a gradient stay."""
        for shard, parameter in zip(self._shards.local, self._shards.parameters, strict=True):
            shard.grad = None if parameter.grad is None else local(parameter.grad)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)

    def zero_grad(self) -> None:
        """Drop the parameters' gradients, or zero them."""
        self._shards.zero_grad(self._keep)


class MixedAdamW:
    """AdamW that updates float32 masters of low-precision parameters (Micikevicius et al. 2018, section 3.1).

    Of parameters that FSDP has sharded, the part that this rank holds.

    Args:
        parameters: in any floating type.
        lr: learning rate.
        keep_gradients: whether gradients are zeroed in place, since they lie in somebody's buckets, and not dropped.
    """

    def __init__(self, parameters: Iterable[Tensor], *, lr: float = 3e-4, keep_gradients: bool = False) -> None:
        self._shards, self._keep = _Shards(parameters), keep_gradients
        self.masters = [p.to(torch.float32, copy=True) for p in self._shards.local]
        self._adamw = torch.optim.AdamW(self.masters, lr=lr, **ADAMW)

    @torch.no_grad()
    def step(self) -> None:
        """Gradients to float32, AdamW on the masters, masters back to the parameters; parameters without one stay."""
        held = zip(self.masters, self._shards.local, self._shards.parameters, strict=True)
        used = [(m, shard, local(p.grad)) for m, shard, p in held if p.grad is not None]
        masters, shards, gradients = ([row[i] for row in used] for i in range(3))
        wide = [torch.empty_like(master) for master in masters]
        _copy(wide, gradients)
        for master, gradient in zip(masters, wide, strict=True):
            master.grad = gradient
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        _copy(shards, masters)

    def zero_grad(self) -> None:
        """Drop the parameters' gradients, or zero them."""
        self._shards.zero_grad(self._keep)


def _copy(to: list[Tensor], source: list[Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, source)


# lr: Llama 7B's (Touvron et al. 2023, table 2), as in the classes above; it changes no time
def build_optimizer(
    model: nn.Module, precision: Precision, *, lr: float = 3e-4, keep_gradients: bool = False
) -> Optimizer:
    """The optimizer of one precision recipe, with fused kernels.

    Args:
        model: its parameters in bf16 (any floating type works), whole or sharded by FSDP.
        precision: `bf16`: states in the parameters' precision; `bf16-mixed`: float32 masters and states.
        lr: learning rate.
        keep_gradients: see `MixedAdamW`.

    Raises:
        InputError: another precision.
    """
    if precision == "bf16":
        return PlainAdamW(model.parameters(), lr=lr, keep_gradients=keep_gradients)
    if precision == "bf16-mixed":
        return MixedAdamW(model.parameters(), lr=lr, keep_gradients=keep_gradients)
    raise InputError(f"precision: found {precision!r}; allowed: bf16, bf16-mixed")


def clip_gradients(model: nn.Module) -> Tensor:
    """Scale all gradients to a global norm of at most 1, on the device; the norm before."""
    return nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM, foreach=True)
