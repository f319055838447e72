"""`bench/public_runs.py` on plans made for it: what counts as one run, and which of its plans is taken."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from public_runs import groups

from moemodel.model.core.documents import read_json
from moemodel.model.frameworks.track_record import TrackRecords, track_records
from studies.public.record import AGAIN

_SHARED = Path(__file__).parents[3] / "shared"
needs_data = pytest.mark.skipif(not _SHARED.is_dir(), reason=f"the published data are not at {_SHARED}")
PLAN = """\
# published: {said}
architecture: opt-350m
sequence_length: 2048
global_batch: 64
micro_batch: {micro_batch}
recompute: {recompute}
cluster: {{gpu: h100-sxm-80gb, gpus: 8}}
parallel: {{dp: 8}}
"""
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def plans(tmp_path: Path) -> Path:
    """A folder of cases, with a group of rows."""
    group = tmp_path / "rows" / "group"
    group.mkdir(parents=True)

    def write(path: Path, said: str, recompute: str = "none", micro_batch: int = 1) -> None:
        path.write_text(PLAN.format(said=said, recompute=recompute, micro_batch=micro_batch), encoding="utf-8")

    write(tmp_path / "01-case.yaml", "step 0.25 s, 20.0 GB")
    write(group / "large-none.yaml", "tok_s_gpu=32768", micro_batch=8)
    write(group / "large-full.yaml", "tok_s_gpu=32768", recompute="full", micro_batch=8)
    write(group / "two-none.yaml", "time_s=0.5, memory_GB=20")
    write(group / "two-full.yaml", "time_s=1.0", recompute="full")
    (group / "impossible.yaml").write_text("# published: time_s=1\narchitecture: opt-350m\n", encoding="utf-8")
    return tmp_path


def answers(run_bench: Run, plans: Path, *only: str) -> dict[str, Any]:
    """Figures of some groups, by name."""
    done = run_bench("public_runs.py", "--json", "--only", *only, "--cases", plans, "--data", plans / "none")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_figures_of_groups(run_bench: Run, plans: Path) -> None:
    found = answers(run_bench, plans, "cases", "group")
    assert set(found) == {"cases", "group"}
    assert found["cases"]["rows"] == found["cases"]["timed"] == found["cases"]["memory_rows"] == 1
    # three runs of the group can be told apart by what was published; a plan that is none was run all the same
    assert (found["group"]["rows"], found["group"]["timed"], found["group"]["refused"]) == (4, 3, 1)
    assert found["group"]["mape"] >= abs(found["group"]["signed"])


def test_of_plans_of_one_run_the_one_that_fits_and_computes_least_is_taken(rerun_bench: Run, plans: Path) -> None:
    done = rerun_bench("public_runs.py", "--rows", "--only", "group", "--cases", plans, "--data", plans / "none")
    line = next(line for line in done.stdout.splitlines() if line.strip().startswith("large"))
    assert "0.5 s" in line  # 64 x 2048 tokens by 8 GPUs at 32768 tokens/s each
    assert "as recompute none" in line


def test_without_data_what_lies_in_the_repository_is_left(rerun_bench: Run, tmp_path: Path) -> None:
    there = groups(tmp_path / "none", tmp_path / "no")
    assert set(there) == {
        "torchtitan-h200",
        "transformers-h200",
        "deepspeed-h200",
        "foundry-a100",
        "foundry-a100-40gb",
        "mlperf-v4-v5",
    }
    assert all(read() for read in there.values())
    found = answers(rerun_bench, tmp_path / "no", "foundry-a100")["foundry-a100"]  # and what begins so
    assert (found["rows"], found["timed"], found["refused"], found["not_read"]) == (59, 59, 0, 0)


def test_groups_that_are_not_there_are_named(rerun_bench: Run, tmp_path: Path) -> None:
    done = rerun_bench("public_runs.py", "--cases", tmp_path / "no", "--data", tmp_path / "none", "--only", "golden")
    assert done.returncode == 2
    assert "found golden; allowed: torchtitan-h200, transformers-h200" in done.stderr


@needs_data
def test_the_record_that_ships_is_what_the_command_writes(tmp_path: Path, run_bench: Run) -> None:
    """Within a tenth, or a hundredth: where predictions have changed by more, write it anew. Groups whose runs stand in
    others too are not in it, and not asked."""
    there = groups(_SHARED / "data", _SHARED / "cases" / "public-runs")
    asked = [name for name in there if name not in AGAIN]
    done = run_bench("public_runs.py", "--write-record", tmp_path / "record.json", "--only", *asked)
    assert done.returncode == 0, done.stderr
    written = read_json(tmp_path / "record.json", TrackRecords).frameworks
    assert written.keys() == track_records().keys()
    for name, record in track_records().items():
        for ships, found in zip(record.known, written[name].known, strict=True):
            assert ships.runs == found.runs, name
            assert ships.log_error == pytest.approx(found.log_error, rel=0.1, abs=0.01), name
