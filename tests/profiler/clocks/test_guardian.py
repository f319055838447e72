"""The guardian: what it restores, how it insists, and what becomes of a GPU whose profiler is ended in every way."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moemodel.profiler.clocks.guardian import Guardian
from moemodel.profiler.clocks.nvml_settings import OPEN_NVML
from moemodel.profiler.clocks.settings import SettingError
from moemodel.profiler.simulated.state import State, StoredSettings

SOON_S = 60.0  # for what takes a second where nothing else runs
FREE, LOCKED = None, (990e6, 990e6)


def until(what: Callable[[], Any], within_s: float = SOON_S) -> Any:
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    pytest.fail(f"not within {within_s:.0f} s")


# --- by itself -------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings() -> StoredSettings:
    """Of a GPU whose clocks are locked and whose power limit was changed."""
    return StoredSettings(None, initial=State(locked_Hz=LOCKED, power_limit_W=400))


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def guardian(settings: StoredSettings, pauses: list[float]) -> Guardian:
    return Guardian("a GPU", lambda: settings, sleep=pauses.append)


def test_it_restores_what_it_was_told_of(guardian: Guardian, settings: StoredSettings) -> None:
    assert guardian.restore() == []
    assert settings.state == State(locked_Hz=LOCKED, power_limit_W=400)  # it was told nothing
    guardian.note({"power_limit_W": 700})
    guardian.note({"power_limit_W": 400})  # only the first one was found
    assert guardian.restore() == []
    assert settings.state == State(locked_Hz=LOCKED, power_limit_W=700)
    guardian.note({"locks": True})
    assert guardian.restore() == []
    assert settings.state == State(locked_Hz=FREE, power_limit_W=700)


def test_it_forgets_what_was_restored(guardian: Guardian, settings: StoredSettings) -> None:
    guardian.note({"locks": True})
    guardian.note({"power_limit_W": 700})
    guardian.note({"forget": True})
    assert guardian.restore() == []
    assert settings.state == State(locked_Hz=LOCKED, power_limit_W=400)


def test_it_tries_again(guardian: Guardian, settings: StoredSettings, pauses: list[float]) -> None:
    settings.fail_to_unlock(5)
    guardian.note({"locks": True})
    assert guardian.restore() == []
    assert settings.state.locked_Hz is FREE
    assert len(pauses) == 5
    assert pauses == sorted(pauses)


def test_it_gives_up_and_says_what_to_do(guardian: Guardian, settings: StoredSettings, pauses: list[float]) -> None:
    """The power limit is restored all the same."""
    settings.fail_to_unlock(1000)
    guardian.note({"locks": True})
    guardian.note({"power_limit_W": 700})
    (trouble,) = guardian.restore()
    assert "a GPU: the clocks are still locked (the simulated driver fails to unlock" in trouble
    assert "restore by hand, as root: set locked_Hz to null" in trouble
    assert settings.state.power_limit_W == 700
    assert 10 < sum(pauses) < 30


def test_it_does_not_insist_where_that_is_vain(pauses: list[float]) -> None:
    class Refusing(StoredSettings):
        def unlock(self) -> None:
            raise SettingError("no permission", lasting=True)

    guardian = Guardian("a GPU", lambda: Refusing(None), sleep=pauses.append)
    guardian.note({"locks": True})
    (trouble,) = guardian.restore()
    assert "no permission" in trouble
    assert pauses == []


# --- as a process ----------------------------------------------------------------------------------------------------

_IMPORTS = "import sys, moemodel.profiler.clocks.guardian as g; print([m for m in {heavy} if m in sys.modules])"
FAKE_NVML = '''\
"""A `pynvml` that writes down what it is told; the first call that resets clocks fails, if it is to."""
import os
from pathlib import Path

LOG = Path(os.environ["FAKE_NVML_LOG"])
NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_NO_PERMISSION = 3, 4

class NVMLError(Exception):
    value = int(os.environ.get("FAKE_NVML_ERROR", "999"))

def _tell(*words):
    with LOG.open("a") as log:
        print(*words, file=log)

def nvmlInit(): ...

def nvmlDeviceGetHandleByUUID(uuid):
    return f"handle of {uuid}"

def nvmlDeviceResetGpuLockedClocks(handle):
    _tell("reset", handle)
    if LOG.read_text().count("reset") <= int(os.environ.get("FAKE_NVML_FAILS", "0")):
        raise NVMLError("busy")

def nvmlDeviceSetPowerManagementLimit(handle, limit_mW):
    _tell("limit", handle, limit_mW)
'''


def test_it_imports_nothing_heavy(environment: dict[str, str]) -> None:
    code = _IMPORTS.format(heavy=("torch", "numpy", "pydantic", "click", "rich", "pynvml"))
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.fixture
def environment() -> dict[str, str]:
    """This checkout on the path, and nothing that forbids locking."""
    kept = {name: value for name, value in os.environ.items() if name != "MOEMODEL_CLOCKS"}
    return kept | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def guard(folder: Path, environment: dict[str, str], **fake: object) -> tuple[subprocess.CompletedProcess[str], str]:
    """A guardian that hears of a lock and a power limit, with a fake NVML; how it ended, and what NVML was told."""
    (folder / "pynvml.py").write_text(FAKE_NVML)
    job = {"name": "a GPU", "address": {"opener": OPEN_NVML, "argument": "GPU-1"}, "parent": os.getpid()}
    says = [{"power_limit_W": 650.5}, {"locks": True}]
    path = {"PYTHONPATH": f"{folder}{os.pathsep}{environment['PYTHONPATH']}", "FAKE_NVML_LOG": str(folder / "log")}
    ended = subprocess.run(
        [sys.executable, "-m", "moemodel.profiler.clocks.guardian", json.dumps(job)],
        input="".join(json.dumps(said) + "\n" for said in says),
        env=environment | path | {f"FAKE_NVML_{name.upper()}": str(value) for name, value in fake.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.split() == ["ready", "noted", "noted"]
    return ended, (folder / "log").read_text()


@pytest.mark.parametrize("fails", [0, 2])
def test_nvml_is_told_exactly_what_undoes_it(tmp_path: Path, environment: dict[str, str], fails: int) -> None:
    ended, told = guard(tmp_path, environment, fails=fails)
    assert told.splitlines() == ["reset handle of GPU-1"] * (fails + 1) + ["limit handle of GPU-1 650500"]
    assert (ended.returncode, ended.stderr) == (0, "")


def test_what_nvml_refuses_is_said_with_the_command(tmp_path: Path, environment: dict[str, str]) -> None:
    ended, told = guard(tmp_path, environment, fails=9, error=4)
    assert told.splitlines() == ["reset handle of GPU-1", "limit handle of GPU-1 650500"]
    assert ended.returncode == 1
    assert ended.stderr.startswith("moemodel: a GPU: the clocks are still locked (the driver gives no permission")
    assert ended.stderr.endswith("restore by hand, as root: nvidia-smi -i GPU-1 -rgc\n")


# --- the profiler, ended in every way --------------------------------------------------------------------------------


# Processes are forked from one that has imported what a profile needs, which takes longer than all else of these tests.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["moemodel.cli.profile", "moemodel.profiler.run"])
_MOEMODEL = """
import os, runpy, sys
os.setsid()
os.environ.clear()
os.environ.update(environment)
output = os.open(output, os.O_WRONLY)
os.dup2(output, 1)
os.dup2(output, 2)
os.close(output)
sys.argv = ["moemodel", *arguments]
runpy.run_module("moemodel", run_name="__main__", alter_sys=True)
"""


class Forked:
    """`python -m moemodel ARGUMENTS` in a session of its own, as `subprocess.Popen` would start it.

    Args:
        arguments: of the command.
        environment: that it sees.
        output: a name for the pipe that it, and all that it starts, write to.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str], output: Path) -> None:
        os.mkfifo(output)
        self._output = os.open(output, os.O_RDONLY | os.O_NONBLOCK)
        given = {"arguments": arguments, "environment": environment, "output": str(output)}
        self._process = FORKS.Process(target=exec, args=(_MOEMODEL, given))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """As of `subprocess.Popen`; None as long as it runs."""
        return self._process.exitcode

    def wait(self) -> None:
        self._process.join()

    def kill(self) -> None:
        self._process.kill()

    def communicate(self) -> str:
        """What was written by the time that nobody can write any more."""
        parts: list[bytes] = []
        until(lambda: self._read(parts))
        self.wait()
        return b"".join(parts).decode()

    def close(self) -> None:
        """End it, if it still runs."""
        self.kill()
        self.wait()
        self._process.close()
        os.close(self._output)

    def _read(self, parts: list[bytes]) -> bool:
        """Take what has been written; whether that was all."""
        ended = self.returncode is not None
        with suppress(BlockingIOError):  # somebody may still write
            while part := os.read(self._output, 1 << 16):
                parts.append(part)
            return ended
        return False


