"""Time and work of an operator on a simulated GPU.

    t(f) = launch + front / f + max(C/f, M(f)) + uncovered min(C/f, M(f))

C cycles of the busiest SM, M(f) the time that the bytes take. Computing hides loading but for what no other warp covers
at the beginning and end of each round (Hong & Kim 2009, An Analytical Model for a GPU Architecture, ISCA). How fast
memory answers follows from what the SMs keep under way (Little's law; Volkov 2016, Understanding Latency Hiding on
GPUs) and from the queue before it (an M/M/1 server: Kleinrock 1975, Queueing Systems, sec. 3.2): with rho the share of
the pins' rate B that is reached and Q bytes under way,

    rho B (z(f) + wait rho/(1 - rho)) = Q,   z(f) = latency + latency_cycles / f

so a slow SM clock slows memory down gradually, by the way to it and back, and by the cache's ports before it. Products
and attention run in tiles (see `tiles`); everything else streams: element operations or the cache's rate, whichever
takes longer. Of tensors that the cache can hold, a part never gets to memory.

Left out: kernels side by side, power that a kernel draws in its prologue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from moemodel.model.operators.work import Kind
from moemodel.profiler.microbench.points import Point
from moemodel.profiler.simulated.chip import Memory, SimulatedChip, Stream
from moemodel.profiler.simulated.tiles import Tiled, attention, product

_ROW_QUANTUM = 256  # elements that a warp takes at once: 32 lanes of 16 bytes


@dataclass(frozen=True, kw_only=True)
class MemoryPath:
    """The way to memory: Q, B and latencies of the module's docstring.

    Attributes:
        bytes_B: that go it.
        rate_Bps: B.
        outstanding_B: Q, of all SMs.
        memory: latencies.
    """

    bytes_B: float
    rate_Bps: float
    outstanding_B: float
    memory: Memory

    def time_s(self, clock_Hz: float) -> float:
        """M(f): the quadratic equation for rho has one solution between 0 and 1."""
        z_s = self.memory.latency_s + self.memory.latency_cycles / clock_Hz
        a, c = self.rate_Bps * (self.memory.wait_s - z_s), -self.outstanding_B
        b = self.rate_Bps * z_s + self.outstanding_B
        rho = -2 * c / (b + math.sqrt(b * b - 4 * a * c))
        return self.bytes_B / (rho * self.rate_Bps)


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernel:
    """One call as the simulated GPU sees it.

    Attributes:
        launch_s: outside the SMs.
        front_cycles: inside them, with few at work.
        cycles: C, of the busiest SM.
        path: the bytes that reach memory.
        uncovered: share of the shorter part that adds to the longer.
        occupied: share of the SMs' time with work, while the busiest has some.
        flops, vector_ops, cache_B: the work that takes energy, beside the bytes of `path`.
        opens: rows of memory opened, over those that a stream opens.
        factor: on the energy of switching.
        host_s: to queue it.
    """

    launch_s: float
    front_cycles: float
    cycles: float
    path: MemoryPath
    uncovered: float
    occupied: float
    flops: float
    vector_ops: float
    cache_B: float
    opens: float
    host_s: float
    factor: float = 1.0

    def busy_s(self, clock_Hz: float) -> float:
        """Time in which SMs have work."""
        shorter, longer = sorted((self.cycles / clock_Hz, self.path.time_s(clock_Hz)))
        return longer + self.uncovered * shorter

    def time_s(self, clock_Hz: float) -> float:
        """Of the whole call."""
        return self.launch_s + self.front_cycles / clock_Hz + self.busy_s(clock_Hz)


def kernel(chip: SimulatedChip, point: Point, factor: float = 1.0) -> Kernel:
    """The kernel of a point; `factor` on its energy of switching."""
    t, work = chip.timing, point.work()
    flops, vector_ops, bytes_B = (float(x) for x in (work.flops, work.vector_ops, work.bytes_B))
    stream = t.streams.get(point.kind, Stream())
    if point.kind in (Kind.GEMM, Kind.GROUPED_GEMM):
        tiled = product(chip, point, bytes_B)
    elif point.kind in (Kind.ATTENTION, Kind.ATTENTION_FULL):
        tiled = attention(chip, point, bytes_B)
    else:
        tiled = _streamed(chip, point, stream, vector_ops, bytes_B)
    streams = flops == 0
    outstanding_B = stream.outstanding_B if streams else t.product_outstanding_B
    return Kernel(
        launch_s=t.launch_s,
        front_cycles=t.front_cycles,
        cycles=tiled.cycles,
        path=MemoryPath(
            bytes_B=tiled.memory_B,
            rate_Bps=chip.bandwidth_Bps * (stream.pins if streams else t.product_pins),
            outstanding_B=chip.multiprocessors * outstanding_B,
            memory=t.memory,
        ),
        uncovered=t.uncovered,
        occupied=tiled.occupied,
        flops=flops,
        vector_ops=vector_ops,
        cache_B=tiled.cache_B,
        opens=chip.electrics.scattered_opens if stream.scattered else 1.0,
        host_s=t.host_s.get(point.direction, 6e-6),
        factor=factor,
    )


def _streamed(chip: SimulatedChip, point: Point, stream: Stream, vector_ops: float, bytes_B: float) -> Tiled:
    memory, n = chip.timing.memory, point.sizes.n
    filled = n / (math.ceil(n / _ROW_QUANTUM) * _ROW_QUANTUM) if stream.by_row else 1.0
    issued = vector_ops / (chip.multiprocessors * stream.lanes * filled)
    held = max(0.0, 1 - bytes_B / (memory.cache_share * chip.l2_B))
    return Tiled(
        cycles=max(issued, bytes_B / memory.cache_B_per_cycle),
        memory_B=bytes_B * (1 - held),
        cache_B=bytes_B,
        occupied=1.0,
    )
