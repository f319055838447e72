"""A cluster that is described: what a plan's `cluster.internode` may name beside a known network or a bandwidth.

    nodes: 16                       # how many there are; plans may take fewer
    gpus_per_node: 8                # an NVLink domain where several hosts share one
    gpus_per_host: 4                # default: gpus_per_node; fewer where a node is a domain of several hosts
    nics_per_node: 4                # default: one a GPU
    nic: infiniband-ndr             # a known one, or {bandwidth_GBps: 50, latency_us: 5, source: ...}
    nccl_tests:                     # what nccl-tests printed there, relative to this file
      - all_reduce_2_nodes.txt
      - {file: sendrecv.txt, collective: send_recv, ranks: 16, nodes: 2}

A test overrides the datasheet for its collective, inside a node or between nodes, wherever it ran: start and efficiency
from its smallest and largest size, and what they miss in between as a curve (`records.link_residuals`); groups of other
sizes take the nearest test's. Each host that a test lists is a node, unless a node is a domain of several (`placed`);
the entry's own `nodes` goes before both. Left out: that fewer members a node than NICs could have a NIC each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, model_validator

from moemodel.model.core.documents import Strict, read_yaml
from moemodel.model.core.errors import InputError
from moemodel.model.hardware.gpu import Gpu
from moemodel.model.hardware.link import Link, links, read_link
from moemodel.model.network.collectives import Collective, Network, network_of, transfer_time_s
from moemodel.model.network.nccl_tests import NcclTest, Unused, read_nccl_tests
from moemodel.model.records.calibration import Calibration
from moemodel.model.records.link_residuals import LinkCurve

_SUFFIXES = (".yaml", ".yml")
_MOST_GPUS_OF_A_HOST = 16  # an HGX-2's; a node of more is a domain of several hosts
_DOMAINS = ("GB200", "GB300", "GH200")  # superchips, whose NVLink domains (NVL32, NVL36, NVL72) go across hosts
_MOST_SUPERCHIPS_OF_A_HOST = 4  # GPUs of a compute tray (NVIDIA GB200 NVL72, as in presets/gpus/gb200-186gb.json)
_TOO_SLOW = 0.01  # assumed: links that work reach more
# Over the links' line rate; assumed: in-network sums (SHARP) send a tensor once, where a ring sends it twice.
_TOO_FAST = 2.0
_LEAST_EFFICIENCY = 1e-4  # of a test whose times hardly depend on the size: keeps divisions finite, far below any link

Count = Annotated[int, Field(gt=0, le=1_000_000, strict=True)]  # bound assumed: no cluster has more of anything


class TestedFile(Strict):
    """One nccl-test's output, and what it may not say itself."""

    file: str
    collective: Collective | None = None
    ranks: Count | None = None
    nodes: Count | None = Field(default=None, description="that its ranks lay on; null: as many as its hosts make up")


class ClusterFile(Strict):
    """A cluster as its user describes it."""

    nodes: Count | None = Field(default=None, description="null: as many as plans take")
    gpus_per_node: Count | None = Field(default=None, description="null: as the plan or the GPU description says")
    gpus_per_host: Count | None = Field(
        default=None, description="where a node is an NVLink domain of several hosts; null: gpus_per_node"
    )
    nics_per_node: Count | None = Field(default=None, description="null: one a GPU")
    nic: str | Link = "infiniband-ndr"
    nccl_tests: tuple[str | TestedFile, ...] = ()

    @model_validator(mode="after")
    def _nics(self) -> ClusterFile:
        if self.nics_per_node and not self.gpus_per_node:
            raise ValueError("nics_per_node: needs gpus_per_node, among which they are shared")
        if self.gpus_per_host and (not self.gpus_per_node or self.gpus_per_node % self.gpus_per_host):
            found = f"found {self.gpus_per_host}; "
            raise ValueError(f"gpus_per_host: {found}gpus_per_node must be given, and be a multiple of it")
        return self


