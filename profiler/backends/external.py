"""Frameworks that train in a program of their own: what is told to it, and what its log says.

In such a backend's folder is, beside the modules of every backend (`backends.base`), `program`: an `ExternalProgram`.
Its steps are not in this process. `follow` starts it and gives them while it runs, and `external_run.ExternalRun`
makes them a `Run`'s, so that energy is measured beside it as beside any other: from line to line of its log.
"""

from __future__ import annotations

import importlib
import os
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, cast

from moemodel.model.core.errors import InputError, MoeModelError
from moemodel.profiler.backends.base import BACKENDS, TrainingRun

_LAST_LINES = 20  # of a program that failed, in the message
_GRACE_S = 20.0  # for a program to end when it is asked to; then it is killed; assumed: a launcher ends its ranks first

# Backends of this kind, by the name that a plan's `backend` gives.
EXTERNAL = ("megatron-deepspeed",)


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to start on every node.

    Attributes:
        argv: program and arguments.
        environment: variables that it needs beside its parent's.
        folder: that it is started in.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    folder: Path


@dataclass(frozen=True, kw_only=True)
class ExternalStep:
    """One line of steps in a program's log.

    Attributes:
        iteration: that it ended with, counted from 1.
        iterations: that the program was told to run.
        samples: sequences consumed so far, of all ranks.
        time_s: of one iteration, the mean since the line before.
        task_loss: mean over the global batch; None where the program's loss was no number above 0, which it leaves out.
        router_loss: what routers added to it, times the coefficient; None: the log does not say.
        skipped: iterations since the line before whose update was left out.
    """

    iteration: int
    iterations: int
    samples: int
    time_s: float
    task_loss: float | None
    router_loss: float | None
    skipped: int


class ExternalProgram(Protocol):
    """The module `program` of an external backend."""

    NAME: str

    def checkout_of(self, text: str | None) -> Path:
        """The program's own folder, which a user names.

        Raises:
            MissingExtraError: none is named, or it is not the program's; how to name it.
        """
        ...

    def prepare(self, run: TrainingRun, folder: Path) -> None:
        """Write what the program reads, in the run's folder."""
        ...

    def command(self, run: TrainingRun, checkout: Path, folder: Path, *, iterations: int) -> Command:
        """What trains a run; supported by `supported_plans.check_runs`."""
        ...

    def read_log(self, lines: Iterable[str]) -> Iterator[ExternalStep]:
        """Steps as the log says them, while it is written."""
        ...


def program(backend: str) -> ExternalProgram:
    """The program of an external backend.

    Raises:
        InputError: another backend, whose steps are a `Run`'s.
    """
    if backend not in EXTERNAL:
        raise InputError(f"backend: found {backend!r}; allowed for a program of its own: {', '.join(EXTERNAL)}")
    return cast(ExternalProgram, importlib.import_module(f"{BACKENDS[backend]}.program"))


class ProgramError(MoeModelError):
    """A program of its own that failed: what it was, how it ended, and the end of its log."""


def follow(
    told: Command, read_log: Callable[[Iterable[str]], Iterator[ExternalStep]], log: Path
) -> Iterator[ExternalStep]:
    """Start a program and give its steps as it writes them; it ends with this iterator.

    Args:
        told: what to start.
        read_log: of the program.
        log: file that all of its output goes to.

    Raises:
        ProgramError: it could not be started, or ended with a failure.
    """
    last: deque[str] = deque(maxlen=_LAST_LINES)
    process = _start(told)
    assert process.stdout is not None
    try:
        with log.open("w", encoding="utf-8") as file:
            yield from read_log(_kept(process.stdout, file, last))
        code = process.wait()
    finally:
        _end(process)
    if code:
        raise ProgramError(f"{told.argv[0]} ended with {code}; {log} has all that it wrote, at last:\n" + "".join(last))


def _start(told: Command) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            told.argv,
            cwd=told.folder,
            env=os.environ | told.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise ProgramError(f"{told.argv[0]}: it can't be started: {error}") from None


def _kept(lines: IO[str], file: IO[str], last: deque[str]) -> Iterator[str]:
    for line in lines:
        file.write(line)
        file.flush()
        last.append(line)
        yield line


def _end(process: subprocess.Popen[str]) -> None:
    """Ask a program that still runs to end, then have it ended."""
    if process.stdout is not None:
        process.stdout.close()
    if process.poll() is not None:
        return
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    if process.poll() is None:
        process.kill()
        process.wait()
