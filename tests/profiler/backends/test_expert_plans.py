"""Ways to cut and reach experts that are predicted, not run: each backend says so by key."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest

from moemodel.model.core.errors import InputError
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.profiler.backends.expert_plans import expert_mistakes

BACKENDS = {
    "torch": ("torch_native", "bf16"),
    "deepspeed": ("deepspeed", "bf16"),
    "fastmoe": ("fastmoe", "bf16"),
    "megatron-core": ("megatron_core", "bf16-mixed"),
    "megatron-deepspeed": ("megatron_deepspeed", "fp32"),
}


def plan(backend: str, precision: str, *, etp: int | None = None, **routing: Any) -> Plan:
    model = "mixtral-8x7b" if backend == "megatron-deepspeed" else "olmoe-1b-7b"
    document = {"name": "p", "architecture": model, "layers": 2, "sequence_length": 512, "global_batch": 16}
    document |= {"cluster": {"gpu": "h100-sxm-80gb", "gpus": 2}, "parallel": {"dp": 2, "ep": 1, "etp": etp}}
    return Plan.model_validate(document | {"backend": backend, "precision": precision, "routing": routing})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"etp": 2}, "parallel.etp: found 2; allowed for plans that {} runs: 1, null"),
        ({"dispatch": "deepep"}, "routing.dispatch: found 'deepep'; allowed for plans that are run: alltoall"),
        ({"dispatch_overlap": True}, "routing.dispatch_overlap: found true; allowed for plans that are run: false"),
        ({"node_limit": 4}, "routing.node_limit: found 4; allowed for plans that are run: null"),
    ],
)
def test_each_backend_refuses_what_it_does_not_run(backend: str, asked: dict[str, Any], message: str) -> None:
    folder, precision = BACKENDS[backend]
    check_runs = import_module(f"moemodel.profiler.backends.{folder}.supported_plans").check_runs
    found = plan(backend, precision, **asked)
    with pytest.raises(InputError) as error:
        check_runs(found, architecture_of(found))
    assert message.format(backend) in str(error.value)
    usual = plan(backend, precision, etp=1, dispatch="alltoall", dispatch_overlap=False)
    assert list(expert_mistakes(usual)) == []
