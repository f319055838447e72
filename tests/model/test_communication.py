"""Who pays for which link: pipelines, experts and sharded data parallelism over several nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from moemodel.model.architecture import Architecture, Moe
from moemodel.model.communication import Communication
from moemodel.model.hf_config import read_architecture
from moemodel.model.machine import Machine
from moemodel.model.memory import Shard
from moemodel.model.network import Collective, Network
from moemodel.model.operators import Kind
from moemodel.model.plan import PlanBatch
from moemodel.model.predict import predict
from moemodel.model.workload import Workload

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
)
PARAMETERS = 1e9


@pytest.fixture(scope="module")
def olmoe() -> Architecture:
    return read_architecture("olmoe-1b-7b")


def talk(architecture: Architecture, plans: PlanBatch, network: Network = NODE) -> Communication:
    return Communication(architecture, plans, network, gradient_B=2.0)


def test_a_message_between_nodes_takes_one_nic() -> None:
    ranks, stride = np.array([16]), np.array([1])
    took = NODE.time_s(Collective.SEND_RECV, np.array([1e9]), ranks, NODE.route(ranks, stride))
    assert took == pytest.approx(1e9 / 50e9)


@pytest.mark.parametrize(("pp", "bandwidth"), [(8, 400e9), (16, 50e9)])
def test_a_pipeline_is_as_slow_as_its_slowest_boundary(
    olmoe: Architecture, batch: Batch, pp: int, bandwidth: float
) -> None:
    plans = batch(pp=pp, micro_batch=1)
    sent = talk(olmoe, plans).boundary().exposed_s
    assert sent == pytest.approx(plans.seq * olmoe.hidden * 2 / bandwidth)


def test_a_slow_network_slows_a_pipeline_over_two_nodes(olmoe: Architecture, batch: Batch, machine: Machine) -> None:
    plans = batch(pp=16)
    slow = replace(machine, network=replace(machine.network, nic_Bps=1e8))
    assert predict(olmoe, plans, slow).step_time_s > 2 * predict(olmoe, plans, machine).step_time_s


def test_tensor_parallel_ranks_share_the_rows_that_go_to_experts(olmoe: Architecture, batch: Batch) -> None:
    moe = olmoe.decoder[0].feed_forward
    assert isinstance(moe, Moe)
    fast_inside = replace(NODE, gpus_per_node=1024, node_Bps=1e30)
    across = replace(NODE, gpus_per_node=1)  # every rank a node of its own: all rows cross a NIC
    for tp in (1, 2, 4):
        plans = batch(dp=8, tp=tp, ep=8)
        assert talk(olmoe, plans, fast_inside)._experts(moe) == pytest.approx(0.0, abs=1e-9)
        rows_B = 2 * plans.micro_batch * plans.seq * moe.top_k * olmoe.hidden
        all_to_all = 2 * rows_B / tp * (7 / 8) / 50e9
        gathered = 2 * rows_B * (tp - 1) / tp / 50e9
        assert talk(olmoe, plans, across)._experts(moe) == pytest.approx(all_to_all + gathered)


def test_what_each_zero_stage_moves(olmoe: Architecture, batch: Batch) -> None:
    plans = batch(dp=8, micro_batch=1, global_batch=32, zero_stage=[0, 1, 2, 3])
    m = 4
    shard = Shard(dense=np.full(4, PARAMETERS), expert=np.zeros(4))
    once = 7 / 8 * 2 * PARAMETERS / 400e9  # a reduce-scatter or all-gather of bf16 elements
    moved = talk(olmoe, plans).gradients(shard, layers=16)
    assert moved.hideable_s == pytest.approx([2 * once, once, m * once, 3 * m * once])
    assert moved.exposed_s == pytest.approx([0.0, once, once, 0.0])


def test_zero_3_pays_the_start_of_a_collective_for_every_layer(olmoe: Architecture, batch: Batch) -> None:
    plans = batch(dp=8, micro_batch=1, global_batch=8, zero_stage=3)
    shard = Shard(dense=np.array([PARAMETERS]), expert=np.zeros(1))
    late = talk(olmoe, plans, replace(NODE, start_s=1e-3)).gradients(shard, layers=16)
    assert late.hideable_s - talk(olmoe, plans).gradients(shard, layers=16).hideable_s == pytest.approx(3 * 16 * 1e-3)


def test_sharded_gradients_cost_time_with_accumulation(olmoe: Architecture, batch: Batch, machine: Machine) -> None:
    plans = batch(dp=8, micro_batch=1, global_batch=64, zero_stage=[1, 2, 3])
    step = predict(olmoe, plans, machine).step_time_s
    assert step[0] < step[1] < step[2]


def test_the_busiest_rank_sets_the_time_and_the_mean_one_the_energy(olmoe: Architecture, batch: Batch) -> None:
    workload = Workload(olmoe, batch(dp=8, ep=8, skew=2.0), backend="torch", precision="bf16-mixed")
    experts = [call for call in workload.layer(olmoe.decoder[0]) if call.kind is Kind.GROUPED_GEMM]
    balanced = Workload(olmoe, batch(dp=8, ep=8, skew=1.0), backend="torch", precision="bf16-mixed")
    even = [call for call in balanced.layer(olmoe.decoder[0]) if call.kind is Kind.GROUPED_GEMM]
    assert experts
    for busy, mean in zip(experts, even, strict=True):
        assert np.asarray(busy.shape.m) > np.asarray(mean.shape.m)
        assert np.asarray(busy.shape.m) * busy.mean_share == pytest.approx(np.asarray(mean.shape.m))


def test_a_late_host_is_no_pipeline_bubble(batch: Batch, machine: Machine) -> None:
    opt = read_architecture("opt-350m")
    plans = batch(pp=2, micro_batch=1, global_batch=64, seq=128)
    slow_host = predict(opt, plans, machine)
    lanes = [lane.model_copy(update={"blocks": {}}) for lane in machine.calibration.host]
    quick = replace(machine, calibration=machine.calibration.model_copy(update={"host": lanes}))
    no_host = predict(opt, plans, quick)
    assert slow_host.host_wait_s > 0.1 * slow_host.step_time_s
    assert no_host.host_wait_s == 0
    assert slow_host.bubble_s == pytest.approx(no_host.bubble_s, rel=0.2)
