"""Schedules of a batch of plans: what each answers for its plans, put together into arrays over all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray
from moemodel.model.schedule.base import Messages, Schedule, Sizes, StageTimes
from moemodel.model.schedule.one_f_one_b import OneFOneB
from moemodel.model.schedule.phase_changes import phase_changes
from moemodel.model.schedule.registry import SCHEDULES
from moemodel.model.schedule.zero_bubble import ZeroBubble

Rows = NDArray[np.int64] | None

_EVERY = tuple(schedule for one, interleaved in SCHEDULES.values() for schedule in (one, interleaved or one))
# 1F1B's formula leaves out paths of stages whose forward and backward passes differ from one another's. Its order is
# that of a zero-bubble schedule without gradients of weights, whose graph is walked.
_ONE_F_ONE_B = next(kind for kind, schedule in enumerate(_EVERY) if isinstance(schedule, OneFOneB))
_WALKED = ZeroBubble()
_SPLITS = np.array([schedule.splits_backward for schedule in _EVERY])
_ANY_LENGTH = np.array([schedule.any_length for schedule in _EVERY])
_FOLDS = np.array([schedule.folds for schedule in _EVERY])
_PAIRS = np.array([schedule.pairs for schedule in _EVERY[::2]])
_ONLY_VIRTUAL = np.array([schedule.only_virtual or 0 for schedule in _EVERY[::2]])
_LEAST_ROUNDS = np.array([schedule.least_rounds for schedule in _EVERY[::2]])
_INTERLEAVES = np.array([interleaved is not None for _, interleaved in SCHEDULES.values()])


def can_interleave(numbers: IntArray) -> BoolArray:
    """Which of some schedules have virtual stages."""
    return np.asarray(_INTERLEAVES[numbers])


def lacks_chunks(numbers: IntArray, virtual: IntArray) -> BoolArray:
    """Which of some schedules are for another number of virtual stages."""
    only = _ONLY_VIRTUAL[numbers]
    return np.asarray((only > 0) & (only != virtual))


def pairs(numbers: IntArray) -> BoolArray:
    """In which of some schedules ranks of a pipeline hold the same stages in pairs."""
    return np.asarray(_PAIRS[numbers])


def least_micro_batches(numbers: IntArray, stages: IntArray) -> IntArray:
    """That pipelines of so many stages need."""
    return np.asarray(_LEAST_ROUNDS[numbers] * stages)


def goes_in_rounds(numbers: IntArray) -> BoolArray:
    """Which of some schedules pass micro-batches on in rounds of as many as there are stages, with virtual stages."""
    return np.asarray(_ONLY_VIRTUAL[numbers] == 0)


def _whole_passes(times: StageTimes) -> StageTimes:
    """Of which no part can wait."""
    return replace(times, weight_share=[np.zeros_like(share) for share in times.weight_share])


def _at(stage: int | IntArray, rows: Rows) -> int | IntArray:
    """A stage of some of the plans; the same of all, or one of each."""
    return stage if rows is None or isinstance(stage, int) else stage[rows]


class PlanSchedules:
    """The schedules of P plans.

    Args:
        numbers: places in the table of schedules, [P].
        sizes: of the pipelines, for one run of a schedule, [P].
        rounds: how many runs, one after another, make a step, [P]; None: one.
    """

    def __init__(self, numbers: IntArray, sizes: Sizes[IntArray], rounds: IntArray | None = None) -> None:
        self._sizes = sizes
        self._rounds = rounds
        self._kinds = 2 * numbers + (sizes.virtual > 1)

    @property
    def folds(self) -> BoolArray:
        """Where the first stage holds both ends of the model, [P]."""
        return np.asarray(_FOLDS[self._kinds] & (self._sizes.stages > 1))

    @property
    def any_length(self) -> BoolArray:
        """Where pipelines of several lengths are asked about at once, [P]; all are without a pipeline."""
        return np.asarray(_ANY_LENGTH[self._kinds] | (self._sizes.stages == 1))

    @property
    def splits_backward(self) -> BoolArray:
        """Where backward passes fall into those of inputs and those of weights, [P]."""
        return np.asarray(_SPLITS[self._kinds])

    def exchange(self, messages: Messages) -> BoolArray:
        """Where stages exchange messages so, [P]."""
        return np.array([schedule.messages is messages for schedule in _EVERY])[self._kinds]

    def makespan(self, times: StageTimes, unlike: BoolArray | None = None) -> FloatArray:
        """Time from the first pass to the last of a step, [P, X].

        Args:
            times: of the stages, as many as it has.
            unlike: plans whose stages differ in how long forward and backward passes are, [P]; None: none.
        """
        once_s = self._each(
            lambda schedule, sizes, rows: schedule.makespan(times if rows is None else times.take(rows), sizes.column)
        )
        rows = np.flatnonzero(unlike & (self._kinds == _ONE_F_ONE_B)) if unlike is not None else np.zeros(0, dtype=int)
        if len(rows):
            once_s = once_s.copy()
            once_s[rows] = _WALKED.makespan(_whole_passes(times.take(rows)), self._sizes.take(rows).column)
        return once_s if self._rounds is None else once_s * self._rounds[:, None]

    def in_flight(self, stage: int | IntArray) -> FloatArray:
        """Micro-batches whose activations a stage holds at once, at most, [P]."""
        return self._each(lambda schedule, sizes, rows: schedule.in_flight(_at(stage, rows), sizes))

    def deferred(self, stage: int | IntArray) -> FloatArray:
        """Micro-batches whose weight gradients a stage puts off, [P]."""
        return self._each(lambda schedule, sizes, rows: schedule.deferred(_at(stage, rows), sizes))

    def overlap_passes_forward(self, stage: int | IntArray) -> FloatArray:
        """Forward passes of a micro-batch before a stage begins the last one of its chunks, [P]."""
        return self._each(lambda schedule, sizes, rows: schedule.overlap_passes_forward(_at(stage, rows), sizes))

    def overlap_passes_backward(self, stage: int | IntArray) -> FloatArray:
        """Backward passes of a micro-batch behind the first chunk that a stage ends, [P]."""
        return self._each(lambda schedule, sizes, rows: schedule.overlap_passes_backward(_at(stage, rows), sizes))

    def earlier_losses(self, stage: int | IntArray) -> FloatArray:
        """Micro-batches whose loss a last stage still holds when it begins the backward pass of another, [P]."""
        return self._each(lambda schedule, sizes, rows: schedule.earlier_losses(_at(stage, rows), sizes))

    def changes(self, stage: int) -> list[int]:
        """How often a stage goes from one phase to another in a step, [P]."""
        return [phase_changes(schedule, stage, sizes, again).total for schedule, sizes, again in self._orders()]

    def phase_changes(self, stage: int) -> FloatArray:
        """Of the passes of each phase, the share that follows a pass of each other one on a stage, [P, 3, 3]: the later
        phase first, in the order of `phase_changes.PHASES`. Without a pipeline, 1F1B's order."""
        orders = self._orders()
        place = {order: number for number, order in enumerate(dict.fromkeys(orders))}
        shares = [phase_changes(schedule, stage, sizes, again).shares for schedule, sizes, again in place]
        return np.array(shares)[[place[order] for order in orders]]

    def _orders(self) -> list[tuple[Schedule, Sizes[int], int]]:
        """Schedule of each plan, sizes of its pipeline, and how often it runs in a step."""
        s = self._sizes
        rounds = np.ones_like(s.stages) if self._rounds is None else self._rounds
        kinds = np.where(s.stages > 1, self._kinds, 0)
        each = np.broadcast_to(s.round, s.stages.shape)
        columns = (kinds, s.stages, s.virtual, s.micro_batches, rounds, each)
        keys = list(zip(*(column.tolist() for column in columns), strict=True))
        made = {
            key: (_EVERY[key[0]], Sizes(stages=key[1], virtual=key[2], micro_batches=key[3], round=key[5]), key[4])
            for key in dict.fromkeys(keys)
        }
        return [made[key] for key in keys]

    def _each(self, ask: Callable[[Schedule, Sizes[IntArray], Rows], FloatArray | IntArray]) -> FloatArray:
        """What each schedule answers for its plans, put together; rows are None where one schedule has all plans."""
        kinds = np.flatnonzero(np.bincount(self._kinds)).tolist()
        if len(kinds) == 1:
            return np.asarray(ask(_EVERY[kinds[0]], self._sizes, None), dtype=np.float64)
        parts = [(kind, np.flatnonzero(self._kinds == kind)) for kind in kinds]
        answers = [ask(_EVERY[kind], self._sizes.take(rows), rows) for kind, rows in parts]
        out = np.zeros((len(self._kinds), *answers[0].shape[1:]))
        for (_, rows), values in zip(parts, answers, strict=True):
            out[rows] = values
        return out
