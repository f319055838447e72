"""How a pipeline cuts a model: which layers, and which ends, each stage holds.

Layers are cut in order, as evenly as they go: chunk c of C begins at layer round(c L / C), halves rounded to even. The
first stage also holds the embedding, the last one the head. Frameworks that count these ends as layers when they cut
give the stages that hold them fewer, and a plan may say how many each chunk gets (`PipelineLayout`). With `v` virtual
stages, stage s holds the chunks s, s + pp, s + 2 pp, ... (Narayanan et al. 2021, section 2.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import accumulate
from typing import TypeVar

import numpy as np

from moemodel.model.architecture.spec import Architecture, Layer
from moemodel.model.core.arrays import FloatArray, IntArray, distinct_rows

_Part = TypeVar("_Part")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Stages that hold the same: one class of them.

    Attributes:
        layers: how many of each distinct layer, in the order of `distinct_layers`.
        embedding, head: whether it holds that end of the model.
        first: index of the first such stage: the one with most micro-batches in flight.
        count: how many stages there are of this class.
    """

    layers: tuple[int, ...]
    embedding: bool
    head: bool
    first: int
    count: int

    def take(self, rows: IntArray) -> Stage:  # noqa: ARG002
        """That of the plans at these rows: the same."""
        return self


@dataclass(frozen=True, kw_only=True)
class PipelineLayout(Architecture):
    """An architecture whose ends a framework counts as so many layers when it cuts the model into stages.

    Megatron: one each under `account_for_embedding_in_pipeline_split` and `account_for_loss_in_pipeline_split`.

    Attributes:
        chunks: layers of each chunk, in order; None: as evenly as they go.
        costs: of each layer and, last, of the head: a chunk takes layers until what it and those before it hold is no
            less than their share of the whole (nanotron, models/base.py, build_model; where both are equal its runs'
            memory shows that it stops); None: layers count alike.
    """

    account_for_embedding: int = 0
    account_for_loss: int = 0
    chunks: tuple[int, ...] | None = None
    costs: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        architecture: Architecture,
        *,
        account_for_embedding: int = 0,
        account_for_loss: int = 0,
        chunks: tuple[int, ...] | None = None,
        costs: tuple[int, ...] | None = None,
    ) -> PipelineLayout:
        """An architecture cut so."""
        own = {f.name: getattr(architecture, f.name) for f in fields(Architecture)}
        return cls(
            **own,
            account_for_embedding=account_for_embedding,
            account_for_loss=account_for_loss,
            chunks=chunks,
            costs=costs,
        )


@dataclass(frozen=True, kw_only=True)
class Stages:
    """One class of stages in each of P plans, whose pipelines differ in length alone; names as in `Stage`.

    Attributes:
        layers: of each distinct layer, [P]; 0 where none holds any.
        embedding, head: the same in all.
        first, count: [P].
    """

    layers: tuple[FloatArray | int, ...]
    embedding: bool
    head: bool
    first: IntArray
    count: IntArray

    @classmethod
    def of(cls, each: Sequence[Stage], place: IntArray) -> Stages:
        """Of some stages that are kin (`kinship`), and which of them each plan's is."""
        layers = np.array([stage.layers for stage in each], dtype=np.float64)
        return cls(
            layers=tuple(column[place] if column.any() else 0 for column in layers.T),
            embedding=each[0].embedding,
            head=each[0].head,
            first=np.array([stage.first for stage in each])[place],
            count=np.array([stage.count for stage in each])[place],
        )

    def take(self, rows: IntArray) -> Stages:
        """Those of the plans at these rows."""
        return Stages(
            layers=tuple(count if isinstance(count, int) else count[rows] for count in self.layers),
            embedding=self.embedding,
            head=self.head,
            first=self.first[rows],
            count=self.count[rows],
        )


Pipeline = Sequence[Stage] | Sequence[Stages]  # its classes of stages, in order of their first stage


def held_layers(stage: Stage | Stages, parts: Iterable[_Part]) -> list[tuple[int | FloatArray, _Part]]:
    """How many of each distinct layer a stage holds, and what is given of it; of those that it holds."""
    every = zip(stage.layers, parts, strict=True)
    return [(count, part) for count, part in every if not isinstance(count, int) or count]


def each_as_one(pipelines: Sequence[tuple[Stage, ...]], place: IntArray) -> tuple[Stages, ...]:
    """Pipelines that are kin as those of one batch of plans; `place` is which of them each plan has."""
    return tuple(Stages.of(stages_of_class, place) for stages_of_class in zip(*pipelines, strict=True))


def kinship(pipeline: Sequence[Stage]) -> tuple[Hashable, ...]:
    """What pipelines have in common whose classes of stages hold the same ends, and layers of the same kinds."""
    return tuple((tuple(count > 0 for count in s.layers), s.embedding, s.head) for s in pipeline)


def distinct_layers(architecture: Architecture) -> tuple[Layer, ...]:
    """The layers that differ, in order of appearance."""
    objects = {id(layer): layer for layer in architecture.layers}  # few where most layers are one object, often hashed
    return tuple(dict.fromkeys(objects.values()))


