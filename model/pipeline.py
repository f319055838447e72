"""Makespan of a pipeline step from the times of its stages.

1F1B (Narayanan et al. 2021, section 2.2) with stage times F_s, B_s and m micro-batches:

    T = m max_s (F_s + B_s)  +  (sum_s (F_s + B_s) - max_s (F_s + B_s)) / v

with v virtual stages, whose chunks fill and drain the pipeline v times faster. For v = 1 it is the fill and drain of
all stages plus m - 1 turns of the slowest: a lower bound of the longest path, reached when the slowest stage is never
starved (tests hold it against the longest path of the whole graph). GPipe runs all forwards, then all backwards, each
phase a pipeline of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moemodel.model.plan import Schedule

FloatArray = NDArray[np.float64]


def makespan(
    forward_s: Sequence[FloatArray],
    backward_s: Sequence[FloatArray],
    counts: Sequence[int],
    *,
    micro_batches: FloatArray,
    schedule: NDArray[np.int64],
    virtual: NDArray[np.int64],
) -> FloatArray:
    """Time from the first forward to the last backward of a step.

    Args:
        forward_s, backward_s: of one micro-batch, one array for each class of stages; last axes broadcast.
        counts: how many stages each class has.
        micro_batches, schedule, virtual: of each plan; broadcast against the times.
    """
    both = [f + b for f, b in zip(forward_s, backward_s, strict=True)]
    through, slowest = _sum(both, counts), np.maximum.reduce(both)
    one_f_one_b = slowest + (through - slowest) / virtual + (micro_batches - 1) * slowest
    turns = micro_batches - 1
    gpipe = (
        _sum(forward_s, counts)
        + turns * np.maximum.reduce(list(forward_s))
        + _sum(backward_s, counts)
        + turns * np.maximum.reduce(list(backward_s))
    )
    return np.asarray(np.where(schedule == Schedule.GPIPE, gpipe, one_f_one_b))


def _sum(times: Sequence[FloatArray], counts: Sequence[int]) -> FloatArray:
    return np.asarray(sum(count * time for count, time in zip(counts, times, strict=True)))
