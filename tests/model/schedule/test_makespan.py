"""Makespan of a pipeline against closed forms, and against the longest path of the graph of torch's order of work."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import networkx as nx
import numpy as np
import pytest

from moemodel.model.core.arrays import FloatArray
from moemodel.model.schedule import registry, zero_bubble
from moemodel.model.schedule.base import Sizes, StageTimes, Work
from moemodel.model.schedule.batch import PlanSchedules

Times = list[float]
Orders = Callable[..., list[list[Work]]]


def longest_path(orders: list[list[Work]], forward: Times, backward: Times, weights: Times | None = None) -> float:
    """The step as a graph: stages in their order, activations down, gradients up. Times of chunks, of the whole model.

    `weights`: of the backward pass, where it is split.
    """
    graph: nx.DiGraph[Work] = nx.DiGraph()
    for order in orders:
        graph.add_nodes_from(order)
        graph.add_edges_from(pairwise(order))
    last = len(forward) - 1
    for kind, chunk, i in list(graph):
        if kind == "F" and chunk < last:
            graph.add_edge(Work("F", chunk, i), Work("F", chunk + 1, i))
        if kind == "B":
            graph.add_edge(Work("B", chunk + 1, i) if chunk < last else Work("F", last, i), Work("B", chunk, i))
    inputs = backward if weights is None else [b - w for b, w in zip(backward, weights, strict=True)]
    took = {"F": forward, "B": inputs, "W": weights or []}
    # an edge takes as long as the work that it leaves; the end of the step comes behind everything
    end = Work("W", last + 1, 0)
    graph.add_edges_from([(work, end) for work in graph])
    for work, _, data in graph.edges(data=True):
        data["time_s"] = took[work.kind][work.chunk]
    return float(nx.dag_longest_path_length(graph, weight="time_s"))


def ours(
    name: str,
    forward: Times,
    backward: Times,
    m: int,
    *,
    counts: list[int] | None = None,
    virtual: int = 1,
    weight_share: Times | None = None,
) -> float:
    """Times of classes of stages."""
    counts = counts or [1] * len(forward)
    times = StageTimes(
        forward_s=[np.array([[f]]) for f in forward],
        backward_s=[np.array([[b]]) for b in backward],
        weight_share=[np.array([[share]]) for share in weight_share or [0.5] * len(forward)],
        counts=counts,
    )
    sizes = Sizes(stages=np.array([sum(counts)]), virtual=np.array([virtual]), micro_batches=np.array([m]))
    return float(PlanSchedules(np.array([registry.number(name)]), sizes).makespan(times).item())


@pytest.mark.parametrize("name", ["1f1b", "gpipe"])
@pytest.mark.parametrize(("stages", "m"), [(1, 1), (1, 8), (2, 1), (4, 2), (4, 4), (4, 32), (7, 3), (8, 5)])
def test_equal_stages(name: str, stages: int, m: int) -> None:
    """(m + n - 1) T, whichever the schedule (Narayanan et al. 2021, section 2.2.1)."""
    assert ours(name, [1.0] * stages, [2.0] * stages, m) == pytest.approx((m + stages - 1) * 3.0)


@pytest.mark.parametrize("seed", range(40))
def test_gpipe_is_the_longest_path(seed: int, torch_orders: Orders) -> None:
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 9)), int(rng.integers(1, 20))
    forward, backward = list(rng.uniform(0.5, 1.5, n)), list(rng.uniform(1.0, 3.0, n))
    expected = longest_path(torch_orders("gpipe", n, m), forward, backward)
    assert ours("gpipe", forward, backward, m) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(60))
def test_one_f_one_b_is_the_longest_path_where_stages_are_alike(seed: int, torch_orders: Orders) -> None:
    """Stages of any size, backward in the same ratio to forward within a tenth: what cutting a model gives."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 9)), int(rng.integers(1, 40))
    size = rng.uniform(0.8, 1.3, n)
    forward = list(size * rng.uniform(0.95, 1.05, n))
    backward = list(size * rng.uniform(1.9, 2.1, n))
    expected = longest_path(torch_orders("1f1b", n, m), forward, backward)
    assert ours("1f1b", forward, backward, m) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("seed", range(60))
