"""The mesh against ranks that are written down one after another, and against torch's own device mesh."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.mesh import ParallelMesh, ProcessGroup
from moemodel.model.plan.spec import ParallelSpec

Mesh = ParallelMesh[int]
Groups = list[tuple[int, ...]]

AXES_OF_GROUP = {  # along which the ranks of a group differ
    "world": {"pp", "dp", "cp", "tp"},
    "tp": {"tp"},
    "cp": {"cp"},
    "data_parallel": {"dp", "cp"},
    "pp": {"pp"},
}
EXPERT_AXES_OF_GROUP = {"etp": {"etp"}, "ep": {"ep"}, "experts": {"ep", "etp"}, "expert_data_parallel": {"edp"}}


def written_down(**sizes: int) -> list[dict[str, int]]:
    """Coordinates of each rank, axes outermost first."""
    return [dict(zip(sizes, place, strict=True)) for place in product(*(range(size) for size in sizes.values()))]


def dense_ranks(mesh: Mesh) -> list[dict[str, int]]:
    return written_down(pp=mesh.pp, dp=mesh.dp, cp=mesh.cp, tp=mesh.tp)


def expert_ranks(mesh: Mesh) -> list[dict[str, int]]:
    copies = mesh.dp * mesh.cp * mesh.tp // (mesh.ep * mesh.etp)
    return written_down(pp=mesh.pp, edp=copies, ep=mesh.ep, etp=mesh.etp)


def collected(ranks: list[dict[str, int]], axes: set[str]) -> Groups:
    """Ranks that differ along these axes alone."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for rank, place in enumerate(ranks):
        groups[tuple((name, at) for name, at in place.items() if name not in axes)].append(rank)
    return sorted(tuple(group) for group in groups.values())


def sharding_groups(mesh: Mesh) -> dict[str, Groups]:
    """Replicas outermost of the data-parallel ranks, and of the copies of experts."""
    copies = mesh.dp * mesh.cp * mesh.tp // (mesh.ep * mesh.etp)
    inner, few = mesh.dp // mesh.replicas, copies // mesh.replicas
    dense = written_down(pp=mesh.pp, replica=mesh.replicas, dp=inner, cp=mesh.cp, tp=mesh.tp)
    experts = written_down(pp=mesh.pp, replica=mesh.replicas, edp=few, ep=mesh.ep, etp=mesh.etp)
    return {
        "shards": collected(dense, {"dp", "cp"}),
        "replicas": collected(dense, {"replica"}),
        "expert_shards": collected(experts, {"edp"}),
        "expert_replicas": collected(experts, {"replica"}),
    }


def expected(mesh: Mesh) -> dict[str, Groups]:
    """All groups of a mesh, by enumeration."""
    dense, experts = dense_ranks(mesh), expert_ranks(mesh)
    groups = {name: collected(dense, axes) for name, axes in AXES_OF_GROUP.items()}
    groups |= {name: collected(experts, axes) for name, axes in EXPERT_AXES_OF_GROUP.items()}
    groups |= sharding_groups(mesh)
    return groups | {"embedding": sorted({tuple(dict.fromkeys((g[0], g[-1]))) for g in groups["pp"]})}


