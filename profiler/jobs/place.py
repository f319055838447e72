"""Which process of a job this one is.

Asked in this order: torch.distributed, if it has been initialised; then the variables of whoever started the process:
torchrun (and what sets the same: DeepSpeed, accelerate), Open MPI, PMI (MPICH, Intel MPI, Cray), MVAPICH, Platform
MPI, Horovod, jsrun, Flux, Slurm, Cray's PALS, PMIx, Lightning. MPI comes before Slurm, for `mpirun` inside a batch job
inherits the batch script's own SLURM_PROCID, 0 for all; PALS and PMIx come last, for they do not say how many there
are. Whoever is asked first is believed; what speaks against it is a note, and so is every guess, and a variable that
looks like a rank of a launcher that is not known here.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

# Who starts processes -> variables of a process's number, of how many there are, of its number on its machine, and of
# how many there are on that; of several names the first that is set.
_LAUNCHERS: dict[str, tuple[str, str, str, str]] = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "PMI": (
        "PMI_RANK",
        "PMI_SIZE",
        "MPI_LOCALRANKID PMI_LOCAL_RANK PALS_LOCAL_RANKID",
        "MPI_LOCALNRANKS PMI_LOCAL_SIZE PALS_LOCAL_SIZE",
    ),
    "MVAPICH": (
        "MV2_COMM_WORLD_RANK MVP_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE MVP_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK MVP_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE MVP_COMM_WORLD_LOCAL_SIZE",
    ),
    "Platform MPI": ("MPI_RANKID", "MPI_NRANKS", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "Horovod": ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    "jsrun": ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"),
    "Flux": ("FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID", ""),
    "Slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS SLURM_NTASKS SLURM_NPROCS", "SLURM_LOCALID", ""),
    "PALS": ("PALS_RANKID", "PMI_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
    "PMIx": ("PMIX_RANK", "PMIX_SIZE", "PMIX_LOCAL_RANK", "PMIX_LOCAL_SIZE"),
}
_KNOWN = frozenset(name for names in _LAUNCHERS.values() for name in " ".join(names).split()) | {"LOCAL_RANK"}
# What other launchers' numbers of a process end in, and what is the number of a machine.
_LIKE_A_RANK = re.compile(
    r"(?:^|_)(?<!NODE_)(?<!GROUP_)(?<!ROLE_)(?<!CROSS_)(?<!MACHINE_)"
    r"(?:RANK|RANK_?ID|PROCID|PROCESS_(?:ID|INDEX)|TRAINER_ID|WORKER_ID|APP_PE)$"
)
_INTERACTIVE = ("bash", "interactive", "sh", "zsh")  # names of a Slurm job in which people type


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among those of its job.

    Attributes:
        rank, size: its number, and how many there are; 0 of 1 where nothing says that there are others.
        local_rank: its number on this machine; None where nothing says it.
        local_size: how many there are on this machine; None where nothing says it.
        source: who said so; None: nobody.
        maybe_script: whether it may be a batch script, which is told of tasks that it has yet to start.
        notes: what is doubtful.
    """

    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    local_size: int | None = None
    source: str | None = None
    maybe_script: bool = False
    notes: tuple[str, ...] = ()

    @property
    def alone(self) -> bool:
        """Whether this process is the only one, as far as anybody says."""
        return self.size == 1 and self.source is None


def own_place(environment: Mapping[str, str] | None = None) -> Place:
    """Ask everybody which process this is.

    Args:
        environment: variables; None: this process's.
    """
    environment = os.environ if environment is None else environment
    said = [place for ask in (_torch_distributed, *_launchers()) if (place := ask(environment)) is not None]
    if not said:
        return _nobody(environment)
    first, *others = said
    against = [
        f"{first.source} says that this is process {first.rank} of {first.size}, {other.source} {other.rank} "
        f"of {other.size}: the first is believed"
        for other in others
        if not _agrees(other, first) and not _explained(first, other, environment)
    ]
    return replace(_with_local(first, said), notes=(*first.notes, *against))


def launched(environment: Mapping[str, str] = os.environ) -> Place | None:
    """What srun or an MPI says of this process; None where it started no other, or torchrun did.

    Nor does a batch script count, which is told how many tasks the job may have, not that it is one of them.
    """
    if "RANK" in environment:
        return None
    places = [_launched(launcher, environment) for launcher in _LAUNCHERS]
    said = [place for place in places if place is not None and not place.maybe_script]
    first = next((place for place in said if place.size > 1), None)
    return None if first is None else _with_local(first, said)


def _with_local(first: Place, said: Sequence[Place]) -> Place:
    """The first, with its number on the machine from whoever says that and agrees."""
    local = next((each for each in said if each.local_rank is not None and _agrees(each, first)), Place())
    return replace(first, local_rank=local.local_rank, local_size=local.local_size)


# --- who says what ---------------------------------------------------------------------------------------------------


def _torch_distributed(environment: Mapping[str, str]) -> Place | None:
    del environment
    try:
        import torch.distributed as dist

        if not (dist.is_available() and dist.is_initialized()):
            return None
        return Place(rank=dist.get_rank(), size=dist.get_world_size(), source="torch.distributed")
    except (RuntimeError, ValueError):  # a process group that is being torn down
        return None


