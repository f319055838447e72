"""DualPipe: micro-batches enter a pipeline at both of its ends, and every rank holds two stages of two copies of the
model (DeepSeek-V3, section 3.2.1, figures 4 and 5).

Rank s of n holds stages s and n - 1 - s. Half of the micro-batches go from the first rank to the last, half the other
way, so that ranks s and n - 1 - s do the same on other micro-batches: what each does is DualPipeV's stage s of n / 2
with half of the micro-batches, but that micro-batches cross the middle to another rank where a V turns on one. So a
plan's batch (`plan.batch`) is of twice the replicas of n / 2 stages under DualPipeV: two copies of parameters are two
replicas, whose gradients are summed. In the order here chunks are numbered along the V. Left out: that the two copies
may lie on other nodes than replicas next to each other.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.schedule.base import Piece, Sizes, StageTimes
from moemodel.model.schedule.dual_pipe_v import DualPipeV


class DualPipe(DualPipeV):
    """Two stages a rank, of two copies of the model."""

    name: ClassVar = "dualpipe"
    pairs: ClassVar = True

    def pieces(self, stage: int, sizes: Sizes[int]) -> list[Piece]:
        """As the stage of half a pipeline that it mirrors, or is."""
        return super().pieces(min(stage, sizes.stages - 1 - stage), _half(sizes))

    def makespan(self, times: StageTimes, sizes: Sizes[IntArray]) -> FloatArray:
        """Of the stages of half a pipeline."""
        return super().makespan(times, _half_column(sizes))

    def in_flight(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> FloatArray:
        return super().in_flight(stage, _half_column(sizes))

    def overlap_passes_forward(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> FloatArray:
        return super().overlap_passes_forward(_mirrored(stage, sizes), _half_column(sizes))

    def overlap_passes_backward(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> FloatArray:
        return super().overlap_passes_backward(_mirrored(stage, sizes), _half_column(sizes))


def _half(sizes: Sizes[int]) -> Sizes[int]:
    return Sizes(stages=sizes.stages // 2, virtual=sizes.virtual, micro_batches=sizes.micro_batches // 2)


def _mirrored(stage: int | IntArray, sizes: Sizes[IntArray]) -> IntArray:
    """The stage of half a pipeline that does the same, [P]."""
    return np.asarray(np.minimum(stage, sizes.stages - 1 - stage))


def _half_column(sizes: Sizes[IntArray]) -> Sizes[IntArray]:
    both = np.where(sizes.stages > 1, 2, 1)  # without a pipeline there is nothing to halve
    return Sizes(stages=sizes.stages // both, virtual=sizes.virtual, micro_batches=sizes.micro_batches // both)
