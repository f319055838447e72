"""Nanotron's exchanges: what ZeRO 1 costs it, its buckets, and messages that say what they bring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from moemodel.model.frameworks.registry import framework_of
from moemodel.model.network.collectives import Collective
from moemodel.model.plan.batch import PlanBatch, batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.step.communication_groups import Groups
from moemodel.model.step.data_parallel import DataParallel, ExchangeCounts, FsdpUnits
from moemodel.model.step.microbatch_comm import Communication
from moemodel.model.step.system import System, system_of

MakePlan = Callable[..., Plan]
MiB = 2.0**20


def planned(plan_of: MakePlan, *, micro_batches: int = 1, **parallel: int) -> Plan:
    gpus = parallel.get("dp", 1) * parallel.get("tp", 1) * parallel.get("pp", 1)
    return plan_of(
        architecture="llama-3-8b",
        backend="nanotron",
        sequence_length=2048,
        global_batch=parallel.get("dp", 1) * micro_batches,
        cluster={"gpus": gpus, "internode": "efa-p5"},
        parallel={"sequence_parallel": parallel.get("tp", 1) > 1} | parallel,
    )


def machine_of(plan: Plan, calibration: Calibration) -> tuple[PlanBatch, System]:
    return batch_of(plan), system_of(plan, calibration)


def exchanged(plan: Plan, calibration: Calibration, units: FsdpUnits) -> tuple[float, float, float]:
    """Time of a step's exchange, hidden or not; messages of gradients; and what one all-reduce of all would take."""
    plans, system = machine_of(plan, calibration)
    groups = Groups(plans, system.network, shards_experts=True)
    data = DataParallel(plans, groups, framework=system.framework, precision=system.precision)
    found = data.step(units, ExchangeCounts.of(plans, system.framework, 0))
    size_B = 4.0 * (units.dense + units.ends)
    whole_s = groups.time_s(Collective.ALL_REDUCE, size_B, groups["data_parallel"])
    return float(found.whole_s[0]), float(found.buckets[0]), float(whole_s[0])


def held(layer: float, layers: int, ends: float) -> FsdpUnits:
    return FsdpUnits(
        layers=layers,
        dense=np.array([layer * layers]),
        expert=np.zeros(1),
        ends=np.array([ends]),
        embedding_parameters=np.array([ends]),
    )


def test_zero_1_reduces_all_gradients_at_once_and_gathers_parameters(
    plan_of: MakePlan, calibration: Calibration
) -> None:
    plan, units = planned(plan_of, dp=32, zero_stage=1), held(2.0e8, 8, 1.0e8)
    time_s, buckets, reduced_s = exchanged(plan, calibration, units)
    plans, system = machine_of(plan, calibration)
    groups = Groups(plans, system.network, shards_experts=True)
    gathered_s = groups.time_s(Collective.ALL_GATHER, 2.0 * (units.dense + units.ends), groups["data_parallel"])
    assert time_s == pytest.approx(reduced_s + float(gathered_s[0]), rel=1e-12)
    assert buckets == 0.0


def buckets_of(sizes_B: list[float], full_B: float) -> int:
    """Filled with one tensor after another, each closed as soon as it is full."""
    count, filled_B = 0, 0.0
    for size_B in sizes_B:
        filled_B += size_B
        if filled_B >= full_B:
            count, filled_B = count + 1, 0.0
    return count + (filled_B > 0)


@pytest.mark.parametrize(
    ("hidden", "width", "tp"), [(2048, 8192, 1), (2048, 8192, 8), (4096, 14336, 4), (4096, 14336, 8)]
)
def test_buckets_as_if_they_were_filled(
    hidden: int, width: int, tp: int, plan_of: MakePlan, calibration: Calibration
) -> None:
    """Gradients come from the last layer on: down, gate and up in one, output, queries with keys and values."""
    tensors = [hidden * width, 2 * hidden * width, hidden * hidden, 3 * hidden * hidden]
    filled = buckets_of([2.0 * size / tp for size in tensors] * 32, 25 * MiB)
    units = held(sum(tensors) / tp, 32, 0.0)
    _, buckets, _ = exchanged(planned(plan_of, dp=32), calibration, units)
    assert buckets == pytest.approx(filled, rel=0.22)


