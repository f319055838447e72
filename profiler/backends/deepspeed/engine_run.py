"""A model in training under DeepSpeed's engine. Imported in the process that trains with it, and nowhere else."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from moemodel.model.core.errors import DeviceError, InputError
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.data_parallel_run import DataParallelRun
from moemodel.profiler.backends.deepspeed.configuration import configuration
from moemodel.profiler.backends.torch_native.process_groups import Groups
from moemodel.profiler.backends.torch_native.rank_mesh import RankMesh

_ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"


def build_run(run: TrainingRun, device: torch.device) -> EngineRun:
    """This process's part of a run.

    Raises:
        InputError: the job has more processes than the plan: DeepSpeed takes all of them.
    """
    join(device)
    place = RankMesh.of(run.parallel, dist.get_rank())
    if place.mesh.world_size != dist.get_world_size():
        raise InputError(
            f"{run.name}: a plan of {place.mesh.world_size} GPUs in a job of {dist.get_world_size()} processes; "
            "DeepSpeed takes all processes of a job, allowed: as many"
        )
    with redirect_stdout(sys.stderr):  # it prints while it makes groups
        return EngineRun(run, device, place, Groups(place))


def join(device: torch.device) -> None:
    """Open the job's process group if nobody did, and let DeepSpeed take it over.

    Raises:
        ModuleNotFoundError: DeepSpeed is not installed.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with redirect_stdout(sys.stderr):
        import deepspeed
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = dist.TCPStore("127.0.0.1", 0, is_master=True)  # type: ignore[attr-defined]  # port 0: any free one
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    os.environ["LOCAL_RANK"] = str(device.index or 0)  # of the GPU that it takes
    if device.type == "cpu":  # else it compiles a library for processes that share memory
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel(logging.WARNING)
    deepspeed.init_distributed(dist.get_backend())


def _has_fused_adam(run: TrainingRun, device: torch.device) -> bool:
    """Whether AdamW is DeepSpeed's own; on a GPU it has to be.

    Raises:
        DeviceError: neither was it installed with DeepSpeed nor can it be compiled.
    """
    from deepspeed.git_version_info import installed_ops as installed
    from torch.utils.cpp_extension import CUDA_HOME

    if device.type != "cuda":
        return False
    if not installed.get("fused_adam") and CUDA_HOME is None:
        raise DeviceError(
            f"{run.name}: DeepSpeed compiles its AdamW for GPUs when it is first used, and there is no CUDA toolkit "
            "(nvcc) here; install one, or DeepSpeed with DS_BUILD_FUSED_ADAM=1"
        )
    return True


@contextmanager
def architecture_at_hand(device: torch.device) -> Iterator[None]:
    """What is compiled meanwhile is for this GPU alone.

    DeepSpeed 0.19.8 reads architectures as numbers and fails where `TORCH_CUDA_ARCH_LIST` has a letter, as in 9.0a
    (op_builder/builder.py, `compute_capability_args`).
    """
    if device.type != "cuda":
        yield
        return
    before = os.environ.get(_ARCHITECTURES)
    os.environ[_ARCHITECTURES] = "{}.{}".format(*torch.cuda.get_device_capability(device))
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ARCHITECTURES]
        else:
            os.environ[_ARCHITECTURES] = before


class EngineRun(DataParallelRun):
    """One rank's part of a model under `DeepSpeedEngine`. A `Run`."""

    def __init__(self, run: TrainingRun, device: torch.device, place: RankMesh, groups: Groups) -> None:
        import deepspeed

        from moemodel.profiler.backends.deepspeed.mixture import DeepSpeedMixture

        super().__init__(run, device, place, groups, DeepSpeedMixture)
        config = configuration(run, fused=_has_fused_adam(run, device))
        with architecture_at_hand(device):
            self._engine: Any = deepspeed.initialize(model=self.model, config=config)[0]

    def forward(self, tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
        """See `DataParallelRun`."""
        loss: Tensor = self._engine(tokens_BS, targets_BS)
        return loss

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See `DataParallelRun`; the engine divides by the micro-batches, and reduces behind the last."""
        self._engine.backward(loss)
        if not last:
            self._engine.step()  # counts the micro-batch

    def update(self) -> None:
        """See `DataParallelRun`."""
        self._engine.step()

    def close(self) -> None:
        """See `Run`."""
        engine = self.__dict__.pop("_engine", None)
        if engine is not None:
            engine.destroy()
        super().close()
