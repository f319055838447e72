"""Runs that are handed to Slurm, here to submitit's own stand-in for it, which starts processes."""

from __future__ import annotations

import gc
import json
import time
from pathlib import Path

import pytest

from moemodel.model.core.documents import read_json
from moemodel.model.core.errors import InputError
from moemodel.model.records.run import RunResult
from moemodel.profiler.runs import submit
from moemodel.profiler.runs.document import cells, read_run
from moemodel.profiler.runs.submit import submit_matrix
from tests.small_plans import CONFIG

pytest.importorskip("submitit")

DOCUMENT = """\
name: small
plan:
  architecture: config.json
  sequence_length: 16
  global_batch: 2
  cluster: {gpu: cpu}
matrix:
  global_batch: [2, 4]
samples: 4
warmup_steps: 1
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    path = tmp_path / "run.yaml"
    path.write_text(DOCUMENT)
    return path


@pytest.mark.filterwarnings("ignore:.*Popen.__del__:pytest.PytestUnraisableExceptionWarning")  # submitit's own
def test_a_job_runs_its_run_and_is_not_submitted_again(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (one,) = submit_matrix(file, out, arguments=["--gpu", "cpu"], only=["global_batch-2"], cluster="local")
    end_s = time.monotonic() + 120
    while not (out / "slurm" / f"{one.job}_0_result.pkl").exists() and time.monotonic() < end_s:
        time.sleep(0.1)
    assert read_json(out / "global_batch-2" / "result.json", RunResult).status == "done"
    assert submit_matrix(file, out, only=["global_batch-2"], cluster="local") == []
    gc.collect()  # the job's process, while the warning of it is not heard


def test_a_job_has_the_nodes_that_its_plan_takes(file: Path) -> None:
    file.write_text(
        DOCUMENT.replace("gpu: cpu", "gpu: h100-sxm-80gb, gpus: 16").replace("global_batch: 2\n", "global_batch: 16\n")
        .replace("[2, 4]", "[16]").replace("samples: 4", "samples: 16") + "  # sixteen\n"
    )  # fmt: skip
    text = file.read_text().replace("matrix:", "  parallel: {dp: 16}\nmatrix:")
    file.write_text(text)
    (cell,) = cells(read_run(file), file.parent)
    found = submit._parameters(cell, {"partition": "gpu", "time": "30"})
    assert (found["nodes"], found["gpus_per_node"], found["timeout_min"]) == (2, 8, 30)
    assert found["slurm_partition"] == "gpu"
    assert "slurm" in submit._command(file, file.parent / "out", cell, [])


def test_a_time_that_is_none_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--slurm time: found '1:00'; allowed: minutes"):
        submit_matrix(file, tmp_path / "out", parameters={"time": "1:00"}, cluster="local")
