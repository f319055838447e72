"""Plans with FastMoE's layers. The backend `fastmoe` (see `backends.base`); FastMoE itself is loaded by `build`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moemodel.model.core.errors import InputError, MissingExtraError
from moemodel.profiler.backends.torch_native.process_groups import release_comm_buffers

if TYPE_CHECKING:
    import torch

    from moemodel.profiler.backends.base import Run, TrainingRun

__all__ = ["build", "release_comm_buffers"]

SOURCE = "https://github.com/laekov/fastmoe"


def build(run: TrainingRun, device: torch.device) -> Run | None:
    """This process's part of a run; all processes of the job call it. None for one that the plan does not need.

    Args:
        run: what is trained.
        device: of this process.

    Raises:
        MissingExtraError: FastMoE is not installed.
        InputError: the device is no GPU; or an earlier plan of this process shared out experts over other ranks.
    """
    if device.type != "cuda":
        raise InputError(f"{run.name}: the backend fastmoe: found the device {device.type}; allowed: cuda")
    try:
        from moemodel.profiler.backends.fastmoe.fastmoe_run import build_run
    except ModuleNotFoundError as error:
        if not error.name or error.name.partition(".")[0] == "moemodel":
            raise
        raise MissingExtraError(
            f"the backend fastmoe needs {error.name}, which is not installed; FastMoE is on no package index: build it "
            f"from its source on a machine with CUDA ({SOURCE})"
        ) from None
    return build_run(run, device)
