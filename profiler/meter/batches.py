"""What a loop tells the meter of its steps: how many micro-batches, samples and tokens they had, and their loss.

A loss that is on a CUDA device is copied without waiting for it, and read when the step is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class StepBatches:
    """Of one step, as its batches are added.

    Attributes:
        micro_batches: added.
        samples, tokens: of them together; None where a batch did not say.
        loss: mean over the micro-batches that had one, once it is known.
    """

    micro_batches: int = 0
    samples: int | None = None
    tokens: int | None = None
    loss: float | None = None
    _losses: list[Any] = field(default_factory=list)
    _copied: Any = None  # event after the last copy

    def add(self, samples: int | None, tokens: int | None, loss: Any) -> None:
        """Add a batch."""
        first = self.micro_batches == 0
        self.micro_batches += 1
        self.samples = _sum(self.samples, samples, first)
        self.tokens = _sum(self.tokens, tokens, first)
        if isinstance(loss, torch.Tensor):
            loss = loss.detach()
            if loss.is_cuda:
                loss = loss.to("cpu", non_blocking=True)
                self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._copied.record()
        if loss is not None:
            self._losses.append(loss)

    def ready(self) -> bool:
        """Whether the loss is known, as far as there is one; waits for nothing."""
        if self._copied is not None and not self._copied.query():
            return False
        self._copied = None
        if self._losses:
            self.loss = sum(float(loss) for loss in self._losses) / len(self._losses)
        return True

    def values(self) -> dict[str, Any]:
        """For a line of the steps' file; a loss that is no number is text, which JSON has no number for."""
        loss: float | str | None = self.loss
        if self.loss is not None and not math.isfinite(self.loss):
            loss = str(self.loss)
        named = {"samples": self.samples, "tokens": self.tokens, "loss": loss}
        return {"micro_batches": self.micro_batches} | {k: v for k, v in named.items() if v is not None}


@dataclass
class Told:
    """What was told of all steps together; None where one did not say.

    Attributes:
        steps, untold: how many there were, and of how many of them nothing was told.
        micro_batches, samples, tokens: of all steps.
    """

    steps: int = 0
    untold: int = 0
    micro_batches: int | None = None
    samples: int | None = None
    tokens: int | None = None

    def add(self, step: StepBatches | None) -> None:
        """Add a step; None: nothing was told of it."""
        first = self.steps == 0
        self.steps += 1
        self.untold += step is None
        said = (None, None, None) if step is None else (step.micro_batches, step.samples, step.tokens)
        self.micro_batches = _sum(self.micro_batches, said[0], first)
        self.samples = _sum(self.samples, said[1], first)
        self.tokens = _sum(self.tokens, said[2], first)

    def notes(self) -> list[str]:
        """Why there are no sums, where some steps were told of."""
        if not 0 < self.untold < self.steps:
            return []
        return [
            f"add_batch told nothing of {self.untold} of {self.steps} steps: no sums of micro-batches, samples and "
            "tokens, to which the energy of all steps would not belong"
        ]


def _sum(total: int | None, more: int | None, first: bool) -> int | None:
    if first or total is None or more is None:
        return more if first else None
    return total + more


def sizes_of(batch: Any) -> tuple[int | None, int | None]:
    """Samples and tokens of a batch, by the shape of its token numbers (`input_ids`) or of its first tensor.

    Tokens are counted with the padding; None where nothing says it.
    """
    get = getattr(batch, "get", None)
    named = get("input_ids") if callable(get) else None
    if isinstance(named, torch.Tensor) and named.dim() >= 1:
        return (int(named.shape[0]) if named.dim() > 1 else 1), int(named.numel())
    found = _first_tensor(batch)
    return (None if found is None or found.dim() == 0 else int(found.shape[0])), None


def _first_tensor(batch: Any) -> torch.Tensor | None:
    if isinstance(batch, torch.Tensor):
        return batch
    values = getattr(batch, "values", None)
    items = values() if callable(values) else batch if isinstance(batch, list | tuple) else ()
    return next((found for item in items if (found := _first_tensor(item)) is not None), None)
