"""Whether two means differ by more than their spread over repeats: Welch's interval of a difference of means.

d +- t s,   s^2 = s_a^2 / n_a + s_b^2 / n_b,
nu = s^4 / ((s_a^2 / n_a)^2 / (n_a - 1) + (s_b^2 / n_b)^2 / (n_b - 1))

d difference of the means; s_a, s_b standard deviations over n_a, n_b repeats; t quantile of Student's distribution
of nu degrees of freedom, here at 95 %, so that the interval is the central 90 % one (Welch 1947; Satterthwaite
1946). Left out: that of many pairs one in ten differs by chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

import numpy as np

from moemodel.model.core.interval import INTERVAL

FEW = 3  # repeats below which an interval rests on next to nothing: with two, t is 6.3
_POINTS = 20_001  # of the integral below: quantiles are within 1e-5 of themselves
_ROUNDING = 1e-12  # of a mean: what the order of a sum may make of the same figures
_SURE_FROM = 1e5  # degrees of freedom from which Student's distribution is taken for that of so many


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Repeats of one figure.

    Attributes:
        mean: of them.
        std: standard deviation of one; None of a single one.
        runs: how many.
    """

    mean: float
    std: float | None
    runs: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The central 90 % interval of the mean, by Student's distribution; None of a single run."""
        if self.std is None:
            return None
        reach = student(self.runs - 1) * self.std / math.sqrt(self.runs)
        return self.mean - reach, self.mean + reach


def spread(values: Sequence[float]) -> Spread | None:
    """Of some repeats; None of none."""
    if not values:
        return None
    mean, std = fmean(values), stdev(values) if len(values) > 1 else None
    if std is not None and std <= _ROUNDING * abs(mean):
        std = 0.0
    return Spread(mean=mean, std=std, runs=len(values))


def difference(a: Spread, b: Spread) -> tuple[float, float] | None:
    """The central 90 % interval of the mean of b less that of a; None where one of them was run once."""
    if a.std is None or b.std is None:
        return None
    parts = a.std**2 / a.runs, b.std**2 / b.runs
    between = b.mean - a.mean
    if sum(parts) == 0:
        sure = between if abs(between) > _ROUNDING * abs(a.mean) else 0.0
        return sure, sure
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (a.runs - 1) + parts[1] ** 2 / (b.runs - 1))
    reach = student(freedom) * math.sqrt(sum(parts))
    return between - reach, between + reach


@cache
def student(freedom: float) -> float:
    """What a central 90 % interval reaches to either side, in standard errors.

    With t = sqrt(nu) tan a, P(|T| < t) is the integral of cos^(nu - 1) from 0 to a, over that from 0 to pi / 2
    (Abramowitz & Stegun 1964, 26.7.1).

    Args:
        freedom: nu, 1 or more.
    """
    nu = min(max(freedom, 1.0), _SURE_FROM)
    widest = min(math.pi / 2, math.atan(60 / math.sqrt(nu)))  # beyond it, for large nu, there is nothing to sum up
    angles = np.linspace(0.0, widest if nu > 100 else math.pi / 2, _POINTS)
    density = np.cos(angles) ** (nu - 1)
    shares = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(nu) * math.tan(float(np.interp(INTERVAL, shares / shares[-1], angles)))
