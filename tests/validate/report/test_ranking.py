"""Rank agreement and regret: closed forms, and scipy where it answers the same question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kendalltau

from moemodel.validation.report.ranking import Ranked, kendall, regrets


def _ranked(predicted: Sequence[float], measured: Sequence[float], groups: str | None = None) -> list[Ranked]:
    return [
        Ranked(name=f"plan {i}", group=group, predicted=p, measured=m)
        for i, (p, m, group) in enumerate(zip(predicted, measured, groups or "a" * len(measured), strict=True))
    ]


@pytest.mark.parametrize(
    ("measured", "tau"), [([1, 2, 3, 4], 1.0), ([4, 3, 2, 1], -1.0), ([2, 1, 3, 4], 2 / 3), ([1, 4, 2, 3], 1 / 3)]
)
def test_tau_counts_pairs_in_order(measured: list[float], tau: float) -> None:
    assert kendall(_ranked([1, 2, 3, 4], measured)) == (pytest.approx(tau), 6)


@pytest.mark.parametrize("seed", range(5))
def test_with_one_group_it_is_scipys(seed: int) -> None:
    """Ties among them, on either side."""
    random = np.random.default_rng(seed)
    predicted, measured = random.integers(1, 6, size=(2, 9)).astype(float)
    expected = kendalltau(predicted, measured).statistic
    assert kendall(_ranked(predicted.tolist(), measured.tolist()))[0] == pytest.approx(expected)


def test_only_alternatives_are_compared() -> None:
    """In either group the order is the wrong one, whatever lies between the groups."""
    plans = _ranked([1, 2, 100, 200], [2, 1, 200, 100], "aabb")
    assert kendall(plans) == (-1.0, 2)
    alone = [r.predicted for r in plans], [r.measured for r in plans]
    assert kendalltau(*alone).statistic > 0


def test_pairs_that_noise_may_have_ordered_can_be_left_out() -> None:
    """1.00 and 1.02 are 0.02 apart, two standard errors of their difference 0.028; 1.02 and 1.10 are sure."""
    plans = [replace(plan, error=0.01) for plan in _ranked([2.0, 1.0, 3.0], [1.00, 1.02, 1.10])]
    assert kendall(plans) == (pytest.approx(1 / 3), 3)
    assert kendall(plans, told_apart=True) == (1.0, 2)


def test_nothing_to_rank() -> None:
    assert kendall([]) == (None, 0)
    assert kendall(_ranked([1, 2], [1, 2], "ab")) == (None, 0)
    assert kendall(_ranked([1, 2], [5, 5])) == (None, 1)


def test_rounding_is_no_order() -> None:
    tau, _ = kendall(_ranked([1.0, 1.0 + 1e-13, 2.0], [2.0, 1.0, 3.0]))
    assert tau == pytest.approx(2 / np.sqrt(2 * 3))


def test_regret_is_what_the_first_choice_costs_over_the_best() -> None:
    (found,) = regrets(_ranked([1.0, 1.1, 3.0], [5.5, 5.0, 9.0]))
    assert found.share == pytest.approx(0.1)
    assert (found.chosen, found.best) == ("plan 0", "plan 1")


def test_a_right_choice_leaves_none_to_regret_however_wrong_the_values() -> None:
    (found,) = regrets(_ranked([10.0, 20.0], [1.0, 1.01]))
    assert found.share == 0


def test_every_group_has_its_regret_and_a_plan_alone_none() -> None:
    found = regrets(_ranked([1, 2, 1, 2, 7], [1, 2, 3, 2, 9], "aabbc"))
    assert [regret.share for regret in found] == [0, pytest.approx(0.5)]
