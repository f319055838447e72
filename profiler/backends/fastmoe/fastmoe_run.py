"""A model in training with FastMoE's layers. Imported in the process that trains with it, and nowhere else.

Gradients are reduced by FastMoE's `DistributedGroupedDataParallel` behind the last backward pass: all of one type and
one group flattened into one tensor, divided, all-reduced and copied back. Experts that ep shares out are reduced over
their copies. Clipping and AdamW are the torch backend's: FastMoE has neither.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from fmoe import DistributedGroupedDataParallel
from torch import Tensor

from moemodel.model.core.errors import InputError
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.data_parallel_run import DataParallelRun
from moemodel.profiler.backends.fastmoe.mixture import EXPERT_COMM, FastMoeMixture
from moemodel.profiler.backends.torch_native.gradients import Gradients, Trained
from moemodel.profiler.backends.torch_native.optimizer import build_optimizer
from moemodel.profiler.backends.torch_native.process_groups import Groups
from moemodel.profiler.backends.torch_native.rank_mesh import RankMesh

_EXPERT_RANKS: list[tuple[int, ...]] = []  # of the communicator that FastMoE opened: it keeps the first for good


def build_run(run: TrainingRun, device: torch.device) -> FastMoeRun | None:
    """This process's part of a run; None for one that the plan does not need.

    Raises:
        InputError: an earlier plan of this process shared out experts over other ranks.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    place = RankMesh.of(run.parallel, rank)
    groups = Groups(place) if dist.is_initialized() else None
    if rank >= place.mesh.world_size:
        return None
    ranks = place.own("ep")
    if ranks and _EXPERT_RANKS and _EXPERT_RANKS[0] != ranks:
        raise InputError(
            f"{run.name}: parallel.ep: found {place.mesh.ep}; FastMoE keeps the ranks {list(_EXPERT_RANKS[0])} of the "
            "first plan of a process, allowed: a job of its own"
        )
    if ranks:
        _EXPERT_RANKS[:] = [ranks]
    return FastMoeRun(run, device, place, groups or _Alone())


class _Alone(Groups):
    """Of a process without others: it is in no group."""

    def __init__(self) -> None:
        pass

    def own(self, kind: str) -> None:
        """None of any kind."""
        del kind


class FastMoeRun(DataParallelRun):
    """One rank's part of a model with FastMoE's experts. A `Run`."""

    def __init__(self, run: TrainingRun, device: torch.device, place: RankMesh, groups: Groups) -> None:
        super().__init__(run, device, place, groups, FastMoeMixture)
        self._parallel: Any = self._reduced() if place.mesh.dp > 1 else None
        self._gradients = Gradients([self._trained(p) for p in self.model.parameters()], groups.own("world"))
        self._optimizer = build_optimizer(self.model, run.precision, lr=run.lr)

    def forward(self, tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
        """See `DataParallelRun`."""
        loss: Tensor = self.model(tokens_BS, targets_BS)
        return loss

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """See `DataParallelRun`."""
        number = self._run.micro_batches
        torch.autograd.backward(loss / number if number > 1 else loss)
        if last and self._parallel is not None:
            self._parallel.allreduce_gradients()

    def update(self) -> None:
        """See `DataParallelRun`."""
        self._gradients.clip()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def close(self) -> None:
        """See `Run`."""
        self.wait()
        for name in ("_parallel", "_gradients", "_optimizer"):
            self.__dict__.pop(name, None)
        super().close()

    def _reduced(self) -> Any:
        """FastMoE's data parallelism; all ranks drew the same weights, so none are sent first."""
        world = self._groups.own("world")
        groups = {f"{name}_group": world for name in ("dp", "gate", "moe", "world")}
        sharing = self._groups.own("data_parallel" if self._place.mesh.ep == 1 else "expert_data_parallel")
        if sharing is not None:
            groups[f"{EXPERT_COMM}_group"] = sharing
        return DistributedGroupedDataParallel(self.model, need_sync=False, **groups)

    def _trained(self, parameter: torch.nn.Parameter) -> Trained:
        """Experts' gradients are sums over the ranks that share them out, each of the mean of its own tokens."""
        mesh = self._place.mesh
        shared_out = getattr(parameter, "dp_comm", "dp") == EXPERT_COMM
        ep = mesh.ep if shared_out else 1
        return Trained(parameter=parameter, replicas=mesh.dp // ep, scale=1 / ep, sums=())