def test_one_f_one_b_of_stages_of_any_kind(seed: int, torch_orders: Orders) -> None:
    """Never longer than the longest path, since it is the length of some path; at most 4 % shorter."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 9)), int(rng.integers(1, 30))
    forward, backward = list(rng.uniform(0.5, 1.5, n)), list(rng.uniform(1.0, 3.0, n))
    expected = longest_path(torch_orders("1f1b", n, m), forward, backward)
    assert 0.96 * expected <= ours("1f1b", forward, backward, m) <= expected * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", registry.NAMES)
def test_a_class_of_stages_is_that_many_stages(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = [int(c) for c in rng.integers(1, 4, 3)]
    m = int(rng.integers(1, 20))
    forward, backward = list(rng.uniform(0.5, 1.5, 3)), list(rng.uniform(1.0, 3.0, 3))
    each = [[t for t, count in zip(times, counts, strict=True) for _ in range(count)] for times in (forward, backward)]
    assert ours(name, forward, backward, m, counts=counts) == pytest.approx(ours(name, each[0], each[1], m))


def test_the_first_stage_is_not_starved_when_it_is_slowest() -> None:
    """A slow first stage hides the others' fill and drain behind its own warm-up: all of its work, and nothing else."""
    assert ours("1f1b", [3.0, 1.0], [3.0, 1.0], 4) == pytest.approx(4 * 6.0)


