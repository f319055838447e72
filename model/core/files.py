"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"  # of a file that is being written; what a killed process left behind has it too


def is_there(path: Path) -> bool:
    """Whether there is a file or a folder of that name; false also where no file can have it."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, not permitted; a NUL in it
        return False


def is_path(name: str) -> bool:
    """Whether somebody who writes this means a file, rather than something by its name."""
    return name.endswith((".json", ".yaml", ".yml")) or name.startswith(("/", "./", "../", "~"))


def write_atomic(
    path: Path, content: str | bytes | Callable[[Path], None], *, overwrite: bool = True, sync: bool = False
) -> None:
    """Write a file whole or not at all: a temporary one beside it takes its place when all of it is there.

    A link stays one: what it names is written. What is no file, such as /dev/null or a pipe, is written into.

    Args:
        path: of the file; its folder must exist.
        content: text (UTF-8), bytes, or a function that writes the file whose path it is given.
        overwrite: replace a file that is there.
        sync: wait until the disk has it, so that it survives a crash of the machine too.

    Raises:
        FileExistsError: it is there and `overwrite` is false.
        OSError: it can't be written; `filename` is that of the file, not of the temporary one.
    """
    try:
        if not overwrite:
            _write_atomic(path, content, overwrite=False, sync=sync)
        elif _is_no_file(path):
            _fill(path, content)
        else:
            _write_atomic(path.resolve(), content, overwrite=True, sync=sync)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    except ValueError:  # a NUL, or half of a character, in the name
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path)) from None


def _is_no_file(path: Path) -> bool:
    """Whether it is a device or a pipe: a file in its place would take it from the whole machine."""
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing is there, or a link that leads nowhere
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _write_atomic(path: Path, content: str | bytes | Callable[[Path], None], *, overwrite: bool, sync: bool) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX)
    os.close(handle)
    temporary = Path(name)
    try:
        _fill(temporary, content)
        temporary.chmod(0o666 & ~umask())
        if sync:
            _sync(temporary)
        if overwrite:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)  # fails, at once, where there is a file already
    finally:
        temporary.unlink(missing_ok=True)


def _fill(temporary: Path, content: str | bytes | Callable[[Path], None]) -> None:
    if isinstance(content, str):
        temporary.write_text(content, encoding="utf-8")
    elif isinstance(content, bytes):
        temporary.write_bytes(content)
    else:
        content(temporary)


def _sync(temporary: Path) -> None:
    handle = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def umask() -> int:
    """Of this process."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
