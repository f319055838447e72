"""Tensor parallelism behind products: in how many parts these run, what is gathered, and where gradients are added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.frameworks.base import Framework, Lora
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.operators.work import Kind, Pass, work
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.step.layer_operators import Workload
from moemodel.model.step.microbatch_comm import Communication
from tests.networks import NODE

Batch = Callable[..., PlanBatch]

TOKENS, TP = 2048, 4
EXPOSED = replace(framework_of("megatron-core"), overlapped=frozenset())


@pytest.fixture(scope="module")
def llama() -> Architecture:
    return read_architecture("llama-3-8b")


def products(llama: Architecture, plans: PlanBatch, framework: Framework) -> Counter[tuple[Pass, float, float]]:
    """Of a layer: pass, rows and how many of such."""
    calls = Workload(llama, plans, framework=framework, precision="bf16-mixed").passes(llama.layers[0])
    found: Counter[tuple[Pass, float, float]] = Counter()
    for call in calls:
        if call.kind is Kind.GEMM:
            found[call.direction, float(np.max(call.shape.arrays()["m"])), float(np.max(call.count))] += 1
    return found


def test_products_run_in_as_many_parts_as_ranks_pass_around(llama: Architecture, batch: Batch) -> None:
    """By hand, of four products, two of which read what is gathered: all four forward, and backward the gradients that
    the other two give inputs from gathered ones; gradients of weights are whole, and those that are scattered."""
    plans = batch(tp=TP, sequence_parallel=True)
    overlapped, exposed = (products(llama, plans, framework) for framework in (framework_of("megatron-core"), EXPOSED))
    part = (TOKENS / TP, TP)
    assert overlapped == {
        (Pass.FORWARD, *part): 4,
        (Pass.BACKWARD_INPUT, *part): 2,
        (Pass.BACKWARD_INPUT, TOKENS, 1): 2,
        (Pass.BACKWARD_WEIGHT, TOKENS, 1): 4,
    }
    whole = (Pass.FORWARD, Pass.BACKWARD_INPUT, Pass.BACKWARD_WEIGHT)
    assert exposed == {(direction, TOKENS, 1): 4 for direction in whole}


def test_parts_do_the_work_of_the_whole(llama: Architecture, batch: Batch) -> None:
    plans = batch(tp=TP, sequence_parallel=True)

    def flops(framework: Framework) -> float:
        calls = Workload(llama, plans, framework=framework, precision="bf16-mixed").passes(llama.layers[0])
        return sum(float(np.max(call.count * work(call.kind, call.direction, call.shape).flops)) for call in calls)

    assert flops(framework_of("megatron-core")) == pytest.approx(flops(EXPOSED))


@pytest.mark.parametrize("parallel", [{"tp": 1, "sequence_parallel": False}, {"tp": TP, "sequence_parallel": False}])
def test_without_sequence_parallelism_products_are_whole(
    llama: Architecture, batch: Batch, parallel: dict[str, int]
) -> None:
    found = products(llama, batch(**parallel), framework_of("megatron-core"))
    assert {rows for _, rows, _ in found} == {TOKENS}


def test_products_of_what_adapters_read_are_whole(llama: Architecture, batch: Batch) -> None:
    """Beside the product of attention's inputs: forward three are in parts, one is not."""
    framework = replace(framework_of("megatron-core"), lora=Lora(rank=16, targets=("qkv",)))
    found = products(llama, batch(tp=TP, sequence_parallel=True), framework)
    assert found[Pass.FORWARD, TOKENS / TP, TP] == 3


@pytest.mark.parametrize(("precision", "element_B"), [("bf16-mixed", 2.0), ("fp8", 1.0), ("nvfp4", 0.5625)])
def test_casts_are_gathered(llama: Architecture, batch: Batch, precision: str, element_B: float) -> None:
    """Of each of two blocks a gather of casts and a scatter of 16-bit sums, either way, over bandwidths alone."""
    plans = batch(tp=TP, sequence_parallel=True)
    passes = Communication(llama, plans, NODE, framework=EXPOSED, precision=precision).layer(llama.layers[0], axis="tp")
    one_way_s = 2 * (element_B + 2.0) * TOKENS * 4096 * (TP - 1) / TP / 400e9
    for found in passes:
        assert found.whole_s == pytest.approx(one_way_s, rel=1e-4)


def test_what_adapters_read_is_gathered_in_16_bits(llama: Architecture, batch: Batch) -> None:
    plans, framework = batch(tp=TP, sequence_parallel=True), replace(EXPOSED, lora=Lora(rank=16, targets=("qkv",)))
    layer = llama.layers[0]
    plain, adapted = (
        Communication(llama, plans, NODE, framework=one, precision="fp8").layer(layer, axis="tp")[0]
        for one in (EXPOSED, framework)
    )
    more_s = float((adapted.whole_s - plain.whole_s)[0])
    whole_s = 1.0 * TOKENS * 4096 * (TP - 1) / TP / 400e9
    small_s = 2 * 2.0 * TOKENS * 16 * (TP - 1) / TP / 400e9  # what the adapter itself may gather or scatter
    assert whole_s <= more_s * (1 + 1e-6) <= whole_s + small_s


@pytest.mark.parametrize(
    ("gradient_B", "zero_stage", "moved_B"), [(2, 0, 2.0), (4, 0, 6.0), (2, 1, 2.0), (4, 3, 6.0), (2, 3, 6.0)]
)
def test_gradients_are_added_where_products_give_them(
    llama: Architecture, batch: Batch, gradient_B: float, zero_stage: int, moved_B: float
) -> None:
    """Read and written in place of a 16-bit gradient, of every micro-batch: bytes a parameter. Not under FSDP."""
    known = framework_of("megatron-core")
    recipe = replace(known.precisions["bf16-mixed"], gradient_B=gradient_B)
    framework = replace(known, precisions={**known.precisions, "bf16-mixed": recipe})
    workload = Workload(llama, batch(zero_stage=zero_stage), framework=framework, precision="bf16-mixed")
    (call,) = workload.accumulate(np.array([1e9]))
    assert work(call.kind, call.direction, call.shape).bytes_B * call.count == pytest.approx(moved_B * 1e9)
