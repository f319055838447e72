"""Who talks to whom: the groups of ranks of a plan, and the time of a collective in each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.network.collectives import Collective, Network, Route
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.mesh import ParallelMesh, ProcessGroup

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
    """Groups of ranks of a batch of plans, and the links that each runs over.

    Attributes:
        tp, cp, ep: tensor, context and expert parallelism.
        data: ranks that hold the same parameters outside experts, and among which ZeRO shards them.
        expert_data: the same of experts.
        pp: stages of a pipeline; `embedding` the two of them that hold a tied embedding.
        world: all ranks.
    """

    def __init__(self, plans: PlanBatch, network: Network, *, shards_experts: bool) -> None:
        self.network = network
        mesh = ParallelMesh.of(plans, shards_experts=shards_experts)
        self.tp = self._group(mesh.tp_group)
        self.cp = self._group(mesh.cp_group)
        self.ep = self._group(mesh.ep_group)
        self.data = self._group(mesh.data_parallel_group)
        self.expert_data = self._group(mesh.expert_data_parallel_group)
        self.pp = self._group(mesh.pp_group)
        self.world = self._group(mesh.world_group)

    def _group(self, group: ProcessGroup[IntArray]) -> Group:
        return group.size, self.network.route(group.size, group.stride)

    def time_s(
        self,
        collective: Collective,
        size_B: FloatArray | float,
        group: Group,
        *,
        across_share: FloatArray | float = 1.0,
    ) -> FloatArray:
        """Time of a collective of so many bytes (of the full tensor) in each group; 0 in a group of one, [P].

        `across_share`: of an all-to-all, what goes between nodes over what would if every copy of a row did.
        """
        ranks, route = group
        if not (ranks > 1).any():
            return np.zeros(len(ranks))
        size_B = np.asarray(size_B, dtype=np.float64)
        return self.network.time_s(collective, size_B, ranks, route, across_share=across_share)

    def behind(self, collective: Collective, time_s: FloatArray) -> Behind:
        """A collective of that time, behind computation."""
        return Behind(time_s=time_s, free_s=self.network.overlap_of(collective) * time_s)
