"""Which plans plain PyTorch runs, and what is said of the others."""

from __future__ import annotations

from typing import Any

import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.plan.spec import Plan
from moemodel.profiler.backends.torch_native.supported_plans import check_runs


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