def test_copies_to_their_places_take_as_long_as_there_are_ranks(plan_of: MakePlan, calibration: Calibration) -> None:
    """Seven products and two norms of each of 32 layers, from every rank."""

    def longer_s(dp: int) -> float:
        plan = planned(plan_of, dp=dp, zero_stage=1)
        plans, system = machine_of(plan, calibration)
        at_once = replace(system, framework=replace(system.framework, gathered_tensor_s=0.0))
        found = [predict(architecture_of(plan), plans, one).step_time_s[0] for one in (system, at_once)]
        return float(found[0] - found[1])

    each_s = framework_of("nanotron").gathered_tensor_s
    for dp in (8, 64):
        assert longer_s(dp) == pytest.approx(dp * 9 * 32 * each_s, rel=0.02)


def test_a_stage_waits_for_three_messages_of_every_tensor(plan_of: MakePlan, calibration: Calibration) -> None:
    """In the middle of a pipeline two tensors come and go forward, one backward."""
    plans, system = machine_of(planned(plan_of, pp=4, micro_batches=8), calibration)
    comm = Communication(
        architecture_of(planned(plan_of, pp=4, micro_batches=8)),
        plans,
        system.network,
        framework=system.framework,
        precision=system.precision,
    )
    forward, backward = comm.pipeline_p2p(first=False, last=False)
    ends, _ = comm.pipeline_p2p(first=True, last=False)
    assert (forward.calls.messages[0], backward.calls.messages[0], ends.calls.messages[0]) == (12.0, 6.0, 6.0)
    assert forward.exposed_s[0] == pytest.approx(2 * ends.exposed_s[0], rel=1e-12)
    waits_s = system.framework.message_s
    assert 12 * waits_s < forward.exposed_s[0] < 12 * waits_s + 1e-3


def test_inputs_are_gathered_again_behind_products(plan_of: MakePlan, calibration: Calibration) -> None:
    """Two more all-gathers a layer and one of the head, none in forward passes."""
    plan = planned(plan_of, tp=8)
    plans, system = machine_of(plan, calibration)
    architecture = architecture_of(plan)
    whole = [
        Communication(
            architecture,
            plans,
            system.network,
            framework=replace(system.framework, gathers_inputs_again=again),
            precision=system.precision,
        ).layer(architecture.layers[0])
        for again in (True, False)
    ]
    (forward, backward), (as_before, once) = whole
    assert forward.whole_s[0] == pytest.approx(as_before.whole_s[0], rel=1e-12)
    assert backward.calls.sequence_parallel[0] == once.calls.sequence_parallel[0] + 2
    assert backward.exposed_s[0] < once.exposed_s[0] < backward.whole_s[0]


def test_checks_leave_shards_where_they_were(plan_of: MakePlan, calibration: Calibration) -> None:
    """A host that waits for others does not run ahead of what collectives hold: two outputs a layer, whole and
    scattered, of 17 layers of a forward and ten of the backward pass before it."""
    plan = planned(plan_of, tp=8, micro_batches=16).model_copy(update={"micro_batch": 4})
    peaks = [
        float(predict(architecture_of(one), *machine_of(one, calibration)).memory_B[0])
        for one in (plan, plan.model_copy(update={"collective_checks": True}))
    ]
    held_B = 4 * 2 * (17 + 10) * 2.0 * 2048 * 4096 * (1 + 1 / 8)
    assert peaks[0] - peaks[1] == pytest.approx(held_B, rel=0.05)


@pytest.mark.parametrize("tp", [8, 16, 32])
@pytest.mark.parametrize("micro_batches", [1, 6])
def test_sums_over_nodes_are_of_the_loss_and_of_norms(
    tp: int, micro_batches: int, plan_of: MakePlan, calibration: Calibration
) -> None:
    """Two of every micro-batch, alone; and once a step one of each norm, two a layer and the last."""
    plan = planned(plan_of, tp=tp, dp=2, zero_stage=1, micro_batches=micro_batches)
    plans, system = machine_of(plan, calibration)
    fabric = system.network.fabric
    assert fabric is not None
    trees = replace(system, network=replace(system.network, fabric=replace(fabric, sums_by_switches=False)))
    slow_s, fast_s = (float(predict(architecture_of(plan), plans, one).step_time_s[0]) for one in (system, trees))
    route = system.network.route(plans.tp, np.ones_like(plans.tp))
    alone_s, grouped_s = (system.network.small_sum_s(plans.tp, route, grouped=each)[0] for each in (False, True))
    assert bool(alone_s > 0) is (tp > 8)
    assert slow_s - fast_s == pytest.approx(micro_batches * 2 * alone_s + (2 * 32 + 1) * grouped_s, rel=0.02, abs=1e-9)
