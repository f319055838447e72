"""All-to-alls of heads over context-parallel ranks, and rings beside them: against closed forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.network.collectives import Collective, Network
from moemodel.model.plan.batch import PlanBatch, batch_of
from moemodel.model.plan.checks import architecture_of, check_architecture
from moemodel.model.plan.megatron_arguments import megatron_run
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.search.candidates import candidates
from moemodel.model.search.document import Search
from moemodel.model.search.problem import problem_of
from moemodel.model.step.microbatch_comm import Attention, Communication, Exchange
from moemodel.model.step.system import framework_as_run, system_of

Batch = Callable[..., PlanBatch]
MakePlan = Callable[..., Plan]

LINK_BPS, NIC_BPS = 400e9, 50e9
NODE = Network(
    gpus_per_node=8,
    node_Bps=LINK_BPS,
    nic_Bps=NIC_BPS,
    node_latency_s=0.0,
    nic_latency_s=0.0,
    efficiency=dict.fromkeys(Collective, 1.0),
    start_s=0.0,
    overlap=1.0,
)
# Llama 3 8B: 32 heads of queries, 8 of keys and of values, 128 wide, in 2 bytes
Q_B, KV_B = 2 * 32 * 128, 2 * 8 * 128


@pytest.fixture(scope="module")
def llama() -> Architecture:
    return read_architecture("llama-3-8b")


def exchanged(llama: Architecture, plans: PlanBatch, cp_comm: str, block_s: float = 0.0) -> tuple[Exchange, Exchange]:
    framework = replace(framework_of("megatron-core"), cp_comm=cp_comm)
    comm = Communication(llama, plans, NODE, framework=framework, precision="bf16-mixed")
    attention = Attention(forward_s=np.array([block_s]), backward_s=np.array([block_s]))
    return comm.layer(llama.layers[0], axis="cp", attention=attention)


@pytest.mark.parametrize(("cp", "tp"), [(2, 1), (4, 2), (8, 1)])
def test_four_all_to_alls_of_a_layer(llama: Architecture, batch: Batch, cp: int, tp: int) -> None:
    """Each rank sends (cp - 1) / cp of its queries, keys, values and outputs (Jacobs et al. 2023, section 3.2)."""
    plans = batch(cp=cp, tp=tp, seq=65536, micro_batch=1)
    tokens = 65536 / cp
    sent_B = (cp - 1) / cp * tokens * (2 * Q_B + 2 * KV_B) / tp
    for exchange in exchanged(llama, plans, "a2a", block_s=1.0):
        assert exchange.exposed_s[0] == pytest.approx(sent_B / LINK_BPS)
        assert exchange.overlappable.time_s[0] == 0
        assert exchange.calls.tensor_parallel[0] == 4


def test_gathered_keys_and_values_are_exposed(llama: Architecture, batch: Batch) -> None:
    plans = batch(cp=4, seq=65536, micro_batch=1)
    there, back = exchanged(llama, plans, "all_gather", block_s=1.0)
    gathered_s = 3 / 4 * 65536 * 2 * KV_B / LINK_BPS
    assert there.exposed_s[0] == pytest.approx(gathered_s)
    assert back.exposed_s[0] == pytest.approx(2 * gathered_s)


def test_all_to_alls_inside_a_node_and_a_ring_between(llama: Architecture, batch: Batch) -> None:
    """Of 16 ranks 8 in a node: all-to-alls over its links, and two nodes' keys and values over NICs."""
    plans = batch(cp=16, seq=65536, micro_batch=1)
    tokens = 65536 / 16
    there, back = exchanged(llama, plans, "a2a-8+p2p")
    inside_s = 7 / 8 * tokens * (2 * Q_B + 2 * KV_B) / LINK_BPS
    message_s = tokens * 2 * KV_B / NIC_BPS
    assert there.exposed_s[0] == pytest.approx(inside_s)
    assert there.overlappable.time_s[0] == pytest.approx(message_s)
    assert back.overlappable.time_s[0] == pytest.approx(2 * message_s)


def test_rings_are_as_without_a_word(llama: Architecture, batch: Batch) -> None:
    plans = batch(cp=4, seq=65536, micro_batch=1)
    framework = framework_of("megatron-core")
    comm = Communication(llama, plans, NODE, framework=framework, precision="bf16-mixed")
    said = exchanged(llama, plans, "p2p", block_s=1e-3)[0]
    attention = Attention(forward_s=np.array([1e-3]), backward_s=np.array([1e-3]))
    assert (
        said.overlappable.time_s == comm.layer(llama.layers[0], axis="cp", attention=attention)[0].overlappable.time_s
    )


