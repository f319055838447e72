"""What DDP and FSDP2 hold, and what pipelines keep, of memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.layers.parameters import parameters
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.predict.predict import predict
from moemodel.model.schedule.pipeline_layout import stages
from moemodel.model.step.memory import MemoryModel
from moemodel.model.step.sharded_memory import (
    ParameterCounts,
    ddp_fsdp2_states,
    distributed_optimizer_states,
    flattened_states,
)
from moemodel.model.step.system import System

Batch = Callable[..., PlanBatch]
GB = 1e9
FOUR = np.ones(4)
PARTS = ParameterCounts(
    whole=10 * GB * FOUR,
    sharded=2.5 * GB * FOUR,
    gathered=10 * GB * FOUR,
    ends=2 * GB * FOUR,
    end=GB * FOUR,
    layer=GB * FOUR,
)


@pytest.fixture(scope="module")
def llama() -> Architecture:
    return read_architecture("llama-3-8b")


def moments(*, shared: bool, accumulating: bool, ends_apart: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Gradients and gathered parameters, GB, [3 moments, ZeRO 0 to 3]."""
    held = ddp_fsdp2_states(
        PARTS,
        trained=PARTS,
        zero=np.arange(4),
        pipeline=np.zeros(4, dtype=bool),
        shared=np.full(4, shared),
        accumulating=np.full(4, accumulating),
        gradient_B=4.0 if ends_apart else 2.0,
        weight_B=2.0,
        ends_apart=ends_apart,
    )
    return np.stack(held.gradients_B) / GB, np.stack(held.gathered_B) / GB


def test_buckets_stay_and_shards_are_reduced() -> None:
    gradients, _ = moments(shared=True, accumulating=True)
    begin, end, step = gradients
    assert begin.tolist() == [20, 20, 5, 5]
    on_the_way = 2 * (2 + 2)  # of the ends, and of a layer and its copy
    assert end.tolist() == [20, 20, 5 + on_the_way, 5 + on_the_way]
    assert step.tolist() == [20, 5, 5, 5]


def test_an_only_micro_batch_has_no_gradients_before_it() -> None:
    gradients, gathered = moments(shared=True, accumulating=False)
    assert gradients[0].tolist() == [20, 0, 0, 0]
    assert gathered[1].tolist() == [0, 8, 8, 8]


def test_what_is_gathered() -> None:
    _, gathered = moments(shared=True, accumulating=True)
    assert gathered[0].tolist() == [0, 20, 20, 2 * (2 + 1)]
    assert gathered[1].tolist() == [0, 20, 20, 2 * (2 + 2)]
    assert gathered[2].tolist() == [0, 0, 0, 0]


def test_ends_in_units_of_their_own() -> None:
    """The head's weights beside the last layer's; then the embedding's beside the first layer's, whose 16-bit gradients
    lie beside the float32 ones that are scattered; last the embedding's gradients, both ways."""
    gradients, gathered = moments(shared=True, accumulating=False, ends_apart=True)
    assert gathered[0].tolist() == [0, 20, 20, 2 * (1 + 1)]
    assert gathered[1].tolist() == [0, 4, 4, 4]
    assert gradients[1].tolist() == [40, 10 + 6, 10 + 6, 10 + 6]
    assert gradients[2].tolist() == [40, 10, 10 + 6, 10 + 6]


@pytest.mark.parametrize("accumulating", [False, True])
def test_alone_there_are_no_buckets_and_no_shards(accumulating: bool) -> None:
    gradients, gathered = moments(shared=False, accumulating=accumulating)
    assert gradients.tolist() == [[20.0 * accumulating] * 4, [20] * 4, [20] * 4]
    assert not gathered.any()
    anew, in_buffers = (
        held(
            PARTS,
            trained=PARTS,
            zero=np.zeros(4, dtype=np.int64),
            pipeline=np.zeros(4, dtype=np.bool_),
            shared=np.zeros(4, dtype=np.bool_),
            accumulating=np.full(4, accumulating),
            gradient_B=2.0,
            weight_B=2.0,
        )
        for held in (flattened_states, distributed_optimizer_states)
    )
    assert np.stack(anew.gradients_B).tolist() == (gradients * GB).tolist()
    assert np.stack(in_buffers.gradients_B).tolist() == [[20 * GB] * 4] * 3  # they stay from step to step


def test_experts_without_copies_are_not_gathered(batch: Batch, machine: System) -> None:
    """Under ZeRO 1 with as many expert-parallel ranks as replicas, the rest alone is."""
    olmoe = read_architecture("olmoe-1b-7b")
    plans = batch(dp=8, ep=[1, 8], zero_stage=1, micro_batch=1, global_batch=64)
    gathered = predict(olmoe, plans, machine).memory_terms_B["gathered_layers"]
    counted = parameters(olmoe)
    assert gathered == pytest.approx([2.0 * counted.total, 2.0 * counted.non_expert])


# ---- pipelines ----


def test_messages_have_a_buffer_each(llama: Architecture, batch: Batch, machine: System) -> None:
    """Two stages: the first receives gradients and keeps what it sent, the second receives activations and keeps their
    gradients, but for those in flight.
    """
    m = 16
    plans = batch(pp=2, global_batch=m)
    model = MemoryModel(
        llama, plans, framework=framework_of("torch"), precision="bf16-mixed", calibration=machine.calibration
    )
    one_B = 2.0 * 2048 * llama.hidden
    first, last = (model.stage(stage).terms_B["messages"] for stage in stages(llama, 2, 1))
    assert first == pytest.approx((m + 2) * one_B)
    assert last == pytest.approx((2 * m - 1) * one_B)
    assert predict(llama, batch(), machine).memory_terms_B["messages"] == 0
