"""Who is who among the ranks of a plan, and what the torch runner refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.plan.spec import ParallelSpec, Plan
from moemodel.profiler.backends.base import architecture_in, check_runs
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


# --- what is refused -------------------------------------------------------------------------------------------------


def _plan(**changes: Any) -> Plan:
    parallel = changes.pop("parallel", {})
    gpus = 1
    for degree in ("dp", "tp", "pp", "cp"):
        gpus *= parallel.get(degree, 1)
    document = {"name": "p", "architecture": "opt-350m", "sequence_length": 512, "global_batch": 16} | changes
    cluster = {"gpu": "h100-sxm-80gb", "gpus": gpus}
    return Plan.model_validate(document | {"cluster": cluster, "parallel": parallel})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel": {"cp": 2}}, "parallel.cp: found 2; context parallelism is not run yet, allowed: 1"),
        ({"backend": "megatron"}, "backend: found 'megatron'; allowed for plans that are run: torch"),
        ({"power_cap_W": 500}, "power_cap_W: found 500; power limits are left alone, allowed: null"),
        (
            {"parallel": {"pp": 4}, "global_batch": 2},
            "parallel.pp: found 4 with 2 micro-batches; schedule 1f1b needs at least one a stage",
        ),
        (
            {"parallel": {"pp": 2}, "schedule": "zero-bubble", "recompute": "full"},
            "recompute: found 'full'; allowed with schedule zero-bubble: none",
        ),
        (
            {"parallel": {"pp": 2}, "schedule": "zero-bubble", "global_batch": 5},
            "schedule zero-bubble: found 5 micro-batches; allowed with pp 2: a multiple of 2",
        ),
        (
            {"architecture": "qwen3-30b-a3b", "parallel": {"tp": 8}},
            "parallel.tp: found 8; allowed: divisors of the 4 key/value heads",
        ),
    ],
)
def test_refuses_what_is_not_run(changes: dict[str, Any], message: str) -> None:
    plan = _plan(**changes)
    with pytest.raises(InputError) as error:
        check_runs(plan, read_architecture(plan.architecture))
    assert message in str(error.value)
    assert str(error.value).endswith("`moemodel predict` takes all of these")


def test_refuses_degrees_that_do_not_divide() -> None:
    plan = _plan(parallel={"tp": 3})
    with pytest.raises(InfeasiblePlanError, match=r"parallel\.tp 3 does not divide the attention heads 16"):
        check_runs(plan, read_architecture("opt-350m"))


@pytest.mark.parametrize(
    "parallel",
    [
        {"dp": 2, "zero_stage": 3},
        {"tp": 2, "sequence_parallel": True},
        {"pp": 2, "virtual_stages": 2},
        {"pp": 2, "dp": 2},
    ],
)
def test_runs_the_rest(parallel: dict[str, Any]) -> None:
    check_runs(_plan(parallel=parallel), read_architecture("opt-350m"))


def test_an_architecture_lies_beside_its_plan(tmp_path: Path) -> None:
    config = """{"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}"""
    (tmp_path / "own.json").write_text(config)
    assert len(architecture_in(_plan(architecture="own.json", layers=2), tmp_path).decoder) == 2
    with pytest.raises(InputError, match="p: layers: found 4; allowed: 1 to 3"):
        architecture_in(_plan(architecture="own.json", layers=4), tmp_path)
