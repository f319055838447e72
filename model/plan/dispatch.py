"""How rows get to their experts, as a plan says it, and as numbers in arrays of plans.

alltoall    every copy of a row goes from its rank to its expert's (Lepikhin et al. 2020, section 3.1)
allgather   ranks gather all tokens, and each takes the rows of its own experts (Megatron Core, token_dispatcher.py,
            MoEAllGatherTokenDispatcher)
deepep      a row goes once to every node that holds an expert of it, over the NIC, and on by NVLink to each rank
            there that does (DeepSeek-V3, section 3.2.2; DeepEP, Megatron Core's flex dispatcher, HybridEP)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

DispatchName = Literal["alltoall", "allgather", "deepep"]
DISPATCHES: tuple[str, ...] = get_args(DispatchName)
ALL_TO_ALL, ALL_GATHER, DEEPEP = range(len(DISPATCHES))
_OVERLAPS: tuple[bool | None, ...] = (None, False, True)
AS_THE_FRAMEWORK, EXPOSED, OVERLAPPED = range(len(_OVERLAPS))


OF_DISPATCH = ("dispatch", "node_limit", "dispatch_overlap")  # keys of a plan's routing, which a search may list


@dataclass(frozen=True, kw_only=True)
class DispatchChoices:
    """What a plan says of it.

    Attributes:
        dispatch: how rows are sent.
        node_limit: nodes that the experts of a token lie on at most; None: as the architecture's router has it.
        dispatch_overlap: they are sent behind the computation of another micro-batch; None: as the framework does.
    """

    dispatch: DispatchName = "alltoall"
    node_limit: int | None = None
    dispatch_overlap: bool | None = None

    @property
    def numbers(self) -> dict[str, int]:
        """Of each, in arrays of plans: 0 nodes are no limit of the plan's."""
        return {
            "dispatch": DISPATCHES.index(self.dispatch),
            "node_limit": self.node_limit or 0,
            "dispatch_overlap": overlap_number(self.dispatch_overlap),
        }


def said(value: object) -> str:
    """A choice in a word."""
    return {"None": "unset", "True": "on", "False": "off"}.get(str(value), str(value))


def overlap_number(overlap: bool | None) -> int:
    """Whether rows are sent behind computation, as a number."""
    return _OVERLAPS.index(overlap)


def in_words(numbers: Mapping[str, int]) -> dict[str, object]:
    """What a plan says of such numbers."""
    return {
        "dispatch": DISPATCHES[numbers["dispatch"]],
        "node_limit": numbers["node_limit"] or None,
        "dispatch_overlap": _OVERLAPS[numbers["dispatch_overlap"]],
    }
