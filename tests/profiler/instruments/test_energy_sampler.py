"""Energy windows: closed forms with a counter that ticks every 100 ms, as NVML's does."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from moemodel.profiler.instruments.energy_sampler import EnergySampler

TICK_S = 0.1


class Simulation:
    """A device with a known energy over time, and the clock it lives by."""

    def __init__(self, device: Any, energy_J: Callable[[float], float], phase_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.device = device
        device.energy_J = lambda: energy_J(math.floor((self.now_s - phase_s) / TICK_S) * TICK_S + phase_s)

    def run(self, seconds: float, interval_s: float = 0.005, jitter_s: float = 0.0) -> EnergySampler:
        sampler = EnergySampler(self.device, interval_s, now_s=lambda: self.now_s)
        draw = random.Random(1)
        while self.now_s < seconds:
            sampler.read_counter()
            self.now_s += interval_s + draw.uniform(0, jitter_s)
        return sampler


@pytest.mark.parametrize("phase_s", [0.0, 0.013, 0.0871])
@pytest.mark.parametrize("jitter_s", [0.0, 0.002])
def test_constant_power_is_recovered(bare_device: Any, phase_s: float, jitter_s: float) -> None:
    sampler = Simulation(bare_device, lambda t: 697.4 * t, phase_s).run(3.0, jitter_s=jitter_s)
    window = sampler.window(1.0, 2.05)
    assert window is not None
    assert window.power_W == pytest.approx(697.4, rel=0.005)
    assert window.edges in (10, 11)
    assert window.energy_J == pytest.approx(window.power_W * window.duration_s)


def test_what_is_outside_the_window_does_not_count(bare_device: Any) -> None:
    """100 W, but 700 W from 1.0 to 2.2 s."""

    def energy_J(t: float) -> float:
        return 100 * t + 600 * min(max(t - 1.0, 0.0), 1.2)

    sampler = Simulation(bare_device, energy_J).run(4.0)
    busy, idle = sampler.window(1.05, 2.15), sampler.window(2.35, 3.9)
    assert busy is not None
    assert idle is not None
    assert busy.power_W == pytest.approx(700, rel=0.005)
    assert idle.power_W == pytest.approx(100, rel=0.005)


def test_a_late_poll_does_not_spoil_the_rhythm(bare_device: Any) -> None:
    simulation = Simulation(bare_device, lambda t: 500 * t)
    sampler = simulation.run(1.52)
    simulation.now_s += 0.040  # the poller was held up
    while simulation.now_s < 3:
        sampler.read_counter()
        simulation.now_s += 0.005
    window = sampler.window(1.0, 2.5)
    assert window is not None
    assert window.power_W == pytest.approx(500, rel=0.005)


@pytest.mark.parametrize(("start_s", "end_s"), [(1.01, 1.15), (0.0, 0.0), (50.0, 60.0)])
def test_fewer_than_two_edges_say_nothing(bare_device: Any, start_s: float, end_s: float) -> None:
    assert Simulation(bare_device, lambda t: 100 * t).run(2.0).window(start_s, end_s) is None


def test_no_counter_no_window(bare_device: Any) -> None:
    with EnergySampler(bare_device) as sampler:
        time.sleep(0.02)
    assert sampler.window(0.0, math.inf) is None


def test_thread_reads_counter_and_trace(bare_device: Any) -> None:
    """In real time, on a machine that may be busy: only roughly."""
    bare_device.energy_J = lambda: 200 * math.floor(time.perf_counter() / 0.02) * 0.02
    bare_device.temperature_C = lambda: 41.0
    with EnergySampler(bare_device, interval_s=0.002) as sampler:
        sampler.label = "a load"
        start_s = time.perf_counter()
        time.sleep(0.4)
        window = sampler.window(start_s, time.perf_counter())
    assert window is not None
    assert window.power_W == pytest.approx(200, rel=0.2)
    trace = sampler.trace()
    assert 2 <= len(trace) <= 6
    assert (trace[-1].label, trace[-1].temperature_C, trace[-1].power_W) == ("a load", 41.0, None)
    assert len(sampler.trace(since_s=trace[-1].time_s)) == 1


# --- counters that lie -----------------------------------------------------------------------------------------------

START_J = 2.7e6


def _true_J(time_s: float) -> float:
    return START_J + 500 * time_s


LIES: dict[str, tuple[Callable[[float], float | None], str]] = {
    "reset in the middle": (lambda t: _true_J(t) if t < 1.05 else _true_J(t) - START_J, "ran backwards"),
    "reset at the last edge": (lambda t: _true_J(t) if t < 2.35 else _true_J(t) - START_J - 900, "ran backwards"),
    "back by 5 J at the last edge": (lambda t: _true_J(t) if t < 2.35 else _true_J(2.2) - 5, "ran backwards"),
    "32 bits are full": (lambda t: (_true_J(t) * 1000 - 2.7e9 + 2**32 - 750_000) % 2**32 / 1000, "ran backwards"),
    "a jump of 1 MJ": (lambda t: _true_J(t) + (1e6 if t > 1.55 else 0), "jumped"),
    "a jump of 10 kJ at the last edge": (lambda t: _true_J(t) + (1e4 if t > 2.35 else 0), "jumped"),
    "stops in the middle": (lambda t: _true_J(min(t, 1.5)), "stood still for 1.0 s of 2.0 s, from 1.0 s"),
    "stops after two edges": (lambda t: _true_J(min(t, 0.75)), "stood still for 1.7 s"),
    "stops for a second": (lambda t: _true_J(t if t < 1.0 else max(1.0, t - 1.0)), "stood still for 1.1 s"),
    "stops before, and goes on": (lambda t: _true_J(t if t < 0.3 else max(0.3, t - 1.2)), "stood still for"),
    "is not read from the middle on": (lambda t: _true_J(t) if t < 1.5 else None, "stood still for"),
    "is no number from the middle on": (lambda t: _true_J(t) if t < 1.5 else math.nan, "stood still for"),
    "is infinite from the middle on": (lambda t: _true_J(t) if t < 1.5 else math.inf, "stood still for"),
    "never moves": (lambda _: START_J, "did not move"),
}


@pytest.mark.parametrize(("energy_J", "says"), LIES.values(), ids=LIES)
def test_a_counter_that_lies_gives_no_energy_and_says_why(
    bare_device: Any, energy_J: Callable[[float], float], says: str
) -> None:
    sampler = Simulation(bare_device, energy_J).run(2.5)
    assert sampler.window(0.5, 2.5) is None
    trouble = sampler.trouble(0.5, 2.5)
    assert trouble is not None
    assert says in trouble


HONEST: dict[str, Callable[[float], float | None]] = {
    "as it should be": _true_J,
    "reset before the window": lambda t: _true_J(t) if t < 0.35 else 500 * t,
    "jumps before the window": lambda t: _true_J(t) + (1e6 if t > 0.35 else 0),
    "is not read for a while": lambda t: None if 1.0 < t < 1.8 else _true_J(t),
    "is no number for a while": lambda t: math.nan if 1.0 < t < 1.8 else _true_J(t),
    "ticks every second": lambda t: _true_J(math.floor(t)),
}


@pytest.mark.parametrize("energy_J", HONEST.values(), ids=HONEST)
def test_what_does_not_touch_the_window_does_not_spoil_it(bare_device: Any, energy_J: Callable[[float], float]) -> None:
    sampler = Simulation(bare_device, energy_J).run(4.5)
    window = sampler.window(0.5, 4.5)
    assert sampler.trouble(0.5, 4.5) is None
    assert window is not None
    assert window.power_W == pytest.approx(500, rel=0.01)


def test_a_counter_that_is_never_a_number_is_none(bare_device: Any) -> None:
    sampler = Simulation(bare_device, lambda _: math.nan).run(2.5)
    assert sampler.window(0.5, 2.5) is None
    assert sampler.trouble(0.5, 2.5) is None
