"""Who pays for which link: pipelines, experts and sharded data parallelism over several nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.core.arrays import FloatArray
from moemodel.model.frameworks.base import OverlapAxis
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.layers.registry import block_of
from moemodel.model.network.collectives import Collective, Network
from moemodel.model.operators.work import Kind
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.schedule import registry
from moemodel.model.schedule.base import Sizes
from moemodel.model.schedule.pipeline_layout import stages
from moemodel.model.step.communication_groups import Groups
from moemodel.model.step.data_parallel import DataParallel, ExchangeCounts, FsdpUnits
from moemodel.model.step.layer_operators import Workload
from moemodel.model.step.memory import MemoryModel
from moemodel.model.step.microbatch_comm import Communication
from moemodel.model.step.system import System
from tests.networks import NODE

Batch = Callable[..., PlanBatch]

PARAMETERS = 1e9
NAMES = ("torch", "megatron")


@pytest.fixture(scope="module")
def olmoe() -> Architecture:
    return read_architecture("olmoe-1b-7b")


def talk(architecture: Architecture, plans: PlanBatch, network: Network = NODE) -> Communication:
    return Communication(architecture, plans, network, framework=framework_of("megatron"), precision="bf16-mixed")


def dispatch_s(comm: Communication, moe: Moe, *overlap: str) -> FloatArray:
    """Forward time of what a block of experts sends; of what overlaps in one way alone, if that is named."""
    sent = block_of(moe, comm.architecture.hidden).collectives(comm.batch)
    return comm.priced(each for each in sent if not overlap or each.overlap in overlap)[0].exposed_s


def data(
    plans: PlanBatch, overlapped: frozenset[OverlapAxis], network: Network = NODE, *, torch: bool = True
) -> DataParallel:
    framework = replace(framework_of("torch" if torch else "megatron"), overlapped=overlapped)
    groups = Groups(plans, network, shards_experts=framework.shards_experts)
    return DataParallel(plans, groups, framework=framework, precision="bf16")


def counts(plans: PlanBatch, stage: int = 0) -> ExchangeCounts:
    return ExchangeCounts.of(plans, framework_of("torch"), stage)


def units(layers: int, *, ends: float = 0.0, embedding_parameters: float = 0.0, expert: float = 0.0) -> FsdpUnits:
    """A billion parameters in layers."""
    dense, experts, beside, last = (np.array([n]) for n in (PARAMETERS, expert, ends, embedding_parameters))
    return FsdpUnits(layers=layers, dense=dense, expert=experts, ends=beside, embedding_parameters=last)


def test_a_message_between_nodes_takes_one_nic() -> None:
    ranks, stride = np.array([16]), np.array([1])
    took = NODE.time_s(Collective.SEND_RECV, np.array([1e9]), ranks, NODE.route(ranks, stride))
    assert took == pytest.approx(1e9 / 50e9)


@pytest.mark.parametrize(("pp", "bandwidth"), [(8, 400e9), (16, 50e9)])
def test_a_pipeline_is_as_slow_as_its_slowest_boundary(
    olmoe: Architecture, batch: Batch, pp: int, bandwidth: float
) -> None:
    plans = batch(pp=pp, micro_batch=1)
    sent = talk(olmoe, plans).pipeline_p2p(first=True, last=False)[0].exposed_s
    assert sent == pytest.approx(plans.seq * olmoe.hidden * 2 / bandwidth)


def test_a_slow_network_slows_a_pipeline_over_two_nodes(olmoe: Architecture, batch: Batch, machine: System) -> None:
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
        assert dispatch_s(talk(olmoe, plans, fast_inside), moe) == pytest.approx(0.0, abs=1e-9)
        rows_B = 2 * plans.micro_batch * plans.seq * moe.top_k * olmoe.hidden
        all_to_all = 2 * rows_B / tp * (7 / 8) / 50e9
        gathered = 2 * rows_B * (tp - 1) / tp / 50e9
        assert dispatch_s(talk(olmoe, plans, across), moe) == pytest.approx(all_to_all + gathered)


# ---- ends of the model and of stages ----


@pytest.mark.parametrize("backend", ["torch", "megatron"])
def test_a_cut_vocabulary_is_summed(olmoe: Architecture, batch: Batch, backend: str) -> None:
    """The embedding's output, the head's gradient, and three float32 numbers of every token for the loss."""
    plans = batch(tp=4, micro_batch=2, sequence_parallel=[0, 1])
    ends = Communication(olmoe, plans, NODE, framework=framework_of(backend), precision="bf16-mixed")
    tokens = 2 * 2048
    half = 3 / 4 * 2 * tokens * olmoe.hidden / 400e9  # an all-gather or reduce-scatter
    loss = 2 * 3 / 4 * 3 * 4 * tokens / 400e9
    (embed, embed_back), (head, head_back) = ends.embedding(), ends.head()
    assert embed.exposed_s == pytest.approx([2 * half, half])
    assert embed_back.exposed_s == pytest.approx([0, half])
    assert head.exposed_s == pytest.approx([loss, half + loss])
    assert head_back.exposed_s == pytest.approx([2 * half, half])
    assert head.calls.total.tolist() == [2, 3]


def test_norms_over_all_queries_are_summed(olmoe: Architecture, batch: Batch) -> None:
    plans = batch(tp=2)
    ours, megatron = (
        Communication(olmoe, plans, NODE, framework=framework_of(name), precision="bf16-mixed").layer(olmoe.layers[0])[
            0
        ]
        for name in NAMES
    )
    assert ours.exposed_s - megatron.exposed_s == pytest.approx(2 * 1 / 2 * 2 * 4 * 2048 / 400e9)


def test_every_rank_sends_its_rows(olmoe: Architecture, batch: Batch) -> None:
    """In `profiler/backends/torch_native` tp does not share out the rows of experts; counts go before them."""
    plans = batch(dp=8, ep=8, tp=[1, 2])
    moe = olmoe.decoder[0].feed_forward
    assert isinstance(moe, Moe)
    rows_B = 2 * 2048 * moe.top_k * olmoe.hidden
    sent = Communication(
        olmoe, plans, replace(NODE, gpus_per_node=1024), framework=framework_of("torch"), precision="bf16-mixed"
    )
    counts_s = 8 * 64 * 7 / 8 / 400e9
    assert dispatch_s(sent, moe) == pytest.approx(2 * rows_B * 7 / 8 / 400e9 + counts_s)
    assert dispatch_s(sent, moe, "never") == pytest.approx(counts_s)


def test_how_messages_between_stages_are_waited_for(olmoe: Architecture, batch: Batch) -> None:
    """1F1B: behind a pass, with who is there; GPipe: before one; interleaved and zero-bubble: on the way alone."""
    plans = batch(pp=4, virtual_stages=[1, 1, 2, 1], schedule=[0, 1, 0, 2])
    talk = Communication(olmoe, plans, NODE, framework=framework_of("torch"), precision="bf16-mixed")
    one = 2 * 2048 * olmoe.hidden / 400e9
    first, middle, last = (
        talk.pipeline_p2p(first=f, last=z) for f, z in ((True, False), (False, False), (False, True))
    )
    assert [there.exposed_s / one for there, _ in (first, middle, last)] == [
        pytest.approx(row) for row in ([1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0])
    ]
    assert [back.exposed_s / one for _, back in (first, middle, last)] == [
        pytest.approx(row) for row in ([0, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0])
    ]
    assert talk.pipeline_fill_comm_s() / one == pytest.approx([0, 0, 2 * 7, 2 * 3])


def test_the_norm_goes_up_and_down_a_tree(olmoe: Architecture, batch: Batch) -> None:
    """A ring over thousands of ranks would take longer than the step."""
    slow = replace(NODE, nic_latency_s=5e-6, node_latency_s=1e-6, start_s=2e-5)
    took = talk(olmoe, batch(dp=[1, 8, 8192], global_batch=8192), slow).norm_s()
    assert took == pytest.approx([0, 2e-5 + 6 * 1e-6, 2e-5 + 26 * 5e-6])


# ---- data parallelism ----


NONE: frozenset[OverlapAxis] = frozenset()
BEHIND: frozenset[OverlapAxis] = frozenset({"parameters", "gradients"})
ONCE = 7 / 8 * 2 * PARAMETERS / 400e9  # a reduce-scatter or all-gather of bf16 elements over eight GPUs


def test_what_each_zero_stage_moves(batch: Batch) -> None:
    """Gathers, scatters and reductions of four micro-batches; by units, the ends are not gathered again."""
    plans = batch(dp=8, micro_batch=1, global_batch=32, zero_stage=[0, 1, 2, 3])
    inner, ends, m = ONCE, 0.1 * ONCE, 4
    both = inner + ends
    for overlapped, again in ((NONE, both), (BEHIND, inner)):
        moved = data(plans, overlapped).step(
            units(16, ends=0.1 * PARAMETERS, embedding_parameters=0.1 * PARAMETERS), counts(plans)
        )
        assert moved.whole_s == pytest.approx([2 * both, 2 * both, (1 + m) * both, 2 * m * both + m * again])
        assert moved.forward_passes.tolist() == [1, 1, 1, m]
        assert moved.backward_passes.tolist() == [1, 1, m, m]


def test_nothing_hides_where_the_framework_hides_nothing(batch: Batch) -> None:
    plans = batch(dp=8, zero_stage=[0, 1, 2, 3])
    moved = data(plans, NONE).step(units(16), counts(plans))
    assert (moved.forward.time_s == 0).all()
    assert (moved.backward.time_s == 0).all()


def test_what_begins_and_ends_a_pass_shows(batch: Batch) -> None:
    """ZeRO 1 to 3 by layers and ends: one layer and the ends at either side of every pass that gathers or scatters."""
    m, layers = 4, 16
    plans = batch(dp=8, micro_batch=1, global_batch=8 * m, zero_stage=[1, 2, 3])
    layer, ends = ONCE / layers, 0.2 * ONCE
    moved = data(plans, BEHIND).step(units(layers, ends=0.2 * PARAMETERS), counts(plans))
    one = layer + ends
    rest = (layers - 1) * layer
    assert moved.exposed_s == pytest.approx([2 * one, (1 + m) * one, 2 * m * one])
    assert moved.forward.time_s == pytest.approx([rest, rest, m * rest])
    assert moved.backward.time_s == pytest.approx([rest, m * rest, m * (rest + layers * layer)])


def test_the_last_bucket_shows(batch: Batch) -> None:
    """Half a bucket, and the embedding, whose gradient comes last."""
    plans = batch(dp=8)
    bucket_s = 2 * 7 / 8 * 25 * 2**20 / 400e9
    for embedding_parameters in (0.0, 1e8):
        moved = data(plans, BEHIND).step(units(16, ends=2e8, embedding_parameters=embedding_parameters), counts(plans))
        assert moved.exposed_s == pytest.approx(bucket_s / 2 + 2 * ONCE * embedding_parameters / PARAMETERS)
        assert moved.backward.time_s + moved.exposed_s == pytest.approx(2 * ONCE * 1.2)


def test_buckets_and_layers_start_collectives(batch: Batch) -> None:
    plans = batch(dp=8, zero_stage=[0, 3], global_batch=8)
    slow = replace(NODE, start_s=1e-3)
    moved, embedding_parameters = (
        data(plans, BEHIND, network).step(units(16), counts(plans)) for network in (NODE, slow)
    )
    buckets = (2 * PARAMETERS - 25 * 2**20 / 2) / (25 * 2**20)
    assert embedding_parameters.whole_s - moved.whole_s == pytest.approx([(buckets + 1) * 1e-3, 3 * 16 * 1e-3])
    assert embedding_parameters.buckets.tolist() == pytest.approx([buckets + 1, 0])
    assert embedding_parameters.units.tolist() == [0, 16]


def test_experts_on_other_ranks_are_summed_when_all_is_done(batch: Batch) -> None:
    plans = batch(dp=8, ep=[1, 4])
    experts = replace(units(16, expert=PARAMETERS), dense=np.zeros(1))
    moved = data(plans, BEHIND).step(experts, counts(plans))
    assert moved.backward.time_s[0] > 0
    assert moved.backward.time_s[1] == 0
    assert moved.exposed_s[1] == pytest.approx(2 * 1 / 2 * 2 * PARAMETERS / 400e9)


def test_what_a_pipeline_exchanges_when_all_passes_are_done(batch: Batch) -> None:
    """Scattered gradients, and those of backward passes in two parts."""
    plans = batch(dp=8, pp=2, zero_stage=[0, 0, 1], schedule=[0, 2, 0])
    moved = data(plans, BEHIND).step(units(16), counts(plans))
    assert (moved.backward.time_s > 0).tolist() == [True, False, False]
    assert moved.whole_s == pytest.approx([2 * ONCE] * 3)


@pytest.mark.parametrize(("schedule", "n", "m", "v"), [("1f1b", 4, 8, 1), ("1f1b", 4, 3, 1), ("gpipe", 4, 8, 1)])
@pytest.mark.parametrize("runs", [1, 3])
def test_under_zero_3_a_pipeline_gathers_what_a_forward_pass_freed(
    batch: Batch, schedule: str, n: int, m: int, v: int, runs: int
) -> None:
    """Its order walked: a forward pass frees what it needed, a backward pass leaves it, the last one does not."""
    plans = batch(
        dp=8,
        pp=n,
        zero_stage=3,
        schedule=registry.number(schedule),
        micro_batch=1,
        global_batch=8 * m * runs,
        micro_batches_per_schedule=m,
    )
    for stage in range(n):
        gathers = {"F": 0, "B": 0}
        for _ in range(runs):
            there = False
            for work in registry.find(schedule, v).order(stage, Sizes(stages=n, virtual=v, micro_batches=m)):
                gathers[work.kind] += not there
                there = work.kind == "B"
        found = counts(plans, stage)
        assert (found.gathers_forward.item(), found.gathers_backward.item()) == (gathers["F"], gathers["B"])
        assert found.reductions.item() == runs


def test_every_run_of_a_schedule_reduces_and_fills_its_pipeline(olmoe: Architecture, batch: Batch) -> None:
    once, four = (
        batch(
            dp=8,
            pp=4,
            zero_stage=[0, 1],
            schedule=[2, 2],
            micro_batch=1,
            global_batch=8 * 16,
            micro_batches_per_schedule=of_one,
        )
        for of_one in (16, 4)
    )
    for plans, runs in ((once, 1), (four, 4)):
        moved = data(plans, BEHIND).step(units(16), counts(plans))
        assert moved.whole_s == pytest.approx([runs * 2 * ONCE, runs * 2 * ONCE])
        fill = Communication(olmoe, plans, NODE, framework=framework_of("torch"), precision="bf16-mixed")
        assert fill.pipeline_fill_comm_s() == pytest.approx(runs * 2 * 3 * 2 * 2048 * olmoe.hidden / 50e9)


def test_gradients_that_a_pipeline_keeps_whole_are_added_up_whole(
    olmoe: Architecture, batch: Batch, calibration: Calibration
) -> None:
    """ZeRO 2 in a pipeline of torch scatters as ZeRO 1 does, so nothing it does with gradients is less."""
    plans = batch(dp=8, pp=4, zero_stage=[1, 2], micro_batch=1, global_batch=64)
    memory = MemoryModel(olmoe, plans, framework=framework_of("torch"), precision="bf16-mixed", calibration=calibration)
    first = stages(olmoe, 4, 1)[0]
    assert np.ptp(memory.accumulated(memory.shard(first))) == 0


def test_one_replica_says_nothing(batch: Batch) -> None:
    plans = batch(zero_stage=[0, 1, 2, 3])
    some = units(16, ends=1e8, embedding_parameters=1e8, expert=1e9)
    moved = data(plans, BEHIND).step(some, counts(plans))
    assert (moved.whole_s == 0).all()
    assert (moved.units + moved.buckets == 0).all()


def test_sharded_gradients_cost_time_with_accumulation(olmoe: Architecture, batch: Batch, machine: System) -> None:
    plans = batch(dp=8, micro_batch=1, global_batch=64, zero_stage=[1, 2, 3])
    step = predict(olmoe, plans, machine).step_time_s
    assert step[0] < step[1] < step[2]


def test_the_busiest_rank_sets_the_time_and_the_mean_one_the_energy(olmoe: Architecture, batch: Batch) -> None:
    workload = Workload(olmoe, batch(dp=8, ep=8, skew=2.0), framework=framework_of("torch"), precision="bf16-mixed")
    experts = [call for call in workload.layer(olmoe.decoder[0]) if call.kind is Kind.GROUPED_GEMM]
    balanced = Workload(olmoe, batch(dp=8, ep=8, skew=1.0), framework=framework_of("torch"), precision="bf16-mixed")
    even = [call for call in balanced.layer(olmoe.decoder[0]) if call.kind is Kind.GROUPED_GEMM]
    assert experts
    for busy, mean in zip(experts, even, strict=True):
        assert np.asarray(busy.shape.m) > np.asarray(mean.shape.m)
        assert np.asarray(busy.shape.m) * busy.load_balance == pytest.approx(np.asarray(mean.shape.m))


def test_a_late_host_is_no_pipeline_bubble(batch: Batch, machine: System) -> None:
    opt = read_architecture("opt-350m")
    plans = batch(pp=2, micro_batch=1, global_batch=64, seq=128)
    slow_host = predict(opt, plans, machine)
    phase_costs = [lane.model_copy(update={"blocks": {}}) for lane in machine.calibration.host]
    quick = replace(machine, calibration=machine.calibration.model_copy(update={"host": phase_costs}))
    no_host = predict(opt, plans, quick)
    assert slow_host.host_wait_s > 0.1 * slow_host.step_time_s
    assert no_host.host_wait_s == 0
    assert slow_host.bubble_s == pytest.approx(no_host.bubble_s, rel=0.2)
