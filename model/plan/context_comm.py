"""How ranks of context parallelism reach the keys and values that others hold, as a plan says it in a word.

p2p          keys and values go around a ring (Liu et al. 2023)
all_gather   every rank gathers all keys and values
a2a          an all-to-all gives each rank all tokens of its share of the heads, another one the output back (DeepSpeed
             Ulysses, Jacobs et al. 2023, section 3.1)
a2a-N+p2p    all-to-alls among N ranks next to each other, and a ring over groups of these (Fang, Zhao 2024, USP)

The words are those of Megatron Core's `cp_comm_type`, whose `a2a+p2p` takes N from
`hierarchical_context_parallel_sizes`.
"""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

import numpy as np
from pydantic import AfterValidator

from moemodel.model.core.arrays import FloatArray, IntArray

Ranks = TypeVar("Ranks", IntArray, FloatArray)

P2P, ALL_GATHER, A2A = "p2p", "all_gather", "a2a"
CP_COMM_FORMS = f"{P2P}, {ALL_GATHER}, {A2A}, or a2a-N+p2p with all-to-alls among N ranks"
_BOTH = re.compile(r"a2a-([1-9]\d{0,4})\+p2p", re.ASCII)


def _known(name: str) -> str:
    if name in (P2P, ALL_GATHER, A2A) or _BOTH.fullmatch(name):
        return name
    raise ValueError(f"allowed: {CP_COMM_FORMS}")


CpComm = Annotated[str, AfterValidator(_known)]


def inner_ranks(name: str | None) -> int | None:
    """Ranks of an all-to-all inside a ring; None: there is no such pair."""
    both = _BOTH.fullmatch(name or "")
    return int(both[1]) if both else None


def all_to_all_ranks(name: str | None, cp: Ranks) -> Ranks:
    """Ranks that exchange heads for tokens, of so many of context parallelism; 1 where none do."""
    if name == A2A:
        return cp
    one, inner = np.ones_like(cp), inner_ranks(name)
    return one if inner is None else np.where(cp > 1, inner, one).astype(cp.dtype)
