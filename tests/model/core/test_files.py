"""Files appear whole or not at all, under their own name."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from moemodel.model.core.files import write_atomic


@pytest.mark.parametrize("content", ["text", b"text", lambda path: path.write_text("text")])
def test_writes_what_it_is_given(tmp_path: Path, content: str | bytes) -> None:
    file = tmp_path / "a.txt"
    write_atomic(file, "before")
    write_atomic(file, content, sync=True)
    assert file.read_text(encoding="utf-8") == "text"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("before")

    def half(path: Path) -> None:
        path.write_text("aft")
        raise RuntimeError("the disk is on fire")

    with pytest.raises(RuntimeError):
        write_atomic(file, half)
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_replaces_nothing_unless_told(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_atomic(file, "one", overwrite=False)
    with pytest.raises(FileExistsError):
        write_atomic(file, "two", overwrite=False)
    assert file.read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "nowhere" / "a.txt"
    with pytest.raises(FileNotFoundError) as error:
        write_atomic(file, "text")
    assert error.value.filename == str(file)


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    target, link = tmp_path / "kept" / "a.txt", tmp_path / "link.txt"
    target.write_text("before")
    link.symlink_to(target)
    write_atomic(link, "text")
    assert link.is_symlink()
    assert target.read_text() == "text"


def test_a_link_that_leads_nowhere_makes_what_it_names(tmp_path: Path) -> None:
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "a.txt")
    write_atomic(link, "text")
    assert link.is_symlink()
    assert (tmp_path / "a.txt").read_text() == "text"


def test_what_is_no_file_is_written_into(tmp_path: Path) -> None:
    """An administrator's `-o /dev/null` must not put a file where the device was."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomic(pipe, "text")
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
