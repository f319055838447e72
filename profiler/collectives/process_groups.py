"""The groups of a job: one a size for collectives, and one over the host, by which ranks agree without their GPUs.

There is one group over the host for all, not one a size: where the job's own group was connected at once (NCCL with a
device), torch splits that connection for every new group, over GPUs or not, and ranks outside would wait for ranks
inside that never split.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from moemodel.profiler.jobs.ranks import Ranks


@dataclass(frozen=True, kw_only=True)
class RankGroup:
    """The first `ranks` ranks of a job, seen by one of them.

    Attributes:
        ranks: how many.
        rank: of this process.
        data: that collectives run over.
        host: of all ranks, over the host (gloo).
    """

    ranks: int
    rank: int
    data: Any
    host: Any

    def barrier(self) -> None:
        """Wait for all members, on the host."""
        self.most(0.0)

    def most(self, value: float) -> float:
        """The largest of what the members say, by messages to the first and back."""
        held = torch.tensor([value], dtype=torch.float64)
        if self.rank > 0:
            dist.send(held, 0, group=self.host)
            dist.recv(held, 0, group=self.host)
            return float(held.item())
        heard = torch.empty_like(held)
        for other in range(1, self.ranks):
            dist.recv(heard, other, group=self.host)
            held = torch.maximum(held, heard)
        for other in range(1, self.ranks):
            dist.send(held, other, group=self.host)
        return float(held.item())


class ProcessGroups:
    """All groups of a job; every rank makes all of them, in the same order."""

    def __init__(self, ranks: Ranks, sizes: Iterable[int], timeout_s: float) -> None:
        self._ranks = ranks
        timeout = timedelta(seconds=timeout_s)
        self._host = dist.new_group(backend="gloo", timeout=timeout)
        self._groups: dict[int, RankGroup] = {}
        for size in sorted(set(sizes)):
            data = dist.new_group(list(range(size)), timeout=timeout)
            if ranks.rank < size:
                self._groups[size] = RankGroup(ranks=size, rank=ranks.rank, data=data, host=self._host)

    def group(self, size: int) -> RankGroup | None:
        """The group of the first `size` ranks; None where this rank is not in it."""
        return self._groups.get(size)

    def gather(self, value: Any) -> list[Any]:
        """What every rank has to say, in order, on rank 0; nothing elsewhere. Waits for all."""
        heard: list[Any] | None = [None] * self._ranks.size if self._ranks.rank == 0 else None
        dist.gather_object(value, heard, dst=0, group=self._host)
        return heard or []

    def told(self, value: bool) -> bool:
        """What rank 0 decides."""
        decided = torch.tensor([int(value)])
        dist.broadcast(decided, 0, group=self._host)
        return bool(decided.item())
