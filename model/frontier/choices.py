"""What can be chosen: a clock for each operation, or for several that share one.

Axes: M operations that share a clock, K clocks.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray
from moemodel.model.core.errors import InputError
from moemodel.model.frontier.pipeline import Pipeline
from moemodel.model.schedule.base import Work

Shared = Literal["operation", "stage-phase", "stage", "pipeline"]

_POINTS = 24  # clocks of an operation that the linear programme mixes, at most
_TOLERANCE = 1e-5  # of what an operation's energy spans, that leaving out clocks may raise it by


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Operations that share a clock, and the clocks that are worth choosing, the fastest first.

    Attributes:
        members: the operations, by place in `Pipeline.operations`.
        clock_Hz: [K].
        time_s: of each operation, [M, K].
        cost_J: energy of all of them, less that of waiting as long, [K].
        hull: clocks that a linear programme mixes: on the lower convex hull of cost over time.
        gains_W: what the next slower clock saves, over the time that all operations together take longer; one fewer
            than clocks.
    """

    members: list[int]
    clock_Hz: FloatArray
    time_s: FloatArray
    cost_J: FloatArray
    hull: IntArray
    gains_W: list[float]


def choices_of(pipeline: Pipeline, shared: Shared) -> list[Choice]:
    """What can be chosen in a pipeline.

    Args:
        pipeline: itself.
        shared: which operations share a clock: none ("operation"); those of a stage in one phase, all micro-batches
            alike ("stage-phase"); all of a stage; or all.

    Raises:
        InputError: no such way to share; or operations that share a clock don't have the same clocks in their tables.
    """
    if shared not in get_args(Shared):
        raise InputError(f"shared: found {shared!r}; allowed: {', '.join(get_args(Shared))}")
    groups: dict[Hashable, list[int]] = {}
    operations = pipeline.operations
    for i, work in enumerate(operations):
        groups.setdefault(_group(pipeline, work, shared), []).append(i)
    made: dict[Hashable, Choice] = {}  # operations of one table have the same choices
    return [_choice(pipeline, [operations[i] for i in members], members, made) for members in groups.values()]


def _group(pipeline: Pipeline, work: Work, shared: Shared) -> Hashable:
    stage = pipeline.stage(work)
    groups: dict[str, Hashable] = {"operation": work, "stage-phase": (stage, work.kind == "F"), "stage": stage}
    return groups.get(shared)


def _choice(pipeline: Pipeline, works: list[Work], members: list[int], made: dict[Hashable, Choice]) -> Choice:
    tables = [pipeline.table(work) for work in works]
    waiting_W = [pipeline.waiting_W[pipeline.stage(work)] for work in works]
    key = (*map(id, tables), *waiting_W)
    if key not in made:
        clock_Hz = tables[0].clock_Hz
        if not all(np.array_equal(table.clock_Hz, clock_Hz) for table in tables):
            raise InputError(f"tables: {works[0]} shares its clock with others, whose tables have other clocks")
        time_s = np.array([table.time_s for table in tables])
        cost_J = np.sum([t.energy_J - watts * t.time_s for t, watts in zip(tables, waiting_W, strict=True)], axis=0)
        made[key] = _worth_choosing(clock_Hz, time_s, cost_J)
    return replace(made[key], members=members)


def _worth_choosing(clock_Hz: FloatArray, time_s: FloatArray, cost_J: FloatArray) -> Choice:
    """Without clocks that take longer and cost more than another."""
    total_s = time_s.sum(axis=0)
    kept = np.flatnonzero(~_dominated(np.unique(time_s, axis=0), cost_J))
    kept = kept[np.argsort(total_s[kept], kind="stable")]
    clock_Hz, time_s, cost_J, total_s = clock_Hz[kept], time_s[:, kept], cost_J[kept], total_s[kept]
    hull = _thinned(total_s, cost_J, _hull(total_s, cost_J))
    gains_W = (-np.diff(cost_J) / np.maximum(np.diff(total_s), np.finfo(float).tiny)).tolist()
    return Choice(members=[], clock_Hz=clock_Hz, time_s=time_s, cost_J=cost_J, hull=hull, gains_W=gains_W)


def _dominated(time_s: FloatArray, cost_J: FloatArray) -> BoolArray:
    """By a clock at which nothing is worse, and something better, or that stands before one that is the same, [K]."""
    quantities = np.vstack([time_s, cost_J])
    no_worse = (quantities[:, :, None] <= quantities[:, None, :]).all(axis=0)  # [j, k]: j than k
    better = no_worse & (~no_worse.T | np.triu(np.ones_like(no_worse), 1))
    return np.asarray(better.any(axis=0))


def _hull(time_s: FloatArray, cost_J: FloatArray) -> list[int]:
    """Corners of the lower convex hull, the fastest first (Andrew 1979); times rise."""
    hull: list[int] = []
    for k in range(len(time_s)):
        while len(hull) > 1 and _above(time_s, cost_J, hull[-2], hull[-1], k):
            hull.pop()
        hull.append(k)
    return hull


def _above(time_s: FloatArray, cost_J: FloatArray, a: int, b: int, c: int) -> bool:
    """Whether b lies on or above the line from a to c."""
    return bool((cost_J[b] - cost_J[a]) * (time_s[c] - time_s[a]) >= (cost_J[c] - cost_J[a]) * (time_s[b] - time_s[a]))


def _thinned(time_s: FloatArray, cost_J: FloatArray, hull: list[int]) -> IntArray:
    """The corners that matter most: each next one where the line over those kept lies highest above the hull."""
    corners = np.array(hull)
    kept = {0, len(corners) - 1}
    allowed_J = _TOLERANCE * float(np.ptp(cost_J))
    while len(kept) < min(_POINTS, len(corners)):
        chosen = corners[sorted(kept)]
        above_J = np.interp(time_s[corners], time_s[chosen], cost_J[chosen]) - cost_J[corners]
        worst = int(np.argmax(above_J))
        if above_J[worst] <= allowed_J or worst in kept:
            break
        kept.add(worst)
    return corners[sorted(kept)]
