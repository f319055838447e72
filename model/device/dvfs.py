"""What clock a GPU really runs at: a slow limit on power, and a fast one on the tensor cores.

Measured on H100s with a 700 W cap, nothing set by hand:

  * Kernels on the tensor cores run at a lower true clock than is set, in bursts far below the cap too, because the
    hardware skips cycles; kernels that draw as much without tensor cores don't (GELU, 698 W: 1965 MHz set and true).
    The true clock depends on how much of a kernel's time the tensor cores work, much less on its power.
  * Loads that alternate between much and little power, half a period each, draw 690 W in the mean for half a period up
    to 12 ms, 682 W at 30 ms, 664 W at 60 ms, 654 W at 120 ms, and the clock moves between them by some MHz in each ms.

So

    fast:  1/f = u/f_t + (1 - u)/f_set,  f_t = (f_set^-p + f_tensor^-p)^(-1/p)        each operator by itself
           u share of its time in which the tensor cores work: its FLOPs over what they could do in it
    slow:  df_set/dt = gain (share x cap - P), f_set <= the highest clock: an integral controller

While the clock stays below the highest, the slow limit holds mean power at share x cap; a stretch of low power longer
than the clock needs to recover gives away what it could have drawn. Both give the true SM clock, not the reported one.
Left out: the two seconds before the slow limit settles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray, at_rows, largest, largest_so_far

_ROUNDS = 3  # of clocks and the times that stretches take at them
_STEADY = 1e-4  # of a clock: what moves more in the last of them is not settled
_MORE_ROUNDS = 20  # for the few of thousands of random plans that are not; 40 move none of 3,800 by 0.002 %
_HALVINGS = 14  # of the range of clocks: 0.1 MHz
_NEAR = 0.04  # assumed, of a clock: where its power is taken for a straight line; half or twice moves energies by 0.5 %
_ENDLESS_W = 1e6  # in place of an infinite limit: above any GPU, and arithmetic stays finite
_SOON = 1e-7  # of a clock, in the mean of a stretch: what is below the highest by less does not move its power
_LEAST_SLOPE = 1e-8  # W/Hz: power that hardly knows the clock, 10 W over 1 GHz; a lag is its inverse


@dataclass(frozen=True, kw_only=True)
class TensorLimit:
    """The fast limit.

    Attributes:
        clock_Hz: f_tensor; infinite where none is known.
        sharpness: p.
    """

    clock_Hz: float
    sharpness: float

    def true_clock_Hz(self, set_Hz_K: FloatArray, tensor_use_UK: FloatArray) -> FloatArray:
        """f at clocks that are set, [U, K].

        Args:
            set_Hz_K: f_set.
            tensor_use_UK: u, 0 to 1.
        """
        limited_K = set_Hz_K * (1 + (set_Hz_K / self.clock_Hz) ** self.sharpness) ** (-1 / self.sharpness)
        return np.asarray(1 / (tensor_use_UK / limited_K + (1 - tensor_use_UK) / set_Hz_K))


@dataclass(frozen=True, kw_only=True)
class PowerSegment:
    """Part of a cycle that repeats itself for ever, under one mean power.

    Attributes:
        time_s_UK: how long it takes at each clock, in each of some cycles.
        power_W_UK: what it draws there.
        row_P: which of these cycles each of P is, that differ in their bounds alone; None: they are one for one.
    """

    time_s_UK: FloatArray
    power_W_UK: FloatArray
    row_P: IntArray | None = None

    def take(self, rows: NDArray[np.int64]) -> PowerSegment:
        """The same of the cycles at these rows."""
        return replace(self, row_P=rows if self.row_P is None else self.row_P[rows])

    def rising(self) -> PowerSegment:
        """The same, with a power that falls at no higher clock."""
        return replace(self, power_W_UK=largest_so_far(self.power_W_UK))


_Solver = Callable[[Sequence[PowerSegment], FloatArray, FloatArray, FloatArray, float], list[FloatArray]]


def steady_state_clocks(
    cycle: Sequence[PowerSegment],
    clock_Hz_K: FloatArray,
    *,
    limit_W_P: FloatArray,
    highest_Hz_P: FloatArray,
    gain_Hz_per_J: float,
) -> list[FloatArray]:
    """Mean clock that is set in each stretch of a cycle once it has settled, [P] each.

    In a stretch the clock moves at gain x (limit - P(f)), and no higher than allowed. With P(f) a straight line this is
    an exponential approach to the clock f_i at which the stretch alone would draw the limit (beyond the highest
    clock, if it never does), with the time constant 1 / (gain dP/df). A cycle must end at the clock it began with: that
    clock is found by bisection, since what a cycle makes of it rises less steeply than itself.

    Args:
        cycle: its stretches, in order.
        clock_Hz_K: ascending clocks.
        limit_W_P: slow limit on power.
        highest_Hz_P: highest clock that may be set.
        gain_Hz_per_J: how fast the clock answers.
    """
    limit_W_P = np.minimum(limit_W_P, _ENDLESS_W)
    clocks = list(np.empty((len(cycle), len(highest_Hz_P))))
    held = np.ones(len(highest_Hz_P), dtype=np.bool_)

    def solve(rows: IntArray, solver: _Solver) -> FloatArray:
        some = [stretch.take(rows) for stretch in cycle]
        found = solver(some, clock_Hz_K, limit_W_P[rows], highest_Hz_P[rows], gain_Hz_per_J)
        for clock, kept in zip(clocks, found, strict=True):
            clock[rows] = kept
        return np.asarray(found)

    free = np.flatnonzero(_is_free(cycle, clock_Hz_K, limit_W_P, highest_Hz_P))
    if len(free):
        found = solve(free, _free_clocks)
        held[free] = (np.abs(found - highest_Hz_P[free]) > _SOON * found).any(axis=0)
    if held.any():
        solve(np.flatnonzero(held), _held_clocks)
    return clocks


def _is_free(
    cycle: Sequence[PowerSegment], clock_Hz_K: FloatArray, limit_W_P: FloatArray, highest_Hz_P: FloatArray
) -> BoolArray:
    """Cycles that the limit holds back in no stretch, not where its power is taken for a straight line, [P]: they draw
    no more at the next of the clocks given, nor at any lower one."""
    worst_UK = largest_so_far(largest([stretch.power_W_UK for stretch in cycle]))
    above = np.minimum(np.searchsorted(clock_Hz_K, (1 + _NEAR) * highest_Hz_P), len(clock_Hz_K) - 1)
    rows = np.arange(len(worst_UK)) if cycle[0].row_P is None else cycle[0].row_P
    return np.asarray(worst_UK[rows, above] <= limit_W_P)


def _free_clocks(
    cycle: Sequence[PowerSegment],
    clock_Hz_K: FloatArray,
    limit_W_P: FloatArray,
    highest_Hz_P: FloatArray,
    gain_Hz_per_J: float,
) -> list[FloatArray]:
    """Clocks of cycles that nothing holds back, if they reach the highest soon: that, but for the first stretch or two.
    They begin with where the bisection for those that something does hold back would end."""
    begin = highest_Hz_P - (highest_Hz_P - clock_Hz_K[0]) / 2 ** (_HALVINGS + 1)
    clocks = []
    for stretch in cycle:
        clock, rows = highest_Hz_P.copy(), np.flatnonzero(begin != highest_Hz_P)
        if len(rows):
            some, limit_W, highest_Hz = stretch.take(rows).rising(), limit_W_P[rows], highest_Hz_P[rows]
            move = _clock_response(some, clock_Hz_K, highest_Hz, limit_W, highest_Hz, gain_Hz_per_J)
            time = time_at_clock(some.time_s_UK, clock_Hz_K, highest_Hz, some.row_P)
            keep = np.exp(-time / move.lag_s)
            clock[rows] = np.where(time > 0, move.mean(begin[rows], keep, time), highest_Hz)
            begin[rows] = move.end(begin[rows], keep)
        clocks.append(clock)
    return clocks


def _held_clocks(
    cycle: Sequence[PowerSegment],
    clock_Hz_K: FloatArray,
    limit_W_P: FloatArray,
    highest_Hz_P: FloatArray,
    gain_Hz_per_J: float,
) -> list[FloatArray]:
    """Clocks of cycles that the limit holds back in some stretch, or may."""
    whole = _Cycle.of([stretch.rising() for stretch in cycle], limit_W_P, highest_Hz_P)
    clocks = before = _alone(whole.segments, clock_Hz_K, whole.limit_W, whole.highest_Hz).reshape(whole.shape)
    for _ in range(_ROUNDS):
        before, clocks = clocks, _settled(whole, clocks, clock_Hz_K, gain_Hz_per_J)
    rows = np.flatnonzero((np.abs(clocks - before) > _STEADY * clocks).any(axis=0))
    if len(rows):
        some, found = whole.take(rows), clocks[:, rows]
        for _ in range(_MORE_ROUNDS):
            found = _settled(some, found, clock_Hz_K, gain_Hz_per_J)
        clocks[:, rows] = found
    return list(clocks)


@dataclass(frozen=True, kw_only=True)
class _Cycle:
    """Cycles whose stretches stand one behind another, [S x P], each in all P cycles: they are asked about together,
    since a single plan's time is that of numpy's calls.

    Attributes:
        segments: the stretches.
        limit_W, highest_Hz: slow limit on power, and highest clock that may be set, of each.
        shape: stretches and cycles, [S, P].
    """

    segments: PowerSegment
    limit_W: FloatArray
    highest_Hz: FloatArray
    shape: tuple[int, int]

    @classmethod
    def of(cls, stretches: Sequence[PowerSegment], limit_W_P: FloatArray, highest_Hz_P: FloatArray) -> _Cycle:
        """Of stretches in order."""
        priced, count = len(stretches[0].time_s_UK), len(stretches)
        row_P = np.arange(priced) if stretches[0].row_P is None else stretches[0].row_P
        together = PowerSegment(
            time_s_UK=_one_below_another([stretch.time_s_UK for stretch in stretches]),
            power_W_UK=_one_below_another([stretch.power_W_UK for stretch in stretches]),
            row_P=np.concatenate([place * priced + row_P for place in range(count)]),
        )
        return cls(
            segments=together,
            limit_W=np.tile(limit_W_P, count),
            highest_Hz=np.tile(highest_Hz_P, count),
            shape=(count, len(row_P)),
        )

    def take(self, rows: IntArray) -> _Cycle:
        """Some cycles."""
        every = (np.arange(self.shape[0])[:, None] * self.shape[1] + rows).ravel()
        return _Cycle(
            segments=self.segments.take(every),
            limit_W=self.limit_W[every],
            highest_Hz=self.highest_Hz[every],
            shape=(self.shape[0], len(rows)),
        )


def _one_below_another(values_UK: Sequence[FloatArray]) -> FloatArray:
    """Rows of several arrays in one, stored clock by clock."""
    return np.concatenate([values.T for values in values_UK], axis=1).T


def _settled(cycle: _Cycle, clocks_SP: FloatArray, clock_Hz_K: FloatArray, gain_Hz_per_J: float) -> FloatArray:
    """Mean clocks of a cycle whose powers, which rise, and times are taken at some clocks, [S, P]."""
    parts, clocks = cycle.segments, clocks_SP.ravel()
    move = _clock_response(parts, clock_Hz_K, clocks, cycle.limit_W, cycle.highest_Hz, gain_Hz_per_J)
    time = time_at_clock(parts.time_s_UK, clock_Hz_K, clocks, parts.row_P)
    keep = np.exp(-time / move.lag_s)
    pulled_SP, keep_SP = (move.target_Hz * (1 - keep)).reshape(cycle.shape), keep.reshape(cycle.shape)
    highest_Hz_P = cycle.highest_Hz[: cycle.shape[1]]
    low, high = np.full_like(highest_Hz_P, clock_Hz_K[0]), highest_Hz_P
    gain, offset_Hz, least_Hz, most_Hz = _whole_cycle(pulled_SP, keep_SP, move.lowest_Hz, highest_Hz_P)
    for _ in range(_HALVINGS):
        begin = (low + high) / 2
        rises = _between(gain * begin + offset_Hz, least_Hz, most_Hz) > begin
        low, high = np.where(rises, begin, low), np.where(rises, high, begin)
    at = [(low + high) / 2]
    for target_Hz, kept in zip(move.target_Hz.reshape(cycle.shape)[:-1], keep_SP, strict=False):
        at.append(_ended_Hz(target_Hz, at[-1], kept, move.lowest_Hz, highest_Hz_P))
    return move.mean(np.concatenate(at), keep, time).reshape(cycle.shape)


def _whole_cycle(
    pulled_Hz_SP: FloatArray, keep_SP: FloatArray, lowest_Hz: float, highest_Hz_P: FloatArray
) -> tuple[FloatArray | float, FloatArray | float, FloatArray | float, FloatArray | float]:
    """Where a cycle ends that began at a clock, as gain x clock + offset between a least and a most: every stretch of
    it ends so (`_ClockResponse.end`), and with gains above nothing one behind another do too.

    Args:
        pulled_Hz_SP: the share of its way to its target that each stretch goes, times that target.
        keep_SP: the share that it does not.
        lowest_Hz, highest_Hz_P: no cycle begins below or above these.
    """
    gain: FloatArray | float = 1.0
    offset: FloatArray | float = 0.0
    least: FloatArray | float = lowest_Hz
    most: FloatArray | float = highest_Hz_P
    for pulled_Hz, keep in zip(pulled_Hz_SP, keep_SP, strict=True):
        gain, offset = gain * keep, offset * keep + pulled_Hz
        least = _between(least * keep + pulled_Hz, lowest_Hz, highest_Hz_P)
        most = _between(most * keep + pulled_Hz, lowest_Hz, highest_Hz_P)
    return gain, offset, least, most


@dataclass(frozen=True, kw_only=True)
class _ClockResponse:
    """How the clock moves in a stretch: towards a target, with a lag, within bounds. [P] each."""

    target_Hz: FloatArray
    lag_s: FloatArray
    lowest_Hz: float
    highest_Hz: FloatArray

    def end(self, begin_Hz: FloatArray, keep: FloatArray) -> FloatArray:
        """Where it gets to; `keep` is exp(-time / lag)."""
        return _ended_Hz(self.target_Hz, begin_Hz, keep, self.lowest_Hz, self.highest_Hz)

    def mean(self, begin_Hz: FloatArray, keep: FloatArray, time_s: FloatArray) -> FloatArray:
        """Mean over the stretch; the time at the highest clock counts from when it was reached."""
        way_Hz = self.target_Hz - begin_Hz
        with np.errstate(divide="ignore", invalid="ignore"):
            left = (self.target_Hz - self.highest_Hz) / way_Hz  # of the way, where the highest clock is reached
            reaches = (self.target_Hz > self.highest_Hz) & (left > keep) & (left <= 1)
            reached_s = np.where(reaches, -self.lag_s * np.log(left), time_s)
            reached_s = np.minimum(reached_s, time_s)
            rising = self.target_Hz * reached_s - way_Hz * self.lag_s * -np.expm1(-reached_s / self.lag_s)
            mean = (rising + self.highest_Hz * (time_s - reached_s)) / time_s
        return _between(np.where(time_s > 0, mean, begin_Hz), self.lowest_Hz, self.highest_Hz)


def _ended_Hz(
    target_Hz: FloatArray, begin_Hz: FloatArray, keep: FloatArray, lowest_Hz: float, highest_Hz: FloatArray
) -> FloatArray:
    """Where a clock gets to that keeps a share of its way to a target."""
    return _between(target_Hz + (begin_Hz - target_Hz) * keep, lowest_Hz, highest_Hz)


def _alone(
    stretch: PowerSegment, clock_Hz_K: FloatArray, limit_W_P: FloatArray, highest_Hz_P: FloatArray
) -> FloatArray:
    """Clock at which a stretch that lasts for ever settles."""
    held_Hz = crossing(stretch.power_W_UK, clock_Hz_K, limit_W_P, stretch.row_P)
    return _between(held_Hz, clock_Hz_K[0], highest_Hz_P)


def _clock_response(
    stretch: PowerSegment,
    clock_Hz_K: FloatArray,
    about_Hz_P: FloatArray,
    limit_W_P: FloatArray,
    highest_Hz_P: FloatArray,
    gain_Hz_per_J: float,
) -> _ClockResponse:
    """Target and lag of a stretch, its power taken for a straight line about a clock."""
    below_Hz = np.maximum((1 - _NEAR) * about_Hz_P, clock_Hz_K[0])
    above_Hz = np.minimum((1 + _NEAR) * about_Hz_P, clock_Hz_K[-1])
    below_W, above_W = (_power_at(stretch, clock_Hz_K, clock_Hz) for clock_Hz in (below_Hz, above_Hz))
    slope = np.maximum((above_W - below_W) / np.maximum(above_Hz - below_Hz, 1.0), _LEAST_SLOPE)
    here_W = below_W + slope * (about_Hz_P - below_Hz)
    return _ClockResponse(
        target_Hz=about_Hz_P + (limit_W_P - here_W) / slope,
        lag_s=1 / (gain_Hz_per_J * slope),
        lowest_Hz=float(clock_Hz_K[0]),
        highest_Hz=highest_Hz_P,
    )


def _power_at(stretch: PowerSegment, clock_Hz_K: FloatArray, clock_Hz_P: FloatArray) -> FloatArray:
    """Power of a stretch at one clock for each cycle, within those given, [P]: its energy, linear in the clock, over
    its time, linear in the period, as both are priced between the clocks (`at_clock`, `time_at_clock`)."""
    upper = np.minimum(np.maximum(np.searchsorted(clock_Hz_K, clock_Hz_P), 1), len(clock_Hz_K) - 1)
    low, high = clock_Hz_K[upper - 1], clock_Hz_K[upper]
    share = (clock_Hz_P - low) / (high - low)
    period_share = share * high / clock_Hz_P
    low_W, high_W = _about(stretch.power_W_UK, upper, stretch.row_P)
    low_s, high_s = _about(stretch.time_s_UK, upper, stretch.row_P)
    energy_J = low_W * low_s * (1 - share) + high_W * high_s * share
    time_s = low_s * (1 - period_share) + high_s * period_share
    mean_W: FloatArray = np.divide(energy_J, time_s, out=low_W * (1 - share) + high_W * share, where=time_s > 0)
    return mean_W


def _between(values: FloatArray, low: FloatArray | float, high: FloatArray | float) -> FloatArray:
    """`numpy.clip`, in a third of its time on the small arrays of a single plan."""
    return np.asarray(np.minimum(np.maximum(values, low), high))


def crossing(
    rising_UK: FloatArray, clock_Hz_K: FloatArray, limit_P: FloatArray, row_P: IntArray | None = None
) -> FloatArray:
    """Clock at which a non-decreasing row reaches its limit, linear between the clocks given, [P].

    `row_P`: which row each is; None: they are one for one.
    """
    rows_PK = rising_UK if row_P is None else at_rows(rising_UK, row_P)
    last = np.clip((rows_PK <= limit_P[:, None]).sum(axis=1) - 1, 0, len(clock_Hz_K) - 2)
    low, high = _about(rows_PK, last + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(high > low, (limit_P - low) / (high - low), np.where(limit_P >= high, 1.0, 0.0))
    share = _between(share, 0.0, 1.0)
    return np.asarray(clock_Hz_K[last] + share * (clock_Hz_K[last + 1] - clock_Hz_K[last]))


def at_clock(
    values_UK: FloatArray, clock_Hz_K: FloatArray, clock_Hz_P: FloatArray, row_P: IntArray | None = None
) -> FloatArray:
    """Each row at its own clock, linear between the clocks given, [P]; `row_P` as in `crossing`."""
    return ClockPlaces.of(clock_Hz_K, clock_Hz_P, len(values_UK), row_P).linear(values_UK)


@dataclass(frozen=True, kw_only=True)
class ClockPlaces:
    """Where clocks of some rows lie between those that they are priced at, looked up once for all that is read there.

    Attributes:
        below_P, above_P: place of each row's value at the next lower and the next higher of these, among the values of
            all rows at the lowest clock, those at the next one behind them, and so on.
        low_Hz_P, high_Hz_P: these two clocks.
        clock_Hz_P: the clocks themselves.
    """

    below_P: IntArray
    above_P: IntArray
    low_Hz_P: FloatArray
    high_Hz_P: FloatArray
    clock_Hz_P: FloatArray

    @classmethod
    def of(
        cls, clock_Hz_K: FloatArray, clock_Hz_P: FloatArray, rows: int, row_P: IntArray | None = None
    ) -> ClockPlaces:
        """Of so many rows; `row_P` as in `crossing`."""
        upper_P = np.minimum(np.maximum(np.searchsorted(clock_Hz_K, clock_Hz_P), 1), len(clock_Hz_K) - 1)
        above_P = rows * upper_P + (np.arange(rows) if row_P is None else row_P)
        return cls(
            below_P=above_P - rows,
            above_P=above_P,
            low_Hz_P=clock_Hz_K.take(upper_P - 1),
            high_Hz_P=clock_Hz_K.take(upper_P),
            clock_Hz_P=clock_Hz_P,
        )

    def linear(self, values_UK: FloatArray) -> FloatArray:
        """Values that are linear in the clock, [P]."""
        return self._mean(*self.beside(values_UK), self._share_P)

    def times(self, time_UK: FloatArray) -> FloatArray:
        """Times, linear in the period, [P]: exact for work that follows the clock, and for work that doesn't."""
        return self._mean(*self.beside(time_UK), self._period_share_P)

    def cycles(self, cycles_UK: FloatArray) -> FloatArray:
        """Clock cycles, which over the clock are linear in the period, as times are, [P]."""
        below, above = self.beside(cycles_UK)
        return self._mean(below / self.low_Hz_P, above / self.high_Hz_P, self._period_share_P) * self.clock_Hz_P

    def beside(self, values_UK: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Values at the lower and at the higher clock, [P] each."""
        flat = np.asfortranarray(values_UK).T.reshape(-1)
        return flat.take(self.below_P), flat.take(self.above_P)

    @staticmethod
    def _mean(below: FloatArray, above: FloatArray, share_P: FloatArray) -> FloatArray:
        return np.asarray(below * (1 - share_P) + above * share_P)

    @cached_property
    def _share_P(self) -> FloatArray:
        """Of the way from the lower clock to the higher one."""
        return _between((self.clock_Hz_P - self.low_Hz_P) / (self.high_Hz_P - self.low_Hz_P), 0.0, 1.0)

    @cached_property
    def _period_share_P(self) -> FloatArray:
        """Of the way between their periods, which fall."""
        period, lowest, highest = -1 / self.clock_Hz_P, -1 / self.low_Hz_P, -1 / self.high_Hz_P
        return _between((period - lowest) / (highest - lowest), 0.0, 1.0)


def _about(values_UK: FloatArray, upper_P: IntArray, row_P: IntArray | None = None) -> tuple[FloatArray, FloatArray]:
    """Of each row the value before a place, and there, [P] each: half the time of an index for either axis."""
    cycles = len(values_UK)
    place = cycles * upper_P + (np.arange(cycles) if row_P is None else row_P)
    flat = np.asfortranarray(values_UK).T.reshape(-1)
    return flat.take(place - cycles), flat.take(place)


def time_at_clock(
    time_UK: FloatArray, clock_Hz_K: FloatArray, clock_Hz_P: FloatArray, row_P: IntArray | None = None
) -> FloatArray:
    """The same for times, linear in the period (`ClockPlaces.times`)."""
    return ClockPlaces.of(clock_Hz_K, clock_Hz_P, len(time_UK), row_P).times(time_UK)


def time_at_clocks(time_UK: FloatArray, clock_Hz_K: FloatArray, clock_Hz_UK: FloatArray) -> FloatArray:
    """Times of each row at several clocks of its own, linear in the period; clocks lie within those given, [U, K]."""
    return _at_clocks(time_UK, -1 / clock_Hz_K, -1 / clock_Hz_UK)


def at_clocks(values_UK: FloatArray, clock_Hz_K: FloatArray, clock_Hz_UK: FloatArray) -> FloatArray:
    """Each row at several clocks of its own, linear between the clocks given, [U, K]."""
    return _at_clocks(values_UK, clock_Hz_K, clock_Hz_UK)


def _at_clocks(values_UK: FloatArray, x_K: FloatArray, x_UK: FloatArray) -> FloatArray:
    upper_UK = np.clip(np.searchsorted(x_K, x_UK), 1, len(x_K) - 1)
    low, high = x_K[upper_UK - 1], x_K[upper_UK]
    share = np.clip((x_UK - low) / (high - low), 0.0, 1.0)
    rows = np.arange(len(values_UK))[:, None]
    below = values_UK[rows, upper_UK - 1]
    return np.asarray(below + share * (values_UK[rows, upper_UK] - below))
