"""The operators of `model.operators.work` in plain PyTorch: what the profiler times is what training runs are built of.

Shapes: T tokens (batch x seq), D hidden, B batch, H heads, S seq, K head_dim, E experts, k experts per token, F width,
R = T k rows of (token, expert) pairs, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


# eps: torch.nn.LayerNorm's default, and Llama's; it changes no time.
def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float = 1e-5) -> Tensor:
    """Root mean square norm of each token, [T, D] (Zhang and Sennrich 2019)."""
    return functional.rms_norm(x_TD, (weight_D.shape[0],), weight_D, eps)


def layer_norm(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float = 1e-5) -> Tensor:
    """Layer norm of each token, [T, D] (Ba et al. 2016)."""
    return functional.layer_norm(x_TD, (weight_D.shape[0],), weight_D, bias_D, eps)


def rotary_tables(
    seq: int, head_dim: int, theta: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [S, K/2] (Su et al. 2021, RoFormer, eq. 34)."""
    frequency_h = theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angle_Sh = torch.outer(torch.arange(seq, device=device, dtype=torch.float32), frequency_h)
    return angle_Sh.cos().to(dtype), angle_Sh.sin().to(dtype)


def rotary(x_BHSK: Tensor, cos_Sh: Tensor, sin_Sh: Tensor) -> Tensor:
    """Rotate the two halves of each head by the position's angles."""
    a, b = x_BHSK.chunk(2, dim=-1)
    return torch.cat((a * cos_Sh - b * sin_Sh, b * cos_Sh + a * sin_Sh), dim=-1)


def attention(q_BHSK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, causal: bool = True) -> Tensor:
    """Scaled dot product attention; fewer key/value heads than query heads is grouped attention."""
    grouped = q_BHSK.shape[1] != k_BHSK.shape[1]
    return functional.scaled_dot_product_attention(q_BHSK, k_BHSK, v_BHSK, is_causal=causal, enable_gqa=grouped)


def unscaled_attention(q_BHSK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, bias: Tensor | None) -> Tensor:
    """Attention without a scale of its scores, to which a bias [1, H, S, S] may be added (T5's)."""
    return functional.scaled_dot_product_attention(q_BHSK, k_BHSK, v_BHSK, attn_mask=bias, scale=1.0)


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """Gated activation silu(gate) up, [T, F] (Shazeer 2020)."""
    return functional.silu(gate_TF) * up_TF


def cross_entropy(logits_TV: Tensor, target_T: Tensor) -> Tensor:
    """Mean negative log-likelihood, in float32 as training code computes it."""
    return functional.cross_entropy(logits_TV.float(), target_T)


def route(logits_TE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Softmax, then the top k renormalised: weights [T, k] in the input's precision, experts [T, k]."""
    weight_Tk, expert_Tk = logits_TE.softmax(dim=-1, dtype=torch.float32).topk(top_k, dim=-1)
    weight_Tk = weight_Tk / weight_Tk.sum(dim=-1, keepdim=True)
    return weight_Tk.to(logits_TE.dtype), expert_Tk


@dataclass(frozen=True)
class Dispatch:
    """Where each (token, expert) pair's row goes: rows sorted by expert.

    Attributes:
        order_R: pair at each sorted row; its token is `order // k`.
        inverse_R: sorted row of each pair.
        offsets_E: end of each expert's rows (int32, as grouped products want it).
        counts_E: rows of each expert.
    """

    order_R: Tensor
    inverse_R: Tensor
    offsets_E: Tensor
    counts_E: Tensor


def dispatch(expert_Tk: Tensor, experts: int) -> Dispatch:
    """Sort the pairs by expert, without synchronising with the host."""
    flat_R = expert_Tk.flatten()
    order_R = flat_R.argsort(stable=True)
    inverse_R = torch.empty_like(order_R)
    inverse_R[order_R] = torch.arange(order_R.numel(), device=order_R.device)
    counts_E = torch.zeros(experts, dtype=torch.int64, device=flat_R.device)
    counts_E.scatter_add_(0, flat_R, torch.ones_like(flat_R))
    return Dispatch(order_R, inverse_R, counts_E.cumsum(0).to(torch.int32), counts_E)


class _Permute(torch.autograd.Function):
    """Copy each token's row to its k sorted places; the gradient gathers them back and sums (no atomics)."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_R: Tensor, inverse_R: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(inverse_R)
        ctx.top_k = top_k
        return x_TD.index_select(0, order_R // top_k)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse_R,) = ctx.saved_tensors
        gradient_RD = gradients[0].index_select(0, inverse_R)
        return gradient_RD.view(-1, ctx.top_k, gradient_RD.shape[-1]).sum(1), None, None, None


class _Unsort(torch.autograd.Function):
    """Rows back into pair order; a permutation, so the gradient is the opposite gather."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, order_R: Tensor, inverse_R: Tensor) -> Tensor:
        ctx.save_for_backward(order_R)
        return y_RD.index_select(0, inverse_R)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (order_R,) = ctx.saved_tensors
        return gradients[0].index_select(0, order_R), None, None


def permute(x_TD: Tensor, d: Dispatch, top_k: int) -> Tensor:
    """Rows sorted by expert, [R, D]."""
    out: Tensor = _Permute.apply(x_TD, d.order_R, d.inverse_R, top_k)  # type: ignore[no-untyped-call]
    return out


def unpermute(y_RD: Tensor, weight_Tk: Tensor, d: Dispatch) -> Tensor:
    """Weighted sum of each token's k rows, [T, D].

    A product and a sum. A batched matrix product could stand for them; measured on an H100 it takes a quarter less time
    with 8 experts a token, and in its backward pass five times as much with 2.
    """
    pair_TkD = unsort(y_RD, d).view(*weight_Tk.shape, -1)
    return (pair_TkD * weight_Tk.unsqueeze(-1)).sum(1)


def unsort(y_RD: Tensor, d: Dispatch) -> Tensor:
    """Sorted rows back in the order of their pairs, [R, D]."""
    out: Tensor = _Unsort.apply(y_RD, d.order_R, d.inverse_R)  # type: ignore[no-untyped-call]
    return out


def grouped_linear(x_RD: Tensor, weight_EDF: Tensor, offsets_E: Tensor) -> Tensor:
    """Each expert's rows times its own weight: [R, F]."""
    return functional.grouped_mm(x_RD, weight_EDF, offs=offsets_E)
