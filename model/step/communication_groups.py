"""Who talks to whom: the groups of ranks of a plan, and the time of a collective in each.

Ranks are numbered with tensor parallelism innermost, then context, data and pipeline parallelism (Megatron's order);
experts spread over the data and context ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.network.collectives import Collective, Network, Route
from moemodel.model.plan.batch import PlanBatch

Group = tuple[IntArray, Route]


@dataclass(frozen=True, kw_only=True)
class Behind:
    """Communication that may run behind computation, s. [P].

    Attributes:
        time_s: alone.
        free_s: of it, what costs no time where there is computation enough; the rest is what it slows that down by.
    """

    time_s: FloatArray
    free_s: FloatArray

    @classmethod
    def none(cls, plans: int) -> Behind:
        """Nothing."""
        return cls(time_s=np.zeros(plans), free_s=np.zeros(plans))

    def __add__(self, other: Behind) -> Behind:
        return Behind(time_s=self.time_s + other.time_s, free_s=self.free_s + other.free_s)

    def times(self, factor: FloatArray | float) -> Behind:
        """That many of it."""
        return Behind(time_s=np.asarray(self.time_s * factor), free_s=np.asarray(self.free_s * factor))


class Groups:
    """Groups of ranks of a batch of plans.

    Attributes:
        tp, cp, ep: tensor, context and expert parallelism.
        data: ranks that hold the same parameters outside experts, and among which ZeRO shards them.
        expert_data: the same of experts.
        pp: stages of a pipeline.
        everybody: all ranks.
    """

    def __init__(self, plans: PlanBatch, network: Network, *, shards_experts: bool) -> None:
        self.network = network
        p, one = plans, np.ones_like(plans.tp)
        self.tp = self._group(p.tp, one)
        self.cp = self._group(p.cp, p.tp)
        self.ep = self._group(p.ep, p.tp if shards_experts else one)
        self.data = self._group(p.dp * p.cp, p.tp)
        if shards_experts:
            self.expert_data = self._group(np.maximum(p.dp * p.cp // p.ep, 1), p.tp * p.ep)
        else:
            self.expert_data = self._group(np.maximum(p.dp * p.cp * p.tp // p.ep, 1), p.ep)
        self.pp = self._group(p.pp, p.tp * p.cp * p.dp)
        self.everybody = self._group(p.gpus, one)

    def _group(self, ranks: IntArray, stride: IntArray) -> Group:
        return ranks, self.network.route(ranks, stride)

    def time_s(self, collective: Collective, size_B: FloatArray | float, group: Group) -> FloatArray:
        """Time of a collective of so many bytes (of the full tensor) in each group; 0 in a group of one, [P]."""
        return self.network.time_s(collective, np.asarray(size_B, dtype=np.float64), *group)

    def behind(self, collective: Collective, time_s: FloatArray) -> Behind:
        """A collective of that time, behind computation."""
        return Behind(time_s=time_s, free_s=self.network.overlap_of(collective) * time_s)
