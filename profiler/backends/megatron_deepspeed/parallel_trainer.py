"""Megatron-DeepSpeed in training (see `backends.external_run`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moemodel.profiler.backends.base import Run, TrainingRun
from moemodel.profiler.backends.external import program
from moemodel.profiler.backends.external_run import ExternalRun

if TYPE_CHECKING:
    import torch


def build(run: TrainingRun, device: torch.device) -> Run:
    """Start the program that trains a run on one GPU.

    Args:
        run: what is trained.
        device: that it trains on.

    Raises:
        InputError: the run has several ranks, or asks for what the program is not given.
        MissingExtraError: no checkout is named.
        ProgramError: it ended before its first step.
    """
    return ExternalRun(run, device, program("megatron-deepspeed"))


def release_comm_buffers(device: torch.device) -> None:
    """There are none in this process."""
