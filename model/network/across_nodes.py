"""Collectives over several nodes, as NCCL runs them: by the ring or the tree, and the protocol, that take least time.

    ring    a0 + k (M - I) max(a, o) + k I b + turns (n-1)/n S / W        M = turns (n-1) steps, I = turns N of them
    tree    a0 + 2 ((g-1) a + log2(N) b) + 2 S / W                        between nodes; all-reduces alone
    all_to_all   a0 + max((g-1)/n S / W_node, (n-g)/n S / W_nic) + (g-1) hop + (n-g) l
    send_recv    a0 + S / W_nic + l

    n ranks, g of them in each of N nodes, S bytes of the full tensor. W of a ring: the narrower of NVLink and of the
    NICs of the group in a node, g W_nic, times what the protocol reaches; of a tree the same, but over two nodes each
    NIC carries half as much. Each channel (one a NIC, two of fast NICs) keeps below what its kernels reach.
    a, b: step inside a node and between nodes, by protocol; k, o: of large rings the plateau, the NIC's overhead.

Latencies, shares and channels' limits are those by which NCCL itself chooses (NVIDIA NCCL, src/graph/tuning.cc, and
channels src/graph/search.cc, 2026); W_nic is what published nccl-tests reached (`hardware.link`). Two A100 nodes of
four NICs of 200 Gb/s run rings by it, as their nccl-tests show (86 to 91 GB/s of 100: NVIDIA/nccl-tests issues 100,
152, 175); nodes of eight of 100 Gb/s run trees, beyond what a ring over the NICs can reach (NVIDIA/nccl issue 812).

Small sums of float32 over several nodes of GPUs whose switches sum run by a tree of these switches where NCCL takes
that for the fastest (NVLSTree). Its figure of that tree's latency, 19 us for each node there and back, leaves out the
one that a network's plugin states, which it adds to steps of all others (src/graph/tuning.cc, 2.18): 75 us of EFA
(aws/aws-ofi-nccl, src/platform-aws.c). Maxima of float32, means and 8-bit numbers, as of barriers, never do
(src/include/collectives.h, `NCCL_NVLS_SUPPORTS`), nor groups of two GPUs a node (src/transport/nvls.cc). It may take
as much as 300 ms of one number over many GPUs where a ring takes 8 (NVIDIA/nccl, issue 1362, without a reason). What a
sum waits, alone on all channels and as one of a group that share them, is `_SMALL_SUM_s`: fitted to nanotron's steps
on AWS p5 under tensor parallelism over 2 and 4 nodes (Hugging Face, Ultra-Scale Playbook, 2024; 85 runs of models of
1.3 and 8.9 B parameters), which in every micro-batch sum two numbers of each token, and once a step the gradients of
all norms. That NVLSTree is what takes this long there was not measured, but follows from what else those steps wait
for: nothing inside a node, and over nodes no mean, maximum or barrier.

Left out: other sums in switches (NVLS in a node, SHARP), which calibrations were measured without; that trees of 4 KiB
to 64 MiB reach half to nine tenths of this; contention between groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from moemodel.model.core.arrays import FloatArray


@dataclass(frozen=True, kw_only=True)
class _Protocol:
    """How a protocol of NCCL does, s and shares.

    Attributes:
        node_s, nic_s: a step of a ring inside a node, between nodes; `tree_node_s`, `tree_nic_s` of a tree.
        share: of the bandwidth that a ring reaches, `tree_share` a tree.
        overheads: of the NIC's, in a step of a ring.
    """

    node_s: float
    nic_s: float
    tree_node_s: float
    tree_nic_s: float
    share: float
    tree_share: float
    overheads: float = 1.0


_SIMPLE = _Protocol(
    node_s=3.4e-6, nic_s=14e-6, tree_node_s=4.0e-6, tree_nic_s=14e-6, share=1.0, tree_share=0.92, overheads=3.0
)
_LL128 = _Protocol(
    node_s=1.9e-6, nic_s=4.0e-6, tree_node_s=1.25e-6, tree_nic_s=8.5e-6, share=0.92, tree_share=0.92 * 120 / 128
)
_LL = _Protocol(node_s=0.6e-6, nic_s=2.7e-6, tree_node_s=0.6e-6, tree_nic_s=5.0e-6, share=0.5, tree_share=0.92 / 3.8)
_PROTOCOLS = (_SIMPLE, _LL128, _LL)
_NIC_OVERHEAD_s = 1e-6
_PLATEAU = 1.4  # of a ring's latency in large all-reduces, from Ampere on
_LL_Bps = (39.0e9, 20.4e9)  # both algorithms, over two nodes and over more
# s by number of nodes, alone and in a group; beyond four, where nobody measured, as over four
_SUM_NODES = (2.0, 4.0)
_SMALL_SUM_s = {False: (3.5e-3, 28e-3), True: (2.0e-3, 9.0e-3)}
_LEAST_TO_SUM = 3  # GPUs of a group in a node
REFERENCE_LATENCY_s = 5e-6  # of the InfiniBand whose steps these are (`presets/networks.json`)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Limits of a generation of GPUs, of a channel, bytes/s.

    Attributes:
        ring_LL128_Bps: of rings in LL128.
        tree_Bps, tree_LL128_Bps: of trees, over two nodes and over more.
        nic_Bps: of the NIC that it was sold with (DGX data sheets: ConnectX-5, 6, 7).
        switches_sum: what joins the GPUs of a node can sum what they send (NVLink SHARP, from the third NVSwitch on).
        splits_fast_nics: two channels a NIC even where a node has more than four.
    """

    ring_LL128_Bps: float
    tree_Bps: tuple[float, float]
    tree_LL128_Bps: tuple[float, float]
    nic_Bps: float
    splits_fast_nics: bool
    switches_sum: bool = False


