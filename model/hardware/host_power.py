"""What a node draws beside its GPUs: processors, memory, NICs, NVSwitches, fans, and what power supplies lose."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from moemodel.model.core.suggest import unknown


@cache
def hosts() -> dict[str, float]:
    """W of each GPU's share, of nodes that are known by name."""
    path = Path(__file__).parents[1] / "presets" / "hosts.json"
    presets = json.loads(path.read_text(encoding="utf-8"))
    return {name: float(entry["power_W"]) for name, entry in presets.items() if not name.startswith("_")}


def host_power_W(name: str) -> float:
    """Of a known kind of node, for each of its GPUs.

    Raises:
        InputError: unknown; names the known ones.
    """
    if name not in hosts():
        raise unknown("site.host_power_W", name, hosts(), or_else="a power in W")
    return hosts()[name]
