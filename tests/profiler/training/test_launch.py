"""The launcher against a worker without torch: every way for a job to end, and the commands that start one."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from moemodel.model.core.documents import parse_yaml
from moemodel.model.core.errors import DeviceError, InputError
from moemodel.model.plan.spec import Plan
from moemodel.profiler.jobs.launcher import Program, first_host, meeting_point, srun_command
from moemodel.profiler.training import launch as launch_module
from moemodel.profiler.training.launch import Failure, LaunchOptions, Measured, PlanVisit, launch

_FAKE = Path(__file__).with_name("fake_worker.py")
_PLAN = """name: {name}
architecture: opt-350m
sequence_length: 64
global_batch: 4
cluster: {{gpu: h100-sxm-80gb, gpus: 2}}
parallel: {{dp: 2}}
"""


def _visit(name: str, repeat: int = 0, text: str = "") -> PlanVisit:
    text = text or _PLAN.format(name=name)
    return PlanVisit(plan=parse_yaml(text, Plan, name), plan_yaml=text, folder=Path(), repeat=repeat)


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """One plain process a job, in place of one a rank."""

    def programs(_: str, arguments: list[str], *, processes: int, environment: Mapping[str, str]) -> list[Program]:
        assert processes == 2
        return [Program(command=[sys.executable, str(_FAKE), *arguments], environment=environment, name="0")]

    monkeypatch.setattr(launch_module, "local_programs", programs)


@pytest.fixture
def outcomes(tmp_path: Path) -> Callable[..., list[str]]:
    """What became of plans, each as `name: kind`."""

    def run(*visits: PlanVisit, timeout_s: float = 20.0) -> list[str]:
        options = LaunchOptions(gpu="cpu", timeout_s=timeout_s)
        return [
            f"{o.visit.plan.name}: {o.kind if isinstance(o, Failure) else 'measured'}"
            for o in launch(visits, folder=tmp_path, options=options)
        ]

    return run


def _jobs(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "jobs").iterdir())


def test_one_job_runs_all_visits_in_order(tmp_path: Path) -> None:
    said: list[str] = []
    options = LaunchOptions(gpu="cpu", timeout_s=20)
    visits = [_visit("a"), _visit("b"), _visit("a", repeat=1)]
    found = list(launch(visits, folder=tmp_path, options=options, report=said.append))
    assert [outcome.visit for outcome in found] == visits
    assert all(isinstance(outcome, Measured) and outcome.rows[0].rank == 0 for outcome in found)
    assert said == ["a, visit 1 of 3: started", "b, visit 2 of 3: started", "a, visit 3 of 3: started"]
    assert _jobs(tmp_path) == ["0"]


def test_a_plan_that_ends_its_job_does_not_end_the_others(outcomes: Callable[..., list[str]], tmp_path: Path) -> None:
    found = outcomes(_visit("one"), _visit("memory"), _visit("two"), _visit("crash"), _visit("three"))
    assert found == ["one: measured", "memory: memory", "two: measured", "crash: crash", "three: measured"]
    assert _jobs(tmp_path) == ["0", "1", "2"]


def test_the_gravest_failure_is_the_reason(tmp_path: Path) -> None:
    (found,) = launch([_visit("memory")], folder=tmp_path, options=LaunchOptions(gpu="cpu"))
    assert isinstance(found, Failure)
    assert (found.kind, found.reason, found.log) == ("memory", "does not fit", tmp_path / "jobs" / "0")


def test_a_crash_is_told_by_the_end_of_its_log(tmp_path: Path) -> None:
    (found,) = launch([_visit("crash")], folder=tmp_path, options=LaunchOptions(gpu="cpu"))
    assert isinstance(found, Failure)
    assert found.reason == "the job ended: begins / illegal memory access"


def test_a_hanging_plan_is_ended_with_all_its_processes(outcomes: Callable[..., list[str]], tmp_path: Path) -> None:
    found = outcomes(_visit("one"), _visit("hang"), _visit("two"), timeout_s=2.0)
    assert found == ["one: measured", "hang: timeout", "two: measured"]
    assert not _lives(tmp_path / "jobs" / "0" / "0.pid")


def test_closing_the_iterator_ends_the_job(tmp_path: Path) -> None:
    running = launch([_visit("one"), _visit("hang")], folder=tmp_path, options=LaunchOptions(gpu="cpu"))
    assert isinstance(next(running), Measured)
    running.close()
    assert not _lives(tmp_path / "jobs" / "0" / "0.pid")


def _lives(file: Path) -> bool:
    pid = int(file.read_text())
    for _ in range(50):
        if not Path(f"/proc/{pid}").exists():
            return False
        time.sleep(0.02)
    return True


def test_a_job_that_never_begins_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    running = launch([_visit("nothing")], folder=tmp_path, options=LaunchOptions(gpu="cpu"))
    with pytest.raises(DeviceError, match="no job could be started: the job ended: no such GPU; see the logs in"):
        next(running)


def test_a_plan_that_is_not_run_is_refused_without_a_job(tmp_path: Path) -> None:
    text = _PLAN.format(name="ring").replace("dp: 2", "cp: 2")
    (found,) = launch([_visit("ring", text=text)], folder=tmp_path, options=LaunchOptions(gpu="cpu"))
    assert isinstance(found, Failure)
    assert (found.kind, found.log) == ("refused", None)
    assert found.reason.startswith("ring: parallel.cp: found 2; context parallelism is not run yet, allowed: 1")
    assert not (tmp_path / "jobs").exists()


def test_names_are_unique(tmp_path: Path) -> None:
    running = launch([_visit("a"), _visit("a")], folder=tmp_path, options=LaunchOptions(gpu="cpu"))
    with pytest.raises(InputError, match="plan 'a', visit 0: stands twice; give each plan a name of its own"):
        next(running)


# --- Slurm -----------------------------------------------------------------------------------------------------------

_SRUN = f"""#!{sys.executable}
import os, subprocess, sys
options = [a for a in sys.argv[1:] if a.startswith("--") and sys.argv.index(a) < sys.argv.index({sys.executable!r})]
tasks = int(next(o for o in options if o.startswith("--ntasks=")).partition("=")[2])
command = sys.argv[len(options) + 1:]
open(os.environ["SAID"], "w").write(" ".join(options))
environments = [os.environ | {{"SLURM_PROCID": str(i), "SLURM_NTASKS": str(tasks)}} for i in range(tasks)]
processes = [subprocess.Popen(command, env=e) for e in environments]
sys.exit(max(p.wait() for p in processes))
"""


def test_slurm_starts_a_process_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(_SRUN)
    srun.chmod(srun.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{srun.parent}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"JOB_NODELIST": "gpu[07-08]", "JOB_ID": "1234", "GPUS_ON_NODE": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("SLURM_STEP_NODELIST", raising=False)
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    monkeypatch.setattr(launch_module, "WORKER", "fake_worker")
    monkeypatch.syspath_prepend(str(_FAKE.parent))
    options = LaunchOptions(gpu="cpu", launcher="slurm", timeout_s=20)
    (found,) = launch([_visit("one")], folder=tmp_path / "runs", options=options)
    assert isinstance(found, Measured)
    assert found.rows[0].plan_yaml == "gpu07"
    assert (tmp_path / "said").read_text() == (
        "--nodes=2 --ntasks=2 --ntasks-per-node=1 --distribution=block --kill-on-bad-exit=1 --export=ALL"
    )
    assert {path.name for path in (tmp_path / "runs" / "jobs" / "0").glob("*.pid")} == {
        "0.pid",
        "1.pid",
        "launcher.pid",
    }


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("8", ["--nodes=2", "--ntasks=12", "--ntasks-per-node=8"]),
        ("", ["--nodes=1", "--ntasks=12", "--ntasks-per-node=12"]),
    ],
)
def test_nodes_are_filled_one_after_another(listed: str, expected: list[str]) -> None:
    command = srun_command("worker", ["--job", "j"], processes=12, environment={"SLURM_GPUS_ON_NODE": listed})
    assert command[1:4] == expected
    assert command[-6:] == [sys.executable, "-P", "-m", "worker", "--job", "j"]


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu7", "gpu7"), ("gpu[03-05,9],login", "gpu03"), ("a-b1,a-b2", "a-b1"), ("n[12,14]", "n12")],
)
def test_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_jobs_of_one_allocation_meet_at_different_ports() -> None:
    environment = {"SLURM_JOB_NODELIST": "a,b", "SLURM_JOB_ID": "77"}
    points = [meeting_point(environment, number) for number in range(3)]
    assert {point["MASTER_ADDR"] for point in points} == {"a"}
    ports = [int(point["MASTER_PORT"]) for point in points]
    assert len(set(ports)) == 3
    assert all(1024 < port < 65536 for port in ports)


def test_slurm_needs_an_allocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    running = launch([_visit("a")], folder=tmp_path, options=LaunchOptions(gpu="cpu", launcher="slurm"))
    with pytest.raises(InputError, match="this is no Slurm allocation"):
        next(running)
