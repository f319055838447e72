"""The processes of one job: started by torchrun or srun, listened to, and ended whatever they do. No torch here."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from moemodel.model.core.documents import read_json
from moemodel.model.core.errors import InputError
from moemodel.profiler.jobs.job import EVENTS, JOB, FailureKind, Job, RankFailure

Launcher = Literal["torchrun", "slurm"]

WORKER = "moemodel.profiler.training.worker"
_LOOK_S = 0.1  # between looks at what a job has done
_GRACE_S = 8.0  # for a job to end when it is asked to
_PORTS = (20_000, 20_000)  # first, and how many: where the processes of a Slurm job meet
_TAIL = 3  # lines of a log that say why a process ended
# The gravest first: what one rank dies of, others report as a broken connection.
_GRAVITY: dict[FailureKind, int] = {"memory": 0, "error": 1, "timeout": 2, "crash": 3, "refused": 4}
_HUNG = ("collective operation timeout", "Timed out waiting")  # of NCCL's watchdog, and of gloo


class Processes:
    """The processes of one job, and what they leave in its folder.

    Args:
        job: what they do.
        folder: of the job; empty.
        launcher: of the processes.
    """

    def __init__(self, job: Job, folder: Path, launcher: Launcher) -> None:
        self.folder = folder
        self._job, self._launcher = job, launcher
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
                    yield event
                    heard_s = time.monotonic()  # whoever listens may have taken long
                    if event["event"] == "done":
                        with suppress(subprocess.TimeoutExpired):  # it has nothing left to do but to leave
                            process.wait(_GRACE_S)
                        return
                if ended:
                    return
                if time.monotonic() - heard_s > self._patience_s:
                    yield {"event": "hangs"}
                    return
                time.sleep(_LOOK_S)
        finally:
            self._end(process)

    @property
    def _patience_s(self) -> float:
        """How long nothing may be heard: a run is silent while it warms up and measures."""
        return self._job.timeout_s + self._job.warm_s + self._job.measured_s

    def why_it_ended(self, hangs: bool) -> RankFailure:
        """Why it ended before it was done."""
        failures = []
        for file in sorted(self.folder.glob("failure-*.json")):
            with suppress(InputError):
                failures.append(read_json(file, RankFailure))
        if hangs:
            reason = f"no progress for {self._patience_s:.0f} s"
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
        file.write_text(self._job.model_dump_json(indent=1), encoding="utf-8")
        arguments = ["--job", str(file)]
        environment = child_environment(os.environ)
        if self._launcher == "slurm":
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
    from moemodel.profiler.jobs import ranks

    return ranks.torchrun_command(module, arguments, processes=processes)


def srun_command(module: str, arguments: Sequence[str], *, processes: int, environment: Mapping[str, str]) -> list[str]:
    """The command that runs `python -m module arguments` in that many processes of this Slurm allocation.

    Nodes are filled one after another, as ranks are numbered; one process that fails ends the others.

    Args:
        module, arguments: of each process.
        processes: how many.
        environment: of the allocation; SLURM_GPUS_ON_NODE is how many a node takes; where it is not said (whole
            nodes were asked for), they are spread evenly over SLURM_JOB_NUM_NODES.
    """
    listed = environment.get("SLURM_GPUS_ON_NODE", "")
    nodes = environment.get("SLURM_JOB_NUM_NODES", "")
    spread = -(-processes // int(nodes)) if nodes.isdigit() and int(nodes) else processes
    per_node = min(processes, int(listed)) if listed.isdigit() and int(listed) else spread
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


def check_slurm(environment: Mapping[str, str]) -> None:
    """Check that this is a Slurm allocation.

    Raises:
        InputError: it is not, or has no srun.
    """
    if "SLURM_JOB_NODELIST" not in environment:
        raise InputError(
            "--launcher slurm: this is no Slurm allocation (SLURM_JOB_NODELIST is not set); run it inside salloc or "
            "sbatch, or use --launcher torchrun"
        )
    if shutil.which("srun") is None:
        raise InputError("--launcher slurm: there is no srun on PATH; use --launcher torchrun")
