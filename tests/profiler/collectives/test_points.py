"""What is measured of the links: sizes that divide, groups, splits, and the shape of requests."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest

from moemodel.model.network.collectives import Collective
from moemodel.model.records.profile import EXCHANGE, IDLE_LINKS, CollectiveRow, OverlapRow
from moemodel.profiler.collectives.points import (
    LinkPoint,
    divisible_B,
    group_sizes,
    link_points,
    longest,
    overlap_points,
    scale_for,
    split_elements,
)
from moemodel.profiler.collectives.request import Request, read_request

GPU = scale_for(cpu=False, ranks=4)
CPU = scale_for(cpu=True, ranks=2)


@pytest.mark.parametrize(("ranks", "groups"), [(2, [2]), (3, [2, 3]), (4, [2, 4]), (6, [2, 4, 6]), (8, [2, 4, 8])])
def test_groups_double_up_to_all(ranks: int, groups: list[int]) -> None:
    assert group_sizes(ranks) == groups


def test_sizes_go_from_a_kibibyte_to_a_gibibyte_in_steps_of_at_most_four() -> None:
    sizes = sorted(GPU.sizes_B)
    assert (sizes[0], sizes[-1]) == (1 << 10, 1 << 30)
    assert max(b / a for a, b in pairwise(sizes)) <= 4
    assert sum(size & (size - 1) != 0 for size in sizes) == 7  # between the powers of two


@pytest.mark.parametrize("ranks", [2, 3, 4, 7, 8])
def test_every_size_divides_among_its_ranks_in_aligned_parts(ranks: int) -> None:
    for point in link_points(ranks, GPU):
        assert point.size_B % (16 * point.ranks) == 0
    assert divisible_B(1, ranks) == 16 * ranks


def test_every_collective_is_measured_in_every_group() -> None:
    points = link_points(4, GPU)
    for group in (2, 4):
        names = {p.collective for p in points if p.ranks == group and p.collective != IDLE_LINKS}
        messages = {Collective.SEND_RECV} if group == 2 else set()
        assert names == {*Collective, EXCHANGE} - {Collective.SEND_RECV} | messages
        assert {p.skew for p in points if p.ranks == group} == {1.0, *GPU.skews}
    assert len(set(points)) == len(points)


def test_power_is_measured_of_every_collective_and_of_none() -> None:
    held = [p for p in link_points(2, GPU) if p.held]
    assert held[0] == LinkPoint(collective=IDLE_LINKS, ranks=2, size_B=0, held=True)
    assert {(p.collective, p.size_B) for p in held[1:]} == {(c, s) for c in (*Collective, EXCHANGE) for s in GPU.held_B}


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
@pytest.mark.parametrize("skew", [1.0, 1.25, 1.6])
def test_splits_give_the_first_rank_its_skew(ranks: int, skew: float) -> None:
    elements = 1 << 20
    split = split_elements(elements, ranks, skew)
    assert len(split) == ranks
    assert sum(split) <= elements
    assert split[0] * ranks / sum(split) == pytest.approx(skew, rel=1e-3)
    assert len(set(split[1:])) == 1


def test_a_point_names_its_row() -> None:
    for kind, points in ((CollectiveRow, link_points(2, GPU)), (OverlapRow, overlap_points(2, GPU))):
        assert set(kind.KEY) <= {*asdict(points[0]), "nodes"}


def test_overlap_puts_first_what_fsdp_does() -> None:
    priority = {p.collective: p.priority for p in overlap_points(4, GPU)}
    assert priority == {"all_reduce": 0, "reduce_scatter": -1, "all_gather": -1, "all_to_all": 0, "exchange": 0}


def test_the_largest_tensor_is_that_of_the_busiest_rank() -> None:
    point = LinkPoint(collective="all_to_all", ranks=2, size_B=1000, skew=1.5)
    assert longest([point, LinkPoint(collective="all_reduce", ranks=2, size_B=1200)]) == 1500
    assert longest([]) == 0


def test_a_request_is_what_it_was_after_the_way_through_json(tmp_path: Path) -> None:
    request = Request(
        gpu="cpu",
        points=tuple(link_points(2, CPU)),
        overlaps=tuple(overlap_points(2, CPU)),
        scale=CPU,
        seed=3,
        until_wall_s=1.5,
        events=tmp_path / "events.jsonl",
    )
    assert read_request(request.text()) == request