@dataclass(frozen=True, kw_only=True)
class Running:
    """`moemodel profile` of a simulated GPU whose settings outlive it."""

    process: Forked
    state_file: Path
    profile: Path

    def state(self) -> State:
        return StoredSettings(self.state_file).state

    def locked(self) -> bool:
        """Whether a step of the sweep has begun (what is tried first locks to the whole range)."""
        locked_Hz = self.state().locked_Hz if self.state_file.exists() else None
        return locked_Hz is not None and locked_Hz[0] == locked_Hz[1]

    def guardian(self) -> int:
        """Its process id: the child that runs it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (found,) = [int(c) for c in children if "guardian" in Path(f"/proc/{c}/cmdline").read_text()]
        return found


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Starts `moemodel profile --clocks lock`; what still runs at the end of the test is killed."""
    begun: list[Forked] = []

    def run(options: str = "pace=0.3", clocks: str = "lock") -> Running:
        state, profile = tmp_path / "state.json", tmp_path / "profile"
        gpu = f"sim:h100?state={state}&{options}"
        command = ["profile", "--gpu", gpu, "-o", str(profile), "--clocks", clocks, "--sections", "sweep"]
        process = Forked(command, environment, tmp_path / f"output-{len(begun)}")
        begun.append(process)
        return Running(process=process, state_file=state, profile=profile)

    yield run
    for process in begun:
        process.close()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _caught(running: Running) -> int:
    """Wait until the clocks are locked; the guardian's process id."""
    until(lambda: running.locked() or running.process.returncode is not None)
    assert running.process.returncode is None, running.process.communicate()
    return running.guardian()


