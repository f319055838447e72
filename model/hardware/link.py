"""Networks between nodes: data sheets, by name or as a user gives them, and what published tests reached of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from moemodel.model.core.documents import Real, Strict
from moemodel.model.core.errors import InputError

_Kind = Literal["infiniband", "ethernet", "efa"]
# Trees over more than two nodes, over what they do by NCCL's own figures: all-reduces of 1 GiB over 4 to 64 nodes of
# eight H100, as `efa-p5` in `presets/networks.json`
_TREES_OF_EFA = 0.74


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What large messages reach of a line rate.

    Attributes:
        share: in the middle of published tests (geometric mean).
        log_error: standard deviation of a test's logarithm from it.
    """

    share: float
    log_error: float


class Link(Strict):
    """One GPU's share of the network between nodes."""

    # bounds assumed: links from a modem's to a thousand times the fastest
    bandwidth_GBps: Annotated[Real, Field(ge=1e-6, le=1e6)]
    latency_us: Annotated[Real, Field(gt=0, le=1e9)]
    network: _Kind = Field(default="infiniband", description="whose published tests say how much of it is reached")
    efficiency: Annotated[Real, Field(gt=0, le=1)] | None = Field(
        default=None, description="share of the bandwidth that large messages reach; null: as published tests did"
    )
    source: str = "the plan"

    @property
    def simple_alone(self) -> bool:
        """Whether NCCL runs no protocol over it but the simple one. EFA's packets may come in any order, which others
        don't bear (aws/aws-ofi-nccl, issue 76; src/platform-aws.c, `force_proto_simple`)."""
        return self.network == "efa"

    @property
    def hides_trees_of_switches(self) -> bool:
        """Whether NCCL takes trees of switches that sum for faster than they are: EFA's plugin states a latency that is
        added to all else (`network.across_nodes`)."""
        return self.network == "efa"

    @property
    def trees_reach(self) -> float:
        """Of what trees over more than two nodes do by NCCL's own figures."""
        return _TREES_OF_EFA if self.network == "efa" else 1.0

    @property
    def reached(self) -> Reached:
        """What large messages reach of the bandwidth: as stated, or as published; its error as published."""
        published = published_share(self.network)
        return Reached(share=self.efficiency or published.share, log_error=published.log_error)


@cache
def links() -> dict[str, Link]:
    """The networks between nodes that are known by name."""
    return {name: Link(**entry) for name, entry in _presets().items() if not name.startswith("_")}


@cache
def published_share(network: _Kind) -> Reached:
    """What nccl-tests of others reached; of Ethernet there are few, so InfiniBand's count there as well."""
    tests = _presets()["_nccl_tests"]
    found = [test["share"] for kind in dict.fromkeys(("infiniband", network)) for test in tests[kind]]
    logs = np.log(found)
    return Reached(share=float(np.exp(logs.mean())), log_error=float(logs.std(ddof=1)))


@cache
def _presets() -> dict[str, Any]:
    path = Path(__file__).parents[1] / "presets" / "networks.json"
    presets: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return presets


def read_link(name: str) -> Link:
    """A known network between nodes.

    Raises:
        InputError: unknown; names the known ones.
    """
    if name not in links():
        names = ", ".join(sorted(links()))
        raise InputError(
            f"cluster.internode: found {name!r}; allowed: {names}, a bandwidth, or the path of a cluster file (.yaml)"
        )
    return links()[name]
