"""How much of a layer a backward pass runs again, under each plan's `recompute` (`plan.recompute`).

Axes: P plans.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray
from moemodel.model.frameworks.base import Framework
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.recompute import Recompute, is_part_recomputed, recomputed_layers


@dataclass(frozen=True, kw_only=True)
class Recomputation:
    """What each plan runs again.

    Attributes:
        numbers: of what plans say, [P].
        layers: share of the layers that run again from their input, [P].
        selective: what the framework takes `selective` for.
    """

    numbers: IntArray
    layers: FloatArray
    selective: str

    @classmethod
    def of(cls, plans: PlanBatch, architecture: Architecture, framework: Framework) -> Recomputation:
        """Of a batch of plans."""
        chunk = np.maximum(len(architecture.layers) / (plans.pp * plans.virtual_stages), 1.0)
        return cls(
            numbers=plans.recompute, layers=recomputed_layers(plans.recompute, chunk), selective=framework.selective
        )

    @property
    def by_operator(self) -> BoolArray:
        """Where layers run again but for some operators, [P]."""
        return np.asarray((self.numbers == Recompute.SELECTIVE) & (self.selective == "operators"))

    def part(self, part: str) -> BoolArray:
        """Where a part of every layer runs again, [P]."""
        named = is_part_recomputed(self.numbers, part)
        if part == "core_attn" and self.selective == "core":
            return np.asarray(named | (self.numbers == Recompute.SELECTIVE))
        return named

    def times(self, parts: tuple[str, ...], *, saved: bool) -> FloatArray:
        """How often an operator runs again in a backward pass, in the mean over layers. [P]

        Args:
            parts: of a layer that it belongs to.
            saved: its output is kept where layers run again but for some operators.
        """
        again = np.zeros(len(self.numbers), dtype=np.bool_) if saved else self.by_operator
        for part in parts:
            again = again | self.part(part)
        return np.where(again, 1.0, self.layers)

    @property
    def experts(self) -> FloatArray:
        """How often rows are sent to experts again, in the mean over layers. [P]"""
        return self.times(("moe",), saved=True)
