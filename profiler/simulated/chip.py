"""What a simulated GPU hides: the parameters that a calibration of its profile should recover.

The numbers are made up, of the order of what was measured on the real GPUs; datasheet figures come from the GPU's
description. Energies and clock-bound times are at the highest clock, f0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moemodel.model.core.errors import DeviceError
from moemodel.model.hardware.gpu import Gpu, read_gpu
from moemodel.model.operators.work import Kind, Pass


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A streaming operator: shares of the memory bandwidth and of the SIMD pipes' rate that it reaches."""

    memory: float = 0.87
    issue: float = 0.55


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How fast operators are.

    Attributes:
        launch_s: of a kernel with nothing to do, outside the SMs.
        tail_cycles: the same, inside them.
        corner: p of the norm that joins the time bound by SMs and that bound by memory.
        tiles: (rows, columns) of a product's tile -> efficiency of the tensor cores in it.
        depth0: depth that prologue and epilogue of a tile cost.
        product_memory: share of the bandwidth that products reach.
        attention: efficiency of the tensor cores in each pass, for wide heads and long sequences.
        head_dim0, seq0: width and length at which that is halved.
        attention_memory: share of the bandwidth.
        cache_gain: how many times faster than memory the last-level cache is; cache_share: of it that is of use.
        streams: of the other operators; those not listed are as `Stream` says.
        host_s: to queue a forward call, a backward one, an optimizer step.
    """

    launch_s: float
    tail_cycles: float
    corner: float
    tiles: Mapping[tuple[int, int], float]
    depth0: float
    product_memory: float
    attention: Mapping[Pass, float]
    head_dim0: float
    seq0: float
    attention_memory: float
    cache_gain: float
    cache_share: float
    streams: Mapping[Kind, Stream] = field(default_factory=dict)
    host_s: Mapping[Pass, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Electrics:
    """What it draws. `P = base + leak (T - 50) + v(f) (tree f/f0 + switching + active f/f0) + memory`, v as in
    `gpu.voltage2`."""

    base_W: float
    tree_W: float
    leak_W_per_C: float
    flop_J: float
    vector_op_J: float
    cache_J_per_B: float
    dram_J_per_B: float
    active_W: float
    knee_Hz: float
    voltage_slope: float
    heavy_factor: float  # dynamic power of the heavy load over that of a product


@dataclass(frozen=True, kw_only=True)
class Governor:
    """Its two limits, and how it moves the clock.

    Attributes:
        sustained_share: of the cap that the mean power is held at.
        tensor_Hz, sharpness: clock that the SMs fall to while the tensor cores work, and how abruptly.
        period_s: between two steps of the clock.
        gain_Hz_per_J: change of the clock for every joule in a period above or below.
    """

    sustained_share: float
    tensor_Hz: float
    sharpness: float = 12.0
    period_s: float = 0.05
    gain_Hz_per_J: float = 9e6


@dataclass(frozen=True, kw_only=True)
class Thermal:
    """Two masses, die and heat sink, in a row to the inlet air."""

    inlet_C: float
    die_J_per_C: float
    sink_J_per_C: float
    die_C_per_W: float  # die to sink
    sink_C_per_W: float  # sink to inlet


@dataclass(frozen=True, kw_only=True)
class Sensors:
    """How well it can be seen: relative standard deviations, and steps."""

    time_noise: float = 0.003
    clock_noise: float = 0.0005
    power_noise: float = 0.004  # readings of the real H100: 0.3 to 0.5 % when idle, 0.2 to 0.8 % under loads
    tick_s: float = 0.1  # of the energy counter and the power reading
    activity: bool = True  # it has activity counters


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A simulated GPU: its datasheet, and what only the simulation knows."""

    gpu: Gpu
    timing: Timing
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
    def multiprocessors(self) -> float:
        return float(_known(self.gpu.multiprocessors))

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


