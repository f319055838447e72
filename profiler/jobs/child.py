"""A program that ends with whoever started it: `python -P -m moemodel.profiler.jobs.child PARENT SIGNAL COMMAND...`.

Linux sends a process the signal that it asked for when the thread that started it ends, however that ends, kill -9
included (prctl(2), PR_SET_PDEATHSIG); the command that takes this process's place keeps that, and its number.
Elsewhere nobody sends it, and a command goes on. No torch here.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_GONE = 143  # exit status: as if SIGTERM had ended it


def command_of_child(command: Sequence[str], signal_number: int) -> list[str]:
    """The command that runs another so that it is sent a signal when this process ends."""
    starts = [sys.executable, "-P", "-m", "moemodel.profiler.jobs.child"]
    return [*starts, str(os.getpid()), str(int(signal_number)), *command]


def end_with_parent(parent: int, signal_number: int) -> bool:
    """Ask for a signal when the parent ends; False where it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    return os.getppid() == parent


def main(arguments: Sequence[str]) -> NoReturn:
    """Become the command, unless nobody is there any more to want it."""
    parent, signal_number, *command = arguments
    if not end_with_parent(int(parent), int(signal_number)):
        sys.exit(_GONE)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
