"""DualPipeV: micro-batches go down one half of the model and back up the other, on the same stages.

The half in V of DualPipe (DeepSeek-V3, section 3.2.1, figures 4 and 5): stage s of n holds chunks s and 2n - 1 - s of
2n, so that the first stage holds both ends of the model. In the middle of a step a forward pass of one chunk and a
backward pass of the other take turns, each beside the messages and the experts' rows of the other (`plan.dispatch`).
The first n backward passes of the second half, and those of the end, fall into gradients of inputs and of weights,
which fill the bubble. Order: github.com/deepseek-ai/DualPipe, as torch's ScheduleDualPipeV has it.

There is no formula for stages that differ. The order of all stages is walked, piece by piece, for `_ROUNDS` n
micro-batches at most; each one more adds what the last one of these did, or all work of the slowest stage if that is
more. Chunks of a stage count as equal. DualPipe itself has this order on stages in pairs (`dual_pipe`). Left out: that
the two chunks of the last stage need no message between them.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.arrays import FloatArray, IntArray, largest
from moemodel.model.schedule.base import Messages, Piece, Schedule, Sizes, StageTimes, Work

_ROUNDS = 6  # micro-batches that are walked, over stages: 2 at least (`least_rounds`), assumed to be steady by then


class DualPipeV(Schedule):
    """Two chunks a stage, in the shape of a V."""

    name: ClassVar = "dualpipe-v"
    messages: ClassVar = Messages.OVERLAPPED
    splits_backward: ClassVar = True
    folds: ClassVar = True
    only_virtual: ClassVar = 2
    least_rounds: ClassVar = 2

    def order(self, stage: int, sizes: Sizes[int]) -> list[Work]:
        return [work for piece in self.pieces(stage, sizes) for work in piece]

    def pieces(self, stage: int, sizes: Sizes[int]) -> list[Piece]:
        """What a stage does, in pieces of which nothing leaves before all of it is done: a backward pass of both parts,
        and a forward and a backward pass that overlap."""
        n, m = sizes.stages, sizes.micro_batches
        near, far, pen = stage, 2 * n - 1 - stage, _Pen()
        later, half = n - 1 - stage, (stage + 1) // 2
        for _ in range(2 * later):
            pen.forward(near)
        for _ in range(stage + 1):
            pen.forward(near)
            pen.forward(far)
        for _ in range(later):
            pen.inputs(far)
            pen.weights()
            pen.forward(far)
        for k in range(m - 2 * n + stage + 1):
            if k == 0 and stage == n - 1:  # where nothing is gained by it
                pen.forward(near)
                pen.backward(far)
            else:
                pen.both(near, far)
            pen.both(far, near)
        for _ in range(later):
            pen.backward(far)
            pen.both(far, near)
        for k in range(stage + 1):
            # gradients of weights wait from the middle on, on odd stages of the far chunk first
            (pen.inputs if k > half or (k == half and stage % 2) else pen.backward)(far)
            (pen.inputs if k >= half else pen.backward)(near)
        for _ in range(later):
            pen.weights()
            pen.inputs(near)
        for _ in range(stage + 1):
            pen.weights()
        return pen.pieces

    def makespan(self, times: StageTimes, sizes: Sizes[IntArray]) -> FloatArray:
        passes = _Passes(times)
        out = np.zeros(passes.shape)
        micro_batches = sizes.micro_batches[:, 0]
        walked = np.minimum(micro_batches, _ROUNDS * passes.stages + 1)  # as one, all of which more are not walked
        for m in np.unique(walked).tolist():
            rows = np.flatnonzero(walked == m)
            out[rows] = _makespan(passes, rows, micro_batches[rows, None])
        return out

    def in_flight(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> FloatArray:  # noqa: ARG002
        """As many on every stage: 2n chunks' when the first backward pass begins, and one more before each later one
        (DualPipe: the number of chunks and one, table 2)."""
        return np.asarray(np.minimum(sizes.stages + 0.5, sizes.micro_batches))

    def overlap_passes_forward(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> FloatArray:
        """Those of the near chunk while a micro-batch goes down the V and back up: fewer, the nearer to its turn."""
        near = 2 * (sizes.stages - 1 - stage) + 1
        return np.asarray(np.minimum(near, sizes.micro_batches) / 2)

    def overlap_passes_backward(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> FloatArray:
        """Those of the near chunk behind the far one's. Stage s puts off s + 1 weight gradients before its last n - 1 -
        s passes for inputs, the s-th of them the far chunk's last."""
        inputs = np.maximum(sizes.stages - 2 * stage, 0)
        weights = sizes.stages - stage
        return np.asarray((inputs + weights) / 2 / 2)  # parts of a pass, and chunks


