"""How often a stage goes from one phase of a step to another: what it costs to give phases clocks of their own.

Counted in the order of work of a schedule (`Schedule.order`), gradients of weights as backward passes; then the
optimizer, and the next step.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from moemodel.model.schedule.base import Schedule, Sizes

PHASES = ("forward", "backward", "optimizer")
_PHASE_OF = {"F": "forward", "B": "backward", "W": "backward"}


@dataclass(frozen=True, kw_only=True)
class PhaseChanges:
    """Of one stage in a step.

    Attributes:
        counts: how often one phase follows another, by both names, the earlier first.
        passes: of each phase; of the optimizer one.
    """

    counts: dict[tuple[str, str], int]
    passes: dict[str, int]

    @property
    def shares(self) -> list[list[float]]:
        """Of the passes of each phase, the share that follows a pass of each other one, in the order of `PHASES`."""
        return [[self.counts.get((a, b), 0) / self.passes.get(b, 1) for a in PHASES] for b in PHASES]

    @property
    def total(self) -> int:
        """In a step."""
        return sum(self.counts.values())


@lru_cache(maxsize=4096)
def phase_changes(schedule: Schedule, stage: int, sizes: Sizes[int], rounds: int = 1) -> PhaseChanges:
    """Of one stage.

    Args:
        schedule: of the pipeline; without one, micro-batches pass forward and backward in turn, as under 1F1B.
        stage: counted from 0.
        sizes: of the pipeline, for one run of the schedule.
        rounds: runs of it, one after another, that make a step.
    """
    once = [_PHASE_OF[work.kind] for work in schedule.order(stage, sizes)]
    order = [*once * rounds, "optimizer"]
    follow = pairwise([*order, order[0]])
    return PhaseChanges(
        counts=dict(Counter((a, b) for a, b in follow if a != b)),
        passes=dict(Counter(order)),
    )
