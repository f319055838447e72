"""A figure and how far off it may be.

Intervals are central 90 % ones of a log-normal distribution: value x exp(-+1.645 e), where e is the relative standard
error that the calibration and `predict` give. A figure whose error is not known has no interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from moemodel.model.core.interval import Z


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and its 90 % interval.

    `low` and `high` are None where its error isn't known; all is NaN where the figure itself isn't.
    """

    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, value: float, error: float | None) -> Estimate:
        """From a relative standard error."""
        if error is None:
            return cls(value=value, low=None, high=None)
        factor = math.exp(Z * error)
        return cls(value=value, low=value / factor, high=value * factor)

    def at_most(self, limit: float) -> Estimate:
        """The same, with an interval that ends at a limit."""
        high = None if self.high is None or math.isnan(self.value) else max(min(self.high, limit), self.value)
        return Estimate(value=self.value, low=self.low, high=high)

    def reaching(self, ratio: float) -> Estimate:
        """The same, with an interval that reaches to one side as far as that of a figure `ratio` times as large does.

        Of a ratio below one, as that of a smaller one does.
        """
        low, high = self.low, self.high
        if low is None or high is None:
            return self
        return Estimate(value=self.value, low=low * min(ratio, 1.0), high=high * max(ratio, 1.0))

    def __mul__(self, factor: float) -> Estimate:
        return Estimate(
            value=self.value * factor,
            low=None if self.low is None else self.low * factor,
            high=None if self.high is None else self.high * factor,
        )

    def __add__(self, other: Estimate) -> Estimate:
        """Sum of figures that err together: the interval is at its widest."""
        low = None if self.low is None or other.low is None else self.low + other.low
        high = None if self.high is None or other.high is None else self.high + other.high
        return Estimate(value=self.value + other.value, low=low, high=high)

    def inverse(self, factor: float = 1.0) -> Estimate:
        """A factor over it."""
        return Estimate(
            value=factor / self.value,
            low=None if self.high is None else factor / self.high,
            high=None if self.low is None else factor / self.low,
        )

    def to_json(self) -> dict[str, Any]:
        """`{"value": v, "interval": [low, high]}`, or null for an interval that isn't known."""
        known = self.low is not None and self.high is not None and math.isfinite(self.low + self.high)
        return {"value": finite(self.value), "interval": [self.low, self.high] if known else None}


def finite(value: float) -> float | None:
    """JSON has no word for a number that isn't one."""
    return value if math.isfinite(value) else None
