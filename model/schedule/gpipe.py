"""GPipe (Huang et al. 2019, section 2.3): all forward passes, then all backward passes.

Each phase is a pipeline of its own: the sum over the stages, and m - 1 turns of the slowest. A stage holds the
activations of every micro-batch.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray, largest
from moemodel.model.schedule.base import Messages, Schedule, Sizes, StageTimes, Work


class GPipe(Schedule):
    """All forward passes, then all backward passes."""

    name: ClassVar = "gpipe"
    messages: ClassVar = Messages.BEFORE_A_PASS
    keeps_every_micro_batch: ClassVar = True
    any_length: ClassVar = True

    def order(self, stage: int, sizes: Sizes[int]) -> list[Work]:
        each = range(sizes.micro_batches)
        return [Work("F", stage, i) for i in each] + [Work("B", stage, i) for i in each]

    def makespan(self, times: StageTimes, sizes: Sizes[IntArray]) -> FloatArray:
        turns = sizes.micro_batches - 1
        return np.asarray(
            times.sum(times.forward_s)
            + turns * largest(list(times.forward_s))
            + times.sum(times.backward_s)
            + turns * largest(list(times.backward_s))
        )

    def in_flight(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> IntArray:  # noqa: ARG002
        return sizes.micro_batches

    def earlier_losses(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> IntArray:  # noqa: ARG002
        return sizes.micro_batches - 1
