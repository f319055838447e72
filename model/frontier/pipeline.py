"""A pipeline as operations that wait for each other, and what each takes at every clock.

An operation is one pass of one micro-batch through one chunk of the model (`schedule.base.Work`). It begins when the
one before it on its stage is done, and when what it works on has come: activations from the chunk before, gradients
from the one behind, each so long on its way (`message_s`).

    energy = sum over operations of their energy + sum over stages of waiting_W (T - time in operations) + idle_W T

T is from the first operation to the end of the last. Energy of messages does not follow the SM clock and is left out,
as is what changing a clock costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.errors import InputError
from moemodel.model.schedule.base import Schedule, Sizes, Work

if TYPE_CHECKING:
    import networkx as nx

Kind = Literal["F", "B", "W"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """What an operation takes at each of K clocks, [K].

    Attributes:
        clock_Hz: that the GPU has.
        time_s: of the operation.
        energy_J: of it, above that of the idle GPU.

    Raises:
        InputError: arrays of different lengths, or none; a time that is not positive, or a figure that is not finite.
    """

    clock_Hz: FloatArray
    time_s: FloatArray
    energy_J: FloatArray

    def __post_init__(self) -> None:
        lengths = [len(column) for column in (self.clock_Hz, self.time_s, self.energy_J)]
        if len(set(lengths)) != 1 or not lengths[0]:
            raise InputError(
                f"table of an operation: found {lengths} clocks, times and energies; one of each is needed"
            )
        if not (np.isfinite(self.energy_J).all() and np.isfinite(self.time_s).all() and (self.time_s > 0).all()):
            raise InputError("table of an operation: found a time or an energy that is not finite, or a time <= 0")


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A step of a pipeline.

    Attributes:
        schedule: the order of work.
        sizes: of the pipeline.
        tables: of operations: by stage and kind of pass, or of one operation, which goes before.
        waiting_W: of a GPU of each stage above idle, while it waits for others or for a message.
        idle_W: of a GPU of each stage that does nothing, drawn all the time.
        message_s: on its way from each stage to the next, and back as long; that of the last goes to the first, where
            stages hold several chunks.

    Raises:
        InputError: powers and messages that are not one for each stage, or negative; an operation without a table.
    """

    schedule: Schedule
    sizes: Sizes[int]
    tables: Mapping[tuple[int, Kind] | Work, Table]
    waiting_W: tuple[float, ...]
    idle_W: tuple[float, ...]
    message_s: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("waiting_W", "idle_W", "message_s"):
            values = getattr(self, name)
            if len(values) != self.sizes.stages or not all(0 <= value < float("inf") for value in values):
                raise InputError(
                    f"{name}: found {values}; one for each of {self.sizes.stages} stages, 0 or more, is needed"
                )
        missing = [work for work in self.operations if self._table(work) is None]
        if missing:
            raise InputError(
                f"tables: there is none of {missing[0]}, nor of stage {self.stage(missing[0])}'s passes of its kind"
            )

    @property
    def orders(self) -> list[list[Work]]:
        """What each stage does, in order."""
        return [self.schedule.order(stage, self.sizes) for stage in range(self.sizes.stages)]

    @property
    def operations(self) -> list[Work]:
        """Of all stages, one stage behind another."""
        return [work for order in self.orders for work in order]

    def stage(self, work: Work) -> int:
        """That does it."""
        return work.chunk % self.sizes.stages

    def table(self, work: Work) -> Table:
        """What an operation takes."""
        table = self._table(work)
        assert table is not None  # checked when this was made
        return table

    def _table(self, work: Work) -> Table | None:
        return self.tables.get(work, self.tables.get((self.stage(work), work.kind)))


def graph_of(pipeline: Pipeline) -> nx.DiGraph[Work]:
    """Operations, and an edge from each to those that wait for it, with `lag_s` of a message on its way.

    Raises:
        MissingExtraError: networkx is not installed.
    """
    import networkx as nx

    graph: nx.DiGraph[Work] = nx.DiGraph()
    for order in pipeline.orders:
        graph.add_nodes_from(order)
        graph.add_edges_from(pairwise(order), lag_s=0.0)
    for work in pipeline.operations:
        source = _needs(work, last=pipeline.sizes.stages * pipeline.sizes.virtual - 1)
        if source is not None:
            graph.add_edge(source, work, lag_s=_message_s(pipeline, source, work))
    return graph


def _needs(work: Work, *, last: int) -> Work | None:
    """Whose result an operation works on; None where that comes from outside, or from the operation before."""
    kind, chunk, micro_batch = work
    if kind == "F":
        return Work("F", chunk - 1, micro_batch) if chunk else None
    if kind == "B":
        return Work("B", chunk + 1, micro_batch) if chunk < last else Work("F", chunk, micro_batch)
    return Work("B", chunk, micro_batch)


def _message_s(pipeline: Pipeline, source: Work, target: Work) -> float:
    stages = pipeline.stage(source), pipeline.stage(target)
    if source.chunk == target.chunk or stages[0] == stages[1]:
        return 0.0
    return pipeline.message_s[stages[0] if source.kind == "F" else stages[1]]
