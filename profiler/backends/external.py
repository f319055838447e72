"""Frameworks that train in a program of their own: what is told to it, and what its log says.

Such a backend has no `Run` (`backends.base`): its steps are not in this process. In its folder are

- `supported_plans`, as in every backend's;
- `program`: `NAME`, what it is called; `checkout_of(text)`, the folder that a user names; `prepare(run, plan, folder)`,
  the files that it reads; `command(run, plan, checkout, folder)`, what to start; `read_log(lines)`, its steps.

Energy is measured beside it, by the meter, over the time from the first measured step's line to the last one's.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from moemodel.model.core.errors import InputError
from moemodel.profiler.backends.base import BACKENDS, TrainingRun

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
