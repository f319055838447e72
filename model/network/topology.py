"""The graph of a machine as its driver described it (networkx, which prediction does without).

    ("gpu", i) -- ("nvswitch", 0)      where NVLinks lead to a switch
    ("gpu", i) -- ("gpu", j)           where they lead from one GPU to another
    ("gpu", i) -- ("pcie", group)      always: GPUs that share a PCIe switch or root share the node
    ("pcie", g) -- ("host", 0)         between them, over the processors

Edges carry `kind` ("nvlink" or "pcie") and `bandwidth_Bps` of one direction, None where the driver did not say.
"""

from __future__ import annotations

from itertools import combinations
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

    NVLink where every pair has it, alone or through one switch; else PCIe.
    """
    graph = graph_of(topology)
    gpus = [("gpu", gpu.index) for gpu in topology.gpus]
    kind = "nvlink" if _joins_all(_edges_of(graph, "nvlink"), gpus) else "pcie"
    links = _edges_of(graph, kind)
    rates = [_rate_Bps(links, gpu) for gpu in gpus]
    known = [rate for rate in rates if rate is not None]
    return (min(known), kind) if known and len(known) == len(rates) else None


def _edges_of(graph: nx.Graph[tuple[str, int]], kind: str) -> nx.Graph[tuple[str, int]]:
    """The connections of one kind alone."""
    edges: list[tuple[tuple[str, int], tuple[str, int], str]] = list(graph.edges(data="kind"))
    return graph.edge_subgraph([(a, b) for a, b, found in edges if found == kind])


def _joins_all(links: nx.Graph[tuple[str, int]], gpus: list[tuple[str, int]]) -> bool:
    """Whether every GPU reaches every other over these links, alone or through one switch."""
    return len(gpus) > 1 and all(_joined(links, a, b) for a, b in combinations(gpus, 2))


def _joined(links: nx.Graph[tuple[str, int]], a: tuple[str, int], b: tuple[str, int]) -> bool:
    if a not in links or b not in links:
        return False
    between = set(links[a]) & set(links[b])
    return b in links[a] or any(kind == "nvswitch" for kind, _ in between)


def _rate_Bps(links: nx.Graph[tuple[str, int]], gpu: tuple[str, int]) -> float | None:
    """Of all links of a GPU together; None where one is not known."""
    edges: list[tuple[tuple[str, int], tuple[str, int], float | None]] = list(links.edges(gpu, data="bandwidth_Bps"))
    rates = [rate for _, _, rate in edges if rate is not None]
    return float(sum(rates)) if edges and len(rates) == len(edges) else None


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
