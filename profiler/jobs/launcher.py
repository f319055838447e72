"""The processes of one job: started here or by srun, listened to, and ended whatever happens. No torch here.

A job has a folder that all of its processes see. In it are its events (`events`), what failed (`failures`), and of each
process its log and its number (`RANK.pid`).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moemodel.model.core.errors import DeviceError, InputError
from moemodel.profiler.jobs.child import command_of_child
from moemodel.profiler.jobs.events import EVENTS, Event, EventReader
from moemodel.profiler.jobs.failures import FailureKind, RankFailure, gravest_failure
from moemodel.profiler.jobs.isolation import child_environment

Launcher = Literal["local", "slurm"]
LOOPBACK = "127.0.0.1"
STORE_SOCKET = "MOEMODEL_STORE_SOCKET"  # number of the listening socket that the first process takes over
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # set by torchrun where its own process holds the store

_LOOK_S = 0.1  # between looks at what a job has done
# First, and how many: where the processes of a Slurm job meet. Assumed to be free; the last third is
# also Linux' for outgoing connections (ip_local_port_range, from 32768 on).
_PORTS = (20_000, 20_000)
_GONE_S = 30.0  # assumed: for a process that was killed to be gone, with all that it held of a GPU
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


@dataclass(frozen=True, kw_only=True)
class Program:
    """What one process of a job runs.

    Attributes:
        command, environment: of the process.
        name: its output goes to `NAME.log` in the job's folder; of a rank, its number.
        ends_by: signal that it is sent when this process ends, however that ends.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    name: str
    ends_by: signal.Signals = signal.SIGKILL


class JobProcesses:
    """The processes of one job, and what they leave in its folder.

    They end with this process, also where that is killed: Linux sends them a signal when the thread that started them
    ends (`child`).

    Args:
        programs: that are started together. One that fails ends the others, which may be waiting for it.
        folder: of the job.
        patience: with them.
        meet_here: they are all the processes of a job, and meet on the loopback interface of this machine, by a store
            that the first of them holds. It takes over the socket that listens for it, so that nobody else can.
    """

    def __init__(
        self, programs: Sequence[Program], folder: Path, *, patience: Patience, meet_here: bool = False
    ) -> None:
        self.folder = folder
        self._programs, self._patience, self._meet_here = programs, patience, meet_here
        self._heard = False
        self.hangs = False  # nothing was heard for too long
        self.exit_status: int | None = None  # of the first that failed, else of the last, once all have ended

    def events(self) -> Generator[Event]:
        """Start it; what it says until it ends, says "done" or hangs.

        Whoever closes the iterator ends the job.
        """
        reader = EventReader(self.folder / EVENTS)
        processes: list[subprocess.Popen[bytes]] = []
        try:
            self._start(processes)
            heard_s = time.monotonic()
            while True:
                ended = _ended(processes)  # before reading, so that nothing they wrote is missed
                for event in reader.news():
                    yield event
                    self._heard, heard_s = True, time.monotonic()  # whoever listens may have taken long
                    if event["event"] == "done":
                        _wait(processes, self._patience.grace_s)  # they have nothing left to do but to leave
                        return
                if ended:
                    return
                if time.monotonic() - heard_s > self._silence_s:
                    self.hangs = True
                    return
                time.sleep(_LOOK_S)
        finally:
            self._end(processes)

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

    def _start(self, processes: list[subprocess.Popen[bytes]]) -> None:
        """Start them one by one into `processes`, so that an interruption finds those that run."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            met: dict[str, str] = {}
            if self._meet_here:
                listener.bind((LOOPBACK, 0))
                listener.listen()
                met = {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(listener.getsockname()[1])}
            for program in self._programs:
                first = self._meet_here and program is self._programs[0]
                taken = {STORE_SOCKET: str(listener.fileno())} if first else {}
                processes.append(self._started(program, met | taken, [listener.fileno()] if first else []))
                (self.folder / f"{program.name}.pid").write_text(str(processes[-1].pid), encoding="ascii")

    def _started(self, program: Program, met: Mapping[str, str], sockets: list[int]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{program.name}.log").open("ab") as log:
            return subprocess.Popen(
                command_of_child(program.command, program.ends_by),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**program.environment, **met},
                start_new_session=True,  # Ctrl-C is for this process alone, which ends the job
                pass_fds=sockets,
            )

    def _end(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """End every process of the job; one that hangs in a collective does not listen."""
        if not _ended(processes, all_of_them=True):
            for process in processes:
                _signal_group(process, signal.SIGTERM)
            _wait(processes, self._patience.grace_s)
        for file in self.folder.glob("*.pid"):
            _kill_process_of(file, self.folder)
        for process in processes:
            _signal_group(process, signal.SIGKILL)
        statuses = [process.wait() for process in processes]
        self.exit_status = next((status for status in statuses if status), statuses[-1] if statuses else None)


def _ended(processes: Sequence[subprocess.Popen[bytes]], *, all_of_them: bool = False) -> bool:
    """Whether all have ended, or one has failed."""
    statuses = [process.poll() for process in processes]
    return None not in statuses or (not all_of_them and any(statuses))


def _wait(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Until all have ended, so many seconds at most."""
    end_s = time.monotonic() + seconds
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end_s - time.monotonic()))


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def end_left_over(jobs: Path) -> None:
    """End what is left on this machine of earlier jobs, and wait until it is gone: it would disturb what is measured.

    A job's processes end with whoever started it (`child`); here it is made sure of.

    Args:
        jobs: folder of the jobs' folders; need not be there.

    Raises:
        DeviceError: one does not end, such as one that waits in its driver.
    """
    files = sorted(jobs.glob("*/*.pid"))
    end_s = time.monotonic() + _GONE_S
    while alive := [pid for file in files if (pid := _kill_process_of(file, file.parent)) is not None]:
        if time.monotonic() > end_s:
            raise DeviceError(
                f"{jobs}: process {alive[0]} of an earlier job does not end, and would disturb what is measured; "
                "restart the machine, or wait until it is gone"
            )
        time.sleep(_LOOK_S)


