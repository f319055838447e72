"""Time of collectives over the links of a cluster.

A cluster is a graph: GPUs, one switch a node, one NIC a GPU, one fabric; edges carry the bandwidth of one
direction and a latency. A group of ranks is a ring through that graph.

    all_reduce                     a0 + 2 (n-1)/n S / B + 2 (n-1) a
    reduce_scatter, all_gather     a0 +   (n-1)/n S / B +   (n-1) a
    all_to_all                     a0 + max((g-1)/n S / B_node, (n-g)/n S / B_nic) + (n-1) a
    send_recv                      a0 + S / B + a

    S bytes of the full tensor, n ranks, g of them in one node, B bandwidth of the ring's narrowest edge times the
    efficiency of the collective, a latency of one step, a0 start of a collective. Where collectives were measured, each
    has its own B, a and a0, and a factor that says what this misses at its size (see `records.link_residuals`).

Ring algorithms: Thakur, Rabenseifner, Gropp 2005, section 4; the factors are those of NCCL's "bus bandwidth". A ring
over several nodes leaves and enters each node once, over the NICs of all its members there (NCCL builds one ring a
NIC). Between nodes whose collectives were not measured, what NCCL chooses among rings and trees, over links of an
efficiency of their own, goes before this (`across_nodes`). Left out: in-network reduction, contention between groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.hardware.link import Link
from moemodel.model.network.across_nodes import (
    AcrossNodes,
    Fabric,
    REFERENCE_LATENCY_s,
    channels,
    generation_of,
    message_slows,
)
from moemodel.model.records.calibration import Calibration
from moemodel.model.records.link_residuals import LinkCurve, correction


class Collective(StrEnum):
    """A collective operation, or a message between two ranks."""

    ALL_REDUCE = "all_reduce"
    REDUCE_SCATTER = "reduce_scatter"
    ALL_GATHER = "all_gather"
    ALL_TO_ALL = "all_to_all"
    SEND_RECV = "send_recv"


@dataclass(frozen=True, kw_only=True)
class Route:
    """What a group's ring runs over. G groups.

    Attributes:
        ring_Bps_G: narrowest edge of the ring.
        node_Bps_G: edge inside a node.
        nic_Bps_G: one GPU's edge to other nodes.
        local_G: ranks of the group in one node.
        latency_s_G: one step of the ring, at the slowest place.
        across: how NCCL may run collectives of groups over several nodes; None: not known, as rings.
    """

    ring_Bps_G: FloatArray
    node_Bps_G: FloatArray
    nic_Bps_G: FloatArray
    local_G: FloatArray
    latency_s_G: FloatArray
    across: AcrossNodes | None = None


@dataclass(frozen=True, kw_only=True)
class Network:
    """A homogeneous cluster and how well collectives use it.

    Attributes:
        gpus_per_node: GPUs of a node.
        node_Bps: bandwidth of a GPU to its node's switch, per direction.
        nic_Bps: bandwidth of a GPU to the other nodes, per direction.
        node_latency_s, nic_latency_s: latency of one step inside a node, between nodes.
        efficiency: share of the bandwidth that each collective reaches.
        start_s: start of a collective, however small.
        overlap: share of communication that hides behind computation where the framework overlaps them.
        launch_latencies_s, hop_latencies_s: start and step inside a node of collectives that were measured; others take
            `start_s` and `node_latency_s`.
        internode_efficiency, internode_launch_latencies_s: the same between nodes, where that was measured; else as
            inside.
        curves: what the formula misses of each collective (see `records.link_residuals`).
        fabric: between nodes, for collectives that were not measured there; None: as inside a node.
        overlaps, memory_overlaps: share that hides behind matrix products, and behind operators that memory bounds;
            others take `overlap`.
        nic_dispatch_efficiency, node_dispatch_efficiency: share of the bandwidth that rows reach which go to a node
            once (`network.node_dispatch`, where it is from); `nic_dispatch_call_s`, `node_dispatch_call_s` what a call
            takes beside its kernel.
        imbalance_penalty: of the excess of an all-to-all's busiest rank over the mean, what prolongs it; 1: all of it.
    """

    gpus_per_node: int
    node_Bps: float
    nic_Bps: float
    node_latency_s: float
    nic_latency_s: float
    efficiency: dict[Collective, float]
    start_s: float
    overlap: float
    launch_latencies_s: Mapping[Collective, float] = field(default_factory=dict)
    hop_latencies_s: Mapping[Collective, float] = field(default_factory=dict)
    internode_efficiency: Mapping[Collective, float] = field(default_factory=dict)
    internode_launch_latencies_s: Mapping[Collective, float] = field(default_factory=dict)
    curves: Mapping[Collective, tuple[LinkCurve, ...]] = field(default_factory=dict)
    fabric: Fabric | None = None
    overlaps: Mapping[Collective, float] = field(default_factory=dict)
    memory_overlaps: Mapping[Collective, float] = field(default_factory=dict)
    imbalance_penalty: float = 1.0
    nic_dispatch_efficiency: float = 0.9
    node_dispatch_efficiency: float = 0.7
    nic_dispatch_call_s: float = 0.48e-3
    node_dispatch_call_s: float = 0.14e-3

    def overlap_of(self, collective: Collective, *, memory_bound: bool = False) -> float:
        """Share of a collective that hides behind computation: behind products, or what memory bounds."""
        measured = self.memory_overlaps if memory_bound else self.overlaps
        return measured.get(collective, self.overlap)

    def message_hides(self, route: Route, ranks: IntArray) -> FloatArray:
        """Share of messages of each group that hides behind attention: inside a node as measured behind products;
        between nodes all but what their channels take of the GPU. [G]"""
        inside = np.full(len(ranks), self.overlap_of(Collective.SEND_RECV))
        slows = None if self.fabric is None else self.fabric.message_slows
        return inside if slows is None else np.where(route.local_G < ranks, 1 - slows, inside)

    def skewed_B(self, size_B: FloatArray, skew: FloatArray | float) -> FloatArray:
        """Size of the even all-to-all that takes as long as one whose busiest rank gets `skew` times the mean."""
        return np.asarray(size_B * (1 + self.imbalance_penalty * (np.asarray(skew) - 1)))

    def route(self, ranks_G: IntArray, stride_G: IntArray) -> Route:
        """Routes of groups of `ranks` ranks, `stride` apart; ranks are numbered node by node."""
        inside = ranks_G * stride_G <= self.gpus_per_node
        local = np.where(inside, ranks_G, np.maximum(1, self.gpus_per_node // stride_G)).astype(np.float64)
        return Route(
            ring_Bps_G=np.where(inside, self.node_Bps, np.minimum(self.nic_Bps * local, self.node_Bps)),
            node_Bps_G=np.full(len(local), self.node_Bps),
            nic_Bps_G=np.full(len(local), self.nic_Bps),
            local_G=local,
            latency_s_G=np.where(inside, self.node_latency_s, self.nic_latency_s),
            across=None if inside.all() else self._across(ranks_G.astype(np.float64), local),
        )

    def _across(self, n: FloatArray, local: FloatArray) -> AcrossNodes | None:
        """How groups over several nodes may run, where it is known of what joins these."""
        if self.fabric is None:
            return None
        return AcrossNodes(
            n=n,
            local=local,
            nic_Bps=self.nic_Bps * self.fabric.share,
            channels=channels(local, self.gpus_per_node, self.fabric, self.nic_Bps),
            generation=self.fabric.generation,
            latency_scale=self.nic_latency_s / REFERENCE_LATENCY_s,
            simple_alone=self.fabric.simple_alone,
            trees_reach=self.fabric.trees_reach,
            sums_by_switches=self.fabric.sums_by_switches,
        )

    def small_sum_s(self, ranks: IntArray, route: Route, *, grouped: bool = False) -> FloatArray:
        """What a small sum of float32 waits in each group beyond `time_s`, alone or as one of many sent together
        (`across_nodes`)."""
        if route.across is None:
            return np.zeros(len(ranks))
        return np.where(route.local_G < ranks, route.across.small_sum_s(grouped=grouped), 0.0)

    def time_s(
        self,
        collective: Collective,
        size_B: FloatArray,
        ranks: IntArray,
        route: Route,
    ) -> FloatArray:
        """Time of a collective of `size_B` bytes (the full tensor) in each group; 0 for a group of one."""
        n = ranks.astype(np.float64)
        moved_s, steps = transfer_time_s(collective, size_B, n, route)
        inside = route.local_G >= n
        efficiency, start_s = self.efficiency[collective], self.launch_latencies_s.get(collective, self.start_s)
        step_s = np.where(inside, self.hop_latencies_s.get(collective, self.node_latency_s), route.latency_s_G)
        formula_s = (
            np.where(inside, start_s, self.internode_launch_latencies_s.get(collective, start_s))
            + moved_s / np.where(inside, efficiency, self.internode_efficiency.get(collective, efficiency))
            + steps * step_s
        )
        correction = self._correction(collective, size_B, n, inside)
        found_s = formula_s * correction
        if route.across is not None and collective not in self.internode_efficiency and not inside.all():
            slower = correction / self.efficiency[collective]
            across_s = self._across_s(collective, size_B, route.across, slower)
            found_s = np.where(inside, found_s, across_s)
        return np.where(n > 1, found_s, 0.0)

    def _across_s(
        self,
        collective: Collective,
        size_B: FloatArray,
        across: AcrossNodes,
        slower: FloatArray | float,
    ) -> FloatArray:
        """Of groups over several nodes; links in a node are so many times `slower` than their rate."""
        n, local = across.n, across.local
        start_s = self.launch_latencies_s.get(collective, self.start_s)
        if collective is Collective.SEND_RECV:
            return np.asarray(start_s + self.nic_latency_s + size_B / min(across.nic_Bps, self.node_Bps))
        if collective is Collective.ALL_TO_ALL:
            inside_s = (local - 1) / n * size_B / self.node_Bps * slower
            across_s = (n - local) / n * size_B / across.nic_Bps
            hop_s = self.hop_latencies_s.get(collective, self.node_latency_s)
            waits_s = (local - 1) * hop_s + (n - local) * self.nic_latency_s
            return np.asarray(start_s + np.maximum(inside_s, across_s) + waits_s)
        turns = 2.0 if collective is Collective.ALL_REDUCE else 1.0
        inside_s = np.where(local > 1, turns * (n - 1) / n * size_B / self.node_Bps * slower, 0.0)
        return np.asarray(start_s + across.time_s(turns, size_B, inside_s))

    def _correction(
        self, collective: Collective, size_B: FloatArray, n: FloatArray, inside: NDArray[np.bool_]
    ) -> FloatArray | float:
        curves = self.curves.get(collective, ())
        if not curves:
            return 1.0
        within = correction([curve for curve in curves if not curve.across], size_B, n)
        beyond = [curve for curve in curves if curve.across]
        if beyond:
            return np.where(inside, within, correction(beyond, size_B, n))
        # Between nodes the efficiency of a node's links is taken where none was measured, and so is its curve.
        return np.where(inside, within, 1.0) if collective in self.internode_efficiency else within


def transfer_time_s(
    collective: Collective,
    size_B: FloatArray,
    n: FloatArray,
    route: Route,
) -> tuple[FloatArray, FloatArray]:
    """Time of a collective's bytes at full bandwidth, and the number of its steps, in each of G groups of `n` ranks."""
    if collective is Collective.ALL_TO_ALL:
        inside_s = (route.local_G - 1) / n * size_B / route.node_Bps_G
        across_s = (n - route.local_G) / n * size_B / route.nic_Bps_G
        return np.maximum(inside_s, across_s), n - 1
    if collective is Collective.SEND_RECV:
        # one message takes one NIC, where a ring of collectives takes those of all its members
        across_Bps = np.minimum(route.nic_Bps_G, route.node_Bps_G)
        return size_B / np.where(route.local_G < n, across_Bps, route.node_Bps_G), np.ones_like(n)
    turns = 2.0 if collective is Collective.ALL_REDUCE else 1.0
    return turns * (n - 1) / n * size_B / route.ring_Bps_G, turns * (n - 1)


