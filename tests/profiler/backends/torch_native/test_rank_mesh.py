"""Who is who among the ranks of a plan."""

from __future__ import annotations

from moemodel.model.plan.spec import ParallelSpec
from moemodel.profiler.backends.torch_native.rank_mesh import RankMesh


def _place(rank: int = 0, **degrees: int) -> RankMesh:
    return RankMesh.of(ParallelSpec(**degrees), rank)


def test_ranks_count_tp_first_then_dp_then_pp() -> None:
    places = [_place(rank, tp=2, dp=3, pp=2).at for rank in range(12)]
    assert [(at.pp, at.dp, at.tp) for at in places] == [
        (pp, dp, tp) for pp in range(2) for dp in range(3) for tp in range(2)
    ]


def test_every_rank_is_in_one_group_of_each_kind() -> None:
    groups = _place(tp=2, dp=4, pp=3, ep=2).groups()
    for kind in ("world", "tp", "data_parallel", "pp", "ep", "expert_data_parallel"):
        assert sorted(rank for ranks in groups[kind] for rank in ranks) == list(range(24)), kind
    assert groups["tp"][0] == (0, 1)
    assert groups["data_parallel"][0] == (0, 2, 4, 6)
    assert groups["pp"][0] == (0, 8, 16)
    assert {(0, 2), (4, 6)} <= set(groups["ep"])
    assert {(0, 4), (2, 6)} <= set(groups["expert_data_parallel"])
    assert groups["embedding"][0] == (0, 16)


def test_groups_are_the_same_on_all_ranks() -> None:
    assert len({str(_place(rank, tp=2, dp=2, pp=2, ep=2).groups()) for rank in range(8)}) == 1


def test_a_rank_beyond_the_plan_is_in_no_group() -> None:
    place = _place(5, dp=2, tp=2)
    assert all(place.own(kind) == () for kind in place.groups())


def test_one_stage_has_no_ends() -> None:
    assert _place(dp=4).own("embedding") == ()
