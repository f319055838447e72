"""The 90 % interval of a prediction, and whether what was measured lies in it."""

from __future__ import annotations

from collections.abc import Sequence

from moemodel.model.results.estimate import Estimate


def interval(told: Estimate) -> list[float | None]:
    """Its ends, as records of predictions keep them."""
    return [told.low, told.high]


def holds(ends: Sequence[float | None], measured: float) -> bool:
    """False where no interval is known."""
    low, high = ends
    return low is not None and high is not None and low <= measured <= high
