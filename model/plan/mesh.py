"""The parallel mesh: the degrees of a plan, and which of its ranks form each process group.

Ranks are numbered with tensor parallelism innermost, then context, data and pipeline parallelism (Megatron-LM's order,
`tp-cp-dp-pp`). Within a pipeline stage the layers that hold experts lie on a mesh of their own over the same ranks
("MoE parallel folding" of Megatron-Core, Liu et al. 2025):

    tp cp dp = etp ep edp        etp innermost, then ep, then the copies of the same experts (expert data parallelism)

so that with etp = tp experts are sharded as everything else is and spread over context and data ranks, and with etp = 1
each lies whole on one GPU and experts spread over tensor-parallel ranks too.

Every group is `size` ranks that lie `stride` apart; a rank's group, and its place in it, follow from the two.
Degrees are ints (one plan) or integer arrays of one shape (many): the algebra is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from moemodel.model.core.arrays import IntArray

N = TypeVar("N", int, IntArray)
N_co = TypeVar("N_co", int, IntArray, covariant=True)


class Degrees(Protocol[N_co]):
    """What has degrees of parallelism: the `parallel` of a plan, or a batch of plans."""

    @property
    def dp(self) -> N_co:
        """Data parallelism."""
        ...

    @property
    def tp(self) -> N_co:
        """Tensor parallelism."""
        ...

    @property
    def pp(self) -> N_co:
        """Pipeline parallelism."""
        ...

    @property
    def cp(self) -> N_co:
        """Context parallelism."""
        ...

    @property
    def ep(self) -> N_co:
        """Expert parallelism."""
        ...

    @property
    def asked_etp(self) -> N_co:
        """Expert tensor parallelism; 0: as the framework does it."""
        ...

    @property
    def replicas(self) -> N_co:
        """Groups of data-parallel ranks that hold all shards of ZeRO each."""
        ...


@dataclass(frozen=True, kw_only=True)
class ProcessGroup(Generic[N]):
    """Process groups of one kind: `size` ranks each, `stride` apart."""

    size: N
    stride: N

    def group_rank(self, rank: int) -> N:
        """Place of a rank in its group, from 0."""
        return rank // self.stride % self.size


@dataclass(frozen=True, kw_only=True)
class Coordinates(Generic[N]):
    """Where a rank is on each axis of the mesh, from 0; (`pp`, `dp`, `cp`, `tp`) tell a rank, and so do (`pp`, `edp`,
    `ep`, `etp`)."""

    dp: N
    tp: N
    pp: N
    cp: N
    ep: N
    etp: N
    edp: N


@dataclass(frozen=True, kw_only=True)
class ParallelMesh(Generic[N]):
    """Degrees of parallelism. What is read off them holds for legal ones (`etp ep` divides `tp cp dp`).

    Attributes:
        dp: data parallelism: replicas, which share the sequences of a batch out.
        tp: tensor parallelism: ranks that share the tensors of a layer out (Shoeybi et al. 2019).
        pp: pipeline parallelism: stages (Narayanan et al. 2021).
        cp: context parallelism: ranks that share a sequence out (Liu et al. 2023).
        ep: expert parallelism: ranks that share the experts of a layer out (Lepikhin et al. 2020).
        etp: expert tensor parallelism: ranks that share the tensors of an expert out.
        replicas: groups of data-parallel ranks over which ZeRO shards, each for itself (hybrid sharding, Zhao et al.
            2023, section 3.2.2).
    """

    dp: N
    tp: N
    pp: N
    cp: N
    ep: N
    etp: N
    replicas: N

    @classmethod
    def of(cls, degrees: Degrees[N], *, shards_experts: bool) -> ParallelMesh[N]:
        """The mesh of a plan's `parallel`, or of a batch of plans.

        Args:
            degrees: all of them; etp may be left to the framework.
            shards_experts: what it is then: tp; else 1 (`frameworks.base.Framework`).
        """
        asked = degrees.asked_etp
        etp = asked + (asked == 0) * (degrees.tp if shards_experts else degrees.tp // degrees.tp)
        return cls(
            dp=degrees.dp,
            tp=degrees.tp,
            pp=degrees.pp,
            cp=degrees.cp,
            ep=degrees.ep,
            etp=etp,
            replicas=degrees.replicas,
        )

    # ---- sizes ------------------------------------------------------------------------------------------------------

    @property
    def stage_size(self) -> N:
        """Ranks of one pipeline stage."""
        return self.dp * self.cp * self.tp

    @property
    def world_size(self) -> N:
        """Ranks of a plan."""
        return self.stage_size * self.pp

    @property
    def max_ep(self) -> N:
        """Sets of `etp` ranks in a stage, over which experts can spread; `ep` divides it."""
        return self.stage_size // self.etp

    @property
    def _one(self) -> N:
        """1, in the shape of the degrees."""
        return self.tp // self.tp

    # ---- groups -----------------------------------------------------------------------------------------------------

    @property
    def world_group(self) -> ProcessGroup[N]:
        """All ranks."""
        return ProcessGroup(size=self.world_size, stride=self._one)

    @property
    def tp_group(self) -> ProcessGroup[N]:
        """Ranks that share the tensors of a layer out."""
        return ProcessGroup(size=self.tp, stride=self._one)

    @property
    def cp_group(self) -> ProcessGroup[N]:
        """Ranks that share a sequence out."""
        return ProcessGroup(size=self.cp, stride=self.tp)

    @property
    def data_parallel_group(self) -> ProcessGroup[N]:
        """Ranks that hold the same parameters outside experts, over which ZeRO shards those: data and context ranks."""
        return ProcessGroup(size=self.dp * self.cp, stride=self.tp)

    @property
    def shard_group(self) -> ProcessGroup[N]:
        """Of these, those over which ZeRO shards."""
        return ProcessGroup(size=self.dp * self.cp // self.replicas, stride=self.tp)

    @property
    def replica_group(self) -> ProcessGroup[N]:
        """Ranks that hold the same shard."""
        return ProcessGroup(size=self.replicas, stride=self.tp * (self.dp * self.cp // self.replicas))

    @property
    def pp_group(self) -> ProcessGroup[N]:
        """Stages of a pipeline."""
        return ProcessGroup(size=self.pp, stride=self.stage_size)

    @property
    def etp_group(self) -> ProcessGroup[N]:
        """Ranks that share the tensors of an expert out."""
        return ProcessGroup(size=self.etp, stride=self._one)

    @property
    def ep_group(self) -> ProcessGroup[N]:
        """Ranks that share the experts of a layer out."""
        return ProcessGroup(size=self.ep, stride=self.etp)

    @property
    def expert_group(self) -> ProcessGroup[N]:
        """Ranks that hold all experts of a layer once: those of ep and of etp."""
        return ProcessGroup(size=self.ep * self.etp, stride=self._one)

    @property
    def expert_data_parallel_group(self) -> ProcessGroup[N]:
        """Ranks that hold the same experts, over which ZeRO shards those."""
        return ProcessGroup(size=self.max_ep // self.ep, stride=self.etp * self.ep)

    @property
    def expert_shard_group(self) -> ProcessGroup[N]:
        """Of these, those over which ZeRO shards."""
        return ProcessGroup(size=self.max_ep // self.ep // self.replicas, stride=self.etp * self.ep)

    @property
    def expert_replica_group(self) -> ProcessGroup[N]:
        """Ranks that hold the same shard of the same experts."""
        return ProcessGroup(size=self.replicas, stride=self.etp * self.ep * (self.max_ep // self.ep // self.replicas))

    @property
    def embedding_group(self) -> ProcessGroup[N]:
        """First and last stage, which both hold a tied embedding; ranks of stages between them are in no such group."""
        several = self.pp > 1
        return ProcessGroup(size=1 + several, stride=(self.pp - several) * self.stage_size)

    @property
    def groups(self) -> dict[str, ProcessGroup[N]]:
        """Every kind of group, by its name."""
        return {
            "world": self.world_group,
            "tp": self.tp_group,
            "cp": self.cp_group,
            "data_parallel": self.data_parallel_group,
            "pp": self.pp_group,
            "etp": self.etp_group,
            "ep": self.ep_group,
            "experts": self.expert_group,
            "expert_data_parallel": self.expert_data_parallel_group,
            "shards": self.shard_group,
            "replicas": self.replica_group,
            "expert_shards": self.expert_shard_group,
            "expert_replicas": self.expert_replica_group,
            "embedding": self.embedding_group,
        }

    # ---- ranks ------------------------------------------------------------------------------------------------------

    def coordinates(self, rank: int) -> Coordinates[N]:
        """Where a rank, `0 <= rank < world_size`, is on each axis."""
        return Coordinates(
            dp=self.data_parallel_group.group_rank(rank) // self.cp,
            tp=self.tp_group.group_rank(rank),
            pp=self.pp_group.group_rank(rank),
            cp=self.cp_group.group_rank(rank),
            ep=self.ep_group.group_rank(rank),
            etp=self.etp_group.group_rank(rank),
            edp=self.expert_data_parallel_group.group_rank(rank),
        )

    def ranks(self: ParallelMesh[int], group: ProcessGroup[int], rank: int) -> tuple[int, ...]:
        """Ranks of one group of this mesh that `rank` is in, ascending; empty if it is in none of that kind."""
        first = rank - group.group_rank(rank) * group.stride
        ranks = tuple(first + place * group.stride for place in range(group.size))
        return ranks if ranks[-1] < self.world_size else ()

    def all_ranks(self: ParallelMesh[int], group: ProcessGroup[int]) -> list[tuple[int, ...]]:
        """Ranks of every group of one kind, by their first rank: what all ranks of a job build alike."""
        found = (self.ranks(group, rank) for rank in range(self.world_size))
        return list(dict.fromkeys(ranks for ranks in found if ranks))