def _launchers() -> list[Callable[[Mapping[str, str]], Place | None]]:
    def of(launcher: str) -> Callable[[Mapping[str, str]], Place | None]:
        return lambda environment: _launched(launcher, environment)

    return [*(of(launcher) for launcher in _LAUNCHERS), _lightning]


def _launched(launcher: str, environment: Mapping[str, str]) -> Place | None:
    rank_name, size_names, local_names, local_size_names = _LAUNCHERS[launcher]
    rank = _number(environment, rank_name)
    if rank is None:
        return None
    size, local = _number(environment, size_names), _number(environment, local_names)
    local_size = _number(environment, local_size_names)
    notes = []
    maybe_script = False
    if launcher == "Slurm":
        if environment.get("SLURM_JOB_NAME") in _INTERACTIVE and "SLURM_STEP_NUM_TASKS" not in environment:
            return None  # a shell in an allocation: the number of tasks is what was reserved, not what runs
        maybe_script = rank == 0 and (size or 1) > 1 and not _in_step(environment)
        if maybe_script:
            notes.append(
                f"Slurm says process 0 of {size}, as it does to the batch script itself: if this process was not "
                "started by srun, it is the only one, and Meter(devices=[...]) names its GPUs"
            )
        local_size = _tasks_here(environment)
    if size is None:
        notes.append(f"{launcher} says that this is process {rank}, but not of how many ({size_names} is not set)")
    elif rank >= size:
        notes.append(
            f"{launcher} says that this is process {rank} of {size}, which cannot be: sums over ranks may lack"
        )
    return Place(
        rank=rank,
        size=max(size or 1, rank + 1) if size is not None else 1,
        local_rank=local,
        local_size=local_size,
        source=launcher,
        maybe_script=maybe_script,
        notes=tuple(notes),
    )


def _lightning(environment: Mapping[str, str]) -> Place | None:
    """Lightning starts the others of a machine with LOCAL_RANK, NODE_RANK and WORLD_SIZE, and no RANK."""
    if "RANK" in environment:
        return None
    local, size = _number(environment, "LOCAL_RANK"), _number(environment, "WORLD_SIZE")
    node = _number(environment, "NODE_RANK GROUP_RANK") or 0
    if local is None:
        return None
    if size is None:
        note = f"LOCAL_RANK says {local}, and nothing says of how many, nor this process's number among all"
        return Place(rank=local, size=local + 1, local_rank=local, source="LOCAL_RANK", notes=(note,))
    if node == 0:
        return Place(rank=local, size=max(size, local + 1), local_rank=local, source="Lightning")
    here = _number(environment, "LOCAL_WORLD_SIZE") or torch.cuda.device_count() or 1
    rank = node * here + local
    note = f"machine {node}, process {local} of it: taken as rank {rank} of {size}, as if every machine had {here}"
    return Place(rank=rank, size=max(size, rank + 1), local_rank=local, source="Lightning", notes=(note,))


def _nobody(environment: Mapping[str, str]) -> Place:
    """Nobody says that there are others.

    A variable like a rank, and that this process was started by another one's Python, are doubts.
    """
    like = sorted(name for name in environment if name not in _KNOWN and _LIKE_A_RANK.search(name))
    for name in like:
        if (number := _number(environment, name)) is not None:
            return Place(
                notes=(
                    f"{name} says {number}, as if a launcher had started several processes, but of none that is known "
                    "here: this process calls itself rank 0 of 1. Start the meter after "
                    "torch.distributed.init_process_group, or name its GPUs by Meter(devices=[...]); else others may "
                    "meter the same GPUs",
                )
            )
    if multiprocessing.parent_process() is None:
        return Place()
    return Place(
        notes=(
            "this process was started by another's multiprocessing (mp.spawn?), and nothing says which of how many it "
            "is: it calls itself rank 0 of 1. Start the meter after torch.distributed.init_process_group, or name its "
            "GPUs by Meter(devices=[...]); else others may meter the same GPUs",
        )
    )


def _agrees(one: Place, other: Place) -> bool:
    """Of a process beyond the size, its size is not known."""
    known = one.rank < one.size and other.rank < other.size
    return one.rank == other.rank and (one.size == other.size or not known)


def _explained(first: Place, other: Place, environment: Mapping[str, str]) -> bool:
    """Whether two differ as they must: a launcher inside another's, which starts a process a machine or only a script.

    Then the outer one counts fewer; or its process is the one that started this, number 0 of a batch script.
    """
    if other.size == 1 and other.rank == 0:
        return True
    if other.source == "Slurm":
        return not _in_step(environment) or other.size < first.size
    return other.size < first.size and first.source in ("torch.distributed", "torchrun")


def _in_step(environment: Mapping[str, str]) -> bool:
    """Whether srun started this process, not the batch system its script."""
    return "SLURM_STEP_ID" in environment or "SLURM_STEPID" in environment


def _tasks_here(environment: Mapping[str, str]) -> int | None:
    """Slurm's number of tasks on this machine: "4(x2),3" by machine."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE") or ""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is None:
            return None
        counts += [int(found[1])] * min(int(found[2] or 1), 100_000)
    node = _number(environment, "SLURM_NODEID") or 0
    return counts[node] if node < len(counts) else None


def _number(environment: Mapping[str, str], names: str) -> int | None:
    for name in names.split():
        value = environment.get(name, "").strip()
        if value.isascii() and value.isdecimal() and len(value) < 10:
            return int(value)
    return None
