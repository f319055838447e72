"""Makespan of a pipeline against the longest path of the graph of the whole step."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest

from moemodel.model.pipeline import makespan
from moemodel.model.plan import Schedule

Times = list[float]


def order(schedule: Schedule, stages: int, stage: int, m: int) -> list[tuple[str, int]]:
    """Work of one stage in the order that the schedule gives it: ("F" or "B", micro-batch)."""
    warm = m if schedule is Schedule.GPIPE else min(stages - stage, m)
    work = [("F", i) for i in range(warm)]
    for i in range(m):
        work.append(("B", i))
        if warm + i < m:
            work.append(("F", warm + i))
    return work


def longest_path(forward: Times, backward: Times, m: int, schedule: Schedule) -> float:
    """The step as a graph: stages in their order, activations down, gradients up."""
    graph: nx.DiGraph[tuple[int, str, int]] = nx.DiGraph()
    stages = len(forward)
    for s in range(stages):
        work = order(schedule, stages, s, m)
        graph.add_nodes_from((s, *w) for w in work)
        graph.add_edges_from(((s, *a), (s, *b)) for a, b in pairwise(work))
    for i in range(m):
        graph.add_edges_from(((s, "F", i), (s + 1, "F", i)) for s in range(stages - 1))
        graph.add_edges_from(((s + 1, "B", i), (s, "B", i)) for s in range(stages - 1))
        graph.add_edge((stages - 1, "F", i), (stages - 1, "B", i))
    end: dict[tuple[int, str, int], float] = {}
    for node in nx.topological_sort(graph):
        took = forward[node[0]] if node[1] == "F" else backward[node[0]]
        end[node] = max((end[before] for before in graph.predecessors(node)), default=0.0) + took
    return max(end.values())


def ours(
    forward: Times, backward: Times, m: int, schedule: Schedule, counts: list[int] | None = None, virtual: int = 1
) -> float:
    made = makespan(
        [np.array([[f]]) for f in forward],
        [np.array([[b]]) for b in backward],
        counts or [1] * len(forward),
        micro_batches=np.array([[float(m)]]),
        schedule=np.array([[int(schedule)]]),
        virtual=np.array([[virtual]]),
    )
    return float(made.item())


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize(("stages", "m"), [(1, 1), (1, 8), (2, 1), (4, 2), (4, 4), (4, 32), (7, 3), (8, 5)])
def test_equal_stages(schedule: Schedule, stages: int, m: int) -> None:
    """(m + n - 1) T, whichever the schedule."""
    times = [1.0] * stages, [2.0] * stages
    expected = (m + stages - 1) * 3.0
    assert ours(*times, m, schedule) == pytest.approx(expected)
    assert longest_path(*times, m, schedule) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(60))
def test_gpipe_is_the_longest_path(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 9)), int(rng.integers(1, 20))
    forward, backward = list(rng.uniform(0.5, 1.5, n)), list(rng.uniform(1.0, 3.0, n))
    assert ours(forward, backward, m, Schedule.GPIPE) == pytest.approx(
        longest_path(forward, backward, m, Schedule.GPIPE)
    )


@pytest.mark.parametrize("seed", range(100))
def test_one_f_one_b_is_the_longest_path_where_stages_are_alike(seed: int) -> None:
    """Stages of any size, backward in the same ratio to forward within a tenth: what cutting a model gives."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 9)), int(rng.integers(1, 40))
    size = rng.uniform(0.8, 1.3, n)
    forward = list(size * rng.uniform(0.95, 1.05, n))
    backward = list(size * rng.uniform(1.9, 2.1, n))
    expected = longest_path(forward, backward, m, Schedule.ONE_F_ONE_B)
    assert ours(forward, backward, m, Schedule.ONE_F_ONE_B) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("seed", range(100))
def test_one_f_one_b_of_stages_of_any_kind(seed: int) -> None:
    """Never longer than the longest path, since it is the length of some path; at most 4 % shorter."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 9)), int(rng.integers(1, 30))
    forward, backward = list(rng.uniform(0.5, 1.5, n)), list(rng.uniform(1.0, 3.0, n))
    expected = longest_path(forward, backward, m, Schedule.ONE_F_ONE_B)
    assert 0.96 * expected <= ours(forward, backward, m, Schedule.ONE_F_ONE_B) <= expected * (1 + 1e-12)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("schedule", list(Schedule))
def test_a_class_of_stages_is_that_many_stages(schedule: Schedule, seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = [int(c) for c in rng.integers(1, 4, 3)]
    m = int(rng.integers(1, 20))
    forward, backward = list(rng.uniform(0.5, 1.5, 3)), list(rng.uniform(1.0, 3.0, 3))
    each = [[t for t, count in zip(times, counts, strict=True) for _ in range(count)] for times in (forward, backward)]
    assert ours(forward, backward, m, schedule, counts) == pytest.approx(ours(*each, m, schedule))


def test_the_first_stage_is_not_starved_when_it_is_slowest() -> None:
    """A slow first stage hides the others' fill and drain behind its own warm-up."""
    assert ours([3.0, 1.0], [3.0, 1.0], 4, Schedule.ONE_F_ONE_B) == pytest.approx(4 * 6.0)
    assert longest_path([3.0, 1.0], [3.0, 1.0], 4, Schedule.ONE_F_ONE_B) == pytest.approx(4 * 6.0)


def test_virtual_stages_shorten_the_bubble_alone() -> None:
    n, m, turn = 4, 8, 3.0
    for v in (1, 2, 4):
        took = ours([1.0] * n, [2.0] * n, m, Schedule.ONE_F_ONE_B, virtual=v)
        assert took == pytest.approx(m * turn + (n - 1) * turn / v)
