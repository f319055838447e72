"""What one search takes for all of its plans, key by key."""

from __future__ import annotations

from typing import Any

import pytest

from moemodel.model.plan.left_to_framework import NONE_IN_A_SEARCH, ONE_FOR_ALL
from moemodel.model.plan.spec import Plan
from moemodel.model.search.document import Search

_SAID: dict[str, Any] = {
    "fp8_recipe": "blockwise",
    "parameter_dtype": "fp8",
    "activation_input_dtype": "fp8",
    "tp_comm_overlap": False,
    "loss_chunks": 4,
    "cp_comm": "a2a",
    "multi_token": True,
    "dropout": True,
    "optimizer": {"name": "muon"},
    "lora": {"rank": 8},
    "offload": {"optimizer": 0.5},
    "stage_layers": {"embedding": 1},
}


def test_each_key_is_tried() -> None:
    assert _SAID.keys() == set(ONE_FOR_ALL)
    assert set(Plan.model_fields) >= {*ONE_FOR_ALL, *NONE_IN_A_SEARCH}
    assert not set(Search.model_fields) & set(NONE_IN_A_SEARCH)


def test_plans_without_shared_sequences_have_no_all_to_all() -> None:
    document = Search.model_validate(
        {
            "architecture": "llama-3-8b",
            "sequence_length": 4096,
            "global_batch": 16,
            "backend": "megatron-core",
            "cluster": {"gpu": "h100-sxm-80gb", "gpus": 2},
            "lora": {"rank": 8, "all_to_all": True},
        }
    )
    alone, both = document.plan(dp=2, gpus=2), document.plan(tp=2, sequence_parallel=True, gpus=2)
    asked = [plan.lora.all_to_all for plan in (alone, both) if plan.lora is not None]
    assert asked == [False, True]


@pytest.mark.parametrize("key", ONE_FOR_ALL)
def test_a_search_takes_one_for_all(key: str) -> None:
    said = {
        "architecture": "deepseek-v3",
        "sequence_length": 4096,
        "global_batch": 16,
        "precision": "fp8",
        "backend": "megatron-core",
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 16},
        key: _SAID[key],
    }
    document = Search.model_validate(said)
    plan = document.plan(dp=2, gpus=2)
    assert getattr(plan, key) == getattr(document, key)
    assert getattr(plan, key) is not None