def test_restored_after_success(start: Start) -> None:
    running = start("pace=0")
    guardian = _caught(running)
    output = running.process.communicate()
    assert running.process.returncode == 0, output
    assert running.state().locked_Hz is FREE
    assert running.state().locks == 13  # what was tried first, and a step each
    assert gone(guardian)
    assert json.loads((running.profile / "manifest.json").read_text())["clocks"] == "lock"
    assert "960 operators, 16 power" in output


def test_restored_after_an_error(start: Start) -> None:
    running = start("pace=0.3&fail=lost-after-4s")
    guardian = _caught(running)
    output = running.process.communicate()
    assert running.process.returncode == 2
    assert "the GPU is lost" in output
    assert running.state().locked_Hz is FREE
    assert gone(guardian)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_restored_after_a_signal(start: Start, number: signal.Signals) -> None:
    """To the whole group, as a terminal sends it."""
    running = start()
    guardian = _caught(running)
    os.killpg(running.process.pid, number)
    output = running.process.communicate()
    assert running.process.returncode == (130 if number == signal.SIGINT else 128 + number)
    assert "interrupted; run the same command again to go on" in output
    assert running.state().locked_Hz is FREE
    assert gone(guardian)
    assert (running.profile / "manifest.json").exists()


@pytest.mark.parametrize("whole_group", [False, True])
def test_restored_after_kill_9(start: Start, whole_group: bool) -> None:
    running = start()
    guardian = _caught(running)
    os.killpg(running.process.pid, signal.SIGKILL) if whole_group else running.process.kill()
    running.process.wait()
    until(lambda: running.state().locked_Hz is FREE, 10)
    until(lambda: gone(guardian), 10)


def test_the_guardian_outlasts_signals(start: Start) -> None:
    """Sent to itself, while the profiler is killed."""
    running = start()
    guardian = _caught(running)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(guardian, number)
    time.sleep(0.2)
    assert not gone(guardian)
    running.process.kill()
    running.process.wait()
    until(lambda: running.state().locked_Hz is FREE, 10)


def test_a_child_that_holds_the_pipe_does_not_fool_it(tmp_path: Path, environment: dict[str, str]) -> None:
    """A forked child of the profiler (a data loader's, say) has its end of the pipe open, and lives on."""
    code = f"""
import os, time
from moemodel.profiler.clocks.clock_control import ClockControl
from moemodel.profiler.simulated.instruments import SimulatedSettings, open_simulated
device = open_simulated("sim:h100?state={tmp_path}/state.json", {{"h100": "h100-sxm-80gb"}})
control = ClockControl(device, SimulatedSettings(device))
control.lock(990e6)
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""
    running = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        child = int(running.stdout.readline())
        settings = StoredSettings(tmp_path / "state.json")
        assert settings.state.locked_Hz == LOCKED
        running.kill()
        running.wait()
        try:
            until(lambda: settings.state.locked_Hz is FREE, 10)
            assert not gone(child)
        finally:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
    finally:
        running.kill()
        running.communicate()


def test_it_insists_after_the_profiler_is_dead(start: Start) -> None:
    running = start()
    _caught(running)
    os.kill(running.process.pid, signal.SIGSTOP)  # so that it doesn't write its settings just now
    StoredSettings(running.state_file).fail_to_unlock(3)
    running.process.kill()
    output = running.process.communicate()  # until the guardian, which has the same stderr, is gone
    assert running.state().locked_Hz is FREE
    assert running.state().failing_unlocks == 0
    assert "by hand" not in output


def test_interrupted_it_goes_on_where_it_stopped(start: Start) -> None:
    running = start("pace=1")
    _caught(running)
    until(lambda: running.state().locks >= 4)  # the try, and two steps that are done
    running.process.kill()
    running.process.wait()
    until(lambda: running.state().locked_Hz is FREE, 10)
    locks = running.state().locks
    assert any((running.profile / "operators").glob("part-*"))
    again = start("pace=0", clocks="auto")
    output = again.process.communicate()
    assert again.process.returncode == 0, output
    assert "960 operators, 16 power" in output
    assert again.state().locked_Hz is FREE
    assert again.state().locks - locks < 13  # some steps were done


def test_an_explicit_lock_that_is_refused_exits_with_2(start: Start) -> None:
    for options, reason in (("busy=1", "another process computes"), ("locking=refused", "no permission")):
        running = start(options)
        output = running.process.communicate()
        assert running.process.returncode == 2
        assert f"{reason}" in output
        assert "use --clocks passive" in output
        assert running.state() == State(power_limit_W=700)
        assert not running.profile.exists()
