"""Megatron Core's process groups: one set a process, of the plan that it runs now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from torch._C._distributed_c10d import HashStore

from moemodel.model.core.errors import InputError
from moemodel.model.plan.spec import ParallelSpec
from moemodel.profiler.backends.megatron_core.weights import RankPart

_SEED = 1  # of dropout, of which there is none; Megatron wants one
_USED: list[Any] = []  # of the plans so far, this process being in them


def open_groups(parallel: ParallelSpec, ranks: int, device: torch.device) -> None:
    """Open the groups of a plan; all processes of the job call it.

    Args:
        parallel: degrees of the plan.
        ranks: of the plan.
        device: of this process.

    Raises:
        InputError: the job has more processes, or fewer, on all of them alike. Megatron Core's optimizer calls
            collectives of all processes there are (optimizer/__init__.py, `_get_param_groups`).
    """
    if not dist.is_initialized():
        _open_alone(device)
    if ranks != dist.get_world_size():
        raise InputError(
            f"backend megatron-core: found a job of {dist.get_world_size()} processes for a plan of {ranks} ranks; "
            "allowed: as many as the plan has"
        )
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tp,
        pipeline_model_parallel_size=parallel.pp,
        virtual_pipeline_model_parallel_size=parallel.virtual_stages if parallel.virtual_stages > 1 else None,
        expert_model_parallel_size=parallel.ep,
        expert_tensor_parallel_size=1,
        create_gloo_process_groups=False,
    )
    model_parallel_cuda_manual_seed(_SEED)
    _USED.extend(group for group in _own() if dist.get_world_size(group) > 1)


def close_groups() -> None:
    """Forget the plan's groups; they stay open, for closing one was seen to hang."""
    parallel_state.destroy_model_parallel()


def own_part() -> RankPart:
    """What of each layer this rank holds."""
    return RankPart(
        tp=parallel_state.get_tensor_model_parallel_world_size(),
        tp_rank=parallel_state.get_tensor_model_parallel_rank(),
        ep=parallel_state.get_expert_model_parallel_world_size(),
        ep_rank=parallel_state.get_expert_model_parallel_rank(),
    )


def plan_group() -> Any:
    """All ranks of the plan that hold the same layers: replicas, and those that share each layer."""
    return parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)


def release(device: torch.device) -> None:
    """Make groups drop the tensors of their last calls; their members call it between plans."""
    if dist.is_initialized() and device.type == "cuda":
        for group in [dist.group.WORLD, *_USED]:
            dist.all_reduce(torch.zeros(1, device=device), group=group)
        torch.cuda.synchronize(device)


@contextmanager
def one_rank(device: torch.device) -> Iterator[None]:
    """Groups of a plan of one rank, for as long as it lasts."""
    open_groups(ParallelSpec(), 1, device)
    try:
        yield
    finally:
        close_groups()


def _open_alone(device: torch.device) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def _own() -> Iterator[Any]:
    yield parallel_state.get_tensor_model_parallel_group()
    yield parallel_state.get_pipeline_model_parallel_group()
    yield parallel_state.get_data_parallel_group(with_context_parallel=True)
    yield parallel_state.get_expert_model_parallel_group()
    yield parallel_state.get_expert_data_parallel_group()
    yield plan_group()
