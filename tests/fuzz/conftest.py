"""Valid documents of all kinds that commands read, in an empty folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from moemodel.model.records.calibration import Calibration

PLAN: dict[str, Any] = {
    "name": "small",
    "architecture": "opt-350m",
    "layers": 4,
    "sequence_length": 2048,
    "global_batch": 64,
    "micro_batch": 4,
    "precision": "bf16-mixed",
    "recompute": "none",
    "schedule": "1f1b",
    "backend": "torch",
    "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8, "gpus_per_node": 4, "internode": "infiniband-ndr"},
    "parallel": {"dp": 4, "tp": 2, "pp": 1, "ep": 1, "cp": 1, "zero_stage": 1, "sequence_parallel": True},
    "routing": {"skew": "balanced"},
    "clock_MHz": None,
    "power_cap_W": 500,
    "site": {"region": "world", "pue": 1.2, "price_per_kWh": 0.1, "gpu_hour_price": 2, "currency": "USD"},
    "tokens": 1e10,
}


@pytest.fixture(scope="session")
def examples() -> int:
    """Inputs of each kind: few in CI; `MOEMODEL_FUZZ=2500 pytest tests/fuzz` is the long run, by hand."""
    return int(os.environ.get("MOEMODEL_FUZZ", "0"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that everything runs in, with `plan.yaml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN), encoding="utf-8")
    return tmp_path


@pytest.fixture
def calibration_path(folder: Path, calibration: Calibration) -> Path:
    """The synthetic calibration, as a file in the folder."""
    path = folder / "calibration.json"
    path.write_text(calibration.model_dump_json(), encoding="utf-8")
    return path
