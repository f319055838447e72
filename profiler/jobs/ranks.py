"""The processes of a job on several devices: who this one is, and how it joins and leaves the others.

One process drives one device. Whoever starts them (`launcher`, torchrun, Slurm) says by RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT who is who. GPUs talk through NCCL, processors through gloo. Neither asks who connects, so
the processes of one machine listen on its loopback interface alone.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from moemodel.model.core.errors import DeviceError, InputError, MoeModelError
from moemodel.profiler.jobs.failures import FailureKind, RankFailure
from moemodel.profiler.jobs.launcher import AGENT_STORE, LOOPBACK, STORE_SOCKET
from moemodel.profiler.jobs.place import launched

# The names until torch 2.12 and since: the older ones warn there that they will go.
all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter: Callable[..., Any] = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
_REASON = 300  # characters of what a framework says; the log has all
_LATE = ("timed out", "timeout")
_GONE, _LOOK_S = "moemodel/gone", 0.01  # how many have ended, in the store; between looks at it
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """One process among those of a job.

    Attributes:
        rank, size: number of the process, and how many there are.
        local_rank: its number on this machine.
        device: that it drives.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device


def adopt_launcher(environment: MutableMapping[str, str] = os.environ) -> None:
    """Under srun or an MPI that was told where to meet, say who is who by the names that torch knows.

    Raises:
        InputError: nothing says which process of its machine this is, and so which GPU is its own.
    """
    found = launched(environment)
    if found is None or "MASTER_ADDR" not in environment or "MASTER_PORT" not in environment:
        return
    if found.local_rank is None and "LOCAL_RANK" not in environment:
        raise InputError(
            f"environment: {found.source} says that this is process {found.rank} of {found.size}, but not its number "
            "on this machine, by which it takes its GPU; set LOCAL_RANK (0 for the first process of a machine)"
        )
    environment.update({"RANK": str(found.rank), "WORLD_SIZE": str(found.size)})
    if found.local_rank is not None:
        environment["LOCAL_RANK"] = str(found.local_rank)


def started_with_others(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process as one of several, or says that it is the only one."""
    return all(name in environment for name in _VARIABLES)


def redirect_output(file: Path) -> None:
    """What this process prints goes to its log, whoever started it."""
    log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.close(log)


def fit_devices(environment: MutableMapping[str, str]) -> None:
    """Check that there is a GPU for this process; a launcher may show each process its own only.

    Raises:
        DeviceError: there are fewer than processes.
    """
    local, found = int(environment.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if found == 1 and "SLURM_PROCID" in environment:
        environment["LOCAL_RANK"] = "0"
    elif local >= found:
        raise DeviceError(
            f"the plans need at least {local + 1} GPUs on this machine, and torch sees {found}; "
            "check nvidia-smi and CUDA_VISIBLE_DEVICES"
        )


def join(*, cpu: bool, timeout_s: float, environment: Mapping[str, str] = os.environ) -> Ranks:
    """Meet the other processes; a collective that takes longer than the timeout fails from then on.

    Args:
        cpu: on processors (gloo), not on GPUs (NCCL).
        timeout_s: of the meeting, and of every collective.
        environment: where the launcher left who is who.

    Raises:
        InputError: a variable is missing or no number.
        torch.distributed.DistError: not all came in time.
    """
    missing = [name for name in _VARIABLES if name not in environment]
    if missing:
        raise InputError(f"environment: {', '.join(missing)} not set; start this under torchrun")
    try:
        rank, size, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except ValueError as error:
        raise InputError(f"environment: RANK, WORLD_SIZE and LOCAL_RANK must be integers: {error}") from error
    device = torch.device("cpu")
    if not cpu:
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=timeout_s)
    here = environment["MASTER_ADDR"] == LOOPBACK
    if here:
        _stay_here()
    dist.init_process_group(
        "gloo" if cpu else "nccl",
        store=open_store(environment, timeout) if here else None,
        rank=rank if here else -1,  # else torch asks the environment, as for the store
        world_size=size if here else -1,
        timeout=timeout,
        device_id=None if cpu else device,
    )
    return Ranks(rank=rank, size=size, local_rank=local, device=device)


def _stay_here() -> None:
    """Have gloo and NCCL listen on the loopback interface; what is set for NCCL stays: it may be what is measured."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = loopback
        os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)


def open_store(environment: Mapping[str, str], timeout: timedelta) -> TCPStore:
    """The store of a job: torchrun's, or one that the first process holds (as under Slurm).

    On one machine it listens on the loopback interface alone, or where `launcher` listens for it.

    Args:
        environment: where the launcher left who is who.
        timeout: of the meeting, and of every question.
    """
    holds = int(environment["RANK"]) == 0 and environment.get(AGENT_STORE) != "True"
    host, port, taken = environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), environment.get(STORE_SOCKET)
    listener = None
    if holds and host == LOOPBACK:
        listener = _loopback_listener(port) if taken is None else int(taken)
    return TCPStore(host, port, is_master=holds, master_listen_fd=listener, timeout=timeout, wait_for_workers=False)


def _loopback_listener(port: int) -> int:
    """A socket that listens on this machine's loopback interface, for a store: torch's own listens on every one."""
    with socket.create_server((LOOPBACK, port)) as made:
        return made.detach()


def part(patience_s: float = 10.0) -> None:
    """Have the last word with the other processes before this one ends: the first holds the store, and goes last.

    Args:
        patience_s: of the first, with the others.
    """
    store: Store = dist.distributed_c10d._get_default_store()
    with suppress(dist.DistError, RuntimeError):  # the others may have ended by themselves
        gone = store.add(_GONE, 1)
        end_s = time.monotonic() + patience_s
        while dist.get_rank() == 0 and gone < dist.get_world_size() and time.monotonic() < end_s:
            time.sleep(_LOOK_S)
            gone = store.add(_GONE, 0)


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        part()
        dist.destroy_process_group()


def failure_of(error: BaseException, visit: int | None) -> RankFailure:
    """What to leave behind of an error; frameworks wrap those of the model in their own."""
    chain: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    for one in chain:
        first = next(iter(str(one).strip().splitlines()), type(one).__name__)
        if isinstance(one, torch.OutOfMemoryError) or any(text in str(one).lower() for text in _NO_MEMORY):
            return RankFailure(visit=visit, kind="memory", reason=f"does not fit in the GPU's memory: {first}")
    text = str(error).strip()
    kind: FailureKind = "error" if isinstance(error, MoeModelError) else "crash"
    if isinstance(error, dist.DistError) and any(word in text.lower() for word in _LATE):
        kind = "timeout"
    reason = text if kind == "error" else f"{type(error).__name__}: {text[:_REASON]}"
    reason = reason.encode("utf-8", "replace").decode()  # it may quote a file's name that is no text
    return RankFailure(visit=visit, kind=kind, reason=reason)
