"""Have plans run for real, job after job, until each was measured or failed.

    for outcome in launch(visits, folder=Path("runs"), options=LaunchOptions(gpu="h100")):
        ...  # Measured or Failure, in the order of the visits

A job is one process a device, started on this machine or by srun inside a Slurm allocation, which runs the
visits in order (`training.worker`). What it does is read off the file that it appends to. A plan that runs out of
memory, crashes or hangs ends its job, and the next job goes on with the visit after it. No torch is imported here.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moemodel.model.core.errors import DeviceError, InputError, MoeModelError
from moemodel.model.plan.clock import AskedClock
from moemodel.model.plan.spec import Plan
from moemodel.model.records.profile import HostRow, IterationRow
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
from moemodel.profiler.training.orders import JOB, AskedClocks, Job, VisitOrder

WORKER = "moemodel.profiler.training.worker"
_GRACE_S = 8.0  # assumed: for a job to end when it is asked to; then it is killed


@dataclass(frozen=True, kw_only=True)
class PlanVisit:
    """One time that one plan is run.

    Attributes:
        plan: checked by itself; `cluster.gpus` says how many ranks it takes.
        plan_yaml: as its author wrote it.
        folder: that a path in it is relative to.
        repeat: which visit of this plan; with the plan's name unique in a launch.
        seed: of weights and data.
    """

    plan: Plan
    plan_yaml: str
    folder: Path
    repeat: int = 0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a visit has shown.

    Attributes:
        visit: that was run.
        rows: of table `iterations`, one a rank, by rank.
        clock_asked_MHz: that the plan asks for; None for none.
        clock_held: whether it was held; None where none was asked for.
        clock_note: why it was not.
        seconds: that the visit took, building and warming up included.
    """

    visit: PlanVisit
    rows: list[IterationRow]
    clock_asked_MHz: AskedClock
    clock_held: bool | None
    clock_note: str | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A visit without a result.

    Attributes:
        visit: that was to be run.
        kind: "refused": not tried; "memory"; "timeout": no progress; "crash"; "error": measured, but it means nothing.
        reason: for a person.
        log: folder with the log of each rank; None where no job was started for it.
    """

    visit: PlanVisit
    kind: FailureKind
    reason: str
    log: Path | None


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """How visits are run.

    Attributes:
        gpu: that must be there, by name or alias; "cpu": on processors, by gloo.
        launcher: of the processes.
        clocks: for plans that ask for one. "auto": held where that is permitted; "passive": never; "lock": a plan whose
            clock can't be held is refused.
        warm_s, measured_s: see `measure.measure_run`.
        timeout_s: without progress, after which a visit counts as hanging; of the start of a job too.
    """

    gpu: str
    launcher: Launcher = "local"
    clocks: AskedClocks = "auto"
    warm_s: float = 2.0  # as `profiler.training.measure.WARM_S`; measured_s as MEASURED_S
    measured_s: float = 3.0
    timeout_s: float = 240.0  # assumed: more than loading libraries from a cold disk takes (`collectives.start`, 180 s)


VisitResult = Measured | Failure


def launch(
    visits: Sequence[PlanVisit],
    *,
    folder: Path,
    options: LaunchOptions,
    report: Callable[[str], None] = lambda _: None,
) -> Iterator[VisitResult]:
    """Run the visits in order; yields each outcome as soon as it is known, in the order given.

    A job holds as many processes as the largest plan that is left needs; smaller plans run on the first of them.
    Closing the iterator, Ctrl-C or an exception ends the job. Nothing is remembered between two calls.

    Args:
        visits: what to run.
        folder: for jobs and their logs; made if missing. Jobs that are there stay.
        options: how.
        report: told in a sentence what begins.

    Raises:
        InputError: two visits of one name and repeat, or no Slurm where it was asked for.
        DeviceError: a job did not come as far as its first visit: no such GPU, or fewer than the plans need; or what is
            left of an earlier one does not end.
    """
    _check_distinct(visits)
    if options.launcher == "slurm":
        check_slurm(os.environ)
    jobs = folder / "jobs"
    end_left_over(jobs)
    done = 0
    while done < len(visits):
        refusal = _refused(visits[done])
        if refusal is not None:
            yield refusal
            done += 1
            continue
        watch = _Watch(visits[done:], _next_folder(jobs), options, report, (done, len(visits)))
        for outcome in watch.outcomes():
            yield outcome
            done += 1


def measure_host(*, folder: Path, options: LaunchOptions, repeats: int = 30) -> list[HostRow]:
    """How long the host needs for what parallel plans add to each layer: rows of table `host`.

    See `host_overhead.parallel_plans`.

    Args:
        folder: for the job and its logs; made if missing.
        options: how; its visits' times don't matter.
        repeats: timed steps of each tiny model.

    Raises:
        InputError: no Slurm where it was asked for.
        DeviceError: the job failed: no such GPU, or no two of them.
    """
    if options.launcher == "slurm":
        check_slurm(os.environ)
    orders = _orders([], options, host_repeats=repeats)
    job = _processes(orders, _next_folder(folder / "jobs"), options.launcher, 2)
    rows: list[HostRow] | None = None
    with closing(job.events()) as events:
        for event in events:
            if event["event"] == "host":
                rows = [HostRow(**row) for row in event["rows"]]
    if rows is None:
        raise DeviceError(f"the host's time was not measured: {job.why_it_ended().reason}; see {job.folder}")
    return rows


def _check_distinct(visits: Sequence[PlanVisit]) -> None:
    names = [(visit.plan.name, visit.repeat) for visit in visits]
    for name, repeat in names:
        if names.count((name, repeat)) > 1:
            raise InputError(f"plan {name!r}, visit {repeat}: stands twice; give each plan a name of its own")


def _refused(visit: PlanVisit) -> Failure | None:
    try:
        check_runs(visit.plan, architecture_in(visit.plan, visit.folder))
    except MoeModelError as error:
        return Failure(visit=visit, kind="refused", reason=str(error), log=None)
    return None


def _next_folder(jobs: Path) -> Path:
    """A new folder for a job."""
    jobs.mkdir(parents=True, exist_ok=True)
    used = [int(child.name) for child in jobs.iterdir() if re.fullmatch("[0-9]{1,9}", child.name)]
    folder = jobs / str(max(used, default=-1) + 1)
    folder.mkdir()
    return folder


def _orders(visits: Sequence[PlanVisit], options: LaunchOptions, host_repeats: int = 0) -> Job:
    return Job(
        gpu=options.gpu,
        clocks=options.clocks,
        warm_s=options.warm_s,
        measured_s=options.measured_s,
        timeout_s=options.timeout_s,
        launcher_pid=os.getpid(),
        launcher_host=socket.gethostname(),
        host_repeats=host_repeats,
        visits=[
            VisitOrder(plan_yaml=v.plan_yaml, folder=str(v.folder.resolve()), repeat=v.repeat, seed=v.seed)
            for v in visits
        ],
    )


def _processes(job: Job, folder: Path, launcher: Launcher, processes: int) -> JobProcesses:
    """The processes of a job, not started yet; its orders lie in its folder."""
    file = folder.resolve() / JOB
    file.write_text(job.model_dump_json(indent=1), encoding="utf-8")
    arguments = ["--job", str(file)]
    number = int(folder.name)
    if launcher == "slurm":
        programs = [slurm_program(WORKER, arguments, processes=processes, environment=os.environ, number=number)]
    else:
        programs = local_programs(WORKER, arguments, processes=processes, environment=os.environ)
    silence_s = job.timeout_s + job.warm_s + job.measured_s  # a run is silent while it warms up and measures
    patience = Patience(start_s=silence_s, silence_s=silence_s, grace_s=_GRACE_S)
    return JobProcesses(programs, folder, patience=patience, meet_here=launcher == "local")


class _Watch:
    """The visits of one job, until one ends it."""

    def __init__(
        self,
        visits: Sequence[PlanVisit],
        folder: Path,
        options: LaunchOptions,
        report: Callable[[str], None],
        place: tuple[int, int],
    ) -> None:
        self._visits, self._report, self._place = visits, report, place
        processes = max(visit.plan.cluster.gpus for visit in visits if _refused(visit) is None)
        self._job = _processes(_orders(visits, options), folder, options.launcher, processes)
        self._began = False
        self._done = 0

    def outcomes(self) -> Iterator[VisitResult]:
        """Those of its visits, until one ends it.

        Raises:
            DeviceError: it did not come as far as its first visit.
        """
        with closing(self._job.events()) as events:
            for event in events:
                yield from self._take(event)
        if self._done == len(self._visits):
            return
        failure = self._job.why_it_ended()
        if not self._began:
            raise DeviceError(f"no job could be started: {failure.reason}; see the logs in {self._job.folder}")
        visit = self._visits[self._done]
        yield Failure(visit=visit, kind=failure.kind, reason=failure.reason, log=self._job.folder)

    def _take(self, event: Mapping[str, Any]) -> Iterator[VisitResult]:
        if event["event"] == "began":
            self._began = True
            first, total = self._place
            number = first + event["visit"] + 1
            self._report(f"{self._visits[event['visit']].plan.name}, visit {number} of {total}: started")
        if event["event"] == "refused":
            yield Failure(visit=self._next(), kind="refused", reason=event["reason"], log=self._job.folder)
        if event["event"] == "measured":
            visit = self._next()
            yield Measured(
                visit=visit,
                rows=[IterationRow(**row) for row in event["rows"]],
                clock_asked_MHz=visit.plan.clock_MHz,
                clock_held=event["clock_held"],
                clock_note=event["clock_note"],
                seconds=event["seconds"],
            )

    def _next(self) -> PlanVisit:
        self._done += 1
        return self._visits[self._done - 1]
