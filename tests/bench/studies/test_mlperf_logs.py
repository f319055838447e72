"""Logs of metered runs, made up in MLPerf's form: what is added up is what a count of milliseconds adds up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studies.public.mlperf_logs import Readings, TimedRun, figures, switches_W

START_ms = 1_715_257_378_825


def line(at_s: float, key: str, value: Any = None, **metadata: Any) -> str:
    event = {"time_ms": START_ms + round(at_s * 1e3), "key": key, "value": value, "metadata": metadata}
    return f"0: :::MLLOG {json.dumps(event)}"


def meter(readings: dict[float, float], *more: str) -> str:
    return "\n".join(["no event", *more, *(line(at_s, "power_reading", W) for at_s, W in readings.items())])


def span(start_s: float, stop_s: float) -> tuple[float, float]:
    return START_ms / 1e3 + start_s, START_ms / 1e3 + stop_s


def counted_J(readings: dict[float, float], start_s: float, stop_s: float) -> float:
    """What stands at each millisecond: the reading that comes next, or the last one."""
    last = readings[max(readings)]
    total = 0.0
    for ms in range(round(start_s * 1e3), round(stop_s * 1e3)):
        later = [at_s for at_s in readings if at_s * 1e3 > ms]
        total += (readings[min(later)] if later else last) * 1e-3
    return total


LORA = "\n".join(
    [
        line(-80, "global_batch_size", 8),
        line(0, "run_start"),
        line(0, "block_start", samples_count=0),
        line(20, "block_stop", samples_count=32),
        line(20, "eval_start"),
        line(25, "eval_stop"),
        line(25, "block_start", samples_count=32),
        line(37, "block_stop", samples_count=56),
        line(37, "eval_start"),
        line(42, "eval_stop"),
        line(42, "run_stop"),
    ]
)


def test_a_reading_counts_for_the_time_since_the_one_before() -> None:
    readings = {-1.0: 900.0, 0.5: 1000.0, 2.25: 3000.0, 7.5: 2000.0, 8.0: 1500.0}
    node = Readings.of(meter(readings))
    for start_s, stop_s in ((0.0, 8.0), (0.75, 2.0), (-0.5, 9.5), (2.25, 7.5)):
        assert node.energy_J(span(start_s, stop_s)) == pytest.approx(counted_J(readings, start_s, stop_s), rel=1e-6)


def test_a_constant_power_is_its_time_however_it_is_read() -> None:
    times = np.cumsum(np.random.default_rng(1).uniform(0.2, 9.0, 60))
    node = Readings.of(meter(dict.fromkeys(times.tolist(), 7000.0)))
    assert node.energy_J(span(3.0, 200.0)) == pytest.approx(7000.0 * 197.0, rel=1e-9)


def test_times_written_twice_and_out_of_order_count_once() -> None:
    node = Readings.of("\n".join([meter({4.0: 300.0, 2.0: 100.0}), line(4.0, "power_reading", 300.0)]))
    assert node.power_W.tolist() == [100.0, 300.0]


def test_steady_is_what_lies_within_a_block_and_was_read_in_time() -> None:
    # before the block, across its start, twice within it, after a gap of nobody knows what, across its end
    readings = {24.0: 100.0, 26.0: 200.0, 28.0: 6000.0, 29.0: 9000.0, 34.0: 50.0, 38.0: 10.0}
    assert Readings.of(meter(readings)).mean_W([span(25, 37)]) == pytest.approx((2 * 6000 + 9000) / 3)
    assert np.isnan(Readings.of(meter(readings)).mean_W([span(0, 5)]))


@pytest.mark.parametrize("ahead_s", [-17, 0, 9])
def test_a_meter_whose_clock_is_ahead_is_read_by_the_other_s(ahead_s: int) -> None:
    load = {float(at_s): 8000.0 if 20 < at_s < 70 or 80 < at_s < 95 else 3000.0 for at_s in range(-40, 160)}
    right, wrong = Readings.of(meter(load)), Readings.of(meter({at_s - ahead_s: W for at_s, W in load.items()}))
    assert wrong.beside(right, span(0, 120)).time_s.tolist() == right.time_s.tolist()


def test_steps_are_those_of_samples_or_of_timers() -> None:
    run = TimedRun.of(LORA)
    assert (run.steps, run.timer_s, run.span) == ((4, 3), None, span(0, 42))
    timers = [line(at_s, "tracked_stats", {"train_step_timing in s": took_s}) for at_s, took_s in ((9, 4.0), (26, 6.0))]
    others = [line(12, "tracked_stats", {"throughput": 2.0}), line(30, "tracked_stats", {"train_loss": 1.0})]
    timed = TimedRun.of("\n".join([LORA, *timers, *others]))
    assert (timed.steps, timed.timer_s) == ((1, 1), 5.0)


def test_switches_are_as_stated_or_else_as_measured() -> None:
    assert switches_W(line(0, "interconnect_power_est", 16100)) == 16100
    assert switches_W(meter({0.0: 600.0, 1.0: 700.0})) == 650


def test_a_run_on_two_nodes(tmp_path: Path) -> None:
    (tmp_path / "run.txt").write_text(LORA)
    for node, level_W in enumerate((6000.0, 7000.0)):
        readings = {at_s: level_W if 25 < at_s <= 37 else 3000.0 for at_s in np.arange(-2.0, 44.0)}
        text = meter(readings, line(-2, "conversion_eff", 0.96))
        (tmp_path / f"node_{node}.txt").write_text(text)
    (tmp_path / "sw_0.txt").write_text(line(0, "interconnect_power_est", 500))
    found = figures(tmp_path / "run.txt", {"ac": tmp_path})
    assert found == {
        "steps": 7,
        "run_s": 42.0,
        "evaluation_s": 10.0,
        "steady_s": 12.0,
        "steady_steps": 3,
        "node_ac_W": 6500.0,
        "node_ac_spread_W": 500.0,
        "run_ac_J": pytest.approx(2 * 3000 * 30 + (6000 + 7000) * 12),
        "conversion": 0.96,
        "switches_W": 500.0,
    }
