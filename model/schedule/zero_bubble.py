"""ZB-H1 (Qi et al. 2023, arXiv:2401.10241, section 2.1): gradients of weights fill the bubble.

A backward pass falls into the gradients of its input (B), which the stage before waits for, and those of its weights
(W), which nobody waits for until the optimizer. Stage s of n holds back the weight gradients of its first s
micro-batches, and does what is left at the end. It keeps no more activations than the first stage of 1F1B does. For
equal stages a step takes

    m (F + B + W) + (n - 1) (F + B - W)        where W <= F + B

For unequal ones there is no such formula, so the graph of the step is walked, turn by turn of all stages at once
(`_walk`). With v virtual stages the chunks of a stage take turns as under `interleaved`, in the order of
torch.distributed.pipelining's ScheduleInterleavedZeroBubble; the chunks of a stage count as equal.

Of many micro-batches only the first rounds of n are walked. A later round adds at least as much as the one before it,
and at most all work of the slowest stage; where these two are not yet one, more rounds are walked, until the step is
known to `_TOLERANCE` (stages of nearly one speed can hold it up for hundreds of rounds). Left out: what lies beyond
`_TURNS` turns of all stages. A step that isn't known to `_TOLERANCE` by then is the least that it can be, which is at
least all work of its slowest stage with the way there and back (`_slowest_stage`). That way alone is a step whose first
rounds are more turns already, and one of `_MANY_STAGES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray, distinct_rows
from moemodel.model.schedule.base import Messages, Schedule, Sizes, StageTimes, Work
from moemodel.model.schedule.interleaved import turns, turns_after_last_chunk, turns_before_last_chunk

_TOLERANCE = 1e-4  # of a step
# Micro-batches that are walked: some rounds, and so many at least; and turns of all stages that are walked at most.
_ROUNDS = 4
_MICRO_BATCHES = 64
_TURNS = 2**14  # a second
_MANY_STAGES = 512  # from here on the slowest stage's path is the step (`_slowest_stage`): no real pipeline is as long
_ELEMENTS = 2**16  # times of all stages that are walked at once: what stays in a core's cache


class ZeroBubble(Schedule):
    """ZB-H1, with one chunk a stage or more."""

    name: ClassVar = "zero-bubble"
    messages: ClassVar = Messages.OVERLAPPED
    splits_backward: ClassVar = True

    def order(self, stage: int, sizes: Sizes[int]) -> list[Work]:
        forward, backward = turns(stage, sizes), turns(stage, sizes, back=True)
        warm = (sizes.virtual - 1) * sizes.stages + sizes.stages - 1 - stage
        work = [Work("F", *turn) for turn in forward[:warm]]
        for k, turn in enumerate(backward):
            work += [Work("F", *turn) for turn in forward[warm + k : warm + k + 1]]
            work.append(Work("B", *turn))
            if k >= stage:
                work.append(Work("W", *backward[k - stage]))
        return work + [Work("W", *turn) for turn in backward[max(len(backward) - stage, 0) :]]

    def makespan(self, times: StageTimes, sizes: Sizes[IntArray]) -> FloatArray:
        stages = _Stages.of(times)
        count, plans, clocks = stages.forward_s.shape
        out = np.zeros((plans, clocks))
        rows_at_once = max(1, _ELEMENTS // (count * clocks))
        micro_batches, virtual = sizes.micro_batches[:, 0], sizes.virtual[:, 0]
        _, alike = distinct_rows([micro_batches % count, virtual])  # which share the rounds that are walked
        for number in range(alike.max() + 1):
            rows = np.flatnonzero(alike == number)
            v = int(virtual[rows[0]])
            for start in range(0, len(rows), rows_at_once):
                some = rows[start : start + rows_at_once]
                out[some] = _makespan(stages.take(some).chunks(v), micro_batches[some], v)
        return out

    def in_flight(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> IntArray:  # noqa: ARG002
        """As many on every stage as on the first, since the others put off weight gradients."""
        return np.minimum(sizes.stages, sizes.micro_batches)

    def deferred(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> IntArray:
        return np.minimum(stage, sizes.micro_batches)

    def overlap_passes_forward(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> FloatArray:  # noqa: ARG002
        """As under `interleaved`."""
        return turns_before_last_chunk(sizes) / sizes.virtual

    def overlap_passes_backward(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> FloatArray:
        """As under `interleaved`, but that so many passes more are for inputs before the last weight gradients of the
        last chunk as a stage puts off."""
        after = turns_after_last_chunk(sizes)
        return np.asarray((np.maximum(after - stage, 0) + after) / 2 / sizes.virtual)


@dataclass(frozen=True, kw_only=True)
class _Stages:
    """Times of one pass through one chunk of each stage, [n, P, X]; `input_s` and `weights_s` are the backward pass."""

    forward_s: FloatArray
    input_s: FloatArray
    weights_s: FloatArray

    @classmethod
    def of(cls, times: StageTimes) -> _Stages:
        """Every stage of every class, through all its chunks."""
        shape = np.broadcast_shapes(*(t.shape for t in (*times.forward_s, *times.backward_s, *times.weight_share)))

        def each(values: Iterable[FloatArray]) -> FloatArray:
            return np.repeat(np.stack([np.broadcast_to(value, shape) for value in values]), times.of_one_length, axis=0)

        shares = list(zip(times.backward_s, times.weight_share, strict=True))
        return cls(
            forward_s=each(times.forward_s),
            input_s=each(b * (1 - share) for b, share in shares),
            weights_s=each(b * share for b, share in shares),
        )

    @property
    def slowest_s(self) -> FloatArray:
        """All passes of one micro-batch through the slowest stage, [P, X]."""
        return np.asarray(np.max(self.forward_s + self.input_s + self.weights_s, axis=0))

    def take(self, rows: IntArray) -> _Stages:
        """Those of some plans."""
        return _Stages(
            forward_s=self.forward_s[:, rows], input_s=self.input_s[:, rows], weights_s=self.weights_s[:, rows]
        )

    def chunks(self, virtual: int) -> _Stages:
        """One chunk of as many."""
        return _Stages(
            forward_s=self.forward_s / virtual, input_s=self.input_s / virtual, weights_s=self.weights_s / virtual
        )


def _makespan(stages: _Stages, m: IntArray, v: int) -> FloatArray:
    """Of plans with m micro-batches, as many beyond whole rounds in all of them, [P], and v chunks a stage; [P, X]."""
    n = len(stages.forward_s)
    rounds, rest = m // n, int(m[0] % n)
    out = np.zeros(stages.forward_s.shape[1:])
    long = (n >= _MANY_STAGES) | (np.minimum(rounds, _ROUNDS) * n * v > _TURNS)
    if long.any():
        out[long] = _slowest_stage(stages.take(np.flatnonzero(long)), m[long], v)
    rows, walked = np.flatnonzero(~long), max(_ROUNDS, min(-(-_MICRO_BATCHES // n), _TURNS // (n * v)))
    while len(rows):
        for few in np.unique(rounds[rows][rounds[rows] <= walked]).tolist():
            here = rows[rounds[rows] == few]
            out[here] = _walk(stages.take(here), few * n + rest, v)
        rows = rows[rounds[rows] > walked]
        if not len(rows):
            break
        some, more = stages.take(rows), (rounds[rows] - walked)[:, None]
        before, last = (_walk(some, count * n + rest, v) for count in (walked - 1, walked))
        least = np.maximum(last + more * (last - before), _slowest_stage(some, m[rows], v))
        most = last + more * n * v * some.slowest_s
        out[rows] = least
        walked *= 2
        if walked * n * v > _TURNS:
            break
        rows = rows[np.any(most > least * (1 + _TOLERANCE), axis=1)]
    return out


def _walk(stages: _Stages, m: int, v: int) -> FloatArray:
    """The longest path through all work of a step, [P, X].

    In turn k of all stages each does a forward pass, its (w_s + k)-th with w_s = v n - 1 - s of them before the first
    turn; its k-th input gradients; and the weight gradients that it put off s turns ago. A forward pass needs what the
    stage before it did in the turn before (the first stage: the last, a chunk earlier); input gradients need those of
    the stage behind it in the same turn (the last stage: the first's, n turns ago). So the ends of a turn follow from
    those of the one before for all stages at once: with B_s as sums G over the stages before,

        end_s = max_{j >= s} (free_j + B_s + ... + B_j) = max_{j >= s} (free_j + G_{j+1}) - G_s
    """
    f, b, w = stages.forward_s, stages.input_s, stages.weights_s
    n, total = len(f), v * m
    sums = np.concatenate([np.zeros_like(b[:1]), np.cumsum(b, axis=0)])
    free, forward_end, turn = np.zeros_like(f), np.zeros_like(f), np.empty_like(f)
    first_stage = [np.zeros_like(f[0])] * n  # ends of its input gradients, of the last n turns
    for k in range(1 - v * n, total):
        low, high = max(0, k + v * n - total), min(n, k + v * n)  # stages with forward passes left
        if low < high:
            np.maximum(free[max(low, 1) : high], forward_end[max(low, 1) - 1 : high - 1], out=turn[max(low, 1) : high])
            if low == 0:
                later_chunk = (k + v * n - 1) // n % v > 0
                turn[0] = np.maximum(free[0], forward_end[-1]) if later_chunk else free[0]
            np.add(turn[low:high], f[low:high], out=forward_end[low:high])
            free[low:high] = forward_end[low:high]
        if k < 0:
            continue
        np.add(free, sums[1:], out=turn)
        if k // n % v > 0:
            turn[-1] = np.maximum(turn[-1], first_stage[k % n] + sums[-1])
        np.maximum.accumulate(turn[::-1], axis=0, out=turn[::-1])
        np.subtract(turn, sums[:-1], out=free)
        first_stage[k % n] = free[0].copy()
        free[: k + 1] += w[: k + 1]  # the others put them off
    left = np.minimum(np.arange(n), total)
    return np.asarray(np.max(free + left[:, None, None] * w, axis=0))


def _slowest_stage(stages: _Stages, m: IntArray, v: int) -> FloatArray:
    """The longest path that does all work of one stage: to it, through it, and back to the stages before it, [P, X].

    On the way back, input gradients of the stages before, and at the end weight gradients that one of them put off, in
    place of those that the slow stage put off itself. For equal stages it is the step.
    """
    f, b, w = stages.forward_s, stages.input_s, stages.weights_s
    total = v * m[:, None]
    longest = np.zeros_like(f[0])
    way = np.zeros_like(f[0])  # forward passes of the stages before
    back = np.full_like(f[0], -np.inf)  # input gradients of the stages before, and what the last of the path put off
    for s in range(len(f)):
        put_off = (np.minimum(s, total) + 1) * w[s]
        longest = np.maximum(longest, way + total * (f[s] + b[s] + w[s]) + np.maximum(back - put_off, 0.0))
        way = way + f[s]
        back = np.maximum(back, put_off) + b[s]
    return np.asarray(longest)
