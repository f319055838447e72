"""The simulated GPU obeys its physics: closed forms of the timeline, power, heat, governor, sensors and kernels."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moemodel.model.core.errors import DeviceError
from moemodel.model.operators.work import Kind, Pass
from moemodel.profiler.microbench.points import Point, Sizes
from moemodel.profiler.simulated.chip import CHIPS, Chip
from moemodel.profiler.simulated.faults import Faults, parse_faults
from moemodel.profiler.simulated.gpu import VirtualGpu
from moemodel.profiler.simulated.instruments import SimulatedDevice, SimulatedInstruments, open_simulated
from moemodel.profiler.simulated.kernels import Kernel, kernel

GEMM = Point(kind=Kind.GEMM, direction=Pass.FORWARD, sizes=Sizes(m=8192, n=8192, k=8192))
COPY = Point(kind=Kind.COPY, direction=Pass.FORWARD, sizes=Sizes(m=1 << 28))
TINY = Point(kind=Kind.GELU, direction=Pass.FORWARD, sizes=Sizes(m=64, n=64))
KNOWN = {"h100": "h100-sxm-80gb", "a100": "a100-sxm-80gb", "v100": "v100-sxm-32gb"}


@pytest.fixture(params=sorted(CHIPS))
def chip(request: Any) -> Chip:
    return CHIPS[request.param]()


@pytest.fixture
def h100() -> Chip:
    return CHIPS["h100-sxm-80gb"]()


def unlimited(chip: Chip) -> Chip:
    """A chip that nothing slows down."""
    return replace(chip, governor=replace(chip.governor, sustained_share=100.0, tensor_Hz=1e12))


def busy(gpu: VirtualGpu, one: Kernel, seconds: float, share: float = 1.0, burst_s: float = 8e-3) -> None:
    """Hold a load, in bursts."""
    end_s = gpu.now_s + seconds
    while gpu.now_s < end_s:
        begun_s = gpu.now_s
        gpu.launch(one, max(1, round(burst_s / one.time_s(gpu.set_Hz))))
        gpu.synchronize()
        gpu.sleep((gpu.now_s - begun_s) * (1 - share) / share)


def mean_W(gpu: VirtualGpu, one: Kernel, seconds: float, share: float = 1.0) -> float:
    energy_J, time_s = gpu.totals.energy_J, gpu.totals.time_s
    busy(gpu, one, seconds, share)
    return (gpu.totals.energy_J - energy_J) / (gpu.totals.time_s - time_s)


# --- time ------------------------------------------------------------------------------------------------------------


def test_time_passes_only_when_the_host_lets_it(h100: Chip) -> None:
    gpu = VirtualGpu(h100)
    assert gpu.now_s == 0
    gpu.sleep(1.5)
    assert gpu.now_s == gpu.totals.time_s == pytest.approx(1.5)


def test_queueing_is_not_waiting(h100: Chip) -> None:
    """Twenty long kernels are queued in microseconds; they are done when the device says so."""
    gpu, one = VirtualGpu(unlimited(h100)), kernel(h100, GEMM)
    before = gpu.mark()
    gpu.launch(one, 20)
    after = gpu.mark()
    assert gpu.now_s < 1e-3
    gpu.synchronize()
    assert gpu.now_s == pytest.approx(20 * one.time_s(h100.clock_max_Hz), rel=0.02)
    assert after.time_s - before.time_s == pytest.approx(20 * one.time_s(h100.clock_max_Hz), rel=1e-3)
    assert (after.cycles - before.cycles) / (after.time_s - before.time_s) == pytest.approx(h100.clock_max_Hz)


def test_a_slow_host_holds_the_device_up(h100: Chip) -> None:
    gpu, one = VirtualGpu(h100), kernel(h100, TINY)
    assert one.time_s(h100.clock_max_Hz) < one.host_s
    before = gpu.mark()
    gpu.launch(one, 1000)
    after = gpu.mark()
    gpu.synchronize()
    assert (after.time_s - before.time_s) / 1000 == pytest.approx(one.host_s, rel=0.1)


def test_work_queued_behind_a_spin_runs_back_to_back(h100: Chip) -> None:
    gpu, one = VirtualGpu(h100), kernel(h100, TINY)
    gpu.hold(400 * one.host_s)
    before = gpu.mark()
    gpu.launch(one, 200)
    after = gpu.mark()
    gpu.synchronize()
    assert (after.time_s - before.time_s) / 200 == pytest.approx(one.time_s(h100.clock_max_Hz), rel=1e-3)


def test_a_full_queue_blocks_the_host(h100: Chip) -> None:
    gpu, one = VirtualGpu(h100), kernel(h100, GEMM)
    gpu.launch(one, 1000)
    assert gpu.now_s < 0.1
    gpu.launch(one, 500)
    assert gpu.now_s > 300 * one.time_s(h100.clock_max_Hz)


# --- power and heat --------------------------------------------------------------------------------------------------


def test_energy_is_that_of_the_calls_and_of_time(chip: Chip) -> None:
    cold = replace(unlimited(chip), electrics=replace(chip.electrics, leak_W_per_C=0.0))
    gpu, one = VirtualGpu(cold), kernel(cold, GEMM)
    gpu.launch(one, 100)
    gpu.synchronize()
    calls_J = 100 * gpu.energy_J(one, chip.clock_max_Hz)
    idle_W = chip.electrics.base_W + chip.electrics.tree_W
    assert gpu.totals.energy_J == pytest.approx(idle_W * gpu.now_s + calls_J, rel=1e-6)


def test_the_clock_tree_follows_clock_and_voltage(chip: Chip) -> None:
    gpu, e = VirtualGpu(chip), chip.electrics
    gpu.die_C = 50.0
    assert gpu.static_W(chip.clock_max_Hz) == pytest.approx(e.base_W + e.tree_W)
    assert gpu.static_W(0.0) == pytest.approx(e.base_W)
    half_Hz = 0.5 * e.knee_Hz
    tree_W = e.tree_W * gpu.voltage2(half_Hz) * half_Hz / chip.clock_max_Hz
    assert gpu.static_W(half_Hz) == pytest.approx(e.base_W + tree_W)


def test_voltage_is_flat_below_the_knee(chip: Chip) -> None:
    gpu, e = VirtualGpu(chip), chip.electrics
    top = 1 + e.voltage_slope * (chip.clock_max_Hz / e.knee_Hz - 1)
    assert gpu.voltage2(0.5 * e.knee_Hz) == gpu.voltage2(e.knee_Hz) == pytest.approx(top**-2)
    assert gpu.voltage2(chip.clock_max_Hz) == 1


def test_steady_temperature_solves_power_and_heat_together(chip: Chip) -> None:
    """T = T_inlet + R P and P = base + tree + leak (T - 50) in the long run, at the top clock."""
    e, t = chip.electrics, chip.thermal
    resistance = t.die_C_per_W + t.sink_C_per_W
    steady_W = (e.base_W + e.tree_W + e.leak_W_per_C * (t.inlet_C - 50)) / (1 - e.leak_W_per_C * resistance)
    gpu = VirtualGpu(chip)
    gpu.sleep(1)
    assert gpu.static_W() == pytest.approx(steady_W, rel=1e-6)
    assert gpu.die_C == pytest.approx(t.inlet_C + resistance * steady_W, abs=1e-4)
    power_W = mean_W(gpu, kernel(chip, COPY), 5.0)
    busy(gpu, kernel(chip, COPY), 150.0, burst_s=0.1)
    assert gpu.die_C == pytest.approx(t.inlet_C + resistance * power_W, rel=0.03)


def test_cooling_follows_the_two_time_constants(h100: Chip) -> None:
    """Without leakage the network is linear: its decay is that of the eigenvalues of its matrix."""
    cold = replace(h100, electrics=replace(h100.electrics, leak_W_per_C=0.0))
    t, idle_W = cold.thermal, cold.electrics.base_W + cold.electrics.tree_W
    gpu = VirtualGpu(cold)
    still = np.array([gpu.die_C, gpu.sink_C])
    gpu.die_C, gpu.sink_C = still[0] + 20.0, still[1] + 8.0
    gpu.sleep(4.0)
    a, b = 1 / t.die_C_per_W, 1 / t.sink_C_per_W
    matrix = np.array([[-a / t.die_J_per_C, a / t.die_J_per_C], [a / t.sink_J_per_C, -(a + b) / t.sink_J_per_C]])
    values, vectors = np.linalg.eig(matrix)
    expected = still + vectors @ (np.exp(4.0 * values) * np.linalg.solve(vectors, [20.0, 8.0]))
    assert [gpu.die_C, gpu.sink_C] == pytest.approx(expected, abs=0.05)
    assert still[1] == pytest.approx(t.inlet_C + t.sink_C_per_W * idle_W)


# --- governor --------------------------------------------------------------------------------------------------------


def test_mean_power_settles_at_its_share_of_the_cap(chip: Chip) -> None:
    gpu, one = VirtualGpu(chip), kernel(chip, GEMM)
    busy(gpu, one, 1.5)
    assert mean_W(gpu, one, 1.0) == pytest.approx(chip.governor.sustained_share * chip.cap_W, rel=0.01)
    steps = (gpu.set_Hz - chip.clock_min_Hz) / chip.clock_step_Hz
    assert steps == pytest.approx(round(steps))
    assert gpu.set_Hz < 0.95 * chip.clock_max_Hz


def test_bursts_run_below_the_clock_that_is_reported(chip: Chip) -> None:
    gpu, one = VirtualGpu(chip), kernel(chip, GEMM)
    busy(gpu, one, 2.0, share=0.3)
    true_Hz = gpu.true_clock_Hz(one)
    assert gpu.set_Hz == chip.clock_max_Hz
    assert true_Hz < 0.95 * gpu.set_Hz
    assert true_Hz > 0.95 * chip.governor.tensor_Hz
    assert gpu.true_clock_Hz(kernel(chip, COPY)) == gpu.set_Hz


def test_what_draws_little_runs_at_the_top(chip: Chip) -> None:
    gpu, one = VirtualGpu(chip), kernel(chip, COPY)
    busy(gpu, one, 1.0)
    assert gpu.true_clock_Hz(one) == gpu.set_Hz == chip.clock_max_Hz


def test_heat_slows_the_clock(h100: Chip) -> None:
    gpu = VirtualGpu(h100)
    gpu.die_C = gpu.sink_C = 95.0
    gpu.sleep(0.5)
    assert gpu.set_Hz == pytest.approx(h100.clock_max_Hz - 10 * h100.clock_step_Hz)


# --- sensors ---------------------------------------------------------------------------------------------------------


def test_the_counter_ticks_every_100_ms(h100: Chip) -> None:
    gpu = VirtualGpu(h100)
    device = SimulatedDevice(gpu)
    readings = []
    for _ in range(100):
        readings.append(device.energy_J())
        gpu.sleep(0.01)
    changes = [i for i in range(1, 100) if readings[i] != readings[i - 1]]
    assert [b - a for a, b in itertools.pairwise(changes)] == [10] * (len(changes) - 1)
    assert readings[-1] is not None
    assert readings[0] is not None
    assert readings[-1] - readings[0] == pytest.approx(0.9 * gpu.static_W(), rel=0.02)
    assert device.temperature_C() == round(gpu.die_C)
    assert device.power_W() == pytest.approx(gpu.static_W(), abs=5)


def test_activity_is_that_of_the_window(h100: Chip) -> None:
    gpu, one = VirtualGpu(unlimited(h100)), kernel(h100, GEMM)
    meter = SimulatedDevice(gpu).activity()
    busy(gpu, one, 0.2)
    meter.begin()
    busy(gpu, one, 1.0, share=0.5)
    shares = meter.end()
    assert shares["sm_activity"] == pytest.approx(0.5, abs=0.02)
    flops_per_s = one.flops / one.time_s(h100.clock_max_Hz)
    peak = h100.multiprocessors * h100.flops_per_cycle * h100.clock_max_Hz
    assert shares["tensor_activity"] == pytest.approx(0.5 * flops_per_s / peak, rel=0.05)
    assert set(SimulatedDevice(VirtualGpu(CHIPS["a100-sxm-80gb"]())).activity().end().values()) == {None}


def test_samples_carry_noise_of_the_seed(h100: Chip) -> None:
    def times(seed: int) -> list[float]:
        instruments = SimulatedInstruments(VirtualGpu(h100, seed))
        case, stream = instruments.build(COPY), instruments.stream
        return [sample.time_s for sample in stream.read([stream.queue(case, 3, 1e-3) for _ in range(50)])]

    first = times(1)
    assert times(1) == first
    assert times(2) != first
    true_s = kernel(h100, COPY).time_s(h100.clock_max_Hz)
    assert np.mean(first) == pytest.approx(true_s, rel=0.002)
    assert np.std(first) / true_s == pytest.approx(h100.sensors.time_noise, rel=0.4)


# --- kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(Kind))
def test_more_clock_is_never_slower(chip: Chip, kind: Kind) -> None:
    from moemodel.model.operators.work import PASSES

    sizes = Sizes(m=4096, n=1024, k=1024, batch=2, heads=16, kv_heads=8, seq=1024, head_dim=64, experts=8, top_k=2)
    clocks = np.linspace(chip.clock_min_Hz, chip.clock_max_Hz, 20)
    for direction in PASSES[kind]:
        one = kernel(chip, Point(kind=kind, direction=direction, sizes=sizes))
        times = np.array([one.time_s(f) for f in clocks])
        assert (np.diff(times) < 0).all()
        assert (np.diff(times * clocks) > 0).all()  # and never gains more than the clock did


def test_a_large_product_reaches_its_efficiency(chip: Chip) -> None:
    whole = Sizes(m=128 * int(chip.multiprocessors), n=256 * 16, k=1 << 16)
    one = kernel(chip, Point(kind=Kind.GEMM, direction=Pass.FORWARD, sizes=whole))
    rate = chip.multiprocessors * chip.flops_per_cycle * chip.clock_max_Hz
    efficiency = one.flops / one.time_s(chip.clock_max_Hz) / rate
    assert efficiency == pytest.approx(max(chip.timing.tiles.values()), rel=0.01)


def test_a_large_copy_reaches_its_share_of_the_bandwidth(chip: Chip) -> None:
    one = kernel(chip, COPY)
    share = one.bytes_B / one.time_s(chip.clock_max_Hz) / chip.bandwidth_Bps
    assert share == pytest.approx(chip.timing.streams[Kind.COPY].memory, rel=0.02)


def test_experts_without_rows_cost_nothing(h100: Chip) -> None:
    empty = Sizes(m=4, n=1024, k=1024, experts=64, skew=16.0)
    for direction in (Pass.FORWARD, Pass.BACKWARD_WEIGHT):
        one = kernel(h100, Point(kind=Kind.GROUPED_GEMM, direction=direction, sizes=empty))
        assert 0 < one.time_s(h100.clock_max_Hz) < 1e-3


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_of_simulated_gpus() -> None:
    device = open_simulated("sim:H100?seed=3&fail=lost-after-5s,stuck-power-after-2.5s", KNOWN)
    assert device.info.vendor == "simulated"
    assert device.info.name.startswith("simulated ")
    assert device.info.power_limit_W == 700
    assert device.gpu.faults == Faults(lost_s=5, stuck_s={"power": 2.5})
    assert parse_faults(["no-permission", "counter-reset-after-1s"], "") == Faults(no_permission=True, reset_s=1)


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        ("sim:v100", "not simulated; there are: h100-sxm-80gb, a100-sxm-80gb"),
        ("sim:b200", "no GPU of that name"),
        ("sim:h100?speed=2", "found option 'speed'; allowed: seed, fail"),
        ("sim:h100?seed=x", "seed: found 'x'; allowed: a whole number"),
        ("sim:h100?fail=lost", "fail: found 'lost'; allowed: lost-after-SECONDSs, no-permission"),
    ],
)
def test_what_cannot_be_simulated_is_said(gpu: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        open_simulated(gpu, KNOWN)