class _Pen:
    """Writes down the order of one stage; passes of a kind through a chunk take micro-batches in turn."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self._next: dict[tuple[str, int], int] = {}
        self._put_off: deque[Work] = deque()

    def _turn(self, kind: Literal["F", "B"], chunk: int) -> Work:
        micro_batch = self._next.get((kind, chunk), 0)
        self._next[kind, chunk] = micro_batch + 1
        return Work(kind, chunk, micro_batch)

    def _whole(self, chunk: int) -> Piece:
        inputs = self._turn("B", chunk)
        return (inputs, inputs._replace(kind="W"))

    def forward(self, chunk: int) -> None:
        self.pieces.append((self._turn("F", chunk),))

    def backward(self, chunk: int) -> None:
        """In one piece."""
        self.pieces.append(self._whole(chunk))

    def both(self, forward: int, backward: int) -> None:
        """A forward pass of one chunk and a backward pass of another, which overlap."""
        self.pieces.append((self._turn("F", forward), *self._whole(backward)))

    def inputs(self, chunk: int) -> None:
        """Gradients of inputs; those of weights wait."""
        self.pieces.append((self._turn("B", chunk),))
        self._put_off.append(self.pieces[-1][0]._replace(kind="W"))

    def weights(self) -> None:
        """Those that have waited longest, if any."""
        if self._put_off:
            self.pieces.append((self._put_off.popleft(),))


class _Passes:
    """Times of one pass through one chunk of each stage."""

    def __init__(self, times: StageTimes) -> None:
        self.shape = np.broadcast_shapes(*(t.shape for t in (*times.forward_s, *times.backward_s, *times.weight_share)))
        self.stages = sum(times.of_one_length)
        place = [number for number, count in enumerate(times.of_one_length) for _ in range(count)]
        whole = [np.broadcast_to(t, self.shape) / 2 for t in times.forward_s]
        back = [np.broadcast_to(t, self.shape) / 2 for t in times.backward_s]
        shares = [np.broadcast_to(t, self.shape) for t in times.weight_share]
        inputs = [b * (1 - share) for b, share in zip(back, shares, strict=True)]
        weights = [b * share for b, share in zip(back, shares, strict=True)]
        self._times = {"F": whole, "B": inputs, "W": weights}
        self._place = place

    def took(self, rows: IntArray) -> list[list[FloatArray]]:
        """Of some plans each of `_FORMS` of a piece, on each stage, [P, X]."""
        by_class = [
            [sum((self._times[kind][place][rows] for kind in form), np.zeros(())) for form in _FORMS]
            for place in range(len(self._times["F"]))
        ]
        return [by_class[place] for place in self._place]

    def slowest_s(self, rows: IntArray) -> FloatArray:
        """All work of one micro-batch on the slowest stage, [P, X]."""
        kinds = zip(*(self._times[kind] for kind in ("F", "B", "W")), strict=True)
        return np.asarray(np.maximum.reduce([2 * (f + b + w)[rows] for f, b, w in kinds]))


def _makespan(passes: _Passes, rows: IntArray, m: IntArray) -> FloatArray:
    """Of plans with m micro-batches, [P, 1]: as many as are walked, or more than that."""
    walked, most = _ROUNDS * passes.stages, int(m.max())
    if most <= walked:
        return _walk(passes, rows, max(most, DualPipeV.least_rounds * passes.stages))  # fewer are no plan
    before, last = _walk(passes, rows, walked - 1), _walk(passes, rows, walked)
    return np.asarray(last + (m - walked) * np.maximum(last - before, passes.slowest_s(rows)))


def _walk(passes: _Passes, rows: IntArray, m: int) -> FloatArray:
    """The longest path through all work of a step: every stage does its pieces in order, as soon as what they need is
    there, [P, X]."""
    took = passes.took(rows)
    free = [np.zeros((len(rows), *passes.shape[1:])) for _ in range(passes.stages)]
    done: list[FloatArray] = []
    for stage, form, *needs in _turns(passes.stages, m).tolist():
        begun = free[stage]
        for need in needs:
            if need >= 0:
                begun = np.maximum(begun, done[need])
        free[stage] = begun + took[stage][form]
        done.append(free[stage])
    return largest(free)


_FORMS = (("F",), ("B",), ("W",), ("B", "W"), ("F", "B", "W"))  # that a piece may have


@lru_cache(maxsize=256)  # of some 50 kB each; plans of a batch share what they have in common
def _turns(n: int, m: int) -> NDArray[np.int32]:
    """Every piece of all stages, in an order in which none comes before what it needs: stage, place in `_FORMS`, and
    the turns of up to two pieces of other work that it needs, -1 for none. The same however long passes take."""
    sizes = Sizes(stages=n, virtual=2, micro_batches=m)
    left = [deque(DualPipeV().pieces(stage, sizes)) for stage in range(n)]
    done: dict[Work, int] = {}
    turns: list[tuple[int, int, int, int]] = []
    while any(left):
        before = len(turns)
        for stage, queue in enumerate(left):
            while queue:
                needs = _needs(queue[0], 2 * n - 1)
                if not all(need in done for need in needs):
                    break
                piece = queue.popleft()
                done |= dict.fromkeys(piece, len(turns))
                first, second = [*(done[need] for need in needs), -1, -1][:2]
                turns.append((stage, _FORMS.index(tuple(work.kind for work in piece)), first, second))
        if len(turns) == before:  # never of an order of ours, which tests walk
            raise RuntimeError(f"{DualPipeV.name}: stages wait for each other with {m} micro-batches")
    return np.array(turns, dtype=np.int32)


def _needs(piece: Piece, last: int) -> list[Work]:
    """What other work has to be done before, but for that of its own stage; `last` chunk of the model."""
    found: list[Work] = []
    for kind, chunk, micro_batch in piece:
        if kind == "F" and chunk:
            found.append(Work("F", chunk - 1, micro_batch))
        if kind == "B":
            found.append(Work("B", chunk + 1, micro_batch) if chunk < last else Work("F", last, micro_batch))
    return found
