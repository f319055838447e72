"""Which plans DeepSpeed and FastMoE run, and what is said of the others."""

from __future__ import annotations

from typing import Any

import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.plan.routing import routed_architecture
from moemodel.model.plan.spec import Plan
from moemodel.profiler.backends.base import check_runs


def _check(backend: str, **changes: Any) -> None:
    parallel = changes.pop("parallel", {})
    gpus = 1
    for degree in ("dp", "tp", "pp", "cp"):
        gpus *= parallel.get(degree, 1)
    document = {"name": "p", "architecture": "olmoe-1b-7b", "sequence_length": 512, "global_batch": 16} | changes
    cluster = {"gpu": "h100-sxm-80gb", "gpus": gpus}
    plan = Plan.model_validate(document | {"cluster": cluster, "parallel": parallel, "backend": backend})
    check_runs(plan, routed_architecture(read_architecture(plan.architecture), plan.routing))


@pytest.mark.parametrize("backend", ["deepspeed", "fastmoe"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel": {"tp": 2}}, "parallel.tp: found 2; allowed for plans that {} runs: 1"),
        ({"parallel": {"pp": 2}}, "parallel.pp: found 2; allowed for plans that {} runs: 1"),
        ({"recompute": "selective"}, "recompute: found 'selective'; allowed for plans that {} runs: none, full"),
        ({"gradient_dtype": "fp32"}, "gradient_dtype: found 'fp32'; allowed for plans that {} runs: null"),
        ({"power_cap_W": 500}, "power_cap_W: found 500; power limits are left alone, allowed: null"),
        ({"routing": {"z_loss": 0.001}}, "routing.z_loss: found 0.001;"),
        ({"routing": {"normalize": False}}, "routing.normalize: found False with"),
        (
            {"routing": {"router": "expert_choice"}},
            "routing.router: found 'expert_choice'; allowed for {}: softmax_topk",
        ),
        ({"routing": {"router": "gshard_top2"}}, "routing.top_k: found 8; allowed with"),
        ({"routing": {"jitter": 0.02}}, "routing.jitter: found 0.02"),
    ],
)
def test_what_neither_runs_is_said(backend: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        _check(backend, **changes)
    assert message.format(backend) in str(error.value)
    assert str(error.value).endswith("`moemodel predict` takes all of these")


@pytest.mark.parametrize(
    ("backend", "changes", "message"),
    [
        ("deepspeed", {"parallel": {"dp": 2, "zero_stage": 3}}, "parallel.zero_stage: found 3; allowed for plans that"),
        ("deepspeed", {"precision": "bf16"}, "found 'bf16' with parallel.zero_stage 0; DeepSpeed keeps states in bf16"),
        ("deepspeed", {"routing": {"pad": False}}, "routing.pad: found False; DeepSpeed pads"),
        ("deepspeed", {"routing": {"router": "noisy_topk"}}, "routing.top_k: found 8; allowed with DeepSpeed's noisy"),
        (
            "deepspeed",
            {"recompute": "full", "routing": {"router": "gshard_top2", "top_k": 2}},
            "recompute: found 'full' with routers that draw lots",
        ),
        (
            "deepspeed",
            {"routing": {"router": "noisy_topk", "top_k": 1, "jitter": 0.01}},
            "routing.jitter: found 0.01 with noisy_topk; DeepSpeed takes one noise, allowed: 0",
        ),
        ("deepspeed", {"sequence_length": 2, "global_batch": 1}, "found 2 tokens in a micro-batch"),
        ("fastmoe", {"parallel": {"dp": 2, "zero_stage": 1}}, "parallel.zero_stage: found 1; allowed for plans that"),
        ("fastmoe", {"routing": {"capacity_factor": 1.2}}, "routing.capacity_factor: found 1.2 with softmax_topk"),
        ("fastmoe", {"routing": {"balance_loss": 0.01}}, "routing.balance_loss: found 0.01 with softmax_topk"),
        ("fastmoe", {"routing": {"pad": True}}, "routing.pad: found True; FastMoE pads nothing"),
        ("fastmoe", {"routing": {"residual": True}}, "routing.residual: found True; FastMoE has no such thing"),
        (
            "fastmoe",
            {"recompute": "full", "routing": {"router": "switch_top1", "top_k": 1}},
            "recompute: found 'full' with switch_top1",
        ),
    ],
)
def test_what_one_does_not_run_is_said(backend: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        _check(backend, **changes)
    assert message in str(error.value)


@pytest.mark.parametrize("backend", ["deepspeed", "fastmoe"])
def test_what_the_model_itself_cannot_be_is_said_too(backend: str) -> None:
    with pytest.raises(InputError, match="latent attention"):
        _check(backend, architecture="deepseek-v3")
    with pytest.raises(InfeasiblePlanError, match=r"parallel\.ep"):
        _check(backend, parallel={"dp": 3, "ep": 3}, global_batch=15)


@pytest.mark.parametrize(
    ("backend", "changes"),
    [
        ("deepspeed", {"parallel": {"dp": 4, "ep": 4, "zero_stage": 2}, "precision": "bf16"}),
        ("deepspeed", {"routing": {"capacity_factor": 1.25, "balance_loss": 0.01, "jitter": 0.01, "residual": True}}),
        ("deepspeed", {"routing": {"router": "noisy_topk", "top_k": 1}}),
        ("deepspeed", {"architecture": "opt-350m", "recompute": "full"}),
        ("fastmoe", {"parallel": {"dp": 4, "ep": 2}, "recompute": "full", "precision": "bf16"}),
        ("fastmoe", {"routing": {"router": "gshard_top2", "top_k": 2, "capacity_factor": 1.2, "balance_loss": 0.01}}),
        ("fastmoe", {"routing": {"router": "switch_top1", "top_k": 1, "jitter": 0.1, "capacity_factor": 1.2}}),
        ("fastmoe", {"architecture": "opt-350m"}),
    ],
)
def test_the_rest_is_run(backend: str, changes: dict[str, Any]) -> None:
    _check(backend, **changes)
