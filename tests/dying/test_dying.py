"""Four ways of dying, three ways of dealing with clocks, three commands: what was set is given back, and what was
measured is gone on with, no row missing and none twice.

A few of the 36 run with the other tests, all of them by `MOEMODEL_DYING=all pytest tests/dying` (half an hour).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest

from moemodel.model.records.profile import ROWS
from moemodel.profiler.clocks.settings import Clocks
from moemodel.profiler.run import profile
from tests.small_plans import CONFIG, small_plan

WAYS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
MODES = ("lock", "passive", "as-is")
LOCKABLE = Path(__file__).with_name("lockable")
ROOT = Path(__file__).parents[2]
ALL = os.environ.get("MOEMODEL_DYING") == "all"
SOON_S = 60.0  # for what takes a second where nothing else runs
GONE_S = 20.0  # for a guardian to have restored: it looks four times a second, and tries again for a while


def cases(*few: tuple[signal.Signals, str]) -> list[Any]:
    """All ways and modes, of which only a few are run with the other tests."""
    skip = pytest.mark.skip(reason="one of the 36 deaths that MOEMODEL_DYING=all runs")
    return [
        pytest.param(way, mode, id=f"{way.name}-{mode}", marks=() if ALL or (way, mode) in few else skip)
        for mode in MODES
        for way in WAYS
    ]


# --- commands that are ended -----------------------------------------------------------------------------------------


class Command:
    """`moemodel ...` in a folder, as a process that can be ended.

    Args:
        folder: that it runs in.
        arguments: of the command.
        lockable: file with the settings of the processor, if they can be set.
    """

    def __init__(self, folder: Path, *arguments: str, lockable: Path | None = None) -> None:
        self.folder, self._arguments = folder, arguments
        path = [str(ROOT), *([str(LOCKABLE)] if lockable else [])]
        self._environment = {k: v for k, v in os.environ.items() if k != "MOEMODEL_CLOCKS"}
        self._environment |= {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
        if lockable:
            self._environment["MOEMODEL_TEST_CLOCKS"] = str(lockable)
        self.errors = folder / "stderr.txt"

    def start(self) -> subprocess.Popen[bytes]:
        with (self.folder / "stdout.txt").open("ab") as out, self.errors.open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "moemodel", *self._arguments],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
                start_new_session=True,
                restore_signals=True,
            )

    def end(self, way: signal.Signals, when: Callable[[], bool]) -> None:
        """Start it, end it when it is time to, and check its exit status and that nothing of it is left."""
        process = self.start()
        try:
            until(lambda: when() or process.poll() is not None, SOON_S)
            assert process.poll() is None, self.errors.read_text()
            process.send_signal(way)
            status = process.wait(SOON_S)
        finally:
            process.kill()
            process.wait()
        assert status == (-way if way == signal.SIGKILL else 128 + way)
        until(lambda: not self.left(), GONE_S)
        assert not self.left()
        assert "Traceback" not in self.errors.read_text()

    def finish(self) -> None:
        """Run it to its end."""
        process = self.start()
        try:
            status = process.wait(10 * SOON_S)
        finally:
            process.kill()
            process.wait()
        assert status == 0, self.errors.read_text()

    def left(self) -> list[str]:
        """Processes, guardians too, that work for this folder."""
        return [command for command in _commands() if str(self.folder) in command and "moemodel.profiler" in command]


def _commands() -> Iterator[str]:
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                yield (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue


def until(true: Callable[[], bool], seconds: float) -> None:
    """Wait for something, not for ever."""
    end_s = time.monotonic() + seconds
    while not true() and time.monotonic() < end_s:
        time.sleep(0.02)


def _state(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    return found


# --- profile ---------------------------------------------------------------------------------------------------------

SECTIONS = {"lock": "sweep,host", "passive": "sweep,host", "as-is": "power,solo,host"}
ONCE = ("power", "host", "alternating")  # tables with one row a key
BUDGET_S = "400"  # of the simulated GPU's time


def _profile(folder: Path, mode: str, pace: str = "") -> Command:
    folder.mkdir(exist_ok=True)
    gpu = f"sim:h100?state={folder / 'state.json'}{pace}"
    options = ("--clocks", mode, "--sections", SECTIONS[mode], "--budget", BUDGET_S, "-o", "prof")
    return Command(folder, "profile", "--gpu", gpu, *options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The profile of a run that nobody ended, by mode."""
    made: dict[str, Path] = {}

    def measured(mode: str) -> Path:
        if mode not in made:
            folder = tmp_path_factory.mktemp("undisturbed") / mode
            _finish_profile(folder, mode)
            made[mode] = folder / "prof"
        return made[mode]

    return measured


