"""Schedules by brute force: every way to switch on and off, every clock of every slot, and where a clock changes within
a slot. It shares no equation with the programme that it is held against, and takes no more than a handful of slots.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from moemodel.model.grid.optimum import Machine, Slots

IDLE = -1
Hours = tuple[dict[int, float], dict[int, float]]


def blocks_of(runs: tuple[bool, ...]) -> list[list[int]]:
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
    blocks = blocks_of(runs)
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


def random_case(seed: int, slots: int, clocks: int, **changes: Any) -> tuple[Slots, Machine]:
    """Slots and a run in them, made up; the run can end in them."""
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
