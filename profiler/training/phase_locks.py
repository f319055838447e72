"""Sets a GPU's clock to that of each phase of a step when the device gets there.

The host queues work long before the device does it, so a thread waits for the device to pass the end of a phase, and
sets the next phase's clock then: neither host nor device waits for it. While the driver takes to set it, the next phase
runs at the clock before (`clock_MHz.change_ms` of a plan).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch

from moemodel.model.core.errors import MoeModelError
from moemodel.profiler.backends.base import Builder, PhaseCallback, Run, TrainingRun
from moemodel.profiler.clocks.clock_control import ClockControl

_PATIENCE_S = 60.0  # for the driver to set the last clock

Wait = Callable[[], object]


class PhaseLocks:
    """Clocks of the phases of a run's steps.

    Args:
        control: of the GPU's clock.
        clocks_MHz: of each phase; None leaves it to the driver.
        micro_batches: of a step: behind the last one's backward pass comes the optimizer.
        passed: makes what waits until the device has done all that is queued now.

    Used as a context, at whose end the clock is still set as it was last.
    """

    def __init__(
        self,
        control: ClockControl,
        clocks_MHz: Mapping[str, float | None],
        micro_batches: int,
        passed: Callable[[], Wait],
    ) -> None:
        self._control, self._clocks_MHz, self._micro_batches, self._passed = control, clocks_MHz, micro_batches, passed
        self._backward = 0  # passes of this step
        self._asked_MHz: float | None = None  # last
        self._todo: queue.Queue[tuple[Wait, float | None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._follow, name="clocks of phases", daemon=True)
        self.changes = 0
        self.trouble: str | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._todo.put(None)
        self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():
            self.trouble = f"the driver did not set a clock within {_PATIENCE_S:g} s"

    def mark(self, phase: str) -> None:
        """Told the phase that ends, as `PhaseCallback`."""
        clock_MHz = self._clocks_MHz[self._next(phase)]
        if clock_MHz == self._asked_MHz and self.changes:
            return
        self._asked_MHz = clock_MHz
        self.changes += 1
        self._todo.put((self._passed(), clock_MHz))

    def _next(self, phase: str) -> str:
        if phase == "start":
            self._backward = 0
        if phase == "backward":
            self._backward += 1
        if phase == "pipeline" or (phase == "backward" and self._backward == self._micro_batches):
            return "optimizer"
        return "backward" if phase == "forward" else "forward"

    def _follow(self) -> None:
        """Sets one clock after the other; the first trouble ends it, and all that was asked for later is left."""
        while (todo := self._todo.get()) is not None:
            wait, clock_MHz = todo
            if self.trouble is None:
                try:
                    wait()
                    self._set(clock_MHz)
                except (MoeModelError, RuntimeError) as error:  # of the driver; of CUDA, which ends the run too
                    self.trouble = str(error)

    def _set(self, clock_MHz: float | None) -> None:
        if clock_MHz is None:
            self._control.unlock()
        else:
            self._control.lock(clock_MHz * 1e6)


def device_passed(device: torch.device) -> Callable[[], Wait]:
    """What `PhaseLocks` waits with: events of a CUDA device; others have done what the host has."""
    if device.type != "cuda":
        return lambda: lambda: None

    made: Callable[[], Any] = partial(torch.cuda.Event, blocking=True)

    def passed() -> Wait:
        event = made()
        event.record()
        wait: Wait = event.synchronize
        return wait

    return passed


def telling(build: Builder, tell: PhaseCallback) -> Builder:
    """Builds the same runs, whose steps tell `tell` too of every phase that ends, behind whom they tell already."""

    def built(run: TrainingRun, device: torch.device) -> Run | None:
        made = build(run, device)
        if made is not None:
            _tell_too(made, tell)
        return made

    return built


def _tell_too(run: Run, tell: PhaseCallback) -> None:
    step = run.step

    def both(mark: PhaseCallback) -> None:
        def marked(phase: str) -> None:
            mark(phase)
            tell(phase)

        step(marked)

    run.step = both  # type: ignore[method-assign]
