"""Valid documents of all kinds that commands read, in an empty folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from fuzz_mutations import PLAN
from moemodel.model.records.calibration import Calibration


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
