"""Under Megatron Core's own model, schedules and optimizer the losses are those of the torch backend."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moemodel.profiler.backends.torch_native.trainer import Trainer
from tests.profiler.backends.megatron_core.here import needs_megatron
from tests.profiler.backends.megatron_core.run_ranks import training_run

pytestmark = needs_megatron

_ROOT = Path(__file__).parents[4]
_LOSSES = {"balance_loss": 0.1, "z_loss": 0.01}
_CASES: list[dict[str, Any]] = [
    {"ranks": 1, "architecture": "olmoe"},
    {"ranks": 1, "architecture": "qwen3", "recompute": "full"},
    {"ranks": 1, "architecture": "qwen3", "recompute": "selective"},
    {"ranks": 1, "architecture": "mixtral", "routing": {"normalize": False}},
    {"ranks": 1, "architecture": "mixtral", "routing": _LOSSES},
    {"ranks": 1, "architecture": "shared"},
    {"ranks": 1, "architecture": "sparse"},
    {"ranks": 1, "architecture": "llama"},
    {"ranks": 1, "architecture": "opt"},
    {"ranks": 1, "architecture": "opt-350m"},
    {"ranks": 1, "architecture": "projected"},
    {"ranks": 1, "architecture": "mixtral", "routing": {"router": "switch_top1", "top_k": 1}},
    {"ranks": 1, "architecture": "mixtral", "routing": {"router": "sigmoid_topk", "bias_rate": 0.01}},
    {"ranks": 2, "architecture": "qwen3", "parallel": {"dp": 2}},
    {"ranks": 2, "architecture": "qwen3", "parallel": {"dp": 2, "zero_stage": 1}},
    {"ranks": 2, "architecture": "qwen3", "parallel": {"dp": 2, "ep": 2}},
    {"ranks": 2, "architecture": "qwen3", "parallel": {"dp": 2, "ep": 2, "zero_stage": 1}, "routing": _LOSSES},
    {"ranks": 2, "architecture": "qwen3", "parallel": {"tp": 2, "sequence_parallel": True}, "routing": _LOSSES},
    {"ranks": 2, "architecture": "qwen3", "parallel": {"tp": 2, "ep": 2, "sequence_parallel": True}},
    {"ranks": 2, "architecture": "qwen3", "parallel": {"pp": 2}, "routing": _LOSSES},
    {"ranks": 2, "architecture": "qwen3", "parallel": {"pp": 2, "virtual_stages": 2}},
    {"ranks": 2, "architecture": "llama", "parallel": {"tp": 2}},
    {"ranks": 2, "architecture": "opt-350m", "parallel": {"dp": 2, "zero_stage": 1}},
    {"ranks": 2, "architecture": "opt", "parallel": {"pp": 2}},
    {"ranks": 2, "architecture": "opt", "parallel": {"tp": 2, "sequence_parallel": True}},
]


def _name(case: dict[str, Any]) -> str:
    return "-".join(str(value) for name, value in case.items() if name != "ranks")


def _alike(case: dict[str, Any]) -> bool:
    """Whether rank 0 sees all tokens in all layers, so that its own statistics are those of the run."""
    parallel = case.get("parallel", {})
    return parallel.get("pp", 1) == parallel.get("dp", 1) == 1


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What came of all cases."""
    folder = tmp_path_factory.mktemp("megatron")
    (folder / "runs.json").write_text(json.dumps(_CASES))
    script = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("run_ranks.py")), str(folder)]
    path = os.pathsep.join([str(_ROOT), *sys.path])
    done = subprocess.run(script, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, cwd=_ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    losses: list[dict[str, Any]] = json.loads((folder / "losses.json").read_text())
    return losses


@pytest.mark.parametrize("number", range(len(_CASES)), ids=[_name(case) for case in _CASES])
def test_losses_are_those_of_one_device_under_torch(number: int, found: list[dict[str, Any]]) -> None:
    case, own = _CASES[number], found[number]
    torch_run = Trainer(training_run({**case, "parallel": {}}), torch.device("cpu"))
    for task, router in zip(own["task"], own["router"], strict=True):
        torch_run.step()
        assert task == pytest.approx(torch_run.loss(), abs=2e-5)
        if _alike(case):
            expected = torch_run.statistics().router_loss
            assert (router is None) == (expected is None)
            assert expected is None or router == pytest.approx(float(expected), rel=2e-4)
    assert own["promised"]


def test_rows_of_experts_are_those_under_torch(found: list[dict[str, Any]]) -> None:
    run = Trainer(training_run(_CASES[0]), torch.device("cpu"))
    for rows in found[0]["rows"]:
        run.step()
        assert rows == [layer.rows_E.tolist() for layer in run.statistics().routing]
    assert found[0]["dropped"] == [0, 0]


def test_phases_are_told_apart_but_in_a_pipeline(found: list[dict[str, Any]]) -> None:
    assert found[0]["marks"] == ["start", *["forward", "backward"] * 4, "optimizer"]
    staged = next(i for i, case in enumerate(_CASES) if case.get("parallel") == {"pp": 2})
    assert found[staged]["marks"] == ["start", "pipeline", "optimizer"]


def test_every_rank_holds_its_share(found: list[dict[str, Any]]) -> None:
    by_name = {_name(case): own["parameters"] for case, own in zip(_CASES, found, strict=True)}
    whole = Trainer(training_run(_CASES[1]), torch.device("cpu")).parameters
    experts = 4 * 8 * (32 * 32 + 16 * 32)
    assert by_name["qwen3-full"] == whole
    assert by_name["qwen3-{'dp': 2, 'ep': 2}"] == whole - experts // 2