def network_of(
    calibration: Calibration, gpu: Gpu, gpus_per_node: int | None, internode: Link, *, nics_per_node: int | None = None
) -> Network:
    """The network of a cluster: links inside a node from the calibration, between nodes from the plan.

    `nics_per_node`: None: as many NICs as were sold with the GPU make up the bandwidth, and no more than one a GPU.
    """
    node = gpus_per_node or gpu.gpus_per_node
    p = {name: parameter.value for name, parameter in calibration.network.parameters.items()}
    return Network(
        gpus_per_node=node,
        node_Bps=p["bandwidth"],
        nic_Bps=internode.bandwidth_GBps * 1e9,
        node_latency_s=p["step_latency"],
        nic_latency_s=internode.latency_us * 1e-6,
        efficiency={c: p[f"efficiency_{c}"] for c in Collective},
        start_s=p["start_latency"],
        overlap=p["overlap"],
        launch_latencies_s=_measured(p, "{}_start_latency"),
        hop_latencies_s=_measured(p, "{}_step_latency"),
        curves={c: tuple(x for x in calibration.network.curves if x.collective == c) for c in Collective},
        fabric=_fabric(gpu, node, internode, nics_per_node),
        overlaps=_measured(p, "{}_overlap"),
        memory_overlaps=_measured(p, "{}_memory_overlap"),
        imbalance_penalty=p.get("skew_share", 1.0),
    )


def _fabric(gpu: Gpu, gpus_per_node: int, internode: Link, nics_per_node: int | None) -> Fabric:
    generation, reached = generation_of(gpu.architecture), internode.reached
    usual = round(gpus_per_node * internode.bandwidth_GBps * 1e9 / generation.nic_Bps)
    return Fabric(
        share=reached.share,
        log_error=reached.log_error,
        nics_per_node=nics_per_node or min(max(usual, 1), gpus_per_node),
        generation=generation,
        message_slows=message_slows(internode.bandwidth_GBps * 1e9, gpu.multiprocessors)
        if gpu.multiprocessors
        else None,
        simple_alone=internode.simple_alone,
        trees_reach=internode.trees_reach,
        sums_by_switches=internode.hides_trees_of_switches and generation.switches_sum,
    )


def _measured(parameters: Mapping[str, float], name: str) -> dict[Collective, float]:
    """The parameter of that name of each collective that has it."""
    return {c: parameters[name.format(c)] for c in Collective if name.format(c) in parameters}
