"""How a run's routers spread tokens over experts, step by step, over all ranks together.

Axes: S steps, E experts.

    skew      max over experts of rows / mean over experts of rows    of one layer and step; 1 is balanced
    dropped   pairs that found no room / all pairs                    of all layers of one step
    entropy   -sum p log p of the router's probabilities, nats        mean over layers of a step; log E is uniform
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.errors import InputError
from moemodel.model.core.files import is_there
from moemodel.model.records.run import RoutingRecord
from moemodel.validation.compare.lines import read_lines

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class LayerRouting:
    """One layer over the steps of a run.

    Attributes:
        rows_SE: (token, expert) pairs, before any were dropped, of all ranks.
        dropped_S: pairs that found no room.
        entropy_S: mean over ranks, nats; NaN in steps that did not record it.
    """

    rows_SE: Array
    dropped_S: Array
    entropy_S: Array


@dataclass(frozen=True, kw_only=True)
class Routing:
    """All layers of a run that have a router, by their number in the model."""

    layers: Mapping[int, LayerRouting]

    @property
    def skew_S(self) -> Array:
        """Rows of the busiest expert over the mean; mean over layers. NaN where no row was routed."""
        return np.asarray(np.mean([_skew(layer.rows_SE) for layer in self.layers.values()], axis=0))

    @property
    def dropped_S(self) -> Array:
        """Share of all pairs that found no room. NaN where no row was routed."""
        rows_S = np.sum([layer.rows_SE.sum(axis=1) for layer in self.layers.values()], axis=0)
        dropped_S = np.sum([layer.dropped_S for layer in self.layers.values()], axis=0)
        return _over(dropped_S, rows_S)

    @property
    def entropy_S(self) -> Array:
        """Mean over layers, nats; NaN in steps that did not record it."""
        return np.asarray(np.mean([layer.entropy_S for layer in self.layers.values()], axis=0))

    @property
    def most_entropy(self) -> float:
        """log E, which a uniform router has; mean over layers."""
        return float(np.mean([np.log(layer.rows_SE.shape[1]) for layer in self.layers.values()]))

    def rows_E(self, layer: int, steps: int) -> Array:
        """Rows of a layer's experts in the first steps together."""
        return np.asarray(self.layers[layer].rows_SE[:steps].sum(axis=0))


def _skew(rows_SE: Array) -> Array:
    return _over(rows_SE.max(axis=1), rows_SE.mean(axis=1))


def _over(a_S: Array, b_S: Array) -> Array:
    """NaN where b is nothing."""
    return np.asarray(np.divide(a_S, b_S, out=np.full_like(b_S, np.nan), where=b_S > 0))


# ---- from files -----------------------------------------------------------------------------------------------------


def read_routing(files: Sequence[Path], steps: int) -> Routing | None:
    """The routing of all ranks of a run; None where no router was recorded.

    Args:
        files: of each rank; one that is missing recorded none.
        steps: of the run.

    Raises:
        InputError: a line that is cut off, or that contradicts others: file and line.
    """
    sums: dict[int, _Sums] = {}
    for file in files:
        for number, record in _records(file):
            source = f"{file}:{number}"
            if not 0 <= record.step < steps:
                raise InputError(f"{source}: step: found {record.step}; allowed: 0 to {steps - 1}, as result.json says")
            sums.setdefault(record.layer, _Sums(steps, len(record.rows_E))).add(record, source)
    for layer, one in sums.items():
        if not one.complete:
            raise InputError(
                f"{files[0].parent}: layer {layer}: found routing of {one.steps_seen} steps; allowed: all {steps}, as "
                "result.json says"
            )
    return Routing(layers={layer: sums[layer].layer() for layer in sorted(sums)}) if sums else None


def _records(file: Path) -> Iterator[tuple[int, RoutingRecord]]:
    if is_there(file):
        yield from enumerate(read_lines(file, RoutingRecord), 1)


class _Sums:
    """Of one layer, over ranks."""

    def __init__(self, steps: int, experts: int) -> None:
        self._rows_SE = np.zeros((steps, experts))
        self._dropped_S, self._entropy_S = np.zeros(steps), np.zeros(steps)
        self._entropies_S, self._seen_S = np.zeros(steps), np.zeros(steps)

    def add(self, record: RoutingRecord, source: str) -> None:
        """One rank's record of one step."""
        experts = self._rows_SE.shape[1]
        if len(record.rows_E) != experts or not experts:
            raise InputError(
                f"{source}: rows_E: found {len(record.rows_E)} experts; allowed: {experts or 'one or more'}, as in the "
                "layer's first line"
            )
        self._rows_SE[record.step] += record.rows_E
        self._dropped_S[record.step] += record.dropped
        self._seen_S[record.step] += 1
        if record.entropy is not None:
            self._entropy_S[record.step] += record.entropy
            self._entropies_S[record.step] += 1

    @property
    def complete(self) -> bool:
        """Whether every step was seen, and by as many ranks."""
        return bool(np.all(self._seen_S == self._seen_S.max()))

    @property
    def steps_seen(self) -> int:
        """Steps that all ranks recorded which recorded the layer."""
        return int(np.sum(self._seen_S == self._seen_S.max()))

    def layer(self) -> LayerRouting:
        """What was summed."""
        entropy_S = _over(self._entropy_S, self._entropies_S)
        return LayerRouting(rows_SE=self._rows_SE, dropped_S=self._dropped_S, entropy_S=entropy_S)
