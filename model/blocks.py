"""From blocks to stages: price each distinct micro-batch shape once, then add up what a stage holds.

Axes: U distinct micro-batch shapes, P plans, K clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moemodel.model.architecture import Architecture
from moemodel.model.calibration import Calibration
from moemodel.model.communication import Communication, Exchange, StepExchange
from moemodel.model.compute import Chip
from moemodel.model.costs import Lane, Pricer
from moemodel.model.host import HostCost, HostModel
from moemodel.model.machine import Machine
from moemodel.model.memory import Memory, MemoryModel, Shard, fullest
from moemodel.model.parameters import parameters
from moemodel.model.plan import PlanBatch
from moemodel.model.power import PowerModel
from moemodel.model.stages import Stage, distinct_layers
from moemodel.model.workload import Phase, Workload

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_SHAPE_KEYS = ("tp", "cp", "ep", "micro_batch", "seq", "sequence_parallel", "recompute", "skew")


@dataclass(kw_only=True)
class StageCost:
    """One stage: the lanes of a micro-batch and of the optimizer step, and its communication. Arrays [P, K] or [P].

    Attributes:
        forward, backward: device lanes of one micro-batch.
        optimizer: device lane of one step.
        forward_exchange, backward_exchange: communication of one micro-batch.
        step_exchange: communication of one step (gradients, parameters).
        host: host time of one micro-batch, [P, 1]; `host_step_s` of the rest of a step.
    """

    forward: Lane
    backward: Lane
    optimizer: Lane
    forward_exchange: Exchange
    backward_exchange: Exchange
    step_exchange: StepExchange
    host: HostCost
    host_step_s: float


class BlockCosts:
    """Prices of all blocks of an architecture, for each distinct shape of a micro-batch in a batch of plans."""

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
        self.machine = machine
        self.kinds = distinct_layers(architecture)
        self.clocks = len(clock_Hz_K)
        self.pricer = Pricer(calibration, chip_of_calibration(calibration), power, clock_Hz_K)
        self.host = HostModel(calibration, machine.backend)
        first, self.shape = distinct_rows([getattr(plans, name) for name in _SHAPE_KEYS])
        workload = Workload(architecture, plans.take(first), backend=machine.backend, precision=machine.precision)
        count = len(first)
        self.layers = [self.pricer.lanes(workload.layer(layer), count) for layer in self.kinds]
        self.embedding = self.pricer.lanes(workload.embedding(), count)
        self.head = self.pricer.lanes(workload.head(), count)

    def at(self, rows: IntArray) -> StageCosts:
        """What stages cost under the plans at these rows."""
        return StageCosts(self, rows)


class StageCosts:
    """Blocks added up into stages, for some of the plans."""

    def __init__(self, blocks: BlockCosts, rows: IntArray) -> None:
        machine = blocks.machine
        self.plans = blocks.plans.take(rows)
        self._blocks = blocks
        self._shape = blocks.shape[rows]
        self._memory = MemoryModel(
            blocks.architecture,
            self.plans,
            backend=machine.backend,
            precision=machine.precision,
            calibration=machine.calibration,
        )
        self._talk = Communication(blocks.architecture, self.plans, machine.network, machine.gradient_B)

    def stage(self, stage: Stage) -> StageCost:
        """Cost of a class of stages."""
        blocks = self._blocks
        forward, backward = (self._device(stage, phase) for phase in (Phase.FORWARD, Phase.BACKWARD))
        shard = self._memory.shard(stage)
        accumulate, optimizer = self._updates(shard)
        _merge(backward, accumulate, 1.0)
        forward_exchange, backward_exchange = self._exchange(stage)
        return StageCost(
            forward=forward,
            backward=backward,
            optimizer=optimizer,
            forward_exchange=forward_exchange,
            backward_exchange=backward_exchange,
            step_exchange=self._talk.gradients(shard, sum(stage.layers)) + self._tied(stage),
            host=self._host_cost(
                stage, forward.calls_U + forward_exchange.calls, backward.calls_U + backward_exchange.calls
            ),
            host_step_s=blocks.host.fixed_step_s()
            + sum(n * blocks.host.layer_step_s(layer) for n, layer in zip(stage.layers, blocks.kinds, strict=True)),
        )

    def fullest(self, pipeline: tuple[Stage, ...]) -> Memory:
        """Memory of the fullest class of stages."""
        return fullest(self._memory, pipeline)

    def _device(self, stage: Stage, phase: Phase) -> Lane:
        blocks, total = self._blocks, Lane.empty(len(self.plans), self._blocks.clocks)
        parts = [(count, lanes) for count, lanes in zip(stage.layers, blocks.layers, strict=True) if count]
        parts += [(1, blocks.embedding)] if stage.embedding else []
        parts += [(1, blocks.head)] if stage.head else []
        for count, lanes in parts:
            if phase in lanes:
                _merge(total, lanes[phase].take(self._shape), float(count))
        return total

    def _updates(self, shard: Shard) -> tuple[Lane, Lane]:
        """Accumulation of a micro-batch's gradients and the optimizer step, priced once for each distinct size."""
        owned = self._memory.owned(shard)
        first, size = distinct_rows([shard.total, owned, self.plans.micro_batches, self.plans.zero_stage])
        machine = self._blocks.machine
        workload = Workload(
            self._blocks.architecture, self.plans.take(first), backend=machine.backend, precision=machine.precision
        )
        kept = np.where(self.plans.zero_stage >= 2, owned, shard.total)
        calls = workload.accumulate(kept[first]) + workload.optimizer(owned[first])
        lanes = self._blocks.pricer.lanes(calls, len(first))
        return lanes[Phase.BACKWARD].take(size), lanes[Phase.OPTIMIZER].take(size)

    def _exchange(self, stage: Stage) -> tuple[Exchange, Exchange]:
        talk = self._talk
        forward, backward = talk.none(), talk.none()
        for count, layer in zip(stage.layers, self._blocks.kinds, strict=True):
            if count:
                there, back = talk.layer(layer)
                forward, backward = forward + there.times(count), backward + back.times(count)
        if stage.embedding:
            forward = forward + talk.embedding()
        if stage.head:
            backward = backward + talk.embedding()
        boundary = talk.boundary()
        return forward + boundary, backward + boundary

    def _tied(self, stage: Stage) -> StepExchange:
        """Gradients of an embedding that the head on another stage shares."""
        architecture = self._blocks.architecture
        if not architecture.tied or stage.embedding == stage.head:
            tied_s = np.zeros(len(self.plans))
        else:
            tied_s = self._talk.tied(parameters(architecture).embedding)
        return StepExchange(hideable_s=np.zeros(len(self.plans)), exposed_s=tied_s)

    def _host_cost(self, stage: Stage, forward: FloatArray, backward: FloatArray) -> HostCost:
        """Blocks that were measured, and where none were, so many kernels and collectives in either pass."""
        host = self._blocks.host
        total = HostCost(forward_s=host.kernel_s * forward[:, None], backward_s=host.kernel_s * backward[:, None])
        for count, layer in zip(stage.layers, self._blocks.kinds, strict=True):
            total = total + host.layer(layer).times(count)
        ends = (stage.embedding + stage.head) / 2 * self._blocks.architecture.has_head
        return total + host.ends(ends)


