"""What a simulated GPU hides: the constants of its physics.

The numbers are made up, such that loads come out near what this project measured of the real GPUs (an H100's 8192^3
product: 1365 MHz true at 699 W; copies 1980 MHz, 493 W; causal attention 1496 MHz, 692 W; idle 122 W); datasheet
figures come from the GPU's description. The equations that they belong to stand in `electrics`, `kernels`, `tiles`,
`governor`, `noise` and `gpu`. Powers and energies of switching are at the highest clock and its voltage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moemodel.model.core.errors import DeviceError
from moemodel.model.hardware.gpu import Gpu, read_gpu
from moemodel.model.operators.work import Kind, Pass


@dataclass(frozen=True, kw_only=True)
class Stream:
    """How a kernel that streams tensors uses the GPU.

    Attributes:
        pins: share of the memory's data rate that is left after refresh, turnarounds and row misses.
        outstanding_B: bytes that the loads of one SM keep under way.
        lanes: element operations that an SM finishes in a cycle.
        scattered: rows of memory are opened for a few hundred bytes each.
        by_row: warps take whole rows, so that narrow or ragged rows leave lanes idle.
    """

    pins: float = 0.93
    outstanding_B: float = 24e3
    lanes: float = 70.0
    scattered: bool = False
    by_row: bool = False


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Device memory and the cache before it.

    Attributes:
        latency_s: of a load beyond the cache.
        latency_cycles: of its way there and back, at the SM clock.
        wait_s: that a load queues at a memory that is half used.
        cache_B_per_cycle: that the cache gives all SMs together, with copies that several SMs share.
        port_B_per_cycle: that one SM can take.
        cache_share: of the cache that holds what will be used again.
    """

    latency_s: float
    latency_cycles: float
    wait_s: float
    cache_B_per_cycle: float
    port_B_per_cycle: float
    cache_share: float


