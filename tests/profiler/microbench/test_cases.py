"""Every operator and pass runs, and does the work that its name says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from moemodel.model.operators.work import PASSES, Kind, Pass
from moemodel.profiler.microbench.cases import BUILDERS, build
from moemodel.profiler.microbench.grid import cpu_grid, rotary_sizes
from moemodel.profiler.microbench.operands import Pool, expert_rows
from moemodel.profiler.microbench.points import Point, Sizes, passes

CPU = torch.device("cpu")
TOLERANCE = 0.02  # of bf16, against the largest value


class RecordingPool(Pool):
    """A pool that keeps what it handed out."""

    def __init__(self) -> None:
        super().__init__(CPU, 1 << 18, seed=0)
        self.given: list[Tensor] = []

    def normal(self, *shape: int) -> Tensor:
        self.given.append(super().normal(*shape))
        return self.given[-1]

    def own(self, *shape: int) -> Tensor:
        self.given.append(super().own(*shape))
        return self.given[-1]


def _run(kind: Kind, direction: Pass, sizes: Sizes) -> tuple[Any, list[Tensor]]:
    pool = RecordingPool()
    call = BUILDERS[kind](sizes, direction, pool)
    return call(), pool.given


def _close(found: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().item() or 1.0
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=TOLERANCE * scale)


def _gradients(function: Callable[..., Tensor], gradient: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """In float64, by autograd."""
    leaves = [x.detach().double().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*leaves), leaves, gradient.double())


def test_every_operator_has_a_case() -> None:
    assert set(BUILDERS) == set(Kind)


@pytest.mark.parametrize("point", cpu_grid(0), ids=str)
def test_every_point_of_the_small_grid_runs_again_and_again(point: Point) -> None:
    case = build(point, Pool(CPU, 1 << 18, seed=0))
    case.run(3)


def test_the_small_grid_has_every_pass() -> None:
    assert {(p.kind, p.direction) for p in cpu_grid(0)} == {(k, d) for k in Kind for d in PASSES[k]}


def test_sets_fill_the_cache_and_differ() -> None:
    (point, *_) = passes(Kind.RESIDUAL_ADD, Sizes(m=64, n=64))
    one_B = float(point.work().bytes_B)
    pool = RecordingPool()
    case = build(point, pool, cold_B=round(4.5 * one_B))
    assert len(case.calls) == 5
    assert len({t.data_ptr() for t in pool.given}) == 10
    assert len(build(point, pool, cold_B=round(1e9)).calls) == 24
    assert len(build(point, pool).calls) == 1


def test_calls_go_round_the_sets() -> None:
    (point, *_) = passes(Kind.COPY, Sizes(m=10))
    ran: list[int] = []
    case = type(build(point, RecordingPool()))(point, (lambda: ran.append(0), lambda: ran.append(1)))
    case.run(5)
    assert ran == [0, 1, 0, 1, 0]


def test_gemm_passes_are_those_of_autograd() -> None:
    sizes = Sizes(m=24, n=40, k=32)
    y, (x, w) = _run(Kind.GEMM, Pass.FORWARD, sizes)
    _close(y, x.double() @ w.double().t())
    dx, (gy, w) = _run(Kind.GEMM, Pass.BACKWARD_INPUT, sizes)
    _close(dx, _gradients(functional.linear, gy, torch.zeros(24, 32), w)[0])
    dw, (gy, x) = _run(Kind.GEMM, Pass.BACKWARD_WEIGHT, sizes)
    _close(dw, _gradients(functional.linear, gy, x, torch.zeros(40, 32))[1])


@pytest.mark.parametrize("skew", [1.0, 2.0])
def test_grouped_gemm_is_a_gemm_of_each_experts_rows(skew: float) -> None:
    sizes = Sizes(m=64, n=16, k=32, experts=4, skew=skew)
    rows = expert_rows(64, 4, skew)

    def each(x: Tensor, w: Tensor) -> Tensor:
        return torch.cat([part @ w[i] for i, part in enumerate(torch.split(x, rows))])

    y, (x, w) = _run(Kind.GROUPED_GEMM, Pass.FORWARD, sizes)
    _close(y, each(x.double(), w.double()))
    dx, (gy, w) = _run(Kind.GROUPED_GEMM, Pass.BACKWARD_INPUT, sizes)
    _close(dx, _gradients(each, gy, torch.zeros(64, 32), w)[0])
    dw, (gy, x) = _run(Kind.GROUPED_GEMM, Pass.BACKWARD_WEIGHT, sizes)
    _close(dw, _gradients(each, gy, x, torch.zeros(4, 32, 16))[1])


@pytest.mark.parametrize("kind", [Kind.ATTENTION, Kind.ATTENTION_FULL])
def test_attention_and_its_gradients(kind: Kind) -> None:
    sizes = Sizes(batch=2, heads=4, kv_heads=2, seq=16, head_dim=8)

    def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
        scores = q @ k.transpose(-2, -1) / 8**0.5
        if kind is Kind.ATTENTION:
            scores = scores.masked_fill(torch.ones(16, 16).triu(1).bool(), float("-inf"))
        return scores.softmax(-1) @ v

    y, given = _run(kind, Pass.FORWARD, sizes)
    q, k, v = (x.transpose(1, 2).double() for x in given)
    _close(y, reference(q, k, v))
    assert y.requires_grad
    found, given = _run(kind, Pass.BACKWARD, sizes)
    q, k, v, gradient = (x.transpose(1, 2) for x in given)
    for dx, expected in zip(found, _gradients(reference, gradient, q, k, v), strict=True):
        _close(dx, expected)


def test_rotary_turns_queries_and_keys_without_changing_their_length() -> None:
    sizes = rotary_sizes(batch=2, seq=8, heads=4, kv_heads=2, head_dim=16)
    rotated, given = _run(Kind.ROTARY, Pass.FORWARD, sizes)
    assert [tuple(r.shape) for r in rotated] == [(2, 8, 4, 16), (2, 8, 2, 16)]
    assert sum(r.numel() for r in rotated) == sizes.m * sizes.n
    for r, x in zip(rotated, given, strict=True):
        _close(r.double().norm(dim=-1), x.double().norm(dim=-1))
        _close(r[:, 0], x[:, 0])  # position 0 isn't turned
    gradients, _ = _run(Kind.ROTARY, Pass.BACKWARD, sizes)
    assert [g.shape for g in gradients] == [r.shape for r in rotated]


STREAMS: dict[Kind, Callable[..., Tensor]] = {
    Kind.GELU: functional.gelu,
    Kind.RELU: functional.relu,
    Kind.SWIGLU: lambda gate, up: functional.silu(gate) * up,
    Kind.SWIGLU_PACKED: lambda both: functional.silu(both.chunk(2, dim=-1)[0]) * both.chunk(2, dim=-1)[1],
    Kind.RMS_NORM: lambda x, w: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w,
    Kind.LAYER_NORM: lambda x, w, b: functional.layer_norm(x, (x.shape[-1],), w, b),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_and_their_gradients(kind: Kind) -> None:
    sizes = Sizes(m=12, n=32)
    y, inputs = _run(kind, Pass.FORWARD, sizes)
    _close(y, STREAMS[kind](*(x.double() for x in inputs)))
    assert y.requires_grad  # as in training
    found, (*inputs, gradient) = _run(kind, Pass.BACKWARD, sizes)
    for dx, expected in zip(found, _gradients(STREAMS[kind], gradient, *inputs), strict=True):
        _close(dx, expected)


def test_sums() -> None:
    sizes = Sizes(m=12, n=32)
    for direction in PASSES[Kind.RESIDUAL_ADD]:
        total, (a, b) = _run(Kind.RESIDUAL_ADD, direction, sizes)
        _close(total, a.double() + b.double())
    total, (gy,) = _run(Kind.BIAS, Pass.BACKWARD, sizes)
    _close(total, gy.double().sum(0))
    copied, (source,) = _run(Kind.COPY, Pass.FORWARD, sizes)
    assert torch.equal(copied, source)
    assert copied.data_ptr() != source.data_ptr()


def test_accumulating_leaves_the_shared_values_alone() -> None:
    pool = RecordingPool()
    call = BUILDERS[Kind.ACCUMULATE](Sizes(m=100), Pass.BACKWARD, pool)
    total, gradient = pool.given
    before_total, before_gradient = total.clone(), gradient.clone()
    call()
    _close(total, before_total.double() + before_gradient.double())
    assert torch.equal(gradient, before_gradient)


def test_embedding_gathers_and_scatters() -> None:
    sizes = Sizes(m=50, n=8, k=20)
    rows, (table,) = _run(Kind.EMBEDDING, Pass.FORWARD, sizes)
    assert all(any(torch.equal(row, entry) for entry in table) for row in rows)
    (gradient,), (table, gy) = _run(Kind.EMBEDDING, Pass.BACKWARD, sizes)
    assert gradient.shape == table.shape
    _close(gradient.sum(0), gy.double().sum(0))


def test_cross_entropy() -> None:
    sizes = Sizes(m=16, n=100)
    loss, (logits,) = _run(Kind.CROSS_ENTROPY, Pass.FORWARD, sizes)
    assert loss.dtype is torch.float32
    assert logits.float().logsumexp(-1).mean() - 1 < loss < logits.float().logsumexp(-1).mean() + 1
    (gradient,), _ = _run(Kind.CROSS_ENTROPY, Pass.BACKWARD, sizes)
    assert gradient.dtype is torch.bfloat16
    assert gradient.float().sum(-1).abs().max() < 1e-3  # softmax less one-hot


def test_router_gives_weights_that_sum_to_one() -> None:
    weights, _ = _run(Kind.ROUTER, Pass.FORWARD, Sizes(m=32, experts=8, top_k=2))
    assert weights.shape == (32, 2)
    _close(weights.sum(-1), torch.ones(32))
    (gradient,), _ = _run(Kind.ROUTER, Pass.BACKWARD, Sizes(m=32, experts=8, top_k=2))
    assert gradient.shape == (32, 8)


def test_permute_copies_each_row_top_k_times_and_its_gradient_sums_them() -> None:
    sizes = Sizes(m=20, n=16, experts=4, top_k=3)
    rows, given = _run(Kind.PERMUTE, Pass.FORWARD, sizes)
    x = given[-1]
    assert rows.shape == (60, 16)
    _close(rows.double().sum(0), 3 * x.double().sum(0))
    (gradient,), given = _run(Kind.PERMUTE, Pass.BACKWARD, sizes)
    assert gradient.shape == (20, 16)
    _close(gradient.double().sum(0), given[-1].double().sum(0))


def test_unpermute_gives_both_gradients() -> None:
    sizes = Sizes(m=20, n=16, experts=4, top_k=3)
    y, _ = _run(Kind.UNPERMUTE, Pass.FORWARD, sizes)
    assert y.shape == (20, 16)
    (rows, weights), _ = _run(Kind.UNPERMUTE, Pass.BACKWARD, sizes)
    assert rows.shape == (60, 16)
    assert weights.shape == (20, 3)


@pytest.mark.parametrize("kind", [Kind.ADAMW, Kind.ADAMW_MIXED])
def test_optimizers_change_every_parameter(kind: Kind) -> None:
    pool = RecordingPool()
    call = BUILDERS[kind](Sizes(m=1003), Pass.STEP, pool)
    parameters = pool.given[:8]
    assert sum(p.numel() for p in parameters) == 1003
    before = [p.clone() for p in parameters]
    for _ in range(100):
        call()
    assert all((p != b).any() for p, b in zip(parameters, before, strict=True))


def test_grad_norm_clips_to_one() -> None:
    pool = RecordingPool()
    call = BUILDERS[Kind.GRAD_NORM](Sizes(m=1000), Pass.STEP, pool)
    first, second = (float(call()) for _ in range(2))  # type: ignore[arg-type]
    assert first > 20
    assert second == pytest.approx(1, abs=0.02)
