"""Plans under DeepSpeed. The backend `deepspeed` (see `backends.base`); DeepSpeed itself is loaded by `build`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moemodel.model.core.extras import needs_extra
from moemodel.profiler.backends.torch_native.process_groups import release_comm_buffers

if TYPE_CHECKING:
    import torch

    from moemodel.profiler.backends.base import Run, TrainingRun

__all__ = ["build", "release_comm_buffers"]


def build(run: TrainingRun, device: torch.device) -> Run | None:
    """This process's part of a run; all processes of the job call it, and all have a part.

    Args:
        run: what is trained.
        device: of this process.

    Raises:
        MissingExtraError: DeepSpeed is not installed.
        InputError: the job has more processes than the plan.
    """
    with needs_extra("the backend deepspeed", "deepspeed"):
        from moemodel.profiler.backends.deepspeed.engine_run import build_run

        return build_run(run, device)
