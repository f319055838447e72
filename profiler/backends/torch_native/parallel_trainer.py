"""A plan in training on several devices: one rank's part of it. The backend `torch` (see `backends.base`).

Every plan of an architecture starts from the weights that the whole model has on one device, and sees the same
sequences in the same step, so that its losses are those of one device, but for rounding.

| degree | how                                                                                     | in                |
| ------ | --------------------------------------------------------------------------------------- | ----------------- |
| dp     | DDP; from ZeRO 1 on FSDP2                                                               | `data_parallel`   |
| tp     | explicit collectives on plain tensors, with or without sequence parallelism             | `tensor_parallel` |
| ep     | dropless, rows to their experts and back by all-to-all                                  | `tensor_parallel` |
| pp     | torch.distributed.pipelining                                                            | `pipeline`        |

Gradients that none of them sums are summed after the last backward pass (`gradients`): of parameters which every
tensor-parallel rank has used for a part only; of experts with copies under ZeRO 0; of tied embeddings at both ends of a
pipeline; and, under zero-bubble with ZeRO 0, of all parameters over dp, since a backward pass in two parts tells DDP
nothing.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from moemodel.profiler.backends.base import PhaseCallback, Run, StepStatistics, TrainingRun
from moemodel.profiler.backends.torch_native.batches import Batches
from moemodel.profiler.backends.torch_native.bias_balance import move_biases
from moemodel.profiler.backends.torch_native.data_parallel import passes, replicate, shard
from moemodel.profiler.backends.torch_native.gradients import Gradients, Trained
from moemodel.profiler.backends.torch_native.layer import Making
from moemodel.profiler.backends.torch_native.mixture import Mixture, MixtureFactory
from moemodel.profiler.backends.torch_native.model import DecoderModel, model_of
from moemodel.profiler.backends.torch_native.optimizer import build_optimizer
from moemodel.profiler.backends.torch_native.pipeline import Pipeline, own_chunks
from moemodel.profiler.backends.torch_native.pipeline_stage import Chunk, build_part
from moemodel.profiler.backends.torch_native.process_groups import Groups, release_comm_buffers
from moemodel.profiler.backends.torch_native.rank_mesh import RankMesh
from moemodel.profiler.backends.torch_native.run_routing import seed_routers, step_statistics
from moemodel.profiler.backends.torch_native.sharding import ShardSpec, shard_spec, whole_names
from moemodel.profiler.backends.torch_native.tensor_parallel import TensorParallelSharding
from moemodel.profiler.backends.torch_native.trainer import Trainer, wait

__all__ = ["ParallelTrainer", "build", "release_comm_buffers"]


def build(run: TrainingRun, device: torch.device, mixture: MixtureFactory = Mixture) -> Run | None:
    """This process's part of a run; all processes of the job call it. None for one that the plan does not need.

    Args:
        run: what is trained; its ranks are the first processes of the job.
        device: of this process.
        mixture: makes Mixture-of-Experts blocks.
    """
    if not dist.is_initialized():
        return Trainer(run, device, mixture)
    place = RankMesh.of(run.parallel, dist.get_rank())
    groups = Groups(place)
    if place.rank >= place.mesh.world_size:
        return None
    if place.mesh.world_size == 1:
        return Trainer(run, device, mixture)
    return ParallelTrainer(run, device, place, groups, mixture)


class ParallelTrainer:
    """One rank's part of a model in training: data, passes, gradients, optimizer. A `Run`."""

    def __init__(
        self,
        run: TrainingRun,
        device: torch.device,
        place: RankMesh,
        groups: Groups,
        mixture: MixtureFactory = Mixture,
    ) -> None:
        self.device, self._run, self._place, self._groups = device, run, place, groups
        mesh = self._mesh = place.mesh
        self._zero = run.parallel.zero_stage if mesh.dp > 1 else 0
        self._models = self._build_models(mixture)
        seed_routers(run, place.at.dp)
        self.parameters = sum(p.numel() for model in self._models for p in model.parameters())
        self._by_ddp = mesh.dp > 1 and self._zero == 0 and not (mesh.pp > 1 and run.schedule == "zero-bubble")
        modules = [self._wrapped(model) for model in self._models]
        self._holder = nn.ModuleList(self._models)
        self._gradients = Gradients([t for m in self._models for t in self._trained(m)], groups.own("world"))
        self._optimizer = build_optimizer(self._holder, run.precision, lr=run.lr, keep_gradients=self._by_ddp)
        self._batches = Batches(run, device, place.at.dp)
        self._losses: list[Tensor] = []
        self._passes = passes(modules[0], self._zero)
        self._module = modules[0]
        self._pipeline = self._build_pipeline(modules)
        self.marks = 3 if mesh.pp > 1 else 2 * run.micro_batches + 2

    # ---- a step -------------------------------------------------------------------------------------------------

    def step(self, mark: PhaseCallback) -> None:
        """See `Run`."""
        mark("start")
        tokens, targets = self._batches.step()
        if self._pipeline is None:
            self._micro_batches(tokens, targets, mark)
        else:
            self._losses = self._pipeline.step(tokens, targets)
            self._gradients.finish()
            mark("pipeline")
        self._gradients.clip()
        self._optimizer.step()
        self._optimizer.zero_grad()
        move_biases(self._models, self._groups.own("data_parallel"))
        mark("optimizer")

    def _micro_batches(self, tokens: Tensor, targets: Tensor, mark: PhaseCallback) -> None:
        self._losses = []
        number = len(tokens)
        for i in range(number):
            last = i == number - 1
            with self._passes(last):
                loss = self._module(tokens[i], targets[i])
                loss = loss / number if number > 1 else loss
                mark("forward")
                torch.autograd.backward(loss)
            if last:
                self._gradients.finish()
            mark("backward")
            self._losses.append(loss.detach())

    def loss(self) -> float:
        """See `Run`."""
        mean = torch.zeros(2, dtype=torch.float64, device=self.device)  # a sum, and of how many ranks
        if self._losses:
            mean[0], mean[1] = torch.stack(self._losses).double().sum(), 1.0
        group = self._groups.own("world")
        if group is not None:
            dist.all_reduce(mean, group=group)
        total, ranks = mean.tolist()
        return float(total / ranks)

    def wait(self) -> None:
        """See `Run`."""
        wait(self.device)

    # ---- experts ------------------------------------------------------------------------------------------------

    def statistics(self) -> StepStatistics:
        """See `Run`."""
        mean = torch.stack(self._losses).sum() if self._losses else None  # each is over the number of micro-batches
        return step_statistics(self._models, mean, self._run.micro_batches)

    def record_entropies(self, wanted: bool) -> None:
        """See `Run`."""
        for model in self._models:
            model.record_entropies(wanted)

    def expert_loads(self) -> list[Tensor]:
        """See `Run`."""
        loads = [load for model in self._models for load in model.expert_loads()]
        group = self._groups.own("data_parallel")
        if group is None or not loads:
            return loads
        sums = torch.stack(loads)
        dist.all_reduce(sums, group=group)
        return list(sums)

    def clear_expert_loads(self) -> None:
        """See `Run`."""
        for model in self._models:
            model.clear_expert_loads()

    def close(self) -> None:
        """Drop what holds memory; modules, hooks and schedules refer to each other in cycles.

        What groups hold beside it, `release_comm_buffers` drops.
        """
        self.wait()
        for name in ("_models", "_holder", "_module", "_gradients", "_optimizer", "_batches", "_pipeline", "_losses"):
            self.__dict__.pop(name, None)
        self.__dict__.pop("_passes", None)

    # ---- building -----------------------------------------------------------------------------------------------

    def _build_models(self, mixture: MixtureFactory) -> list[DecoderModel]:
        run, place, groups = self._run, self._place, self._groups
        sharding = TensorParallelSharding(
            tp=place.mesh.tp,
            tp_rank=place.at.tp,
            tp_group=groups.own("tp"),
            ep=place.mesh.ep,
            ep_group=groups.own("ep"),
            sequence=run.parallel.sequence_parallel,
            vocab=run.architecture.vocab,
        )
        making = Making.of(run, mixture, sharding)
        with torch.device("meta"):
            parts: list[DecoderModel] = (
                [model_of(run.architecture, making)] if place.mesh.pp == 1 else list(own_chunks(run, place, making))
            )
        return [build_part(part, run, place, self.device) for part in parts]

    def _wrapped(self, model: DecoderModel) -> nn.Module:
        group = self._groups.own("data_parallel")
        if group is None:
            return model
        expert_parallel = self._mesh.ep > 1
        if self._by_ddp:
            return replicate(model, group, expert_parallel=expert_parallel)
        if self._zero > 0:
            expert_group = self._groups.own("expert_data_parallel") if expert_parallel else None
            shard(
                model, self._zero, group, expert_parallel=expert_parallel, expert_group=expert_group, device=self.device
            )
        return model

    def _build_pipeline(self, modules: list[nn.Module]) -> Pipeline | None:
        group = self._groups.own("pp")
        if group is None:
            return None
        chunks = [model for model in self._models if isinstance(model, Chunk)]
        return Pipeline(self._run, self._place, chunks, modules, group, self.device)

    def _trained(self, model: DecoderModel) -> list[Trained]:
        architecture = self._run.architecture
        return [
            self._trained_one(name, parameter, shard_spec(name, architecture)) for name, parameter in whole_names(model)
        ]

    def _trained_one(self, name: str, parameter: nn.Parameter, spec: ShardSpec) -> Trained:
        mesh, groups = self._mesh, self._groups
        expert_parallel = spec.expert and mesh.ep > 1
        sharded = hasattr(parameter, "to_local")
        data_ranks = (mesh.expert_data_parallel_group if expert_parallel else mesh.data_parallel_group).size
        left = not sharded and (expert_parallel or not self._by_ddp)  # to this module, of the mean over dp
        partial = spec.partial == "always" or (spec.partial == "sequence" and self._run.parallel.sequence_parallel)
        twice = mesh.pp > 1 and name == "embedding_VW" and self._run.architecture.tied
        sums = (
            groups.own("expert_data_parallel" if expert_parallel else "data_parallel") if left else None,
            groups.own("tp") if partial else None,
            groups.own("embedding") if twice else None,
        )
        scale = 1 / mesh.dp if left else (1 / mesh.ep if expert_parallel else 1.0)
        replicas = (1 if sharded else data_ranks) * (1 if spec.dim is not None else mesh.tp) * (2 if twice else 1)
        return Trained(
            parameter=parameter,
            replicas=replicas,
            scale=scale,
            sums=tuple(group for group in sums if group is not None),
        )
