"""What clock a GPU really runs at: a slow limit on mean power and a fast one on the power of each operator.

Measured on an H100 with a 700 W cap: mean power over about a second stays at the cap, and bursts far shorter than that
settle near one higher power whatever clock is reported, because the hardware skips cycles. So

    fast:  f_op = min(f, the clock at which P(op, f_op) = P_fast)        each operator by itself
    slow:  f = the highest clock at which mean power over the step <= share x cap, with a share just below one

Both use the true SM clock, not the reported one. Left out: the seconds before the slow limit settles.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def fast_limit(power_W_UK: FloatArray, clock_Hz_K: FloatArray, limit_W: float) -> FloatArray:
    """Highest clock of each operator under the fast limit, [U]; the lowest clock where even that is above it.

    Args:
        power_W_UK: power of each operator at each clock; made non-decreasing in the clock.
        clock_Hz_K: ascending clocks.
        limit_W: the fast limit.
    """
    return crossing(np.maximum.accumulate(power_W_UK, axis=1), clock_Hz_K, np.full(len(power_W_UK), limit_W))


def crossing(rising_UK: FloatArray, clock_Hz_K: FloatArray, limit_U: FloatArray) -> FloatArray:
    """Clock at which a non-decreasing row reaches its limit, linear between the clocks given, [U]."""
    last = np.clip((rising_UK <= limit_U[:, None]).sum(axis=1) - 1, 0, len(clock_Hz_K) - 2)
    rows = np.arange(len(rising_UK))
    low, high = rising_UK[rows, last], rising_UK[rows, last + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(high > low, (limit_U - low) / (high - low), np.where(limit_U >= high, 1.0, 0.0))
    share = np.clip(share, 0.0, 1.0)
    return np.asarray(clock_Hz_K[last] + share * (clock_Hz_K[last + 1] - clock_Hz_K[last]))


def at_clock(values_UK: FloatArray, clock_Hz_K: FloatArray, clock_Hz_U: FloatArray) -> FloatArray:
    """Each row at its own clock, linear between the clocks given, [U]."""
    upper = np.clip(np.searchsorted(clock_Hz_K, clock_Hz_U), 1, len(clock_Hz_K) - 1)
    low, high = clock_Hz_K[upper - 1], clock_Hz_K[upper]
    share = np.clip((clock_Hz_U - low) / (high - low), 0.0, 1.0)
    rows = np.arange(len(values_UK))
    return np.asarray(values_UK[rows, upper - 1] * (1 - share) + values_UK[rows, upper] * share)


def time_at_clock(time_UK: FloatArray, clock_Hz_K: FloatArray, clock_Hz_U: FloatArray) -> FloatArray:
    """The same for times, linear in the period: exact for work that follows the clock, and for work that doesn't."""
    return at_clock(time_UK, -1 / clock_Hz_K, -1 / clock_Hz_U)


def hold(values_UK: FloatArray, clock_Hz_K: FloatArray, highest_Hz_U: FloatArray, highest_U: FloatArray) -> FloatArray:
    """Rows in which every clock above a row's highest one is replaced by its value `highest_U` there."""
    return np.where(clock_Hz_K[None, :] > highest_Hz_U[:, None], highest_U[:, None], values_UK)