_VOLTA = Generation(
    ring_LL128_Bps=20e9, tree_Bps=(18.5e9, 10e9), tree_LL128_Bps=(20e9, 20e9), nic_Bps=12.5e9, splits_fast_nics=True
)
_AMPERE = Generation(
    ring_LL128_Bps=20e9, tree_Bps=(23.6e9, 17.8e9), tree_LL128_Bps=(20e9, 20e9), nic_Bps=25e9, splits_fast_nics=True
)
_HOPPER = Generation(
    ring_LL128_Bps=36.7e9,
    tree_Bps=(41.4e9, 36e9),
    tree_LL128_Bps=(36.7e9, 29e9),
    nic_Bps=50e9,
    splits_fast_nics=False,
    switches_sum=True,
)
_BLACKWELL = Generation(
    ring_LL128_Bps=40e9,
    tree_Bps=(42.8e9, 24e9),
    tree_LL128_Bps=(31.67e9, 20e9),
    nic_Bps=50e9,
    splits_fast_nics=False,
    switches_sum=True,
)
_OTHERS = replace(_HOPPER, switches_sum=False)
_GENERATIONS = {"volta": _VOLTA, "ampere": _AMPERE, "hopper": _HOPPER, "blackwell": _BLACKWELL}
_DOUBLED_FROM_Bps = 25e9  # of a channel inside a node; NCCL takes a NIC of 200 Gb/s for 24 GB/s
_DOUBLED_BEYOND_FOUR_FROM_Bps = 50e9
_FEW_NICS = 4


def message_slows(nic_Bps: float, multiprocessors: int) -> float:
    """Share of a GPU's multiprocessors that a message over a NIC takes: a block of threads on each of its channels, of
    which there are enough to carry 14 GB/s each (NCCL, src/graph/paths.cc, `P2pPerChannelNetBw`), a power of two.
    """
    wanted = np.ceil(nic_Bps / _MESSAGE_CHANNEL_Bps)
    return float(2 ** np.ceil(np.log2(max(wanted, 1.0)))) / multiprocessors


_MESSAGE_CHANNEL_Bps = 14e9


