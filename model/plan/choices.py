"""What a plan chooses from by name: numeric precision, recomputation, pipeline schedule, training framework."""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

Precision = Literal["bf16", "bf16-mixed", "fp8", "fp32"]
RecomputeName = Literal["none", "selective", "full"]
ScheduleName = Literal["1f1b", "gpipe", "zero-bubble"]
BackendName = Literal[
    "torch", "megatron", "megatron-v2", "megatron-core", "megatron-core-fp8", "megatron-deepspeed-fp32"
]

PRECISIONS: dict[BackendName, tuple[Precision, ...]] = {  # as `memory.RECIPES` has them; a test holds the two together
    "torch": ("bf16", "bf16-mixed"),
    "megatron": ("bf16", "bf16-mixed"),
    "megatron-v2": ("bf16", "bf16-mixed"),
    "megatron-core": ("bf16-mixed",),
    "megatron-core-fp8": ("fp8",),
    "megatron-deepspeed-fp32": ("fp32",),
}
WHOLE_EXPERTS = frozenset({"megatron-core", "megatron-core-fp8"})  # tp does not cut experts (`workload.Backend`)


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
