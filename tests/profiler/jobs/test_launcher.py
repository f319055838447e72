"""A job ends with whoever started it, meets on this machine alone, and leaves nothing that measures on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moemodel.profiler.jobs.launcher import (
    STORE_SOCKET,
    JobProcesses,
    Patience,
    Program,
    end_left_over,
    local_programs,
    meeting_point,
    slurm_program,
)

PATIENCE = Patience(start_s=60, silence_s=60, grace_s=10)
START = """
import os, sys, time
from pathlib import Path
from moemodel.profiler.jobs.launcher import JobProcesses, Patience, Program
folder = Path(sys.argv[1])
sleep = [sys.executable, "-S", "-c", "import time; time.sleep(99)", f"{folder}/job.json"]
programs = [Program(command=sleep, environment=os.environ, name=str(rank)) for rank in range(2)]
next(JobProcesses(programs, folder, patience=Patience(start_s=99, silence_s=99, grace_s=5)).events())
"""


def _pids(folder: Path) -> list[int]:
    return [int(file.read_text()) for file in folder.glob("*.pid") if file.read_text()]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended, and nobody has asked how


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_outlives_the_one_that_started_it(way: signal.Signals, tmp_path: Path) -> None:
    """SIGTERM, of which this parent knows nothing, and SIGKILL, of which none can."""
    with subprocess.Popen([sys.executable, "-c", START, str(tmp_path)]) as parent:
        end_s = time.monotonic() + 60
        while len(_pids(tmp_path)) < 2 and time.monotonic() < end_s:
            time.sleep(0.02)
        pids = _pids(tmp_path)
        assert len(pids) == 2
        parent.send_signal(way)
        parent.wait(60)
    end_s = time.monotonic() + 10
    while any(map(_alive, pids)) and time.monotonic() < end_s:
        time.sleep(0.01)
    assert not any(map(_alive, pids))


def test_what_is_left_of_an_earlier_job_is_ended_first(tmp_path: Path) -> None:
    """And only that: a number that another process has by now, or a file that holds none, is left alone."""
    job = tmp_path / "0"
    job.mkdir()
    orphan = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(99)", f"{job}/job.json"])
    (job / "0.pid").write_text(str(orphan.pid))
    (job / "1.pid").write_text(str(os.getpid()))
    (job / "2.pid").write_text("²")
    try:
        end_s = time.monotonic() + 60
        while str(job) not in Path(f"/proc/{orphan.pid}/cmdline").read_text() and time.monotonic() < end_s:
            time.sleep(0.01)
        end_left_over(tmp_path)
        assert orphan.wait(10) == -signal.SIGKILL
    finally:
        orphan.kill()
    end_left_over(tmp_path / "none")


def test_the_first_takes_over_a_socket_on_the_loopback_interface(tmp_path: Path) -> None:
    code = (
        "import os, socket, sys; number = os.environ.get('" + STORE_SOCKET + "')\n"
        "name = socket.socket(fileno=int(number)).getsockname() if number else None\n"
        "print(name, os.environ['MASTER_ADDR'], os.environ['MASTER_PORT'])"
    )
    programs = [
        Program(command=[sys.executable, "-S", "-c", code], environment=os.environ, name=str(rank)) for rank in range(2)
    ]
    job = JobProcesses(programs, tmp_path, patience=PATIENCE, meet_here=True)
    assert list(job.events()) == []
    assert job.exit_status == 0
    other, address, port = (tmp_path / "1.log").read_text().split()
    assert (other, address) == ("None", "127.0.0.1")
    assert (tmp_path / "0.log").read_text() == f"('127.0.0.1', {port}) 127.0.0.1 {port}\n"


def test_ranks_are_told_as_torchrun_tells_them() -> None:
    given = {"OMP_NUM_THREADS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    first, second = (p.environment for p in local_programs("worker", [], processes=2, environment=given))
    assert {name: (first[name], second[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")} == {
        "RANK": ("0", "1"),
        "LOCAL_RANK": ("0", "1"),
        "WORLD_SIZE": ("2", "2"),
    }
    assert first["OMP_NUM_THREADS"] == "3"
    assert "TORCHELASTIC_USE_AGENT_STORE" not in first  # of the torchrun that started this process, if one did
    alone, _ = local_programs("worker", [], processes=2, environment={})
    assert alone.environment["OMP_NUM_THREADS"] == "1"


def test_a_slurm_job_on_one_node_meets_there() -> None:
    allocation = {"SLURM_JOB_NODELIST": "a,b", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4"}
    assert meeting_point(allocation, 0, nodes=1)["MASTER_ADDR"] == "127.0.0.1"
    one = slurm_program("worker", [], processes=4, environment=allocation, number=0)
    two = slurm_program("worker", [], processes=8, environment=allocation, number=0)
    assert [p.environment["MASTER_ADDR"] for p in (one, two)] == ["127.0.0.1", "a"]
    assert one.ends_by == signal.SIGTERM
