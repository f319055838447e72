"""Data parallelism: who reduces which gradients when, and which parameters are whole when.

- ZeRO 0: DDP. Gradients in buckets of 25 MiB, all-reduced in the last micro-batch's backward pass. They live in the
  buckets from the first step on and are zeroed in place.
- ZeRO 1: FSDP2. Parameters are gathered in the first forward pass of a step and freed in the last backward pass;
  gradients are whole, and are summed until the last micro-batch, where they are reduce-scattered.
- ZeRO 2: FSDP2. The same, but gradients are reduce-scattered in every micro-batch.
- ZeRO 3: FSDP2. Parameters of a layer are gathered before each of its forward and backward passes and freed after it;
  gradients are reduce-scattered in every micro-batch.

FSDP's units are the layers, and the rest (embedding, head, final norm), which is gathered first and stays until its
backward pass. It prefetches as it does by default: the next layer's parameters while a layer computes.

Experts shared out by ep are no part of the data-parallel group. With copies (dp > ep), ZeRO 1 to 3 shards each expert
over its copies; without copies they are left alone, and so are their gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from moemodel.profiler.backends.torch_native.mappings import Group
from moemodel.profiler.backends.torch_native.mixture import Experts
from moemodel.profiler.backends.torch_native.model import DecoderModel

Pass = Callable[[bool], AbstractContextManager[None]]  # given whether it is the last micro-batch's


def replicate(model: DecoderModel, group: Group, *, expert_parallel: bool) -> DistributedDataParallel:
    """DDP.

    All ranks drew the same weights, so none are sent or checked first (`init_sync`).

    Args:
        model: in memory, the same on all ranks of the group but for experts that ep shares out.
        group: data-parallel ranks.
        expert_parallel: whether ep shares out the experts, whose gradients are then left to the caller.
    """
    held = _experts(model) if expert_parallel else []
    shared_out = [f"{name}.{leaf}" for name, experts in held for leaf, _ in experts.named_parameters()]
    ignore = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(model, shared_out)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(model, process_group=group, gradient_as_bucket_view=True, init_sync=False)


def shard(
    model: DecoderModel,
    zero: int,
    group: Group,
    *,
    expert_parallel: bool,
    expert_group: Group | None,
    device: torch.device,
) -> None:
    """FSDP2 in place, layer by layer.

    Args:
        model: in memory, the same on all ranks of the group but for experts that ep shares out.
        zero: stage 1 to 3.
        group: data-parallel ranks.
        expert_parallel: whether ep shares out the experts.
        expert_group: ranks that then hold the same experts, if there are several.
        device: that the model is on.
    """
    mesh = DeviceMesh.from_group(group, device.type, mesh_dim_names=("dp",))
    held = [experts for _, experts in _experts(model)] if expert_parallel else []
    ignored: set[nn.Parameter] = set()
    if expert_group is not None and held:
        expert_mesh = DeviceMesh.from_group(expert_group, device.type, mesh_dim_names=("expert_dp",))
        for experts in held:
            fully_shard(experts, mesh=expert_mesh, reshard_after_forward=zero == 3)
    else:
        ignored = {p for experts in held for p in experts.parameters()}
    for _, _, layer in model.numbered_layers():
        fully_shard(layer, mesh=mesh, reshard_after_forward=zero == 3, ignored_params=ignored)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, ignored_params=ignored)


def _experts(model: DecoderModel) -> list[tuple[str, Experts]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, Experts)]


def passes(model: nn.Module, zero: int) -> Pass:
    """What surrounds the forward and backward pass of a micro-batch, given whether it is the step's last."""
    if isinstance(model, DistributedDataParallel):
        ddp = model
        return lambda last: nullcontext() if last else ddp.no_sync()
    if isinstance(model, FSDPModule) and zero < 3:
        return _FsdpPasses(model, zero)
    return lambda _: nullcontext()


class _FsdpPasses:
    """Tells FSDP what is different in the last micro-batch, where it changes: each call walks the whole model."""

    def __init__(self, model: FSDPModule, zero: int) -> None:
        self._model, self._zero, self._last = model, zero, True

    def __call__(self, last: bool) -> AbstractContextManager[None]:
        if last != self._last:
            self._last = last
            self._model.set_reshard_after_backward(last)
            if self._zero == 1:
                self._model.set_requires_gradient_sync(last)
        return nullcontext()
