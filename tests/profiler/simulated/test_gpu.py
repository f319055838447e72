"""The simulated GPU obeys its physics: published figures, closed forms and limits of each part, and the timeline."""

from __future__ import annotations

import ast
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moemodel.model.core.errors import DeviceError
from moemodel.model.operators.work import Kind, Pass
from moemodel.profiler import simulated
from moemodel.profiler.microbench.points import Point, Sizes
from moemodel.profiler.simulated.chip import CHIPS, Memory, SimulatedChip
from moemodel.profiler.simulated.electrics import Draw, Silicon
from moemodel.profiler.simulated.faults import Faults, parse_faults
from moemodel.profiler.simulated.governor import SteppingGovernor, true_clock_Hz
from moemodel.profiler.simulated.gpu import VirtualGpu
from moemodel.profiler.simulated.instruments import SimulatedDevice, SimulatedInstruments, open_simulated
from moemodel.profiler.simulated.kernels import Kernel, MemoryPath, kernel
from moemodel.profiler.simulated.noise import Flicker

GEMM = Point(kind=Kind.GEMM, direction=Pass.FORWARD, sizes=Sizes(m=8192, n=8192, k=8192))
COPY = Point(kind=Kind.COPY, direction=Pass.FORWARD, sizes=Sizes(m=1 << 28))
TINY = Point(kind=Kind.GELU, direction=Pass.FORWARD, sizes=Sizes(m=64, n=64))
KNOWN = {"h100": "h100-sxm-80gb", "a100": "a100-sxm-80gb", "v100": "v100-sxm-32gb"}


@pytest.fixture(params=sorted(CHIPS))
def chip(request: Any) -> SimulatedChip:
    return CHIPS[request.param]()


@pytest.fixture
def h100() -> SimulatedChip:
    return CHIPS["h100-sxm-80gb"]()


@pytest.fixture
def silicon(chip: SimulatedChip) -> Silicon:
    return Silicon(chip.electrics, chip.clock_max_Hz)


def unlimited(chip: SimulatedChip) -> SimulatedChip:
    """A chip that nothing slows down."""
    return replace(chip, governor=replace(chip.governor, target=100.0, skipping=0.0))


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


# --- a world of its own ----------------------------------------------------------------------------------------------

# All that it takes from the predictor: names of operators, the data sheet, and what documents are made of.
SHARED = {"DeviceError", "Gpu", "read_gpu", "write_atomic", "Kind", "Pass", "DeviceInfo", "HostRow"}