def _finish_profile(folder: Path, mode: str) -> None:
    """The same command to its end; among the other tests in this process, which has torch already."""
    if ALL:
        _profile(folder, mode).finish()
        return
    folder.mkdir(exist_ok=True)
    sections, asked = SECTIONS[mode].split(","), cast("Clocks", mode)
    gpu = f"sim:h100?state={folder / 'state.json'}"
    profile(gpu, folder / "prof", clocks=asked, sections=sections, budget_s=float(BUDGET_S))


@pytest.mark.parametrize(("way", "mode"), cases((signal.SIGKILL, "lock")))
def test_profile(way: signal.Signals, mode: str, undisturbed: Callable[[str], Path], tmp_path: Path) -> None:
    state, prof = tmp_path / "state.json", tmp_path / "prof"

    def halfway() -> bool:
        locked = _state(state).get("locks", 0) > 2 and _state(state)["locked_Hz"] is not None
        return len(list(prof.glob("operators/part-*"))) > 2 and (locked or mode != "lock")

    _profile(tmp_path, mode, "&pace=0.05").end(way, halfway)
    until(lambda: _state(state)["locked_Hz"] is None, GONE_S)
    assert _state(state)["locked_Hz"] is None
    assert _state(state)["power_limit_W"] == 700.0
    assert (_state(state)["locks"] > 0) == (mode == "lock")
    before = _rows(prof, parts=True)
    _finish_profile(tmp_path, mode)
    assert _state(state)["locked_Hz"] is None
    _same_rows(_rows(prof), _rows(undisturbed(mode)), before)
    assert not [path.name for path in prof.rglob("*") if path.suffix == ".tmp" or path.name.startswith("part-")]


def _rows(prof: Path, *, parts: bool = False) -> dict[str, pd.DataFrame]:
    """Tables of a profile; those of one that was ended in its parts too."""
    found = {}
    for kind in ROWS:
        files = [file for file in (prof / f"{kind.TABLE}.parquet",) if file.exists()]
        files += sorted(prof.glob(f"{kind.TABLE}/part-*.parquet")) if parts else []
        if files:
            found[kind.TABLE] = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    return found


def _same_rows(
    found: dict[str, pd.DataFrame], expected: dict[str, pd.DataFrame], before: dict[str, pd.DataFrame]
) -> None:
    """Every point of an undisturbed run, each measured once; and what was there when it was ended is there still."""
    assert set(found) == set(expected)
    for kind in ROWS:
        if kind.TABLE not in found:
            continue
        rows, keys = found[kind.TABLE], list(kind.KEY)
        assert not rows.duplicated().any(), kind.TABLE
        assert _keys(rows, keys) == _keys(expected[kind.TABLE], keys), kind.TABLE
        if kind.TABLE in before:
            kept = before[kind.TABLE].merge(rows.drop_duplicates(), how="left", indicator=True)["_merge"]
            assert (kept == "both").all(), f"{kind.TABLE}: rows were lost"
        if kind.TABLE in ONCE:
            assert not rows.duplicated(keys).any(), kind.TABLE
        if kind.TABLE == "operators":  # samples of a point and a mix were read off together
            assert (rows.groupby(keys, dropna=False).wall_s.nunique() == 1).all()


