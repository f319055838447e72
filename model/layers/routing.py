"""How unevenly a router loads the ranks that hold experts."""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import numpy as np

from moemodel.model.core.arrays import FloatArray


def expert_rank_skew(skew: FloatArray, ep: FloatArray, experts: int) -> FloatArray:
    """Rows of the busiest expert-parallel rank over the mean.

    A rank sums experts / ep loads. If loads vary like draws from a normal distribution that add up to all rows, a
    rank's deviate by sqrt((ep - 1) / (experts - 1)) of an expert's, and the largest of n such that add up to nothing is
    m(n) sqrt(n / (n - 1)) deviations, m(n) the mean of the largest of n normal ones (Blom 1958, section 6.9):
    `1 + (skew - 1) sqrt(ep / experts) m(ep) / m(experts)`, exact at ep = 1 and at ep = experts.
    Leaves out routers that load neighbouring experts together.

    Args:
        skew: rows of the busiest expert over the mean, [P].
        ep: ranks of expert parallelism, [P].
        experts: of a layer.
    """
    if experts < 2:
        return np.ones(np.broadcast(skew, ep).shape)
    degrees, place = np.unique(ep, return_inverse=True)
    largest = np.array([_largest_of(n) for n in degrees])[place.reshape(np.shape(ep))]
    return np.asarray(1 + (skew - 1) * np.sqrt(ep / experts) * largest / _largest_of(experts))


@cache
def _largest_of(count: float) -> float:
    """Mean of the largest of so many draws from a standard normal distribution: Blom's approximation, within 5 %."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))