def generation_of(architecture: str) -> Generation:
    """Of a GPU's generation; of others (AMD's, whose library is NCCL's child) the nearest in bandwidth, Hopper's."""
    return next((found for name, found in _GENERATIONS.items() if architecture.startswith(name)), _OTHERS)


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """What joins nodes, beside the line rate and the latency of a GPU's share of it.

    Attributes:
        share: of the line rate that large messages reach.
        log_error: of that, standard deviation of log(measured / predicted).
        nics_per_node: that the GPUs of a node have together.
        generation: of the GPUs.
        message_slows: computation, by this share while a message between nodes runs beside it; None: not known.
        simple_alone: NCCL runs no other protocol over it.
        trees_reach: of what trees over more than two nodes do by NCCL's own figures.
        sums_by_switches: small sums of float32 run by the tree of switches that sum.
    """

    share: float
    log_error: float
    nics_per_node: int
    generation: Generation
    message_slows: float | None = None
    simple_alone: bool = False
    trees_reach: float = 1.0
    sums_by_switches: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to run a collective. [G].

    Attributes:
        wait_s: of its steps, whatever the size.
        s_per_B: over the NICs, of a byte of the tensor.
        share: that the protocol reaches of NVLink.
        slower: than NCCL takes it for when it chooses, over the NICs.
    """

    wait_s: FloatArray
    s_per_B: FloatArray
    share: float
    slower: FloatArray | float = 1.0


@dataclass(frozen=True, kw_only=True)
class AcrossNodes:
    """Groups of ranks over several nodes, and how NCCL may run their collectives. [G].

    Attributes:
        n, local: ranks, and those in a node.
        nic_Bps: that messages of one GPU reach between nodes.
        channels: that a group has (`channels`).
        generation: of the GPUs.
        latency_scale: of the network's latency, over that whose steps are known.
        simple_alone, trees_reach, sums_by_switches: as of `Fabric`.
    """

    n: FloatArray
    local: FloatArray
    nic_Bps: float
    channels: FloatArray
    generation: Generation
    latency_scale: float
    simple_alone: bool = False
    trees_reach: float = 1.0
    sums_by_switches: bool = False

    def small_sum_s(self, *, grouped: bool) -> FloatArray:
        """What a small sum of float32 waits in the tree of switches that sum; 0 in groups that have none. [G]"""
        logs_s = np.log(_SMALL_SUM_s[grouped])
        waits_s = np.exp(np.interp(np.log(np.maximum(self._nodes, 1.0)), np.log(_SUM_NODES), logs_s))
        summed = self.sums_by_switches & (self._nodes > 1) & (self.local >= _LEAST_TO_SUM)
        return np.where(summed, waits_s, 0.0)

    def choices(self, turns: float) -> tuple[Choice, ...]:
        """Rings, and trees of all-reduces; `turns` 2 of an all-reduce, 1 of its halves."""
        return self._of_all_reduces if turns > 1 else self._of_halves

    @cached_property
    def _of_all_reduces(self) -> tuple[Choice, ...]:
        return (*self._rings(2.0), *self._trees())

    @cached_property
    def _of_halves(self) -> tuple[Choice, ...]:
        return tuple(self._rings(1.0))

    @property
    def _protocols(self) -> tuple[_Protocol, ...]:
        return (_SIMPLE,) if self.simple_alone else _PROTOCOLS

    @cached_property
    def _nodes(self) -> FloatArray:
        return np.asarray(self.n / self.local)

    def _rings(self, turns: float) -> Iterator[Choice]:
        steps, across = turns * (self.n - 1), turns * np.minimum(self._nodes, self.n - 1)
        sent = turns * (self.n - 1) / self.n
        for protocol in self._protocols:
            overhead_s, nic_s = (
                self.latency_scale * each for each in (protocol.overheads * _NIC_OVERHEAD_s, protocol.nic_s)
            )
            plateau = _PLATEAU if protocol is _SIMPLE and turns > 1 else 1.0
            limit_Bps = self._limit_Bps(protocol, {_LL128: (self.generation.ring_LL128_Bps,) * 2})
            yield Choice(
                wait_s=plateau * ((steps - across) * max(protocol.node_s, overhead_s) + across * nic_s),
                s_per_B=sent / np.minimum(self.local * self.nic_Bps * protocol.share, limit_Bps),
                share=protocol.share,
            )

    def _trees(self) -> Iterator[Choice]:
        """Up and down a tree of nodes, in each of which it is a chain."""
        two, hops = self._nodes <= 2, np.floor(np.log2(np.maximum(self._nodes, 1.0)))
        carried = np.where(two, 1.0, 2.0)  # over each NIC, over the tensor
        for protocol in self._protocols:
            nic_s = hops * self.latency_scale * protocol.tree_nic_s
            limits = {_SIMPLE: self.generation.tree_Bps, _LL128: self.generation.tree_LL128_Bps}
            limit_Bps = self._limit_Bps(protocol, limits)
            nics_Bps = self.local * self.nic_Bps * protocol.tree_share
            yield Choice(
                wait_s=2 * ((self.local - 1) * protocol.tree_node_s + nic_s),
                s_per_B=np.maximum(carried / nics_Bps, 2 / limit_Bps),
                share=protocol.tree_share,
                slower=np.where(two, 1.0, 1.0 / self.trees_reach),
            )

    def _limit_Bps(self, protocol: _Protocol, of_a_channel: Mapping[_Protocol, tuple[float, float]]) -> FloatArray:
        """Of all channels of a group together; of two nodes, and of more."""
        if protocol is _LL:
            return np.where(self._nodes <= 2, *_LL_Bps)
        if protocol not in of_a_channel:
            return np.full(len(self.n), np.inf)
        return np.asarray(self.channels * np.where(self._nodes <= 2, *of_a_channel[protocol]))

    def time_s(self, turns: float, size_B: FloatArray, inside_s: FloatArray) -> FloatArray:
        """Of the ring or tree that takes least, without its start.

        Args:
            turns: 2 of an all-reduce, 1 of its halves.
            size_B: of the full tensor.
            inside_s: what a ring's bytes take by NVLink alone.
        """
        choices = self.choices(turns)
        found = [_taken_s(choice, size_B, inside_s) for choice in choices]
        if self.trees_reach == 1.0:
            return np.asarray(np.minimum.reduce(found))
        chosen = np.argmin(found, axis=0)
        taken = [_taken_s(choice, size_B * choice.slower, inside_s) for choice in choices]
        return np.asarray(np.choose(chosen, taken))


def _taken_s(choice: Choice, size_B: FloatArray, inside_s: FloatArray) -> FloatArray:
    return np.asarray(choice.wait_s + np.maximum(choice.s_per_B * size_B, inside_s / choice.share))


def channels(local: FloatArray, gpus_per_node: int, fabric: Fabric, nic_Bps: float) -> FloatArray:
    """Of groups with so many ranks in a node: one a NIC that they have there, two of fast ones."""
    nics = np.maximum(np.floor(local * fabric.nics_per_node / gpus_per_node), 1.0)
    rate_Bps = nic_Bps * gpus_per_node / fabric.nics_per_node
    few = fabric.generation.splits_fast_nics | (nics <= _FEW_NICS) | (rate_Bps > _DOUBLED_BEYOND_FOUR_FROM_Bps)
    return np.asarray(np.where(few & (rate_Bps > _DOUBLED_FROM_Bps), 2 * nics, nics))
