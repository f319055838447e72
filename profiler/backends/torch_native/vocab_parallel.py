"""Embedding and loss over a vocabulary of which each tensor-parallel rank holds consecutive rows.

The loss is Shoeybi et al.'s (2019, section 3): logits stay where they are; per token the ranks exchange a maximum, then
a sum of exponentials and the target's logit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from moemodel.profiler.backends.torch_native.mappings import Group


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows `first` to before `stop` of a vocabulary: as many on each rank, the last may have fewer."""

    first: int
    stop: int

    @classmethod
    def of(cls, vocab: int, rank: int, size: int) -> Rows:
        """Those of one rank."""
        each = -(-vocab // size)
        return cls(first=min(rank * each, vocab), stop=min((rank + 1) * each, vocab))


def embed_part(tokens: Tensor, table_VW: Tensor, rows: Rows) -> Tensor:
    """Embeddings [T, W] of the tokens whose rows lie here, zero for the others."""
    tokens_T = tokens.flatten()
    elsewhere_T = (tokens_T < rows.first) | (tokens_T >= rows.stop)
    local_T = (tokens_T - rows.first).masked_fill(elsewhere_T, 0)
    return functional.embedding(local_T, table_VW).masked_fill(elsewhere_T.unsqueeze(-1), 0)


class _CrossEntropy(Function):
    """Keeps one float32 tensor of probabilities [T, V / tp], and turns it into the gradient in place."""

    @staticmethod
    def forward(ctx: Any, logits_TV: Tensor, targets_T: Tensor, rows: Rows, group: Group) -> Tensor:
        wide_TV = logits_TV.to(torch.float32, copy=True)
        highest_T = wide_TV.amax(-1)
        dist.all_reduce(highest_T, dist.ReduceOp.MAX, group=group)
        wide_TV -= highest_T.unsqueeze(-1)
        elsewhere_T = (targets_T < rows.first) | (targets_T >= rows.stop)
        local_T = (targets_T - rows.first).masked_fill(elsewhere_T, 0)
        target_T = wide_TV.gather(-1, local_T.unsqueeze(-1)).squeeze(-1).masked_fill(elsewhere_T, 0)
        wide_TV.exp_()
        sums_2T = torch.stack((wide_TV.sum(-1), target_T))
        dist.all_reduce(sums_2T, group=group)
        wide_TV /= sums_2T[0].unsqueeze(-1)
        ctx.save_for_backward(wide_TV, local_T, elsewhere_T)
        ctx.dtype = logits_TV.dtype
        return (sums_2T[0].log() - sums_2T[1]).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        wide_TV, local_T, elsewhere_T = ctx.saved_tensors
        ones_T = (~elsewhere_T).to(wide_TV.dtype).unsqueeze(-1)
        wide_TV.scatter_add_(-1, local_T.unsqueeze(-1), -ones_T)
        wide_TV *= gradients[0] / local_T.numel()
        return wide_TV.to(ctx.dtype), None, None, None


def cross_entropy(logits_TV: Tensor, targets_T: Tensor, rows: Rows, group: Group) -> Tensor:
    """Mean negative log-likelihood over logits of which each rank holds its rows' columns, in float32."""
    return cast(Tensor, _CrossEntropy.apply(logits_TV, targets_T, rows, group))  # type: ignore[no-untyped-call]
