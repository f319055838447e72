"""How long sequences take to come from where they are stored: the block `data_loading` of a plan's cluster."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Annotated

import numpy as np
from pydantic import Field

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.core.documents import Strict

# Assumed: a sequence that takes longer is a typing error, and so are more processes, or more spread
Seconds = Annotated[float, Field(gt=0.0, le=1e5, strict=True)]
Workers = Annotated[int, Field(gt=0, le=1024, strict=True)]
Variation = Annotated[float, Field(ge=0.0, le=10.0, strict=True)]

_WORKERS = 2  # of each rank that reads: Megatron-LM's default (training/arguments.py, num_workers)


class DataLoadingSpec(Strict):
    """Processes that read sequences for a replica, beside training and ahead of it."""

    sequence_s: Seconds = Field(description="that a process takes to read and put together a sequence")
    workers: Workers = Field(default=_WORKERS, description="processes of a replica that read, a micro-batch each")
    variation: Variation = Field(
        default=0.0, description="standard deviation of sequence_s from sequence to sequence, over it"
    )

    def step_s(self, sequences: IntArray, dp: IntArray) -> FloatArray:
        """Time in which all replicas have what they need for a step, [P].

        n sequences of s seconds, with deviation v s, by w processes take a replica n s / w (1 + v z / sqrt(n)), and all
        wait for the slowest of dp, whose z is the mean of the largest of dp standard normals (Blom 1958: the quantile
        of (dp - 3/8) / (dp + 1/4)). Left out: that processes read ahead, so that a slow step may follow a fast one;
        that replicas share the storage; and steps that wait now and then where reading is barely fast enough.

        Args:
            sequences: of a replica in a step, [P].
            dp: replicas, [P].
        """
        largest = {count: _largest_of(count) for count in map(int, np.unique(dp))}
        z = np.array([largest[int(count)] for count in dp])
        return np.asarray(sequences * self.sequence_s / self.workers * (1 + self.variation * z / np.sqrt(sequences)))


def _largest_of(count: int) -> float:
    """Mean of the largest of so many standard normals."""
    found = NormalDist().inv_cdf((count - 0.375) / (count + 0.25)) if count > 1 else 0.0
    return found if math.isfinite(found) else 0.0
