"""The runs of a matrix, one after another, each in processes of its own. No torch here.

What is done is not done again: a run whose folder has a result that says "done", "out of memory" or "refused" is
skipped, one that failed or was cut short is run anew. A run that ends badly is a result, and the others go on.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import stdev
from typing import Any

from moemodel.model.core.documents import read_json
from moemodel.model.core.errors import InputError, MoeModelError
from moemodel.model.core.files import write_atomic
from moemodel.model.records.run import (
    MANIFEST,
    MATRIX,
    PREDICTED,
    RESULT,
    MatrixRecord,
    RankResult,
    RunManifest,
    RunResult,
    Status,
    StepRecord,
    rank_file,
    steps_file,
)
from moemodel.profiler.backends.base import architecture_in, check_runs
from moemodel.profiler.jobs.failures import FailureKind
from moemodel.profiler.jobs.launcher import (
    JobProcesses,
    Launcher,
    Patience,
    check_slurm,
    end_left_over,
    local_programs,
    slurm_program,
)
from moemodel.profiler.runs.document import Cell, RunDocument, cells
from moemodel.profiler.runs.orders import ORDER, EmissionsPlace, RunOrder
from moemodel.profiler.store.folder_lock import LOCK, folder_lock

WORKER = "moemodel.profiler.runs.worker"
JOB = "job"  # a run's folder of its processes: logs, events, what failed
_GRACE_S = 8.0  # assumed, as `training.launch`: for processes to end when they are asked to
_LAST_SHARE = 0.1  # of the steps, whose mean is the last loss
_KEPT: tuple[Status, ...] = ("done", "out of memory", "refused")
_STATUS: dict[FailureKind, Status] = {"memory": "out of memory", "refused": "refused"}

Predict = Callable[[Cell], Mapping[str, Any] | None]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How runs are run.

    Attributes:
        launcher: of the processes: of this machine, or srun inside a Slurm allocation.
        timeout_s: without progress, after which a run counts as hanging.
        emissions: whose electricity CodeCarbon counts with, of a run; None: without it.
    """

    launcher: Launcher = "local"
    timeout_s: float = 240.0
    emissions: Callable[[Cell], EmissionsPlace | None] = lambda _: None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a matrix is.

    Attributes:
        cell: that runs, or has ended.
        number, cells: which it is, from 1, and of how many.
        steps: of it that are queued, of `of`.
        result: how it ended; None while it runs.
        skipped: it had been done before.
    """

    cell: Cell
    number: int
    cells: int
    steps: int = 0
    result: RunResult | None = None
    skipped: bool = False


@dataclass(frozen=True, kw_only=True)
class MatrixResult:
    """What came of a matrix.

    Attributes:
        folder: that it lies in.
        results: by name of the run.
    """

    folder: Path
    results: dict[str, RunResult] = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        """Names of the runs that failed: neither done nor out of memory nor refused."""
        return [name for name, result in self.results.items() if result.status == "failed"]


def run_matrix(
    document: RunDocument,
    folder: Path,
    options: RunOptions,
    *,
    plan_folder: Path = Path(),
    predict: Predict = lambda _: None,
    progress: Callable[[Progress], None] = lambda _: None,
    only: Sequence[str] = (),
) -> MatrixResult:
    """Run what a document asks for and what is not done yet.

    Args:
        document: checked by itself.
        folder: of the runs; made if missing. One that holds runs of the same document is gone on with.
        options: how.
        plan_folder: that paths in the document are relative to.
        predict: what is said of a run before it begins, as `moemodel predict --json` says it.
        progress: is told how far it is.
        only: names of runs; none: all.

    Raises:
        InputError: see `document.cells`; the folder holds other runs; no such run; no Slurm where it was asked for.
        DeviceError: what is left of an earlier run does not end.
    """
    all_cells = cells(document, plan_folder)  # whose plans name files from the working directory
    wanted = chosen(all_cells, only)
    if options.launcher == "slurm":
        check_slurm(os.environ)
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, document)
    results: dict[str, RunResult] = {}
    for number, cell in enumerate(wanted, 1):
        place = Progress(cell=cell, number=number, cells=len(wanted))
        run = _Execution(cell, folder / cell.name, document, options, plan_folder, place, progress)
        with folder_lock(folder / cell.name, "run"):  # others may run other cells of the matrix meanwhile
            results[cell.name] = run.result(predict)
    return MatrixResult(folder=folder, results=results)


def chosen(all_cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """Those of the names, or all.

    Raises:
        InputError: no such run.
    """
    names = [cell.name for cell in all_cells]
    for name in only:
        if name not in names:
            raise InputError(f"--only: found {name!r}; allowed: {', '.join(names)}")
    return [cell for cell in all_cells if not only or cell.name in only]


def claim(folder: Path, document: RunDocument) -> None:
    """Take a folder for the runs of a document.

    Raises:
        InputError: it holds other runs, or other things.
    """
    record = MatrixRecord(name=document.name, document=document.model_dump(mode="json", exclude_none=True))
    file = folder / MATRIX
    if file.exists():
        found = read_json(file, MatrixRecord)
        if found.document != record.document:
            both = {**found.document, **record.document}
            keys = sorted(key for key in both if found.document.get(key) != record.document.get(key))
            raise InputError(
                f"{folder}: found runs of another document, of other {', '.join(keys)}; allowed: a new folder with -o, "
                "or the same document"
            )
        return
    if any(folder.iterdir()):
        raise InputError(f"{folder}: it holds other things, and no {MATRIX}; allowed: a new or empty folder")
    with suppress(FileExistsError):  # somebody else has begun the same runs at the same time
        write_atomic(file, record.model_dump_json(indent=1), overwrite=False)


class _Execution:
    """One run of a matrix."""

    def __init__(
        self,
        cell: Cell,
        folder: Path,
        document: RunDocument,
        options: RunOptions,
        plan_folder: Path,
        place: Progress,
        progress: Callable[[Progress], None],
    ) -> None:
        self._cell, self._folder, self._document, self._options = cell, folder, document, options
        self._plan_folder, self._place, self._progress = plan_folder, place, progress

    def result(self, predict: Predict) -> RunResult:
        """Of the run: from before, or now."""
        before = kept(self._folder)
        if before is not None:
            self._tell(result=before, skipped=True)
            return before
        self._clear()
        result = self._run(predict(self._cell))
        write_atomic(self._folder / RESULT, result.model_dump_json(indent=1))
        self._tell(result=result)
        return result

    def _clear(self) -> None:
        """Of a run that failed or was cut short: end what is left of it, and make room."""
        end_left_over(self._folder)
        for each in self._folder.iterdir():
            if each.is_dir():
                shutil.rmtree(each)
            elif each.name != LOCK:
                each.unlink()
        (self._folder / JOB).mkdir()

    def _run(self, predicted: Mapping[str, Any] | None) -> RunResult:
        self._write_manifest(gpu=self._gpu, versions={}, data=self._document.data.model_dump(mode="json"))
        if predicted is not None:
            write_atomic(self._folder / PREDICTED, json.dumps(predicted, indent=1))
        try:
            check_runs(self._cell.plan, architecture_in(self._cell.plan, Path()))
        except MoeModelError as error:
            return RunResult(status="refused", reason=self._without_name(str(error)))
        self._tell()
        job = self._processes()
        done = False
        with closing(job.events()) as events:
            for event in events:
                if event["event"] == "began":
                    self._write_manifest(gpu=event["device"], versions=event["versions"], data=event["data"])
                if event["event"] == "steps":
                    self._tell(steps=event["done"])
                done = done or event["event"] == "done"
        if done:
            return done_result(self._folder, self._cell.plan.cluster.gpus, self._document.samples)
        failure = job.why_it_ended()
        status = _STATUS.get(failure.kind, "failed")
        largest = _largest_term(predicted) if status == "out of memory" else None
        return RunResult(status=status, reason=self._without_name(failure.reason), largest_term=largest)

    def _without_name(self, reason: str) -> str:
        """Errors about a plan begin with its name, which is the run's and stands beside its result already."""
        return reason.removeprefix(f"{self._cell.name}: ")

    @property
    def _gpu(self) -> str:
        return self._cell.plan.cluster.gpu

    def _tell(self, **now: Any) -> None:
        self._progress(Progress(cell=self._cell, number=self._place.number, cells=self._place.cells, **now))

    def _write_manifest(self, *, gpu: str, versions: dict[str, str], data: dict[str, Any]) -> None:
        cell, document = self._cell, self._document
        manifest = RunManifest(
            name=cell.name,
            cell=dict(cell.values),
            plan_yaml=cell.plan_yaml,
            samples=document.samples,
            steps=cell.steps,
            warmup_steps=document.warmup_steps,
            learning_rate=cell.learning_rate,
            data=data,
            seed=cell.seed,
            repeat=cell.repeat,
            gpu=gpu,
            versions=versions,
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_atomic(self._folder / MANIFEST, manifest.model_dump_json(indent=1))

    def _processes(self) -> JobProcesses:
        """The processes of the run, not started yet."""
        cell, document, options = self._cell, self._document, self._options
        job = (self._folder / JOB).resolve()
        order = RunOrder(
            gpu=self._gpu,
            name=cell.name,
            folder=str(self._folder.resolve()),
            plan_yaml=cell.plan_yaml,
            plan_folder=str(Path.cwd()),
            data=document.data.read_in(self._plan_folder),
            learning_rate=cell.learning_rate,
            seed=cell.seed,
            steps=cell.steps,
            warmup_steps=document.warmup_steps,
            emissions=options.emissions(cell),
            timeout_s=options.timeout_s,
            launcher_pid=os.getpid(),
            launcher_host=socket.gethostname(),
        )
        write_atomic(job / ORDER, order.model_dump_json(indent=1))
        arguments, ranks = ["--order", str(job / ORDER)], cell.plan.cluster.gpus
        if options.launcher == "slurm":
            number = self._place.number
            programs = [slurm_program(WORKER, arguments, processes=ranks, environment=os.environ, number=number)]
        else:
            programs = local_programs(WORKER, arguments, processes=ranks, environment=os.environ)
        patience = Patience(start_s=options.timeout_s, silence_s=options.timeout_s, grace_s=_GRACE_S)
        return JobProcesses(programs, job, patience=patience, meet_here=options.launcher == "local")


def kept(folder: Path) -> RunResult | None:
    """The result of a run that need not be run again."""
    file = folder / RESULT
    if not file.exists():
        return None
    result = read_json(file, RunResult)
    return result if result.status in _KEPT else None


def _largest_term(predicted: Mapping[str, Any] | None) -> str | None:
    """Of the predicted memory."""
    terms_B: Mapping[str, float] = {} if predicted is None else predicted.get("memory", {}).get("terms_B", {})
    return max(terms_B, key=lambda name: terms_B[name]) if terms_B else None


# ---- what a run's ranks have written ---------------------------------------------------------------------------------


def done_result(folder: Path, ranks: int, samples: int) -> RunResult:
    """The result of a run that is done, from what its ranks wrote.

    Args:
        folder: of the run.
        ranks: it had.
        samples: it trained on.

    Raises:
        InputError: a rank's file is missing or damaged.
    """
    found = [read_json(folder / rank_file(rank), RankResult) for rank in range(ranks)]
    steps = [list(_steps(folder / steps_file(rank))) for rank in range(ranks)]
    times_s = _slowest(steps)
    losses = _losses(steps)
    last = losses[-max(1, round(_LAST_SHARE * len(losses))) :]
    return RunResult(
        status="done",
        steps=len(steps[0]),
        samples=samples,
        duration_s=_most([one.duration_s for one in found]),
        step_time_s=sum(times_s) / len(times_s) if times_s else None,
        step_time_std_s=stdev(times_s) if len(times_s) > 1 else None,
        energy_J=_sum([one.energy_J for one in found]),
        emissions_kg=_sum([one.emissions_kg for one in found]),
        task_loss_first=losses[0] if losses else None,
        task_loss_last=sum(last) / len(last) if last else None,
        ranks=found,
    )


def _steps(file: Path) -> Iterator[StepRecord]:
    for line in file.read_text(encoding="utf-8").splitlines():
        yield StepRecord.model_validate_json(line)


def _slowest(steps: Sequence[Sequence[StepRecord]]) -> list[float]:
    """Time of each step on the rank that took longest; empty where one is unknown."""
    rows = [[step.time_s for step in of_step] for of_step in zip(*steps, strict=True)]
    known = [[time_s for time_s in row if time_s is not None] for row in rows]
    return [max(row) for row in known] if all(len(row) == len(steps) for row in known) else []


def _losses(steps: Sequence[Sequence[StepRecord]]) -> list[float]:
    """Of each step, the mean over the ranks that have one."""
    rows = [[s.task_loss for s in of_step if s.task_loss is not None] for of_step in zip(*steps, strict=True)]
    return [sum(row) / len(row) for row in rows if row]


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _most(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None
