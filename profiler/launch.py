"""Have plans run for real, job after job, until each was measured or failed.

    for outcome in launch(visits, folder=Path("runs"), options=LaunchOptions(gpu="h100")):
        ...  # Measured or Failure, in the order of the visits

A job is one process a device, started by torchrun on this machine or by srun inside a Slurm allocation, which runs the
visits in order (`parallel.worker`). What it does is read off the file that it appends to. A plan that runs out of
memory, crashes or hangs ends its job, and the next job goes on with the visit after it. No torch is imported here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moemodel.model.documents import read_json
from moemodel.model.errors import DeviceError, InputError, MoeModelError
from moemodel.model.plan import Plan
from moemodel.profiler.parallel.check import architecture_in, check_runs
from moemodel.profiler.parallel.job import EVENTS, JOB, AskedClocks, FailureKind, Job, RankFailure, VisitOrder

Launcher = Literal["torchrun", "slurm"]

WORKER = "moemodel.profiler.parallel.worker"
_LOOK_S = 0.1  # between looks at what a job has done
_GRACE_S = 8.0  # for a job to end when it is asked to
_PORTS = (20_000, 20_000)  # first, and how many: where the processes of a Slurm job meet
_TAIL = 3  # lines of a log that say why a process ended
# The gravest first: what one rank dies of, others report as a broken connection.
_GRAVITY: dict[FailureKind, int] = {"memory": 0, "error": 1, "timeout": 2, "crash": 3, "refused": 4}
_HUNG = ("collective operation timeout", "Timed out waiting")  # of NCCL's watchdog, and of gloo


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
    rows: list[dict[str, Any]]
    clock_asked_MHz: float | None
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
        warm_s, measured_s: see `training.measure_run`.
        timeout_s: without progress, after which a visit counts as hanging; of the start of a job too.
    """

    gpu: str
    launcher: Launcher = "torchrun"
    clocks: AskedClocks = "auto"
    warm_s: float = 2.0
    measured_s: float = 3.0
    timeout_s: float = 240.0


Outcome = Measured | Failure


