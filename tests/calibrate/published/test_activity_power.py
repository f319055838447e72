"""Fits to activity counters at locked clocks: programs that obey the equations give them back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moemodel.calibration.fit.power import Loads
from moemodel.calibration.fit.thermal import LEAK_W_PER_C, RISE_PER_C
from moemodel.calibration.published.activity_power import (
    LEVEL_SPREAD,
    PRIORS,
    ActivityPower,
    fit_activities,
    voltage_model,
)
from moemodel.model.core.arrays import FloatArray
from moemodel.model.operators.work import Kind, Pass, Work
from studies.programs import Bandwidth, projected, with_steady_temperature

TOP_HZ, KNEE_HZ, SLOPE = 1.41e9, 1.1e9, 1.5
# V^2 at the top clock over V^2 at the lowest: coefficients are of the top clock, priors of the lowest voltage.
RISE = (1 + SLOPE * (TOP_HZ / KNEE_HZ - 1)) ** 2
TRUTH = ActivityPower(
    model=voltage_model(
        KNEE_HZ,
        SLOPE,
        TOP_HZ,
        base_W=PRIORS["base_W"].value,
        active_W=60.0,
        flop_J=1.3 * PRIORS["flop_J"].value * RISE,
        vector_op_J=0.7 * PRIORS["vector_op_J"].value * RISE,
        cache_J_per_B=1.2 * PRIORS["cache_J_per_B"].value * RISE,
        dram_J_per_B=1.5 * PRIORS["dram_J_per_B"].value,
        leak_W_per_C=LEAK_W_PER_C,
        rise_per_C=RISE_PER_C,
        thermal_C_per_W=0.06,
        inlet_C=24.0,
        tree_W=PRIORS["tree_W"].value * RISE,
    ),
    levels={},
)
# SMs busy; rates at the top clock: 16-bit FLOPs, vector operations, bytes; how much more it draws than the counters say
PROGRAMS = {
    "product": (1.0, 3e14, 0.0, 2e11, 1.2),
    "stream": (1.0, 0.0, 2e11, 1.7e12, 0.8),
    "stencil": (0.9, 0.0, 4e12, 8e11, 1.25),
    "scalar": (0.4, 0.0, 3e11, 2e10, 0.8),
    "physics": (1.0, 0.0, 8e12, 5e10, 1.0),
    "mixed": (0.7, 1e14, 2e12, 4e11, 1.0),
}
CLOCKS_HZ = np.linspace(510e6, TOP_HZ, 16)


def program(name: str, clock_Hz: FloatArray = CLOCKS_HZ) -> Loads:
    """A program's readings: work follows the clock, except for its bytes, and temperature follows power."""
    sm, flops, vector_ops, bytes_B, level = PROGRAMS[name]
    relative = clock_Hz / TOP_HZ
    loads = Loads(
        names=[f"{name}@{clock:.0f}" for clock in clock_Hz],
        keys=[name] * len(clock_Hz),
        power_W=np.zeros(len(clock_Hz)),
        clock_Hz=clock_Hz,
        temperature_C=np.zeros(len(clock_Hz)),
        duty=np.full(len(clock_Hz), sm),
        rate_per_s=np.ones(len(clock_Hz)),
        flops=flops * relative,
        vector_ops=vector_ops * relative,
        bytes_B=np.full(len(clock_Hz), bytes_B),
    )
    warm = with_steady_temperature(loads, TRUTH, level)
    return replace(warm, power_W=TRUTH.power_W(warm, level))


def joined(parts: list[Loads]) -> Loads:
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name, value in vars(parts[0]).items()
        if isinstance(value, np.ndarray)
    }
    names, keys = ([text for part in parts for text in getattr(part, field)] for field in ("names", "keys"))
    return Loads(names=names, keys=keys, **arrays)


@pytest.fixture(scope="module")
def fitted() -> ActivityPower:
    return fit_activities(joined([program(name) for name in PROGRAMS if name != "mixed"]), TOP_HZ)


def test_dynamic_power_is_that_of_the_product() -> None:
    """At the reference temperature, the energy of a second of `model.device.power`."""
    loads = replace(program("mixed"), temperature_C=np.full(len(CLOCKS_HZ), TRUTH.model.leak_reference_C))
    for row, clock_Hz in enumerate(CLOCKS_HZ):
        second = Work(
            flops=loads.flops[row : row + 1],
            vector_ops=loads.vector_ops[row : row + 1],
            bytes_B=loads.bytes_B[row : row + 1],
        )
        busy_s = loads.duty[row].reshape(1, 1)
        energy = TRUTH.model.dynamic_J(Kind.GEMM, Pass.FORWARD, second, np.array([clock_Hz]), busy_s)
        assert TRUTH.dynamic_W(loads)[row] == pytest.approx(energy[0, 0])


def test_voltage_curve_and_static_power_come_back(fitted: ActivityPower) -> None:
    assert fitted.model.knee_Hz == pytest.approx(KNEE_HZ, rel=0.01)
    assert fitted.model.voltage_slope == pytest.approx(SLOPE, rel=0.05)
    assert fitted.model.base_W == pytest.approx(TRUTH.model.base_W, rel=0.02)
    assert fitted.model.tree_W == pytest.approx(TRUTH.model.tree_W, rel=0.1)


