"""`bench/crossover.py`."""

from __future__ import annotations

import json
from pathlib import Path

import crossover
import pytest

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.results.crossover import predicted_rates, rates_json, turns_at


def test_published_figures_turn_where_the_study_says() -> None:
    published = crossover.published()
    assert turns_at(published, "chosen") == "large"
    assert published["large", "chosen"].inferences_per_J == pytest.approx(15762.55 / 165.31, rel=1e-3)


def test_a_measurement_counts_and_a_tiny_one_does_not(tmp_path: Path) -> None:
    rates = predicted_rates(load_calibration(None, "h100-sxm-80gb", key="gpu"))
    cases = rates_json(rates)["cases"]
    for case in cases:
        case["inferences_per_J"] /= 1.1
    (tmp_path / "h100-sxm-80gb.json").write_text(json.dumps({"tiny": False, "cases": cases}))
    (tmp_path / "h200-sxm-141gb.json").write_text(json.dumps({"tiny": True, "cases": cases}))
    found = crossover.figures(tmp_path)
    assert "h200-sxm-141gb" not in found
    assert found["h100-sxm-80gb"]["inferences_per_J_mape"] == pytest.approx(0.1)
    assert found["h100-sxm-80gb"]["winners_right"] == found["h100-sxm-80gb"]["of"] == 8
    assert found["of"] == 8 + found["published"]["of"] == 15
    assert found["turns"] == 3


def test_figures_without_a_measurement_are_the_published_ones(tmp_path: Path) -> None:
    found = crossover.figures(tmp_path)
    assert found["of"] == found["published"]["of"] == 7
    errors = [abs(error) for error in found["published"]["errors"].values()]
    assert found["inferences_per_J_mape"] == pytest.approx(sum(errors) / 11)
