"""Shapes: enough, varied, affordable, and balanced from the start."""

from __future__ import annotations

from collections import Counter

import pytest

from moemodel.model.operators.work import PASSES, Kind, Pass
from moemodel.profiler.microbench.grid import balanced, cpu_sweep, gpu_grid, gpu_sweep
from moemodel.profiler.microbench.points import Point, Sizes
from moemodel.profiler.sections.loads import cpu_loads, gpu_loads

FAST_FLOPS, FAST_BYTES = 6e14, 2.5e12  # a second, about an H100


@pytest.fixture(scope="module")
def grid() -> list[Point]:
    return gpu_grid(0)


def _least_s(point: Point) -> float:
    work = point.work()
    return max(float(work.flops) / FAST_FLOPS, float(work.bytes_B) / FAST_BYTES)


def test_size_and_coverage(grid: list[Point]) -> None:
    assert 1150 <= len(grid) <= 1700
    assert len(set(grid)) == len(grid)
    assert {(p.kind, p.direction) for p in grid} == {(k, d) for k in Kind for d in PASSES[k]}


def test_seed_decides(grid: list[Point]) -> None:
    assert gpu_grid(0) == grid
    assert gpu_grid(1) != grid


def test_any_beginning_is_balanced(grid: list[Point]) -> None:
    whole, start = (Counter((p.kind, p.direction) for p in part) for part in (grid, grid[: len(grid) // 4]))
    assert all(abs(start[key] - count / 4) <= 1.01 for key, count in whole.items())


def test_no_point_is_too_long_or_too_large(grid: list[Point]) -> None:
    assert max(_least_s(p) for p in grid) < 0.02
    assert sum(max(_least_s(p), 1e-3) for p in grid) < 2.5
    assert max(float(p.work().bytes_B) for p in grid) < 40e9


def test_products_have_odd_shapes_too(grid: list[Point]) -> None:
    sizes = {p.sizes for p in grid if p.kind is Kind.GEMM}
    odd = [s for s in sizes if any(v & (v - 1) for v in (s.n, s.k))]
    assert len(odd) > len(sizes) / 2
    assert all(s.k % 64 == 0 for s in sizes)


def test_attention_varies_in_everything(grid: list[Point]) -> None:
    sizes = {p.sizes for p in grid if p.kind is Kind.ATTENTION}
    assert {s.head_dim for s in sizes} == {64, 96, 128}
    assert {s.heads // s.kv_heads for s in sizes} >= {1, 4, 8}
    assert len({s.seq for s in sizes}) >= 6
    assert all(s.heads % s.kv_heads == 0 for s in sizes)


def test_grouped_products_vary_in_experts_and_skew(grid: list[Point]) -> None:
    sizes = {p.sizes for p in grid if p.kind is Kind.GROUPED_GEMM}
    assert len({s.experts for s in sizes}) >= 5
    assert {s.skew for s in sizes} >= {1.0, 2.0, 4.0}
    assert all(s.skew <= s.experts for s in sizes)


def test_rotary_work_counts_each_element_once(grid: list[Point]) -> None:
    for s in {p.sizes for p in grid if p.kind is Kind.ROTARY}:
        assert s.batch == 1
        assert s.m % s.seq == 0
        assert s.n == (s.heads + s.kv_heads) * s.head_dim


def test_balanced_keeps_every_point_once() -> None:
    points = [Point(kind=Kind.COPY, direction=Pass.FORWARD, sizes=Sizes(m=m)) for m in (1, 2, 3, 2)]
    assert Counter(balanced(points, 0)) == Counter(set(points))


def test_sweep_and_loads() -> None:
    assert len(gpu_sweep()) == 10
    for loads in (gpu_loads(), cpu_loads()):
        assert len({load.name for load in loads}) == len(loads)
    assert 45 <= len(gpu_loads()) <= 52
    assert {load.duty for load in gpu_loads()} >= {1.0, 0.85, 0.7, 0.5, 0.3}
    assert len(cpu_sweep()) == 2
