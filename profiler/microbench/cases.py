"""How to run one call of each operator: operands on the device, and a function without arguments.

A builder makes one set of operands; a case holds several, used in turn, so that caches are as cold as in training.
Shapes' letters as in `torch_ops`: T tokens, D features, B batch, S seq, H heads, K head_dim, E experts, k choices,
R = T k rows, V vocabulary; of a product, [m, k] x [n, k].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from moemodel.model.operators.work import Kind, Pass
from moemodel.profiler.backends.torch_native import operators as torch_ops
from moemodel.profiler.microbench.operands import DTYPE, Pool, expert_rows
from moemodel.profiler.microbench.points import Point, Sizes

Call = Callable[[], object]
Builder = Callable[[Sizes, Pass, Pool], Call]

_MAX_SETS = 24  # of operands: of small operators more would take longer to make than to measure, and stay cached
_OPTIMIZER_TENSORS = 8  # assumed: few and large, so that the device's time is that of the elements
_WEIGHT_STD = 0.02  # GPT-2 (Radford et al. 2019) and most models since
_ROPE_THETA = 10_000.0  # any base costs the same


@dataclass(frozen=True)
class Case:
    """A point ready to run: one call for each set of operands."""

    point: Point
    calls: tuple[Call, ...]

    def run(self, count: int) -> None:
        """Queue `count` calls, going round the sets."""
        calls = self.calls
        for i in range(count):
            calls[i % len(calls)]()


def build(point: Point, pool: Pool, cold_B: int = 0) -> Case:
    """Operands and calls of a point.

    Args:
        point: what to run.
        pool: where operands come from.
        cold_B: make sets until they hold this much together (twice the cache, say), 24 at most.

    Raises:
        torch.OutOfMemoryError, RuntimeError, NotImplementedError: it does not fit, or torch cannot run it here.
    """
    one_B = max(1.0, float(point.work().bytes_B))
    sets = min(_MAX_SETS, max(1, math.ceil(cold_B / one_B)))
    builder = BUILDERS[point.kind]
    return Case(point, tuple(builder(point.sizes, point.direction, pool) for _ in range(sets)))


def _gradient(outputs: Sequence[Tensor], inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Call:
    """One backward pass of a recorded graph, which stays."""
    return lambda: torch.autograd.grad(outputs, inputs, gradients, retain_graph=True)


def _differentiable(
    forward: Callable[[], Tensor], inputs: Sequence[Tensor], direction: Pass, gradient: Callable[[], Tensor]
) -> Call:
    """The forward pass under autograd's recording, or the backward pass of one such."""
    if direction is Pass.FORWARD:
        return forward
    return _gradient([forward()], inputs, [gradient()])


# --- products --------------------------------------------------------------------------------------------------------


def gemm(s: Sizes, direction: Pass, pool: Pool) -> Call:
    if direction is Pass.FORWARD:
        x_mk, w_nk = pool.normal(s.m, s.k), pool.normal(s.n, s.k)
        return lambda: functional.linear(x_mk, w_nk)
    gy_mn = pool.normal(s.m, s.n)
    if direction is Pass.BACKWARD_INPUT:
        w_nk = pool.normal(s.n, s.k)
        return lambda: gy_mn @ w_nk
    x_mk = pool.normal(s.m, s.k)
    return lambda: gy_mn.t() @ x_mk


def grouped_gemm(s: Sizes, direction: Pass, pool: Pool) -> Call:
    """The layouts are those of torch's own derivative of `grouped_mm` with row-major operands."""
    offsets_E = pool.host_integers(list(itertools.accumulate(expert_rows(s.m, s.experts, s.skew))))
    if direction is Pass.FORWARD:
        x_mk, w_Ekn = pool.normal(s.m, s.k), pool.normal(s.experts, s.k, s.n)
        return lambda: torch_ops.grouped_linear(x_mk, w_Ekn, offsets_E)
    gy_mn = pool.normal(s.m, s.n)
    if direction is Pass.BACKWARD_INPUT:
        w_Ekn = pool.normal(s.experts, s.k, s.n)
        return lambda: functional.grouped_mm(gy_mn, w_Ekn.transpose(-2, -1), offs=offsets_E)
    x_mk = pool.normal(s.m, s.k)
    return lambda: functional.grouped_mm(x_mk.transpose(-2, -1), gy_mn, offs=offsets_E)


# --- attention -------------------------------------------------------------------------------------------------------


def _heads_first(pool: Pool, batch: int, seq: int, heads: int, head_dim: int) -> Tensor:
    """[B, H, S, K] as a view of [B, S, H, K], which is how a projection leaves it."""
    return pool.normal(batch, seq, heads, head_dim).transpose(1, 2)


