"""Plans on several devices compute what one device does: losses, gradient norms and every gradient, in float32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_SCRIPT = Path(__file__).with_name("ranks_parity.py")
_ROOT = Path(__file__).parents[4]
_PP = {"pp": 2}
_LOSSES = {"balance_loss": 0.5, "z_loss": 0.1}  # large, so that a wrong share of them shows

# The options of each case: architecture, degrees, and what else differs from the default.
_CASES: list[dict[str, Any]] = [
    {"architecture": "llama", "parallel": {"dp": 2}},
    {"architecture": "llama", "parallel": {"dp": 2, "zero_stage": 1}, "precision": "bf16"},
    {"architecture": "llama", "parallel": {"dp": 2, "zero_stage": 2}},
    {"architecture": "llama", "parallel": {"dp": 2, "zero_stage": 3}, "micro_batch": 2},
    {"architecture": "llama", "parallel": {"tp": 2}, "micro_batch": 4},
    {"architecture": "llama", "parallel": {"pp": 4}},
    {"architecture": "llama", "parallel": {"pp": 2, "virtual_stages": 2}, "schedule": "zero-bubble"},
    {"architecture": "llama", "parallel": {"dp": 2, "tp": 2, "zero_stage": 3}, "recompute": "full", "micro_batch": 2},
    {"architecture": "opt", "parallel": {"dp": 2, "zero_stage": 3}},
    {"architecture": "opt", "parallel": {"tp": 2, "sequence_parallel": True}, "micro_batch": 4},
    {"architecture": "opt", "parallel": {"tp": 4}, "micro_batch": 4},  # 62 rows of a vocabulary: 16, 16, 16, 14
    {"architecture": "opt", "parallel": _PP},
    {"architecture": "opt", "parallel": _PP, "schedule": "gpipe"},
    {"architecture": "opt", "parallel": _PP, "schedule": "zero-bubble"},
    {"architecture": "opt", "parallel": {"pp": 2, "virtual_stages": 2}},
    {"architecture": "opt", "parallel": {"tp": 2, "pp": 2, "sequence_parallel": True}, "micro_batch": 2},
    {"architecture": "opt", "parallel": {"dp": 2, "pp": 2}},
    {"architecture": "opt", "parallel": {"dp": 2, "pp": 2, "zero_stage": 1}},
    {"architecture": "opt", "parallel": {"dp": 2, "pp": 2}, "schedule": "zero-bubble"},
    {"architecture": "olmoe", "parallel": {"dp": 2, "zero_stage": 1}, "micro_batch": 2},
    {"architecture": "olmoe", "parallel": {"tp": 2}, "micro_batch": 4},
    {"architecture": "olmoe", "parallel": {"tp": 2, "sequence_parallel": True}, "micro_batch": 4},
    {"architecture": "olmoe", "parallel": {"dp": 2, "ep": 2}},
    {"architecture": "olmoe", "parallel": {"dp": 2, "ep": 2, "zero_stage": 3}},
    {"architecture": "olmoe", "parallel": {"dp": 4, "ep": 2}},
    {"architecture": "olmoe", "parallel": {"dp": 4, "ep": 2, "zero_stage": 1}},
    {"architecture": "olmoe", "parallel": {"dp": 2, "ep": 2, "pp": 2}},
    {"architecture": "olmoe", "parallel": {"dp": 2, "ep": 2, "tp": 2}, "micro_batch": 2},
    {"architecture": "shared", "parallel": {"tp": 2, "sequence_parallel": True, "dp": 2, "ep": 2, "zero_stage": 1}},
    {"architecture": "shared", "parallel": {"tp": 2}, "micro_batch": 4},
    # A router's loss is of the tokens that a rank sees at once: micro-batches of one sequence, as on one device.
    {"architecture": "olmoe", "parallel": {"dp": 2, "zero_stage": 1}, "routing": _LOSSES},
    {"architecture": "olmoe", "parallel": {"dp": 2, "zero_stage": 3}, "routing": _LOSSES, "recompute": "full"},
    {"architecture": "olmoe", "parallel": {"dp": 2, "pp": 2}, "routing": _LOSSES},
    {"architecture": "olmoe", "parallel": _PP, "routing": _LOSSES, "schedule": "zero-bubble"},
    {"architecture": "olmoe", "parallel": {"dp": 2, "ep": 2, "tp": 2}, "routing": _LOSSES | {"residual": True}},
    {"architecture": "sigmoid", "parallel": {"dp": 2, "ep": 2}, "routing": {"bias_rate": 0.01, "normalize": False}},
    {"architecture": "switch", "parallel": {"dp": 2, "ep": 2, "tp": 2}, "routing": _LOSSES | {"pad": True}},
    {"architecture": "switch", "parallel": {"dp": 2, "ep": 2}, "routing": _LOSSES},
    {"architecture": "switch-base", "parallel": {"dp": 2, "ep": 2}, "routing": _LOSSES},
    {"architecture": "switch-base", "parallel": {"dp": 2, "tp": 2, "zero_stage": 1}, "routing": {"pad": True}},
    {"architecture": "switch-base", "parallel": {"dp": 2, "zero_stage": 3}, "recompute": "full", "routing": _LOSSES},
]


def _name(case: dict[str, Any]) -> str:
    degrees = "-".join(f"{name}{value:d}" for name, value in case["parallel"].items())
    rest = [
        str(value) if not isinstance(value, dict) else "-".join(value)
        for name, value in case.items()
        if name not in ("architecture", "parallel")
    ]
    return "-".join([case["architecture"], degrees, *rest])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """Errors of every case, from one job of four processes."""
    cases = tmp_path_factory.mktemp("parity") / "cases.json"
    cases.write_text(json.dumps(_CASES), encoding="utf-8")
    job = subprocess.run(
        [sys.executable, str(_SCRIPT), str(cases)],
        env=os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert job.returncode == 0, job.stderr[-4000:]
    lines = [line for line in job.stdout.splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("index", range(len(_CASES)), ids=[_name(case) for case in _CASES])
def test_a_plan_computes_what_one_device_does(found: list[dict[str, float]], index: int) -> None:
    errors = found[index]
    assert errors["loss"] < 1e-5
    assert errors["router_loss"] < 1e-5
    assert errors["norm"] < 1e-5
    assert errors["gradient"] < 1e-5
    assert errors["leaked"] == 0
    assert errors["gradient_later"] < 1e-3  # Adam's first steps are near signs, which make rounding large
