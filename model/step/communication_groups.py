"""Who talks to whom: the groups of ranks of a plan, and the time of a collective in each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.network.collectives import Collective, Network, Route
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.mesh import ParallelMesh

Group = tuple[IntArray, Route]


@dataclass(frozen=True, kw_only=True)
class OverlappableComm:
    """Communication that may run behind computation, s. [P].

    Attributes:
        time_s: alone.
        hideable_s: of it, what costs no time where there is computation enough; the rest is what it slows that down by.
    """

    time_s: FloatArray
    hideable_s: FloatArray

    @classmethod
    def none(cls, plans: int) -> OverlappableComm:
        """Nothing."""
        return cls(time_s=np.zeros(plans), hideable_s=np.zeros(plans))

    def __add__(self, other: OverlappableComm) -> OverlappableComm:
        return OverlappableComm(time_s=self.time_s + other.time_s, hideable_s=self.hideable_s + other.hideable_s)

    def times(self, factor: FloatArray | float) -> OverlappableComm:
        """That many of it."""
        return OverlappableComm(
            time_s=np.asarray(self.time_s * factor), hideable_s=np.asarray(self.hideable_s * factor)
        )


class Groups:
    """Groups of ranks of a batch of plans, by the names that the mesh gives them, and the links that each runs over."""

    def __init__(self, plans: PlanBatch, network: Network, *, shards_experts: bool) -> None:
        self.network = network
        self._groups = ParallelMesh.of(plans, shards_experts=shards_experts).groups
        self._routes: dict[str, Group] = {}

    def __getitem__(self, name: str) -> Group:
        """Ranks of a kind of group, and its route."""
        if name not in self._routes:
            group = self._groups[name]
            self._routes[name] = group.size, self.network.route(group.size, group.stride)
        return self._routes[name]

    def parts(self, name: str, inner: IntArray) -> tuple[Group, Group]:
        """Groups that those of a kind fall into: of so many ranks next to each other, and of one of each of these."""
        group = self._groups[name]
        among = inner, self.network.route(inner, group.stride)
        outer, stride = group.size // inner, group.stride * inner
        return among, (outer, self.network.route(outer, stride))

    def time_s(
        self,
        collective: Collective,
        size_B: FloatArray | float,
        group: Group,
    ) -> FloatArray:
        """Time of a collective of so many bytes (of the full tensor) in each group; 0 in a group of one, [P]."""
        ranks, route = group
        if not (ranks > 1).any():
            return np.zeros(len(ranks))
        size_B = np.asarray(size_B, dtype=np.float64)
        return self.network.time_s(collective, size_B, ranks, route)

    def overlappable(self, collective: Collective, time_s: FloatArray) -> OverlappableComm:
        """A collective of that time, behind computation."""
        return OverlappableComm(time_s=time_s, hideable_s=self.network.overlap_of(collective) * time_s)
