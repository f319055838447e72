"""Makespan of any schedule from the order of its work: the longest path through the graph of a step.

A piece of work begins when its stage has done the one before it, and when what it needs is there: a forward pass, that
of the chunk before; a backward pass, that of the chunk behind, or the forward pass of the last chunk; the gradients of
weights, the backward pass. From some rounds of n micro-batches on, every round adds as much as the one before it, and
the rest are added as that many times the last (`_ROUNDS`). The chunks of a stage count as equal.

Axes: as `base`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.schedule.base import Schedule, Sizes, StageTimes, Work

_ROUNDS = 4  # of n micro-batches that are walked; later ones repeat the last (tests compare with all of them walked)


def longest_path(schedule: Schedule, times: StageTimes, sizes: Sizes[IntArray]) -> FloatArray:
    """Time from the first pass to the last of a step, [P, X].

    Args:
        schedule: whose order of work it is.
        times: of the stages.
        sizes: of the pipelines, [P, 1].
    """
    each = _by_stage(schedule, times)
    shape = np.broadcast_shapes(*(time.shape for stage in each for time in stage.values()))
    out = np.zeros(shape)
    pairs = np.stack([sizes.micro_batches[:, 0], sizes.virtual[:, 0]])
    for m, v in np.unique(pairs, axis=1).T.tolist():
        rows = np.flatnonzero((pairs[0] == m) & (pairs[1] == v))
        chunks = [{kind: np.broadcast_to(t, shape)[rows] / v for kind, t in stage.items()} for stage in each]
        out[rows] = _span(schedule, chunks, Sizes(stages=len(each), virtual=v, micro_batches=m))
    return out


def _by_stage(schedule: Schedule, times: StageTimes) -> list[dict[str, FloatArray]]:
    """Times of the kinds of work of every stage."""
    stages: list[dict[str, FloatArray]] = []
    for f, b, share, count in zip(times.forward_s, times.backward_s, times.weight_share, times.counts, strict=True):
        split = {"B": b * (1 - share), "W": b * share} if schedule.splits_backward else {"B": b}
        stages += [{"F": f} | split] * count
    return stages


def _span(schedule: Schedule, times: list[dict[str, FloatArray]], sizes: Sizes[int]) -> FloatArray:
    """The longest path, walked for some rounds of micro-batches and continued for the rest."""
    rounds, rest = divmod(sizes.micro_batches, sizes.stages)
    if rounds <= _ROUNDS:
        return _walk(schedule, times, sizes)
    before, last = (
        _walk(schedule, times, replace(sizes, micro_batches=some * sizes.stages + rest))
        for some in (_ROUNDS - 1, _ROUNDS)
    )
    return last + (rounds - _ROUNDS) * (last - before)


def _walk(schedule: Schedule, times: list[dict[str, FloatArray]], sizes: Sizes[int]) -> FloatArray:
    """The longest path through all work."""
    free = [np.zeros_like(stage["F"]) for stage in times]
    ends: dict[Work, FloatArray] = {}
    for stage, work, needed in _sequence(schedule, sizes):
        begin = free[stage] if needed is None else np.maximum(free[stage], ends[needed])
        free[stage] = ends[work] = begin + times[stage][work.kind]
    return np.asarray(np.maximum.reduce(free))


@lru_cache(maxsize=256)  # entries hold all work of a schedule; so there are not many
def _sequence(schedule: Schedule, sizes: Sizes[int]) -> tuple[tuple[int, Work, Work | None], ...]:
    """All work in an order in which it can be done: stage, work, and what else than the stage's last it needs."""
    orders = [schedule.order(stage, sizes) for stage in range(sizes.stages)]
    last_chunk = max(work.chunk for order in orders for work in order)
    done: set[Work] = set()
    place = [0] * sizes.stages
    sequence: list[tuple[int, Work, Work | None]] = []
    while len(sequence) < sum(map(len, orders)):
        for stage, order in enumerate(orders):
            while place[stage] < len(order):
                work = order[place[stage]]
                needed = _needs(work, last_chunk)
                if needed is not None and needed not in done:
                    break
                sequence.append((stage, work, needed))
                done.add(work)
                place[stage] += 1
    return tuple(sequence)


def _needs(work: Work, last_chunk: int) -> Work | None:
    kind, chunk, micro_batch = work
    if kind == "F":
        return Work("F", chunk - 1, micro_batch) if chunk else None
    if kind == "B":
        return Work("B", chunk + 1, micro_batch) if chunk < last_chunk else Work("F", chunk, micro_batch)
    return Work("B", chunk, micro_batch)
