"""How rows get to experts, against routings that are drawn token by token, and ranks written down one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import comb
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.layers.routing import places_reached
from moemodel.model.network.collectives import Collective, Network
from moemodel.model.network.node_dispatch import HIDEABLE
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.dispatch import ALL_GATHER, ALL_TO_ALL, DEEPEP, EXPOSED, OVERLAPPED
from moemodel.model.predict.predict import predict
from moemodel.model.schedule.pipeline_layout import stages
from moemodel.model.step.layer_operators import Workload
from moemodel.model.step.memory import MemoryModel
from moemodel.model.step.microbatch_comm import Communication, Exchange
from moemodel.model.step.system import System

Batch = Callable[..., PlanBatch]
NODE = Network(
    gpus_per_node=8,
    node_Bps=400e9,
    nic_Bps=50e9,
    node_latency_s=0.0,
    nic_latency_s=0.0,
    efficiency=dict.fromkeys(Collective, 1.0),
    start_s=0.0,
    overlap=1.0,
    nic_dispatch_call_s=0.0,
    node_dispatch_call_s=0.0,
)
TOKENS = 4000  # drawn


@pytest.fixture(scope="module")
def olmoe() -> Architecture:
    """64 experts, 8 of a token, 2048 wide."""
    return read_architecture("olmoe-1b-7b")


def block(experts: int, top_k: int, *, groups: int = 1, best: int = 1) -> Moe:
    return Moe(experts=experts, top_k=top_k, width=64, activation="silu", gated=True, groups=groups, top_groups=best)


def drawn(moe: Moe, groups: int, best: int) -> NDArray[np.int64]:
    """Experts of tokens, [T, k]: of random scores the best, of the groups whose best two add up to most."""
    scores = np.random.default_rng(7).standard_normal((TOKENS, moe.experts))
    by_group = np.sort(scores.reshape(TOKENS, groups, -1), axis=2)[:, :, -2:].sum(axis=2)
    kept = np.argsort(-by_group, axis=1)[:, :best]
    allowed = (np.arange(groups)[None, :, None] == kept[:, None, :]).any(axis=2)
    scores[~np.repeat(allowed, moe.experts // groups, axis=1)] = -np.inf
    return np.argsort(-scores, axis=1)[:, : moe.top_k]


def reached(moe: Moe, places: int, *, nodes: int = 1, limit: int = 0) -> float:
    nodes_P, limit_P = np.array([float(nodes)]), np.array([float(limit)])
    return float(places_reached(moe, np.array([float(places)]), nodes=nodes_P, node_limit=limit_P)[0])


# ---- which places rows go to ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experts", "top_k", "groups", "best", "places"),
    [
        *[(256, 8, 8, 4, places) for places in (2, 4, 8, 16, 64)],
        *[(64, 6, 8, 3, places) for places in (2, 8, 16)],
        *[(64, 8, 1, 1, places) for places in (1, 2, 8, 64)],
        *[(256, 8, 8, 6, places) for places in (4, 8, 16)],
        (16, 2, 4, 2, 4),
    ],
)
def test_places_are_those_of_drawn_routings(experts: int, top_k: int, groups: int, best: int, places: int) -> None:
    moe = block(experts, top_k, groups=groups, best=best)
    there = drawn(moe, groups, best) // (experts // places)
    counted = np.mean([len(set(row)) for row in there.tolist()])
    assert reached(moe, places) == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize("places", [1, 2, 4, 8])
def test_places_without_groups_are_those_of_drawing_without_repetition(places: int) -> None:
    """n (1 - C(E - E/n, k) / C(E, k))."""
    moe = block(64, 8)
    missed = comb(64 - 64 // places, 8) / comb(64, 8)
    assert reached(moe, places) == pytest.approx(places * (1 - missed))


def test_a_plans_limit_makes_groups_of_nodes() -> None:
    free, grouped = block(256, 8), block(256, 8, groups=8, best=4)
    assert reached(free, 8, nodes=8, limit=4) == pytest.approx(reached(grouped, 8))
    assert reached(free, 8, nodes=8, limit=8) == reached(free, 8)  # no limit
    assert reached(free, 8, nodes=8, limit=1) == pytest.approx(1)
    counts = [reached(free, 8, nodes=8, limit=limit) for limit in range(1, 9)]
    assert counts == sorted(counts)


# ---- bytes ----------------------------------------------------------------------------------------------------------


def talk(architecture: Architecture, plans: PlanBatch, network: Network = NODE, **facts: Any) -> Communication:
    framework = replace(framework_of("megatron-core"), **facts)
    return Communication(architecture, plans, network, framework=framework, precision="bf16-mixed")


def rows(architecture: Architecture, plans: PlanBatch, network: Network = NODE, **facts: Any) -> Exchange:
    """Forward, of one layer."""
    return talk(architecture, plans, network, **facts).layer(architecture.layers[0], axis="ep")[0]


def counted_B(moe: Moe, ranks: int, local: int, *, once: bool) -> tuple[float, float]:
    """Copies of a row that a rank sends over its NIC, and over NVLink, forwarded ones too, by counting drawn tokens:
    token t is of rank t mod `ranks`; a copy over a NIC comes in where the sender's place is on that node."""
    per_rank, nic, nvlink = moe.experts // ranks, 0, 0
    for token, experts in enumerate(drawn(moe, moe.groups, moe.top_groups).tolist()):
        own = token % ranks
        there = [expert // per_rank for expert in experts]
        if not once:
            nic += sum(rank // local != own // local for rank in there)
            nvlink += sum(rank // local == own // local and rank != own for rank in there)
            continue
        for node in {rank // local for rank in there}:
            nic += node != own // local
            landed = node * local + own % local
            nvlink += sum(rank != landed for rank in set(there) if rank // local == node)
    return nic / TOKENS, nvlink / TOKENS


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_rows_that_go_to_a_node_once(olmoe: Architecture, batch: Batch, nodes: int) -> None:
    """On links of which one is infinitely fast, the time is that of the bytes that drawn tokens send over the other."""
    plans = batch(dp=8 * nodes, ep=8 * nodes, dispatch=DEEPEP)
    moe = olmoe.layers[0].feed_forward
    assert isinstance(moe, Moe)
    nic, nvlink = counted_B(moe, 8 * nodes, 8, once=True)
    row_B = 2.0 * olmoe.hidden * plans.micro_batch[0] * plans.seq[0]
    slow_nic, slow_links = replace(NODE, node_Bps=1e30), replace(NODE, nic_Bps=1e30)
    over_nic, over_links = (rows(olmoe, plans, network) for network in (slow_nic, slow_links))
    assert over_links.exposed_s[0] == pytest.approx(2 * row_B * nvlink / (0.7 * 400e9), rel=0.02)
    assert over_nic.exposed_s[0] == pytest.approx(2 * row_B * nic / (0.9 * 50e9), rel=0.02)
    both = rows(olmoe, plans)  # at once: the longer takes time, the shorter energy
    whole = over_nic.exposed_s[0] + over_links.exposed_s[0]
    assert both.exposed_s[0] == pytest.approx(max(over_nic.exposed_s[0], over_links.exposed_s[0]))
    assert np.sum(both.exposed_s + both.beside_s) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("nodes", "link_Bps", "there_GBps", "back_GBps"),
    # of DeepEP's branch hybrid-ep, docs/README_Hybrid-EP.md: "Torch API" in 16 bits, GB200 with 32 SMs, 8 ranks
    [(1, 900e9, 545.71, 568.94)],
)
def test_calls_take_about_as_long_as_hybrid_ep_states(
    olmoe: Architecture, batch: Batch, nodes: int, link_Bps: float, there_GBps: float, back_GBps: float
) -> None:
    """What it counts of the own rank is in its bandwidth: rows that are drawn go to so many ranks, that one too."""
    moe = olmoe.layers[0].feed_forward
    assert isinstance(moe, Moe)
    network = replace(NODE, node_Bps=link_Bps, nic_dispatch_call_s=0.48e-3, node_dispatch_call_s=0.14e-3)
    # as many bytes a rank as 4,096 rows of 7,168
    rows_of_2048 = 4096 * 7168 // 2048
    plans = batch(dp=8 * nodes, ep=8 * nodes, dispatch=DEEPEP, seq=rows_of_2048, micro_batch=1)
    _, nvlink = counted_B(moe, 8 * nodes, 8, once=True)
    ranks_reached = nvlink * 8 / 7
    whole_B = 2.0 * 4096 * 7168 * ranks_reached
    stated_s = whole_B / (there_GBps * 1e9) + whole_B / (back_GBps * 1e9)
    assert rows(olmoe, plans, network).exposed_s[0] == pytest.approx(stated_s, rel=0.1)


def test_every_copy_by_itself_is_what_drawn_tokens_send(olmoe: Architecture, batch: Batch) -> None:
    plans = batch(dp=32, ep=32)
    moe = olmoe.layers[0].feed_forward
    assert isinstance(moe, Moe)
    nic, _ = counted_B(moe, 32, 8, once=False)
    row_B = 2.0 * olmoe.hidden * plans.micro_batch[0] * plans.seq[0]
    assert rows(olmoe, plans).exposed_s[0] == pytest.approx(2 * row_B * nic / 50e9, rel=0.02)


def test_a_router_that_keeps_to_a_few_nodes(olmoe: Architecture, batch: Batch) -> None:
    plans = batch(dp=64, ep=64, dispatch=DEEPEP, node_limit=[1, 2, 4, 0])
    slow = replace(NODE, node_Bps=1e30)
    times = rows(olmoe, plans, slow).exposed_s
    assert times[1:3] / times[0] == pytest.approx([2, 4], rel=0.01)
    assert times[2] < times[3]


def test_all_tokens_to_all_ranks(olmoe: Architecture, batch: Batch) -> None:
    """A ring over 8 ranks: 7/8 of all tokens, with five bytes of each expert on the way there."""
    exchange = rows(olmoe, batch(dp=8, ep=8, dispatch=ALL_GATHER))
    tokens = 8 * 2048 * float(batch(dp=8, ep=8).micro_batch[0])
    there_B, back_B = tokens * (2 * olmoe.hidden + 5 * 64), tokens * 2 * olmoe.hidden
    assert exchange.exposed_s[0] == pytest.approx(7 / 8 * (there_B + back_B) / 400e9)


def test_rows_in_eight_bits_go_there_and_come_back_in_sixteen(olmoe: Architecture, batch: Batch) -> None:
    slow = replace(NODE, node_Bps=1e30)
    for dispatch in (ALL_TO_ALL, DEEPEP):
        plans = batch(dp=64, ep=64, dispatch=dispatch)
        wide, narrow = (rows(olmoe, plans, slow, dispatched_B=size_B).exposed_s[0] for size_B in (None, 1 + 4 / 128))
        assert narrow / wide == pytest.approx((1 + 4 / 128 + 2) / 4)


def test_rows_of_cut_experts_go_to_all_their_ranks(olmoe: Architecture, batch: Batch) -> None:
    """Two ranks of an expert get twice the copies; by all-to-all they share them out behind it."""
    slow = replace(NODE, nic_Bps=1e30)
    once = rows(olmoe, batch(dp=8, ep=8, etp=[1], dispatch=DEEPEP), slow).exposed_s[0]
    twice = rows(olmoe, batch(dp=8, ep=4, etp=[2], dispatch=DEEPEP), slow).exposed_s[0]
    moe = block(64, 8)
    assert twice / once == pytest.approx(2 * reached(moe, 4) / reached(moe, 8))
    shared = rows(olmoe, batch(dp=8, ep=4, etp=2), slow).exposed_s[0]
    row_B = 8 * 2.0 * olmoe.hidden * batch(dp=8).micro_batch[0] * 2048
    assert shared == pytest.approx((2 * 3 / 4 * row_B + 2 * 1 / 2 * 2 * row_B) / 400e9)


# ---- behind another micro-batch -------------------------------------------------------------------------------------


def test_rows_behind_another_micro_batch(olmoe: Architecture, batch: Batch) -> None:
    """All but the first forward and the last backward pass have another micro-batch's beside them."""
    plans = batch(dp=8, ep=8, global_batch=8 * 4, dispatch=DEEPEP, dispatch_overlap=[0, EXPOSED, OVERLAPPED])
    exchange = rows(olmoe, plans, replace(NODE, overlap=0.5))
    whole_s = exchange.whole_s
    m = plans.micro_batches.astype(float)
    assert whole_s == pytest.approx(np.full(3, whole_s[0]))
    assert exchange.overlappable.time_s == pytest.approx(whole_s * [0, 0, 1 - 1 / m[2]])
    assert exchange.overlappable.hideable_s == pytest.approx(HIDEABLE * exchange.overlappable.time_s)


def test_one_micro_batch_has_none_beside_it(olmoe: Architecture, batch: Batch) -> None:
    plans = batch(dp=8, ep=8, global_batch=8, micro_batch=1, dispatch_overlap=OVERLAPPED)
    assert rows(olmoe, plans).overlappable.time_s == [0]


# ---- what does not change -------------------------------------------------------------------------------------------


def test_what_a_framework_does_may_be_said(olmoe: Architecture, batch: Batch, machine: System) -> None:
    """`etp` of tp for Megatron-LM, of 1 for Megatron Core: the same prediction."""
    for backend, etp in (("megatron", 2), ("megatron-core", 1)):
        system = replace(machine, framework=framework_of(backend))
        plans = batch(dp=4, tp=2, ep=4, sequence_parallel=1, etp=[0, etp], dispatch=ALL_TO_ALL)
        found = predict(olmoe, plans, system)
        for name in ("step_time_s", "energy_J", "memory_B"):
            first, second = getattr(found, name)
            assert first == second, (backend, name)


@pytest.mark.parametrize("etp", [1, 2, 4])
def test_cut_experts_hold_and_do_as_much(olmoe: Architecture, batch: Batch, machine: System, etp: int) -> None:
    """ep x etp of 8 in all: parameters and products on a GPU stay; the router's stay, too."""
    framework, stage = framework_of("megatron-core"), stages(olmoe, 1, 1)[0]
    whole, cut = (
        batch(dp=4, tp=2, ep=8, sequence_parallel=1),
        batch(dp=4, tp=2, ep=8 // etp, etp=etp, sequence_parallel=1),
    )
    shards, products = [], []
    for plans in (whole, cut):
        memory = MemoryModel(olmoe, plans, framework=framework, precision="bf16-mixed", calibration=machine.calibration)
        shards.append((memory.shard(stage).expert[0], memory.owned(memory.shard(stage))[0]))
        found = Workload(olmoe, plans, framework=framework, precision="bf16-mixed").layer(olmoe.layers[0])
        shapes = [(c.kind, c.shape.arrays()) for c in found if c.direction is Pass.FORWARD]
        products.append(
            [
                float(sum((s["m"] * s["n"] * s["k"]).item() for kind, s in shapes if kind is wanted))
                for wanted in (Kind.GROUPED_GEMM, Kind.GEMM)
            ]
        )
    assert shards[1] == pytest.approx(shards[0])
    assert products[1] == pytest.approx(products[0])


def test_forwarded_bytes_take_energy(olmoe: Architecture, batch: Batch, machine: System) -> None:
    """NICs and links inside nodes move at once; the energy of communication is that of both."""
    network = replace(machine.network, nic_Bps=5e9, gpus_per_node=8)
    system = replace(machine, framework=framework_of("megatron-core"), network=network)
    plans = batch(dp=64, ep=64, dispatch=DEEPEP)
    found = predict(olmoe, plans, system)
    comm = Communication(olmoe, plans, network, framework=system.framework, precision=system.precision)
    both = [comm.layer(layer) for layer in olmoe.layers]
    beside_s = sum(float(np.sum(one.beside_s)) for pair in both for one in pair) * float(plans.micro_batches[0])
    link_W = machine.calibration.network.parameters["link_power"].value
    assert beside_s > 0
    free = replace(network, node_Bps=1e30)
    without = predict(olmoe, plans, replace(system, network=free))
    more_J = float((found.communication_J - without.communication_J)[0]) / 64
    assert found.step_time_s == pytest.approx(without.step_time_s, rel=1e-3)
    assert more_J == pytest.approx(beside_s * link_W, rel=0.05)  # and what the warmer die leaks
