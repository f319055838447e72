"""Attribution against a simulated counter: 100 ms ticks seen by a poller, a lag, phases of 5 to 60 ms, known powers."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from moemodel.model.core.errors import DeviceError, InputError
from moemodel.profiler.instruments.counter_edges import CounterEdges
from moemodel.profiler.meter.attribution import OUTSIDE, attribute, check_counter

Phases = list[tuple[str, float, float]]  # name, mean time in s, power in W
Spans = dict[str, list[tuple[float, float]]]

THREE: Phases = [("forward", 0.015, 450), ("backward", 0.031, 690), ("optimizer", 0.006, 300)]
WIDE: Phases = [("forward", 0.018, 700), ("backward", 0.060, 550), ("optimizer", 0.005, 100)]
FOUR: Phases = [("a", 0.005, 150), ("b", 0.020, 400), ("c", 0.033, 700), ("d", 0.012, 100)]
IDLE_W = 90.0


def simulate(
    seed: int,
    phases: Phases,
    *,
    seconds: float = 120.0,
    gap_s: float = 0.002,
    jitter: float = 0.05,
    lag_s: float = 0.004,
    noise_s: float = 2e-5,
    window_s: float | None = None,
) -> tuple[Spans, CounterEdges]:
    """Spans as a meter would see them, and the edges that a poller would."""
    rng = np.random.default_rng(seed)
    now_s = start_s = 1000.0
    times_s, joules, spans = [now_s], [0.0], Spans()
    while now_s < start_s + seconds:
        for name, mean_s, power_W in [*phases, (None, gap_s, IDLE_W)]:
            took_s = mean_s * (1 + jitter * rng.standard_normal() if name else rng.uniform(0.5, 1.5))
            if name is not None:
                ends = (now_s + noise_s * rng.standard_normal(), now_s + took_s + noise_s * rng.standard_normal())
                spans.setdefault(name, []).append(ends)
            now_s += took_s
            times_s.append(now_s)
            joules.append(joules[-1] + power_W * took_s)
    ticks_s = np.arange(start_s + 0.03, start_s + seconds - 0.1, 0.1)
    counter_J = np.interp(ticks_s - lag_s, times_s, joules)
    if window_s is not None:
        mean_W = (counter_J - np.interp(ticks_s - lag_s - window_s, times_s, joules)) / window_s
        counter_J = np.cumsum(mean_W * 0.1)
    polls_s = start_s + np.cumsum(0.005 * (1 + 0.2 * rng.random(int(seconds / 0.0055))))
    at = np.searchsorted(polls_s, ticks_s)
    seen = (at > 0) & (at < len(polls_s))
    at = at[seen]
    time_s, width_s = (polls_s[at] + polls_s[at - 1]) / 2, polls_s[at] - polls_s[at - 1]
    return spans, CounterEdges.of(time_s, np.round(counter_J[seen], 3), width_s)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("phases", [THREE, WIDE, FOUR], ids=["three", "wide", "four"])
def test_powers_within_two_percent(phases: Phases, seed: int) -> None:
    found = attribute(*simulate(seed, phases, seconds=240))
    for name, _, power_W in phases:
        assert found.of(name).power_W == pytest.approx(power_W, rel=0.02)
    assert found.lag_s == pytest.approx(0.004, abs=0.001)
    assert found.residual_share < 0.005
    assert not found.notes


def test_standard_errors_are_the_scatter() -> None:
    scores = []
    for seed in range(16):
        found = attribute(*simulate(seed, THREE, seconds=40))
        for name, _, power_W in THREE:
            group = found.of(name)
            assert group.power_W is not None
            assert group.standard_error_W is not None
            scores.append((group.power_W - power_W) / group.standard_error_W)
    assert (
        0.4 < float(np.sqrt(np.mean(np.square(scores)))) < 2.0
    )  # what calls beyond the mean may explain costs a tenth


LATE: Phases = [("forward", 0.020, 650), ("backward", 0.036, 500), ("optimizer", 0.080, 200)]  # while they work
LATE_SHARE, LATE_W = 0.5, 160.0  # of the work's time the host is late in a call, on average; power meanwhile


def late(
    seed: int, seconds: float, *, lag_s: float = 0.0065, noise_J: float = 1.0
) -> tuple[Spans, CounterEdges, dict[str, float]]:
    """Calls of even work that wait for the host as long as it happens, edges of a noisy counter, and true powers."""
    rng = np.random.default_rng(seed)
    now_s, times_s, joules, spans = 0.0, [0.0], [0.0], Spans()
    true_J: dict[str, float] = {}
    while now_s < seconds:
        for name, work_s, power_W in LATE:
            waits_s = work_s * LATE_SHARE * rng.exponential()
            before_s, before_J = now_s, joules[-1]
            for took_s, watts in ((waits_s / 8, LATE_W), (work_s / 8, power_W)) * 8:  # a kernel, and nothing to do
                now_s += took_s
                times_s.append(now_s)
                joules.append(joules[-1] + watts * took_s)
            spans.setdefault(name, []).append((before_s, now_s))
            true_J[name] = true_J.get(name, 0.0) + joules[-1] - before_J
    ticks_s = np.arange(0.05, seconds, 0.1)
    energy_J = np.interp(ticks_s - lag_s, times_s, joules) + rng.normal(0, noise_J, len(ticks_s))
    taken_s = {name: float(np.sum(np.diff(span))) for name, span in spans.items()}
    return (
        spans,
        CounterEdges.of(ticks_s, np.maximum.accumulate(energy_J), 1e-4),
        {n: true_J[n] / taken_s[n] for n in true_J},
    )


def test_calls_that_wait_for_the_host_keep_their_mean_power() -> None:
    """A call that takes longer did no more work: a power of its phase that is constant in time would be wrong."""
    off = []
    for seed in range(6):
        spans, edges, true_W = late(seed, 60)
        found = attribute(spans, edges)
        off += [abs((found.of(name).power_W or 0.0) / power_W - 1) for name, power_W in true_W.items()]
    assert float(np.mean(off)) < 0.02
    assert max(off) < 0.08


def test_a_lag_that_the_steps_hardly_tell_is_about_that_of_other_gpus() -> None:
    """Steps of 77 ms and of little variation: a lag of 40 ms would explain a noisy counter about as well."""
    lags_s, off = [], []
    for seed in range(8):
        spans, edges = simulate(seed, WIDE[:2], seconds=20, gap_s=0.0005, jitter=0.001, lag_s=0.0065)
        noise_J = np.random.default_rng(seed).normal(0, 2.5, len(edges.energy_J))
        found = attribute(spans, CounterEdges.of(edges.time_s, edges.energy_J + noise_J, edges.width_s))
        lags_s.append(found.lag_s)
        off += [found.of(name).power_W or 0.0 for name in ("forward", "backward")]
    assert max(abs(lag_s - 0.0065) for lag_s in lags_s) < 0.004
    assert max(abs(power_W / true_W - 1) for power_W, true_W in zip(off, [700, 550] * 8, strict=True)) < 0.15


def test_energy_is_conserved() -> None:
    found = attribute(*simulate(1, THREE))
    explained_J = sum((group.power_W or 0) * group.time_share * found.duration_s for group in found.groups)
    assert explained_J == pytest.approx(found.energy_J, rel=1e-3)
    assert sum(group.time_share for group in found.groups) == pytest.approx(1, rel=1e-3)


def test_exact_readings_give_exact_powers() -> None:
    """Closed form: no noise, no lag, edges known exactly."""
    rng = np.random.default_rng(0)
    bounds_s = np.cumsum(rng.uniform(0.01, 0.05, 2000))
    power_W = np.where(np.arange(1999) % 2 == 0, 200.0, 600.0)
    energy_J = np.concatenate(([0.0], np.cumsum(np.diff(bounds_s) * power_W)))
    spans = list(pairwise(bounds_s))
    ticks_s = np.arange(0.1, bounds_s[-1], 0.1)
    edges = CounterEdges.of(ticks_s, np.interp(ticks_s, bounds_s, energy_J), 1e-6)
    found = attribute({"a": spans[::2], "b": spans[1::2]}, edges)
    assert found.of("a").power_W == pytest.approx(200, rel=1e-3)
    assert found.of("b").power_W == pytest.approx(600, rel=1e-3)


@pytest.mark.parametrize("jitter", [0.0, 0.01])
def test_the_same_mix_is_refused_and_its_mean_told(jitter: float) -> None:
    """Two steps of 50 ms in every tick of 100 ms: no interval differs from another."""
    phases: Phases = [("forward", 0.015, 450), ("backward", 0.030, 690), ("optimizer", 0.005, 200)]
    spans, edges = simulate(0, phases, gap_s=0.0, jitter=0.0, noise_s=jitter * 0.002)
    found = attribute(spans, edges)
    group = found.groups[0]
    assert set(group.phases) == {"forward", "backward", "optimizer"}
    assert group.power_W == pytest.approx((0.015 * 450 + 0.030 * 690 + 0.005 * 200) / 0.05, rel=0.005)
    with pytest.raises(InputError, match=r"'forward' and .* the same mix in every counter interval.*mean can: 569 W"):
        found.of("forward")
    assert any("same mix" in note for note in found.notes)


def test_a_phase_too_short_is_not_told() -> None:
    found = attribute(*simulate(0, [("clip", 0.0003, 200), *THREE[:2]], gap_s=0.02, seconds=40))
    assert found.of("backward").power_W == pytest.approx(690, rel=0.02)
    with pytest.raises(InputError, match=r"'clip' takes 0\.4.% of the time.*run longer"):
        found.of("clip")


def _noisy(seconds: float) -> tuple[Spans, CounterEdges]:
    """A counter that is 4 J off at each edge, of which a phase of 3 ms adds 1 J to an interval."""
    spans, edges = simulate(1, [("clip", 0.003, 200), *THREE[:2]], gap_s=0.02, seconds=seconds)
    off_J = np.random.default_rng(1).normal(0, 4, len(edges.energy_J))
    return spans, CounterEdges.of(edges.time_s, edges.energy_J + off_J, edges.width_s)


def test_a_short_run_says_how_long_one_must_be() -> None:
    needed_s = []
    for seconds in (10, 100):
        (note,) = [note for note in attribute(*_noisy(seconds)).notes if "'clip'" in note]
        needed_s.append(float(re.findall(r"run longer, for about (\d+) s", note)[0]))
    assert needed_s[0] == pytest.approx(needed_s[1], rel=0.4)
    assert attribute(*_noisy(needed_s[1])).of("clip").power_W == pytest.approx(200, rel=0.5)
    assert any("'clip'" in note for note in attribute(*_noisy(needed_s[1] / 3)).notes)


def test_what_no_phase_covers_has_its_own_power() -> None:
    found = attribute(*simulate(0, THREE, gap_s=0.02))
    assert found.of(OUTSIDE).power_W == pytest.approx(IDLE_W, rel=0.05)
    with pytest.raises(InputError, match="'loss': not among those measured: backward, "):
        found.of("loss")


def test_a_counter_that_samples() -> None:
    """One that takes the mean of the last 25 ms for the whole tick: right only when told so."""
    spans, edges = simulate(3, THREE, window_s=0.025)
    told, untold = attribute(spans, edges, window_s=0.025), attribute(spans, edges)
    for name, _, power_W in THREE:
        assert told.of(name).power_W == pytest.approx(power_W, rel=0.03)
    assert untold.residual_share > 0.05 > told.residual_share
    assert any("explain an interval's energy only to" in note for note in untold.notes)


def test_late_and_missed_edges_do_no_harm() -> None:
    spans, edges = simulate(5, THREE, seconds=240)
    keep = np.random.default_rng(0).random(len(edges.time_s)) > 0.1
    width_s = edges.width_s.copy()
    width_s[::17] = 0.1  # the poller slept: known only to a tick
    time_s = edges.time_s - (width_s - edges.width_s) / 2
    found = attribute(spans, CounterEdges.of(time_s[keep], edges.energy_J[keep], width_s[keep]))
    for name, _, power_W in THREE:
        assert found.of(name).power_W == pytest.approx(power_W, rel=0.02)


def test_too_little_to_go_on() -> None:
    spans, edges = simulate(0, THREE, seconds=1.0)
    with pytest.raises(InputError, match=r"\d intervals between counter edges are too few for 3 phases: 12 are needed"):
        attribute(spans, edges)
    with pytest.raises(InputError, match="no phase was measured"):
        attribute({}, edges)


def test_overlapping_phases_are_refused() -> None:
    spans, edges = simulate(0, THREE, seconds=10)
    spans["other"] = [(start + 0.010, end) for start, end in spans["backward"]]
    with pytest.raises(InputError, match=r"phases 'backward' and 'other' overlap by \d\d\.\d+ ms"):
        attribute(spans, edges)
    with pytest.raises(InputError, match="'a': a span ends before it starts"):
        attribute({"a": [(2.0, 1.0)]}, edges)


# --- the counter itself ----------------------------------------------------------------------------------------------


def test_a_counter_that_runs_backwards() -> None:
    spans, edges = simulate(0, THREE, seconds=20)
    energy_J = edges.energy_J.copy()
    energy_J[100:] -= energy_J[100]
    broken = CounterEdges.of(edges.time_s, energy_J, edges.width_s)
    says = r"ran backwards, by \d+\.\d J, 10\.\d s into the session.*Trust the \d+\.\d J of the 9\.9 s before that"
    with pytest.raises(DeviceError, match=says):
        check_counter(broken, 1000.0, 1020.0)
    with pytest.raises(DeviceError, match="ran backwards"):
        attribute(spans, broken)


def test_a_counter_that_sticks() -> None:
    edges = simulate(0, THREE, seconds=20)[1]
    check_counter(edges, 1000.0, 1019.95)
    with pytest.raises(DeviceError, match=r"did not change for 5\.\d s, from 19\.\d s into.*Trust the phase times"):
        check_counter(edges, 1000.0, 1025.0)
    hole = (edges.time_s < 1005) | (edges.time_s > 1008)
    with pytest.raises(DeviceError, match=r"did not change for 3\.\d s, from [45]\.\d s"):
        check_counter(CounterEdges.of(edges.time_s[hole], edges.energy_J[hole], edges.width_s[hole]), 1000.0, 1019.95)


def test_nobody_looking_is_no_sticking() -> None:
    """A change seen between two readings 3 s apart may have come right after the first."""
    edges = CounterEdges.of([0.1, 0.2, 1.7, 3.2, 3.3], [1, 2, 30, 31, 32], [0.005, 0.005, 2.9, 0.005, 0.005])
    with pytest.raises(DeviceError, match="did not change"):
        check_counter(CounterEdges.of([0.1, 0.2, 3.2, 3.3], [1, 2, 31, 32]), 0.0, 3.4)
    with pytest.raises(DeviceError, match="did not change"):
        check_counter(CounterEdges.of([], []), 0.0, 3.4)
    check_counter(CounterEdges.of(edges.time_s[:3], edges.energy_J[:3], edges.width_s[:3]), 0.0, 3.4)
