"""Placements of experts against every placement that there is, and closed forms."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.errors import InputError
from moemodel.model.plan.expert_placement import Placement, check_copies, exact, greedy, in_order


def best_of_all(loads: FloatArray, ranks: int, copies: int) -> float:
    """Rows of the busiest rank, least over all ways to fill every rank, or leave slots empty."""
    slots = (len(loads) + copies) // ranks
    holds = [held for size in range(slots + 1) for held in combinations(range(len(loads)), size)]
    best = np.inf
    for ways in product(holds, repeat=ranks):
        counts = np.bincount([expert for rank in ways for expert in rank], minlength=len(loads))
        if counts.all():
            best = min(best, max((loads / counts)[list(rank)].sum() for rank in ways))
    return float(best)


@pytest.mark.parametrize(
    ("experts", "ranks", "copies"), [(4, 2, 0), (6, 2, 0), (6, 3, 0), (4, 2, 2), (5, 2, 1), (3, 3, 3), (4, 3, 2)]
)
def test_the_integer_programme_finds_the_best_of_all(experts: int, ranks: int, copies: int) -> None:
    pytest.importorskip("scipy")
    dice = np.random.default_rng(experts * 100 + ranks * 10 + copies)
    for _ in range(3):
        loads = dice.lognormal(0, 1, experts)
        found = exact(loads, ranks, copies)
        best = best_of_all(loads, ranks, copies)
        assert found.placement.rank_loads(loads).max() == pytest.approx(best, rel=1e-9)
        assert found.gap == pytest.approx(0, abs=1e-6)
        by_hand = greedy(loads, ranks, copies).rank_loads(loads).max()
        assert best * (1 - 1e-9) <= by_hand <= loads.sum()
        assert copies or by_hand <= 4 / 3 * best  # Graham's bound of LPT, though of ranks with room for all


@pytest.mark.parametrize(("experts", "ranks", "copies"), [(64, 8, 0), (64, 8, 16), (16, 8, 48), (12, 4, 36), (8, 8, 0)])
def test_no_rank_holds_too_many_or_one_twice(experts: int, ranks: int, copies: int) -> None:
    loads = np.random.default_rng(1).lognormal(0, 1.5, experts)
    found = greedy(loads, ranks, copies)
    assert found.slots == experts + copies
    assert max(len(rank) for rank in found.ranks) <= found.slots // ranks
    assert copies or {len(rank) for rank in found.ranks} == {experts // ranks}
    assert all(len(set(rank)) == len(rank) for rank in found.ranks)
    assert set(found.copies) == set(range(experts))
    assert found.rank_loads(loads).sum() == pytest.approx(loads.sum())


def test_a_hot_expert_alone_cannot_be_split_but_its_copies_can() -> None:
    """One expert with as many rows as all others: without copies its rank has at least half of all rows."""
    loads = np.array([8.0, 1, 1, 1, 1, 1, 1, 2])
    assert greedy(loads, 4).rank_loads(loads).max() == 9
    copied = greedy(loads, 4, 4)
    assert copied.copies[0] == 4
    assert copied.rank_loads(loads).max() == 4.0  # 16 rows on four ranks


def test_skews_are_those_of_the_definition() -> None:
    placement = Placement(((0, 1), (0, 2)), 4)
    loads = np.array([[4.0, 1.0, 3.0], [2.0, 6.0, 0.0]])
    assert placement.rank_loads(loads).tolist() == [[3, 5], [7, 1]]
    assert placement.rank_skew(loads) == pytest.approx((5 / 4 + 7 / 4) / 2)
    assert placement.expert_skew(loads) == pytest.approx((3 / 2 + 6 / 2) / 2)  # means of four slots are 2
    assert in_order(6, 3).ranks == ((0, 1), (2, 3), (4, 5))


@pytest.mark.parametrize("copies", [-8, 1, 7, 64 * 7 + 8])
def test_copies_that_no_placement_holds_are_refused(copies: int) -> None:
    with pytest.raises(InputError, match=f"copies: found {copies}; allowed: multiples of ep 8 up to 448"):
        check_copies(64, 8, copies)