def distinct_rows(columns: Sequence[NDArray[Any]]) -> tuple[IntArray, IntArray]:
    """Index of the first of each distinct row of a table, and which of them each row is.

    `numpy.unique(axis=0)` does the same by comparing rows as bytes, ten times slower.
    """
    code = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        values, place = np.unique(column, return_inverse=True)
        if len(values) > 1:  # renumbered at every column, so that the code never overflows
            code = np.unique(code * len(values) + place.ravel(), return_inverse=True)[1].ravel()
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    return first, inverse.ravel()


def _merge(total: Lane, part: Lane, count: float) -> None:
    """Add `count` times a lane to another, in place."""
    total.time_s_UK += count * part.time_s_UK
    total.energy_J_UK += count * part.energy_J_UK
    total.cycles_UK += count * part.cycles_UK
    total.outside_s_U += count * part.outside_s_U
    total.calls_U += count * part.calls_U
    for key, spread in part.spread_s.items():
        total.spread_s[key] = total.spread_s.get(key, 0.0) + count * spread


def chip_of_calibration(calibration: Calibration) -> Chip:
    """The chip that a calibration's operator fits refer to."""
    p = {name: parameter.value for name, parameter in calibration.chip.items()}
    return Chip(**p, clock_Hz=calibration.clock_reference_Hz)
