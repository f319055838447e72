"""A program of its own as a `Run`, on one GPU: a step is over when the program's log says so.

What it is told to run goes on for longer than anybody measures; it ends with `close`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from moemodel.model.core.errors import InputError
from moemodel.model.layers.parameters import parameters
from moemodel.profiler.backends.base import PhaseCallback, StepStatistics, TrainingRun
from moemodel.profiler.backends.external import ExternalProgram, ExternalStep, ProgramError, follow

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_ITERATIONS = 20_000  # that it is told to run; assumed: more than anybody measures, and few enough for its data's index


class ExternalRun:
    """One rank's part of a model in training elsewhere: all of it. A `Run`, whose steps have one phase, `step`.

    Args:
        run: of one rank.
        device: that the program trains on.
        program: that trains it.

    Raises:
        InputError: the run has several ranks, or asks for what the program is not given.
        MissingExtraError: no checkout of the program is named.
        ProgramError: it ended before its first step.
    """

    marks = 2
    elsewhere = True  # its memory is that of another process

    def __init__(self, run: TrainingRun, device: torch.device, program: ExternalProgram) -> None:
        p = run.parallel
        if p.dp * p.tp * p.pp > 1:
            raise InputError(
                f"{run.name}: found {p.dp * p.tp * p.pp} GPUs; {program.NAME} is run by its own launcher on one GPU as "
                "yet, allowed: 1"
            )
        self.device, self.parameters = device, parameters(run.architecture).total
        self._name, self._last = program.NAME, cast("ExternalStep | None", None)
        checkout = program.checkout_of(None)
        self._folder = tempfile.TemporaryDirectory(prefix="moemodel-")
        folder = Path(self._folder.name)
        program.prepare(run, folder)
        told = program.command(run, checkout, folder, iterations=_ITERATIONS)
        self._steps = cast("Generator[ExternalStep]", follow(told, program.read_log, folder / "log.txt"))
        self._await_line()  # it starts for longer than a step takes

    def step(self, mark: PhaseCallback) -> None:
        """See `Run`; waits for the step to be over."""
        mark("start")
        self._await_line()
        mark("step")

    def loss(self) -> float:
        """See `Run`; nan where the program says none."""
        known = None if self._last is None else self._last.task_loss
        return math.nan if known is None else known

    def statistics(self) -> StepStatistics:
        """See `Run`; what its routers did, the log does not say."""
        last = self._last
        return StepStatistics(
            task_loss=self._tensor(None if last is None else last.task_loss),
            router_loss=self._tensor(None if last is None else last.router_loss),
            routing=(),
        )

    def record_entropies(self, wanted: bool) -> None:
        """There are none."""

    def wait(self) -> None:
        """A step is over when it returns."""

    def expert_loads(self) -> list[Tensor]:
        """None are known."""
        return []

    def clear_expert_loads(self) -> None:
        """There are none."""

    def close(self) -> None:
        """End the program, and remove its files."""
        self._steps.close()
        self._folder.cleanup()

    def _await_line(self) -> None:
        try:
            self._last = next(self._steps)
        except StopIteration:
            self._folder.cleanup()
            raise ProgramError(f"{self._name} ended before it was told to, and without a failure") from None
        except ProgramError:
            self._folder.cleanup()
            raise

    def _tensor(self, value: float | None) -> Tensor | None:
        import torch

        return None if value is None else torch.tensor(value, dtype=torch.float64)