def _keys(rows: pd.DataFrame, keys: list[str]) -> set[tuple[Any, ...]]:
    """Points of a table; those of the trace are the sections that it runs through."""
    return set(rows[keys].astype(object).where(rows[keys].notna(), None).itertuples(index=False, name=None))


# --- validate --------------------------------------------------------------------------------------------------------

RUNS = {("one", 0), ("one", 1), ("two", 0), ("two", 1)}


@pytest.mark.parametrize(("way", "mode"), cases())
def test_validate(way: signal.Signals, mode: str, tmp_path: Path, cpu_calibration: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "cpu.json").write_text(cpu_calibration)
    clock = "clock_MHz: 1500\n" if mode == "lock" else ""
    for name, ranks in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}.yaml").write_text(small_plan(name, ranks) + clock)
    state, visits = tmp_path / "state.json", tmp_path / "out" / "visits.jsonl"
    options = "--no-controls --repeats 2 --seconds 1 --warm-seconds 0.2 --timeout 120 -o out --calibration cpu.json"
    arguments = ("validate", "one.yaml", "two.yaml", *options.split(), "--clocks", mode)
    command = Command(tmp_path, *arguments, lockable=state)

    def lines() -> list[bytes]:
        return visits.read_bytes().splitlines() if visits.exists() else []

    def halfway() -> bool:
        return bool(lines()) and (_state(state).get("locked_Hz") is not None or mode != "lock")

    command.end(way, halfway)
    until(lambda: _state(state).get("locked_Hz") is None, GONE_S)
    assert _state(state).get("locked_Hz") is None
    assert _state(state).get("power_limit_W", 300.0) == 300.0
    assert (_state(state).get("locks", 0) > 0) == (mode == "lock")
    before = lines()
    assert 0 < len(before) < len(RUNS)
    command.finish()
    assert lines()[: len(before)] == before
    made = Counter((run["plan"], run["visit"]["repeat"]) for run in map(json.loads, lines()) if run["visit"])
    assert made == Counter(RUNS)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["complete"]
    assert _state(state).get("locked_Hz") is None


# --- optimize --------------------------------------------------------------------------------------------------------

CLOCKS = {"lock": "[1200, 1500, 1980]", "passive": "null", "as-is": "[1980]"}  # of the plans; none is set
SEARCH = """\
name: small
architecture: opt-350m
sequence_length: 2048
global_batch: 64
cluster: {{gpu: h100-sxm-80gb, gpus: [8, 16, 32]}}
clocks_MHz: {clocks}
"""


@pytest.mark.parametrize(("way", "mode"), cases((signal.SIGTERM, "lock")))
def test_optimize(way: signal.Signals, mode: str, tmp_path: Path, calibration_file: Path) -> None:
    (tmp_path / "search.yaml").write_text(SEARCH.format(clocks=CLOCKS[mode]))
    shutil.copy(calibration_file, tmp_path / "gpu.json")
    arguments = ("optimize", "search.yaml", "--calibration", "gpu.json")
    result = tmp_path / "moemodel-search.json"
    command = Command(tmp_path, *arguments)
    begun_s = time.monotonic()
    command.finish()
    took_s, whole = time.monotonic() - begun_s, result.read_text()
    for share in (0.5, 0.8, 0.95) if ALL else (0.8,):
        _ended_somewhere(command, way, share * took_s)
        assert json.loads(result.read_text()) == json.loads(whole)  # that of before, or the same again
        if way != signal.SIGKILL:
            assert not list(tmp_path.glob(".*.tmp"))
    if ALL:
        command.finish()
        assert result.read_text() == whole


def _ended_somewhere(command: Command, way: signal.Signals, after_s: float) -> None:
    """End a command that may be done already, or not yet listen."""
    process = command.start()
    time.sleep(after_s)
    process.send_signal(way)
    assert process.wait(SOON_S) in (0, -way, 128 + way)
    assert "Traceback" not in command.errors.read_text()
