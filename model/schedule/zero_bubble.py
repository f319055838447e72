"""ZB-H1 (Qi et al. 2023, arXiv:2401.10241, section 2.1): gradients of weights fill the bubble.

A backward pass falls into the gradients of its input (B), which the stage before waits for, and those of its weights
(W), which nobody waits for until the optimizer. Stage s of n holds back the weight gradients of its first s
micro-batches, and does what is left at the end. It keeps no more activations than the first stage of 1F1B does. For
equal stages a step takes

    m (F + B + W) + (n - 1) (F + B - W)        where W <= F + B

For unequal ones there is no such formula, so the graph is walked (`longest_path`). With v virtual stages the chunks of
a stage take turns as under `interleaved`, in the order of torch.distributed.pipelining's ScheduleInterleavedZeroBubble.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.schedule.base import Messages, Schedule, Sizes, StageTimes, Work
from moemodel.model.schedule.interleaved import turns
from moemodel.model.schedule.longest_path import longest_path


class ZeroBubble(Schedule):
    """ZB-H1, with one chunk a stage or more."""

    name: ClassVar = "zero-bubble"
    messages: ClassVar = Messages.OVERLAPPED
    splits_backward: ClassVar = True

    def order(self, stage: int, sizes: Sizes[int]) -> list[Work]:
        forward, backward = turns(stage, sizes), turns(stage, sizes, back=True)
        warm = (sizes.virtual - 1) * sizes.stages + sizes.stages - 1 - stage
        work = [Work("F", *turn) for turn in forward[:warm]]
        for k, turn in enumerate(backward):
            work += [Work("F", *turn) for turn in forward[warm + k : warm + k + 1]]
            work.append(Work("B", *turn))
            if k >= stage:
                work.append(Work("W", *backward[k - stage]))
        return work + [Work("W", *turn) for turn in backward[max(len(backward) - stage, 0) :]]

    def makespan(self, times: StageTimes, sizes: Sizes[IntArray]) -> FloatArray:
        return longest_path(self, times, sizes)

    def in_flight(self, stage: int, sizes: Sizes[IntArray]) -> IntArray:  # noqa: ARG002
        """As many on every stage as on the first, since the others put off weight gradients."""
        return np.minimum(sizes.stages, sizes.micro_batches)

    def deferred(self, stage: int, sizes: Sizes[IntArray]) -> IntArray:
        return np.minimum(stage, sizes.micro_batches)
