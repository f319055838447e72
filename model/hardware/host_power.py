"""What a node draws beside its GPUs: processors, memory, NICs, NVSwitches, fans, and what power supplies lose."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from moemodel.model.core.suggest import unknown


@dataclass(frozen=True, kw_only=True)
class Host:
    """A kind of node.

    Attributes:
        power_W: of each GPU's share.
        gpus: names of those that stand in it.
    """

    power_W: float
    gpus: tuple[str, ...]


@cache
def hosts() -> dict[str, Host]:
    """Nodes that are known by name."""
    path = Path(__file__).parents[1] / "presets" / "hosts.json"
    presets = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: Host(power_W=float(entry["power_W"]), gpus=tuple(entry["gpus"]))
        for name, entry in presets.items()
        if not name.startswith("_")
    }


def host_power_W(name: str) -> float:
    """Of a known kind of node, for each of its GPUs.

    Raises:
        InputError: unknown; names the known ones.
    """
    if name not in hosts():
        raise unknown("site.host_power_W", name, hosts(), or_else="a power in W")
    return hosts()[name].power_W


def check_host(name: str, gpu: str) -> None:
    """Refuse a known kind of node for GPUs that do not stand in it.

    Raises:
        ValueError: what is allowed.
    """
    if name in hosts() and gpu not in hosts()[name].gpus:
        raise ValueError(
            f"site.host_power_W: found {name} with cluster.gpu {gpu}; allowed: a power in W, or with "
            f"{', '.join(hosts()[name].gpus)} that name"
        )
