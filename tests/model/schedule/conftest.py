"""Orders of work as torch.distributed.pipelining has them: what ours are held against.

Schedules of one chunk a stage are run, on a stage that notes down its passes (torch's own table of 1F1B is one
micro-batch off on the last stage); those of several chunks list their work when they are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from torch.distributed.pipelining import (
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

from moemodel.model.schedule.base import Work

Orders = Callable[..., list[list[Work]]]

_KINDS = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "B", "BACKWARD_WEIGHT": "W"}


class _Stage:
    """A stage that notes down what it is told to do."""

    def __init__(self, index: int, *, stages: int, virtual: int) -> None:
        self.stage_index, self.num_stages = index, stages * virtual
        self.group_rank, self.group_size = index % stages, stages
        self.is_last, self.is_first, self.has_backward = False, False, True
        self.submod = None
        self.done: list[Work] = []

    def forward_one_chunk(self, micro_batch: int, *_: Any, **__: Any) -> None:
        self.done.append(Work("F", self.stage_index, micro_batch))

    def backward_one_chunk(self, micro_batch: int, **_: Any) -> None:
        self.done.append(Work("B", self.stage_index, micro_batch))

    def __getattr__(self, name: str) -> Callable[..., list[Any]]:
        """Messages, of which there are none, and what is left to do when all passes are done."""
        if name.startswith(("get_", "perform_")):
            return lambda *_: []
        raise AttributeError(name)


def _run(kind: Any, index: int, stages: int, micro_batches: int) -> list[Work]:
    stage = _Stage(index, stages=stages, virtual=1)
    schedule: Any = kind(stage, max(stages, micro_batches))
    schedule._n_microbatches = micro_batches  # torch refuses fewer than stages, whose order is plain all the same
    schedule._initialize_stage = lambda *_: None
    schedule._step_microbatches()
    return stage.done


def _listed(kind: Any, stages: int, virtual: int, micro_batches: int) -> list[list[Work]]:
    own = [_Stage(chunk * stages, stages=stages, virtual=virtual) for chunk in range(virtual)]
    schedule = kind(own, micro_batches)
    return [
        [
            Work(cast(Any, _KINDS[action.computation_type.name]), action.stage_index, action.microbatch_index)
            for action in schedule.pipeline_order[rank]
            if action is not None
        ]
        for rank in range(stages)
    ]


@pytest.fixture(scope="session")
def torch_pieces() -> Callable[[int, int], list[list[tuple[Work, ...]]]]:
    """Of every stage of DualPipeV, what it does in one piece: backward passes of both parts, passes that overlap."""

    def pieces(stages: int, micro_batches: int) -> list[list[tuple[Work, ...]]]:
        own = [_Stage(chunk, stages=stages, virtual=2) for chunk in (0, 2 * stages - 1)]
        schedule: Any = ScheduleDualPipeV(cast(Any, own), micro_batches)
        return [
            [
                tuple(work for part in (action.sub_actions or (action,)) for work in _halves(part))
                for action in schedule.pipeline_order[rank]
                if action is not None
            ]
            for rank in range(stages)
        ]

    return pieces


def _halves(action: Any) -> list[Work]:
    name, at = action.computation_type.name, (action.stage_index, action.microbatch_index)
    first = Work(cast(Any, _KINDS[name]), *at)
    return [first, Work("W", *at)] if name == "FULL_BACKWARD" else [first]


@pytest.fixture(scope="session")
def torch_orders(torch_pieces: Callable[[int, int], list[list[tuple[Work, ...]]]]) -> Orders:
    """What every stage does in a step, in order: `(name of the schedule, stages, micro-batches, virtual stages)`."""

    def orders(name: str, stages: int, micro_batches: int, virtual: int = 1) -> list[list[Work]]:
        if name == "zero-bubble":
            return _listed(ScheduleInterleavedZeroBubble, stages, virtual, micro_batches)
        if name == "dualpipe-v":
            return [[work for piece in own for work in piece] for own in torch_pieces(stages, micro_batches)]
        if virtual > 1:
            return _listed(ScheduleInterleaved1F1B, stages, virtual, micro_batches)
        kind = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[name]
        return [_run(kind, index, stages, micro_batches) for index in range(stages)]

    return orders
