"""What the formula of a collective misses, as measured: a curve over the size for every group that was measured.

Libraries change protocol and algorithm with size, and spread large messages over more channels; no one bandwidth
holds for all of that. So a calibration keeps, beside latency and bandwidth, the logarithm of measured over formula at
each measured size: in between it is interpolated over the logarithm of the size, beyond it stays what it was, and a
group that was not measured takes the nearest one's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.documents import Real, Strict, Switch, Whole

_LogRatio = Annotated[Real, Field(ge=-50, le=50)]  # bounds assumed: a ratio of e^50 is no measurement


class LinkCurve(Strict):
    """One collective over one group.

    `across`: its ranks lie on several nodes.
    """

    collective: str
    ranks: Whole = Field(ge=2, le=10_000_000)
    across: Switch = False
    size_B: list[Annotated[Real, Field(le=1e18)]] = Field(min_length=1, description="of the full tensor, rising")
    log_ratio: list[_LogRatio] = Field(description="log(measured time / formula) at each size")

    @cached_property
    def points(self) -> tuple[FloatArray, FloatArray]:
        """Logarithms of the sizes, and the ratios there. A changed curve is made anew, never copied."""
        return np.log(self.size_B), np.asarray(self.log_ratio, dtype=np.float64)

    @model_validator(mode="after")
    def _rising(self) -> LinkCurve:
        if len(self.log_ratio) != len(self.size_B):
            raise ValueError(f"log_ratio: found {len(self.log_ratio)} values; there are {len(self.size_B)} sizes")
        if self.size_B[0] <= 0 or any(a >= b for a, b in pairwise(self.size_B)):
            raise ValueError("size_B: sizes must be above 0, each larger than the one before")
        return self


def correction(curves: Sequence[LinkCurve], size_B: FloatArray, ranks: FloatArray) -> FloatArray:
    """Factor on the formula's time.

    Args:
        curves: of one collective, inside a node or across; none: no correction.
        size_B: of the full tensor.
        ranks: of the group; same shape.
    """
    if not curves:
        return np.ones(np.broadcast_shapes(size_B.shape, ranks.shape))
    ordered = sorted(curves, key=lambda curve: curve.ranks)
    log_size, n = np.broadcast_arrays(np.log(np.maximum(size_B, 1.0)), ranks)
    if len(ordered) == 1:
        return _factor(ordered[0], log_size)
    bounds = [float(np.sqrt(a.ranks * b.ranks)) for a, b in pairwise(ordered)]
    nearest = np.searchsorted(bounds, n)
    found = np.empty(log_size.shape)
    for index, curve in enumerate(ordered):
        mine = nearest == index
        found[mine] = _factor(curve, log_size[mine])
    return found


def _factor(curve: LinkCurve, log_size: FloatArray) -> FloatArray:
    return np.asarray(np.exp(np.interp(log_size, *curve.points)))