@pytest.mark.parametrize("seed", range(40))
def test_stages_that_a_model_is_cut_into_unevenly(seed: int, torch_orders: Orders) -> None:
    """One layer more on some stages, ends on two of them: the longest path itself."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(2, 9)), int(rng.integers(1, 40))
    layers = rng.integers(2, 6) + rng.integers(0, 2, n).astype(float)
    layers[0] += rng.uniform(0, 0.5)
    layers[-1] += rng.uniform(0, 4)
    forward, backward = list(layers), list(2 * layers)
    expected = longest_path(torch_orders("1f1b", n, m), forward, backward)
    assert ours("1f1b", forward, backward, m) == pytest.approx(expected, rel=1e-9)


def test_virtual_stages_shorten_the_bubble_alone(torch_orders: Orders) -> None:
    """m T + (n - 1) T / v (Narayanan et al. 2021, section 2.2.2)."""
    n, m, turn = 4, 8, 3.0
    for v in (1, 2, 4):
        expected = m * turn + (n - 1) * turn / v
        assert ours("1f1b", [1.0] * n, [2.0] * n, m, virtual=v) == pytest.approx(expected)
        chunks = [1.0 / v] * (n * v), [2.0 / v] * (n * v)
        assert longest_path(torch_orders("1f1b", n, m, v), *chunks) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(30))
def test_interleaved_stages_with_a_head(seed: int, torch_orders: Orders) -> None:
    """The last chunk is longer, and so its stage: the longest path itself."""
    rng = np.random.default_rng(seed)
    n, v = int(rng.integers(2, 6)), int(rng.integers(2, 4))
    m = n * int(rng.integers(1, 6))
    forward = [1.0] * (n * v - 1) + [1.0 + float(rng.uniform(0, 2))]
    backward = [2 * f for f in forward]
    stages = [[sum(times[s::n]) for s in range(n)] for times in (forward, backward)]
    expected = longest_path(torch_orders("1f1b", n, m, v), forward, backward)
    assert ours("1f1b", stages[0], stages[1], m, virtual=v) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("m", "each"), [(10, 5), (14, 5), (12, 6), (16, 4), (20, 20), (9, 5)])
def test_rounds_of_another_length(m: int, each: int) -> None:
    """Rounds of more micro-batches than stages fill and drain the pipeline no slower, the last of them shorter or not:
    the longest path through the order, and at most so many micro-batches of it held at once."""
    n, v = 4, 3
    sizes = Sizes(stages=n, virtual=v, micro_batches=m, round=each)
    schedule = registry.find("1f1b", v)
    orders = [schedule.order(stage, sizes) for stage in range(n)]
    chunks = [1.0 / v] * (n * v), [2.0 / v] * (n * v)
    expected = longest_path(orders, *chunks)
    assert expected == pytest.approx(m * 3.0 + (n - 1) * 3.0 / v, rel=0.02)
    for stage, order in enumerate(orders):
        held = np.cumsum([1 if work.kind == "F" else -1 for work in order])
        assert held.max() / v == pytest.approx(float(schedule.in_flight(stage, sizes)))
        for kind in "FB":
            done = [(work.chunk, work.micro_batch) for work in order if work.kind == kind]
            assert sorted(done) == [(stage + n * chunk, i) for chunk in range(v) for i in range(m)]


# ---- zero-bubble ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (4, 4), (4, 32), (8, 9)])
@pytest.mark.parametrize(("f", "b", "w"), [(1.0, 1.0, 1.0), (1.0, 1.1, 0.9), (1.0, 1.4, 0.6)])
def test_a_zero_bubble_step_of_equal_stages(n: int, m: int, f: float, b: float, w: float) -> None:
    """m (F + B + W) + (n - 1) (F + B - W): Qi et al. 2023, table 1."""
    took = ours("zero-bubble", [f] * n, [b + w] * n, m, weight_share=[w / (b + w)] * n)
    assert took == pytest.approx(m * (f + b + w) + (n - 1) * (f + b - w))


@pytest.mark.parametrize("virtual", [1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_a_zero_bubble_step_is_the_longest_path(seed: int, virtual: int, torch_orders: Orders) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 6))
    rounds = int(rng.integers(1, 9))
    m = n * rounds if virtual > 1 else rounds * int(rng.integers(n, n + 1 + (n - 1) // rounds))
    forward, backward = list(rng.uniform(0.8, 1.3, n)), list(rng.uniform(1.6, 2.4, n))
    share = list(rng.uniform(0.3, 0.6, n))
    chunks = [[time / virtual for _ in range(virtual) for time in times] for times in (forward, backward)]
    weights = [b * part for b, part in zip(chunks[1], share * virtual, strict=True)]
    expected = longest_path(torch_orders("zero-bubble", n, m, virtual), chunks[0], chunks[1], weights)
    took = ours("zero-bubble", forward, backward, m, virtual=virtual, weight_share=share)
    assert took == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("virtual", [1, 2])
@pytest.mark.parametrize("slowest", [1.5, 1.02, 1.001])
def test_a_zero_bubble_step_of_many_rounds_of_micro_batches(slowest: float, virtual: int, torch_orders: Orders) -> None:
    """Where all but the first rounds are continued instead of walked: also where two stages are nearly as slow."""
    n, m = 3, 150
    for forward in ([1.0, 1.0, slowest], [slowest, 1.0, 1.0001 * slowest], [1.0, slowest, 1.0]):
        backward, share = [2 * f for f in forward], [0.5, 0.3, 0.4]
        chunks = [[time / virtual for _ in range(virtual) for time in times] for times in (forward, backward)]
        weights = [b * part for b, part in zip(chunks[1], share * virtual, strict=True)]
        expected = longest_path(torch_orders("zero-bubble", n, m, virtual), chunks[0], chunks[1], weights)
        took = ours("zero-bubble", forward, backward, m, virtual=virtual, weight_share=share)
        assert expected * (1 - 1.5e-4) <= took <= expected * (1 + 1e-9)
        assert took >= m * 3 * max(forward) * (1 - 1e-9)  # no stage does its own work in less


@pytest.mark.parametrize(("n", "m"), [(2000, 10_000), (8, 10_000_000), (300, 300)])
def test_a_zero_bubble_step_of_any_size_takes_no_longer_to_find(n: int, m: int) -> None:
    """m (F + B + W) + (n - 1) (F + B - W), as above."""
    took = ours("zero-bubble", [1.0], [2.0], m, counts=[n], weight_share=[0.45])
    assert took == pytest.approx(3 * m + (n - 1) * (1 + 1.1 - 0.9), rel=1e-12)


@pytest.mark.parametrize(
    ("n", "m", "virtual"), [(500, 500_000, 1000), (64, 6400, 100), (2, 10_000, 4000), (16, 1600, 100)]
)
def test_a_zero_bubble_step_of_many_chunks_takes_no_longer_to_find(
    n: int, m: int, virtual: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, with v chunks a stage and so a ramp of one chunk a stage; no walk is longer than is allowed."""
    walks: list[int] = []
    walk = zero_bubble._walk

    def counted(stages: Any, m: int, v: int) -> Any:
        walks.append(m * v)
        return walk(stages, m, v)

    monkeypatch.setattr(zero_bubble, "_walk", counted)
    took = ours("zero-bubble", [1.0], [2.0], m, counts=[n], weight_share=[0.45], virtual=virtual)
    assert took == pytest.approx(3 * m + (n - 1) * (1 + 1.1 - 0.9) / virtual, rel=1e-9)
    assert sum(walks) <= 2 * zero_bubble._TURNS


