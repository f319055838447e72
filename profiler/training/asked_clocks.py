"""Which clocks a plan asks of each rank, and whether they can be told apart while it runs. No torch here."""

from __future__ import annotations

import math

from moemodel.model.frameworks.registry import framework_of
from moemodel.model.plan.clock import PHASES, ByStage, one_clock_MHz
from moemodel.model.plan.mesh import ParallelMesh
from moemodel.model.plan.spec import Plan

PhaseClocks_MHz = dict[str, float | None]  # by phase; None: the governor's

_SILENT = ("megatron-deepspeed",)  # its steps run in processes of their own, which tell when a step ends, and no phases


def clocks_of_rank(plan: Plan, rank: int) -> PhaseClocks_MHz:
    """The clock of each phase on one rank of a plan.

    Args:
        plan: with at least one rank more than `rank`.
        rank: of its job.
    """
    clock = plan.clock
    if not isinstance(clock, ByStage):
        return dict.fromkeys(PHASES, one_clock_MHz(clock))
    shards = framework_of(plan.backend).shards_experts
    stage = ParallelMesh.of(plan.parallel, shards_experts=shards).coordinates(rank).pp
    limits = zip(PHASES, clock.limits_Hz[stage], strict=True)
    return {phase: None if math.isinf(hz) else round(hz / 1e6, 6) for phase, hz in limits}


def untold_phases(plan: Plan) -> str | None:
    """Why the clocks of a plan's phases can't be set one by one while it runs; None where they can, or needn't."""
    clock = plan.clock
    if not isinstance(clock, ByStage) or not clock.changes_within_a_step:
        return None
    if plan.backend in _SILENT:
        return f"clock_MHz by phase: {plan.backend} does not tell when a phase ends; allowed: clocks by stage"
    if plan.parallel.pp > 1 and any(forward != backward for forward, backward, _ in clock.limits_Hz):
        return (
            "clock_MHz by phase: forward and backward passes of a pipeline are not told apart while it runs; allowed: "
            "the same clock for both, and one for the optimizer"
        )
    return None