def _kill_process_of(file: Path, folder: Path) -> int | None:
    """End a process of a job for good, if it is still that process; its number, None where it is gone."""
    try:
        pid = int(file.read_text(encoding="ascii"))
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    if os.fsencode(f"{folder.resolve()}{os.sep}") not in command:
        return None
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    return pid


# --- commands --------------------------------------------------------------------------------------------------------


def local_programs(
    module: str, arguments: Sequence[str], *, processes: int, environment: Mapping[str, str]
) -> list[Program]:
    """`python -m module arguments` in that many processes of this machine, told who is who as torchrun tells it.

    Args:
        module, arguments: of each process.
        processes: how many.
        environment: of this process.
    """
    shared = child_environment(environment) | {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    shared.pop(AGENT_STORE, None)
    if processes > 1:
        shared.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does: each has a core at best
        shared.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # likewise: a collective that fails ends its process
    return [
        Program(
            command=(sys.executable, "-P", "-m", module, *arguments),
            environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            name=str(rank),
        )
        for rank in range(processes)
    ]


def slurm_program(
    module: str, arguments: Sequence[str], *, processes: int, environment: Mapping[str, str], number: int
) -> Program:
    """The srun that runs `python -m module arguments` in that many processes of this Slurm allocation.

    Args:
        module, arguments: of each process.
        processes: how many.
        environment: of the allocation.
        number: see `meeting_point`.
    """
    nodes, _ = _slurm_shape(processes, environment)
    return Program(
        command=srun_command(module, arguments, processes=processes, environment=environment),
        environment=child_environment(environment) | meeting_point(environment, number, nodes=nodes),
        name="launcher",
        ends_by=signal.SIGTERM,  # which srun hands on to the processes that it started
    )


def srun_command(module: str, arguments: Sequence[str], *, processes: int, environment: Mapping[str, str]) -> list[str]:
    """The command that runs `python -m module arguments` in that many processes of this Slurm allocation.

    Nodes are filled one after another, as ranks are numbered; one process that fails ends the others.

    Args:
        module, arguments: of each process.
        processes: how many.
        environment: of the allocation; SLURM_GPUS_ON_NODE is how many a node takes; where it is not said (whole
            nodes were asked for), they are spread evenly over SLURM_JOB_NUM_NODES.
    """
    nodes, per_node = _slurm_shape(processes, environment)
    return [
        "srun",
        *(f"--nodes={nodes}", f"--ntasks={processes}", f"--ntasks-per-node={per_node}"),
        *("--distribution=block", "--kill-on-bad-exit=1", "--export=ALL"),
        *(sys.executable, "-P", "-m", module, *arguments),
    ]


def _slurm_shape(processes: int, environment: Mapping[str, str]) -> tuple[int, int]:
    """Nodes that so many processes take, and processes of a node."""
    listed, nodes = (_count(environment.get(name, "")) for name in ("SLURM_GPUS_ON_NODE", "SLURM_JOB_NUM_NODES"))
    per_node = min(processes, listed) if listed else -(-processes // (nodes or 1))
    return -(-processes // per_node), per_node


def _count(text: str) -> int:
    """A number of Slurm's; 0 where there is none."""
    return int(text) if text.isascii() and text.isdecimal() else 0


def meeting_point(environment: Mapping[str, str], number: int, *, nodes: int = 0) -> dict[str, str]:
    """Where the processes of a Slurm job meet: the allocation's first node, at a port of the allocation's own.

    Args:
        environment: of the allocation.
        number: of the job in its folder, so that one does not find the port of the last one taken.
        nodes: that the job takes; on one alone they meet on its loopback interface.
    """
    listed = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
    first, many = _PORTS
    digits = "".join(re.findall("[0-9]", environment.get("SLURM_JOB_ID", "0"))) or "0"
    # a prime, so that the ports of neighbouring jobs lie apart
    port = first + (17 * int(digits) + number) % many
    return {"MASTER_ADDR": LOOPBACK if nodes == 1 else first_host(listed), "MASTER_PORT": str(port)}


def first_host(nodes: str) -> str:
    """The first of a list of nodes as Slurm writes it: `gpu[03-05,9],login` begins with gpu03."""
    match = re.match(r"([^,\[]+)(?:\[([^\]]*)\])?", nodes)
    if match is None:
        raise InputError(f"SLURM_JOB_NODELIST: found {nodes!r}; expected names of nodes such as gpu[03-05]")
    name, numbers = match.groups()
    return name + (re.split("[,-]", numbers)[0] if numbers else "")


def check_slurm(environment: Mapping[str, str]) -> None:
    """Check that this is a Slurm allocation.

    Raises:
        InputError: it is not, or has no srun.
    """
    if "SLURM_JOB_NODELIST" not in environment:
        raise InputError(
            "--launcher slurm: this is no Slurm allocation (SLURM_JOB_NODELIST is not set); run it inside salloc or "
            "sbatch, or use --launcher local"
        )
    if shutil.which("srun") is None:
        raise InputError("--launcher slurm: there is no srun on PATH; use --launcher local")
