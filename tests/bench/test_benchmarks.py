"""The benchmarks run as their users run them, and the committed calibration still meets the project's aims."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def _figures(script: str, *arguments: str | Path) -> dict[str, Any]:
    """What `python bench/SCRIPT --json ...` prints: one JSON object and nothing else."""
    command = [sys.executable, "-W", "error", str(ROOT / "bench" / script), "--json", *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("accuracy") / "accuracy.md"


@pytest.fixture(scope="module")
def accuracy(report: Path) -> dict[str, Any]:
    return _figures("accuracy.py", "--output", report)


# Aims of the project for the committed calibration against the committed training runs; none of them was fitted.
@pytest.mark.parametrize(
    ("figure", "aim"),
    [("step_time_mape", 0.06), ("energy_mape", 0.08), ("clock_mape", 0.03), ("memory_mape", 0.06)],
)
def test_training_runs_are_predicted_within_the_aims(figure: str, aim: float, accuracy: dict[str, Any]) -> None:
    assert 0 < accuracy[figure] <= aim


def test_there_are_enough_runs_to_say_so(accuracy: dict[str, Any]) -> None:
    assert accuracy["points"] >= 10
    assert accuracy["step_time_worst"] < 0.25
    assert 0.5 <= accuracy["step_time_coverage_90"] <= 1


def test_operators_on_shapes_that_were_held_out(accuracy: dict[str, Any]) -> None:
    assert 0 < accuracy["operator_median_of_medians"] <= 0.07
    assert accuracy["operator_medians_above_aim"] <= 0.1 * accuracy["operator_passes"]


def test_the_report_has_every_run_in_it(accuracy: dict[str, Any], report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert text.startswith("# Accuracy\n")
    assert f"{accuracy['step_time_mape']:.1%}" in text
    for plan in (ROOT / "bench" / "plans").glob("opt-350m*.yaml"):
        assert f"| {plan.stem} |" in text
    assert "nan" not in text


def test_speed_is_measured(tmp_path: Path) -> None:
    """How fast is not asserted: this machine is shared."""
    figures = _figures("predict_speed.py", "--plans", "400", "--repeats", "1")
    assert figures["plans"] == 400
    assert figures["plans_per_s"] > 0
    assert figures["plans_per_s_distinct_shapes"] > 0
    assert figures["legal_plans"] > 40_000
    assert figures["calibration"] == "h100-sxm-80gb"
    assert not list(tmp_path.iterdir())
