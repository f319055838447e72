"""Marks by the host's clock: a loop of known lags, steady or not; what is learnt, when, and how right times are."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from moemodel.profiler.meter.host_lag import HostLag

NAMES = ["forward", "backward", "optimizer"]
OFFSETS_S = [0.0, 0.001, 0.025, 0.026, 0.06, 0.061, 0.069, 0.07]  # of a step's marks, by the host


class Loop:
    """Steps whose device lags behind the host by what a function of the step and the mark says."""

    def __init__(self, lag_s: Callable[[int, int], float], offsets_s: Sequence[float] = OFFSETS_S) -> None:
        self._lag_s, self._offsets_s = lag_s, offsets_s
        self.lag = HostLag()
        self.with_events = 0
        self.errors_s: list[float] = []

    def run(self, steps: range, names: Sequence[str] = NAMES) -> None:
        for step in steps:
            host_s = [step * 0.08 + offset_s for offset_s in self._offsets_s]
            device_s = [at_s + self._lag_s(step, mark) for mark, at_s in enumerate(host_s)]
            if self.lag.left:
                self.lag.left -= 1
                times_s = self.lag.times_s(names, host_s)
                assert times_s == sorted(times_s)
                self.errors_s += [time_s - true_s for time_s, true_s in zip(times_s, device_s, strict=True)]
            else:
                self.with_events += 1
                self.lag.learn(names, host_s, device_s)


def _steady(draw: random.Random) -> Callable[[int, int], float]:
    """The optimizer's few large kernels are 3 ms behind, the others 0.1 to 0.2; each by chance 10 us more or less."""
    means_s = [1e-4, 1e-4, 2e-4, 2e-4, 2e-4, 2e-4, 3e-3, 3e-3]
    return lambda _, mark: means_s[mark] + draw.gauss(0, 1e-5)


def test_a_steady_lag_is_learnt_mark_by_mark() -> None:
    loop = Loop(_steady(random.Random(1)))
    loop.run(range(2000))
    assert loop.with_events == pytest.approx(8 + 2000 / 17, rel=0.15)
    assert max(map(abs, loop.errors_s)) < 6e-5
    assert abs(sum(loop.errors_s) / len(loop.errors_s)) < 2e-6
    assert 5e-6 < loop.lag.noise_s < 3e-5


@pytest.mark.parametrize(
    "lag_s",
    [
        lambda _, mark: 0.02 + 1e-6 * mark,  # the device is behind: it is what the step waits for
        lambda step, _: 1e-4 + 5e-4 * ((step * 7919) % 13) / 13,  # not steady
    ],
)
def test_a_device_that_does_not_wait_for_its_host_always_has_events(lag_s: Callable[[int, int], float]) -> None:
    loop = Loop(lag_s)
    loop.run(range(300))
    assert loop.with_events == 300


def test_a_host_that_is_interrupted_now_and_then_is_steady_all_the_same() -> None:
    """In every tenth step 5 ms pass between the host's reading of its clock and its event, at one mark or another."""
    draw, steady = random.Random(4), _steady(random.Random(5))
    late = {(step, draw.randrange(8)) for step in range(2000) if draw.random() < 0.1}
    loop = Loop(lambda step, mark: steady(step, mark) + (5e-3 if (step, mark) in late else 0.0))
    loop.run(range(2000))
    assert loop.with_events < 250
    usual_s = [
        error_s for error_s in loop.errors_s if abs(error_s) < 4e-3
    ]  # marks of the host that were late themselves
    assert max(map(abs, usual_s)) < 1e-4


def test_long_steps_always_have_events() -> None:
    loop = Loop(lambda *_: 1e-4, [10 * offset_s for offset_s in OFFSETS_S])
    loop.run(range(50))
    assert loop.with_events == 50


def test_a_loop_that_changes_is_learnt_anew() -> None:
    steady = _steady(random.Random(2))
    loop = Loop(lambda step, mark: steady(step, mark) + (2e-4 if step >= 1000 else 0.0))
    loop.run(range(1000))
    loop.errors_s.clear()
    loop.run(range(1000, 1040))
    late = [error_s for error_s in loop.errors_s if abs(error_s) > 1e-4]
    assert len(late) <= 24 * len(OFFSETS_S)  # until the next step with events
    loop.errors_s.clear()
    loop.run(range(1040, 2000))
    assert max(map(abs, loop.errors_s)) < 6e-5


def test_other_phases_than_learnt_have_events_next() -> None:
    loop = Loop(_steady(random.Random(3)))
    loop.run(range(100))
    while not loop.lag.left:
        loop.run(range(100, 101))
    times_s = loop.lag.times_s(["forward"], [1.0, 1.1, 1.2, 1.3])
    assert times_s == pytest.approx([1.0001, 1.1001, 1.2001, 1.3001], abs=1e-5)
    assert loop.lag.left == 0


def test_where_calls_return_with_the_work_done_the_hosts_clock_is_right() -> None:
    lag = HostLag(synchronous=True)
    assert lag.left > 1_000_000_000
    assert lag.times_s(NAMES, OFFSETS_S) == OFFSETS_S
