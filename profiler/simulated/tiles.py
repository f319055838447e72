"""Products and attention on the SMs of a simulated GPU: tiles, the steps of a tile, and how tiles share the SMs.

A product's tile goes through its depth in steps. In each, the tensor cores work on one slice while the next is copied
in, so a step takes the longer of the two; before the first the pipeline fills (NVIDIA, CUTLASS: Efficient GEMM in CUDA,
"Pipelining"). Copies come from the cache, which all SMs at work share, and need rows that begin at 16 bytes: without,
threads load each piece by itself. Writing a tile out is hidden behind the next one of the same SM, the last one is not.

    step = max(2 h w s / (F e), (h + w) s 2 B / rate(SMs at work), pieces),   tile(d) = fill + ceil(d/s) step

SMs take tiles in turn. Full rounds run with all of them; the tiles left over are cut along their depth over the idle
SMs, and their partial sums added (Osama et al. 2023, Stream-K, PPoPP: data-parallel with a stream-K tail).
Groups of unequal depth, and causal attention, are dealt heaviest first: the last to end is late by about half of the
lightest (Graham 1969, SIAM J. Appl. Math. 17(2), on lists in falling order). The library picks the fastest tile.

A round's tiles form a patch, whose rows and columns are read from memory once (the rasterisation of the same guide);
what the cache still holds from the round before is not read again.

Attention takes 128 queries at a time through blocks of 128 keys; two products (backward: five) and the exponentials of
the softmax, of which the special function units make 16 a cycle, run side by side (Shah et al. 2024, FlashAttention-3);
a causal mask leaves the first i blocks to the i-th queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from moemodel.model.operators.work import Kind, Pass
from moemodel.profiler.microbench.operands import expert_rows
from moemodel.profiler.microbench.points import Point, Sizes
from moemodel.profiler.simulated.chip import SimulatedChip

_TILES = ((128, 256), (256, 128), (128, 128), (64, 128), (128, 64), (64, 64))
_STEP = 64  # of depth
_LEAST_STEPS = 6  # of a part of a tile that was cut along its depth
_MOST_PARTS = 8
_ELEMENT_B = 2
_WHOLE = 8  # elements of 16 bytes
_PIECES_PER_CYCLE = 4.0  # that the threads of an SM load by themselves
_QUERIES = _KEYS = 128


@dataclass(frozen=True, kw_only=True)
class Tiled:
    """What one call asks of SMs, cache and memory.

    Attributes:
        cycles: of the busiest SM.
        memory_B, cache_B: bytes from and to memory, and between cache and SMs.
        occupied: share of the SMs' time with work.
    """

    cycles: float
    memory_B: float
    cache_B: float
    occupied: float


@dataclass(frozen=True, kw_only=True)
class _Output:
    """What one group of a product computes: rows x columns of a depth."""

    rows: int
    columns: int
    depth: int

    def tiles(self, high: int, wide: int) -> tuple[int, int]:
        """Down and across."""
        return math.ceil(self.rows / high), math.ceil(self.columns / wide)


def product(chip: SimulatedChip, point: Point, least_B: float) -> Tiled:
    """A product, or one for each group, in the tile that is fastest."""
    s = point.sizes
    groups = expert_rows(s.m, s.experts, s.skew) if point.kind is Kind.GROUPED_GEMM else [s.m] * s.batch
    outputs = [output for output in (_output(point.direction, s, rows) for rows in groups) if output.rows > 0]
    tilings = [_Tiling(chip, tile, _alignment(s.n, s.k)) for tile in _TILES]
    return min((tiling.run(outputs, least_B) for tiling in tilings), key=lambda tiled: tiled.cycles)


def _output(direction: Pass, s: Sizes, rows: int) -> _Output:
    if direction is Pass.BACKWARD_INPUT:
        return _Output(rows=rows, columns=s.k, depth=s.n)
    if direction is Pass.BACKWARD_WEIGHT:
        return _Output(rows=s.n, columns=s.k, depth=rows)
    return _Output(rows=rows, columns=s.n, depth=s.k)


def _alignment(n: int, k: int) -> int:
    """Elements that one copy can move, a power of two."""
    return math.gcd(math.gcd(int(n), int(k)), _WHOLE)


class _Tiling:
    """Products in one tile."""

    def __init__(self, chip: SimulatedChip, tile: tuple[int, int], alignment: int) -> None:
        self._chip = chip
        self._high, self._wide = tile
        self._alignment = alignment

    def run(self, outputs: Sequence[_Output], least_B: float) -> Tiled:
        """All groups in one call."""
        grids = [output.tiles(self._high, self._wide) for output in outputs]
        counts, sms = [down * across for down, across in grids], self._chip.multiprocessors
        if not counts:
            return Tiled(cycles=0.0, memory_B=least_B, cache_B=least_B, occupied=0.0)
        steps = [math.ceil(output.depth / _STEP) for output in outputs]
        at_work = min(sum(counts), sms)
        work = sum(n * self._tile(step, at_work) for n, step in zip(counts, steps, strict=True))
        if len(set(steps)) == 1:
            cycles = self._rounds(sum(counts), steps[0])
        else:
            heaviest, lightest = self._tile(max(steps), at_work), self._tile(min(steps), at_work)
            cycles = max(work / sms + lightest / 2, heaviest)
        moved = sum(
            n * step * (self._high + self._wide) * _STEP * _ELEMENT_B for n, step in zip(counts, steps, strict=True)
        )
        return Tiled(
            cycles=cycles + self._store(),
            memory_B=self._memory_B(outputs, grids, least_B),
            cache_B=moved + sum(output.rows * output.columns for output in outputs) * _ELEMENT_B,
            occupied=min(1.0, work / (sms * cycles)),
        )

    def _rounds(self, count: int, steps: int) -> float:
        """Full rounds, and what is left over cut along its depth."""
        sms = self._chip.multiprocessors
        full, rest = divmod(count, sms)
        cycles = full * self._tile(steps, sms)
        if rest == 0:
            return cycles
        choices = {1, min(_MOST_PARTS, sms // rest, max(1, steps // _LEAST_STEPS))}
        return cycles + min(self._part(steps, parts, rest * parts) for parts in choices)

    def _part(self, steps: int, parts: int, at_work: int) -> float:
        """A part of a tile, and adding the parts up: float32 sums through the cache."""
        adding = 0.0 if parts == 1 else parts * 2 * self._store()
        return self._tile(math.ceil(steps / parts), at_work) + adding

    def _tile(self, steps: int, at_work: int) -> float:
        """Cycles of one tile."""
        t, high, wide = self._chip.timing, self._high, self._wide
        computing = 2.0 * high * wide * _STEP / (self._chip.flops_per_cycle * t.tensor)
        rate = min(t.memory.port_B_per_cycle, t.memory.cache_B_per_cycle / at_work)
        copying = (high + wide) * _STEP * _ELEMENT_B / rate
        aligned = self._alignment == _WHOLE
        pieces = 0.0 if aligned else (high + wide) * _STEP / self._alignment / _PIECES_PER_CYCLE
        return t.fill_cycles + steps * max(computing, copying, pieces)

    def _store(self) -> float:
        return self._high * self._wide * _ELEMENT_B / self._chip.timing.store_B_per_cycle

    def _memory_B(self, outputs: Sequence[_Output], grids: Sequence[tuple[int, int]], least_B: float) -> float:
        """Patches read, less what the cache still holds; never less than each operand once."""
        return least_B + sum(
            self._again_B(output, down, across) for output, (down, across) in zip(outputs, grids, strict=True)
        )

    def _again_B(self, output: _Output, down: int, across: int) -> float:
        """Bytes of one group's operands that are read more than once."""
        chip, high, wide = self._chip, self._high, self._wide
        rows = min(down, max(1, round(math.sqrt(chip.multiprocessors * wide / high))))
        columns = min(across, math.ceil(chip.multiprocessors / rows))
        patches = math.ceil(down / rows) * math.ceil(across / columns)
        read_B = patches * (rows * high + columns * wide) * output.depth * _ELEMENT_B
        once_B = (down * high + across * wide) * output.depth * _ELEMENT_B
        held = max(0.0, 1 - once_B / (chip.timing.memory.cache_share * chip.l2_B))
        return (1 - held) * max(0.0, read_B - once_B)


