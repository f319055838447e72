"""Marks by the host's clock, where the host is what a step waits for.

An event on a CUDA stream costs the host tens of microseconds inside a step (cold caches, the driver's way), a reading
of its own clock less than one. Where the device waits for the host, it gets to a mark a short and steady time after the
host made it. So that lag is learnt from steps that have both, mark by mark, and the steps between them are marked by
the host's clock alone: device time = host time + mean lag of that mark. Every step that has both checks it; one that is
off begins the learning anew. Where the device is behind, its lag is neither short nor steady, and all steps have
events, which then cost nothing, for the host has time.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

# Steps with events before the first without, and then one among so many, drawn evenly: 16 in the mean (assumed: events
# then cost a sixteenth, and a change of the loop is seen within two seconds of steps of 70 ms).
_LEARNT = 8
_FEWEST, _MOST = 8, 24
# Above these a lag is not steady, not short, or its step too long to gain anything (assumed; a hundredth of the phases
# of 10 ms that a counter's tick of 100 ms can tell apart).
_STEADY_S, _SHORT_S, _LONG_STEP_S = 1e-4, 1e-3, 0.5
_OFF_DEVIATIONS, _OFF_S = 6.0, 1e-4  # from the mean: beyond both, what was learnt does not hold any more
_WEIGHT = 1 / 16  # of a new lag in the running mean, once there are as many


class HostLag:
    """How far a device is behind the host at each mark of a step.

    Args:
        synchronous: the device has done its work when a call returns: the host's clock is the device's.

    Attributes:
        left: steps that may be marked by the host's clock alone before the next one with events.
        noise_s: how exactly such marks are known: the largest deviation of a lag among those that were used.
    """

    def __init__(self, *, synchronous: bool = False) -> None:
        self.left = 1 << 62 if synchronous else 0
        self.noise_s = 0.0
        self._synchronous = synchronous
        self._draw = random.Random(0)
        self._names: tuple[str, ...] = ()  # of the phases of the steps that were learnt from
        self._count = 0
        self._mean_s: list[float] = []
        self._square_s2: list[float] = []

    def learn(self, names: Sequence[str], host_s: Sequence[float], device_s: Sequence[float]) -> None:
        """One step's marks by both clocks."""
        lags_s = [device - host for host, device in zip(host_s, device_s, strict=True)]
        self.left = 0
        if tuple(names) != self._names or not self._holds(lags_s):
            self._names, self._count = tuple(names), 0
            self._mean_s, self._square_s2 = [0.0] * len(lags_s), [0.0] * len(lags_s)
        self._count += 1
        weight = max(1 / self._count, _WEIGHT)
        for i, lag_s in enumerate(lags_s):
            off_s = lag_s - self._mean_s[i]
            self._mean_s[i] += weight * off_s
            self._square_s2[i] = (1 - weight) * (self._square_s2[i] + weight * off_s * off_s)
        worst_s = math.sqrt(max(self._square_s2))
        short = abs(self._mean_s[0]) < _SHORT_S and host_s[-1] - host_s[0] < _LONG_STEP_S
        if self._count >= _LEARNT and worst_s < _STEADY_S and short:
            self.noise_s = max(self.noise_s, worst_s)
            self.left = self._draw.randint(_FEWEST, _MOST)

    def times_s(self, names: Sequence[str], host_s: Sequence[float]) -> list[float]:
        """When the device got to marks that the host's clock made, never backwards."""
        if self._synchronous or not self._mean_s:
            return list(host_s)
        if tuple(names) == self._names:
            lags_s = self._mean_s
        else:  # other phases than those learnt from: events again, and for this step the lag of its begin
            lags_s = [self._mean_s[0]] * len(host_s)
            self.left = 0
        times_s: list[float] = []
        for at_s, lag_s in zip(host_s, lags_s, strict=True):
            times_s.append(max(at_s + lag_s, times_s[-1] if times_s else -math.inf))
        return times_s

    def _holds(self, lags_s: Sequence[float]) -> bool:
        if self._count < _LEARNT:
            return True
        return all(
            abs(lag_s - mean_s) <= max(_OFF_DEVIATIONS * math.sqrt(square_s2), _OFF_S)
            for lag_s, mean_s, square_s2 in zip(lags_s, self._mean_s, self._square_s2, strict=True)
        )
