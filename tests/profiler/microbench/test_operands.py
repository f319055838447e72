"""Operands: random, reproducible, aligned, skewed as asked."""

from __future__ import annotations

import pytest
import torch

from moemodel.profiler.microbench.operands import Pool, expert_rows


@pytest.fixture
def pool() -> Pool:
    return Pool(torch.device("cpu"), 1 << 16, seed=3)


def test_values_are_normal_and_never_zero(pool: Pool) -> None:
    values = pool.normal(256, 200).float()
    assert values.mean().abs() < 0.02
    assert values.std().item() == pytest.approx(1, abs=0.02)
    assert (values == 0).float().mean() < 1e-3


def test_same_seed_same_values() -> None:
    a, b = (Pool(torch.device("cpu"), 1000, seed=7) for _ in range(2))
    assert torch.equal(a.normal(10, 10), b.normal(10, 10))
    assert torch.equal(a.tokens(100, 50), b.tokens(100, 50))


def test_views_follow_each_other_aligned_and_go_round(pool: Pool) -> None:
    first, second = pool.normal(100), pool.normal(100)
    assert second.data_ptr() - first.data_ptr() == 512
    for _ in range(10):
        assert pool.normal(1 << 15).is_contiguous()


def test_larger_than_the_pool_is_made_for_itself(pool: Pool) -> None:
    assert pool.normal(1 << 17).float().std().item() == pytest.approx(1, abs=0.02)


def test_tokens_follow_zipf(pool: Pool) -> None:
    """P(id < n) = log(n + 1) / log(V + 1), about."""
    tokens = pool.tokens(50_000, 20_000)
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < 50_000
    share = (tokens < 223).float().mean().item()  # the square root of the vocabulary
    assert share == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("experts", [4, 8, 64, 128])
@pytest.mark.parametrize("skew", [1.0, 1.5, 2.0, 4.0])
def test_busiest_expert_has_the_skew(experts: int, skew: float) -> None:
    rows = 65536
    counts = expert_rows(rows, experts, skew)
    assert len(counts) == experts
    assert sum(counts) == rows
    assert min(counts) >= 0
    assert max(counts) * experts / rows == pytest.approx(skew, rel=0.01)


def test_router_prefers_some_experts(pool: Pool) -> None:
    logits = pool.router_logits(4096, 16)
    load = torch.bincount(logits.float().argmax(-1), minlength=16)
    assert load.max() / load.float().mean() > 1.5
    assert load.min() > 0