@dataclass(frozen=True, kw_only=True)
class Internode:
    """What joins the nodes of a plan.

    Attributes:
        link: a GPU's share of it.
        nodes, gpus_per_node, gpus_per_host, nics_per_node: where a cluster file says.
        nics_known: a GPU has one, or as many as are said; a bandwidth alone does not say how many NICs it is of.
        tests: that were run on the cluster.
        unused: runs in their files of programs whose collective no plan uses.
        source: the cluster file; None without one.
    """

    link: Link
    nodes: int | None = None
    gpus_per_node: int | None = None
    gpus_per_host: int | None = None
    nics_per_node: int | None = None
    nics_known: bool = False
    tests: tuple[NcclTest, ...] = ()
    unused: tuple[Unused, ...] = ()
    source: str | None = None

    @property
    def tested(self) -> bool:
        """Whether anything was measured between nodes."""
        return any(test.nodes > 1 for test in self.tests)


def read_internode(named: str | Link) -> Internode:
    """What a plan's `cluster.internode` means: a link, the name of a known one, or the path of a cluster file.

    Raises:
        InputError: an unknown name, or a file that is missing or malformed; with the place.
    """
    if isinstance(named, Link):
        return Internode(link=named)
    if Path(named).suffix not in _SUFFIXES:
        return Internode(link=read_link(named), nics_known=True)
    path = Path(named)
    cluster = read_yaml(path, ClusterFile)
    read = [_tests(entry, path.parent) for entry in cluster.nccl_tests]
    return Internode(
        link=_share(cluster, path),
        nodes=cluster.nodes,
        gpus_per_node=cluster.gpus_per_node,
        gpus_per_host=cluster.gpus_per_host,
        nics_per_node=cluster.nics_per_node,
        nics_known=True,
        tests=tuple(test for tests, _ in read for test in tests),
        unused=tuple(run for _, unused in read for run in unused),
        source=str(path),
    )


def placed(internode: Internode, gpus_per_node: int) -> Internode:
    """The same, with the nodes on which each test's ranks lay.

    A test names its hosts. Where a node has several (`gpus_per_host`; a node of more GPUs than any host has; superchips
    whose NVLink domain goes across hosts), its ranks fill as few nodes as they can.

    Args:
        internode: as it was read.
        gpus_per_node: of the plan's cluster.

    Raises:
        InputError: the ranks fill no whole number of nodes.
    """
    tests = tuple(_placed(test, gpus_per_node, internode.gpus_per_host) for test in internode.tests)
    return replace(internode, tests=tests)


