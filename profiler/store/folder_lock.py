"""One process at a time works in a folder. No torch here.

A lock on a file in the folder, which the system lets go of when its holder ends, however that ends. Where a file system
knows no locks, none is held.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moemodel.model.core.errors import InputError

LOCK = ".lock"
_TRIES = 10  # to lock a file that its last holder removes meanwhile


@contextmanager
def folder_lock(folder: Path, command: str, *, hint: str = "") -> Iterator[None]:
    """Nobody else works in this folder meanwhile.

    Args:
        folder: made if it is not there; removed in the end if it was made and nothing was left in it.
        command: of moemodel, for those who come second.
        hint: what to add where this one comes second.

    Raises:
        InputError: somebody does; who it is.
        OSError: the folder can't be made or written to.
    """
    made = _made(folder)
    try:
        handle = _locked(folder, command, hint)
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)  # while it is held: see `_locked`
            os.close(handle)
    finally:
        for each in made:
            with suppress(OSError):  # it is not empty
                each.rmdir()


def _made(folder: Path) -> list[Path]:
    """Make a folder; what of its path had to be made, the innermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _locked(folder: Path, command: str, hint: str) -> int:
    """A handle of the locked file, which holds who locked it."""
    path = folder / LOCK
    for _ in range(_TRIES):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)  # NFS locks only what may be written
        try:
            _lock(handle, folder, hint)
            if _is_still(handle, path):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{command} {os.getpid()} {socket.gethostname()}\n".encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    raise _taken(folder, "", hint)


def _lock(handle: int, folder: Path, hint: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise _taken(folder, os.pread(handle, 300, 0).decode(errors="replace"), hint) from None


def _is_still(handle: int, path: Path) -> bool:
    """Whether the file that was locked is the one that others will find: its last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _taken(folder: Path, holder: str, hint: str) -> InputError:
    command, pid, host = (*holder.split(), "", "", "")[:3]
    who = f" (process {pid} on {host})" if host else ""
    return InputError(
        f"{folder}: another `moemodel {command or 'command'}` is at work in it{who}; wait for it, or name a new folder "
        f"with -o{hint}"
    )
