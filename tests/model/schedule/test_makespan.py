"""Makespan of a pipeline against the longest path of the graph of the whole step."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import numpy as np
import pytest

from moemodel.model.plan.choices import Schedule
from moemodel.model.schedule.makespan import makespan

Times = list[float]
Work = tuple[str, int, int]  # F, B or W; chunk; micro-batch


def order(schedule: Schedule, stages: int, stage: int, m: int, virtual: int = 1) -> list[Work]:
    """Work of one stage in the order that the schedule gives it."""
    if virtual > 1 or schedule is Schedule.ZERO_BUBBLE:
        return interleaved(stages, stage, m, virtual, split=schedule is Schedule.ZERO_BUBBLE)
    warm = m if schedule is Schedule.GPIPE else min(stages - stage, m)
    work = [("F", stage, i) for i in range(warm)]
    for i in range(m):
        work.append(("B", stage, i))
        if warm + i < m:
            work.append(("F", stage, warm + i))
    return work


def interleaved(stages: int, stage: int, m: int, virtual: int, *, split: bool) -> list[Work]:
    """Rounds of as many micro-batches as stages through each chunk; weight gradients `stage` backward passes later."""
    pairs = [(c, r * stages + i) for r in range(-(-m // stages)) for c in range(virtual) for i in range(stages)]
    turns = [(c, i) for c, i in pairs if i < m]
    forward = [("F", c * stages + stage, i) for c, i in turns]
    backward = [("B", (virtual - 1 - c) * stages + stage, i) for c, i in turns]
    ahead = (virtual - 1) * stages + (1 if split else 2) * (stages - 1 - stage)
    work = forward[:ahead]
    for k, back in enumerate(backward):
        work += [*forward[ahead + k : ahead + k + 1], back]
        if split and k >= stage:
            work.append(("W", *backward[k - stage][1:]))
    left = backward[len(backward) - min(stage, len(backward)) :] if split else []
    return work + [("W", *back[1:]) for back in left]


def longest_path(
    forward: Times, backward: Times, m: int, schedule: Schedule, *, weights: Times | None = None, virtual: int = 1
) -> float:
    """The step as a graph: stages in their order, activations down, gradients up. Times of chunks, of the whole model.

    `weights`: of the backward pass, under zero-bubble.
    """
    graph: nx.DiGraph[Work] = nx.DiGraph()
    chunks = len(forward)
    stages = chunks // virtual
    for s in range(stages):
        work = order(schedule, stages, s, m, virtual)
        graph.add_nodes_from(work)
        graph.add_edges_from(pairwise(work))
    for i in range(m):
        graph.add_edges_from((("F", c, i), ("F", c + 1, i)) for c in range(chunks - 1))
        graph.add_edges_from((("B", c + 1, i), ("B", c, i)) for c in range(chunks - 1))
        graph.add_edge(("F", chunks - 1, i), ("B", chunks - 1, i))
    took = {"F": forward, "B": backward, "W": weights or []}
    if schedule is Schedule.ZERO_BUBBLE:
        assert weights is not None
        took["B"] = [b - w for b, w in zip(backward, weights, strict=True)]
    end: dict[Work, float] = {}
    for node in nx.topological_sort(graph):
        end[node] = max((end[before] for before in graph.predecessors(node)), default=0.0) + took[node[0]][node[1]]
    return max(end.values())


def ours(
    forward: Times,
    backward: Times,
    m: int,
    schedule: Schedule,
    counts: list[int] | None = None,
    virtual: int = 1,
    weight_share: Times | None = None,
) -> float:
    made = makespan(
        [np.array([[f]]) for f in forward],
        [np.array([[b]]) for b in backward],
        counts or [1] * len(forward),
        weight_share=[np.array([[share]]) for share in weight_share or [0.5] * len(forward)],
        micro_batches=np.array([[float(m)]]),
        schedule=np.array([[int(schedule)]]),
        virtual=np.array([[virtual]]),
    )
    return float(made.item())


@pytest.mark.parametrize("schedule", [Schedule.ONE_F_ONE_B, Schedule.GPIPE])
@pytest.mark.parametrize(("stages", "m"), [(1, 1), (1, 8), (2, 1), (4, 2), (4, 4), (4, 32), (7, 3), (8, 5)])
def test_equal_stages(schedule: Schedule, stages: int, m: int) -> None:
    """(m + n - 1) T, whichever the schedule."""
    times = [1.0] * stages, [2.0] * stages
    expected = (m + stages - 1) * 3.0
    assert ours(times[0], times[1], m, schedule) == pytest.approx(expected)
    assert longest_path(times[0], times[1], m, schedule) == pytest.approx(expected)


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
    assert ours(forward, backward, m, schedule, counts) == pytest.approx(ours(each[0], each[1], m, schedule))


def test_the_first_stage_is_not_starved_when_it_is_slowest() -> None:
    """A slow first stage hides the others' fill and drain behind its own warm-up."""
    assert ours([3.0, 1.0], [3.0, 1.0], 4, Schedule.ONE_F_ONE_B) == pytest.approx(4 * 6.0)
    assert longest_path([3.0, 1.0], [3.0, 1.0], 4, Schedule.ONE_F_ONE_B) == pytest.approx(4 * 6.0)


