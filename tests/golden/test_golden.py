"""Predictions of thousands of plans stay what they were, to the last digits; a change that means them records anew.

They say nothing of whether a prediction is right: `bench/` and the tests of the parts do. They say that whoever
rearranges the code has changed no number by it. `record.py` writes both files.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from moemodel.model.core.arrays import FloatArray

HERE = Path(__file__).parent
_RELATIVE = 1e-12


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"golden_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = _module("predictions")
TABLE = pq.read_table(HERE / "predictions.parquet")
DOCUMENTS: list[dict[str, Any]] = [json.loads(text) for text in TABLE["plan"].to_pylist()]
FIGURES: dict[str, FloatArray] = {
    name: TABLE[name].to_numpy().astype(np.float64) for name in TABLE.column_names if name != "plan"
}
ARCHITECTURES = sorted({document["architecture"] for document in DOCUMENTS})
ANSWERS = [json.loads(line) for line in gzip.decompress((HERE / "answers.json.gz").read_bytes()).splitlines()]


def _scale(name: str, rows: list[int]) -> FloatArray:
    """What a figure is rounded against: a difference of large numbers keeps the digits of these. [P]"""
    if name.endswith("_J"):
        return FIGURES["energy_J"][rows]
    return FIGURES["step_time_s"][rows] if name.endswith("_s") else np.zeros(len(rows))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_predictions_stay(architecture: str) -> None:
    groups: dict[str, list[int]] = {}
    for index, document in enumerate(DOCUMENTS):
        if document["architecture"] == architecture:
            groups.setdefault(golden.group_of(document), []).append(index)
    assert sum(map(len, groups.values())) >= 200
    for rows in groups.values():
        found = golden.predicted([DOCUMENTS[index] for index in rows])
        # a term that a framework's memory does not have is missing, and NaN in the table
        assert set(found) == {name for name, values in FIGURES.items() if not np.isnan(values[rows]).all()}
        for name, values in found.items():
            expected = FIGURES[name][rows]
            allowed = _RELATIVE * np.maximum(np.abs(expected), _scale(name, rows))
            assert (np.abs(values - expected) <= allowed).all(), (name, DOCUMENTS[rows[0]])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers_stay(architecture: str) -> None:
    """All of `moemodel predict --json`: intervals, phases, totals of the run, warmer air."""
    for entry in ANSWERS:
        if entry["plan"]["architecture"] == architecture:
            _same(golden.answered(entry["plan"]), entry["answer"], entry["answer"], "")


def _same(found: Any, kept: Any, answer: dict[str, Any], place: str) -> None:
    if isinstance(kept, dict):
        assert set(found) == set(kept), place
        for name, part in kept.items():
            _same(found[name], part, answer, f"{place}.{name}")
    elif isinstance(kept, list):
        assert len(found) == len(kept), place
        for index, part in enumerate(kept):
            _same(found[index], part, answer, f"{place}[{index}]")
    elif isinstance(kept, float) and isinstance(found, float):
        step = answer["step"]
        whole = step["energy_J"] if place.endswith("_J") else step["step_time_s"]
        scale = whole["value"] if place.endswith(("_J", "_s")) and whole["value"] is not None else 0.0
        assert abs(found - kept) <= _RELATIVE * max(abs(kept), scale, 1.0 if "_share" in place else 0.0), place
    else:
        assert found == kept, place
