"""When to run and how fast, as a mixed-integer linear programme (HiGHS by scipy).

Axes: T slots of time, K clocks. Of every slot t, of L hours and a price w of energy (carbon, or money, per kWh):

    x_TK, idle, after [h]     at a clock; waiting in a slot that it runs in; what is left of the last one
    u, start, stop, held      1 if it runs in the slot, begins in it, ends with it; if it has not yet ended in it

    sum_k x + idle + after + begin + write = L u      begin, write: hours of starting and of a checkpoint in it
    u_t - u_(t-1) = start_t - stop_(t-1)              it is off before the first slot, and after the last
    idle <= L (start + stop)                          nobody waits between two slots that it runs in
    after <= L (held_t - held_(t+1))                  what follows the end costs nothing
    sum r x = 1                                       r: share of the run in an hour at a clock

    cost = sum w (sum_k P_k x + P_standing (begin + write) + P_off (L (held - u) + idle)) + g (hours paid)

A pause costs a checkpoint before it and a start after it; so do the run's own beginning and end. A start begins with
its slot where it is longer than that. For a given u the rest is a linear programme with one constraint across slots:
an optimum has one clock an hour, and two in one of them. `start`, `stop` and `held` follow from u; only u is whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.errors import InputError

_GAP = 1e-8  # relative, of the best to a bound on all
# Of an hour's cost, for the last slot over the first: of schedules that cost the same, the earliest.
_LATE = 1e-6
_SCALE = 1e5  # largest cost of a variable as HiGHS sees it, whose gap is absolute, too (1e-6)
_ROUNDING_H = 1e-6  # 4 ms
_OUT_OF_TIME = 1  # `milp`'s status


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Stretches of time, one after the other. [T]

    Attributes:
        hours: that each lasts.
        weight: what is minimised of a kWh at the meter in it.
    """

    hours: FloatArray
    weight: FloatArray

    def __len__(self) -> int:
        return len(self.hours)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run does of an hour. [K]

    Attributes:
        share_per_h: of the run, at each clock.
        power_kW: at the meter, at each clock.
        standing_kW: while it starts or writes a checkpoint.
        off_kW: while it is paused; 0 where GPUs and hosts are released.
        is_held: paused, it keeps its GPUs, and pays for them.
        hourly_cost: of its GPUs, in what is minimised; 0 where that is carbon.
        start_h: from a pause until it trains; also of the first start.
        write_h: a checkpoint, before every pause and at the end.
    """

    share_per_h: FloatArray
    power_kW: FloatArray
    standing_kW: float
    off_kW: float
    is_held: bool
    hourly_cost: float
    start_h: float
    write_h: float

    @property
    def shortest_h(self) -> float:
        """Of a run without a pause, as fast as it can."""
        return self.start_h + 1 / float(self.share_per_h.max()) + self.write_h


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Hours of every slot. `gap`: how much better another may be, as a share; 0 but where time ran out.

    Attributes:
        at_clock_h: [T, K].
        idle_h, after_h, begin_h, write_h: [T].
        runs, starts, stops, held: [T].
        cost: what is minimised.
    """

    at_clock_h: FloatArray
    idle_h: FloatArray
    after_h: FloatArray
    begin_h: FloatArray
    write_h: FloatArray
    runs: NDArray[np.bool_]
    starts: NDArray[np.bool_]
    stops: NDArray[np.bool_]
    held: NDArray[np.bool_]
    cost: float
    gap: float


def cheapest(slots: Slots, machine: Machine, *, seconds: float = 60.0) -> Optimum | None:
    """The schedule that costs least; None where the run does not end in these slots.

    Args:
        slots: of time.
        machine: what the run does in an hour.
        seconds: after which the best found so far is given; `gap` then says how much better another may be.

    Raises:
        InputError: none was found in that time.
    """
    if machine.shortest_h > float(slots.hours.sum()) + _ROUNDING_H:
        return None
    useful = _useful_clocks(machine) if float(slots.weight.min()) >= 0 else np.arange(len(machine.power_kW))
    return _Programme(slots, machine, useful).solved(seconds)


