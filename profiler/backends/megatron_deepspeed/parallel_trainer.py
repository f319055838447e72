"""What `backends.base` asks of every backend; this one's steps are another program's, so there is no `Run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moemodel.model.core.errors import InputError
from moemodel.profiler.backends.base import Run, TrainingRun

if TYPE_CHECKING:
    import torch


def build(run: TrainingRun, device: torch.device) -> Run | None:
    """No part of a run is in this process.

    Raises:
        InputError: always; what runs it.
    """
    raise InputError(
        f"{run.name}: backend megatron-deepspeed: found in a process of this package on {device}; it trains in a "
        "program of its own, which `moemodel run` starts"
    )


def release_comm_buffers(device: torch.device) -> None:
    """There are none."""
