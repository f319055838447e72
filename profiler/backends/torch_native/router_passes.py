"""What routers do in each forward pass, kept on the device: nothing waits for it until somebody asks.

A router's loss is no part of what the model returns: it joins the backward pass at the output of its layer (`attach`),
as in Megatron-LM (`MoEAuxLossAutoScaler`). So it needs no way through a pipeline's stages, FSDP has gathered the
layer's parameters when its gradient comes, and recompute repeats what it needs.

Shapes: as in `model`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

PASSES_KEPT = 1024  # forward passes that a layer remembers


@dataclass(frozen=True)
class RoutingPass:
    """What a router did in one forward pass; tensors on the device.

    Attributes:
        counts_E: rows that each expert was chosen for, before any were dropped [E], int64.
        dropped: of these, rows that found no room, a scalar; None: none was, by construction.
        entropy: mean over tokens of the entropy of the router's probabilities, nats, a scalar; None: not recorded.
        router_loss: what it adds to the loss, times its coefficient, a scalar; None: nothing. In a module's `records`
            it has its gradient until the layer has attached it.
    """

    counts_E: Tensor
    dropped: Tensor | None = None
    entropy: Tensor | None = None
    router_loss: Tensor | None = None


class RoutingPasses(deque[RoutingPass]):
    """The last forward passes of a router. What the backward pass repeats is not added: it is there already.

    A layer that runs again stops as soon as it has what it needs, so nobody behind the router could take it back.
    """

    def __init__(self) -> None:
        super().__init__(maxlen=PASSES_KEPT)

    def append(self, record: RoutingPass) -> None:
        """Add a pass, unless it is a repetition."""
        if not is_repeated():
            super().append(record)


@dataclass(frozen=True)
class RouterSums:
    """What one router did in several passes; tensors on the device.

    Attributes:
        counts_E: sum over passes [E].
        dropped: sum over passes.
        entropy: mean over passes; nan where no pass recorded it.
    """

    counts_E: Tensor
    dropped: Tensor
    entropy: Tensor


def sums(passes: Sequence[RoutingPass]) -> RouterSums:
    """Of one layer, at least one pass."""
    counts_E = torch.stack([p.counts_E for p in passes]).sum(0)
    dropped = [p.dropped for p in passes if p.dropped is not None]
    entropies = [p.entropy for p in passes if p.entropy is not None]
    none, unknown = counts_E.new_zeros(()), counts_E.new_full((), float("nan"), dtype=torch.float64)
    return RouterSums(
        counts_E,
        torch.stack(dropped).sum() if dropped else none,
        torch.stack(entropies).double().mean() if entropies else unknown,
    )


def entropy_of(share_TE: Tensor) -> Tensor:
    """Mean over tokens of -sum_e p_e ln p_e, nats, in float32; no gradient."""
    entropy_TE: Tensor = torch.special.entr(share_TE.detach().float())
    return entropy_TE.sum(-1).mean()


def mixtures(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The blocks of a model that keep records of their routers, with their names, in order, and none within one."""
    inside = None
    for name, module in model.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        if isinstance(getattr(module, "records", None), RoutingPasses):
            inside = f"{name}."
            yield name, module


def settle(block: nn.Module, y_TD: Tensor, share: float) -> Tensor:
    """A block's output with its router's loss attached; its record is kept without a gradient.

    A layer that runs again attaches nothing: its outputs' graph is the one of the first time.

    Args:
        block: dense, or one with `records`.
        y_TD: its output in this pass.
        share: by which the loss's gradient is multiplied.
    """
    records = getattr(block, "records", None)
    if not records or is_repeated() or (loss := records[-1].router_loss) is None:
        return y_TD
    records[-1] = replace(records[-1], router_loss=loss.detach())
    return attach(y_TD, loss, share)


def attach(x: Tensor, loss: Tensor, share: float) -> Tensor:
    """`x`, in whose backward pass the loss gets the gradient `share`."""
    out: Tensor = _Attach.apply(x, loss, share)  # type: ignore[no-untyped-call]
    return out


class _Attach(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, share: float) -> Tensor:
        ctx.like, ctx.share = (loss.dtype, loss.device, loss.shape), share
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        dtype, device, shape = ctx.like
        return gradients[0], torch.full(shape, ctx.share, dtype=dtype, device=device), None


def is_repeated() -> bool:
    """Whether this forward pass runs within a backward pass."""
    return torch._C._current_graph_task_id() != -1
