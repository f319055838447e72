"""One rank's part of a model in training under Megatron Core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.moe.moe_logging import destroy_moe_metrics_tracker, get_moe_metrics_tracker
from torch import Tensor, nn

from moemodel.profiler.backends.base import LayerRouting, PhaseCallback, StepStatistics, TrainingRun
from moemodel.profiler.backends.megatron_core.gpt import build_chunks, decoder_layers, transformer_config
from moemodel.profiler.backends.megatron_core.groups import close_groups, plan_group
from moemodel.profiler.backends.megatron_core.router_watch import RouterWatch, watch
from moemodel.profiler.backends.torch_native.batches import Batches
from moemodel.profiler.backends.torch_native.optimizer import MAX_NORM
from moemodel.profiler.backends.torch_native.router_passes import sums
from moemodel.profiler.backends.torch_native.trainer import wait

# The torch backend's (GPT-3, Brown et al. 2020, appendix B); none of them changes the time.
_ADAM = {"weight_decay": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_eps": 1e-8, "clip_grad": MAX_NORM}

_Micro = tuple[Tensor, Tensor]


class MegatronTrainer:
    """One rank's part of a model in training; the groups of its plan are open. A `Run`."""

    def __init__(self, run: TrainingRun, device: torch.device) -> None:
        self.device, self._run = device, run
        self._config = transformer_config(run)
        chunks = build_chunks(run, self._config, device)
        self.parameters = sum(p.numel() for chunk in chunks for p in chunk.parameters())
        self._watches = [found for chunk in chunks for found in watch(decoder_layers(chunk))]
        self._chunks = [self._replicated(chunk, first=i == 0) for i, chunk in enumerate(chunks)]
        self._optimizer = get_megatron_optimizer(self._optimizer_config(), self._chunks, use_gloo_process_groups=False)
        self._schedule()
        self._batches = Batches(run, device, parallel_state.get_data_parallel_rank())
        self._losses: list[Tensor] = []
        self._mark: PhaseCallback = _ignore
        self._staged = run.parallel.pp > 1
        self.marks = 3 if self._staged else 2 * run.micro_batches + 2

    # ---- a step -------------------------------------------------------------------------------------------------

    def step(self, mark: PhaseCallback) -> None:
        """See `Run`."""
        mark("start")
        self._begin(_ignore if self._staged else mark)
        self._passes()
        mark("pipeline" if self._staged else "backward")
        self._optimizer.step()
        mark("optimizer")

    def _begin(self, mark: PhaseCallback) -> None:
        get_moe_metrics_tracker().clear()
        for chunk in self._chunks:
            chunk.zero_grad_buffer()
        self._optimizer.zero_grad()
        self._losses, self._mark = [], mark

    def _passes(self) -> None:
        micro = list(zip(*(part.unbind() for part in self._batches.step()), strict=True))
        iterators = [iter(micro) for _ in self._chunks]
        self._run_schedule(
            forward_step_func=self._forward,
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=self._chunks if len(self._chunks) > 1 else self._chunks[0],
            num_microbatches=self._run.micro_batches,
            seq_length=self._run.seq,
            micro_batch_size=self._run.micro_batch,
            forward_only=False,
        )

    def _forward(self, micro: Iterator[_Micro], chunk: nn.Module) -> tuple[Tensor, Callable[[Tensor], Any]]:
        """One micro-batch through one chunk, as Megatron Core's schedules call it."""
        if self._losses:
            self._mark("backward")
        tokens_BS, targets_BS = next(micro)
        position_BS = torch.arange(tokens_BS.shape[1], device=self.device).expand_as(tokens_BS)
        return chunk(tokens_BS, position_BS, None, labels=targets_BS), self._mean

    def _mean(self, loss_BS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = loss_BS.float().mean()
        self._losses.append(loss.detach().clone())  # the schedule divides the loss in place
        self._mark("forward")
        return loss, {}

    # ---- what came out ------------------------------------------------------------------------------------------

    def loss(self) -> float:
        """See `Run`."""
        mean = torch.zeros(2, dtype=torch.float64, device=self.device)  # a sum, and of how many ranks
        if self._losses:
            mean[0], mean[1] = torch.stack(self._losses).double().mean(), 1.0
        _sum_over(mean, self._everybody())
        total, ranks = mean.tolist()
        return float(total / ranks)

    def statistics(self) -> StepStatistics:
        """See `Run`; of all tensor-parallel ranks, each of which routes its part of the sequence."""
        task = torch.stack(self._losses).mean() if self._losses else None
        routing = tuple(self._layer_routing(found) for found in self._watches if found.records)
        return StepStatistics(task_loss=task, router_loss=self._router_loss(), routing=routing)

    def _router_loss(self) -> Tensor | None:
        """From Megatron Core's tracker: of each loss the sum over micro-batches, of a rank's tokens."""
        routing, tp, metrics = self._run.routing, self._run.parallel.tp, get_moe_metrics_tracker().metrics
        weights = {"load_balancing_loss": routing.balance_loss, "z_loss": routing.z_loss / tp}  # a share, a mean
        added = [metrics[name].values.sum() * weight for name, weight in weights.items() if weight and name in metrics]
        if not added:
            return None
        total = torch.stack(added).sum() / self._run.micro_batches
        _sum_over(total, parallel_state.get_tensor_model_parallel_group())
        return total

    def _layer_routing(self, found: RouterWatch) -> LayerRouting:
        tp = self._run.parallel.tp
        step = sums(list(found.records)[-self._run.micro_batches :])
        rows_E, dropped, entropy = step.counts_E.clone(), step.dropped.clone(), step.entropy / tp
        for part in (rows_E, dropped, entropy):
            _sum_over(part, parallel_state.get_tensor_model_parallel_group())
        return LayerRouting(layer=found.layer, rows_E=rows_E, dropped=dropped, entropy=entropy)

    def record_entropies(self, wanted: bool) -> None:
        """See `Run`."""
        for found in self._watches:
            found.recording = wanted

    def wait(self) -> None:
        """See `Run`."""
        wait(self.device)

    def expert_loads(self) -> list[Tensor]:
        """See `Run`."""
        loads = [one.counts_E for found in self._watches for one in found.records]
        if not loads:
            return loads
        totals = torch.stack(loads)
        _sum_over(totals, plan_group())
        return list(totals)

    def clear_expert_loads(self) -> None:
        """See `Run`."""
        for found in self._watches:
            found.records.clear()

    def close(self) -> None:
        """Drop what holds memory, and the plan's groups."""
        self.wait()
        for name in ("_chunks", "_optimizer", "_watches", "_batches", "_losses", "_config", "_run_schedule"):
            self.__dict__.pop(name, None)
        destroy_moe_metrics_tracker()  # its tensors are as long as this model has layers
        close_groups()

    # ---- building -----------------------------------------------------------------------------------------------

    def _replicated(self, chunk: nn.Module, *, first: bool) -> DistributedDataParallel:
        zero = self._run.parallel.zero_stage > 0
        overlap = self._run.parallel.dp > 1
        config = DistributedDataParallelConfig(
            grad_reduce_in_fp32=False,
            overlap_grad_reduce=overlap,
            overlap_param_gather=overlap and zero,
            use_distributed_optimizer=zero,
        )
        return DistributedDataParallel(self._config, config, chunk, disable_bucketing=not first)

    def _optimizer_config(self) -> OptimizerConfig:
        p, bf16 = self._run.parallel, self._config.bf16
        return OptimizerConfig(
            optimizer="adam",
            lr=self._run.lr,
            bf16=bf16,
            params_dtype=self._config.params_dtype,
            use_distributed_optimizer=p.zero_stage > 0,
            overlap_param_gather=p.zero_stage > 0 and p.dp > 1,
            **_ADAM,
        )

    def _schedule(self) -> None:
        """What Megatron-LM's training loop hands to the schedules (training.py, `train`)."""
        config, chunks = self._config, self._chunks
        config.grad_scale_func = self._optimizer.scale_loss
        config.finalize_model_grads_func = finalize_model_grads
        if self._run.parallel.dp > 1:
            config.no_sync_func = _alone([chunk.no_sync for chunk in chunks])
        self._run_schedule = get_forward_backward_func()

    def _everybody(self) -> Any:
        """All ranks of the plan: model parallel groups of this rank, then their replicas, hold them all."""
        return (parallel_state.get_model_parallel_group(), parallel_state.get_data_parallel_group())


def _alone(functions: list[Any]) -> Any:
    return functions[0] if len(functions) == 1 else functions


def _ignore(_phase: str) -> None:
    return None


def _sum_over(tensor: Tensor, groups: Any) -> None:
    for group in groups if isinstance(groups, tuple) else (groups,):
        if dist.get_world_size(group) > 1:
            dist.all_reduce(tensor, group=group)
