"""Makespan of a pipeline step from the times of its stages.

1F1B (Narayanan et al. 2021, section 2.2), stage times F_s, B_s, T_s = F_s + B_s, m micro-batches, n stages:

    T = max_s  m T_s + (sum_{j<s} T_j + fill_s + drain_s) / v
    fill_s = max(0, D_s - (w_s - 1) F_s),   drain_s = max(0, D_s - (w_s - 1) B_s),   D_s = sum_{j>s} T_j

with w_s = min(n - s, m) forwards before the first backward of stage s, and v virtual stages, whose chunks fill and
drain the pipeline v times faster. These are paths through the graph of the step: to stage s, all its work, and back,
with a detour to the last stage in place of its first w_s - 1 forwards, its last w_s - 1 backwards, or both (only one
where m <= n - s). The longest path is one of them where stages share forward and backward work alike; tests compare
it with the longest path of the whole graph. For equal stages it is the familiar (m + n - 1) T.

GPipe runs all forwards, then all backwards, each phase a pipeline of its own: the sum over the stages, and m - 1 turns
of the slowest. Zero-bubble schedules have no such formula (`zero_bubble`). Stages of one class are taken to stand side
by side, in the order of the classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.arrays import FloatArray
from moemodel.model.plan.choices import Schedule
from moemodel.model.schedule.zero_bubble import zero_bubble


def makespan(
    forward_s: Sequence[FloatArray],
    backward_s: Sequence[FloatArray],
    counts: Sequence[int],
    *,
    weight_share: Sequence[FloatArray],
    micro_batches: FloatArray,
    schedule: NDArray[np.int64],
    virtual: NDArray[np.int64],
) -> FloatArray:
    """Time from the first forward to the last backward of a step, [P, X].

    Args:
        forward_s, backward_s: of one micro-batch, one array for each class of stages; last axes broadcast.
        counts: how many stages each class has.
        weight_share: of a backward pass, what the gradients of weights take; only zero-bubble schedules ask.
        micro_batches, schedule, virtual: of each plan; broadcast against the times.
    """
    one_f_one_b = _one_f_one_b(forward_s, backward_s, counts, micro_batches, virtual)
    turns = micro_batches - 1
    gpipe = (
        _sum(forward_s, counts)
        + turns * np.maximum.reduce(list(forward_s))
        + _sum(backward_s, counts)
        + turns * np.maximum.reduce(list(backward_s))
    )
    span = np.asarray(np.where(schedule == Schedule.GPIPE, gpipe, one_f_one_b))
    rows = np.flatnonzero(schedule[:, 0] == Schedule.ZERO_BUBBLE)
    if len(rows) and sum(counts) > 1:
        span[rows] = zero_bubble(
            [f[rows] for f in forward_s],
            [b[rows] for b in backward_s],
            [share[rows] for share in weight_share],
            counts,
            micro_batches=micro_batches[rows],
            virtual=virtual[rows],
        )
    return span


def _one_f_one_b(
    forward_s: Sequence[FloatArray],
    backward_s: Sequence[FloatArray],
    counts: Sequence[int],
    m: FloatArray,
    virtual: NDArray[np.int64],
) -> FloatArray:
    """The maximum over stages; of those of one class, the last has the longest path."""
    both = [f + b for f, b in zip(forward_s, backward_s, strict=True)]
    total, behind = _sum(both, counts), sum(counts)
    before = np.zeros_like(total)
    longest = np.zeros_like(total)
    for f, b, t, count in zip(forward_s, backward_s, both, counts, strict=True):
        before = before + (count - 1) * t
        behind -= count  # stages behind the last of this class
        after = total - before - t
        warm = np.minimum(behind, m - 1)
        fill, drain = np.maximum(0.0, after - warm * f), np.maximum(0.0, after - warm * b)
        detour = np.where(m > behind + 1, fill + drain, np.maximum(fill, drain))
        longest = np.maximum(longest, m * t + (before + detour) / virtual)
        before = before + t
    return longest


def _sum(times: Sequence[FloatArray], counts: Sequence[int]) -> FloatArray:
    return np.asarray(sum(count * time for count, time in zip(counts, times, strict=True)))
