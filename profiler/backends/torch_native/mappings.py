"""Collectives that autograd sees: each forward one has its counterpart in the backward pass.

Explicit ones on plain tensors, as in Shoeybi et al. (2019, section 3) and Korthikanti et al. (2022, section 4.2.2).
DTensor could do the same by itself; its dispatch costs the host about 100 µs an operator, as much as a small layer.

An all-reduce works in place: the output of a product, and the gradient of one's input, belong to nobody else.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from moemodel.profiler.jobs.ranks import all_gather, reduce_scatter

Group = dist.ProcessGroup


class _CopyToTensorParallelRegion(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class _ReduceFromTensorParallelRegion(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.mark_dirty(x)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        del ctx
        return gradients[0], None


class _GatherFromSequenceParallelRegion(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _gathered(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _scattered(gradients[0], ctx.group), None


class _ReduceScatterToSequenceParallelRegion(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _scattered(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _gathered(gradients[0], ctx.group), None


class _AllToAll(Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, send: list[int], receive: list[int], group: Group) -> Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        return _exchanged(x_RD, send, receive, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchanged(gradients[0], ctx.receive, ctx.send, ctx.group), None, None, None


class _WideRms(Function):
    """RMS norms of two tensors whose last dimension is spread over a group: y = x r w, r = (mean x² + eps)^-1/2.

    The squares of both are summed over the group in one all-reduce, and so is what their gradients need of the others.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, group: Group, eps: float
    ) -> tuple[Tensor, Tensor]:
        size = group.size()
        squares_2T = torch.stack([torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).square() for x in (q, k)])
        dist.all_reduce(squares_2T, group=group)
        widths = (q.shape[-1] * size, k.shape[-1] * size)
        scale_2T = torch.stack([torch.rsqrt(s / n + eps) for s, n in zip(squares_2T, widths, strict=True)])
        ctx.save_for_backward(q, k, q_weight, k_weight, scale_2T)
        ctx.group, ctx.widths = group, widths
        rq, rk = (scale.unsqueeze(-1) for scale in scale_2T)
        return (q * rq * q_weight).to(q.dtype), (k * rk * k_weight).to(k.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, q_weight, k_weight, scale_2T = ctx.saved_tensors
        parts = [(q, q_weight, gradients[0]), (k, k_weight, gradients[1])]
        inner = [gradient.float() * weight for _, weight, gradient in parts]
        dots_2T = torch.stack([(g * x).sum(-1) for g, (x, _, _) in zip(inner, parts, strict=True)])
        dist.all_reduce(dots_2T, group=ctx.group)
        out: list[Tensor] = []
        weights: list[Tensor] = []
        for i, (x, weight, gradient) in enumerate(parts):
            r = scale_2T[i].unsqueeze(-1)
            shift = (scale_2T[i] ** 3 * dots_2T[i] / ctx.widths[i]).unsqueeze(-1)
            out.append((inner[i] * r - x * shift).to(x.dtype))
            weights.append((gradient * (x * r)).sum(0).to(weight.dtype))
        return (*out, *weights, None, None)


def _gathered(x: Tensor, group: Group) -> Tensor:
    out = x.new_empty(x.shape[0] * group.size(), *x.shape[1:])
    all_gather(out, x.contiguous(), group=group)
    return out


def _scattered(x: Tensor, group: Group) -> Tensor:
    out = x.new_empty(x.shape[0] // group.size(), *x.shape[1:])
    reduce_scatter(out, x.contiguous(), group=group)
    return out


def _exchanged(x_RD: Tensor, send: list[int], receive: list[int], group: Group) -> Tensor:
    out = x_RD.new_empty(sum(receive), *x_RD.shape[1:])
    dist.all_to_all_single(out, x_RD.contiguous(), receive, send, group=group)
    return out


def _apply(function: type[Function], *arguments: Any) -> Tensor:
    return cast(Tensor, function.apply(*arguments))  # type: ignore[no-untyped-call]


def copy_to_tensor_parallel_region(x: Tensor, group: Group) -> Tensor:
    """The same tensor (Megatron-LM's f); its gradient is summed over the group."""
    return _apply(_CopyToTensorParallelRegion, x, group)


def reduce_from_tensor_parallel_region(x: Tensor, group: Group) -> Tensor:
    """Summed over the group, in place (Megatron-LM's g); its gradient is the same."""
    return _apply(_ReduceFromTensorParallelRegion, x, group)


def gather_from_sequence_parallel_region(x_TD: Tensor, group: Group) -> Tensor:
    """Rows of all ranks; the gradient is summed and each rank keeps its rows."""
    return _apply(_GatherFromSequenceParallelRegion, x_TD, group)


def reduce_scatter_to_sequence_parallel_region(x_TD: Tensor, group: Group) -> Tensor:
    """Summed, each rank keeps its rows; the gradient is gathered."""
    return _apply(_ReduceScatterToSequenceParallelRegion, x_TD, group)


def all_to_all(x_RD: Tensor, send: list[int], receive: list[int], group: Group) -> Tensor:
    """Rows to their ranks: `send[i]` to rank i, `receive[i]` from it; the gradients go back."""
    return _apply(_AllToAll, x_RD, send, receive, group)


def wide_rms_norms(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, group: Group, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """RMS norms over widths of which each rank of the group holds an equal part."""
    return cast(tuple[Tensor, Tensor], _WideRms.apply(q, k, q_weight, k_weight, group, eps))  # type: ignore[no-untyped-call]
