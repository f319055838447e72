"""Schedules against brute force, which is of `bench/studies`."""

from __future__ import annotations

import numpy as np
import pytest

from moemodel.model.grid.optimum import Machine, Optimum, Slots, cheapest
from studies.brute_force_schedule import blocks_of, brute_force, random_case


def _check(found: Optimum, slots: Slots, m: Machine) -> None:
    """A schedule is one: every hour is spent, once; and costs what its hours cost."""
    spent = found.at_clock_h.sum(axis=1) + found.idle_h + found.after_h + found.begin_h + found.write_h
    assert spent == pytest.approx(np.where(found.runs, slots.hours, 0.0), abs=1e-6)
    assert (found.at_clock_h @ m.share_per_h).sum() == pytest.approx(1.0)
    assert (found.at_clock_h >= -1e-9).all()
    assert found.starts.sum() == found.stops.sum() == len(blocks_of(tuple(map(bool, found.runs))))
    assert found.begin_h.sum() == pytest.approx(found.starts.sum() * m.start_h)
    assert found.write_h.sum() == pytest.approx(found.stops.sum() * m.write_h)
    inside = found.runs & ~found.starts & ~found.stops
    assert found.idle_h[inside] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("seed", range(24))
def test_a_schedule_costs_what_brute_force_finds(seed: int) -> None:
    slots, machine = random_case(seed, slots=4 + seed % 2, clocks=1 + seed % 3 if seed % 2 == 0 else 2)
    expected = brute_force(slots.hours.tolist(), slots.weight.tolist(), machine)
    found = cheapest(slots, machine)
    assert found is not None
    assert found.cost == pytest.approx(expected, rel=3e-6)
    _check(found, slots, machine)


@pytest.mark.parametrize("seed", range(6))
def test_so_it_does_where_power_is_paid_for_being_drawn(seed: int) -> None:
    slots, machine = random_case(100 + seed, slots=4, clocks=2)
    slots = Slots(hours=slots.hours, weight=slots.weight - 0.5)
    found = cheapest(slots, machine)
    expected = brute_force(slots.hours.tolist(), slots.weight.tolist(), machine)
    assert found is not None
    assert found.cost == pytest.approx(expected, rel=3e-6, abs=1e-6)
    _check(found, slots, machine)


@pytest.mark.parametrize(("start_h", "write_h"), [(1.3, 0.0), (0.0, 1.2), (1.1, 1.1), (0.6, 0.5)])
@pytest.mark.parametrize("held", [True, False])
def test_so_it_does_where_a_start_takes_more_than_a_slot(start_h: float, write_h: float, held: bool) -> None:
    slots, machine = random_case(7, slots=6, clocks=2, start_h=start_h, write_h=write_h, is_held=held)
    machine = Machine(**{**vars(machine), "share_per_h": np.array([0.35, 0.5]), "off_kW": 0.2 if held else 0.0})
    found = cheapest(slots, machine)
    assert found is not None
    assert found.cost == pytest.approx(brute_force(slots.hours.tolist(), slots.weight.tolist(), machine), rel=3e-6)
    _check(found, slots, machine)


@pytest.mark.parametrize("seed", range(4))
def test_with_just_enough_time_it_runs_at_once(seed: int) -> None:
    slots, machine = random_case(seed, slots=5, clocks=3)
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
    slots, machine = random_case(3, slots=8, clocks=2)
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