def test_levels_of_programs_come_back_but_for_their_common_size(fitted: ActivityPower) -> None:
    ratio = [fitted.levels[name] / PROGRAMS[name][-1] for name in fitted.levels]
    assert np.std(np.log(ratio)) < 0.15
    assert np.std(np.log([PROGRAMS[name][-1] for name in fitted.levels])) > 0.19


def test_a_program_that_was_left_out(fitted: ActivityPower) -> None:
    """Its level is 1, so that its counters say all; one reading says it without them."""
    loads = program("mixed")
    assert fitted.power_W(loads) == pytest.approx(loads.power_W, rel=0.08)
    assert fitted.power_W(loads, fitted.level(loads)[-1]) == pytest.approx(loads.power_W, rel=0.02)


def test_one_reading_tells_the_level() -> None:
    for name, (*_, level) in PROGRAMS.items():
        assert TRUTH.level(program(name)) == pytest.approx(level)


def test_without_levels_programs_that_differ_in_them_are_not_met() -> None:
    loads = joined([program(name) for name in PROGRAMS])
    same, own = (fit_activities(loads, TOP_HZ, spread) for spread in (1e-3, LEVEL_SPREAD))
    levels = np.array([own.levels[key] for key in loads.keys])
    off = np.abs(same.power_W(loads) / loads.power_W - 1).mean()
    assert max(abs(np.log(level)) for level in same.levels.values()) < 0.01
    assert off > 5 * np.abs(own.power_W(loads, levels) / loads.power_W - 1).mean()


def test_a_unit_that_no_program_exercised_has_its_prior() -> None:
    """Else leaving out the one program with tensor cores would leave them without power."""
    power = fit_activities(joined([program(name) for name in ("stream", "stencil", "scalar")]), TOP_HZ)
    lowest = float(power.model.voltage2(np.zeros(1))[0])
    assert power.model.flop_J * lowest == pytest.approx(PRIORS["flop_J"].value, rel=1e-3)


def test_temperature_is_that_of_the_power_it_gives() -> None:
    loads = program("product")
    assert loads.temperature_C == pytest.approx(24 + 0.06 * loads.power_W)


BANDWIDTH = Bandwidth(memory_Bps=1.7e12, issue_Bps=2.6e12, p=10.0)


@pytest.mark.parametrize(("name", "exponent"), [("physics", 1.0), ("stream", 0.0)])
def test_time_follows_the_clock_or_memory(name: str, exponent: float) -> None:
    """From the top clock to two thirds of it, above which SMs issue enough loads."""
    clock_Hz = np.array([0.8 * TOP_HZ, TOP_HZ])
    loads = program(name, clock_Hz)
    carried, time = projected(loads, np.array([1, 1]), BANDWIDTH)
    assert time == pytest.approx([0.8**-exponent, 1.0], rel=0.03)
    assert carried.rate_per_s * time == pytest.approx(loads.rate_per_s[1])
    assert carried.duty == pytest.approx(loads.duty)


def test_far_below_its_clock_memory_waits_for_the_loads() -> None:
    clock_Hz = np.array([0.36 * TOP_HZ, 0.4 * TOP_HZ, TOP_HZ])
    _, time = projected(program("stream", clock_Hz), np.array([2, 2, 2]), BANDWIDTH)
    assert time[1] > 1.4
    assert time[0] / time[1] == pytest.approx(0.4 / 0.36, rel=0.02)


def test_time_without_work_on_the_sms_does_not_follow_the_clock() -> None:
    clock_Hz = np.array([0.5 * TOP_HZ, TOP_HZ])
    carried, time = projected(program("scalar", clock_Hz), np.array([1, 1]), BANDWIDTH)
    assert time[0] == pytest.approx(0.6 + 0.4 * 2, rel=0.01)
    assert carried.duty[0] == pytest.approx(0.8 / 1.4, rel=0.01)


def test_nothing_is_read_of_other_clocks_than_the_one_given() -> None:
    loads = program("stencil")
    top_N = np.full(len(CLOCKS_HZ), len(CLOCKS_HZ) - 1)
    spoilt = replace(
        loads,
        flops=np.append(np.full(len(CLOCKS_HZ) - 1, np.nan), loads.flops[-1]),
        vector_ops=np.append(np.full(len(CLOCKS_HZ) - 1, np.nan), loads.vector_ops[-1]),
        bytes_B=np.append(np.full(len(CLOCKS_HZ) - 1, np.nan), loads.bytes_B[-1]),
        duty=np.append(np.full(len(CLOCKS_HZ) - 1, np.nan), loads.duty[-1]),
    )
    for clean, other in zip(
        vars(projected(loads, top_N, BANDWIDTH)[0]).values(),
        vars(projected(spoilt, top_N, BANDWIDTH)[0]).values(),
        strict=True,
    ):
        assert np.array_equal(clean, other)