@pytest.fixture
def plan(plan_of: MakePlan) -> Callable[..., Plan]:
    def make(cp_comm: str | None, *, cp: int = 4, tp: int = 1, **others: Any) -> Plan:
        return plan_of(
            **{"architecture": "llama-3-8b", "backend": "megatron-core", "sequence_length": 8192} | others,
            global_batch=1,
            cp_comm=cp_comm,
            parallel={"cp": cp, "tp": tp},
            cluster={"gpus": cp * tp},
        )

    return make


def test_memory_is_the_same(plan: Callable[..., Plan], calibration: Calibration) -> None:
    """A rank keeps as many elements of more tokens and fewer heads."""
    found = [predict(architecture_of(p), batch_of(p), system_of(p, calibration)) for p in (plan(None), plan("a2a"))]
    assert found[0].memory_B[0] == found[1].memory_B[0]
    assert found[0].exposed_communication_s[0] < found[1].exposed_communication_s[0]


@pytest.mark.parametrize(
    ("cp_comm", "cp", "tp", "says"),
    [
        ("a2a", 16, 1, "allowed: all-to-alls among a divisor of the 8 heads of a rank, or p2p or all_gather"),
        ("a2a", 4, 4, "shares 8 heads out"),
        ("a2a-3+p2p", 4, 1, "found all-to-alls among 3 ranks with parallel.cp 4; allowed: its divisors"),
    ],
)
def test_heads_are_shared_out(cp_comm: str, cp: int, tp: int, says: str, plan: Callable[..., Plan]) -> None:
    found = plan(cp_comm, cp=cp, tp=tp)
    with pytest.raises(InfeasiblePlanError, match="cp_comm") as caught:
        check_architecture(found, architecture_of(found))
    assert says in str(caught.value)


def test_other_words_are_refused(plan: Callable[..., Plan]) -> None:
    with pytest.raises(InputError, match=r"cp_comm.*a2a-N\+p2p"):
        plan("a2a+p2p")


def test_torch_gathers_by_itself(plan: Callable[..., Plan]) -> None:
    assert framework_as_run(plan("all_gather", backend="torch")).gathers_keys
    assert not framework_as_run(plan("p2p", backend="torch")).gathers_keys


def test_a_search_takes_one_for_all(calibration: Calibration) -> None:
    """Of 8 heads of keys only divisors are shared out."""
    document = Search.model_validate(
        {
            "architecture": "llama-3-8b",
            "backend": "megatron-core",
            "sequence_length": 8192,
            "global_batch": 16,
            "cp_comm": "a2a",
            "cluster": {"gpu": "h100-sxm-80gb", "gpus": 16},
            "search": {"tp": [2], "cp": [1, 2, 4, 8], "micro_batch": 1, "recompute": "none", "pp": 1},
            "clocks_MHz": None,
        }
    )
    found = candidates(problem_of(document, calibration), calibration)
    assert set(found.columns["cp"].tolist()) == {1, 2, 4}
    assert "context_heads" in {refused.key for refused in found.refused}
    assert document.plan(cp=2, gpus=2).cp_comm == "a2a"


@pytest.mark.parametrize(
    ("arguments", "cp_comm", "left_out"),
    [
        ({"cp-comm-type": "a2a"}, "a2a", False),
        ({"cp-comm-type": "p2p"}, None, False),
        ({"cp-comm-type": ["a2a+p2p"], "hierarchical-context-parallel-sizes": [2, 4]}, "a2a-2+p2p", False),
        ({"cp-comm-type": ["a2a", "p2p"]}, "a2a", True),
    ],
)
def test_megatrons_words(arguments: dict[str, Any], cp_comm: str | None, left_out: bool) -> None:
    least = {"num-layers": 2, "hidden-size": 64, "num-attention-heads": 8, "micro-batch-size": 1, "seq-length": 64}
    least |= {"global-batch-size": 8, "context-parallel-size": 8, "vocab-size": 1000, "max-position-embeddings": 64}
    found = megatron_run(least | arguments, gpu="h100-sxm-80gb", gpus=8)
    assert found.plan["cp_comm"] == cp_comm
    assert bool(found.left_out) == left_out
    assert not found.unknown
