"""The benchmark against published runs, as its users run it; its aims where the published data are at hand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
Run = Callable[..., str]
Started = Callable[..., subprocess.CompletedProcess[str]]
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the published data are not at {DATA}")


@pytest.fixture(scope="session")
def run(rerun_bench: Started) -> Run:
    """What `python bench/external.py ...` prints."""

    def printed(*arguments: str | Path) -> str:
        done = rerun_bench("external.py", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return printed


def test_without_data_it_says_so(tmp_path: Path, run: Run, run_bench: Started) -> None:
    missing = tmp_path / "none"
    done = run_bench("external.py", "--data", missing)
    assert (done.returncode, done.stdout) == (0, f"skipped: {missing} is not there\n"), done.stderr
    assert json.loads(run("--json", "--data", missing)) == {"skipped": f"skipped: {missing} is not there"}


def test_one_data_set_as_a_table(tmp_path: Path, run: Run) -> None:
    columns = "dp,tp,pp,micro_batch,global_batch,sequence_length,iteration_s,peak_memory_B"
    rows = ["1,4,1,8,64,2048,2.0,3e10", "2,4,1,8,64,2048,1.0,3e10", "4,4,1,8,64,2048,0.5,3e10"]
    file = tmp_path / "gh200-iteration-times" / "opt_350m.csv"
    file.parent.mkdir()
    file.write_text("\n".join([columns, *rows, ""]), encoding="utf-8")
    table = run("--only", "gh200", "--rows", "--data", tmp_path)
    assert "GH200 OPT-350M" in table
    assert "Sailor 8.9 % (memory 5.9 %)" in table
    assert "dp4 tp4 pp1 mb8" in table
    assert "nan" not in table


@pytest.fixture(scope="module")
def figures(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("--json", "--skip-a100"))
    return found


@needs_data
@pytest.mark.parametrize(
    ("name", "figure", "aim", "rows"),
    [
        ("gh200", "time_mape", 0.09, 15),
        ("gh200", "memory_mape", 0.06, 15),
        ("fsdp", "time_mape", 0.10, 56),
        ("experts", "time_mape", 0.15, 19),
        ("dense", "time_mape", 0.10, 14),
        ("dense", "time_mape_zero_shot", 0.10, 14),
        ("mlperf", "time_mape", 0.10, 13),
    ],
)
def test_published_runs_are_predicted_within_the_aims(
    name: str, figure: str, aim: float, rows: int, figures: dict[str, Any]
) -> None:
    assert 0 < figures[name][figure] <= aim
    assert figures[name]["rows"] == rows


@needs_data
def test_every_row_left_out_is_counted(figures: dict[str, Any]) -> None:
    assert figures["fsdp"]["excluded"] == {"in FP8": 7}
    assert figures["dense"]["excluded"] == {"with LoRA": 1}
    assert figures["experts"]["excluded"] == {"with state-space layers": 4}
    assert figures["mlperf"]["excluded"] == {"systems that fine-tune with LoRA": 10}
    assert "a100" not in figures
