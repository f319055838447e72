"""Schedules against brute force: every way to switch on and off, every clock of every slot, and where a clock changes
within a slot."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from moemodel.model.grid.optimum import Machine, Optimum, Slots, cheapest

IDLE = -1
Hours = tuple[dict[int, float], dict[int, float]]


def _blocks(runs: tuple[bool, ...]) -> list[list[int]]:
    return [[t for t, _ in group] for on, group in itertools.groupby(enumerate(runs), key=lambda each: each[1]) if on]


def _left_to_train(block: list[int], hours: list[float], machine: Machine) -> Hours | None:
    """Hours of each slot of a stretch that are left beside its start and its checkpoint, and what these two take."""
    left: dict[int, float] = {t: hours[t] for t in block}
    standing: dict[int, float] = {}
    for slots, need in ((block, machine.start_h), (block[::-1], machine.write_h)):
        for t in slots:
            part = min(need, hours[t])
            standing[t] = standing.get(t, 0.0) + part
            left[t] -= part
            need -= part
            if need <= 1e-12:
                break
        if need > 1e-12:
            return None
    return None if min(left.values()) < -1e-12 else (left, standing)


def brute_force(hours: list[float], weight: list[float], machine: Machine) -> float:
    """Least cost; infinite where the run can't end."""
    best = math.inf
    for runs in itertools.product((False, True), repeat=len(hours)):
        if any(runs):
            best = min(best, _best_of(runs, hours, weight, machine))
    return best


def _best_of(runs: tuple[bool, ...], hours: list[float], weight: list[float], m: Machine) -> float:
    blocks = _blocks(runs)
    last = blocks[-1][-1]
    left: dict[int, float] = {}
    fixed = 0.0
    for block in blocks:
        found = _left_to_train(block, hours, m)
        if found is None:
            return math.inf
        left |= found[0]
        fixed += sum(m.standing_kW * weight[t] * h for t, h in found[1].items())
    edges = {t for block in blocks for t in (block[0], block[-1])}
    for t, length in enumerate(hours):
        if runs[t]:
            fixed += m.hourly_cost * length
        elif m.is_held and t < last:
            fixed += length * (m.off_kW * weight[t] + m.hourly_cost)
    slots = sorted(left)
    price = {}  # of all that is left of a slot, and the share of the run that it makes
    for t in slots:
        for k, (rate, power) in enumerate(zip(m.share_per_h, m.power_kW, strict=True)):
            price[t, k] = (left[t] * power * weight[t], left[t] * rate)
        if t in edges:
            waits = m.is_held and t != last
            cost = left[t] * (m.off_kW * weight[t] if waits else -m.hourly_cost)
            price[t, IDLE] = (cost, 0.0)
    options = [[k for at, k in price if at == t] for t in slots]
    return fixed + min(_mixes(slots, options, price), default=math.inf)


def _mixes(slots: list[int], options: list[list[int]], price: dict[tuple[int, int], tuple[float, float]]) -> Any:
    """Costs of all that end the run exactly, one option a slot but for one slot of two."""
    for chosen in itertools.product(*options):
        parts = [price[t, k] for t, k in zip(slots, chosen, strict=True)]
        cost, done = sum(c for c, _ in parts), sum(d for _, d in parts)
        if abs(done - 1) < 1e-12:
            yield cost
        for place, t in enumerate(slots):
            for other in options[place]:
                more_cost, more_done = (b - a for a, b in zip(parts[place], price[t, other], strict=True))
                if more_done and 0 <= (1 - done) / more_done <= 1:
                    yield cost + more_cost * (1 - done) / more_done


def _check(found: Optimum, slots: Slots, m: Machine) -> None:
    """A schedule is one: every hour is spent, once; and costs what its hours cost."""
    spent = found.at_clock_h.sum(axis=1) + found.idle_h + found.after_h + found.begin_h + found.write_h
    assert spent == pytest.approx(np.where(found.runs, slots.hours, 0.0), abs=1e-6)
    assert (found.at_clock_h @ m.share_per_h).sum() == pytest.approx(1.0)
    assert (found.at_clock_h >= -1e-9).all()
    assert found.starts.sum() == found.stops.sum() == len(_blocks(tuple(map(bool, found.runs))))
    assert found.begin_h.sum() == pytest.approx(found.starts.sum() * m.start_h)
    assert found.write_h.sum() == pytest.approx(found.stops.sum() * m.write_h)
    inside = found.runs & ~found.starts & ~found.stops
    assert found.idle_h[inside] == pytest.approx(0.0, abs=1e-6)