_HOST_S = {
    Pass.FORWARD: 6e-6,
    Pass.BACKWARD: 16e-6,
    Pass.BACKWARD_INPUT: 6e-6,
    Pass.BACKWARD_WEIGHT: 6e-6,
    Pass.STEP: 40e-6,
}

_H100_TIMING = Timing(
    launch_s=2.2e-6,
    tail_cycles=1600.0,
    corner=5.0,
    tiles={(128, 256): 0.86, (128, 128): 0.74},
    depth0=170.0,
    product_memory=0.84,
    attention={Pass.FORWARD: 0.78, Pass.BACKWARD: 0.64},
    head_dim0=30.0,
    seq0=300.0,
    attention_memory=0.85,
    cache_gain=2.2,
    cache_share=0.6,
    streams={
        Kind.GELU: Stream(memory=0.90, issue=0.37),
        Kind.SWIGLU: Stream(memory=0.89, issue=0.33),
        Kind.RMS_NORM: Stream(memory=0.82, issue=0.40),
        Kind.LAYER_NORM: Stream(memory=0.80, issue=0.40),
        Kind.CROSS_ENTROPY: Stream(memory=0.78, issue=0.45),
        Kind.COPY: Stream(memory=0.91, issue=1.5),
        Kind.RESIDUAL_ADD: Stream(memory=0.90, issue=1.5),
        Kind.ACCUMULATE: Stream(memory=0.90, issue=1.5),
    },
    host_s=_HOST_S,
)
_A100_TIMING = Timing(
    launch_s=2.8e-6,
    tail_cycles=1900.0,
    corner=5.0,
    tiles={(128, 256): 0.91, (128, 128): 0.82},
    depth0=90.0,
    product_memory=0.80,
    attention={Pass.FORWARD: 0.70, Pass.BACKWARD: 0.58},
    head_dim0=24.0,
    seq0=250.0,
    attention_memory=0.82,
    cache_gain=2.0,
    cache_share=0.6,
    streams={
        Kind.GELU: Stream(memory=0.86, issue=0.42),
        Kind.COPY: Stream(memory=0.88, issue=1.5),
        Kind.RESIDUAL_ADD: Stream(memory=0.87, issue=1.5),
    },
    host_s=_HOST_S,
)


def _h100() -> Chip:
    return Chip(
        gpu=read_gpu("h100-sxm-80gb"),
        timing=_H100_TIMING,
        electrics=Electrics(
            base_W=84.0,
            tree_W=28.0,
            leak_W_per_C=0.65,
            flop_J=1.4e-12,
            vector_op_J=2.4e-11,
            cache_J_per_B=1.0e-11,
            dram_J_per_B=2.0e-11,
            active_W=290.0,
            knee_Hz=1440e6,
            voltage_slope=0.85,
            heavy_factor=1.3,
        ),
        governor=Governor(sustained_share=0.985, tensor_Hz=1590e6),
        thermal=Thermal(inlet_C=31.0, die_J_per_C=95.0, sink_J_per_C=700.0, die_C_per_W=0.018, sink_C_per_W=0.027),
        sensors=Sensors(),
    )


def _a100() -> Chip:
    return Chip(
        gpu=read_gpu("a100-sxm-80gb"),
        timing=_A100_TIMING,
        electrics=Electrics(
            base_W=63.0,
            tree_W=21.0,
            leak_W_per_C=0.45,
            flop_J=1.5e-12,
            vector_op_J=2.0e-11,
            cache_J_per_B=1.2e-11,
            dram_J_per_B=2.4e-11,
            active_W=120.0,
            knee_Hz=1150e6,
            voltage_slope=1.05,
            heavy_factor=1.35,
        ),
        governor=Governor(sustained_share=0.99, tensor_Hz=1240e6, gain_Hz_per_J=12e6),
        thermal=Thermal(inlet_C=27.0, die_J_per_C=80.0, sink_J_per_C=560.0, die_C_per_W=0.030, sink_C_per_W=0.045),
        sensors=Sensors(activity=False),
    )


CHIPS = {"h100-sxm-80gb": _h100, "a100-sxm-80gb": _a100}