def _placed(test: NcclTest, gpus_per_node: int, gpus_per_host: int | None) -> NcclTest:
    each = test.ranks // test.nodes
    superchips = bool(test.gpus) and all(any(name in gpu for name in _DOMAINS) for gpu in test.gpus)
    most = gpus_per_host or (_MOST_SUPERCHIPS_OF_A_HOST if superchips else _MOST_GPUS_OF_A_HOST)
    shared = gpus_per_node > most
    if test.nodes_told or test.nodes == 1 or not shared or each >= gpus_per_node:
        return test
    if test.ranks > gpus_per_node and test.ranks % gpus_per_node:
        raise InputError(
            f"{test.source}: found {test.ranks} ranks on {test.nodes} hosts, where a node of {gpus_per_node} GPUs has "
            "several hosts; give nodes, the number of nodes that the ranks lay on"
        )
    return replace(test, nodes=max(1, test.ranks // gpus_per_node))


def notes_on_tests(internode: Internode, network: Network, gpus: int) -> tuple[str, ...]:
    """What a plan's user has to know of how the tests were used: taken otherwise than they say, or for nothing.

    Args:
        internode: with its tests in their places.
        network: what they made of it.
        gpus: that the plan takes.
    """
    said = [
        f"{test.source}: its {test.ranks} ranks on {test.hosts} hosts are taken as {_nodes(test.nodes)} of "
        f"{network.gpus_per_node} GPUs; give the test's nodes if they are others."
        for test in internode.tests
        if not test.nodes_told and test.hosts > test.nodes
    ]
    between = [test for test in internode.tests if test.nodes > 1]
    if between and gpus <= network.gpus_per_node:
        files = ", ".join(dict.fromkeys(test.source for test in between))
        said.append(
            f"{files}: measured between nodes, and not used: the plan's GPUs are one node of {network.gpus_per_node}. "
            "If the hosts of a test are one node (an NVLink domain, containers), give its nodes."
        )
    for collective, across in sorted({(test.collective, test.nodes > 1) for test in internode.tests}):
        share = (network.internode_efficiency if across else network.efficiency)[collective]
        if not _TOO_SLOW < share < _TOO_FAST:
            link_Bps, where = (network.nic_Bps, "between nodes") if across else (network.node_Bps, "inside a node")
            said.append(
                f"The nccl-tests of {internode.source} moved the bytes of {collective} at {share:.2g} times the "
                f"{link_Bps / 1e9:g} GB/s that a GPU has {where}: look at the test, at nic, and whether its hosts are "
                "nodes (give the test's nodes if not)."
            )
    said += [f"{run.source}: {run.program} is not used: no plan has that collective." for run in internode.unused]
    return tuple(said)


def _nodes(count: int) -> str:
    return "one node" if count == 1 else f"{count} nodes"


def cluster_network(
    calibration: Calibration, gpu: Gpu, gpus: int, gpus_per_node: int | None, internode: Internode
) -> tuple[Network, Internode]:
    """The network of a plan's cluster, and what joins its nodes with the tests in their places (`placed`).

    Args:
        calibration: for the links inside a node.
        gpu: description.
        gpus: that the plan takes.
        gpus_per_node: as the plan says; None: as the cluster file or the GPU description does.
        internode: between nodes.

    Raises:
        InputError: more GPUs than the cluster file has, or another number a node.
    """
    described = internode.gpus_per_node
    if gpus_per_node and described and gpus_per_node != described:
        raise InputError(
            f"cluster.gpus_per_node: found {gpus_per_node}; {internode.source} has {described}: leave one of them out"
        )
    node = gpus_per_node or described or gpu.gpus_per_node
    nics = internode.nics_per_node or node if internode.nics_known else None
    network = network_of(calibration, gpu, node, internode.link, nics_per_node=nics)
    if internode.nodes and gpus > internode.nodes * network.gpus_per_node:
        there = internode.nodes * network.gpus_per_node
        raise InputError(f"cluster.gpus: found {gpus}; {internode.source} has {there} GPUs")
    internode = placed(internode, network.gpus_per_node)
    return with_tests(network, internode.tests), internode


def with_tests(network: Network, tests: Sequence[NcclTest]) -> Network:
    """A network whose collectives take what tests measured.

    Raises:
        InputError: a test ran on more GPUs a node than there are, or two of as many ranks ran on different nodes.
    """
    tests = _merged(tests)
    for collective in Collective:
        for across in (False, True):
            mine = [test for test in tests if test.collective is collective and (test.nodes > 1) == across]
            if mine:
                network = _with_tests(network, collective, mine, across=across)
    return network


def _with_tests(network: Network, collective: Collective, tests: Sequence[NcclTest], *, across: bool) -> Network:
    """Start and efficiency of the test with most ranks, curves of all."""
    most = max(tests, key=lambda test: test.ranks)
    kept = tuple(curve for curve in network.curves.get(collective, ()) if curve.across != across)
    bare = replace(network, curves={**network.curves, collective: kept})
    start_s, efficiency = _fit(bare, most)
    if across:
        own = replace(
            bare,
            internode_launch_latencies_s={**bare.internode_launch_latencies_s, collective: start_s},
            internode_efficiency={**bare.internode_efficiency, collective: efficiency},
        )
    else:
        own = replace(
            bare,
            launch_latencies_s={**bare.launch_latencies_s, collective: start_s},
            efficiency={**bare.efficiency, collective: efficiency},
            # what held between nodes for want of a measurement there goes on to
            internode_launch_latencies_s={
                collective: bare.launch_latencies_s.get(collective, bare.start_s),
                **bare.internode_launch_latencies_s,
            },
            internode_efficiency={collective: bare.efficiency[collective], **bare.internode_efficiency},
        )
    curves = tuple(_curve(own, test) for test in tests)
    return replace(own, curves={**own.curves, collective: (*kept, *curves)})


def _merged(tests: Sequence[NcclTest]) -> list[NcclTest]:
    """One test for each collective and number of ranks, with the sizes of all; of a size twice, the later file counts.

    Raises:
        InputError: as many ranks lay on different numbers of nodes.
    """
    merged: dict[tuple[Collective, int, bool], NcclTest] = {}
    for test in tests:
        key = (test.collective, test.ranks, test.nodes > 1)
        before = merged.get(key, test)
        if before.nodes != test.nodes:
            raise InputError(
                f"{test.source}: {test.ranks} ranks on {test.nodes} nodes; {before.source} has as many on "
                f"{before.nodes}: leave one of them out"
            )
        times = dict(zip(before.size_B, before.time_s, strict=True)) | dict(zip(test.size_B, test.time_s, strict=True))
        sizes = tuple(sorted(times))
        merged[key] = replace(test, size_B=sizes, time_s=tuple(times[size] for size in sizes))
    return list(merged.values())


def _fit(network: Network, test: NcclTest) -> tuple[float, float]:
    """Start, from the smallest size, and efficiency, from the largest."""
    size_B, time_s = np.array(test.size_B), np.array(test.time_s)
    n, stride = _group(network, test)
    route = network.route(n, stride)
    moved_s, steps = transfer_time_s(test.collective, size_B, n.astype(np.float64), route)
    step_s = float(route.latency_s_G[0])
    if test.nodes == 1:
        step_s = network.hop_latencies_s.get(test.collective, step_s)
    spent_s = max(float(time_s[-1] - time_s[0]), _LEAST_EFFICIENCY * float(time_s[-1]))
    efficiency = max(float(moved_s[-1] - moved_s[0]) / spent_s, _LEAST_EFFICIENCY)
    start_s = float(time_s[0] - moved_s[0] / efficiency - steps[0] * step_s)
    return max(start_s, 0.0), efficiency


def _curve(network: Network, test: NcclTest) -> LinkCurve:
    n, stride = _group(network, test)
    formula_s = network.time_s(test.collective, np.array(test.size_B), n, network.route(n, stride))
    return LinkCurve(
        collective=str(test.collective),
        ranks=test.ranks,
        across=test.nodes > 1,
        size_B=list(test.size_B),
        log_ratio=[float(ratio) for ratio in np.log(np.array(test.time_s) / formula_s)],
    )


def _group(network: Network, test: NcclTest) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], ...]:
    """Ranks and stride of the test's group, once for each of its sizes."""
    each = test.ranks // test.nodes
    if each > network.gpus_per_node:
        raise InputError(f"{test.source}: ran on {each} GPUs a node; the cluster has {network.gpus_per_node}")
    stride = network.gpus_per_node // each if test.nodes > 1 else 1
    count = len(test.size_B)
    return np.full(count, test.ranks, dtype=np.int64), np.full(count, stride, dtype=np.int64)


def _share(cluster: ClusterFile, path: Path) -> Link:
    """A GPU's share of its node's NICs."""
    nic = cluster.nic
    if isinstance(nic, str):
        if nic not in links():
            raise InputError(f"{path}: nic: found {nic!r}; allowed: {', '.join(sorted(links()))}, or a bandwidth")
        nic = links()[nic]
    if not (cluster.nics_per_node and cluster.gpus_per_node):
        return nic
    share = cluster.nics_per_node / cluster.gpus_per_node
    return nic.model_copy(update={"bandwidth_GBps": nic.bandwidth_GBps * share})


def _tests(entry: str | TestedFile, folder: Path) -> tuple[tuple[NcclTest, ...], tuple[Unused, ...]]:
    known = TestedFile(file=entry) if isinstance(entry, str) else entry
    return read_nccl_tests(folder / known.file, collective=known.collective, ranks=known.ranks, nodes=known.nodes)
