"""Marks by the host's clock, where the host is what a step waits for.

An event on a CUDA stream costs the host tens of microseconds inside a step (cold caches, the driver's way), a reading
of its own clock less than one. Where the device waits for the host, it gets to a mark a short and steady time after the
host made it. So that lag is learnt from steps that have both, mark by mark, and the steps between them are marked by
the host's clock alone: device time = host time + median lag of that mark. Every step that has both checks it; two that
are off begin the learning anew. Where the device is behind, its lag is neither short nor steady, and all steps have
events, which then cost nothing, for the host has time.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from statistics import median

# Steps with events before the first without, and then one among so many, drawn evenly: 16 in the mean (assumed: events
# then cost a sixteenth, and a change of the loop is seen within two seconds of steps of 70 ms).
_LEARNT = 8
_FEWEST, _MOST = 8, 24
_KEPT = 16  # steps with events, by whose median a lag is known
# Above these a lag is not steady, not short, or its step too long to gain anything (assumed; a hundredth of the phases
# of 10 ms that a counter's tick of 100 ms can tell apart).
_STEADY_S, _SHORT_S, _LONG_STEP_S = 1e-4, 1e-3, 0.5
_OFF_DEVIATIONS, _OFF_S = 6.0, 1e-4  # from the median: beyond both, a lag is off
_OFF_STEPS = 2  # running, in which one is: what was learnt does not hold; a single one is the host, interrupted
_DEVIATION = 1.4826  # over the median absolute deviation, of a normal distribution


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
        self._steps: deque[list[float]] = deque(maxlen=_KEPT)  # lags of their marks
        self._lag_s: list[float] = []  # of each mark: the median, and the deviation
        self._deviation_s: list[float] = []
        self._off = 0

    def learn(
        self, names: Sequence[str], host_s: Sequence[float], device_s: Sequence[float], idle_s: float = 0.0
    ) -> None:
        """One step's marks by both clocks.

        Args:
            names: of the step's phases.
            host_s, device_s: of its marks.
            idle_s: lag of a device that has nothing to do, beyond which lags count: how the two clocks were tied.
        """
        self.left = 0
        lags_s = [device - host - idle_s for host, device in zip(host_s, device_s, strict=True)]
        if tuple(names) != self._names:
            self._names = tuple(names)
            self._steps.clear()
        elif len(self._steps) >= _LEARNT:
            self._off = self._off + 1 if self._is_off(lags_s) else 0
            if self._off:
                if self._off >= _OFF_STEPS:
                    self._steps.clear()
                return
        self._steps.append(lags_s)
        if len(self._steps) < _LEARNT or host_s[-1] - host_s[0] > _LONG_STEP_S:
            return
        self._lag_s = [median(of_mark_s) for of_mark_s in zip(*self._steps, strict=True)]
        self._deviation_s = [
            _DEVIATION * median(abs(lag_s - middle_s) for lag_s in of_mark_s)
            for middle_s, of_mark_s in zip(self._lag_s, zip(*self._steps, strict=True), strict=True)
        ]
        if max(self._deviation_s) < _STEADY_S and self._lag_s[0] < _SHORT_S:
            self.noise_s = max(self.noise_s, *self._deviation_s)
            self.left = self._draw.randint(_FEWEST, _MOST)

    def times_s(self, names: Sequence[str], host_s: Sequence[float], idle_s: float = 0.0) -> list[float]:
        """When the device got to marks that the host's clock made, never backwards."""
        if self._synchronous or not self._lag_s:
            return list(host_s)
        if tuple(names) == self._names:
            lags_s = self._lag_s
        else:  # other phases than those learnt from: events again, and for this step the lag of its begin
            lags_s = [self._lag_s[0]] * len(host_s)
            self.left = 0
        times_s: list[float] = []
        for at_s, lag_s in zip(host_s, lags_s, strict=True):
            times_s.append(max(at_s + lag_s + idle_s, times_s[-1] if times_s else -math.inf))
        return times_s

    def _is_off(self, lags_s: Sequence[float]) -> bool:
        """Whether a mark's lag is far from what was learnt."""
        return len(self._lag_s) == len(lags_s) and any(
            abs(lag_s - middle_s) > max(_OFF_DEVIATIONS * deviation_s, _OFF_S)
            for lag_s, middle_s, deviation_s in zip(lags_s, self._lag_s, self._deviation_s, strict=True)
        )
