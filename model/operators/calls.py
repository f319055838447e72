"""Calls of operators: what a training step makes a GPU do, as a list."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from moemodel.model.core.arrays import FloatArray
from moemodel.model.operators.work import Kind, Pass, Shape


class Phase(StrEnum):
    """Part of a training step that a call's time and energy are booked under."""

    FORWARD = "forward"
    BACKWARD = "backward"  # recomputation included
    OPTIMIZER = "optimizer"


@dataclass(frozen=True, kw_only=True)
class Call:
    """An operator call: `count` times in one micro-batch (or one step, in the optimizer), in each plan."""

    kind: Kind
    direction: Pass
    shape: Shape
    phase: Phase
    count: FloatArray
    load_balance: FloatArray | float = 1.0  # work of the mean rank over that of the busiest, whose shape this is
    operand_energy: FloatArray | float = 1.0  # energy of what it multiplies over that of random numbers
    sm_cycles: FloatArray | float = 0.0  # of all SMs together, behind what it moves: what they do with it takes so many
    added_s: FloatArray | float = 0.0  # whatever the clock, behind the rest
    uncast: bool = False  # a product of 16-bit operands, where those of layers are cast
    recomputed: bool = False  # a forward operator that a backward pass runs again
    gating: bool = False  # of a Mixture-of-Experts block: router, dispatch or combination
