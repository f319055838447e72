"""Who is who among the ranks of a plan: one of them on the plan's mesh; no torch here.

Experts are sharded by tensor parallelism as everything else is, so that they spread over data-parallel ranks alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from moemodel.model.plan.mesh import Coordinates, Degrees, ParallelMesh

# Of the mesh's groups, those that a run opens: it knows no context parallelism, and etp is tp.
GROUPS = ("world", "tp", "data_parallel", "pp", "ep", "expert_data_parallel", "embedding")


@dataclass(frozen=True, kw_only=True)
class RankMesh:
    """The mesh of a plan, and one of its ranks.

    Attributes:
        mesh: of the plan.
        rank: among those of the plan; one beyond them is in no group.
    """

    mesh: ParallelMesh[int]
    rank: int

    @classmethod
    def of(cls, degrees: Degrees[int], rank: int) -> RankMesh:
        """The place of a rank in a plan of these degrees."""
        return cls(mesh=ParallelMesh.of(degrees, shards_experts=True), rank=rank)

    @cached_property
    def at(self) -> Coordinates[int]:
        """Where this rank is on each axis."""
        return self.mesh.coordinates(self.rank)

    def groups(self) -> dict[str, list[tuple[int, ...]]]:
        """Ranks of every group of every kind; the same on all ranks."""
        return {kind: self.mesh.all_ranks(self.mesh.groups[kind]) for kind in GROUPS}

    def own(self, kind: str) -> tuple[int, ...]:
        """Ranks of the group of a kind that this rank is in; empty where it is alone, or in none."""
        ranks = self.mesh.ranks(self.mesh.groups[kind], self.rank)
        return ranks if len(ranks) > 1 else ()
