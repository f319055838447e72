"""DeepSpeed's ZeRO on dense models, against ten runs on an H200 (bench/measured/deepspeed)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moemodel.api import predict

BENCH = Path(__file__).parents[3] / "bench"
(REPORT,) = (BENCH / "measured" / "deepspeed").glob("*.json")
RUNS = json.loads(REPORT.read_text(encoding="utf-8"))["plans"]


@pytest.mark.parametrize("run", RUNS, ids=[run["name"] for run in RUNS])
def test_dense_models_take_as_long_as_measured(run: dict[str, Any]) -> None:
    measured = {name: found["measured"]["mean"] for name, found in run["quantities"].items()}
    found = predict(BENCH / "plans" / "deepspeed" / f"{run['name']}.yaml")
    assert found.step_time_s.value == pytest.approx(measured["step_time"], rel=0.05)
    assert found.energy.gpu_J.value == pytest.approx(measured["energy"], rel=0.07)
