"""Which process this is: by what each launcher sets, by torch.distributed, and what is said where they disagree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from moemodel.profiler.jobs.place import Place, own_place
from moemodel.profiler.meter.ranks import own_gpus


@pytest.fixture(autouse=True)
def no_cuda_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)


def _set_device(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: number)


# What the third of four processes on one machine of four GPUs finds, by the launchers' documentation.
THIRD_OF_FOUR: dict[str, dict[str, str]] = {
    "torchrun": {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"},
    "srun": {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "2"},
    "srun, a step of the job": {
        "SLURM_PROCID": "2",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_NTASKS": "16",
        "SLURM_LOCALID": "2",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "4",
    },
    "Open MPI": {
        "OMPI_COMM_WORLD_RANK": "2",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_LOCAL_RANK": "2",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    },
    "mpirun in a batch job": {
        "OMPI_COMM_WORLD_RANK": "2",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_LOCAL_RANK": "2",
        "SLURM_PROCID": "0",
        "SLURM_NTASKS": "4",
        "SLURM_LOCALID": "0",
    },
    "Intel MPI": {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "2", "MPI_LOCALNRANKS": "4"},
    "Cray MPICH": {"PMI_RANK": "2", "PMI_SIZE": "4", "PMI_LOCAL_RANK": "2", "PMI_LOCAL_SIZE": "4"},
    "Cray PALS": {"PALS_RANKID": "2", "PMI_SIZE": "4", "PALS_LOCAL_RANKID": "2", "PALS_LOCAL_SIZE": "4"},
    "Platform MPI": {"MPI_RANKID": "2", "MPI_NRANKS": "4", "MPI_LOCALRANKID": "2"},
    "MVAPICH 3": {"MVP_COMM_WORLD_RANK": "2", "MVP_COMM_WORLD_SIZE": "4", "MVP_COMM_WORLD_LOCAL_RANK": "2"},
    "srun with PMIx": {"PMIX_RANK": "2", "SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "2"},
    "Open MPI 5": {
        "OMPI_COMM_WORLD_RANK": "2",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_LOCAL_RANK": "2",
        "PMIX_RANK": "2",
    },
    "MVAPICH2": {"MV2_COMM_WORLD_RANK": "2", "MV2_COMM_WORLD_SIZE": "4", "MV2_COMM_WORLD_LOCAL_RANK": "2"},
    "Horovod": {"HOROVOD_RANK": "2", "HOROVOD_SIZE": "4", "HOROVOD_LOCAL_RANK": "2", "HOROVOD_LOCAL_SIZE": "4"},
    "jsrun": {"JSM_NAMESPACE_RANK": "2", "JSM_NAMESPACE_SIZE": "4", "JSM_NAMESPACE_LOCAL_RANK": "2"},
    "Flux": {"FLUX_TASK_RANK": "2", "FLUX_JOB_SIZE": "4", "FLUX_TASK_LOCAL_ID": "2"},
    "Lightning": {"LOCAL_RANK": "2", "NODE_RANK": "0", "WORLD_SIZE": "4", "MASTER_PORT": "1"},
    "torchrun inside srun": {
        "RANK": "2",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "2",
        "SLURM_PROCID": "0",
        "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_ID": "0",
    },
}


@pytest.mark.parametrize("environment", THIRD_OF_FOUR.values(), ids=THIRD_OF_FOUR)
def test_every_launcher(environment: Mapping[str, str]) -> None:
    place = own_place(environment)
    assert (place.rank, place.size, place.local_rank, place.notes) == (2, 4, 2, ())
    assert own_gpus(place, 4) == ([2], [])
    assert own_gpus(place, 1) == ([0], [])  # a launcher that shows each process its own GPU only
    assert own_gpus(place, 0) == ([], [])


@pytest.mark.parametrize("name", ["ALPS_APP_PE", "MPT_MPI_RANK", "GLOBAL_RANK", "DMLC_WORKER_ID", "PADDLE_TRAINER_ID"])
def test_a_launcher_that_is_not_known_is_a_doubt(name: str) -> None:
    place = own_place({name: "3", "NODE_RANK": "1"})
    assert (place.rank, place.size) == (0, 1)
    assert f"{name} says 3" in place.notes[0]
    assert own_gpus(place, 4) == ([0, 1, 2, 3], [])


@pytest.mark.parametrize("name", ["NODE_RANK", "GROUP_RANK", "MACHINE_RANK", "SLURM_ARRAY_TASK_ID", "PRANK", "FRANK"])
def test_a_number_of_a_machine_or_a_task_is_no_doubt(name: str) -> None:
    assert own_place({name: "3"}) == Place()


def test_pmix_says_which_but_not_of_how_many() -> None:
    place = own_place({"PMIX_RANK": "2"})
    assert (place.rank, place.size) == (2, 1)
    assert "not of how many" in place.notes[0]


def test_the_gpus_of_a_machine_are_metered_once() -> None:
    metered = [own_gpus(own_place({"SLURM_PROCID": str(i), "SLURM_NTASKS": "8", "SLURM_LOCALID": str(i % 4)}), 4)[0]
               for i in range(8)]  # fmt: skip
    assert metered == [[0], [1], [2], [3]] * 2


def test_alone() -> None:
    assert own_place({}) == Place()
    assert own_gpus(own_place({}), 4) == ([0, 1, 2, 3], [])
    one = own_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"})
    assert own_gpus(one, 4) == ([0, 1, 2, 3], [])  # one task, which may use all
    shell = {"SLURM_JOB_NAME": "interactive", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
    assert own_place(shell) == Place()
    assert own_place({"RANK": "none", "PMI_RANK": "", "SLURM_PROCID": "-1"}) == Place()


@pytest.mark.parametrize(
    ("environment", "gpus", "place", "says"),
    [
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, [0], (0, 4), "started by srun"),
        ({"LOCAL_RANK": "1"}, [1], (1, 2), "nothing says of how many"),
        ({"LOCAL_RANK": "1", "NODE_RANK": "2", "WORLD_SIZE": "12"}, [1], (9, 12), "as if every machine had 4"),
        ({"RANK": "3"}, [3], (3, 1), "not of how many"),
        ({"PMI_RANK": "5", "PMI_SIZE": "8"}, [1], (5, 8), "nothing says which of the 4 GPUs"),
        ({"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "6"}, [2], (6, 8), "count it twice"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "4"},
         [1], (1, 2), "the first is believed"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1",
          "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_ID": "0"}, [0, 1, 2, 3], (1, 2), "the only process on this"),
    ],
)  # fmt: skip
def test_a_doubt_is_a_note(
    monkeypatch: pytest.MonkeyPatch,
    environment: Mapping[str, str],
    gpus: list[int],
    place: tuple[int, int],
    says: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    found = own_place(environment)
    chosen, doubts = own_gpus(found, 4)
    assert (found.rank, found.size) == place
    assert chosen == gpus
    assert says in " ".join([*found.notes, *doubts])


def test_a_script_that_set_its_device_knows_best(monkeypatch: pytest.MonkeyPatch) -> None:
    _set_device(monkeypatch, 3)
    assert own_gpus(Place(rank=1, size=4, local_rank=1, source="Slurm"), 4) == ([3], [])
    _set_device(monkeypatch, 0)
    assert own_gpus(Place(rank=0, size=4, source="torch.distributed"), 4) == ([0], [])
    assert own_gpus(Place(rank=1, size=4, source="torch.distributed"), 4)[0] == [1]


@pytest.fixture
def process_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A real one, of one process."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "PMI_"))]:
        monkeypatch.delenv(name)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_torch_distributed_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_rank", lambda: 2)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    assert own_place({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Place(
        rank=2, size=4, local_rank=1, source="torch.distributed"
    )
    place = own_place({"OMPI_COMM_WORLD_RANK": "7", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "7"})
    assert (place.rank, place.size, place.local_rank) == (2, 4, None)
    assert "the first is believed" in place.notes[0]
    monkeypatch.setattr(dist, "group", SimpleNamespace(WORLD=SimpleNamespace(bound_device_id=torch.device("cuda", 3))))
    assert own_gpus(place, 4) == ([3], [])


SPAWNED = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch, torch.distributed as dist, torch.multiprocessing as mp
from moemodel import Meter
def work(rank, folder, joins):
    if joins:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    with Meter(folder, devices=None) as meter, meter.step():
        pass
    if joins:
        dist.destroy_process_group()
if __name__ == "__main__":
    mp.start_processes(work, (sys.argv[1], sys.argv[2] == "joins"), nprocs=2, start_method=sys.argv[3])
"""


# As `torch.multiprocessing.spawn` starts them; and, since each of these imports torch anew, as forks.
@pytest.mark.parametrize(("joins", "method"), [(True, "spawn"), (False, "fork")])
def test_spawned_processes(tmp_path: Path, joins: bool, method: str) -> None:
    (tmp_path / "script.py").write_text(SPAWNED)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    arguments = [sys.executable, tmp_path / "script.py", tmp_path, "joins" if joins else "not", method]
    done = subprocess.run(arguments, check=False, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[Any] = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("*-summary.json"))]
    assert len(found) == 2
    if joins:
        assert [(each["rank"], each["world_size"]) for each in found] == [(0, 2), (1, 2)]
        assert not any(each["notes"] for each in found)
    else:
        assert all("nothing says which of how many" in " ".join(each["notes"]) for each in found)