def attention(chip: SimulatedChip, point: Point, least_B: float) -> Tiled:
    """Flash attention."""
    s, t, sms = point.sizes, chip.timing, chip.multiprocessors
    products = 2 if point.direction is Pass.FORWARD else 5
    blocks = math.ceil(s.seq / _KEYS)
    rows = max(1, s.batch * s.heads)  # of query tiles
    tensor = products * 2.0 * _QUERIES * _KEYS * s.head_dim / (chip.flops_per_cycle * t.tensor)
    exponents = _QUERIES * _KEYS * (1 / t.exp_per_cycle + t.softmax_ops / 128)
    shorter, longer = sorted((tensor, exponents))
    block = longer + t.attention_uncovered * shorter
    own = t.fill_cycles + _QUERIES * s.head_dim * _ELEMENT_B * products / t.store_B_per_cycle
    causal = point.kind is Kind.ATTENTION
    pairs = blocks * (blocks + 1) / 2 if causal else blocks * blocks
    work = rows * (pairs * block + blocks * own)
    if causal:
        cycles = max(work / sms + (block + own) / 2, blocks * block + own)
    else:
        cycles = math.ceil(rows * blocks / sms) * (blocks * block + own)
    moved_B = rows * (pairs + blocks) * products * _KEYS * s.head_dim * _ELEMENT_B
    return Tiled(cycles=cycles, memory_B=least_B, cache_B=moved_B, occupied=min(1.0, work / (sms * cycles)))
