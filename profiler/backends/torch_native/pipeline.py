"""Pipelines through torch.distributed.pipelining: one rank's chunks of the model under a schedule.

| schedule, virtual stages | torch's                      |
| ------------------------ | ---------------------------- |
| 1f1b, 1                  | Schedule1F1B                 |
| 1f1b, more               | ScheduleInterleaved1F1B      |
| gpipe                    | ScheduleGPipe                |
| zero-bubble              | ScheduleInterleavedZeroBubble (ZB-H1 with one virtual stage) |

Chunk i of n lies on rank i mod pp. The first stage has no gradient of its input to hand on, so under zero-bubble all of
its backward pass happens where the weights' part is due. DDP reduces within the last backward pass of a chunk, FSDP
after the last one of the schedule, as torch does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

from moemodel.model.schedule.pipeline_layout import layer_bounds
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.torch_native.layer import Making
from moemodel.profiler.backends.torch_native.mappings import Group
from moemodel.profiler.backends.torch_native.model import Span
from moemodel.profiler.backends.torch_native.pipeline_stage import Chunk
from moemodel.profiler.backends.torch_native.rank_mesh import RankMesh


def own_chunks(run: TrainingRun, place: RankMesh, making: Making) -> list[Chunk]:
    """The chunks of one rank, on whatever device is the default."""
    bounds = layer_bounds(run.architecture, place.mesh.pp * run.parallel.virtual_stages)
    last = len(bounds) - 2
    spans = [
        Span(first=first, stop=stop, embedding=i == 0, head=i == last)
        for i, (first, stop) in enumerate(pairwise(bounds))
    ]
    return [Chunk(run, span, making) for span in spans[place.at.pp :: place.mesh.pp]]


class Pipeline:
    """One rank's stages under the plan's schedule.

    Args:
        run: what is trained.
        place: of this rank in the plan.
        chunks: of this rank, in order.
        modules: the same, wrapped for data parallelism.
        group: ranks of the pipeline.
        device: that they are on.
    """

    def __init__(
        self,
        run: TrainingRun,
        place: RankMesh,
        chunks: Sequence[Chunk],
        modules: Sequence[nn.Module],
        group: Group,
        device: torch.device,
    ) -> None:
        self._run, self._chunks = run, chunks
        self._stages: list[Any] = [
            self._stage(chunk, module, place, index, group, device)
            for index, (chunk, module) in enumerate(zip(chunks, modules, strict=True))
        ]
        self._schedule = self._make_schedule()

    def step(self, tokens: Tensor, targets: Tensor) -> list[Tensor]:
        """Queue all passes of one step; on the last stage the losses of its micro-batches, each over their number.

        Args:
            tokens: ids [micro-batches, B, S].
            targets: the same shape.
        """
        first, last = self._chunks[0].span.embedding, self._chunks[-1].span.head
        losses: list[Tensor] = []
        arguments = (tokens.flatten(0, 1),) if first else ()
        if not last:
            self._schedule.step(*arguments)
            return []
        self._chunks[-1].feed(targets.unbind())
        self._schedule.step(*arguments, target=targets.flatten(0, 1), losses=losses)
        return [loss.detach() for loss in losses]

    def _stage(
        self, chunk: Chunk, module: nn.Module, place: RankMesh, index: int, group: Group, device: torch.device
    ) -> PipelineStage:
        run, dtype = self._run, getattr(torch, self._run.dtype)
        rows = run.micro_batch * run.seq // (place.mesh.tp if run.parallel.sequence_parallel else 1)
        between = torch.empty(rows, run.architecture.hidden, dtype=dtype, device="meta", requires_grad=True)
        ids = torch.empty(run.micro_batch, run.seq, dtype=torch.int64, device="meta")
        loss = torch.empty(1, dtype=torch.float32, device="meta", requires_grad=True)
        return PipelineStage(
            module,
            place.at.pp + index * place.mesh.pp,
            place.mesh.pp * run.parallel.virtual_stages,
            device,
            input_args=ids if chunk.span.embedding else between,
            output_args=loss if chunk.span.head else between,
            group=group,
        )

    def _share(self, loss: Tensor, targets: Tensor) -> Tensor:
        """Of a micro-batch in the mean loss, so that gradients need no scaling."""
        del targets  # the chunk had them already
        return loss / self._run.micro_batches

    def _make_schedule(self) -> Any:
        run, stages = self._run, self._stages
        options: dict[str, Any] = {"loss_fn": self._share, "scale_grads": False}
        if run.schedule == "zero-bubble":
            return ScheduleInterleavedZeroBubble(stages, run.micro_batches, **options)
        if run.parallel.virtual_stages > 1:
            return ScheduleInterleaved1F1B(stages, run.micro_batches, **options)
        kind = ScheduleGPipe if run.schedule == "gpipe" else Schedule1F1B
        return kind(stages[0], run.micro_batches, **options)
