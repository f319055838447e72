"""What a pipeline schedule is: the order of work of its stages, and what follows from it for time and memory.

A stage of a pipeline holds one chunk of the model, or v of them, its virtual stages (Narayanan et al. 2021, section
2.2). A schedule says in which order a stage passes micro-batches through its chunks. From the order alone follows how
long a step takes: the longest path through the graph of all work (`longest_path`). Schedules that have a formula for it
give the formula.

Axes: P plans, X clocks. Symbols: n stages, m micro-batches, v virtual stages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.arrays import FloatArray, IntArray

Size = TypeVar("Size", int, IntArray)  # of one pipeline, or of many


@dataclass(frozen=True, kw_only=True)
class Sizes(Generic[Size]):
    """How large a pipeline is.

    Attributes:
        stages: on as many GPUs or groups of them.
        virtual: chunks of the model on each.
        micro_batches: of a step.
        round: micro-batches that pass a chunk before the next chunk takes them, under interleaved 1F1B; 0: as many as
            there are stages.
    """

    stages: Size
    virtual: Size
    micro_batches: Size
    round: Size | int = 0

    @property
    def column(self: Sizes[IntArray]) -> Sizes[IntArray]:
        """Against times, [P, 1]."""
        return self.take((slice(None), None))

    def take(self: Sizes[IntArray], rows: Any) -> Sizes[IntArray]:
        """Those at an index."""
        some = self.round if isinstance(self.round, int) else self.round[rows]
        return Sizes(
            stages=self.stages[rows], virtual=self.virtual[rows], micro_batches=self.micro_batches[rows], round=some
        )


class Work(NamedTuple):
    """One pass of one micro-batch through one chunk.

    Attributes:
        kind: F, a forward pass; B, a backward pass, of the gradients of the input alone where the schedule splits
            backward passes; W, the gradients of the weights, where it does.
        chunk: of the model, counted from its first layer.
        micro_batch: counted from 0.
    """

    kind: Literal["F", "B", "W"]
    chunk: int
    micro_batch: int


Piece = tuple[Work, ...]


class Messages(Enum):
    """When a stage waits for what crosses its ends: activations one way, gradients the other."""

    BEFORE_A_PASS = "it asks for a message when it needs it"
    BEHIND_A_PASS = "it sends and receives together behind every pass"
    OVERLAPPED = "messages travel while it computes; it waits for the first one down the pipeline and the last one back"


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """Times of one micro-batch through all chunks of a stage, one array for each class of stages, [P, X].

    Attributes:
        forward_s, backward_s: of the passes; last axes broadcast.
        weight_share: of a backward pass, what the gradients of weights take, [P, 1].
        counts: how many stages each class has, in all plans or in each, [P, 1]; they stand side by side, in the order
            of the classes.
    """

    forward_s: Sequence[FloatArray]
    backward_s: Sequence[FloatArray]
    weight_share: Sequence[FloatArray]
    counts: Sequence[int | IntArray]

    def take(self, rows: NDArray[np.int64]) -> StageTimes:
        """Those of the plans at these rows."""
        return StageTimes(
            forward_s=[time[rows] for time in self.forward_s],
            backward_s=[time[rows] for time in self.backward_s],
            weight_share=[share[rows] for share in self.weight_share],
            counts=[count if isinstance(count, int) else count[rows] for count in self.counts],
        )

    def sum(self, times: Sequence[FloatArray]) -> FloatArray:
        """Over all stages."""
        return np.asarray(sum(count * time for count, time in zip(self.counts, times, strict=True)))

    @property
    def of_one_length(self) -> list[int]:
        """Stages of each class, of plans of which all have as many."""
        return [count if isinstance(count, int) else int(count[0, 0]) for count in self.counts]


class Schedule(ABC):
    """A pipeline schedule.

    Attributes:
        name: of it.
        messages: when a stage waits for them under torch.distributed.pipelining.
        splits_backward: backward passes fall into the gradients of inputs (B) and those of weights (W).
        folds: stage s of n holds chunks s and 2n - 1 - s, and the first both ends of the model; else s, s + n, ...
        pairs: ranks s and n - 1 - s hold the same two stages, of two copies of the model, each on half of the
            micro-batches.
        only_virtual: number of virtual stages that it is for; None: any.
        least_rounds: micro-batches that it needs, over stages.
        keeps_every_micro_batch: all forward passes come before the first backward pass, so that a stage holds the
            activations of every micro-batch of a step.
        any_length: what it answers for plans it answers for pipelines of several lengths at once.
    """

    name: ClassVar[str]
    messages: ClassVar[Messages]
    splits_backward: ClassVar[bool] = False
    folds: ClassVar[bool] = False
    pairs: ClassVar[bool] = False
    only_virtual: ClassVar[int | None] = None
    least_rounds: ClassVar[int] = 0
    keeps_every_micro_batch: ClassVar[bool] = False
    any_length: ClassVar[bool] = False

    @abstractmethod
    def order(self, stage: int, sizes: Sizes[int]) -> list[Work]:
        """What one stage does in a step, in order.

        Args:
            stage: counted from 0.
            sizes: of the pipeline.
        """

    def pieces(self, stage: int, sizes: Sizes[int]) -> list[Piece]:
        """The same in pieces, of which nothing leaves before all of it is done."""
        return [(work,) for work in self.order(stage, sizes)]

    @abstractmethod
    def makespan(self, times: StageTimes, sizes: Sizes[IntArray]) -> FloatArray:
        """Time from the first pass to the last of a step, [P, X].

        Args:
            times: of the stages, as many as `sizes` says.
            sizes: of the pipelines, [P, 1].
        """

    @abstractmethod
    def in_flight(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> FloatArray | IntArray:
        """Micro-batches whose activations a stage holds at once, at most; a chunk's count as 1 / v, [P]."""

    def deferred(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> IntArray:  # noqa: ARG002
        """Micro-batches whose weight gradients a stage puts off, [P]."""
        return np.zeros_like(sizes.micro_batches)

    def overlap_passes_forward(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> FloatArray:  # noqa: ARG002
        """Forward passes of a stage before the chunk that it begins last begins: the overlap window of this chunk's
        parameters. In passes of a micro-batch, a chunk's count as 1 / v, [P]."""
        return np.zeros(np.shape(sizes.micro_batches))

    def overlap_passes_backward(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> FloatArray:  # noqa: ARG002
        """Backward passes of a stage behind the last one of the chunk that ends first: the overlap window of this
        chunk's gradients. As of forward passes; where they are split, either part counts as half a pass, [P]."""
        return np.zeros(np.shape(sizes.micro_batches))

    def earlier_losses(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> IntArray:
        """Micro-batches whose loss a last stage still holds when it begins the backward pass of another, [P]."""
        return self.deferred(stage, sizes)
