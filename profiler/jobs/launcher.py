"""The processes of one job: started by torchrun or srun, listened to, and ended whatever they do. No torch here.

A job has a folder that all of its processes see. In it are its events (`events`), what failed (`failures`), and logs;
of a process that a launcher starts in a session of its own, its number too, in `RANK.pid`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moemodel.model.core.errors import InputError
from moemodel.profiler.jobs.events import EVENTS, Event, EventReader
from moemodel.profiler.jobs.failures import FailureKind, RankFailure, gravest_failure

Launcher = Literal["torchrun", "slurm"]

_LOOK_S = 0.1  # between looks at what a job has done
# First, and how many: where the processes of a Slurm job meet. Assumed to be free; the last third is
# also Linux' for outgoing connections (ip_local_port_range, from 32768 on).
_PORTS = (20_000, 20_000)
_TAIL, _TAIL_CHARACTERS = 5, 600  # lines of a log that say why a process ended, and their length
_HUNG = ("collective operation timeout", "Timed out waiting")  # of NCCL's watchdog, and of gloo


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long nothing may be heard of a job before it counts as hanging.

    Attributes:
        start_s: until its first event.
        silence_s: between two events.
        grace_s: for it to end when it is asked to, before it is killed.
    """

    start_s: float
    silence_s: float
    grace_s: float


class JobProcesses:
    """The processes of one job, and what they leave in its folder.

    Args:
        command: that starts them all and ends when they do.
        folder: of the job.
        environment: of the command.
        patience: with them.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, *, environment: Mapping[str, str], patience: Patience
    ) -> None:
        self.folder = folder
        self._command, self._environment, self._patience = command, environment, patience
        self._heard = False
        self.hangs = False  # nothing was heard for too long
        self.exit_status: int | None = None  # of the command, once it has ended

    def events(self) -> Generator[Event]:
        """Start it; what it says until it ends, says "done" or hangs.

        Whoever closes the iterator ends the job.
        """
        reader = EventReader(self.folder / EVENTS)
        process = self._start()
        heard_s = time.monotonic()
        try:
            while True:
                ended = process.poll() is not None  # before reading, so that nothing it wrote is missed
                for event in reader.news():
                    yield event
                    self._heard, heard_s = True, time.monotonic()  # whoever listens may have taken long
                    if event["event"] == "done":
                        with suppress(subprocess.TimeoutExpired):  # it has nothing left to do but to leave
                            process.wait(self._patience.grace_s)
                        return
                if ended:
                    return
                if time.monotonic() - heard_s > self._silence_s:
                    self.hangs = True
                    return
                time.sleep(_LOOK_S)
        finally:
            self._end(process)

    @property
    def _silence_s(self) -> float:
        return self._patience.silence_s if self._heard else self._patience.start_s

    def why_it_ended(self) -> RankFailure:
        """Why it ended before it was done."""
        if self.hangs:
            return RankFailure(visit=None, kind="timeout", reason=f"no answer for {self._silence_s:.0f} s")
        failure = gravest_failure(self.folder)
        if failure is not None:
            return failure
        kind: FailureKind = "timeout" if self._hung() else "crash"
        return RankFailure(visit=None, kind=kind, reason=f"the job ended: {self._last_words()}")

    def _hung(self) -> bool:
        return any(word in log.read_text(errors="replace") for log in self.folder.glob("*.log") for word in _HUNG)

    def _last_words(self) -> str:
        """The end of the first log that says anything."""
        for log in sorted(self.folder.glob("*.log")):
            lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
            if lines:
                return " / ".join(lines[-_TAIL:])[:_TAIL_CHARACTERS]
        return f"it said nothing, exit status {self.exit_status}"

    def _start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "launcher.log").open("wb") as log:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self._environment),
                start_new_session=True,  # Ctrl-C is for this process alone, which ends the job
            )

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """End every process of the job; one that hangs in a collective does not listen."""
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(self._patience.grace_s)
        for file in self.folder.glob("*.pid"):
            _kill_worker(file, self.folder)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self.exit_status = process.wait()


def _kill_worker(file: Path, folder: Path) -> None:
    """End a process of a job for good, if it is still that process; torchrun starts them in sessions of their own."""
    try:
        pid = int(file.read_text(encoding="utf-8"))
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    if os.fsencode(f"{folder.resolve()}{os.sep}") in command:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


# --- commands --------------------------------------------------------------------------------------------------------


def torchrun_command(module: str, arguments: Sequence[str], *, processes: int) -> list[str]:
    """The command that runs `python -m module arguments` in that many processes on this machine.

    The meeting point is a free port that torchrun finds by itself; a process that fails ends the others.
    """
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes=1", f"--nproc-per-node={processes}", "--standalone", "--max-restarts=0"),
        *("-m", module, *arguments),
    ]


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
    # a prime, so that the ports of neighbouring jobs lie apart
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
