"""Which plans of a batch are laid out together: those of one pipeline, and of pipelines that differ in length alone.

Numpy's calls cost the same for few plans as for thousands, so that the fewer layouts a batch has, the faster it is. The
pipelines of one have as many classes of stages, which hold the same ends and layers of the same kinds; how many of them
there are, and how many layers each holds, is an array over plans. Virtual stages, schedules that have no formula for a
step, and clocks of a stage's own keep a pipeline apart.

Axes: P plans.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import BoolArray, IntArray, distinct_rows
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.schedule.pipeline_layout import Pipeline, Stage, each_as_one, kinship, members, stages


@dataclass(frozen=True, kw_only=True)
class PlanGroup:
    """Plans that are laid out together.

    Attributes:
        rows: which of the plans.
        pipeline: its classes of stages.
        classes: the stages of each, where they have clocks of their own; these are plans of one pipeline.
    """

    rows: IntArray
    pipeline: Pipeline
    classes: Sequence[Sequence[int]] | None

    def place(self, plans: int) -> IntArray:
        """Of each of so many plans, which of these it is; -1: none."""
        place = np.full(plans, -1)
        place[self.rows] = np.arange(len(self.rows))
        return place


def layouts_of(architecture: Architecture, plans: PlanBatch, rows: IntArray | None = None) -> list[PlanGroup]:
    """Of all plans, or of those at some rows."""
    rows = np.arange(len(plans)) if rows is None else rows
    some = plans.take(rows)
    alone = _stands_alone(some)
    first, number = distinct_rows([*some.pipeline_columns, alone, some.has_clocks_by_stage])
    kin: dict[Hashable, list[int]] = {}
    for index, row in enumerate(first.tolist()):
        kin.setdefault(index if alone[row] else kinship(_pipeline(architecture, some, row)), []).append(index)
    return [_layout(architecture, some, rows, first[numbers], _among(numbers, number)) for numbers in kin.values()]


def _stands_alone(plans: PlanBatch) -> BoolArray:
    """Which plans are laid out with those of their own pipeline alone, [P]."""
    return np.asarray(plans.has_clocks_by_stage | (plans.virtual_stages > 1) | ~plans.schedules.any_length)


def _among(numbers: Sequence[int], number_P: IntArray) -> IntArray:
    """Which of some numbers each is; -1: none. [P]"""
    place = np.full(number_P.max() + 1, -1)
    place[list(numbers)] = np.arange(len(numbers))
    return place[number_P]


def _layout(
    architecture: Architecture, some: PlanBatch, rows: IntArray, first: IntArray, place_P: IntArray
) -> PlanGroup:
    """Of plans with some pipelines, each of which a first plan has; `place_P` is which of them each has, -1: none."""
    here = place_P >= 0
    pipelines = [_pipeline(architecture, some, row) for row in first.tolist()]
    if len(pipelines) > 1:
        return PlanGroup(rows=rows[here], pipeline=each_as_one(pipelines, place_P[here]), classes=None)
    row = int(first[0])
    own = some.has_clocks_by_stage[row]
    classes = members(architecture, *some.pipeline(row)) if own else None
    return PlanGroup(rows=rows[here], pipeline=pipelines[0], classes=classes)


def _pipeline(architecture: Architecture, plans: PlanBatch, row: int) -> tuple[Stage, ...]:
    """Of one plan: its classes of stages."""
    return stages(architecture, *plans.pipeline(row))
