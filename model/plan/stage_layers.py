"""How a plan says which layers each stage of its pipeline holds, where they are not shared out evenly.

{embedding: 1, head: 1}   these ends count as so many layers when the model is cut, so that the stages that hold
                          them get fewer (Megatron's account_for_embedding_in_pipeline_split and
                          account_for_loss_in_pipeline_split are 1 each)
{first: 7, last: 7}       layers of the first and the last stage; the rest is shared out evenly (Megatron's
                          num_layers_in_first_pipeline_stage, num_layers_in_last_pipeline_stage)
[7, 8, 8, 7]              of every stage, or, with virtual stages, of every chunk in the order of the model
                          (Megatron's pipeline_model_parallel_layout)
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from moemodel.model.architecture.spec import Architecture, Layer, Moe
from moemodel.model.core.documents import Strict
from moemodel.model.core.errors import InputError
from moemodel.model.schedule.pipeline_layout import PipelineLayout

_MOST = 10_000  # layers, as an architecture may have

Layers = Annotated[int, Field(ge=0, le=_MOST, strict=True)]


class EndSlots(Strict):
    """The ends of a model counted as so many layers when it is cut."""

    embedding: Layers = 0
    head: Layers = 0


class EndStages(Strict):
    """Layers of the first and the last stage; None: as many as those between."""

    first: Layers | None = None
    last: Layers | None = None

    @model_validator(mode="after")
    def _says_something(self) -> EndStages:
        if self.first is None and self.last is None:
            raise ValueError("allowed: first, last, or both")
        return self


EachStage = Annotated[tuple[Layers, ...], Field(min_length=1, max_length=_MOST)]
StageLayers = EndSlots | EndStages | EachStage


def cut_as_said(architecture: Architecture, said: StageLayers, *, pp: int, virtual: int) -> PipelineLayout:
    """An architecture as a plan cuts it into `pp` stages of `virtual` chunks each.

    Raises:
        InputError: the layers cannot be cut so; what is allowed.
    """
    if isinstance(said, EndSlots):
        return PipelineLayout.of(architecture, account_for_embedding=said.embedding, account_for_loss=said.head)
    if pp == 1:
        raise InputError("stage_layers: found layers of stages with pp 1; allowed: null, or {embedding, head}")
    layers = len(architecture.layers)
    stages = _between(said, layers, pp) if isinstance(said, EndStages) else said
    chunks = stages if len(stages) == pp * virtual else _chunks(stages, pp, virtual)
    if sum(chunks) != layers:
        raise InputError(f"stage_layers: found {sum(chunks)} layers in all; {architecture.name} has {layers}")
    empty = [place for place, count in enumerate(chunks[1:-1], 1) if not count]
    if empty:
        raise InputError(
            f"stage_layers: found no layer in chunk {empty[0]}; allowed without one: those of embedding and head"
        )
    return PipelineLayout.of(architecture, chunks=tuple(chunks))


def cut_by_cost(architecture: Architecture) -> PipelineLayout:
    """An architecture whose layers, and its head, count as the weights of their products, keys and values as many as
    queries (nanotron, models/llama.py, get_block_compute_costs).
    """
    each = [architecture.hidden * _weights(layer) for layer in architecture.layers]
    head = architecture.head_outputs * architecture.embedding_width if architecture.has_head else 0
    return PipelineLayout.of(architecture, costs=(*each, head))


def _weights(layer: Layer) -> int:
    """Of a layer's products, for each hidden feature."""
    block, attentions = layer.feed_forward, sum(4 * one.heads * one.head_dim for one in layer.attentions)
    mixer = 0 if layer.state_space is None else 2 * layer.state_space.width + layer.state_space.convolved
    if block is None:
        return attentions + mixer
    return attentions + mixer + block.width * (2 + block.gated) * (block.top_k if isinstance(block, Moe) else 1)


def _between(said: EndStages, layers: int, pp: int) -> tuple[int, ...]:
    """Layers of each stage: the ends as they are given, the rest evenly."""
    ends = [end for end in (said.first, said.last) if end is not None]
    left, stages = layers - sum(ends), pp - len(ends)
    if left < 0 or (left and not stages) or (stages and left % stages):
        raise InputError(
            f"stage_layers: found {' and '.join(map(str, ends))} of {layers} layers, which leaves {left} to {stages} "
            "stages; allowed: what they can share evenly"
        )
    middle = left // stages if stages else 0
    first = middle if said.first is None else said.first
    last = middle if said.last is None else said.last
    return (first, *[middle] * (pp - 2), last)


def _chunks(stages: tuple[int, ...], pp: int, virtual: int) -> tuple[int, ...]:
    """Layers of each chunk, in the order of the model: each stage's shared out over its chunks."""
    if len(stages) != pp:
        more = f", or {pp * virtual}, one a chunk" if virtual > 1 else ""
        raise InputError(f"stage_layers: found {len(stages)} values; allowed: {pp}, one a stage{more}")
    uneven = [count for count in stages if count % virtual]
    if uneven:
        raise InputError(
            f"stage_layers: found {uneven[0]} layers in a stage of {virtual} chunks; allowed: multiples of "
            f"virtual_stages {virtual}, or {pp * virtual} values, one a chunk"
        )
    return tuple(stages[chunk % pp] // virtual for chunk in range(pp * virtual))