def _useful_clocks(machine: Machine) -> NDArray[np.int64]:
    """Clocks of which no other, and no mix of two, is as fast and draws less: the lower hull of power over rate."""
    rate, power = machine.share_per_h, machine.power_kW
    efficient: list[int] = []
    for k in sorted(range(len(rate)), key=lambda k: (-rate[k], power[k])):
        if not efficient or power[k] < power[efficient[-1]]:
            efficient.append(k)
    hull: list[int] = []
    for k in reversed(efficient):
        while len(hull) > 1 and _is_above(hull[-2], hull[-1], k, rate, power):
            hull.pop()
        hull.append(k)
    return np.array(hull)


def _is_above(left: int, middle: int, right: int, rate: FloatArray, power: FloatArray) -> bool:
    """Whether a clock lies on or above the line between two others."""
    line = power[left] + (power[right] - power[left]) * (rate[middle] - rate[left]) / (rate[right] - rate[left])
    return bool(power[middle] >= line)


def _spread(length_h: float, hours: FloatArray, first: int, direction: int) -> dict[int, float]:
    """How something of a length falls on slots from one on, forward or back; empty: it does not fit."""
    found: dict[int, float] = {}
    slot, left = first, length_h
    while left > _ROUNDING_H:
        if not 0 <= slot < len(hours):
            return {}
        found[slot] = min(left, float(hours[slot]))
        left -= found[slot]
        slot += direction
    return found or {first: 0.0}