def _attention(causal: bool) -> Builder:
    def builder(s: Sizes, direction: Pass, pool: Pool) -> Call:
        q, k, v = (
            _heads_first(pool, s.batch, s.seq, heads, s.head_dim).detach().requires_grad_()
            for heads in (s.heads, s.kv_heads, s.kv_heads)
        )
        return _differentiable(
            lambda: torch_ops.attention(q, k, v, causal=causal),
            (q, k, v),
            direction,
            lambda: _heads_first(pool, s.batch, s.seq, s.heads, s.head_dim),
        )

    return builder


def rotary(s: Sizes, direction: Pass, pool: Pool) -> Call:
    """Queries and keys of m x batch tokens. Without `seq` a sequence is all of them; without `heads`, one head of n."""
    tokens = s.m * s.batch
    seq = s.seq if s.seq > 1 else s.m
    heads, kv_heads, head_dim = (s.heads, s.kv_heads, s.head_dim) if s.head_dim > 1 else (1, 1, s.n // 2)
    tables = torch_ops.rotary_tables(seq, head_dim, _ROPE_THETA, pool.device, DTYPE)
    cos_S1h, sin_S1h = (table.unsqueeze(1) for table in tables)  # as the model: sequence first, heads behind
    shapes = [(tokens // seq, seq, h, head_dim) for h in (heads, kv_heads)]
    both = [pool.normal(*shape).detach().requires_grad_() for shape in shapes]

    def forward() -> list[Tensor]:
        return [torch_ops.rotary(x, cos_S1h, sin_S1h) for x in both]

    if direction is Pass.FORWARD:
        return forward
    return _gradient(forward(), both, [pool.normal(*shape) for shape in shapes])


# --- element by element ----------------------------------------------------------------------------------------------


def _rows(s: Sizes) -> tuple[int, int]:
    return s.m * s.batch, s.n


def rms_norm(s: Sizes, direction: Pass, pool: Pool) -> Call:
    x_TD, weight_D = pool.leaf(*_rows(s)), pool.leaf(s.n)
    return _differentiable(
        lambda: torch_ops.rms_norm(x_TD, weight_D), (x_TD, weight_D), direction, lambda: pool.normal(*_rows(s))
    )


def layer_norm(s: Sizes, direction: Pass, pool: Pool) -> Call:
    x_TD, weight_D, bias_D = pool.leaf(*_rows(s)), pool.leaf(s.n), pool.leaf(s.n)
    return _differentiable(
        lambda: torch_ops.layer_norm(x_TD, weight_D, bias_D),
        (x_TD, weight_D, bias_D),
        direction,
        lambda: pool.normal(*_rows(s)),
    )


def _activation(function: Callable[[Tensor], Tensor]) -> Builder:
    def builder(s: Sizes, direction: Pass, pool: Pool) -> Call:
        x_TD = pool.leaf(*_rows(s))
        return _differentiable(lambda: function(x_TD), (x_TD,), direction, lambda: pool.normal(*_rows(s)))

    return builder


def swiglu(s: Sizes, direction: Pass, pool: Pool) -> Call:
    gate_TF, up_TF = pool.leaf(*_rows(s)), pool.leaf(*_rows(s))
    return _differentiable(
        lambda: torch_ops.swiglu(gate_TF, up_TF), (gate_TF, up_TF), direction, lambda: pool.normal(*_rows(s))
    )


def swiglu_packed(s: Sizes, direction: Pass, pool: Pool) -> Call:
    """Gate and up-projection are the halves of one tensor, as where one product gives both."""
    m, n = _rows(s)
    both_T2F = pool.leaf(m, 2 * n)
    return _differentiable(
        lambda: torch_ops.swiglu(*both_T2F.chunk(2, dim=-1)), (both_T2F,), direction, lambda: pool.normal(m, n)
    )


def residual_add(s: Sizes, direction: Pass, pool: Pool) -> Call:
    """Both passes are a sum: of x and the branch, or of their gradients."""
    del direction
    a_TD, b_TD = pool.normal(*_rows(s)), pool.normal(*_rows(s))
    return lambda: a_TD + b_TD


def bias(s: Sizes, direction: Pass, pool: Pool) -> Call:
    del direction
    gy_mn = pool.normal(*_rows(s))
    return lambda: gy_mn.sum(0)


def accumulate(s: Sizes, direction: Pass, pool: Pool) -> Call:
    del direction
    total, gradient = pool.own(s.m * s.batch), pool.normal(s.m * s.batch)
    return lambda: total.add_(gradient)


def copy(s: Sizes, direction: Pass, pool: Pool) -> Call:
    del direction
    source = pool.normal(s.m * s.batch)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


# --- ends of the model -----------------------------------------------------------------------------------------------


def embedding(s: Sizes, direction: Pass, pool: Pool) -> Call:
    token_T, weight_VD = pool.tokens(s.k, s.m * s.batch), pool.leaf(s.k, s.n)
    return _differentiable(
        lambda: functional.embedding(token_T, weight_VD), (weight_VD,), direction, lambda: pool.normal(*_rows(s))
    )


def cross_entropy(s: Sizes, direction: Pass, pool: Pool) -> Call:
    logits_TV, target_T = pool.leaf(*_rows(s)), pool.integers(s.n, s.m * s.batch)
    return _differentiable(
        lambda: torch_ops.cross_entropy(logits_TV, target_T),
        (logits_TV,),
        direction,
        lambda: torch.ones((), device=pool.device),
    )


# --- experts ---------------------------------------------------------------------------------------------------------


def router(s: Sizes, direction: Pass, pool: Pool) -> Call:
    logits_TE = pool.router_logits(s.m * s.batch, s.experts).detach().requires_grad_()
    return _differentiable(
        lambda: torch_ops.route(logits_TE, s.top_k)[0],
        (logits_TE,),
        direction,
        lambda: pool.normal(s.m * s.batch, s.top_k),
    )


def _choices(s: Sizes, pool: Pool) -> tuple[Tensor, Tensor]:
    """Weights [T, k] and experts [T, k] as a router gives them."""
    return torch_ops.route(pool.router_logits(s.m * s.batch, s.experts), s.top_k)


def permute(s: Sizes, direction: Pass, pool: Pool) -> Call:
    """Forward with the sort that finds the places; the gradient needs no sort."""
    _, expert_Tk = _choices(s, pool)
    x_TD = pool.leaf(*_rows(s))

    def forward() -> Tensor:
        return torch_ops.permute(x_TD, torch_ops.dispatch(expert_Tk, s.experts), s.top_k)

    return _differentiable(forward, (x_TD,), direction, lambda: pool.normal(s.m * s.batch * s.top_k, s.n))


def unpermute(s: Sizes, direction: Pass, pool: Pool) -> Call:
    weight_Tk, expert_Tk = _choices(s, pool)
    weight_Tk = weight_Tk.detach().requires_grad_()
    places = torch_ops.dispatch(expert_Tk, s.experts)
    y_RD = pool.leaf(s.m * s.batch * s.top_k, s.n)
    return _differentiable(
        lambda: torch_ops.unpermute(y_RD, weight_Tk, places),
        (y_RD, weight_Tk),
        direction,
        lambda: pool.normal(*_rows(s)),
    )


# --- optimizer -------------------------------------------------------------------------------------------------------


def _parameters(s: Sizes, pool: Pool) -> list[nn.Parameter]:
    """m parameters in a few tensors, of the size that weights have, with gradients."""
    count = min(_OPTIMIZER_TENSORS, s.m)
    sizes = [s.m // count + (i < s.m % count) for i in range(count)]
    parameters = [nn.Parameter(pool.own(size).mul_(_WEIGHT_STD)) for size in sizes]
    for parameter in parameters:
        parameter.grad = pool.own(parameter.numel())
    return parameters


def adamw(s: Sizes, direction: Pass, pool: Pool) -> Call:
    del direction
    # as `profiler.backends.torch_native.optimizer`; none of the figures changes the time
    return torch.optim.AdamW(_parameters(s, pool), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True).step


def adamw_mixed(s: Sizes, direction: Pass, pool: Pool) -> Call:
    """The very step that the training runs take."""
    from moemodel.profiler.backends.torch_native.optimizer import MixedAdamW

    del direction
    return MixedAdamW(_parameters(s, pool)).step


def grad_norm(s: Sizes, direction: Pass, pool: Pool) -> Call:
    """After the first call the norm is 1, so gradients stay as they are from then on, only smaller than real ones."""
    del direction
    parameters = _parameters(s, pool)
    return lambda: nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)


BUILDERS: dict[Kind, Builder] = {
    Kind.GEMM: gemm,
    Kind.GROUPED_GEMM: grouped_gemm,
    Kind.ATTENTION: _attention(causal=True),
    Kind.ATTENTION_FULL: _attention(causal=False),
    Kind.RMS_NORM: rms_norm,
    Kind.LAYER_NORM: layer_norm,
    Kind.ROTARY: rotary,
    Kind.GELU: _activation(functional.gelu),
    Kind.RELU: _activation(functional.relu),
    Kind.SWIGLU: swiglu,
    Kind.SWIGLU_PACKED: swiglu_packed,
    Kind.RESIDUAL_ADD: residual_add,
    Kind.BIAS: bias,
    Kind.EMBEDDING: embedding,
    Kind.CROSS_ENTROPY: cross_entropy,
    Kind.ROUTER: router,
    Kind.PERMUTE: permute,
    Kind.UNPERMUTE: unpermute,
    Kind.ADAMW: adamw,
    Kind.ADAMW_MIXED: adamw_mixed,
    Kind.GRAD_NORM: grad_norm,
    Kind.ACCUMULATE: accumulate,
    Kind.COPY: copy,
}
