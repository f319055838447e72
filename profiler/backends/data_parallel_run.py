"""One rank's part of a run of a framework that shares out data and experts alone: what does not depend on which.

The model is the torch backend's, with the framework's Mixture-of-Experts blocks; weights and sequences are those of the
torch backend too. What a framework does in a step is the three methods that its own class adds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor

from moemodel.profiler.backends.base import PhaseCallback, StepStatistics, TrainingRun
from moemodel.profiler.backends.expert_parallel import ExpertShare
from moemodel.profiler.backends.torch_native.batches import Batches
from moemodel.profiler.backends.torch_native.layer import Making
from moemodel.profiler.backends.torch_native.mixture import MixtureFactory
from moemodel.profiler.backends.torch_native.model import DecoderModel, initialise, model_of
from moemodel.profiler.backends.torch_native.process_groups import Groups
from moemodel.profiler.backends.torch_native.rank_mesh import RankMesh
from moemodel.profiler.backends.torch_native.run_routing import seed_routers, step_statistics
from moemodel.profiler.backends.torch_native.trainer import wait


class DataParallelRun(ABC):
    """Data, passes, losses and records of routers. With `forward`, `backward` and `update`, a `Run`.

    Args:
        run: what is trained.
        device: of this process.
        place: of this rank in the plan.
        groups: of the plan's ranks.
        mixture: makes Mixture-of-Experts blocks.
    """

    def __init__(
        self, run: TrainingRun, device: torch.device, place: RankMesh, groups: Groups, mixture: MixtureFactory
    ) -> None:
        self.device, self._run, self._place, self._groups = device, run, place, groups
        self.marks = 2 * run.micro_batches + 2
        self.model = self._build(mixture)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self._batches = Batches(run, device, place.at.dp)
        seed_routers(run, place.at.dp)
        self._losses: list[Tensor] = []

    @abstractmethod
    def forward(self, tokens_BS: Tensor, targets_BS: Tensor) -> Tensor:
        """Queue a forward pass; the mean loss of the micro-batch."""

    @abstractmethod
    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Queue its backward pass, and behind the last one of a step what reduces gradients."""

    @abstractmethod
    def update(self) -> None:
        """Queue the optimizer's step, and drop the gradients."""

    def step(self, mark: PhaseCallback) -> None:
        """See `Run`."""
        mark("start")
        self._losses = []
        tokens, targets = self._batches.step()
        for i in range(len(tokens)):
            loss = self.forward(tokens[i], targets[i])
            mark("forward")
            self.backward(loss, last=i == len(tokens) - 1)
            mark("backward")
            self._losses.append(loss.detach())
        self.update()
        mark("optimizer")

    def loss(self) -> float:
        """See `Run`."""
        mean = torch.stack(self._losses).double().mean()
        group = self._groups.own("world")
        if group is not None:
            dist.all_reduce(mean, group=group)
        return float(mean) / self._place.mesh.world_size

    def statistics(self) -> StepStatistics:
        """See `Run`."""
        return step_statistics([self.model], torch.stack(self._losses).mean(), self._run.micro_batches)

    def record_entropies(self, wanted: bool) -> None:
        """See `Run`."""
        self.model.record_entropies(wanted)

    def expert_loads(self) -> list[Tensor]:
        """See `Run`."""
        loads = self.model.expert_loads()
        group = self._groups.own("data_parallel")
        if group is None or not loads:
            return loads
        sums = torch.stack(loads)
        dist.all_reduce(sums, group=group)
        return list(sums)

    def clear_expert_loads(self) -> None:
        """See `Run`."""
        self.model.clear_expert_loads()

    def wait(self) -> None:
        """See `Run`."""
        wait(self.device)

    def close(self) -> None:
        """See `Run`."""
        self.wait()
        for name in ("model", "_batches", "_losses"):
            self.__dict__.pop(name, None)

    def _build(self, mixture: MixtureFactory) -> DecoderModel:
        """The model in memory, with the weights that the whole one has on one device."""
        run, place = self._run, self._place
        share = ExpertShare(ep=place.mesh.ep, ep_rank=place.at.ep, ep_group=self._groups.own("ep"))
        with torch.device("meta"):
            model = model_of(run.architecture, Making.of(run, mixture, share))
        model = model.to(dtype=getattr(torch, run.dtype)).to_empty(device=self.device)
        initialise(model, run.seed)
        return model
