"""A temperature sensor that stands still: a die that draws more warms within seconds, so a reading that stays the same
all the while is none.

Asked of the same trace when it is measured, to say so, and when it is fitted, to leave it out.
"""

from __future__ import annotations

import numpy as np

from moemodel.model.core.arrays import FloatArray

GAP_S = 1.5  # between readings: something else ran, or the profile was resumed
_NOISE_C = 1.0  # that a sensor may waver by where it stands still: one step of most
_STUCK_S = 10.0  # assumed: longer than any turn of loads that keeps a die within a degree
_WARMING_S = 2.0  # a few of a die's time constants (an H100's: 0.3 s)
_STUCK_W = 100.0  # that warm a die by two degrees at the 0.02 K/W of the best cold plates, and an H100's by five


def stuck_temperature(wall_s: FloatArray, power_W: FloatArray, temperature_C: FloatArray) -> str | None:
    """What shows that the temperature stood still where it cannot have; None where nothing does.

    Args:
        wall_s: time of each reading, in any order. [readings]
        power_W, temperature_C: read then; NaN where a sensor said nothing. [readings]
    """
    known = ~np.isnan(power_W) & ~np.isnan(temperature_C) & ~np.isnan(wall_s)
    order = np.flatnonzero(known)[np.argsort(wall_s[known])]
    wall_s, power_W, temperature_C = wall_s[order], power_W[order], temperature_C[order]
    if not len(order):
        return None
    still = np.ptp(temperature_C) <= _NOISE_C
    changed = ~still & (np.diff(temperature_C) != 0) | (np.diff(wall_s) > GAP_S)
    for same in np.split(np.arange(len(order)), np.flatnonzero(changed) + 1):
        lasted_s = wall_s[same[-1]] - wall_s[same[0]]
        low_W, high_W = _swing_W(wall_s[same], power_W[same])
        if lasted_s >= _STUCK_S and high_W - low_W > _STUCK_W:
            return (
                f"the temperature read {temperature_C[same[0]]:g} C for {lasted_s:.0f} s, while "
                f"power went from {low_W:.0f} to {high_W:.0f} W, so its sensor stands still"
            )
    return None


def _swing_W(wall_s: FloatArray, power_W: FloatArray) -> tuple[float, float]:
    """The lowest and highest mean power of stretches in which any die would have warmed; the last is cut off."""
    stretch = ((wall_s - wall_s[0]) // _WARMING_S).astype(np.int64)
    counts = np.bincount(stretch)[:-1]
    means_W = np.bincount(stretch, weights=power_W)[:-1][counts > 0] / counts[counts > 0]
    return (float(means_W.min()), float(means_W.max())) if len(means_W) else (0.0, 0.0)