def test_zero_bubble_is_never_slower_than_one_f_one_b() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        n, m = int(rng.integers(2, 7)), int(rng.integers(1, 20))
        forward = list(rng.uniform(0.8, 1.3, n))
        backward = [2 * f for f in forward]
        plain = ours("1f1b", forward, backward, m)
        assert ours("zero-bubble", forward, backward, m, weight_share=[0.5] * n) <= plain * (1 + 1e-9)


# ---- batches --------------------------------------------------------------------------------------------------------


def test_plans_of_all_schedules_together_are_each_alone() -> None:
    names = ["1f1b", "gpipe", "zero-bubble", "1f1b"]
    m, virtual = [3, 6, 6, 9], [1, 1, 1, 2]
    times = StageTimes(
        forward_s=[np.full((4, 2), 1.0), np.full((4, 2), 1.5)],
        backward_s=[np.full((4, 2), 2.0), np.full((4, 2), 3.0)],
        weight_share=[np.full((4, 1), 0.4)] * 2,
        counts=[2, 1],
    )
    sizes = Sizes(stages=np.full(4, 3), virtual=np.array(virtual), micro_batches=np.array(m))
    schedules = PlanSchedules(np.array([registry.number(name) for name in names]), sizes)
    both, flight = schedules.makespan(times), schedules.in_flight(1)
    for row, name in enumerate(names):
        alone = ours(name, [1.0, 1.5], [2.0, 3.0], m[row], counts=[2, 1], weight_share=[0.4] * 2, virtual=virtual[row])
        assert both[row] == pytest.approx([alone, alone])
        one = sizes.take(slice(row, row + 1))
        assert flight[row] == registry.find(name, virtual[row]).in_flight(1, one)


@pytest.mark.parametrize(("name", "virtual"), [("zero-bubble", 1), ("zero-bubble", 3), ("dualpipe-v", 2)])
def test_plans_of_few_and_many_micro_batches_together_are_each_alone(name: str, virtual: int) -> None:
    """To the last bit: those that are walked whole, those of which as much is walked as of others, and those of which
    more is than of others, for two of the stages are nearly as slow."""
    m = np.array([3, 6, 17, 18, 19, 48, 66, 96, 99, 300, 302, 3000, 6000, 6000])
    dice = np.random.default_rng(0)
    speed = dice.uniform(0.7, 1.0, (3, len(m), 2))
    speed[:2] = np.where(np.arange(len(m))[:, None] % 2, [[[1.0]], [[1.0 + 1e-4]]], speed[:2])
    m = m // 3 * 3 if virtual > 1 else m

    def together(rows: slice) -> FloatArray:
        times = StageTimes(
            forward_s=list(speed[:, rows]),
            backward_s=list(2 * speed[:, rows]),
            weight_share=[np.full((len(m[rows]), 1), 0.4)] * 3,
            counts=[1] * 3,
        )
        size = np.ones_like(m[rows])
        sizes = Sizes(stages=3 * size, virtual=virtual * size, micro_batches=m[rows])
        return PlanSchedules(registry.number(name) * size, sizes).makespan(times)

    every = together(slice(None))
    alone = [together(slice(row, row + 1))[0] for row in range(len(m))]
    assert every.tolist() == [one.tolist() for one in alone]


@pytest.mark.parametrize("seed", range(40))
def test_one_f_one_b_of_stages_that_are_unlike_is_the_longest_path(seed: int, torch_orders: Orders) -> None:
    """As clocks of stages' own phases make them; the formula is up to 4 % shorter."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 9)), int(rng.integers(1, 40))
    forward, backward = list(rng.uniform(0.5, 1.5, n)), list(rng.uniform(1.0, 3.0, n))
    times = StageTimes(
        forward_s=[np.array([[f], [f]]) for f in forward],
        backward_s=[np.array([[b], [b]]) for b in backward],
        weight_share=[np.full((2, 1), 0.5)] * n,
        counts=[1] * n,
    )
    sizes = Sizes(stages=np.array([n, n]), virtual=np.array([1, 1]), micro_batches=np.array([m, m]))
    schedules = PlanSchedules(np.array([registry.number("1f1b")] * 2), sizes)
    walked, formula = schedules.makespan(times, np.array([True, False]))[:, 0]
    assert walked == pytest.approx(longest_path(torch_orders("1f1b", n, m), forward, backward), rel=1e-4)
    assert formula == pytest.approx(ours("1f1b", forward, backward, m))
    assert formula <= walked * (1 + 1e-12)
