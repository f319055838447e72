"""Who a process is among those that a launcher started."""

from __future__ import annotations

import pytest

from moemodel.profiler.jobs.ranks import adopt_launcher, launched

SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (SLURM, "process 3 of 4 that Slurm started"),
        (SLURM | {"SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, "process 0 of 4 that Slurm started"),
        (MPI, "process 1 of 2 that Open MPI started"),
        (MPI | SLURM, "process 1 of 2 that Open MPI started"),  # mpirun within a batch job
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "process 1 of 2 that MPI started"),
    ],
)
def test_launchers_are_told_apart(environment: dict[str, str], says: str) -> None:
    assert str(launched(environment)) == says


@pytest.mark.parametrize(
    "environment",
    [
        {},
        SLURM | {"SLURM_PROCID": "0"},  # the script of a batch job, which may start four
        SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"},
        SLURM | {"SLURM_PROCID": "²"},
        SLURM | {"RANK": "0"},  # torchrun in a task of srun
    ],
)
def test_one_process_is_one(environment: dict[str, str]) -> None:
    assert launched(environment) is None


def test_who_is_told_where_to_meet_is_one_of_several() -> None:
    told = SLURM | {"MASTER_ADDR": "gpu3", "MASTER_PORT": "29500"}
    adopt_launcher(told)
    assert (told["RANK"], told["WORLD_SIZE"], told["LOCAL_RANK"]) == ("3", "4", "1")
    untold = dict(SLURM)
    adopt_launcher(untold)
    assert untold == SLURM
