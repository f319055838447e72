"""Keys and values around a ring: against rings that are walked step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.network.across_nodes import Fabric, generation_of, message_slows
from moemodel.model.network.collectives import Collective, Network
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.predict.predict import predict
from moemodel.model.step.microbatch_comm import Attention, Communication, Exchange
from moemodel.model.step.system import System
from tests.networks import NODE

Batch = Callable[..., PlanBatch]

SLOWED = Fabric(
    share=1.0,
    log_error=0.0,
    nics_per_node=8,
    generation=generation_of("hopper"),
    message_slows=message_slows(50e9, 128),
)


@pytest.fixture(scope="module")
def llama() -> Architecture:
    return read_architecture("llama-3-8b")


def ring(
    llama: Architecture, plans: PlanBatch, forward_s: float, backward_s: float, network: Network = NODE
) -> tuple[Exchange, Exchange]:
    """What a layer sends around its ring, beside attention of that length."""
    comm = Communication(llama, plans, network, framework=framework_of("megatron-core"), precision="bf16-mixed")
    attention = Attention(forward_s=np.array([forward_s]), backward_s=np.array([backward_s]))
    return comm.layer(llama.layers[0], axis="cp", attention=attention)


def message_s(plans: PlanBatch, bandwidth_Bps: float = 400e9) -> float:
    """Keys and values of a rank's tokens: 8 heads of 128 each, in bf16."""
    return float(2 * 2 * 8 * 128 * plans.seq[0] / plans.cp[0] / bandwidth_Bps)


def walked_s(blocks: int, block_s: float, messages_s: list[float]) -> float:
    """A pass of so many blocks, of which each takes a message beside it, if there is one left."""
    beside = messages_s + [0.0] * (blocks - len(messages_s))
    return sum(max(block_s, sent_s) for sent_s in beside)


@pytest.mark.parametrize("cp", [2, 4, 8])
@pytest.mark.parametrize("longer", [0.0, 0.3, 1.2, 3.0])
def test_a_ring_that_is_walked(llama: Architecture, batch: Batch, cp: int, longer: float) -> None:
    plans = batch(cp=cp, seq=65536, micro_batch=1)
    sent_s = message_s(plans)
    block_s = longer * sent_s
    there, back = ring(llama, plans, cp * block_s, 2 * cp * block_s)
    forward = walked_s(cp, block_s, [sent_s] * (cp - 1))
    backward = walked_s(cp, 2 * block_s, [sent_s, *[2 * sent_s] * (cp - 2), sent_s])
    for exchange, took_s, computed_s in ((there, forward, cp * block_s), (back, backward, 2 * cp * block_s)):
        shown_s = exchange.overlappable.time_s - exchange.overlappable.hideable_s + exchange.exposed_s
        assert computed_s + shown_s[0] == pytest.approx(took_s)
    assert there.overlappable.time_s[0] == pytest.approx((cp - 1) * sent_s)
    assert back.overlappable.time_s[0] == pytest.approx(2 * (cp - 1) * sent_s)


@pytest.mark.parametrize("cp", [2, 8])
def test_torch_gathers_keys_and_passes_gradients_on(llama: Architecture, batch: Batch, cp: int) -> None:
    """Attention of half an all-gather a block: half of it hides; gradients are as wide as two messages, of float32."""
    plans = batch(cp=cp, seq=65536, micro_batch=1)
    one_s = message_s(plans)
    gathered_s = (cp - 1) * one_s  # of c shards, c - 1 come from others
    comm = Communication(llama, plans, NODE, framework=framework_of("torch"), precision="bf16-mixed")
    short = Attention(forward_s=np.array([cp * gathered_s / 2]), backward_s=np.array([cp * gathered_s / 2]))
    there, back = comm.layer(llama.layers[0], axis="cp", attention=short)
    assert there.overlappable.time_s[0] == pytest.approx(gathered_s)
    assert there.overlappable.hideable_s[0] == pytest.approx(gathered_s / 2)
    assert back.overlappable.time_s[0] == pytest.approx(gathered_s + cp * 2 * one_s)
    hidden_s = gathered_s / 2 + (cp - 1) * min(2 * one_s, gathered_s / 2)
    assert back.overlappable.hideable_s[0] == pytest.approx(hidden_s)


def test_messages_between_nodes_take_their_channels_of_the_gpu(llama: Architecture, batch: Batch) -> None:
    """4 channels of 14 GB/s for a NIC of 50 GB/s, of 128 multiprocessors; inside a node what was measured."""
    network = replace(NODE, overlap=0.5, fabric=SLOWED)
    outside = batch(cp=2, tp=8, seq=65536, micro_batch=1)
    there, _ = ring(llama, outside, 1e3, 1e3, network)
    # tensor-parallel ranks have a head of keys and of values each
    assert there.overlappable.time_s[0] == pytest.approx(message_s(outside, 50e9) / 8)
    assert there.overlappable.hideable_s[0] == pytest.approx((1 - 4 / 128) * there.overlappable.time_s[0])
    inside, _ = ring(llama, batch(cp=2, seq=65536, micro_batch=1), 1e3, 1e3, network)
    assert inside.overlappable.hideable_s[0] == pytest.approx(0.5 * inside.overlappable.time_s[0])


@pytest.mark.parametrize(("nic_Bps", "taken"), [(12.5e9, 1), (25e9, 2), (50e9, 4), (100e9, 8)])
def test_channels_of_a_message(nic_Bps: float, taken: int) -> None:
    assert message_slows(nic_Bps, 100) == pytest.approx(taken / 100)


def test_long_sequences_hide_their_rings(llama: Architecture, batch: Batch, machine: System) -> None:
    """Attention grows with the square of the sequence, messages with the sequence."""
    shares = []
    for seq in (8192, 32768, 131072):
        found = predict(llama, batch(cp=4, tp=4, seq=seq, micro_batch=1, dp=1), machine)
        alone = predict(llama, batch(cp=4, tp=4, seq=seq, micro_batch=1, dp=1), _free_rings(machine))
        shares.append(float((found.step_time_s / alone.step_time_s)[0]) - 1)
    assert shares[0] > shares[1] > shares[2] > 0


def _free_rings(machine: System) -> System:
    """Messages between nodes that cost nothing but their step."""
    free = {
        "internode_efficiency": {Collective.SEND_RECV: 1e9},
        "internode_launch_latencies_s": {Collective.SEND_RECV: 0},
    }
    return replace(machine, network=replace(machine.network, **free))