def _case(seed: int, slots: int, clocks: int, **changes: Any) -> tuple[Slots, Machine]:
    rng = np.random.default_rng(seed)
    hours = np.ones(slots)
    hours[[0, -1]] = rng.uniform(0.4, 1.0, 2)
    rate = np.append(np.sort(rng.uniform(0.5, 1.0, clocks - 1)), 1.0)
    standing = float(rng.uniform(0.2, 0.4))
    held = bool(rng.integers(2))
    values: dict[str, Any] = {
        "share_per_h": rate / (rng.uniform(0.25, 0.75) * hours.sum()),
        "power_kW": rate ** rng.uniform(0.5, 3.0) * rng.uniform(0.9, 1.1, clocks),
        "standing_kW": standing,
        "off_kW": standing if held else 0.0,
        "is_held": held,
        "hourly_cost": float(rng.choice([0.0, 0.3])),
        "start_h": float(rng.choice([0.0, 0.05, 0.2])),
        "write_h": float(rng.choice([0.0, 0.02, 0.1])),
    }
    weight = rng.uniform(0.05, 1.0, slots)
    return Slots(hours=hours, weight=weight), Machine(**values | changes)


@pytest.mark.parametrize("seed", range(24))
def test_a_schedule_costs_what_brute_force_finds(seed: int) -> None:
    slots, machine = _case(seed, slots=4 + seed % 2, clocks=1 + seed % 3 if seed % 2 == 0 else 2)
    expected = brute_force(slots.hours.tolist(), slots.weight.tolist(), machine)
    found = cheapest(slots, machine)
    assert found is not None
    assert found.cost == pytest.approx(expected, rel=3e-6)
    _check(found, slots, machine)


@pytest.mark.parametrize("seed", range(6))
def test_so_it_does_where_power_is_paid_for_being_drawn(seed: int) -> None:
    slots, machine = _case(100 + seed, slots=4, clocks=2)
    slots = Slots(hours=slots.hours, weight=slots.weight - 0.5)
    found = cheapest(slots, machine)
    expected = brute_force(slots.hours.tolist(), slots.weight.tolist(), machine)
    assert found is not None
    assert found.cost == pytest.approx(expected, rel=3e-6, abs=1e-6)
    _check(found, slots, machine)


@pytest.mark.parametrize(("start_h", "write_h"), [(1.3, 0.0), (0.0, 1.2), (1.1, 1.1), (0.6, 0.5)])
@pytest.mark.parametrize("held", [True, False])
def test_so_it_does_where_a_start_takes_more_than_a_slot(start_h: float, write_h: float, held: bool) -> None:
    slots, machine = _case(7, slots=6, clocks=2, start_h=start_h, write_h=write_h, is_held=held)
    machine = Machine(**{**vars(machine), "share_per_h": np.array([0.35, 0.5]), "off_kW": 0.2 if held else 0.0})
    found = cheapest(slots, machine)
    assert found is not None
    assert found.cost == pytest.approx(brute_force(slots.hours.tolist(), slots.weight.tolist(), machine), rel=3e-6)
    _check(found, slots, machine)


@pytest.mark.parametrize("seed", range(4))
def test_with_just_enough_time_it_runs_at_once(seed: int) -> None:
    slots, machine = _case(seed, slots=5, clocks=3)
    room = machine.shortest_h / float(slots.hours.sum())
    for spare, feasible in ((1.0001, True), (0.9999, False)):
        found = cheapest(Slots(hours=slots.hours * room * spare, weight=slots.weight), machine)
        assert (found is not None) == feasible
        if found is not None:
            assert found.runs.all()
            assert found.starts.sum() == 1


def test_of_equal_schedules_the_earliest_is_taken() -> None:
    machine = Machine(
        share_per_h=np.array([0.25]),
        power_kW=np.array([1.0]),
        standing_kW=0.3,
        off_kW=0.0,
        is_held=False,
        hourly_cost=0.0,
        start_h=0.1,
        write_h=0.1,
    )
    found = cheapest(Slots(hours=np.ones(24), weight=np.full(24, 0.4)), machine)
    assert found is not None
    assert np.flatnonzero(found.runs).tolist() == [0, 1, 2, 3, 4]


def test_clocks_that_help_nobody_change_nothing() -> None:
    """Slower and thirstier, or on the line between two others."""
    slots, machine = _case(3, slots=8, clocks=2)
    more = Machine(
        **{
            **vars(machine),
            "share_per_h": np.append(
                machine.share_per_h, [machine.share_per_h.min() * 0.9, machine.share_per_h.mean()]
            ),
            "power_kW": np.append(machine.power_kW, [machine.power_kW.max() * 1.1, machine.power_kW.max() * 1.05]),
        }
    )
    few, many = cheapest(slots, machine), cheapest(slots, more)
    assert few is not None
    assert many is not None
    assert many.cost == pytest.approx(few.cost, rel=3e-6)
