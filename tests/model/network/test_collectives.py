"""Collectives against closed forms, and routes against shortest ways through the graph of the cluster."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import networkx as nx
import numpy as np
import pytest

from moemodel.model.core.errors import InputError
from moemodel.model.hardware.link import links, read_link
from moemodel.model.network.collectives import Collective, Network

NODE = Network(
    gpus_per_node=8,
    node_Bps=400e9,
    nic_Bps=50e9,
    node_latency_s=2e-6,
    nic_latency_s=5e-6,
    efficiency=dict.fromkeys(Collective, 1.0),
    start_s=0.0,
    overlap=0.0,
)
SIZE_B = np.array([1e9])


def took(network: Network, collective: Collective, ranks: int, stride: int = 1, size_B: float = 1e9) -> float:
    n, s = np.array([ranks]), np.array([stride])
    return float(network.time_s(collective, np.array([size_B]), n, network.route(n, s)).item())


@pytest.mark.parametrize("collective", list(Collective))
def test_a_group_of_one_says_nothing(collective: Collective) -> None:
    assert took(replace(NODE, start_s=1e-3), collective, 1) == 0.0


@pytest.mark.parametrize("n", [2, 4, 8])
def test_rings_in_a_node(n: int) -> None:
    share, hops = (n - 1) / n * 1e9 / 400e9, (n - 1) * 2e-6
    assert took(NODE, Collective.ALL_REDUCE, n) == pytest.approx(2 * share + 2 * hops)
    assert took(NODE, Collective.ALL_GATHER, n) == pytest.approx(share + hops)
    assert took(NODE, Collective.REDUCE_SCATTER, n) == pytest.approx(share + hops)
    assert took(NODE, Collective.ALL_TO_ALL, n) == pytest.approx(share + hops)
    assert took(NODE, Collective.SEND_RECV, 2) == pytest.approx(1e9 / 400e9 + 2e-6)


@pytest.mark.parametrize("collective", [Collective.ALL_REDUCE, Collective.ALL_TO_ALL, Collective.SEND_RECV])
def test_a_start_and_an_efficiency(collective: Collective) -> None:
    bare = took(replace(NODE, node_latency_s=0.0), collective, 2)
    slow = replace(NODE, node_latency_s=0.0, start_s=1e-3, efficiency=dict.fromkeys(Collective, 0.5))
    assert took(slow, collective, 2) == pytest.approx(1e-3 + 2 * bare)


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather() -> None:
    for n, stride in ((4, 1), (16, 1), (16, 8)):
        parts = took(NODE, Collective.REDUCE_SCATTER, n, stride) + took(NODE, Collective.ALL_GATHER, n, stride)
        assert took(NODE, Collective.ALL_REDUCE, n, stride) == pytest.approx(parts)


def test_a_ring_over_nodes_leaves_each_over_the_nics_of_all_its_members() -> None:
    eight, one = NODE.route(np.array([16]), np.array([1])), NODE.route(np.array([16]), np.array([8]))
    assert eight.ring_Bps_G.item() == min(8 * 50e9, 400e9)
    assert eight.local_G.item() == 8
    assert one.ring_Bps_G.item() == 50e9
    assert one.local_G.item() == 1


def test_an_all_to_all_over_nodes_goes_over_the_nics() -> None:
    n, local = 16, 8
    across = (n - local) / n * 1e9 / 50e9
    assert took(NODE, Collective.ALL_TO_ALL, n) == pytest.approx(across + (n - 1) * 5e-6)


def test_messages_without_size_cost_latency_alone() -> None:
    assert took(NODE, Collective.ALL_REDUCE, 8, size_B=0.0) == pytest.approx(2 * 7 * 2e-6)


def graph_of(network: Network, nodes: int) -> nx.Graph[tuple[str, int]]:
    """A cluster of `nodes` nodes: GPUs, one switch a node, one NIC a GPU, one fabric."""
    graph: nx.Graph[tuple[str, int]] = nx.Graph()
    for rank in range(nodes * network.gpus_per_node):
        gpu, nic = ("gpu", rank), ("nic", rank)
        switch = ("switch", rank // network.gpus_per_node)
        graph.add_edge(gpu, switch, bandwidth_Bps=network.node_Bps, latency_s=network.node_latency_s / 2)
        graph.add_edge(gpu, nic, bandwidth_Bps=network.nic_Bps, latency_s=0.0)
        graph.add_edge(nic, ("fabric", 0), bandwidth_Bps=network.nic_Bps, latency_s=network.nic_latency_s / 2)
    return graph


@pytest.mark.parametrize(("ranks", "stride"), [(2, 1), (8, 1), (2, 4), (4, 2), (2, 8), (4, 8), (16, 1), (8, 2)])
def test_routes_are_the_shortest_ways_through_the_cluster(ranks: int, stride: int) -> None:
    """Of the ring's hops, the slowest; a hop out of a node has the NICs of all members there."""
    nodes = -(-ranks * stride // NODE.gpus_per_node)
    graph = graph_of(NODE, nodes)
    ring = [rank * stride for rank in range(ranks)]
    leaving = [(a, b) for a, b in pairwise([*ring, 0]) if a // 8 != b // 8]
    a, b = leaving[0] if leaving else (ring[0], ring[1])
    way = nx.shortest_path(graph, ("gpu", a), ("gpu", b))
    edges = [graph.edges[pair] for pair in pairwise(way)]
    route = NODE.route(np.array([ranks]), np.array([stride]))
    members = max(1, 8 // stride) if leaving else 1
    narrowest = min(members * min(edge["bandwidth_Bps"] for edge in edges), NODE.node_Bps)
    assert route.ring_Bps_G.item() == pytest.approx(narrowest)
    assert route.latency_s_G.item() == pytest.approx(sum(edge["latency_s"] for edge in edges))


def test_many_groups_are_one_group_many_times() -> None:
    ranks, strides = np.array([1, 2, 8, 16, 64]), np.array([1, 8, 1, 1, 2])
    sizes = np.array([1e6, 1e7, 1e8, 1e9, 1e5])
    for collective in Collective:
        together = NODE.time_s(collective, sizes, ranks, NODE.route(ranks, strides))
        alone = [took(NODE, collective, n, s, b) for n, s, b in zip(ranks, strides, sizes, strict=True)]
        assert together.tolist() == pytest.approx(alone)


def test_every_known_link_has_a_source() -> None:
    assert all(link.source != "the plan" for link in links().values())


def test_an_unknown_link_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"cluster.internode: found 'token-ring'; allowed: efa-p5, .*bandwidth"):
        read_link("token-ring")