@pytest.mark.parametrize("seed", range(60))
def test_stages_that_a_model_is_cut_into_unevenly(seed: int) -> None:
    """One layer more on some stages, ends on two of them: the longest path itself."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(2, 9)), int(rng.integers(1, 40))
    layers = rng.integers(2, 6) + rng.integers(0, 2, n).astype(float)
    layers[0] += rng.uniform(0, 0.5)
    layers[-1] += rng.uniform(0, 4)
    forward, backward = list(layers), list(2 * layers)
    assert ours(forward, backward, m, Schedule.ONE_F_ONE_B) == pytest.approx(
        longest_path(forward, backward, m, Schedule.ONE_F_ONE_B), rel=1e-9
    )


def test_virtual_stages_shorten_the_bubble_alone() -> None:
    n, m, turn = 4, 8, 3.0
    for v in (1, 2, 4):
        took = ours([1.0] * n, [2.0] * n, m, Schedule.ONE_F_ONE_B, virtual=v)
        assert took == pytest.approx(m * turn + (n - 1) * turn / v)
        chunks = [1.0 / v] * (n * v), [2.0 / v] * (n * v)
        assert took == pytest.approx(longest_path(chunks[0], chunks[1], m, Schedule.ONE_F_ONE_B, virtual=v))


@pytest.mark.parametrize("seed", range(30))
def test_interleaved_stages_with_a_head(seed: int) -> None:
    """The last chunk is longer, and so its stage: the longest path itself."""
    rng = np.random.default_rng(seed)
    n, v = int(rng.integers(2, 6)), int(rng.integers(2, 4))
    m = n * int(rng.integers(1, 6))
    forward = [1.0] * (n * v - 1) + [1.0 + float(rng.uniform(0, 2))]
    backward = [2 * f for f in forward]
    stages = [[sum(times[s::n]) for s in range(n)] for times in (forward, backward)]
    expected = longest_path(forward, backward, m, Schedule.ONE_F_ONE_B, virtual=v)
    assert ours(stages[0], stages[1], m, Schedule.ONE_F_ONE_B, virtual=v) == pytest.approx(expected, rel=1e-9)


# ---- zero-bubble ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 4), (4, 4), (4, 32), (8, 9)])
@pytest.mark.parametrize(("f", "b", "w"), [(1.0, 1.0, 1.0), (1.0, 1.1, 0.9), (1.0, 1.4, 0.6)])
def test_a_zero_bubble_step_of_equal_stages(n: int, m: int, f: float, b: float, w: float) -> None:
    """m (F + B + W) + (n - 1) (F + B - W): Qi et al. 2023, table 1."""
    took = ours([f] * n, [b + w] * n, m, Schedule.ZERO_BUBBLE, weight_share=[w / (b + w)] * n)
    assert took == pytest.approx(m * (f + b + w) + (n - 1) * (f + b - w))


@pytest.mark.parametrize("virtual", [1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_a_zero_bubble_step_is_the_longest_path(seed: int, virtual: int) -> None:
    """Also where all but the first rounds of micro-batches are continued instead of walked."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 6))
    m = n * int(rng.integers(1, 9)) if virtual > 1 else int(rng.integers(1, 40))
    forward, backward = list(rng.uniform(0.8, 1.3, n)), list(rng.uniform(1.6, 2.4, n))
    share = list(rng.uniform(0.3, 0.6, n))
    chunks = [[time / virtual for _ in range(virtual) for time in times] for times in (forward, backward)]
    weights = [b * part for b, part in zip(chunks[1], share * virtual, strict=True)]
    expected = longest_path(chunks[0], chunks[1], m, Schedule.ZERO_BUBBLE, weights=weights, virtual=virtual)
    took = ours(forward, backward, m, Schedule.ZERO_BUBBLE, virtual=virtual, weight_share=share)
    assert took == pytest.approx(expected, rel=2e-3)


def test_zero_bubble_is_never_slower_than_one_f_one_b() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        n, m = int(rng.integers(2, 7)), int(rng.integers(1, 20))
        forward = list(rng.uniform(0.8, 1.3, n))
        backward = [2 * f for f in forward]
        plain = ours(forward, backward, m, Schedule.ONE_F_ONE_B)
        assert ours(forward, backward, m, Schedule.ZERO_BUBBLE, weight_share=[0.5] * n) <= plain * (1 + 1e-9)


def test_plans_of_all_schedules_together_are_each_alone() -> None:
    m, schedule = np.array([[4.0], [8.0], [8.0]]), np.array([[0], [1], [2]])
    stages = [np.full((3, 2), 1.0), np.full((3, 2), 1.5)]
    share = [np.full((3, 1), 0.4)] * 2
    one = np.ones((3, 1), dtype=np.int64)
    both = makespan(
        stages, [2 * f for f in stages], [2, 1], weight_share=share, micro_batches=m, schedule=schedule, virtual=one
    )
    for row in range(3):
        alone = ours(
            [1.0, 1.5], [2.0, 3.0], int(m[row, 0]), Schedule(int(schedule[row, 0])), [2, 1], weight_share=[0.4] * 2
        )
        assert both[row] == pytest.approx([alone, alone])
