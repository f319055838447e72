"""The runs of a matrix as jobs of Slurm's, one a run, by submitit. No torch here.

A job runs `moemodel run` for its one run: the same command, the same folder, the same predictions, on the nodes that
the plan takes. What is done already is not submitted. Whoever submits waits for nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from moemodel.model.core.errors import InputError
from moemodel.model.core.extras import needs_extra
from moemodel.model.plan.spec import Plan
from moemodel.model.records.run import RESULT
from moemodel.profiler.runs.document import Cell, cells, read_run
from moemodel.profiler.runs.execute import chosen, claim, kept

_LOGS = "slurm"  # in the matrix' folder
_MINUTES = 60  # assumed, where nothing is said: of a run of minutes, with its start


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A run that was handed to Slurm.

    Attributes:
        name: of the run.
        job: Slurm's number of it.
    """

    name: str
    job: str


def submit_matrix(
    file: Path,
    folder: Path,
    *,
    arguments: Sequence[str] = (),
    parameters: Mapping[str, str] | None = None,
    only: Sequence[str] = (),
    cluster: str | None = None,
) -> list[Submitted]:
    """Submit a job for every run of a document that is not done.

    Args:
        file: of the document.
        folder: of the runs; made if missing.
        arguments: of `moemodel run` in the job, beside the run's name and how its processes are started.
        parameters: of Slurm, by its own names ("partition", "time" in minutes).
        only: names of runs; none: all.
        cluster: as submitit takes it; None: the one that is here.

    Returns:
        What was submitted, in the order of the runs.

    Raises:
        InputError: see `execute.run_matrix`; a parameter that is none.
        MissingExtraError: submitit is not installed.
    """
    document = read_run(file)
    wanted = chosen(cells(document, file.parent), only)
    with needs_extra("--launcher submitit", "slurm"):
        submitit = import_module("submitit")
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, document)
    submitted = []
    for cell in wanted:
        if (folder / cell.name / RESULT).exists() and kept(folder / cell.name) is not None:
            continue
        executor = submitit.AutoExecutor(folder=folder / _LOGS, cluster=cluster)
        executor.update_parameters(**_parameters(cell, parameters or {}))
        job = executor.submit(submitit.helpers.CommandFunction(_command(file, folder, cell, arguments), env=_ENV))
        submitted.append(Submitted(name=cell.name, job=str(job.job_id)))
    return submitted


_ENV = {"SLURM_OVERLAP": "1"}  # so that the job's own srun may use what submitit's holds (srun's input environment)


def _command(file: Path, folder: Path, cell: Cell, arguments: Sequence[str]) -> list[str]:
    launcher = "local" if _nodes(cell.plan) == 1 else "slurm"
    program = [sys.executable, "-P", "-m", "moemodel", "run", str(file.resolve()), "-o", str(folder.resolve())]
    return [*program, "--only", cell.name, "--launcher", launcher, *arguments]


def _nodes(plan: Plan) -> int:
    return -(-plan.cluster.gpus // _gpus_per_node(plan))


def _gpus_per_node(plan: Plan) -> int:
    gpu = plan.cluster.description()
    return plan.cluster.gpus_per_node or gpu.gpus_per_host or gpu.gpus_per_node


def _parameters(cell: Cell, asked: Mapping[str, str]) -> dict[str, object]:
    """What submitit is told of a job.

    Raises:
        InputError: a time that is no number of minutes.
    """
    plan = cell.plan
    own: dict[str, object] = {
        "name": cell.name,
        "nodes": _nodes(plan),
        "tasks_per_node": 1,
        "gpus_per_node": min(plan.cluster.gpus, _gpus_per_node(plan)),
        "timeout_min": _MINUTES,
    }
    if plan.cluster.gpu == "cpu":
        own["gpus_per_node"] = 0
    for key, value in asked.items():
        if key == "time":
            if not value.isdecimal() or int(value) == 0:
                raise InputError(f"--slurm time: found {value!r}; allowed: minutes, a whole number from 1 on")
            own["timeout_min"] = int(value)
        else:
            own[f"slurm_{key}"] = value
    return own
