"""Who a process is among those that a launcher started, as a profile asks (the meter: `meter/test_ranks.py`)."""

from __future__ import annotations

import pytest

from moemodel.model.core.errors import InputError
from moemodel.profiler.jobs.place import launched
from moemodel.profiler.jobs.ranks import adopt_launcher

SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
MEETING = {"MASTER_ADDR": "gpu3", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (SLURM, (3, 4, 1, "Slurm")),
        (SLURM | {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, (0, 4, 1, "Slurm")),
        (MPI, (1, 2, 0, "Open MPI")),
        (MPI | SLURM, (1, 2, 0, "Open MPI")),  # mpirun within a batch job
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, (1, 2, None, "PMI")),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "PALS_LOCAL_RANKID": "1"}, (1, 2, 1, "PMI")),
        (SLURM | {"PMI_RANK": "3", "PMI_SIZE": "4"}, (3, 4, 1, "PMI")),  # srun --mpi=pmi2
        (SLURM | {"PMIX_RANK": "3"}, (3, 4, 1, "Slurm")),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_LOCAL_RANK": "1"},
         (1, 2, 1, "MVAPICH")),
        ({"FLUX_TASK_RANK": "1", "FLUX_JOB_SIZE": "2", "FLUX_TASK_LOCAL_ID": "1"}, (1, 2, 1, "Flux")),
    ],
)  # fmt: skip
def test_launchers_are_told_apart(environment: dict[str, str], says: tuple[int, int, int | None, str]) -> None:
    found = launched(environment)
    assert found is not None
    assert (found.rank, found.size, found.local_rank, found.source) == says


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SLURM | {"SLURM_PROCID": "0"},  # the script of a batch job, which may start four
        SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"},
        SLURM | {"SLURM_PROCID": "²"},
        SLURM | {"SLURM_JOB_NAME": "bash"},  # a shell in an allocation
        SLURM | {"RANK": "0"},  # torchrun in a task of srun
        {"PMIX_RANK": "1"},  # of how many nobody says
    ],
)
def test_one_process_is_one(environment: dict[str, str]) -> None:
    assert launched(environment) is None


def test_who_is_told_where_to_meet_is_one_of_several() -> None:
    told = SLURM | MEETING
    adopt_launcher(told)
    assert (told["RANK"], told["WORLD_SIZE"], told["LOCAL_RANK"]) == ("3", "4", "1")
    untold = dict(SLURM)
    adopt_launcher(untold)
    assert untold == SLURM


def test_a_process_without_a_number_on_its_machine_does_not_take_the_first_gpu() -> None:
    told = {"PMI_RANK": "1", "PMI_SIZE": "2", **MEETING}
    with pytest.raises(InputError, match=r"PMI says that this is process 1 of 2, but not its number .* set LOCAL_RANK"):
        adopt_launcher(told)
    assert "RANK" not in told
    told["LOCAL_RANK"] = "1"
    adopt_launcher(told)
    assert (told["RANK"], told["WORLD_SIZE"], told["LOCAL_RANK"]) == ("1", "2", "1")
