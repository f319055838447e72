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


def test_speed_of_a_search_is_measured(tmp_path: Path) -> None:
    figures = _figures("search_speed.py", "--gpus", "2", "--repeats", "1")
    assert figures["combinations"] > figures["plans"] >= figures["feasible"] >= figures["front"] > 0
    assert figures["plans_per_s"] > 0
    assert figures["peak_memory_B"] > 0
    assert figures["calibration"] == "h100-sxm-80gb"
    assert not list(tmp_path.iterdir())


DATA = ROOT.parent / "shared" / "data"
public = pytest.mark.skipif(not DATA.is_dir(), reason=f"no published data at {DATA}")


@pytest.mark.parametrize("script", ["dvfs_power.py", "power_caps.py"])
def test_without_the_published_data_it_says_what_is_missing(script: str, tmp_path: Path) -> None:
    assert str(tmp_path) in _figures(script, "--data", tmp_path)["skipped"]


@public
def test_power_against_the_clock_on_public_data() -> None:
    """Aims of the project, but for `power_mape`: those counters leave a tenth open even to a fit of all programs."""
    figures = _figures("dvfs_power.py", "--splits", "12")
    assert figures["codes"] == 12
    assert 0 < figures["power_mape_one_reading"] <= 0.06
    assert 0 < figures["power_mape_one_reading_top_clock"] <= 0.06
    assert figures["power_mape_one_reading"] < figures["power_mape_fitted"] < figures["power_mape"] < 0.2
    assert figures["best_clock_median_error_Hz"] <= 75e6
    assert figures["best_clock_near"] > 0.5
    assert 0 <= figures["energy_lost"] < 0.03
    assert 0 < figures["h100_shape_mape"] <= 0.08


@public
def test_time_and_power_under_caps_on_public_data() -> None:
    figures = _figures("power_caps.py")
    assert figures["rows"] > 900
    for what in ("time", "power"):
        assert 0 < figures[f"{what}_mape"] <= 0.06
        assert figures[f"{what}_mape"] < figures[f"{what}_mape_lines"]
        assert max(figures[f"{what}_mape_{name}"] for name in ("a100", "v100", "a40")) <= 0.06
