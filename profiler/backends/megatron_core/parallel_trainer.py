"""A plan in training under Megatron Core: one rank's part of it. The backend `megatron-core` (see `backends.base`).

Model, gradients' buffers, schedules and optimizer are Megatron Core's own; weights and sequences are the torch
backend's, so that losses can be compared.

| degree | how                                                                                     |
| ------ | --------------------------------------------------------------------------------------- |
| dp     | its DistributedDataParallel; from ZeRO 1 on its distributed optimizer                   |
| tp     | its column- and row-parallel products, with sequence parallelism where there are experts |
| ep     | whole experts (expert_tensor_parallel_size 1), rows by its all-to-all dispatcher        |
| pp     | its 1F1B schedule, interleaved with virtual stages                                      |
"""

from __future__ import annotations

from moemodel.model.core.extras import needs_extra
from moemodel.profiler.backends.base import Run, TrainingRun
from moemodel.profiler.backends.megatron_core.versions import check_version

with needs_extra("the backend megatron-core (on Python 3.12 or newer)", "megatron"):
    import megatron.core

    check_version(megatron.core.__version__)  # before what older ones have not

    from moemodel.profiler.backends.megatron_core.groups import open_groups, release
    from moemodel.profiler.backends.megatron_core.trainer import MegatronTrainer

import torch

__all__ = ["build", "release_comm_buffers"]

release_comm_buffers = release


def build(run: TrainingRun, device: torch.device) -> Run:
    """This process's part of a run; all processes of the job call it.

    Args:
        run: what is trained; its ranks are the processes of the job.
        device: of this process, a GPU.

    Raises:
        InputError: the job has another number of processes than the plan has ranks.
    """
    p = run.parallel
    open_groups(p, p.dp * p.tp * p.pp, device)
    return MegatronTrainer(run, device)
