"""Rows for experts that not every chosen pair fills: capacities, chance, experts that choose tokens.

An expert takes C = ceil(c T k / E) rows of a micro-batch (Fedus et al. 2022, equation 3; Lepikhin et al. 2020, section
2.2), c the capacity factor. First choices go before second ones, earlier tokens before later ones; what finds no room
is dropped: the residual carries the token on.

- Padded, every expert has C rows, empty ones zero: the numbers of rows are the same in every pass, and nothing waits.
- Not padded, an expert has the rows that it got: the host waits for the device once a layer, to learn how many there
  are (as Megatron-Core does).

Shapes: T tokens, E experts, k experts of a token, C capacity, R rows for experts, D hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from moemodel.profiler.backends.torch_native import operators as torch_ops


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows for experts, sorted by expert.

    Attributes:
        token_R: whose rows these are; T: nobody's, an empty row.
        weight_R: by which what an expert makes of each is multiplied.
        counts_E: rows of each expert.
        wanted_E: rows that each was chosen for, before any were dropped.
        dropped: chosen pairs that found no room, a scalar.
    """

    token_R: Tensor
    weight_R: Tensor
    counts_E: Tensor
    wanted_E: Tensor
    dropped: Tensor

    @property
    def dispatch(self) -> torch_ops.Dispatch:
        """For `ShardingStrategy.pass_experts`, which reads the last two."""
        return torch_ops.Dispatch(self.token_R, self.token_R, self.counts_E.cumsum(0).to(torch.int32), self.counts_E)


def capacity_of(tokens: int, top_k: int, experts: int, factor: float) -> int:
    """Rows that an expert takes, at least one and at most one of each token."""
    return min(tokens, max(1, math.ceil(factor * tokens * top_k / experts)))


def rows_of_pairs(
    weight_Tk: Tensor, expert_Tk: Tensor, sent_Tk: Tensor | None, experts: int, capacity: int | None, *, padded: bool
) -> Rows:
    """The pairs that find room.

    Args:
        weight_Tk, expert_Tk: of each token's experts, best first.
        sent_Tk: which pairs are sent at all; None: all.
        experts: number of them.
        capacity: rows that an expert takes; None: all that come.
        padded: whether each expert has `capacity` rows, full or empty; wants a capacity.
    """
    tokens, top_k = expert_Tk.shape
    expert_P = expert_Tk.T.flatten()  # all first choices, then all second ones
    if sent_Tk is not None:
        expert_P = expert_P.masked_fill(~sent_Tk.T.flatten(), experts)  # to nobody, who comes last
    order_P = expert_P.argsort(stable=True)
    sorted_P = expert_P[order_P]
    wanted_E = torch.zeros(experts + 1, dtype=torch.int64, device=expert_P.device)
    wanted_E.scatter_add_(0, expert_P, torch.ones_like(expert_P))
    place_P = torch.arange(len(sorted_P), device=sorted_P.device) - (wanted_E.cumsum(0) - wanted_E)[sorted_P]
    kept_P = (sorted_P < experts) & (place_P < (tokens if capacity is None else capacity))
    counts_E = wanted_E[:-1] if capacity is None else wanted_E[:-1].clamp(max=capacity)
    dropped = (wanted_E[:-1] - counts_E).sum()
    if padded and capacity is not None:
        slot_P = torch.where(kept_P, sorted_P * capacity + place_P, experts * capacity)
        pair_R = torch.full((experts * capacity + 1,), tokens * top_k, device=slot_P.device)
        pair_R[slot_P] = order_P
        pair_R = pair_R[:-1]
        counts_E = torch.full_like(counts_E, capacity)
    else:
        pair_R = order_P[kept_P]  # the host waits here
    return Rows(
        token_R=_token(pair_R, tokens, top_k),
        weight_R=_weights(weight_Tk, pair_R),
        counts_E=counts_E,
        wanted_E=wanted_E[:-1],
        dropped=dropped,
    )


def _token(pair_R: Tensor, tokens: int, top_k: int) -> Tensor:
    """Whose a pair is; no pair is nobody's."""
    return torch.where(pair_R < tokens * top_k, pair_R % tokens, tokens)


def _weights(weight_Tk: Tensor, pair_R: Tensor) -> Tensor:
    """Of each row, zero where it is empty."""
    flat = weight_Tk.T.flatten()
    return torch.cat((flat, flat.new_zeros(1)))[pair_R]


def rows_of_experts(score_TE: Tensor, capacity: int, dtype: torch.dtype) -> Rows:
    """Each expert's best tokens (Zhou et al. 2022, section 3.2, without a bound on a token's experts)."""
    weight_EC, token_EC = score_TE.T.topk(capacity, dim=-1)
    experts = score_TE.shape[-1]
    counts_E = torch.full((experts,), capacity, dtype=torch.int64, device=score_TE.device)
    return Rows(
        token_R=token_EC.flatten(),
        weight_R=weight_EC.flatten().to(dtype),
        counts_E=counts_E,
        wanted_E=counts_E,
        dropped=counts_E.new_zeros(()),
    )


def take(x_TD: Tensor, rows: Rows) -> Tensor:
    """Each row's token, zeros for empty rows, [R, D]."""
    padded_TD = torch.cat((x_TD, x_TD.new_zeros(1, x_TD.shape[1])))
    return padded_TD.index_select(0, rows.token_R)


def give_back(y_RD: Tensor, rows: Rows, tokens: int) -> Tensor:
    """Weighted sum of each token's rows, [T, D]; zero of a token without any."""
    out_TD = y_RD.new_zeros(tokens + 1, y_RD.shape[1])
    return out_TD.index_add(0, rows.token_R, y_RD * rows.weight_R.unsqueeze(-1))[:tokens]
