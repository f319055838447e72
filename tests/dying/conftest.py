"""A calibration of the processor at hand."""

from __future__ import annotations

import pytest

from moemodel.model.records.calibration import Calibration


@pytest.fixture(scope="session")
def cpu_calibration(calibration: Calibration) -> str:
    """That of an H100, said to be of a processor: what is predicted does not matter here."""
    return calibration.model_copy(update={"name": "test-cpu", "gpu": "cpu"}).model_dump_json()