class _Programme:
    """The programme of the module's docstring, and its variables' places."""

    def __init__(self, slots: Slots, machine: Machine, useful: NDArray[np.int64]) -> None:
        self.slots, self.machine, self.useful = slots, machine, useful
        self.T, self.K = len(slots), len(useful)
        count = self.T * (self.K + 6)
        places = np.arange(count).reshape(self.K + 6, self.T)
        self.x_KT, (self.idle, self.after, self.u, self.start, self.stop, self.held) = (
            places[: self.K],
            places[self.K :],
        )
        self.begins = [_spread(machine.start_h, slots.hours, t, 1) for t in range(self.T)]
        self.writes = [_spread(machine.write_h, slots.hours, t, -1) for t in range(self.T)]
        self.count = count
        self._rows: list[dict[int, float]] = []
        self._low: list[float] = []
        self._high: list[float] = []

    def solved(self, seconds: float) -> Optimum | None:
        """The optimum."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        cost = self._cost()
        self._constrain()
        row, column, value = zip(*self._entries(), strict=True)
        matrix = csr_array((value, (row, column)), shape=(len(self._rows), self.count))
        upper = np.ones(self.count)
        upper[: self.u[0]] = np.tile(self.slots.hours, self.K + 2)
        for t in range(self.T):
            upper[self.start[t]] = float(bool(self.begins[t]))
            upper[self.stop[t]] = float(bool(self.writes[t]))
        if not self.machine.is_held:
            upper[self.after] = 0.0
        whole = np.zeros(self.count, dtype=np.int64)
        whole[self.u] = 1
        scale = np.abs(cost).max() or 1.0
        found = milp(
            cost * (_SCALE / scale),
            integrality=whole,
            bounds=Bounds(np.zeros(self.count), upper),
            constraints=LinearConstraint(matrix, self._low, self._high),
            options={"mip_rel_gap": _GAP, "time_limit": seconds},
        )
        if found.x is None:
            if found.status == _OUT_OF_TIME:
                raise InputError(
                    f"schedule: found none of {self.T} hours in {seconds:g} s; allow more, or give an earlier deadline"
                )
            return None
        gap = 0.0 if found.status == 0 else float(found.mip_gap)
        return self._optimum(found.x, float(self._plain_cost() @ found.x), gap)

    def _optimum(self, x: FloatArray, cost: float, gap: float) -> Optimum:
        runs, starts, stops, held = (x[places] > 0.5 for places in (self.u, self.start, self.stop, self.held))
        at_clock = np.zeros((self.T, len(self.machine.power_kW)))
        at_clock[:, self.useful] = x[self.x_KT].T
        begin, write = np.zeros(self.T), np.zeros(self.T)
        for t in np.flatnonzero(starts):
            for slot, hours in self.begins[t].items():
                begin[slot] += hours
        for t in np.flatnonzero(stops):
            for slot, hours in self.writes[t].items():
                write[slot] += hours
        return Optimum(
            at_clock_h=at_clock,
            idle_h=x[self.idle],
            after_h=x[self.after],
            begin_h=begin,
            write_h=write,
            runs=runs,
            starts=starts,
            stops=stops,
            held=held if self.machine.is_held else runs,
            cost=cost,
            gap=gap,
        )

    def _plain_cost(self) -> FloatArray:
        """Of every variable."""
        m, weight, hours = self.machine, self.slots.weight, self.slots.hours
        cost = np.zeros(self.count)
        cost[self.x_KT] = m.power_kW[self.useful][:, None] * weight
        for places, spreads in ((self.start, self.begins), (self.stop, self.writes)):
            for t, spread in enumerate(spreads):
                cost[places[t]] += m.standing_kW * sum(weight[slot] * h for slot, h in spread.items())
        if m.is_held:
            cost[self.idle] = m.off_kW * weight
            cost[self.held] = hours * (m.off_kW * weight + m.hourly_cost)
            cost[self.u] = -hours * m.off_kW * weight
            cost[self.after] = -m.hourly_cost
        else:
            cost[self.u] = hours * m.hourly_cost
            cost[self.idle] = -m.hourly_cost
        return cost

    def _cost(self) -> FloatArray:
        """The same, with a little more for what is late."""
        cost = self._plain_cost()
        whole = np.abs(self.slots.weight).mean() * self.machine.power_kW.max() + self.machine.hourly_cost
        cost[self.u] += _LATE * (whole or 1.0) * np.arange(1, self.T + 1) / self.T
        return cost

    def _add(self, row: dict[int, float], low: float, high: float) -> None:
        self._rows.append(row)
        self._low.append(low)
        self._high.append(high)

    def _entries(self) -> Iterator[tuple[int, int, float]]:
        for number, row in enumerate(self._rows):
            for column, value in row.items():
                yield number, column, value

    def _constrain(self) -> None:
        hours, below = self.slots.hours, -np.inf
        overhead: list[dict[int, float]] = [{} for _ in range(self.T)]
        for places, spreads in ((self.start, self.begins), (self.stop, self.writes)):
            for t, spread in enumerate(spreads):
                for slot, h in spread.items():
                    overhead[slot][int(places[t])] = h
                    if slot != t:  # it runs until it has begun, or written
                        self._add({int(self.u[slot]): -1.0, int(places[t]): 1.0}, below, 0.0)
        for t in range(self.T):
            u, start, stop, held = (int(places[t]) for places in (self.u, self.start, self.stop, self.held))
            idle, after, length = int(self.idle[t]), int(self.after[t]), float(hours[t])
            clocks = dict.fromkeys(map(int, self.x_KT[:, t]), 1.0)
            self._add(clocks | {idle: 1.0, after: 1.0, u: -length} | overhead[t], 0.0, 0.0)
            self._add({idle: 1.0, start: -length, stop: -length}, below, 0.0)
            self._add({start: 1.0, u: -1.0}, below, 0.0)
            self._add({stop: 1.0, u: -1.0}, below, 0.0)
            self._add({u: 1.0, held: -1.0}, below, 0.0)
            before = {} if t == 0 else {int(self.u[t - 1]): -1.0, int(self.stop[t - 1]): 1.0}
            self._add({u: 1.0, start: -1.0} | before, 0.0, 0.0)
            last = t == self.T - 1
            later = {} if last else {int(self.held[t + 1]): 1.0}
            self._add({held: -1.0} | later, below, 0.0)
            self._add({after: 1.0, held: -length} | dict.fromkeys(later, length), below, 0.0)
            if t:
                self._add({start: 1.0, int(self.u[t - 1]): 1.0}, below, 1.0)
            if last:
                self._add({stop: 1.0, u: -1.0}, 0.0, 0.0)
            else:
                self._add({stop: 1.0, int(self.u[t + 1]): 1.0}, below, 1.0)
        rates = self.machine.share_per_h[self.useful]
        self._add({int(self.x_KT[k, t]): float(rates[k]) for k in range(self.K) for t in range(self.T)}, 1.0, 1.0)
