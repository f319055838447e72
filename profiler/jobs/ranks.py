"""The processes of a job on several devices: who this one is, and how it joins and leaves the others.

One process drives one device. Whoever starts them (torchrun, Slurm) says by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
and MASTER_PORT who is who. GPUs talk through NCCL, processors through gloo.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from moemodel.model.core.errors import InputError, MoeModelError
from moemodel.profiler.jobs.failures import FailureKind, RankFailure

# The names until torch 2.12 and since: the older ones warn there that they will go.
all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter: Callable[..., Any] = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
_REASON = 300  # characters of what a framework says; the log has all
_LATE = ("timed out", "timeout")
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


def started_with_others(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process as one of several, or says that it is the only one."""
    return all(name in environment for name in _VARIABLES)


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
    dist.init_process_group(
        "gloo" if cpu else "nccl",
        timeout=timedelta(seconds=timeout_s),
        device_id=None if cpu else device,
    )
    return Ranks(rank=rank, size=size, local_rank=local, device=device)


def leave() -> None:
    """Part from the other processes, without waiting for them."""
    if dist.is_initialized():
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
    return RankFailure(visit=visit, kind=kind, reason=reason)
