"""The groups of a job: one a size for collectives, and one over the host, by which ranks agree without their GPUs.

There is one group over the host for all, not one a size: where the job's own group was connected at once (NCCL with a
device), torch splits that connection for every new group, over GPUs or not, and ranks outside would wait for ranks
inside that never split.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from moemodel.profiler.jobs.ranks import Ranks

_LONGEST_B = 1 << 20  # of what a rank says: the readings of one point take some hundred


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
        """What every rank has to say, as JSON has it, in order, on rank 0; nothing elsewhere. Waits for all.

        Torch's own `gather_object` unpickles what it is sent, and so would run what whoever connects sends.
        """
        if self._ranks.rank > 0:
            said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
            dist.send(torch.tensor([said.numel()]), 0, group=self._host)
            dist.send(said, 0, group=self._host)
            return []
        return [json.loads(json.dumps(value)), *(self._hear(other) for other in range(1, self._ranks.size))]

    def _hear(self, other: int) -> Any:
        length = torch.zeros(1, dtype=torch.int64)
        dist.recv(length, other, group=self._host)
        if not 0 < int(length) <= _LONGEST_B:
            raise ValueError(f"rank {other} says {int(length)} B at once; at most {_LONGEST_B} B are expected")
        said = torch.empty(int(length), dtype=torch.uint8)
        dist.recv(said, other, group=self._host)
        return json.loads(bytes(said.numpy()))

    def told(self, value: bool) -> bool:
        """What rank 0 decides."""
        decided = torch.tensor([int(value)])
        dist.broadcast(decided, 0, group=self._host)
        return bool(decided.item())
