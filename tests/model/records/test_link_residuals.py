"""Curves of what the formula of a collective misses: interpolated between sizes, constant beyond, nearest group."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moemodel.model.core.errors import InputError
from moemodel.model.network.collectives import Collective, Network
from moemodel.model.records.link_residuals import LinkCurve, correction

TWO = LinkCurve(collective="all_reduce", ranks=2, size_B=[1e3, 1e5], log_ratio=[0.0, np.log(4.0)])
EIGHT = LinkCurve(collective="all_reduce", ranks=8, size_B=[1e3, 1e5], log_ratio=[np.log(3.0), np.log(3.0)])


def factor(curves: list[LinkCurve], size_B: float, ranks: int) -> float:
    return float(correction(curves, np.array([size_B]), np.array([float(ranks)])).item())


@pytest.mark.parametrize(("size_B", "expected"), [(1e3, 1), (1e4, 2), (1e5, 4), (1.0, 1), (0.0, 1), (1e9, 4)])
def test_between_sizes_it_is_interpolated_and_beyond_them_it_stays(size_B: float, expected: float) -> None:
    assert factor([TWO], size_B, 2) == pytest.approx(expected)


@pytest.mark.parametrize(("ranks", "expected"), [(2, 1), (3, 1), (5, 3), (8, 3), (64, 3)])
def test_another_group_takes_the_nearest(ranks: int, expected: float) -> None:
    assert factor([EIGHT, TWO], 1e3, ranks) == pytest.approx(expected)
    assert factor([TWO, EIGHT], 1e3, ranks) == pytest.approx(expected)


def test_without_curves_nothing_is_missed() -> None:
    assert factor([], 1e3, 2) == 1.0


def test_many_at_once_are_each_by_itself() -> None:
    sizes, ranks = np.array([1e3, 1e4, 1e5, 7.0]), np.array([2.0, 8.0, 3.0, 64.0])
    together = correction([TWO, EIGHT], sizes, ranks)
    assert together.tolist() == [factor([TWO, EIGHT], s, int(n)) for s, n in zip(sizes, ranks, strict=True)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size_B": [1e5, 1e3]}, "each larger than the one before"),
        ({"size_B": [0.0, 1e3]}, "sizes must be above 0"),
        ({"log_ratio": [0.0]}, "log_ratio: found 1 values; there are 2 sizes"),
        ({"ranks": 1}, "greater than or equal to 2"),
        ({"size_B": []}, "at least 1 item"),
    ],
)
def test_malformed_curves(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        LinkCurve(**{**TWO.model_dump(), **change})


# --- in a network --------------------------------------------------------------------------------------------------


def network(**more: Any) -> Network:
    return Network(
        gpus_per_node=8,
        node_Bps=400e9,
        nic_Bps=50e9,
        node_latency_s=2e-6,
        nic_latency_s=5e-6,
        efficiency=dict.fromkeys(Collective, 1.0),
        start_s=1e-5,
        overlap=0.4,
        **more,
    )


def took(of: Network, collective: Collective, ranks: int, size_B: float = 1e5) -> float:
    n = np.array([ranks])
    return float(of.time_s(collective, np.array([size_B]), n, of.route(n, np.ones_like(n))).item())


def test_a_curve_scales_its_collective_alone() -> None:
    """Between nodes as well where nothing was measured there, as the efficiency that goes with it does."""
    bare, curved = network(), network(curves={Collective.ALL_REDUCE: (TWO,)})
    assert took(curved, Collective.ALL_REDUCE, 2) == pytest.approx(4 * took(bare, Collective.ALL_REDUCE, 2))
    assert took(curved, Collective.ALL_REDUCE, 1) == 0.0
    assert took(curved, Collective.ALL_REDUCE, 16) == pytest.approx(4 * took(bare, Collective.ALL_REDUCE, 16))
    assert took(curved, Collective.ALL_GATHER, 2) == took(bare, Collective.ALL_GATHER, 2)


def test_a_curve_across_nodes_holds_there_alone() -> None:
    across = TWO.model_copy(update={"across": True, "ranks": 16})
    bare, curved = network(), network(curves={Collective.ALL_REDUCE: (across,)})
    assert took(curved, Collective.ALL_REDUCE, 16) == pytest.approx(4 * took(bare, Collective.ALL_REDUCE, 16))
    assert took(curved, Collective.ALL_REDUCE, 8) == took(bare, Collective.ALL_REDUCE, 8)


def test_each_collective_may_have_its_own_start_and_step() -> None:
    own = network(launch_latencies_s={Collective.ALL_TO_ALL: 3e-5}, hop_latencies_s={Collective.ALL_TO_ALL: 0.0})
    assert took(own, Collective.ALL_TO_ALL, 8, 0.0) == pytest.approx(3e-5)
    assert took(own, Collective.ALL_TO_ALL, 16, 0.0) == pytest.approx(3e-5 + 15 * 5e-6)
    assert took(own, Collective.ALL_GATHER, 8, 0.0) == pytest.approx(1e-5 + 7 * 2e-6)


def test_between_nodes_it_may_differ() -> None:
    own = network(
        internode_launch_latencies_s={Collective.SEND_RECV: 0.0}, internode_efficiency={Collective.ALL_GATHER: 0.5}
    )
    assert took(own, Collective.SEND_RECV, 16, 0.0) == pytest.approx(5e-6)
    assert took(own, Collective.SEND_RECV, 8, 0.0) == pytest.approx(1e-5 + 2e-6)
    fixed_s = 1e-5 + 15 * 5e-6
    whole, half = took(network(), Collective.ALL_GATHER, 16, 1e9), took(own, Collective.ALL_GATHER, 16, 1e9)
    assert half - fixed_s == pytest.approx(2 * (whole - fixed_s))


def test_overlap_falls_back_on_the_one_number() -> None:
    own = network(overlaps={Collective.ALL_REDUCE: 0.8}, memory_overlaps={Collective.ALL_GATHER: 0.1})
    assert own.overlap_of(Collective.ALL_REDUCE) == 0.8
    assert own.overlap_of(Collective.ALL_GATHER) == 0.4
    assert own.overlap_of(Collective.ALL_GATHER, memory_bound=True) == 0.1
    assert own.overlap_of(Collective.ALL_REDUCE, memory_bound=True) == 0.4


@pytest.mark.parametrize(("share", "expected"), [(1.0, 1.5e6), (0.5, 1.25e6), (0.0, 1e6)])
def test_a_skewed_exchange_is_as_large_as_its_busiest_rank(share: float, expected: float) -> None:
    assert network(imbalance_penalty=share).skewed_B(np.array([1e6]), 1.5).tolist() == [expected]