def counted_layers(architecture: Architecture) -> int:
    """Layers that a pipeline cuts, ends that count as one among them."""
    ends = 0
    if isinstance(architecture, PipelineLayout):
        if architecture.chunks is not None:
            return max(len(architecture.layers) - architecture.modules, len(architecture.chunks))
        ends = architecture.account_for_embedding + architecture.account_for_loss
    return len(architecture.layers) - architecture.modules + ends


def layer_bounds(architecture: Architecture, chunks: int) -> tuple[int, ...]:
    """Where chunks of layers begin and end: chunk c holds the layers from `bounds[c]` up to `bounds[c + 1]`.

    Modules of multi-token prediction lie on the last one, whatever else it holds.

    Args:
        architecture: its layers, an encoder's first, are counted from 0.
        chunks: pp x virtual stages.
    """
    *bounds, last = _bounds(architecture, chunks)
    return (*bounds, last + architecture.modules)


def _bounds(architecture: Architecture, chunks: int) -> tuple[int, ...]:
    """The same of layers without modules."""
    before = architecture.account_for_embedding if isinstance(architecture, PipelineLayout) else 0
    if isinstance(architecture, PipelineLayout) and architecture.chunks is not None:
        return (0, *accumulate(architecture.chunks))
    if isinstance(architecture, PipelineLayout) and architecture.costs is not None:
        return _bounds_by_cost(architecture.costs, chunks)
    layers, counted = len(architecture.layers) - architecture.modules, counted_layers(architecture)
    return tuple(min(max(round(c * counted / chunks) - before, 0), layers) for c in range(chunks + 1))


def _bounds_by_cost(costs: tuple[int, ...], chunks: int) -> tuple[int, ...]:
    """Where chunks end that each take layers until they have their share, or leave one to each that follows but the
    last; that one has the head."""
    bounds, held, whole, layers = [0], 0, sum(costs), len(costs) - 1
    for layer, cost in enumerate(costs[:-1], 1):
        held += cost
        full = held * chunks >= whole * len(bounds) or layers - layer <= chunks - 1 - len(bounds)
        if full and len(bounds) < chunks:
            bounds.append(layer)
    return (*bounds, *[layers] * (chunks + 1 - len(bounds)))


@lru_cache(maxsize=4096)  # far more pipelines than a search holds; entries are small
def stages(architecture: Architecture, pp: int, virtual: int, folds: bool = False) -> tuple[Stage, ...]:
    """The classes of stages of a pipeline, in order of their first stage; the layers need not divide.

    Args:
        architecture: whose layers are cut.
        pp, virtual: stages, and chunks of each.
        folds: stage s holds chunks s and 2 pp - 1 - s.
    """
    keys = _held(architecture, pp, virtual, folds)
    return tuple(
        Stage(layers=key[0], embedding=key[1], head=key[2], first=keys.index(key), count=count)
        for key, count in Counter(keys).items()
    )


@lru_cache(maxsize=4096)
def members(architecture: Architecture, pp: int, virtual: int, folds: bool = False) -> tuple[tuple[int, ...], ...]:
    """The stages of each of these classes."""
    keys = _held(architecture, pp, virtual, folds)
    return tuple(tuple(s for s in range(pp) if keys[s] == key) for key in dict.fromkeys(keys))


def rows_by_pipeline(columns: Sequence[IntArray], most: int | None = None) -> Iterator[IntArray]:
    """Rows of plans that share a pipeline, no more than so many at once.

    `columns`: what tells pipelines apart (`plan.batch.PlanBatch.pipeline_columns`).
    """
    if not len(columns[0]):
        return
    first, pipeline = distinct_rows(columns)
    for index in range(len(first)):
        rows = np.flatnonzero(pipeline == index)
        yield from [rows] if most is None else np.array_split(rows, -(-len(rows) // most))


@lru_cache(maxsize=4096)
def uneven_chunks(architecture: Architecture, pp: int, virtual: int, stage: int) -> tuple[tuple[int, ...], ...] | None:
    """How many of each distinct layer each chunk of a stage holds, in order; None: all chunks hold the same."""
    kinds = distinct_layers(architecture)
    bounds = layer_bounds(architecture, pp * virtual)
    held = []
    for chunk in range(stage, pp * virtual, pp):
        found = Counter(kinds.index(layer) for layer in architecture.layers[bounds[chunk] : bounds[chunk + 1]])
        held.append(tuple(found[kind] for kind in range(len(kinds))))
    return None if len(set(held)) == 1 else tuple(held)


def _held(architecture: Architecture, pp: int, virtual: int, folds: bool) -> list[tuple[tuple[int, ...], bool, bool]]:
    """How many of each distinct layer each stage holds, and whether it holds the ends."""
    kinds = distinct_layers(architecture)
    index = [kinds.index(layer) for layer in architecture.layers]
    bounds = layer_bounds(architecture, pp * virtual)
    held: list[Counter[int]] = [Counter() for _ in range(pp)]
    for chunk in range(pp * virtual):
        stage = min(chunk, 2 * pp - 1 - chunk) if folds else chunk % pp
        held[stage].update(index[bounds[chunk] : bounds[chunk + 1]])
    last = 0 if folds else pp - 1
    return [(tuple(held[s][k] for k in range(len(kinds))), s == 0, s == last) for s in range(pp)]