@st.composite
def meshes(draw: st.DrawFn) -> Mesh:
    """Legal meshes of up to 192 ranks: experts sharded as all else, whole, or over some of the ranks."""
    dp, tp, pp, cp = (draw(st.sampled_from(sizes)) for sizes in ((1, 2, 3, 4), (1, 2, 4), (1, 2, 3, 4), (1, 2, 4)))
    etp = draw(st.sampled_from([n for n in (1, 2, 4) if tp % n == 0]))
    ranks = dp * cp * tp // etp
    ep = draw(st.sampled_from([n for n in range(1, ranks + 1) if ranks % n == 0]))
    replicas = draw(st.sampled_from([n for n in (1, 2, 3, 4) if dp % n == 0 and ranks // ep % n == 0]))
    return ParallelMesh(dp=dp, tp=tp, pp=pp, cp=cp, ep=ep, etp=etp, replicas=replicas)


@given(meshes())
def test_groups_are_those_of_the_ranks_written_down(mesh: Mesh) -> None:
    assert {name: mesh.all_ranks(group) for name, group in mesh.groups.items()} == expected(mesh)


@given(meshes(), st.data())
def test_a_rank_is_in_the_groups_that_hold_it_and_in_no_other(mesh: Mesh, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, mesh.world_size - 1))
    for name, groups in expected(mesh).items():
        holding = [ranks for ranks in groups if rank in ranks]
        assert mesh.ranks(mesh.groups[name], rank) == (holding[0] if holding else ()), name


@given(meshes())
def test_coordinates_are_those_written_down(mesh: Mesh) -> None:
    for rank, (dense, experts) in enumerate(zip(dense_ranks(mesh), expert_ranks(mesh), strict=True)):
        assert asdict(mesh.coordinates(rank)) == dense | experts


@given(meshes())
def test_every_kind_of_group_holds_every_rank_once(mesh: Mesh) -> None:
    for name, group in mesh.groups.items():
        held = sorted(rank for ranks in mesh.all_ranks(group) for rank in ranks)
        ends = [r for r, place in enumerate(dense_ranks(mesh)) if place["pp"] in (0, mesh.pp - 1)]
        assert held == (ends if name == "embedding" else list(range(mesh.world_size)))


@given(st.lists(meshes(), min_size=1, max_size=8))
def test_arrays_of_degrees_are_many_meshes(listed: list[Mesh]) -> None:
    many = ParallelMesh(**{name: np.array([getattr(m, name) for m in listed]) for name in asdict(listed[0])})
    assert many.world_size.tolist() == [mesh.world_size for mesh in listed]
    assert many.stage_size.tolist() == [mesh.stage_size for mesh in listed]
    assert many.max_ep.tolist() == [mesh.max_ep for mesh in listed]
    for name, group in many.groups.items():
        alone = [mesh.groups[name] for mesh in listed]
        assert group.size.tolist() == [one.size for one in alone], name
        assert group.stride.tolist() == [one.stride for one in alone], name


@pytest.mark.parametrize(("shards_experts", "etp"), [(True, 2), (False, 1)])
def test_a_plan_and_a_batch_have_the_same_mesh(shards_experts: bool, etp: int) -> None:
    degrees = {"dp": 4, "tp": 2, "pp": 2, "ep": 4, "cp": 1, "replicas": 1}
    one = ParallelMesh.of(ParallelSpec(**degrees), shards_experts=shards_experts)
    zeros = dict.fromkeys(PlanBatch.__dataclass_fields__, 0)
    many = ParallelMesh.of(PlanBatch.of(**zeros | degrees), shards_experts=shards_experts)
    assert one == ParallelMesh(dp=4, tp=2, pp=2, ep=4, cp=1, etp=etp, replicas=1)
    assert {name: array.item() for name, array in asdict(many).items()} == asdict(one)


# g0 to g15 with tp 2 and pp 4: the docstring of Megatron-LM's `parallel_state.initialize_model_parallel`.
def test_groups_of_megatrons_own_example() -> None:
    mesh = ParallelMesh(dp=2, tp=2, pp=4, cp=1, ep=1, etp=2, replicas=1)
    assert mesh.all_ranks(mesh.tp_group) == [(n, n + 1) for n in range(0, 16, 2)]
    assert mesh.all_ranks(mesh.pp_group) == [(n, n + 4, n + 8, n + 12) for n in range(4)]
    assert mesh.all_ranks(mesh.data_parallel_group) == [
        *((0, 2), (1, 3), (4, 6), (5, 7), (8, 10), (9, 11), (12, 14), (13, 15))
    ]


@pytest.mark.parametrize(("etp", "ep", "experts"), [(2, 2, ((0, 2), (0, 4))), (1, 4, ((0, 1, 2, 3), (0, 4)))])
def test_experts_sharded_and_whole(etp: int, ep: int, experts: tuple[tuple[int, ...], ...]) -> None:
    mesh = ParallelMesh(dp=4, tp=2, pp=1, cp=1, ep=ep, etp=etp, replicas=1)
    assert (mesh.ranks(mesh.ep_group, 0), mesh.ranks(mesh.expert_data_parallel_group, 0)) == experts


# ---- torch ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _fake_job() -> Iterator[None]:
    """Torch's process group of 24 ranks, of which none but this one is there."""
    dist = pytest.importorskip("torch.distributed")
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    dist.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=24)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_fake_job")
def test_ranks_are_numbered_as_torch_numbers_a_device_mesh() -> None:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = ParallelMesh(dp=3, tp=2, pp=2, cp=2, ep=3, etp=2, replicas=1)
    torchs = init_device_mesh("cpu", (2, 3, 2, 2), mesh_dim_names=("pp", "dp", "cp", "tp"))

    def own(*axes: str) -> tuple[int, ...]:
        part = torchs[axes] if len(axes) == 1 else torchs[axes]._flatten()
        return tuple(part.mesh.tolist())

    assert own("tp") == mesh.ranks(mesh.tp_group, 0)
    assert own("cp") == mesh.ranks(mesh.cp_group, 0)
    assert own("pp") == mesh.ranks(mesh.pp_group, 0)
    assert own("dp", "cp") == mesh.ranks(mesh.data_parallel_group, 0)
    for rank in range(24):
        place = (torchs.mesh == rank).nonzero()[0].tolist()
        found = mesh.coordinates(rank)
        assert place == [found.pp, found.dp, found.cp, found.tp]


def test_a_group_of_one_is_the_rank_itself() -> None:
    mesh = ParallelMesh(dp=1, tp=1, pp=1, cp=1, ep=1, etp=1, replicas=1)
    assert all(group == ProcessGroup(size=1, stride=1) for group in mesh.groups.values())
    assert all(mesh.ranks(group, 0) == (0,) for group in mesh.groups.values())