def test_it_shares_no_equation_with_the_predictor() -> None:
    taken: set[str] = set()
    for file in Path(simulated.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(name.name.startswith("moemodel.model") for name in node.names)
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("moemodel.model"):
                taken |= {name.name for name in node.names}
    assert taken == SHARED


# --- time ------------------------------------------------------------------------------------------------------------


def test_time_passes_only_when_the_host_lets_it(h100: SimulatedChip) -> None:
    gpu = VirtualGpu(h100)
    assert gpu.now_s == 0
    gpu.sleep(1.5)
    assert gpu.now_s == gpu.totals.time_s == pytest.approx(1.5)


def test_queueing_is_not_waiting(h100: SimulatedChip) -> None:
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


def test_a_slow_host_holds_the_device_up(h100: SimulatedChip) -> None:
    gpu, one = VirtualGpu(h100), kernel(h100, TINY)
    assert one.time_s(h100.clock_max_Hz) < one.host_s
    before = gpu.mark()
    gpu.launch(one, 1000)
    after = gpu.mark()
    gpu.synchronize()
    assert (after.time_s - before.time_s) / 1000 == pytest.approx(one.host_s, rel=0.1)


def test_work_queued_behind_a_spin_runs_back_to_back(h100: SimulatedChip) -> None:
    gpu, one = VirtualGpu(h100), kernel(h100, TINY)
    gpu.hold(400 * one.host_s)
    before = gpu.mark()
    gpu.launch(one, 200)
    after = gpu.mark()
    gpu.synchronize()
    assert (after.time_s - before.time_s) / 200 == pytest.approx(one.time_s(h100.clock_max_Hz), rel=1e-3)


def test_a_full_queue_blocks_the_host(h100: SimulatedChip) -> None:
    gpu, one = VirtualGpu(h100), kernel(h100, GEMM)
    gpu.launch(one, 1000)
    assert gpu.now_s < 0.1
    gpu.launch(one, 500)
    assert gpu.now_s > 300 * one.time_s(h100.clock_max_Hz)


# --- electrics -------------------------------------------------------------------------------------------------------


def test_voltage_follows_the_alpha_power_law(silicon: Silicon) -> None:
    """Sakurai & Newton: a gate's delay goes as V / (V - V_th)^alpha; one step of the regulator less is too slow."""
    e, top_Hz = silicon.electrics, silicon.clock_max_Hz

    def delay(voltage_V: float) -> float:
        return float(voltage_V / (voltage_V - e.threshold_V) ** e.alpha)

    for clock_Hz in np.linspace(0.17, 0.999, 12) * top_Hz:
        voltage_V = silicon.voltage_V(float(clock_Hz))
        assert delay(voltage_V) <= delay(e.top_V) * top_Hz / clock_Hz * (1 + 1e-9) < delay(voltage_V - e.step_V)
        assert voltage_V / e.step_V == pytest.approx(round(voltage_V / e.step_V))
    assert silicon.voltage_V(top_Hz) == pytest.approx(e.top_V)


def test_voltage_has_no_knee(silicon: Silicon) -> None:
    """It rises everywhere, where the predictor knows a flat part."""
    clocks = np.linspace(0.2, 1.0, 9) * silicon.clock_max_Hz
    voltages = np.array([silicon.voltage_V(float(f)) for f in clocks])
    assert (np.diff(voltages) > 2 * silicon.electrics.step_V).all()


def test_leakage_is_as_published(silicon: Silicon) -> None:
    """Liao, He & Lepak 2005: average leakage of 65 nm circuits by temperature and supply, uA, within their fit."""
    published = {
        (100, 0.95): 23.44, (100, 1.05): 29.56, (80, 0.95): 19.44, (80, 1.05): 25.14, (60, 0.95): 16.00,
        (60, 1.05): 21.33,
    }  # fmt: skip
    ours = {at: silicon.leak_W(at[1], at[0]) / at[1] for at in published}
    ratios = np.array([ours[at] / published[at] for at in published])
    assert ratios / ratios.mean() == pytest.approx(np.ones(6), rel=0.02)
    assert silicon.leak_W(silicon.electrics.top_V, 50.0) == pytest.approx(silicon.electrics.leak_W)


def test_current_costs_by_its_square(silicon: Silicon) -> None:
    """Twice as much drawn by the core loses four times as much on the way to it."""
    e, top_Hz = silicon.electrics, silicon.clock_max_Hz
    rest_W = silicon.leak_W(e.top_V, 50.0) + silicon.tree_W(top_Hz)
    lost_W = []
    for core_W in (200.0, 400.0):
        draw = Draw(core_W=core_W - rest_W, memory_W=30.0)
        lost_W.append(silicon.power_W(top_Hz, 50.0, draw) - e.fixed_W - core_W - 30.0)
    assert lost_W[1] == pytest.approx(4 * lost_W[0])
    assert lost_W[0] == pytest.approx(e.conduction_Ohm * (200.0 / e.top_V) ** 2)


def test_energy_is_power_times_time(chip: SimulatedChip) -> None:
    gpu, one = VirtualGpu(unlimited(chip)), kernel(chip, GEMM)
    gpu.warm(400.0)
    powers = [gpu.busy_W(one, chip.clock_max_Hz)]
    gpu.launch(one, 20)
    gpu.synchronize()
    powers.append(gpu.busy_W(one, chip.clock_max_Hz))
    assert min(powers) <= gpu.totals.energy_J / gpu.now_s * (1 + 1e-3)
    assert max(powers) >= gpu.totals.energy_J / gpu.now_s


# What this project measured of an H100 (see `chip`): share of the time, true MHz, W. The simulation is like it.
MEASURED = [
    (GEMM, 1.0, 1365, 699), (GEMM, 0.85, 1437, 696), (GEMM, 0.7, 1568, 680), (GEMM, 0.5, 1583, 543),
    (COPY, 1.0, 1995, 493),
]  # fmt: skip


@pytest.mark.parametrize(("point", "share", "clock_MHz", "power_W"), MEASURED)
def test_it_is_like_a_real_h100(
    h100: SimulatedChip, point: Point, share: float, clock_MHz: float, power_W: float
) -> None:
    gpu, one = VirtualGpu(h100), kernel(h100, point)
    busy(gpu, one, 3.0, share)
    assert mean_W(gpu, one, 1.5, share) == pytest.approx(power_W, rel=0.05)
    assert gpu.running(one).clock_Hz == pytest.approx(clock_MHz * 1e6, rel=0.05)


# --- heat ------------------------------------------------------------------------------------------------------------


def test_steady_temperature_solves_power_and_heat_together(chip: SimulatedChip) -> None:
    """T = T_inlet + R P(T) in the long run."""
    t = chip.thermal
    gpu = VirtualGpu(chip)
    gpu.sleep(1)
    assert gpu.die_C == pytest.approx(t.inlet_C + t.total_C_per_W * gpu.static_W(), abs=1e-3)
    busy(gpu, kernel(chip, COPY), 120.0, burst_s=0.1)
    power_W = mean_W(gpu, kernel(chip, COPY), 2.0)
    assert gpu.die_C == pytest.approx(t.inlet_C + t.total_C_per_W * power_W, rel=0.01)


def test_cooling_follows_the_modes_of_the_masses(h100: SimulatedChip) -> None:
    """Without leakage the row is linear: its decay is that of the eigenvalues of its matrix."""
    cold = replace(h100, electrics=replace(h100.electrics, leak_W=0.0))
    t = cold.thermal
    gpu = VirtualGpu(cold)
    still = np.array([gpu.die_C, gpu.chamber_C, gpu.fins_C])
    gpu.die_C, gpu.chamber_C, gpu.fins_C = still + np.array([20.0, 15.0, 8.0])
    gpu.sleep(4.0)
    flows = np.array([1 / t.die_C_per_W, 1 / t.chamber_C_per_W, 1 / t.fins_C_per_W])
    masses = np.array([t.die_J_per_C, t.chamber_J_per_C, t.fins_J_per_C])
    between = np.array([[1, -1, 0], [0, 1, -1], [0, 0, 1]])  # die to chamber, chamber to fins, fins to inlet
    matrix = -(between.T * flows) @ between / masses[:, None]
    values, vectors = np.linalg.eig(matrix)
    expected = still + vectors @ (np.exp(4.0 * values) * np.linalg.solve(vectors, [20.0, 15.0, 8.0]))
    assert [gpu.die_C, gpu.chamber_C, gpu.fins_C] == pytest.approx(expected, abs=0.05)


# --- governor --------------------------------------------------------------------------------------------------------


def test_mean_power_settles_in_the_band_below_the_cap(chip: SimulatedChip) -> None:
    gpu, one, g = VirtualGpu(chip), kernel(chip, GEMM), chip.governor
    busy(gpu, one, 1.5)
    share = mean_W(gpu, one, 1.0) / (g.target * chip.cap_W)
    assert 1 - g.band - 0.01 < share < 1.01
    steps = (gpu.set_Hz - chip.clock_min_Hz) / chip.clock_step_Hz
    assert steps == pytest.approx(round(steps))
    assert gpu.set_Hz < 0.95 * chip.clock_max_Hz


def decided(chip: SimulatedChip, power_W: float, periods: int = 400, *, too_hot: bool = False) -> list[float]:
    """Clocks under a power that does not answer to them."""
    governor, clocks = SteppingGovernor(chip), []
    for _ in range(periods):
        governor.decide(power_W, cap_W=chip.cap_W, too_hot=too_hot, lock_Hz=chip.clock_max_Hz)
        clocks.append(governor.set_Hz)
    return clocks


def test_the_governor_stays_in_its_band_and_leaves_it_by_steps(chip: SimulatedChip) -> None:
    g, target_W = chip.governor, chip.governor.target * chip.cap_W
    assert set(decided(chip, (1 - g.band / 2) * target_W)) == {chip.clock_max_Hz}
    slowly, fast = decided(chip, 1.01 * target_W), decided(chip, 2 * target_W)
    settled = round(10 * g.memory_s / g.period_s)
    moves = -np.diff(slowly[settled:]) / chip.clock_step_Hz
    assert set(np.round(moves[:20], 6)) == {1.0}
    assert -min(np.diff(fast)) / chip.clock_step_Hz == pytest.approx(g.most_steps)
    assert slowly[-1] == fast[-1] == chip.clock_min_Hz


def test_bursts_run_below_the_clock_that_is_reported(chip: SimulatedChip) -> None:
    gpu, one = VirtualGpu(chip), kernel(chip, GEMM)
    busy(gpu, one, 2.0, share=0.3)
    true_Hz = gpu.running(one).clock_Hz
    assert gpu.set_Hz == chip.clock_max_Hz
    assert chip.governor.onset_Hz < true_Hz < 0.95 * gpu.set_Hz
    assert gpu.running(kernel(chip, COPY)).clock_Hz == gpu.set_Hz


def test_pulses_are_skipped_as_on_a_real_h100(h100: SimulatedChip) -> None:
    """Its 8192^3 products used the tensor cores for 92 % of the time (GPM counters): set and true MHz."""
    for set_MHz, true_MHz in ((1380, 1365), (1530, 1437), (1800, 1568), (1965, 1583), (1980, 1596)):
        assert true_clock_Hz(h100.governor, set_MHz * 1e6, 0.92) == pytest.approx(true_MHz * 1e6, rel=0.04)


def test_what_draws_little_runs_at_the_top(chip: SimulatedChip) -> None:
    gpu, one = VirtualGpu(chip), kernel(chip, COPY)
    busy(gpu, one, 1.0)
    assert gpu.running(one).clock_Hz == gpu.set_Hz == chip.clock_max_Hz


def test_heat_slows_the_clock(h100: SimulatedChip) -> None:
    gpu = VirtualGpu(h100)
    gpu.die_C = gpu.chamber_C = gpu.fins_C = 95.0
    gpu.sleep(0.1 + 1e-6)
    assert gpu.set_Hz == pytest.approx(h100.clock_max_Hz - 0.1 / h100.governor.period_s * h100.clock_step_Hz)


# --- noise -----------------------------------------------------------------------------------------------------------


def test_noise_has_the_deviation_asked_for() -> None:
    found = [Flicker(np.random.default_rng(seed), 0.01).at(3.0) for seed in range(400)]
    assert np.std(found) == pytest.approx(0.01, rel=0.1)
    assert abs(np.mean(found)) < 0.002


def test_noise_has_a_memory() -> None:
    """Means over a hundred times as long scatter almost as much; those of white noise would a tenth as much."""
    wander = Flicker(np.random.default_rng(5), 0.01)
    errors = np.array([wander.at(0.1 * i) for i in range(1, 40_001)])
    short, long = (np.std(errors.reshape(-1, length).mean(axis=1)) for length in (4, 400))
    assert long > 0.4 * short
    near, far = (np.corrcoef(errors[:-lag], errors[lag:])[0, 1] for lag in (1, 2000))
    assert near > 0.6
    assert far < 0.3


def test_noise_does_not_change_without_time() -> None:
    wander = Flicker(np.random.default_rng(1), 0.01)
    assert wander.at(2.0) == wander.at(2.0) == wander.at(1.0) != wander.at(2.1)


# --- sensors ---------------------------------------------------------------------------------------------------------


def test_the_counter_ticks_every_100_ms(h100: SimulatedChip) -> None:
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


def test_activity_is_that_of_the_window(h100: SimulatedChip) -> None:
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


def test_samples_carry_noise_of_the_seed(h100: SimulatedChip) -> None:
    def times(seed: int, count: int = 50) -> list[float]:
        instruments = SimulatedInstruments(VirtualGpu(h100, seed))
        case, stream = instruments.build(COPY), instruments.stream
        return [sample.time_s for sample in stream.read([stream.queue(case, 3, 1e-3) for _ in range(count)])]

    first = times(1)
    assert times(1) == first
    assert times(2) != first
    true_s = kernel(h100, COPY).time_s(h100.clock_max_Hz)
    noise = h100.sensors.time_noise
    assert np.mean(first) == pytest.approx(true_s, rel=3 * noise)
    assert 0.1 * noise < np.std(first) / true_s < 2 * noise  # the slow part of it moves them all alike


# --- kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(Kind))
def test_more_clock_is_never_slower(chip: SimulatedChip, kind: Kind) -> None:
    from moemodel.model.operators.work import PASSES

    sizes = Sizes(m=4096, n=1024, k=1024, batch=2, heads=16, kv_heads=8, seq=1024, head_dim=64, experts=8, top_k=2)
    clocks = np.linspace(chip.clock_min_Hz, chip.clock_max_Hz, 20)
    for direction in PASSES[kind]:
        one = kernel(chip, Point(kind=kind, direction=direction, sizes=sizes))
        times = np.array([one.time_s(f) for f in clocks])
        assert (np.diff(times) < 0).all()
        assert (np.diff(times * clocks) > 0).all()  # and never gains more than the clock did


def product(m: int, n: int, k: int, chip: SimulatedChip, direction: Pass = Pass.FORWARD) -> Kernel:
    return kernel(chip, Point(kind=Kind.GEMM, direction=direction, sizes=Sizes(m=m, n=n, k=k)))


def test_a_large_product_reaches_its_efficiency(chip: SimulatedChip) -> None:
    one = product(128 * chip.multiprocessors, 256 * 16, 1 << 16, chip)
    peak_s = one.flops / (chip.multiprocessors * chip.flops_per_cycle * chip.clock_max_Hz)
    assert one.cycles / chip.clock_max_Hz == pytest.approx(peak_s / chip.timing.tensor, rel=0.01)
    assert one.occupied == pytest.approx(1, abs=0.01)


def test_a_product_of_half_a_round_is_cut_along_its_depth(chip: SimulatedChip) -> None:
    """Half the tiles take not much more than half the time where the idle SMs take a part of each; without idle SMs, a
    tile more than a round takes as long as a part of it; and never longer than a round more."""
    sms = chip.multiprocessors
    whole, half, more = (product(128 * tiles, 256, 1 << 16, chip).cycles for tiles in (sms, sms // 2, sms + 1))
    assert 0.45 * whole < half < 0.65 * whole
    assert whole < more < 1.3 * whole
    shallow = [product(128 * tiles, 256, 256, chip).cycles for tiles in (sms, sms + 1)]
    assert shallow[1] == pytest.approx(2 * shallow[0], rel=0.35)  # too shallow to be cut


def test_a_deep_pipeline_has_to_be_filled(chip: SimulatedChip) -> None:
    """Time of a round is a straight line in depth, whose start is not zero."""
    cycles = [product(128 * chip.multiprocessors, 256, k, chip).cycles for k in (4096, 8192, 12288)]
    assert cycles[2] - cycles[1] == pytest.approx(cycles[1] - cycles[0])
    assert cycles[0] - (cycles[1] - cycles[0]) > chip.timing.fill_cycles


def test_rows_that_begin_anywhere_are_slow(chip: SimulatedChip) -> None:
    times = [product(4096, n, 4096, chip).cycles for n in (4096, 4100, 4098, 4097)]
    assert (np.diff(times) > 0).all()
    assert 2.5 * times[0] < times[3] < 10 * times[0]  # the calibration of a real H100: 8.6 times


def test_a_product_reads_its_operands_at_least_once(chip: SimulatedChip) -> None:
    """Small ones from the cache after that; of 8192^3 an H100 moved 1.3 GB (a quarter of its memory's time)."""
    least_B = 2 * 3 * 1024**2
    assert product(1024, 1024, 1024, chip).path.bytes_B == pytest.approx(least_B, rel=0.25)
    large = product(8192, 8192, 8192, chip)
    assert 2 < large.path.bytes_B / (2 * 3 * 8192**2) < 4
    assert large.cache_B > 5 * large.path.bytes_B


def attending(chip: SimulatedChip, kind: Kind, seq: int, head_dim: int = 128, batch: int = 64) -> Kernel:
    sizes = Sizes(batch=batch, heads=16, kv_heads=16, seq=seq, head_dim=head_dim)
    return kernel(chip, Point(kind=kind, direction=Pass.FORWARD, sizes=sizes))


def test_a_causal_mask_saves_half_of_long_sequences(chip: SimulatedChip) -> None:
    ratios = [
        attending(chip, Kind.ATTENTION, seq).cycles / attending(chip, Kind.ATTENTION_FULL, seq).cycles
        for seq in (128, 1024, 16384)
    ]
    assert ratios == pytest.approx([1.0, 9 / 16, 0.5], rel=0.06)


@pytest.mark.parametrize(("head_dim", "exponentials"), [(32, True), (256, False)])
def test_narrow_heads_wait_for_exponentials(h100: SimulatedChip, head_dim: int, exponentials: bool) -> None:
    """An SM makes 16 in a cycle (FlashAttention-3), which bounds narrow heads, and not wide ones."""
    one = attending(h100, Kind.ATTENTION_FULL, 4096, head_dim)
    exponential = 64 * 16 * 4096**2 / (16 * h100.multiprocessors)
    tensor = one.flops / (h100.multiprocessors * h100.flops_per_cycle)
    assert (exponential > tensor) == exponentials
    assert max(exponential, tensor) < one.cycles < 1.6 * (exponential + tensor)


def path(memory: Memory, outstanding_B: float) -> MemoryPath:
    return MemoryPath(bytes_B=1e9, rate_Bps=3e12, outstanding_B=outstanding_B, memory=memory)


def test_memory_obeys_littles_law(h100: SimulatedChip) -> None:
    """Much under way: the pins' rate at any clock. Little: what is under way over the latency, some of it in cycles."""
    memory = h100.timing.memory
    for clock_Hz in (0.5e9, 2e9):
        assert path(memory, 1e12).time_s(clock_Hz) == pytest.approx(1e9 / 3e12, rel=1e-3)
        latency_s = memory.latency_s + memory.latency_cycles / clock_Hz
        assert path(memory, 1e3).time_s(clock_Hz) == pytest.approx(1e9 * latency_s / 1e3, rel=1e-2)


def test_loads_wait_for_a_memory_that_is_half_used(h100: SimulatedChip) -> None:
    """At half the pins' rate a load waits as long as one is served: Q = rate/2 (z + wait)."""
    memory, clock_Hz = h100.timing.memory, 1.5e9
    z_s = memory.latency_s + memory.latency_cycles / clock_Hz
    assert path(memory, 1.5e12 * (z_s + memory.wait_s)).time_s(clock_Hz) == pytest.approx(2 * 1e9 / 3e12)


def test_computing_hides_all_but_a_part_of_loading(h100: SimulatedChip) -> None:
    one = kernel(h100, GEMM)
    for cycles in (0.0, 1e5, 1e7):
        mixed = replace(one, cycles=cycles)
        longer, shorter = sorted((cycles / 1e9, one.path.time_s(1e9)), reverse=True)
        assert mixed.busy_s(1e9) == pytest.approx(longer + one.uncovered * shorter)


def test_a_large_copy_reaches_its_share_of_the_bandwidth(chip: SimulatedChip) -> None:
    one = kernel(chip, COPY)
    share = one.path.bytes_B / one.time_s(chip.clock_max_Hz) / chip.bandwidth_Bps
    assert 0.9 * chip.timing.streams[Kind.COPY].pins < share < chip.timing.streams[Kind.COPY].pins


def test_memory_slows_with_the_sms_only_at_low_clocks(h100: SimulatedChip) -> None:
    """A copying H100 took 0.3614 ms at 1410 MHz and 0.3602 ms at 1950 MHz."""
    one = kernel(h100, COPY)
    assert one.time_s(1410e6) / one.time_s(1950e6) == pytest.approx(0.3614 / 0.3602, abs=0.01)
    assert one.time_s(345e6) > 1.2 * one.time_s(1950e6)


def test_small_tensors_stay_in_the_cache(chip: SimulatedChip) -> None:
    small, large = (kernel(chip, replace(COPY, sizes=Sizes(m=m))) for m in (1 << 20, 1 << 28))
    assert small.path.bytes_B < 0.9 * small.cache_B
    assert large.path.bytes_B == large.cache_B


def test_experts_without_rows_cost_nothing(h100: SimulatedChip) -> None:
    empty = Sizes(m=4, n=1024, k=1024, experts=64, skew=16.0)
    for direction in (Pass.FORWARD, Pass.BACKWARD_WEIGHT):
        one = kernel(h100, Point(kind=Kind.GROUPED_GEMM, direction=direction, sizes=empty))
        assert 0 < one.time_s(h100.clock_max_Hz) < 1e-3


def test_uneven_experts_take_longer(chip: SimulatedChip) -> None:
    """And no longer than the busiest alone would, were it all there is."""
    times = []
    for skew in (1.0, 8.0):
        sizes = Sizes(m=1 << 16, n=2048, k=2048, experts=64, skew=skew)
        point = Point(kind=Kind.GROUPED_GEMM, direction=Pass.BACKWARD_WEIGHT, sizes=sizes)
        times.append(kernel(chip, point).cycles)
    assert times[0] < times[1] < 8 * times[0]


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
