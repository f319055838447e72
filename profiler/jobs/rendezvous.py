"""The processes of a job talk about what they do next, through the store by which they met: no device is involved.

A collective for this would need a communicator, and would keep a GPU busy that is to be measured at rest.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any, Protocol

from torch.distributed import Store  # type: ignore[attr-defined]


class RankBarrier(Protocol):
    """The ranks that measure together, as far as a measurement needs them."""

    @property
    def rank(self) -> int:
        """Of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def agree(self, value: float) -> float:
        """What rank 0 says."""
        ...

    def gather(self, value: Any) -> list[Any] | None:
        """What all say, by rank, for rank 0; None for the others."""
        ...

    def barrier(self) -> None:
        """Until all are here."""
        ...


class Alone:
    """One rank without others. A `RankBarrier`."""

    rank, size = 0, 1

    def agree(self, value: float) -> float:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def barrier(self) -> None:
        return None


class RendezvousStore:
    """Ranks 0 to before `size` of a job; all of them call the same methods in the same order.

    Args:
        store: that all can reach.
        rank: of this one.
        size: how many there are.
        name: of this conversation; no two may have the same.
        timeout_s: to wait for another.
    """

    def __init__(self, store: Store, rank: int, size: int, *, name: str, timeout_s: float) -> None:
        self.rank, self.size = rank, size
        self._store, self._name, self._timeout = store, name, timedelta(seconds=timeout_s)
        self._calls = 0

    def agree(self, value: float) -> float:
        """What rank 0 says."""
        return float(self.first(value))

    def first(self, value: Any) -> Any:
        """What rank 0 says, as JSON has it."""
        key = self._key()
        if self.rank == 0:
            self._store.set(key, json.dumps(value))
            return json.loads(json.dumps(value))
        return json.loads(self._read(key))

    def gather(self, value: Any) -> list[Any] | None:
        """What all say, by rank, for rank 0; None for the others."""
        key = self._key()
        if self.rank > 0:
            self._store.set(f"{key}/{self.rank}", json.dumps(value))
            return None
        others = [json.loads(self._read(f"{key}/{rank}")) for rank in range(1, self.size)]
        return [json.loads(json.dumps(value)), *others]

    def barrier(self) -> None:
        """Until all are here."""
        key = self._key()
        if self._store.add(f"{key}/here", 1) == self.size:
            self._store.set(f"{key}/all", "")
        self._read(f"{key}/all")

    def _read(self, key: str) -> str:
        self._store.wait([key], self._timeout)
        said: bytes = self._store.get(key)
        return said.decode()

    def _key(self) -> str:
        self._calls += 1
        return f"{self._name}/{self._calls}"
