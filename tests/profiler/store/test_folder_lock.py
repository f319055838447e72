"""One process at a time in a folder, and nothing of that left there."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from moemodel.model.core.errors import InputError
from moemodel.profiler.run import profile
from moemodel.profiler.store.folder_lock import LOCK, folder_lock

HOLD = "import sys, pathlib; from moemodel.profiler.store.folder_lock import folder_lock\n"
HOLD += "with folder_lock(pathlib.Path(sys.argv[1]), 'profile'): print('held', flush=True); sys.stdin.read()"


def test_the_second_is_refused_at_once_and_told_by_whom(tmp_path: Path) -> None:
    """Also where the first is killed: then the folder is free again."""
    folder = tmp_path / "p"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=rf"another `moemodel profile` is at work in it \(process {first.pid} on "):
            profile("sim:h100", folder)
        with pytest.raises(InputError, match="another `moemodel profile`"):
            folder_lock(folder, "validate").__enter__()
        first.kill()
    with folder_lock(folder, "validate"):
        pass
    assert list(folder.iterdir()) == []


def test_several_of_a_launcher_that_do_not_know_of_each_other_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PROCID": "1", "LOCALID": "1", "NTASKS": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with (
        folder_lock(tmp_path, "profile"),
        pytest.raises(InputError, match="this is process 1 of 2 that Slurm started: start one, or export MASTER_ADDR"),
    ):
        profile("sim:h100", tmp_path)


def test_a_folder_that_was_made_for_nothing_is_not_left(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "a" / "b", "profile"):
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    with folder_lock(tmp_path / "a" / "b", "profile"):
        (tmp_path / "a" / "b" / "rows").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["rows"]


def test_a_file_system_without_locks_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with folder_lock(tmp_path, "profile"):
        pass
