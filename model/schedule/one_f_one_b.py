"""1F1B (Narayanan et al. 2021, section 2.2): a backward pass as soon as there is one, and a forward pass behind it.

With stage times F_s, B_s and T_s = F_s + B_s a step takes

    T = max_s  m T_s + sum_{j<s} T_j + fill_s + drain_s
    fill_s = max(0, D_s - (w_s - 1) F_s),   drain_s = max(0, D_s - (w_s - 1) B_s),   D_s = sum_{j>s} T_j

with w_s = min(n - s, m) forward passes before the first backward pass of stage s. These are paths through the graph of
the step: to stage s, all its work, and back, with a detour to the last stage in place of its first w_s - 1 forward
passes, its last w_s - 1 backward passes, or both (only one where m <= n - s). The longest path is one of them where
stages share forward and backward work alike; tests compare it with the longest path of the whole graph. For equal
stages it is the familiar (m + n - 1) T.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.schedule.base import Messages, Schedule, Sizes, StageTimes, Work


class OneFOneB(Schedule):
    """One forward pass, one backward pass."""

    name: ClassVar = "1f1b"
    messages: ClassVar = Messages.BEHIND_A_PASS
    any_length: ClassVar = True

    def order(self, stage: int, sizes: Sizes[int]) -> list[Work]:
        warm = min(sizes.stages - stage, sizes.micro_batches)
        work = [Work("F", stage, i) for i in range(warm)]
        for i in range(sizes.micro_batches):
            work.append(Work("B", stage, i))
            if warm + i < sizes.micro_batches:
                work.append(Work("F", stage, warm + i))
        return work

    def makespan(self, times: StageTimes, sizes: Sizes[IntArray]) -> FloatArray:
        return slowest_stage(times, sizes.micro_batches, filling=1)

    def in_flight(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> IntArray:
        """Those between a stage and the last."""
        return np.asarray(np.minimum(sizes.stages - stage, sizes.micro_batches))


def slowest_stage(times: StageTimes, micro_batches: IntArray, *, filling: IntArray | int) -> FloatArray:
    """The maximum over stages of the path through all work of one; of those of one class, the last has the longest.

    Args:
        times: of the stages.
        micro_batches: of each plan, [P, 1].
        filling: how many times faster than by whole stages the pipeline fills and drains, [P, 1].
    """
    both = [f + b for f, b in zip(times.forward_s, times.backward_s, strict=True)]
    total, later = times.sum(both), sum(times.counts)
    before = np.zeros_like(total)
    longest = np.zeros_like(total)
    for f, b, t, count in zip(times.forward_s, times.backward_s, both, times.counts, strict=True):
        before = before + (count - 1) * t
        later = later - count  # stages behind the last of this class
        after = total - before - t
        warm = np.minimum(later, micro_batches - 1)
        fill, drain = np.maximum(0.0, after - warm * f), np.maximum(0.0, after - warm * b)
        detour = np.where(micro_batches > later + 1, fill + drain, np.maximum(fill, drain))
        longest = np.maximum(longest, micro_batches * t + (before + detour) / filling)
        before = before + t
    return longest
