"""Makespan of a zero-bubble pipeline: the longest path through the order of work of its stages.

A backward pass falls into the gradients of its input (B), which the stage before waits for, and those of its weights
(W), which nobody waits for until the optimizer. ZB-H1 (Qi et al. 2023, arXiv:2401.10241, section 2.1) puts off W so
that it fills the bubble: stage s of n holds back the weight gradients of its first s micro-batches, and does what is
left at the end. It keeps no more activations than 1F1B does. For equal stages a step takes

    m (F + B + W) + (n - 1) (F + B - W)        where W <= F + B

For unequal ones there is no such formula, so the graph is walked. From some rounds of micro-batches on, every round
adds as much as the one before it, and the rest are added as that many times the last (`_ROUNDS`). With v virtual
stages the chunks of a stage take turns, a round of n micro-batches each (Narayanan et al. 2021, section 2.2), in the
order of torch.distributed.pipelining's ScheduleInterleavedZeroBubble; the chunks of a stage count as equal.

Axes: as `pipeline`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.arrays import FloatArray

_ROUNDS = 4  # of n micro-batches that are walked; later ones repeat the last (tests compare with all of them walked)

Work = tuple[str, int, int]  # F, B or W; chunk of the model, counted from its first layer; micro-batch


def work_order(stages: int, virtual: int, stage: int, micro_batches: int) -> list[Work]:
    """What one stage does, in order."""
    total = virtual * micro_batches
    warm = min((virtual - 1) * stages + stages - 1 - stage, total)
    turns = {"F": _turns(stages, virtual, stage, total), "B": _turns(stages, virtual, stage, total, back=True)}
    turns["W"] = turns["B"]
    work = [("F", *turns["F"][k]) for k in range(warm)]
    weights = 0
    for k in range(total):
        if warm + k < total:
            work.append(("F", *turns["F"][warm + k]))
        work.append(("B", *turns["B"][k]))
        if k >= stage:
            work.append(("W", *turns["W"][weights]))
            weights += 1
    return work + [("W", *turns["W"][k]) for k in range(weights, total)]


def _turns(stages: int, virtual: int, stage: int, total: int, *, back: bool = False) -> list[tuple[int, int]]:
    """Chunk and micro-batch of each pass of a stage: a round of micro-batches through one chunk, then the next."""
    seen = [0] * virtual
    turns = []
    for k in range(total):
        chunk = k // stages % virtual
        chunk = virtual - 1 - chunk if back else chunk
        turns.append((chunk * stages + stage, seen[chunk]))
        seen[chunk] += 1
    return turns


@lru_cache(maxsize=256)
def _sequence(stages: int, virtual: int, micro_batches: int) -> tuple[tuple[int, Work, Work | None], ...]:
    """All work in an order in which it can be done: stage, work, and what else than the stage's last it waits for."""
    orders = [work_order(stages, virtual, stage, micro_batches) for stage in range(stages)]
    done: set[Work] = set()
    place = [0] * stages
    sequence: list[tuple[int, Work, Work | None]] = []
    while len(sequence) < sum(map(len, orders)):
        for stage, order in enumerate(orders):
            while place[stage] < len(order):
                work = order[place[stage]]
                waits = _waits_for(work, stages * virtual)
                if waits is not None and waits not in done:
                    break
                sequence.append((stage, work, waits))
                done.add(work)
                place[stage] += 1
    return tuple(sequence)


def _waits_for(work: Work, chunks: int) -> Work | None:
    kind, chunk, micro_batch = work
    if kind == "F":
        return ("F", chunk - 1, micro_batch) if chunk else None
    if kind == "B":
        return ("B", chunk + 1, micro_batch) if chunk < chunks - 1 else ("F", chunk, micro_batch)
    return ("B", chunk, micro_batch)


def zero_bubble(
    forward_s: Sequence[FloatArray],
    backward_s: Sequence[FloatArray],
    weight_share: Sequence[FloatArray],
    counts: Sequence[int],
    *,
    micro_batches: FloatArray,
    virtual: NDArray[np.int64],
) -> FloatArray:
    """Time from the first forward to the last weight gradient of a step, [P, X].

    Args:
        forward_s, backward_s: of one micro-batch, [P, X], one array for each class of stages.
        weight_share: of the backward pass, what the gradients of weights take, [P, 1].
        counts: how many stages each class has.
        micro_batches, virtual: of each plan, [P, 1].
    """
    each = [
        {"F": f, "B": b * (1 - share), "W": b * share}
        for f, b, share, count in zip(forward_s, backward_s, weight_share, counts, strict=True)
        for _ in range(count)
    ]
    shape = np.broadcast_shapes(*(f.shape for f in forward_s), *(b.shape for b in backward_s))
    out = np.zeros(shape)
    pairs = np.stack(np.broadcast_arrays(micro_batches[:, 0], virtual[:, 0])).astype(np.int64)
    for m, v in np.unique(pairs, axis=1).T.tolist():
        rows = np.flatnonzero((pairs[0] == m) & (pairs[1] == v))
        times = [{kind: np.broadcast_to(t, shape)[rows] / v for kind, t in stage.items()} for stage in each]
        out[rows] = _span(times, m, v)
    return out


def _span(times: list[dict[str, FloatArray]], micro_batches: int, virtual: int) -> FloatArray:
    """The longest path, walked for some rounds of micro-batches and continued for the rest."""
    stages = len(times)
    rounds, rest = divmod(micro_batches, stages)
    if rounds <= _ROUNDS:
        return _walk(times, micro_batches, virtual)
    last = _walk(times, _ROUNDS * stages + rest, virtual)
    before = _walk(times, (_ROUNDS - 1) * stages + rest, virtual)
    return last + (rounds - _ROUNDS) * (last - before)


def _walk(times: list[dict[str, FloatArray]], micro_batches: int, virtual: int) -> FloatArray:
    """The longest path through all work."""
    free = [np.zeros_like(stage["F"]) for stage in times]
    ends: dict[Work, FloatArray] = {}
    for stage, work, waits in _sequence(len(times), virtual, micro_batches):
        begin = free[stage] if waits is None else np.maximum(free[stage], ends[waits])
        free[stage] = ends[work] = begin + times[stage][work[0]]
    return np.asarray(np.maximum.reduce(free))
