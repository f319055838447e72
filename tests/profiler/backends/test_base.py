"""How a plan finds the backend that runs it, and its architecture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InputError, MissingExtraError
from moemodel.model.frameworks.registry import FRAMEWORKS
from moemodel.model.plan.spec import Plan
from moemodel.profiler.backends.base import BACKENDS, architecture_in, builder, check_runs, release_comm_buffers


def _plan(**changes: Any) -> Plan:
    document = {"name": "p", "architecture": "opt-350m", "sequence_length": 512, "global_batch": 16}
    return Plan.model_validate(document | {"cluster": {"gpu": "h100-sxm-80gb", "gpus": 1}} | changes)


def test_backends_are_frameworks_that_are_predicted_too() -> None:
    assert BACKENDS.keys() <= FRAMEWORKS.keys()


def test_a_framework_that_does_not_run_is_refused_by_name() -> None:
    plan = _plan(backend="megatron")
    message = "backend: found 'megatron'; allowed for plans that are run: torch"
    with pytest.raises(InputError, match=message):
        check_runs(plan, read_architecture(plan.architecture))
    with pytest.raises(InputError, match=message):
        builder("megatron")


_ARCHITECTURES = dict.fromkeys(("megatron-core", "megatron-core-local", "megatron-deepspeed"), "llama-3-8b")
_OTHERS: dict[str, Any] = {"megatron-deepspeed": {"precision": "fp32"}}


def _missing(backend: str) -> str | None:
    """What is said where a backend's framework is not installed."""
    try:
        assert callable(builder(backend))
    except MissingExtraError as error:
        return str(error)
    return None


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_has_what_a_job_calls(backend: str) -> None:
    import torch

    check_runs(
        _plan(backend=backend, **_OTHERS.get(backend, {})), read_architecture(_ARCHITECTURES.get(backend, "opt-350m"))
    )
    missing = _missing(backend)
    if missing is not None:
        assert missing.startswith(f"the backend {backend.removesuffix('-local')} ")
        assert "install the extra" in missing
        return
    release_comm_buffers(backend, torch.device("cpu"))  # nothing to release where no process group is


def test_plans_are_refused_without_loading_a_framework() -> None:
    code = (
        "import sys; from moemodel.profiler.backends import base; "
        "[base._module(name, 'supported_plans') for name in base.BACKENDS]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_architecture_lies_beside_its_plan(tmp_path: Path) -> None:
    config = """{"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}"""
    (tmp_path / "own.json").write_text(config)
    assert len(architecture_in(_plan(architecture="own.json", layers=2), tmp_path).decoder) == 2
    with pytest.raises(InputError, match="p: layers: found 4; allowed: 1 to 3"):
        architecture_in(_plan(architecture="own.json", layers=4), tmp_path)
