"""From operations that mix clocks to clocks that the GPU has, never slower than asked.

Every choice is rounded to the slowest clock at which it is no slower than the mix, so that the step meets its deadline.
What that leaves of it goes to the choices that save most for each second, one step of the clock at a time, as long as
the longest path allows; time that an operation does not find once it does not find later, since the others only get
slower. Where much is left to gain and choices are few, each is then sped up by a step, and the others have its time, as
long as that saves; and the same is done from the next slower clocks, sped up until the step meets its deadline.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.frontier.choices import Choice
from moemodel.model.frontier.paths import Paths

_FEW = 64  # choices: up to so many, exchanges are tried
_ROUNDING = 1e-12  # of an operation's time or energy


@dataclass(kw_only=True)
class Clocks:
    """A clock for each choice, and how long the step takes with them. N operations.

    Attributes:
        paths, choices: of the pipeline.
        option: which of its clocks each choice has.
    """

    paths: Paths
    choices: Sequence[Choice]
    option: list[int]
    _time_s_N: list[float] = field(init=False)
    _heads_s: list[float] = field(init=False)
    _tails_s: list[float] = field(init=False)
    _single: bool = field(init=False)

    def __post_init__(self) -> None:
        self._time_s_N = [0.0] * len(self.paths.order)
        self._single = all(len(choice.members) == 1 for choice in self.choices)
        self._measure(range(len(self.choices)))

    @property
    def step_s(self) -> float:
        """From the first operation to the end of the last."""
        return self.paths.ends_s(self._heads_s, self._time_s_N)

    @property
    def cost_J(self) -> float:
        """Of the choices, less what waiting as long would need."""
        return sum(float(choice.cost_J[k]) for choice, k in zip(self.choices, self.option, strict=True))

    def slow(self, g: int, deadline_s: float) -> bool:
        """Gives a choice its next slower clock, if the step meets the deadline with it."""
        choice, k = self.choices[g], self.option[g]
        if self._single:
            i = choice.members[0]
            if self._heads_s[i] + float(choice.time_s[0, k + 1]) + self._tails_s[i] > deadline_s:
                return False
        self.take({g: k + 1})
        if not self._single and self.step_s > deadline_s:
            self.take({g: k})
            return False
        return True

    def critical(self) -> list[int]:
        """Choices whose operations a longest path leads through."""
        tails_s, least_s = self.paths.tails_s(self._time_s_N), self.step_s * (1 - _ROUNDING)
        paths_s = [h + t + tail for h, t, tail in zip(self._heads_s, self._time_s_N, tails_s, strict=True)]
        return [g for g, choice in enumerate(self.choices) if max(paths_s[i] for i in choice.members) >= least_s]

    def take(self, options: dict[int, int]) -> None:
        """Gives some choices other clocks."""
        for g, k in options.items():
            self.option[g] = k
        self._measure(options)

    def _measure(self, changed: Sequence[int] | range | dict[int, int]) -> None:
        for g in changed:
            choice = self.choices[g]
            for i, time_s in zip(choice.members, choice.time_s[:, self.option[g]].tolist(), strict=True):
                self._time_s_N[i] = time_s
        self._heads_s = self.paths.heads_s(self._time_s_N)
        if self._single:
            self._tails_s = self.paths.tails_s(self._time_s_N)


def few(choices: Sequence[Choice]) -> bool:
    """Whether there is time for more than rounding."""
    return len(choices) <= _FEW


def rounded_down(choices: Sequence[Choice], operation_s: FloatArray) -> list[int]:
    """The slowest clock of each choice at which no operation takes longer than it may.

    Args:
        choices: to make.
        operation_s: what each operation may take, [N].
    """
    return [_slowest_within(choice, operation_s[choice.members]) for choice in choices]


def _slowest_within(choice: Choice, allowed_s: FloatArray) -> int:
    fits = np.flatnonzero((choice.time_s <= allowed_s[:, None] * (1 + _ROUNDING)).all(axis=0))
    return int(fits[-1]) if len(fits) else 0


def hurry(clocks: Clocks, deadline_s: float) -> None:
    """Speeds up what loses least for each second, until the step meets its deadline."""
    while clocks.step_s > deadline_s:
        slowed = [g for g in clocks.critical() if clocks.option[g] > 0]
        if not slowed:
            return
        g = min(slowed, key=lambda g: clocks.choices[g].gains_W[clocks.option[g] - 1])
        clocks.take({g: clocks.option[g] - 1})


def fill(clocks: Clocks, deadline_s: float) -> None:
    """Slows what saves most for each second, within a deadline that the clocks meet, until nothing can be slowed."""
    _fill(clocks, deadline_s, last=None)


def exchange(clocks: Clocks, deadline_s: float, *, enough_J: float) -> None:
    """Speeds up one choice for others, as long as that saves.

    Args:
        clocks: are changed.
        deadline_s: of the step, which they meet.
        enough_J: at this cost of the choices, no more time is spent on them.
    """
    last_J = float("inf")
    while enough_J < clocks.cost_J < last_J:
        last_J = clocks.cost_J
        for g in range(len(clocks.choices)):
            _exchange(clocks, g, deadline_s)


def _fill(clocks: Clocks, deadline_s: float, *, last: int | None) -> None:
    """Until no choice can be slowed; one of them after all others."""
    heap = [entry for g in range(len(clocks.choices)) if (entry := _gain(clocks, g, last)) is not None]
    heapq.heapify(heap)
    while heap:
        _, _, g = heapq.heappop(heap)
        if clocks.slow(g, deadline_s) and (entry := _gain(clocks, g, last)) is not None:
            heapq.heappush(heap, entry)


def _gain(clocks: Clocks, g: int, last: int | None) -> tuple[bool, float, int] | None:
    """Place of a choice among those that wait to be slowed: less what it saves for each second."""
    gains, k = clocks.choices[g].gains_W, clocks.option[g]
    return (g == last, -gains[k], g) if k < len(gains) else None


def _exchange(clocks: Clocks, g: int, deadline_s: float) -> None:
    """Speeds a choice up by one step, and lets the others have its time; goes back unless that saves."""
    if clocks.option[g] == 0:
        return
    before, cost_J = list(clocks.option), clocks.cost_J
    clocks.take({g: clocks.option[g] - 1})
    _fill(clocks, deadline_s, last=g)
    if clocks.cost_J >= cost_J - _ROUNDING * abs(cost_J):
        clocks.take({other: k for other, k in enumerate(before) if clocks.option[other] != k})
