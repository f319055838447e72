"""What programs that train choose themselves is refused by key, whatever a plan says of it."""

from __future__ import annotations

from typing import Any

import pytest

from moemodel.model.plan.spec import Plan
from moemodel.profiler.backends.stated import stated


@pytest.mark.parametrize(
    "said",
    [
        {"cp_comm": "a2a"},
        {"offload": {"optimizer": 1.0}},
        {"lora": {"rank": 8}},
        {"optimizer": {"name": "muon"}},
        {"precision": "fp8", "parameter_dtype": "fp8"},
        {"precision": "fp8", "fp8_recipe": "blockwise"},
        {"tp_comm_overlap": False},
        {"loss_chunks": 4},
        {"collective_checks": True},
        {"deterministic": True},
        {"multi_token": True},
        {"activation_input_dtype": "fp8"},
    ],
    ids=lambda said: list(said)[-1],
)
def test_choices_that_no_runner_takes(said: dict[str, Any]) -> None:
    plan = {"architecture": "opt-350m", "sequence_length": 2048, "global_batch": 16, "backend": "megatron-core"}
    made = Plan.model_validate(plan | {"cluster": {"gpu": "h100-sxm-80gb"}} | said)
    (refusal,) = stated(made, "allowed for plans that are run")
    assert refusal.startswith(f"{list(said)[-1]}: found ")
    assert refusal.endswith("allowed for plans that are run: null")
