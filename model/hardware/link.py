"""Networks between nodes: data sheets, by name or as a user gives them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from moemodel.model.core.documents import Real, Strict
from moemodel.model.core.errors import InputError


class Link(Strict):
    """One GPU's share of the network between nodes."""

    # bounds assumed: links from a modem's to a thousand times the fastest
    bandwidth_GBps: Annotated[Real, Field(ge=1e-6, le=1e6)]
    latency_us: Annotated[Real, Field(gt=0, le=1e9)]
    source: str = "the plan"


@cache
def links() -> dict[str, Link]:
    """The networks between nodes that are known by name."""
    data = json.loads((Path(__file__).parents[1] / "presets" / "networks.json").read_text(encoding="utf-8"))
    return {name: Link(**entry) for name, entry in data.items() if not name.startswith("_")}


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
