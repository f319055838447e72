"""From blocks to stages: price each distinct micro-batch shape once, then add up what a stage holds.

Axes: U distinct micro-batch shapes, P plans, K clocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moemodel.model.architecture import Architecture
from moemodel.model.calibration import Calibration
from moemodel.model.communication import Communication, Exchange
from moemodel.model.compute import Chip
from moemodel.model.costs import Lane, Pricer
from moemodel.model.host import HostCost, HostModel
from moemodel.model.machine import Machine
from moemodel.model.memory import Memory, MemoryModel, Shard
from moemodel.model.parameters import parameters
from moemodel.model.plan import PlanBatch
from moemodel.model.power import PowerModel
from moemodel.model.stages import Stage, distinct_layers
from moemodel.model.workload import Phase, Workload

FloatArray = NDArray[np.float64]

_SHAPE_KEYS = ("tp", "cp", "ep", "micro_batch", "seq", "sequence_parallel", "recompute", "skew")


@dataclass(kw_only=True)
class StageCost:
    """One stage: the lanes of a micro-batch and of the optimizer step, and its communication. Arrays [P, K] or [P].

    Attributes:
        forward, backward: device lanes of one micro-batch.
        optimizer: device lane of one step.
        forward_exchange, backward_exchange: communication of one micro-batch.
        step_exchange_s: communication of one step (gradients), before any of it hides.
        host: host time of one micro-batch; `host_step_s` of the rest of a step.
    """

    forward: Lane
    backward: Lane
    optimizer: Lane
    forward_exchange: Exchange
    backward_exchange: Exchange
    step_exchange_s: FloatArray
    host: HostCost
    host_step_s: float
    shard: Shard


class BlockCosts:
    """Prices of all blocks of an architecture under a batch of plans."""

    def __init__(
        self,
        architecture: Architecture,
        plans: PlanBatch,
        *,
        machine: Machine,
        power: PowerModel,
        clock_Hz_K: FloatArray,
    ) -> None:
        calibration = machine.calibration
        self.architecture = architecture
        self.plans = plans
        self.kinds = distinct_layers(architecture)
        self._pricer = Pricer(calibration, chip_of_calibration(calibration), power, clock_Hz_K)
        self._clocks = len(clock_Hz_K)
        self._machine = machine
        self.memory = MemoryModel(
            architecture, plans, backend=machine.backend, precision=machine.precision, calibration=calibration
        )
        self._host = HostModel(calibration, machine.backend)
        self._inverse = self._price_shapes()

    def _price_shapes(self) -> NDArray[np.int64]:
        """Price layers and ends for each distinct shape; returns each plan's shape."""
        keys = np.stack([getattr(self.plans, name).astype(np.float64) for name in _SHAPE_KEYS], axis=1)
        _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        workload = Workload(
            self.architecture, self.plans.take(first), backend=self._machine.backend, precision=self._machine.precision
        )
        count = len(first)
        self._layers = [self._pricer.lanes(workload.layer(layer), count) for layer in self.kinds]
        self._embedding = self._pricer.lanes(workload.embedding(), count)
        self._head = self._pricer.lanes(workload.head(), count)
        return inverse.ravel()

    def stage(self, stage: Stage, rows: NDArray[np.int64]) -> StageCost:
        """Cost of a class of stages for the plans at `rows`."""
        plans = self.plans.take(rows)
        shapes = self._inverse[rows]
        forward, backward = (self._device(stage, shapes, phase) for phase in (Phase.FORWARD, Phase.BACKWARD))
        shard_all = self.memory.shard(stage)
        shard = Shard(dense=shard_all.dense[rows], expert=shard_all.expert[rows])
        workload = Workload(self.architecture, plans, backend=self._machine.backend, precision=self._machine.precision)
        accumulate = self._pricer.lanes(workload.accumulate(shard.total), len(rows))[Phase.BACKWARD]
        _merge(backward, accumulate, 1.0)
        owned = self.memory.owned(shard_all)[rows]
        optimizer = self._pricer.lanes(workload.optimizer(owned, owned), len(rows))[Phase.OPTIMIZER]
        talk = Communication(self.architecture, plans, self._machine.network, self._machine.gradient_B)
        forward_exchange, backward_exchange = self._exchange(stage, talk)
        return StageCost(
            forward=forward,
            backward=backward,
            optimizer=optimizer,
            forward_exchange=forward_exchange,
            backward_exchange=backward_exchange,
            step_exchange_s=talk.gradients(shard) + self._tied(stage, talk),
            host=self._host_cost(stage),
            host_step_s=self._host.step_s(sum(stage.layers), stage.embedding or stage.head),
            shard=shard,
        )

    def fullest(self, pipeline: tuple[Stage, ...], rows: NDArray[np.int64]) -> Memory:
        """Memory of the fullest class of stages, for the plans at `rows`."""
        peaks = [self.memory.stage(stage) for stage in pipeline]
        worst = np.stack([peak.peak_B[rows] for peak in peaks]).argmax(axis=0)

        def pick(values: list[FloatArray]) -> FloatArray:
            return np.asarray(np.choose(worst, [value[rows] for value in values]))

        return Memory(
            peak_B=pick([peak.peak_B for peak in peaks]),
            terms_B={name: pick([peak.terms_B[name] for peak in peaks]) for name in peaks[0].terms_B},
        )

    def _device(self, stage: Stage, shapes: NDArray[np.int64], phase: Phase) -> Lane:
        total = Lane.empty(len(shapes), self._clocks)
        parts = [(count, lanes) for count, lanes in zip(stage.layers, self._layers, strict=True) if count]
        parts += [(1, self._embedding)] if stage.embedding else []
        parts += [(1, self._head)] if stage.head else []
        for count, lanes in parts:
            if phase in lanes:
                _merge(total, lanes[phase].take(shapes), float(count))
        return total

    def _exchange(self, stage: Stage, talk: Communication) -> tuple[Exchange, Exchange]:
        forward, backward = talk.none(), talk.none()
        for count, layer in zip(stage.layers, self.kinds, strict=True):
            if count:
                there, back = talk.layer(layer)
                forward, backward = forward + there.times(count), backward + back.times(count)
        if stage.embedding:
            forward = forward + talk.embedding()
        if stage.head:
            backward = backward + talk.embedding()
        boundary = talk.boundary()
        return forward + boundary, backward + boundary

    def _tied(self, stage: Stage, talk: Communication) -> FloatArray:
        a = self.architecture
        if not a.tied or stage.embedding == stage.head:
            return np.zeros(len(talk.plans))
        return talk.tied(parameters(a).embedding)

    def _host_cost(self, stage: Stage) -> HostCost:
        total = HostCost(forward_s=0.0, backward_s=0.0)
        for count, layer in zip(stage.layers, self.kinds, strict=True):
            cost = self._host.layer(layer)
            total = total + HostCost(forward_s=count * cost.forward_s, backward_s=count * cost.backward_s)
        return total + self._host.ends() if stage.embedding or stage.head else total


def _merge(total: Lane, part: Lane, count: float) -> None:
    """Add `count` times a lane to another, in place."""
    total.time_s_UK += count * part.time_s_UK
    total.energy_J_UK += count * part.energy_J_UK
    total.cycles_UK += count * part.cycles_UK
    total.outside_s_U += count * part.outside_s_U
    for key, spread in part.spread_s.items():
        total.spread_s[key] = total.spread_s.get(key, 0.0) + count * spread


def chip_of_calibration(calibration: Calibration) -> Chip:
    """The chip that a calibration's operator fits refer to."""
    p = {name: parameter.value for name, parameter in calibration.chip.items()}
    return Chip(**p, clock_Hz=calibration.clock_reference_Hz)
