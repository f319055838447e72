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

from moemodel.model.errors import InputError
from moemodel.model.plan import Precision

MAX_NORM = 1.0
_ADAMW: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "fused": True}


class Optimizer(Protocol):
    """What a training step needs of one."""

    def step(self) -> object: ...

    def zero_grad(self) -> None: ...


class MixedAdamW:
    """AdamW that updates float32 masters of low-precision parameters (Micikevicius et al. 2018, section 3.1)."""

    def __init__(self, parameters: Iterable[Tensor], *, lr: float = 3e-4) -> None:
        self._parameters = [p for p in parameters if p.requires_grad]
        self.masters = [p.detach().to(torch.float32, copy=True) for p in self._parameters]
        self._adamw = torch.optim.AdamW(self.masters, lr=lr, **_ADAMW)

    @torch.no_grad()
    def step(self) -> None:
        """Gradients to float32, AdamW on the masters, masters back to the parameters; parameters without one stay."""
        used = [(m, p, p.grad) for m, p in zip(self.masters, self._parameters, strict=True) if p.grad is not None]
        masters, parameters, gradients = ([row[i] for row in used] for i in range(3))
        wide = [torch.empty_like(master) for master in masters]
        _copy(wide, gradients)
        for master, gradient in zip(masters, wide, strict=True):
            master.grad = gradient
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        _copy(parameters, masters)

    def zero_grad(self) -> None:
        """Drop the parameters' gradients."""
        for parameter in self._parameters:
            parameter.grad = None


def _copy(to: list[Tensor], source: list[Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, source)


def build_optimizer(model: nn.Module, precision: Precision, *, lr: float = 3e-4) -> Optimizer:
    """The optimizer of one precision recipe, with fused kernels.

    Args:
        model: its parameters in bf16 (any floating type works).
        precision: `bf16`: states in the parameters' precision; `bf16-mixed`: float32 masters and states.
        lr: learning rate.

    Raises:
        InputError: another precision.
    """
    if precision == "bf16":
        return torch.optim.AdamW(model.parameters(), lr=lr, **_ADAMW)
    if precision == "bf16-mixed":
        return MixedAdamW(model.parameters(), lr=lr)
    raise InputError(f"precision: found {precision!r}; allowed: bf16, bf16-mixed")


def clip_gradients(model: nn.Module) -> Tensor:
    """Scale all gradients to a global norm of at most 1, on the device; the norm before."""
    return nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM, foreach=True)
