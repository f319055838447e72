"""The graph of a machine as its driver described it: what `network.Network.graph` is for one that is only described.

    ("gpu", i) -- ("nvswitch", 0)      where NVLinks lead to a switch
    ("gpu", i) -- ("gpu", j)           where they lead from one GPU to another
    ("gpu", i) -- ("pcie", group)      always: GPUs that share a PCIe switch or root share the node
    ("pcie", g) -- ("host", 0)         between them, over the processors

Edges carry `kind` ("nvlink" or "pcie") and `bandwidth_Bps` of one direction, None where the driver did not say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moemodel.model.records.profile import Topology, TopologyGpu

if TYPE_CHECKING:
    import networkx as nx

_SHARED_PCIE = ("internal", "single", "multiple")  # ways that meet before the processor


def graph_of(topology: Topology) -> nx.Graph[tuple[str, int]]:
    """The connections of a machine."""
    import networkx as nx

    graph: nx.Graph[tuple[str, int]] = nx.Graph()
    groups = _pcie_groups(topology)
    for gpu in topology.gpus:
        node, root = ("gpu", gpu.index), ("pcie", groups[gpu.index])
        graph.add_edge(node, root, kind="pcie", bandwidth_Bps=gpu.pcie_Bps)
        graph.add_edge(root, ("host", 0), kind="pcie", bandwidth_Bps=gpu.pcie_Bps)
        if gpu.nvlinks and gpu.nvlink_to == "switch":
            graph.add_edge(node, ("nvswitch", 0), kind="nvlink", bandwidth_Bps=gpu.nvlink_Bps)
    for pair in topology.pairs:
        a, b = topology.gpus[pair.a], topology.gpus[pair.b]
        if pair.nvlink and "switch" not in (a.nvlink_to, b.nvlink_to):
            graph.add_edge(("gpu", a.index), ("gpu", b.index), kind="nvlink", bandwidth_Bps=_direct_Bps(a, topology))
    return graph


def link_Bps(topology: Topology) -> tuple[float, str] | None:
    """What joins the GPUs: the narrowest bandwidth of one direction, and its kind; None where the driver did not say.

    NVLink where every pair has it, else PCIe.
    """
    over_nvlink = bool(topology.pairs) and all(pair.nvlink for pair in topology.pairs)
    rates = [gpu.nvlink_Bps if over_nvlink else gpu.pcie_Bps for gpu in topology.gpus]
    known = [rate for rate in rates if rate is not None]
    if len(known) < len(rates) or not known:
        return None
    return min(known), "nvlink" if over_nvlink else "pcie"


def _direct_Bps(gpu: TopologyGpu, topology: Topology) -> float | None:
    """A GPU's NVLinks shared out evenly among those that it reaches: the driver does not say which goes where."""
    reached = sum(pair.nvlink is True for pair in topology.pairs if gpu.index in (pair.a, pair.b))
    return None if gpu.nvlink_Bps is None else gpu.nvlink_Bps / reached


def _pcie_groups(topology: Topology) -> list[int]:
    """For each GPU, the first of those whose PCIe ways meet its own before the processor."""
    groups = list(range(len(topology.gpus)))
    for pair in topology.pairs:
        if pair.ancestor in _SHARED_PCIE:
            groups[pair.b] = min(groups[pair.a], groups[pair.b])
    return groups
