"""Schedules: how near the programme comes to brute force, and what a week and a month take of one core.

python bench/schedule.py [--json] [--cases N] [--hours H]

cases                 made-up runs in four or five slots of time, GPUs kept or released, with and without their price
worst_excess          largest cost over that of brute force, as a share, less 1
worst_below           largest share that brute force costs more: what rounding leaves
cpu_s_week, cpu_s_month   longest of six runs: 30, 60 and 90 % of the time needed, GPUs kept or released, at eleven
                      clocks; the series is made up (a daily wave and noise)
unproved              largest share that such a schedule may be beaten by, where time ran out
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from moemodel.model.grid.optimum import Machine, Slots, cheapest
from studies.brute_force_schedule import brute_force, random_case

_WEEK, _MONTH = 168, 720


def against_brute_force(cases: int) -> dict[str, float]:
    """Costs over those of brute force."""
    ratios = []
    for seed in range(cases):
        slots, machine = random_case(1000 + seed, slots=4 + seed % 2, clocks=2 + (seed % 2 == 0))
        found = cheapest(slots, machine)
        expected = brute_force(slots.hours.tolist(), slots.weight.tolist(), machine)
        ratios.append(float("inf") if found is None else found.cost / expected - 1)
    return {"cases": cases, "worst_excess": max(ratios), "worst_below": max(0.0, -min(ratios))}


def seconds(hours: int) -> tuple[float, float]:
    """Longest of six schedules, and the largest share that one may be beaten by."""
    rng = np.random.default_rng(0)
    wave = 0.35 + 0.2 * np.sin(np.arange(hours) * 2 * np.pi / 24) + 0.05 * rng.standard_normal(hours)
    slots = Slots(hours=np.ones(hours), weight=np.maximum(wave, 0.02))
    clock = np.linspace(0.4, 1.0, 11)
    taken, gaps = [], []
    for share in (0.3, 0.6, 0.9):
        for kept in (True, False):
            machine = Machine(
                share_per_h=clock**0.8 / (hours * share),
                power_kW=3 + 4 * clock**2.2,
                standing_kW=1.5,
                off_kW=1.5 if kept else 0.0,
                is_held=kept,
                hourly_cost=0.0,
                start_h=300 / 3600,
                write_h=60 / 3600,
            )
            begun = time.process_time()
            found = cheapest(slots, machine)
            taken.append(time.process_time() - begun)
            gaps.append(1.0 if found is None else found.gap)
    return max(taken), max(gaps)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--cases", type=int, default=200, help="held against brute force")
    parser.add_argument("--hours", type=int, default=_MONTH, help="of the long schedule, a month by default")
    given = parser.parse_args()
    week, unproved_week = seconds(min(_WEEK, given.hours))
    month, unproved = seconds(given.hours)
    figures = against_brute_force(given.cases) | {"cpu_s_week": week, "cpu_s_month": month}
    figures["unproved"] = max(unproved, unproved_week)
    if given.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:15} {value:.3g}")


if __name__ == "__main__":
    main()