@dataclass(frozen=True, kw_only=True)
class KernelTiming:
    """How fast kernels are.

    Attributes:
        launch_s: of a kernel with nothing to do, outside the SMs.
        front_cycles: the same, inside them.
        uncovered: share of the shorter of computing and loading that the longer does not cover.
        tensor: share of the tensor cores' rate that a full pipeline reaches.
        fill_cycles: until the pipeline of a tile is full.
        store_B_per_cycle: at which an SM writes a tile out.
        exp_per_cycle: exponentials of an SM.
        softmax_ops: element operations beside each of them.
        attention_uncovered: as `uncovered`, of a block's products and exponentials.
        product_pins, product_outstanding_B: as in `Stream`, of products and attention.
        streams: of the other operators; those not listed are as `Stream` says.
        host_s: to queue a forward call, a backward one, an optimizer step.
    """

    launch_s: float
    front_cycles: float
    uncovered: float
    tensor: float
    fill_cycles: float
    store_B_per_cycle: float
    exp_per_cycle: float
    softmax_ops: float
    attention_uncovered: float
    product_pins: float
    product_outstanding_B: float
    memory: Memory
    streams: Mapping[Kind, Stream] = field(default_factory=dict)
    host_s: Mapping[Pass, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Electrics:
    """What it draws (see `electrics`).

    Attributes:
        fixed_W: of what has a supply of its own: memory at rest, links, board.
        top_V: supply at the highest clock.
        threshold_V, alpha: of the alpha-power law.
        step_V: of the regulator.
        leak_W: at `top_V` and 50 C.
        tree_W: of the clock tree, whether SMs work or not.
        active_W: of clocked SMs beside their work, all of them occupied.
        flop_J, vector_op_J, cache_J_per_B: of tensor cores, SIMD pipes, and bytes from the cache.
        dram_J_per_B, open_J_per_B: of bytes from memory, and of opening rows for them one after another.
        scattered_opens: times as many rows where accesses are scattered.
        conduction_Ohm: of the regulator and the way to the die.
        heavy_factor: switching power of the heavy load over that of a product.
    """

    fixed_W: float
    top_V: float
    threshold_V: float
    alpha: float
    step_V: float
    leak_W: float
    tree_W: float
    active_W: float
    flop_J: float
    vector_op_J: float
    cache_J_per_B: float
    dram_J_per_B: float
    open_J_per_B: float
    scattered_opens: float
    conduction_Ohm: float
    heavy_factor: float


@dataclass(frozen=True, kw_only=True)
class Governor:
    """Its two limits (see `governor`).

    Attributes:
        target: share of the cap above which the clock goes down.
        band: of power below the target in which it stays.
        period_s: between two decisions.
        memory_s: over which power is averaged, exponentially.
        down_step, up_step: of power beyond the band, for which the clock moves by one step more.
        most_steps: in one decision.
        onset_Hz: clock from which tensor work makes it skip pulses.
        skipping: pulses skipped a pulse above the onset, under tensor work without a break.
    """

    target: float
    band: float
    period_s: float
    memory_s: float
    down_step: float
    up_step: float
    most_steps: int
    onset_Hz: float
    skipping: float


@dataclass(frozen=True, kw_only=True)
class Thermal:
    """Three masses in a row to the inlet air: die, vapour chamber, fins."""

    inlet_C: float
    die_J_per_C: float
    chamber_J_per_C: float
    fins_J_per_C: float
    die_C_per_W: float  # die to chamber
    chamber_C_per_W: float  # chamber to fins
    fins_C_per_W: float  # fins to inlet

    @property
    def total_C_per_W(self) -> float:
        """Rise of the die above the inlet in the long run."""
        return self.die_C_per_W + self.chamber_C_per_W + self.fins_C_per_W


@dataclass(frozen=True, kw_only=True)
class Sensors:
    """How well it can be seen: relative standard deviations (see `noise`), and steps."""

    time_noise: float = 0.003
    clock_noise: float = 0.0005
    power_noise: float = 0.004  # readings of the real H100: 0.3 to 0.5 % when idle, 0.2 to 0.8 % under loads
    host_noise: float = 0.05
    tick_s: float = 0.1  # of the energy counter and the power reading
    activity: bool = True  # it has activity counters


@dataclass(frozen=True, kw_only=True)
class SimulatedChip:
    """A simulated GPU: its datasheet, and what only the simulation knows."""

    gpu: Gpu
    timing: KernelTiming
    electrics: Electrics
    governor: Governor
    thermal: Thermal
    sensors: Sensors

    @property
    def clock_max_Hz(self) -> float:
        return _known(self.gpu.clock_max_Hz)

    @property
    def clock_min_Hz(self) -> float:
        return _known(self.gpu.clock_min_Hz)

    @property
    def clock_step_Hz(self) -> float:
        return _known(self.gpu.clock_step_Hz)

    @property
    def cap_W(self) -> float:
        return _known(self.gpu.power_limit_W)

    @property
    def multiprocessors(self) -> int:
        return int(_known(self.gpu.multiprocessors))

    @property
    def bandwidth_Bps(self) -> float:
        return _known(self.gpu.memory_bandwidth_Bps)

    @property
    def l2_B(self) -> float:
        return float(_known(self.gpu.l2_B))

    @property
    def flops_per_cycle(self) -> float:
        """Of the tensor cores of one SM, bf16."""
        return self.gpu.peak("bf16").flops_per_cycle / self.multiprocessors


def _known(value: float | None) -> float:
    if value is None:
        raise DeviceError("this GPU's description lacks a figure that the simulation needs")
    return value


# Made up, like all below; see the top.
_HOST_S = {
    Pass.FORWARD: 6e-6,
    Pass.BACKWARD: 16e-6,
    Pass.BACKWARD_INPUT: 6e-6,
    Pass.BACKWARD_WEIGHT: 6e-6,
    Pass.STEP: 40e-6,
}
_PLAIN = Stream(outstanding_B=32e3, lanes=128.0)
_GATHER = Stream(pins=0.82, outstanding_B=20e3, scattered=True)
_STREAMS = {
    Kind.GELU: Stream(pins=0.95, outstanding_B=32e3, lanes=50.0),
    Kind.SWIGLU: Stream(pins=0.94, outstanding_B=28e3, lanes=42.0),
    Kind.SWIGLU_PACKED: Stream(pins=0.90, outstanding_B=20e3, lanes=42.0),
    Kind.RMS_NORM: Stream(pins=0.92, outstanding_B=20e3, lanes=51.0, by_row=True),
    Kind.LAYER_NORM: Stream(pins=0.91, outstanding_B=18e3, lanes=51.0, by_row=True),
    Kind.CROSS_ENTROPY: Stream(pins=0.90, outstanding_B=20e3, lanes=58.0, by_row=True),
    Kind.BIAS: Stream(pins=0.88, outstanding_B=16e3, lanes=64.0),
    Kind.ROUTER: Stream(pins=0.85, outstanding_B=12e3, lanes=30.0),
    Kind.EMBEDDING: _GATHER,
    Kind.PERMUTE: _GATHER,
    Kind.UNPERMUTE: _GATHER,
    Kind.COPY: _PLAIN,
    Kind.RESIDUAL_ADD: _PLAIN,
    Kind.ACCUMULATE: _PLAIN,
    Kind.RELU: _PLAIN,
}


def _h100() -> SimulatedChip:
    return SimulatedChip(
        gpu=read_gpu("h100-sxm-80gb"),
        timing=KernelTiming(
            launch_s=2.2e-6,
            front_cycles=1600.0,
            uncovered=0.08,
            tensor=0.95,
            fill_cycles=900.0,
            store_B_per_cycle=48.0,
            exp_per_cycle=16.0,
            softmax_ops=4.0,
            attention_uncovered=0.45,
            product_pins=0.92,
            product_outstanding_B=28e3,
            memory=Memory(
                latency_s=250e-9,
                latency_cycles=270.0,
                wait_s=50e-9,
                cache_B_per_cycle=6900.0,
                port_B_per_cycle=96.0,
                cache_share=0.6,
            ),
            streams=_STREAMS,
            host_s=_HOST_S,
        ),
        electrics=Electrics(
            fixed_W=50.0,
            top_V=1.0,
            threshold_V=0.35,
            alpha=1.3,
            step_V=0.00625,
            leak_W=60.0,
            tree_W=18.0,
            active_W=240.0,
            flop_J=1.16e-12,
            vector_op_J=2.4e-11,
            cache_J_per_B=8e-12,
            dram_J_per_B=2.0e-11,
            open_J_per_B=0.8e-11,
            scattered_opens=2.5,
            conduction_Ohm=5e-5,
            heavy_factor=1.25,
        ),
        governor=Governor(
            target=0.995,
            band=0.025,
            period_s=5e-3,
            memory_s=10e-3,
            down_step=0.1,
            up_step=0.1,
            most_steps=6,
            onset_Hz=1400e6,
            skipping=0.72,
        ),
        thermal=Thermal(
            inlet_C=31.0,
            die_J_per_C=12.0,
            chamber_J_per_C=120.0,
            fins_J_per_C=700.0,
            die_C_per_W=0.022,
            chamber_C_per_W=0.008,
            fins_C_per_W=0.018,
        ),
        sensors=Sensors(),
    )


def _a100() -> SimulatedChip:
    return SimulatedChip(
        gpu=read_gpu("a100-sxm-80gb"),
        timing=KernelTiming(
            launch_s=2.8e-6,
            front_cycles=1900.0,
            uncovered=0.10,
            tensor=0.94,
            fill_cycles=600.0,
            store_B_per_cycle=32.0,
            exp_per_cycle=16.0,
            softmax_ops=4.0,
            attention_uncovered=0.35,
            product_pins=0.90,
            product_outstanding_B=24e3,
            memory=Memory(
                latency_s=260e-9,
                latency_cycles=300.0,
                wait_s=60e-9,
                cache_B_per_cycle=4800.0,
                port_B_per_cycle=64.0,
                cache_share=0.6,
            ),
            streams=_STREAMS,
            host_s=_HOST_S,
        ),
        electrics=Electrics(
            fixed_W=30.0,
            top_V=0.95,
            threshold_V=0.34,
            alpha=1.4,
            step_V=0.00625,
            leak_W=38.0,
            tree_W=22.0,
            active_W=105.0,
            flop_J=1.15e-12,
            vector_op_J=2.0e-11,
            cache_J_per_B=1.0e-11,
            dram_J_per_B=2.2e-11,
            open_J_per_B=0.9e-11,
            scattered_opens=2.5,
            conduction_Ohm=8e-5,
            heavy_factor=1.35,
        ),
        governor=Governor(
            target=0.995,
            band=0.02,
            period_s=5e-3,
            memory_s=10e-3,
            down_step=0.1,
            up_step=0.1,
            most_steps=6,
            onset_Hz=1150e6,
            skipping=0.7,
        ),
        thermal=Thermal(
            inlet_C=27.0,
            die_J_per_C=14.0,
            chamber_J_per_C=90.0,
            fins_J_per_C=560.0,
            die_C_per_W=0.030,
            chamber_C_per_W=0.012,
            fins_C_per_W=0.036,
        ),
        sensors=Sensors(activity=False),
    )


CHIPS = {"h100-sxm-80gb": _h100, "a100-sxm-80gb": _a100}
