"""What a stage does in each phase of a step, and how it moves with the clock.

Axes: P plans, K clocks that blocks are priced at, X either these or the one that each plan keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.device.dvfs import ClockPlaces
from moemodel.model.device.power import PowerModel
from moemodel.model.step.stage_cost import StageCost

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class ByPhase(Generic[T]):
    """One of something for each phase: passes of one micro-batch, and the optimizer, once a step."""

    forward: T
    backward: T
    optimizer: T

    def map(self, function: Callable[[T], U]) -> ByPhase[U]:
        """A function of each."""
        return ByPhase(
            forward=function(self.forward), backward=function(self.backward), optimizer=function(self.optimizer)
        )

    def join(self, other: ByPhase[V], function: Callable[[T, V], U]) -> ByPhase[U]:
        """A function of each and of another's same phase."""
        return ByPhase(
            forward=function(self.forward, other.forward),
            backward=function(self.backward, other.backward),
            optimizer=function(self.optimizer, other.optimizer),
        )


@dataclass(frozen=True, kw_only=True)
class ClockedCost:
    """Device time, dynamic energy and clock cycles of a phase at X clocks, [P, X]; skipped cycles are left out."""

    time_s: FloatArray
    energy_J: FloatArray
    cycles: FloatArray

    def at(self, clock_Hz_K: FloatArray, clock_Hz_P: FloatArray, row_P: IntArray | None = None) -> ClockedCost:
        """At one clock for each plan, [P, 1]: time and cycles over the clock are linear in its period.

        `row_P`: which row each plan is; None: they are one for one.
        """
        places = ClockPlaces.of(clock_Hz_K, clock_Hz_P, len(self.time_s), row_P)
        return ClockedCost(
            time_s=places.times(self.time_s)[:, None],
            energy_J=places.linear(self.energy_J)[:, None],
            cycles=places.cycles(self.cycles)[:, None],
        )

    def times(self, factor: FloatArray) -> ClockedCost:
        """That many of it."""
        return ClockedCost(time_s=factor * self.time_s, energy_J=factor * self.energy_J, cycles=factor * self.cycles)


DeviceCosts = ByPhase[ClockedCost]  # of one class of stages


def device_costs(cost: StageCost) -> DeviceCosts:
    """At the clocks that blocks were priced at."""
    return ByPhase(forward=cost.forward, backward=cost.backward, optimizer=cost.optimizer).map(
        lambda lane: ClockedCost(time_s=lane.time_s_UK, energy_J=lane.energy_J_UK, cycles=lane.cycles_UK)
    )


def mean_clock_Hz(device: DeviceCosts, micro_batches: FloatArray) -> FloatArray:
    """Over the passes of a step's micro-batches and the optimizer, cycles that are skipped left out.

    Args:
        device: of a class of stages.
        micro_batches: of a step, [P, 1].
    """
    cycles = micro_batches * (device.forward.cycles + device.backward.cycles) + device.optimizer.cycles
    computed_s = micro_batches * (device.forward.time_s + device.backward.time_s) + device.optimizer.time_s
    return np.asarray(cycles / computed_s)


def mean_switching(device: DeviceCosts, micro_batches: FloatArray, power: PowerModel) -> FloatArray:
    """Power of what switches at every cycle, over that at the reference clock, where phases have clocks of their own:
    the mean over the phases by their time, [P, X]. Passes alternate, so that waits between them stand at either clock.

    Args:
        device: of a class of stages.
        micro_batches: of a step, [P, 1].
        power: of the GPU.
    """
    phases = ((device.forward, micro_batches), (device.backward, micro_batches), (device.optimizer, 1.0))
    lasting = [(phase, factor * phase.time_s) for phase, factor in phases]
    rates = [(np.divide(p.cycles, p.time_s, out=np.zeros_like(p.cycles), where=p.time_s > 0), s) for p, s in lasting]
    return np.asarray(sum(power.switching(clock_Hz) * s for clock_Hz, s in rates) / sum(s for _, s in rates))
