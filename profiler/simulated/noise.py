"""Noise with a memory: how the readings of a simulated GPU stray from the truth.

Errors of sensors and clocks are neither independent nor settled by waiting: their spectrum goes as 1/f. A sum of
relaxations whose times lie a decade apart has such a spectrum between them (van der Ziel 1950, Physica 16(4); Kasdin
1995, Proc. IEEE 83(5)), each an autoregressive process of the first order,

    x(t + dt) = x(t) exp(-dt/tau) + s sqrt(1 - exp(-2 dt/tau)) n,   n standard normal
"""

from __future__ import annotations

import math

import numpy as np

RELAXATIONS_S = (0.01, 0.1, 1.0, 10.0, 100.0)


class Flicker:
    """A relative error that wanders.

    Args:
        random: where its draws come from.
        deviation: standard deviation over a time longer than all relaxations.
    """

    def __init__(self, random: np.random.Generator, deviation: float) -> None:
        self._random = random
        self._each = deviation / math.sqrt(len(RELAXATIONS_S))
        self._parts = [self._each * float(n) for n in random.normal(size=len(RELAXATIONS_S))]
        self._time_s = 0.0

    def at(self, time_s: float) -> float:
        """The error at a time, which does not go back; at the same time again it is the same."""
        passed_s = max(0.0, time_s - self._time_s)
        if passed_s > 0:
            self._time_s = time_s
            draws = self._random.normal(size=len(RELAXATIONS_S)).tolist()
            kept = [math.exp(-passed_s / relaxation_s) for relaxation_s in RELAXATIONS_S]
            self._parts = [
                part * keep + self._each * math.sqrt(1 - keep * keep) * draw
                for part, keep, draw in zip(self._parts, kept, draws, strict=True)
            ]
        return sum(self._parts)
