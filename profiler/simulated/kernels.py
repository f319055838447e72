"""Time and work of an operator on a simulated GPU.

    t(f) = launch + (tail + cycles (+) f memory) / f,   a (+) b = (a^p + b^p)^(1/p)

`cycles` of the busiest SM, `memory` seconds that the bytes take. Products run in tiles, in whole waves over the SMs;
attention in blocks of 128 queries; everything else streams.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moemodel.model.operators.work import Kind, Pass
from moemodel.profiler.microbench.operands import expert_rows
from moemodel.profiler.microbench.points import Point, Sizes
from moemodel.profiler.simulated.chip import Chip, Stream

_QUERIES = 128
_LANES = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernel:
    """One call as the simulated GPU sees it.

    Attributes:
        launch_s: outside the SMs.
        tail_cycles: inside them, with few at work.
        cycles: of the busiest SM.
        memory_s: that the bytes take.
        corner: p of the norm over both.
        flops, vector_ops, bytes_B: the work that takes energy.
        factor: on the dynamic energy.
        host_s: to queue it.
    """

    launch_s: float
    tail_cycles: float
    cycles: float
    memory_s: float
    corner: float
    flops: float
    vector_ops: float
    bytes_B: float
    host_s: float
    factor: float = 1.0

    def busy_s(self, clock_Hz: float) -> float:
        """Time in which the SMs have work."""
        longer, shorter = sorted((self.cycles / clock_Hz, self.memory_s), reverse=True)
        return float(longer * (1 + (shorter / longer) ** self.corner) ** (1 / self.corner))

    def time_s(self, clock_Hz: float) -> float:
        """Of the whole call."""
        return self.launch_s + self.tail_cycles / clock_Hz + self.busy_s(clock_Hz)


def kernel(chip: Chip, point: Point, factor: float = 1.0) -> Kernel:
    """The kernel of a point; `factor` on its dynamic energy."""
    t, work = chip.timing, point.work()
    flops, vector_ops, bytes_B = (float(x) for x in (work.flops, work.vector_ops, work.bytes_B))
    if point.kind in (Kind.GEMM, Kind.GROUPED_GEMM):
        cycles, memory = _product_cycles(chip, point), t.product_memory
    elif point.kind in (Kind.ATTENTION, Kind.ATTENTION_FULL):
        cycles, memory = _attention_cycles(chip, point, flops), t.attention_memory
    else:
        stream = t.streams.get(point.kind, Stream())
        cycles = vector_ops / (chip.multiprocessors * _LANES * stream.issue)
        memory = _cached(chip, bytes_B, stream.memory)
    return Kernel(
        launch_s=t.launch_s,
        tail_cycles=t.tail_cycles,
        cycles=cycles,
        memory_s=bytes_B / (chip.bandwidth_Bps * memory),
        corner=t.corner,
        flops=flops,
        vector_ops=vector_ops,
        bytes_B=bytes_B,
        host_s=t.host_s.get(point.direction, 6e-6),
        factor=factor,
    )


def _product_cycles(chip: Chip, point: Point) -> float:
    """Of the tile that is fastest."""
    s, timing = point.sizes, chip.timing
    groups = expert_rows(s.m, s.experts, s.skew) if point.kind is Kind.GROUPED_GEMM else [s.m] * s.batch
    outputs = [_output(point.direction, s, rows) for rows in groups]
    return min(
        _tile_cycles(chip, outputs, tile, efficiency, timing.depth0) for tile, efficiency in timing.tiles.items()
    )


def _output(direction: Pass, s: Sizes, rows: int) -> tuple[int, int, int]:
    """Rows, columns and depth of what one group's pass computes."""
    if direction is Pass.BACKWARD_INPUT:
        return rows, s.k, s.n
    if direction is Pass.BACKWARD_WEIGHT:
        return s.n, s.k, rows
    return rows, s.n, s.k


def _tile_cycles(
    chip: Chip, outputs: Sequence[tuple[int, int, int]], tile: tuple[int, int], efficiency: float, depth0: float
) -> float:
    """Whole waves of tiles; where groups differ in depth, tiles count by their depth."""
    high, wide = tile
    tiles = [math.ceil(rows / high) * math.ceil(columns / wide) for rows, columns, _ in outputs]
    count = sum(tiles)
    if count == 0:
        return 0.0
    depth = sum(n * (d + depth0) for n, (_, _, d) in zip(tiles, outputs, strict=True)) / count
    waves = math.ceil(count / chip.multiprocessors)
    return waves * 2.0 * high * wide * depth / (chip.flops_per_cycle * efficiency)


def _attention_cycles(chip: Chip, point: Point, flops: float) -> float:
    s, t = point.sizes, chip.timing
    blocks = max(1.0, s.batch * s.heads * s.seq / _QUERIES) / chip.multiprocessors
    efficiency = t.attention[point.direction] * s.head_dim / (s.head_dim + t.head_dim0) * s.seq / (s.seq + t.seq0)
    rate = chip.multiprocessors * chip.flops_per_cycle * efficiency
    return flops / rate * math.ceil(blocks) / blocks


def _cached(chip: Chip, bytes_B: float, memory: float) -> float:
    """Share of the bandwidth, of which small tensors find a part in the cache."""
    held = max(0.0, 1 - bytes_B / (chip.timing.cache_share * chip.l2_B))
    return 1 / ((1 - held) / memory + held / (memory * chip.timing.cache_gain))
