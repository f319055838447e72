"""What Megatron-Bridge's releases switch on: read off by hand from a few of its configurations."""

from __future__ import annotations

import pytest

from moemodel.model.plan.spec import Plan
from studies.bridge_recipes import B200, B300, GB200, H100, Recipe, recipe

# As each release's configuration has it, v0.2.0 to v0.6.0 (scripts/performance/configs and perf_recipes)
BY_HAND = [
    (("qwen3-30b-a3b", H100, "25.11"), ("alltoall", True, None)),  # moe_a2a_overlap
    (("qwen3-30b-a3b", H100, "26.02.01"), ("deepep", False, None)),  # v0.3.1
    (("qwen3-30b-a3b", H100, "26.08"), ("deepep", False, None)),  # hybridep, moe_a2a_overlap False
    (("qwen3-235b-a22b", H100, "26.06"), ("alltoall", True, None)),
    (("qwen3-235b-a22b", B300, "26.04"), ("alltoall", False, None)),
    (("qwen3-235b-a22b", B300, "26.04.01"), ("deepep", False, None)),
    (("qwen3-30b-a3b", GB200, "26.04.01"), ("deepep", False, "router")),
    (("qwen3-30b-a3b", GB200, "26.06.01"), ("deepep", True, True)),  # _enable_hybridep_full_iteration_mxfp8
    (("qwen3-30b-a3b", B200, "26.02"), ("alltoall", False, "router")),
    (("qwen3-30b-a3b", B200, "26.04"), ("deepep", False, "attention")),
    (("llama-3-70b", H100, "26.06"), ("alltoall", False, None)),
]


@pytest.mark.parametrize(("asked", "expected"), BY_HAND)
def test_recipes_are_those_of_their_release(
    asked: tuple[str, str, str], expected: tuple[str, bool, bool | str | None]
) -> None:
    found = recipe(*asked)
    assert (found.dispatch, found.overlap, found.cuda_graphs) == expected


def test_degrees_that_a_table_copied_are_those_of_its_configuration() -> None:
    """v0.3.1: expert_model_parallel_size 16, no pipeline (QWEN3_30B_A3B_PRETRAIN_CONFIG_H100_FP8_CS_V1)."""
    found = recipe("qwen3-30b-a3b", H100, "26.02.01")
    assert (found.pp, found.ep, found.virtual_stages) == (1, 16, 1)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("qwen3-235b-a22b", H100, "25.09"), None),  # v0.1.0rc4, run_script.py: CommOverlapConfig(tp_comm_overlap=True)
        (("qwen3-235b-a22b", H100, "25.11"), False),  # v0.2.0, configs/qwen3/qwen3_llm_pretrain.py
        (("deepseek-v3", H100, "25.09"), False),  # v0.1.0rc4, recipes/deepseek/deepseek_v3.py
    ],
)
def test_exchanges_of_tensor_parallelism_that_recipes_leave_exposed(
    asked: tuple[str, str, str], expected: bool | None
) -> None:
    assert recipe(*asked).tp_overlap is expected


def test_what_a_release_does_not_name_is_as_in_the_one_before_it() -> None:
    assert recipe("deepseek-v3", H100, "25.11").recompute == "mla_up_proj+mlp"
    assert recipe("qwen3-30b-a3b", H100, "25.08") == Recipe()
    assert recipe("no such model", H100, "26.06") == Recipe()


def test_a_recipe_that_drops_rows_is_a_plan_with_a_capacity() -> None:
    plan = Plan.model_validate(
        {
            "architecture": "qwen3-30b-a3b",
            "sequence_length": 128,
            "global_batch": 8,
            "micro_batch": 1,
            "backend": "megatron-core",
            "cluster": {"gpu": H100, "gpus": 8},
            "parallel": {"dp": 8, "ep": 8},
            "routing": recipe("qwen3-30b-a3b", H100, "25.09").routing,
        }
    )
    assert plan.routing.capacity_factor == 1.0
    assert plan.routing.dispatch_overlap is None
