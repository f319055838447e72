"""A rank's chunk of a model: consecutive layers, with the ends that come with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.torch_native.layer import Making
from moemodel.profiler.backends.torch_native.model import DecoderModel, Span
from moemodel.profiler.backends.torch_native.rank_mesh import RankMesh
from moemodel.profiler.backends.torch_native.sharding import initialise_part

ModelT = TypeVar("ModelT", bound=DecoderModel)


class Chunk(DecoderModel):
    """One stage of a pipeline: token ids or activations in, activations or the loss [1] out.

    The last one takes its targets from `feed`, micro-batch after micro-batch in the order of its forward passes: what a
    pipeline hands from stage to stage is activations alone.
    """

    def __init__(self, run: TrainingRun, span: Span, making: Making) -> None:
        super().__init__(run.architecture, making, span=span)
        self._batch, self._seq = run.micro_batch, run.seq
        self._targets: Iterator[Tensor] = iter(())

    def feed(self, targets: Iterable[Tensor]) -> None:
        """Targets [B, S] of the micro-batches to come."""
        self._targets = iter(targets)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # a chunk has one input
        if self.span.embedding:
            x = self.embed(x)
        x = self.run_layers(x, self._batch, self._seq)
        return torch.stack((self.loss(x, next(self._targets)),)) if self.span.head else x


def build_part(model: ModelT, run: TrainingRun, place: RankMesh, device: torch.device) -> ModelT:
    """A model made on the meta device, in memory and with the weights that the whole one would have."""
    model = model.to(dtype=getattr(torch, run.dtype)).to_empty(device=device)
    initialise_part(model, run.seed, place)
    return model
