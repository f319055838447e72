"""Groups of ranks that ZeRO shards over, each for itself: memory, volumes and times against closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InputError
from moemodel.model.layers.parameters import parameters
from moemodel.model.network.collectives import Collective
from moemodel.model.plan.batch import PlanBatch, batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.mesh import ParallelMesh
from moemodel.model.plan.spec import ParallelSpec, Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.search.candidates import candidates
from moemodel.model.search.document import Search
from moemodel.model.search.problem import problem_of
from moemodel.model.step.communication_groups import Groups
from moemodel.model.step.data_parallel import DataParallel, ExchangeCounts, FsdpUnits
from moemodel.model.step.system import System, system_of

MakePlan = Callable[..., Plan]
Batch = Callable[..., PlanBatch]


def made(plan_of: MakePlan, *, backend: str = "torch", architecture: str = "llama-3-8b", **parallel: int) -> Plan:
    gpus = parallel.get("dp", 1) * parallel.get("tp", 1)
    return plan_of(
        architecture=architecture, backend=backend, global_batch=gpus, parallel=parallel, cluster={"gpus": gpus}
    )


@pytest.mark.parametrize("backend", ["torch", "megatron"])
@pytest.mark.parametrize(("replicas", "shards"), [(1, 16), (2, 8), (8, 2), (16, 1)])
def test_states_are_sharded_within_a_group(
    backend: str, replicas: int, shards: int, plan_of: MakePlan, calibration: Calibration
) -> None:
    """12 bytes a parameter over the ranks of a group."""
    plan = made(plan_of, backend=backend, dp=16, zero_stage=1, replicas=replicas)
    found = predict(architecture_of(plan), batch_of(plan), system_of(plan, calibration))
    whole_B = 12 * parameters(read_architecture("llama-3-8b")).total
    assert found.memory_terms_B["optimizer_states"][0] == pytest.approx(whole_B / shards)


def test_groups_of_ranks() -> None:
    """Of dp 4 x tp 2: replicas outermost, as torch's mesh has them."""
    mesh = ParallelMesh.of(ParallelSpec(dp=4, tp=2, replicas=2), shards_experts=True)
    assert mesh.all_ranks(mesh.shard_group) == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert mesh.all_ranks(mesh.replica_group) == [(0, 4), (1, 5), (2, 6), (3, 7)]
    experts = ParallelMesh.of(ParallelSpec(dp=8, ep=2, replicas=2), shards_experts=True)
    assert experts.all_ranks(experts.expert_shard_group) == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert experts.all_ranks(experts.expert_replica_group) == [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_shards_of_gradients_are_summed_over_groups(batch: Batch, machine: System) -> None:
    """A step exchanges a gather and a scatter of everything within a group, and an all-reduce of a group's shard."""
    plans = batch(dp=16, zero_stage=1, replicas=2)
    groups = Groups(plans, machine.network, shards_experts=True)
    exchange = DataParallel(plans, groups, framework=machine.framework, precision="bf16-mixed")
    n, none = np.array([8e8]), np.zeros(1)
    units = FsdpUnits(layers=1, dense=n, expert=none, ends=none, embedding_parameters=none)
    found = exchange.step(units, ExchangeCounts.of(plans, machine.framework, 0)).whole_s
    network = machine.network

    def time_s(collective: Collective, size_B: Any, ranks: int, stride: int) -> Any:
        size = np.array([ranks])
        return network.time_s(collective, size_B, size, network.route(size, np.array([stride])))

    expected = time_s(Collective.ALL_GATHER, 2 * n, 8, 1) + time_s(Collective.REDUCE_SCATTER, 2 * n, 8, 1)
    assert found == pytest.approx(expected + time_s(Collective.ALL_REDUCE, 2 * n / 8, 2, 8))


def test_gathers_stay_within_a_node(plan_of: MakePlan, calibration: Calibration) -> None:
    """Under ZeRO 3 each pass gathers: with a group a node over NVLink; between nodes, which a slow network joins, there
    is one all-reduce."""
    times_s, energies_J = [], []
    for replicas in (1, 4):
        plan = plan_of(
            architecture="llama-3-8b",
            global_batch=32,
            parallel={"dp": 32, "zero_stage": 3, "replicas": replicas},
            cluster={"gpus": 32, "internode": "ethernet-100g"},
        )
        found = predict(architecture_of(plan), batch_of(plan), system_of(plan, calibration))
        times_s.append(found.step_time_s[0])
        energies_J.append(found.energy_J[0])
    assert times_s[1] < times_s[0]
    assert energies_J[1] < energies_J[0]


@pytest.mark.parametrize(
    ("parallel", "backend", "message"),
    [
        ({"dp": 8, "replicas": 2}, "torch", "found 2 with zero_stage 0, which shards nothing; allowed: 1, or"),
        ({"dp": 8, "zero_stage": 1, "replicas": 3}, "torch", "found 3 with dp 8; allowed: divisors of it"),
        ({"dp": 8, "zero_stage": 1, "replicas": 2}, "nanotron", "with backend nanotron, which shards over all"),
        ({"dp": 8, "zero_stage": 1, "replicas": 0}, "torch", "parallel.replicas"),
    ],
)
def test_groups_that_cannot_be_are_refused(
    parallel: dict[str, int], backend: str, message: str, plan_of: MakePlan
) -> None:
    with pytest.raises(InputError, match=message):
        made(plan_of, backend=backend, **parallel)


def test_experts_need_copies_in_every_group(plan_of: MakePlan) -> None:
    with pytest.raises(InputError, match="ranks that hold the same experts"):
        made(plan_of, architecture="olmoe-1b-7b", dp=8, ep=8, zero_stage=1, replicas=2)
    assert made(plan_of, architecture="olmoe-1b-7b", dp=8, ep=4, zero_stage=1, replicas=2).parallel.replicas == 2


def test_a_search_chooses_them(calibration: Calibration) -> None:
    document = {
        "architecture": "opt-350m",
        "sequence_length": 2048,
        "global_batch": 64,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 16},
        "search": {"tp": 1, "pp": 1, "cp": 1, "micro_batch": 1, "recompute": "none", "replicas": [1, 2, 3]},
        "clocks_MHz": None,
    }
    legal = candidates(problem_of(Search.model_validate(document), calibration), calibration)
    pairs = set(zip(legal.columns["zero_stage"].tolist(), legal.columns["replicas"].tolist(), strict=True))
    assert pairs == {(0, 1), *((zero, replicas) for zero in (1, 2, 3) for replicas in (1, 2))}
    chosen = legal.plan(Search.model_validate(document), len(legal) - 1, None)
    assert chosen.parallel.replicas in (1, 2)