def launch(
    visits: Sequence[PlanVisit],
    *,
    folder: Path,
    options: LaunchOptions,
    report: Callable[[str], None] = lambda _: None,
) -> Iterator[Outcome]:
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
        DeviceError: a job did not come as far as its first visit: no such GPU, or fewer than the plans need.
    """
    _check_distinct(visits)
    if options.launcher == "slurm":
        _check_slurm(os.environ)
    jobs = folder / "jobs"
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


def measure_host(*, folder: Path, options: LaunchOptions, repeats: int = 30) -> list[dict[str, Any]]:
    """How long the host needs for what parallel plans add to each layer: rows of table `host` (see `parallel.host`).

    Args:
        folder: for the job and its logs; made if missing.
        options: how; its visits' times don't matter.
        repeats: timed steps of each tiny model.

    Raises:
        InputError: no Slurm where it was asked for.
        DeviceError: the job failed: no such GPU, or no two of them.
    """
    if options.launcher == "slurm":
        _check_slurm(os.environ)
    job = _Job([], _next_folder(folder / "jobs"), options, host_repeats=repeats)
    rows: list[dict[str, Any]] | None = None
    hangs = False
    with closing(job.events(2)) as events:
        for event in events:
            hangs = event["event"] == "hangs"
            if event["event"] == "host":
                rows = event["rows"]
    if rows is None:
        raise DeviceError(f"the host's time was not measured: {job.why_it_ended(hangs).reason}; see {job.folder}")
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
    used = [int(child.name) for child in jobs.iterdir() if child.name.isdigit()]
    folder = jobs / str(max(used, default=-1) + 1)
    folder.mkdir()
    return folder


# --- one job ---------------------------------------------------------------------------------------------------------


class _Job:
    """The processes of one job, and what they leave in its folder."""

    def __init__(
        self, visits: Sequence[PlanVisit], folder: Path, options: LaunchOptions, host_repeats: int = 0
    ) -> None:
        self.folder = folder
        self._visits, self._options, self._host_repeats = visits, options, host_repeats
        self._read_B = 0

    def events(self, processes: int) -> Generator[dict[str, Any]]:
        """Start it; what it says until it ends. The last thing, if it was not all done, is `{"event": "hangs"}`.

        Whoever closes the iterator ends the job.
        """
        process = self._start(processes)
        heard_s = time.monotonic()
        try:
            while True:
                ended = process.poll() is not None  # before reading, so that nothing it wrote is missed
                for event in self._new_events():
                    heard_s = time.monotonic()
                    yield event
                    if event["event"] == "done":
                        with suppress(subprocess.TimeoutExpired):  # it has nothing left to do but to leave
                            process.wait(_GRACE_S)
                        return
                if ended:
                    return
                if time.monotonic() - heard_s > self._options.timeout_s:
                    yield {"event": "hangs"}
                    return
                time.sleep(_LOOK_S)
        finally:
            self._end(process)

    def why_it_ended(self, hangs: bool) -> RankFailure:
        """Why it ended before it was done."""
        failures = []
        for file in sorted(self.folder.glob("failure-*.json")):
            with suppress(InputError):
                failures.append(read_json(file, RankFailure))
        if hangs:
            reason = f"no progress for {self._options.timeout_s:.0f} s"
            return RankFailure(visit=None, kind="timeout", reason=reason)
        if failures:
            return min(failures, key=lambda failure: _GRAVITY[failure.kind])
        kind: FailureKind = "timeout" if self._hung() else "crash"
        return RankFailure(visit=None, kind=kind, reason=f"the job ended: {self._last_words()}")

    def _hung(self) -> bool:
        return any(word in log.read_text(errors="replace") for log in self.folder.glob("*.log") for word in _HUNG)

    def _last_words(self) -> str:
        """The end of the first log that says anything."""
        for log in sorted(self.folder.glob("*.log")):
            lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
            if lines:
                return " / ".join(lines[-_TAIL:])
        return "it said nothing"

    def _new_events(self) -> Iterator[dict[str, Any]]:
        """Whole lines that are new in the job's events."""
        file = self.folder / EVENTS
        if not file.exists():
            return
        with file.open("rb") as lines:
            lines.seek(self._read_B)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                self._read_B += len(line)
                yield json.loads(line)

    def _start(self, processes: int) -> subprocess.Popen[bytes]:
        file = self.folder.resolve() / JOB
        file.write_text(self._orders().model_dump_json(indent=1), encoding="utf-8")
        arguments = ["--job", str(file)]
        environment = child_environment(os.environ)
        if self._options.launcher == "slurm":
            command = srun_command(WORKER, arguments, processes=processes, environment=os.environ)
            environment |= meeting_point(os.environ, int(self.folder.name))
        else:
            command = torchrun_command(WORKER, arguments, processes=processes)
        with (self.folder / "launcher.log").open("wb") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process alone, which ends the job
            )

    def _orders(self) -> Job:
        return Job(
            gpu=self._options.gpu,
            clocks=self._options.clocks,
            warm_s=self._options.warm_s,
            measured_s=self._options.measured_s,
            timeout_s=self._options.timeout_s,
            launcher_pid=os.getpid(),
            launcher_host=socket.gethostname(),
            host_repeats=self._host_repeats,
            visits=[
                VisitOrder(plan_yaml=v.plan_yaml, folder=str(v.folder.resolve()), repeat=v.repeat, seed=v.seed)
                for v in self._visits
            ],
        )

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End every process of the job; one that hangs in a collective does not listen."""
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
        for file in self.folder.glob("*.pid"):
            _kill_worker(file, self.folder)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


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
        self._job = _Job(visits, folder, options)
        self._began = False
        self._done = 0

    def outcomes(self) -> Iterator[Outcome]:
        """Those of its visits, until one ends it.

        Raises:
            DeviceError: it did not come as far as its first visit.
        """
        hangs = False
        processes = max(visit.plan.cluster.gpus for visit in self._visits if _refused(visit) is None)
        with closing(self._job.events(processes)) as events:
            for event in events:
                hangs = event["event"] == "hangs"
                yield from self._take(event)
        if self._done == len(self._visits):
            return
        failure = self._job.why_it_ended(hangs)
        if not self._began:
            raise DeviceError(f"no job could be started: {failure.reason}; see the logs in {self._job.folder}")
        visit = self._visits[self._done]
        yield Failure(visit=visit, kind=failure.kind, reason=failure.reason, log=self._job.folder)

    def _take(self, event: Mapping[str, Any]) -> Iterator[Outcome]:
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
                rows=event["rows"],
                clock_asked_MHz=visit.plan.clock_MHz,
                clock_held=event["clock_held"],
                clock_note=event["clock_note"],
                seconds=event["seconds"],
            )

    def _next(self) -> PlanVisit:
        self._done += 1
        return self._visits[self._done - 1]


def _kill_worker(file: Path, folder: Path) -> None:
    """End a process of a job for good, if it is still that process; torchrun starts them in sessions of their own."""
    try:
        pid = int(file.read_text(encoding="utf-8"))
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    if os.fsencode(folder.resolve() / JOB) in command:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


# --- commands --------------------------------------------------------------------------------------------------------


def torchrun_command(module: str, arguments: Sequence[str], *, processes: int) -> list[str]:
    """See `ranks.torchrun_command`, which imports torch."""
    from moemodel.profiler import ranks

    return ranks.torchrun_command(module, arguments, processes=processes)


def srun_command(module: str, arguments: Sequence[str], *, processes: int, environment: Mapping[str, str]) -> list[str]:
    """The command that runs `python -m module arguments` in that many processes of this Slurm allocation.

    Nodes are filled one after another, as ranks are numbered; one process that fails ends the others.

    Args:
        module, arguments: of each process.
        processes: how many.
        environment: of the allocation; SLURM_GPUS_ON_NODE is how many a node takes, else one node takes all.
    """
    listed = environment.get("SLURM_GPUS_ON_NODE", "")
    per_node = min(processes, int(listed)) if listed.isdigit() and int(listed) else processes
    return [
        "srun",
        *(f"--nodes={-(-processes // per_node)}", f"--ntasks={processes}", f"--ntasks-per-node={per_node}"),
        *("--distribution=block", "--kill-on-bad-exit=1", "--export=ALL"),
        *(sys.executable, "-m", module, *arguments),
    ]


def meeting_point(environment: Mapping[str, str], number: int) -> dict[str, str]:
    """Where the processes of a Slurm job meet: the allocation's first node, at a port of the allocation's own.

    Args:
        environment: of the allocation.
        number: of the job in its folder, so that one does not find the port of the last one taken.
    """
    nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    first, many = _PORTS
    digits = "".join(filter(str.isdigit, environment.get("SLURM_JOB_ID", "0"))) or "0"
    return {"MASTER_ADDR": first_host(nodes), "MASTER_PORT": str(first + (17 * int(digits) + number) % many)}


def first_host(nodes: str) -> str:
    """The first of a list of nodes as Slurm writes it: `gpu[03-05,9],login` begins with gpu03."""
    match = re.match(r"([^,\[]+)(?:\[([^\]]*)\])?", nodes)
    if match is None:
        raise InputError(f"SLURM_JOB_NODELIST: found {nodes!r}; expected names of nodes such as gpu[03-05]")
    name, numbers = match.groups()
    return name + (re.split("[,-]", numbers)[0] if numbers else "")


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """That of this process, so that children find the modules that this one found."""
    path = os.pathsep.join(dict.fromkeys(entry or str(Path.cwd()) for entry in sys.path))
    return {**environment, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def _check_slurm(environment: Mapping[str, str]) -> None:
    if "SLURM_JOB_NODELIST" not in environment:
        raise InputError(
            "--launcher slurm: this is no Slurm allocation (SLURM_JOB_NODELIST is not set); run it inside salloc or "
            "sbatch, or use --launcher torchrun"
        )
    if shutil.which("srun") is None:
        raise InputError("--launcher slurm: there is no srun on PATH; use --launcher torchrun")
