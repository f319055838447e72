"""What a plan chooses from by name: recomputation and the pipeline schedule."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

RecomputeName = Literal["none", "selective", "full"]
ScheduleName = Literal["1f1b", "gpipe", "zero-bubble"]


class Recompute(IntEnum):
    """What the backward pass computes again instead of keeping it (Korthikanti et al. 2022, section 5)."""

    NONE = 0
    SELECTIVE = 1  # the attention core
    FULL = 2  # every layer from its input


class Schedule(IntEnum):
    """Order of forward and backward passes of micro-batches in a pipeline."""

    ONE_F_ONE_B = 0
    GPIPE = 1
    ZERO_BUBBLE = 2  # ZB-H1: weight gradients wait until the pipeline would idle (Qi et al. 2023, section 2.1)


RECOMPUTE: dict[str, Recompute] = {name.name.lower(): name for name in Recompute}
SCHEDULE: dict[str, Schedule] = {
    "1f1b": Schedule.ONE_F_ONE_B,
    "gpipe": Schedule.GPIPE,
    "zero-bubble": Schedule.ZERO_BUBBLE,
}
