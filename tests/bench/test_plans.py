"""Plans in bench/plans that wait for their hardware, and what was predicted of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moemodel.api import predict

_EIGHT = Path(__file__).parents[2] / "bench" / "plans" / "eight-gpus"
_PREDICTED = json.loads((_EIGHT / "predicted.json").read_text())


def test_every_plan_was_predicted() -> None:
    assert sorted(_PREDICTED) == sorted(file.stem for file in _EIGHT.glob("*.yaml"))


@pytest.mark.parametrize("name", sorted(_PREDICTED))
def test_a_plan_fills_the_node_and_fits(name: str) -> None:
    found = predict(_EIGHT / f"{name}.yaml")
    assert found.plan.cluster.gpus == 8
    assert found.plan.name == name
    assert found.fits
