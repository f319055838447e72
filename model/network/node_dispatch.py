"""Time of rows that go to every node once, over a NIC, and from there on by NVLink (DeepEP, HybridEP).

With S bytes of one copy of each row of a rank, N nodes of g ranks, d of the nodes and r of all ranks that the experts
of a row lie on in the mean, of which the own node and rank are among N and among N g as often as any other:

    over the NIC       S d (N - 1)/N / (0.9 B_nic)
    over NVLink        S r (g - 1)/g / (0.7 B_node)      to the ranks of the own node, and what comes from others on
    time               2 a0 + the longer of both + a step on either link + what a call takes beside its kernel

A copy comes on the rank of its node that has the sender's place there, which keeps it where it holds the expert, once
in g times. The start counts twice: ranks first say how many rows they send. What comes back takes the same way, added
up in each node before it leaves it.

Shares of the bandwidth that the data sheet states, from the README of DeepEP (its main page and docs/legacy.md), whose
figures count what stays in the own node too: 90 GB/s on 2 nodes and 61 on 4 over NICs of 50 GB/s are 45 and 46 over the
NIC (V1: 44 and 45 on 4 and 8 nodes); 153 GB/s inside a node of eight H800, whose links have 200 GB/s a direction, are
134 (726 on B200, with 900, are 635). A call takes longer than its kernel, which metadata of all ranks are gathered and
made for: in HybridEP's tables (branch hybrid-ep, docs/README_Hybrid-EP.md; 4,096 rows of 7,168 in 16 bits, 8 experts
each) "Torch API" and "Kernel Only" differ by 0.16 and 0.12 ms for what goes there and comes back inside 8 B200 or
GB200, and by 0.51 and 0.33 ms on 2 nodes of H100, 0.67 and 0.42 on 4. The SMs that its kernels take, 24 of an H800's
132, compute nothing meanwhile (README: 24 under V1, fewer under V2). Left out: rows of the busiest expert beyond
`Network.skewed_B`; buffers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.network.collectives import Collective, Network, Route

HIDEABLE = 1 - 24 / 132  # of its time, behind computation that has the other SMs


class DispatchTime(NamedTuple):
    """Of one exchange, and of it what links inside a node move beside the NIC or the NIC beside them, s. [P]"""

    time_s: FloatArray
    beside_s: FloatArray


def nodes_of(ranks: IntArray, route: Route) -> FloatArray:
    """Nodes that groups of so many ranks lie on, [P]."""
    return np.asarray(np.maximum(ranks / route.local_G, 1.0))


def dispatch_time(
    network: Network,
    size_B: FloatArray,
    ranks: IntArray,
    route: Route,
    *,
    nodes_reached: FloatArray,
    ranks_reached: FloatArray,
) -> DispatchTime:
    """Of rows to experts, or of their results back, in each group; nothing in a group of one.

    Args:
        network: of the cluster.
        size_B: S, [P].
        ranks, route: of the group.
        nodes_reached, ranks_reached: d and r, [P].
    """
    nodes, local = nodes_of(ranks, route), route.local_G
    across_s = size_B * nodes_reached * (nodes - 1) / nodes / (network.nic_dispatch_efficiency * route.nic_Bps_G)
    inside_s = size_B * ranks_reached * (local - 1) / local / (network.node_dispatch_efficiency * route.node_Bps_G)
    start_s = 2 * network.launch_latencies_s.get(Collective.ALL_TO_ALL, network.start_s)
    hops_s = np.where(local > 1, network.node_latency_s, 0.0) + np.where(nodes > 1, route.latency_s_G, 0.0)
    hops_s = hops_s + np.where(nodes > 1, network.nic_dispatch_call_s, network.node_dispatch_call_s)
    sends = ranks > 1
    return DispatchTime(
        time_s=np.where(sends, start_s + hops_s + np.maximum(across_s, inside_s), 0.0),
        beside_s=np.where(sends, np.minimum(across_s, inside_s), 0.0),
    )
