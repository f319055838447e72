"""What Megatron does once a step with gradients and weights, and gradients in buckets that the host looks at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.errors import InputError
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import Kind
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.megatron_arguments import megatron_run
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.step.communication_groups import Groups
from moemodel.model.step.data_parallel import DataParallel, ExchangeCounts, FsdpUnits
from moemodel.model.step.layer_operators import Workload, accumulated_fraction
from moemodel.model.step.system import system_of

LAYERS, LAYER = 32, 218e6  # of Llama 3 8B
SMALL: dict[str, Any] = {
    "num-layers": 4,
    "hidden-size": 1024,
    "num-attention-heads": 8,
    "seq-length": 1024,
    "bf16": True,
}
SMALL |= {"max-position-embeddings": 1024, "micro-batch-size": 1, "global-batch-size": 8, "vocab-size": 32000}
OF_LAYER = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336  # weights of its products


def plan(**changes: Any) -> Plan:
    gpu = changes.pop("gpu", "h100-sxm-80gb")
    return Plan.model_validate(
        {"architecture": "llama-3-8b", "sequence_length": 8192, "global_batch": 64, "backend": "megatron-core"}
        | {"precision": "fp8", "cluster": {"gpu": gpu, "gpus": 64}, "parallel": {"dp": 64, "zero_stage": 1}}
        | changes
    )


def work(made: Plan) -> Workload:
    machine = system_of(made, shipped(made.cluster.gpu))
    return Workload(architecture_of(made), batch_of(made), framework=machine.framework, precision=made.precision)


def moved_B(calls: list[Call]) -> float:
    """By copies, of which an element is four bytes, in a step of one micro-batch."""
    assert {call.kind for call in calls} <= {Kind.COPY}
    return float(sum(4 * np.sum(call.shape.m * call.count) for call in calls))


def step_s(made: Plan) -> float:
    return float(
        predict(architecture_of(made), batch_of(made), system_of(made, shipped(made.cluster.gpu))).step_time_s[0]
    )


# ---- once a step ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "weight_B"),
    [
        ({}, 6),  # looked at, read, and written in two orders
        ({"fp8_recipe": "delayed"}, 4),
        ({"gpu": "b200-sxm-180gb"}, 5),  # in one
        ({"parameter_dtype": "fp8"}, 2),  # gathered in 8 bits: read, and written in the other order
        ({"parameter_dtype": "fp8", "gpu": "b200-sxm-180gb"}, 0),  # whose products read either order
        ({"parameter_dtype": "fp8", "gpu": "b200-sxm-180gb", "precision": "mxfp8"}, 4),
        ({"precision": "bf16-mixed"}, 0),
    ],
)
def test_weights_are_cast_once_a_step(changes: dict[str, Any], weight_B: float) -> None:
    assert moved_B(work(plan(**changes)).weights(np.array([1e9]))) == pytest.approx(weight_B * 1e9)


@pytest.mark.parametrize(
    ("recipe", "normed_B", "other_B"), [("tensorwise", 1, 1), ("delayed", 1, 1), ("blockwise", 0, 0)]
)
def test_operands_are_written_once_where_products_read_any_order(recipe: str, normed_B: int, other_B: int) -> None:
    """Of the inputs of four products: a byte less of each element, but in blocks, whose scales differ by order."""

    def cast_B(gpu: str) -> float:
        made = plan(fp8_recipe=recipe, gpu=gpu)
        calls = work(made).passes(architecture_of(made).layers[0])
        return moved_B([call for call in calls if call.kind is Kind.COPY and call.phase is Phase.FORWARD])

    less_B = 8192 * (normed_B * 2 * 4096 + other_B * (4096 + 14336))
    assert cast_B("h100-sxm-80gb") - cast_B("b200-sxm-180gb") == pytest.approx(less_B)


def test_of_several_micro_batches_the_first_finds_weights_to_cast() -> None:
    one, four = (moved_B(work(plan(global_batch=64 * m)).weights(np.array([1e9]))) for m in (1, 4))
    assert four == pytest.approx(one / 4)


def test_in_every_pass_where_nobody_says_which_is_the_first() -> None:
    """Transformer Engine's layers under FSDP: four products of 8-bit operands, each with a weight."""

    def cast_B(**changes: Any) -> float:
        made = plan(backend="fsdp", parallel={"dp": 64, "zero_stage": 3})
        framework = replace(system_of(made, shipped("h100-sxm-80gb")).framework, **changes)
        of_layer = Workload(architecture_of(made), batch_of(made), framework=framework, precision=made.precision)
        calls = of_layer.passes(architecture_of(made).layers[0])
        return moved_B([call for call in calls if call.kind is Kind.COPY and call.phase is Phase.FORWARD])

    assert cast_B() - cast_B(casts_weights=None) == pytest.approx(4 * OF_LAYER)


def test_frozen_weights_of_8_bits_are_never_cast() -> None:
    adapters = {"rank": 16, "targets": ["qkv", "proj"]}
    assert moved_B(work(plan(lora=adapters, parameter_dtype="fp8")).weights(np.array([1e9]))) == 0
    assert moved_B(work(plan(lora=adapters)).weights(np.array([1e9]))) == pytest.approx(6e9)  # of 16, which stay


@pytest.mark.parametrize(
    ("changes", "weight_B", "kept_B"),
    [
        ({"parameter_dtype": "fp8"}, 2, -1),  # put in order, of which one is kept
        ({"parameter_dtype": "bf16"}, 6, -2),  # cast as inputs are
        ({"parameter_dtype": "fp8", "gpu": "b200-sxm-180gb"}, 0, 0),
        ({"parameter_dtype": "fp8", "gpu": "b200-sxm-180gb", "precision": "mxfp8"}, 0, 0),
    ],
)
def test_weights_that_stay_in_one_order(changes: dict[str, Any], weight_B: float, kept_B: float) -> None:
    def found(cache: bool | None) -> tuple[float, float, float]:
        made = plan(transpose_cache=cache, **changes)
        calls = work(made).passes(architecture_of(made).layers[0])
        machine = system_of(made, shipped(made.cluster.gpu))
        memory_B = predict(architecture_of(made), batch_of(made), machine).memory_terms_B["parameters"][0]
        forward = [call for call in calls if call.kind is Kind.COPY and call.phase is Phase.FORWARD]
        return moved_B(forward), float(memory_B), moved_B(work(made).weights(np.array([1e9])))

    kept, made_anew = found(None), found(False)
    assert made_anew[0] - kept[0] == pytest.approx(weight_B * OF_LAYER, abs=1)
    assert made_anew[1] - kept[1] == pytest.approx(kept_B * LAYERS * OF_LAYER, rel=1e-3, abs=1)
    assert made_anew[2] == (0 if changes.get("precision") != "mxfp8" else kept[2])  # once a step no more


@pytest.mark.parametrize(
    ("said", "allowed"),
    [({"precision": "bf16-mixed"}, "megatron-core"), ({"backend": "fsdp"}, "megatron-core")],
)
def test_casts_that_stay_are_megatrons(said: dict[str, Any], allowed: str) -> None:
    with pytest.raises(InputError, match=f"transpose_cache: found false.*{allowed}"):
        plan(transpose_cache=False, **said)


@pytest.mark.parametrize(
    ("changes", "gradient_B"),
    [({}, 2), ({"gradient_dtype": "fp32"}, 4), ({"gradient_checks": True}, 4), ({"backend": "fsdp"}, 0)],
)
def test_gradients_are_filled_with_zeros_and_looked_at(changes: dict[str, Any], gradient_B: float) -> None:
    assert moved_B(work(plan(**changes)).gradients(np.array([1e9]))) == pytest.approx(gradient_B * 1e9)


def test_the_first_micro_batch_is_added_to_zeros() -> None:
    for backend, share in (("megatron-core", 1.0), ("fsdp", 0.0)):
        made = plan(backend=backend)
        framework = system_of(made, shipped("h100-sxm-80gb")).framework
        assert accumulated_fraction(batch_of(made), framework)[0] == share


# ---- buckets --------------------------------------------------------------------------------------------------------


def exchanged(made: Plan) -> tuple[float, float]:
    """Messages of gradients in a step, and the time of all that is exchanged."""
    machine, plans = system_of(made, shipped("h100-sxm-80gb")), batch_of(made)
    groups = Groups(plans, machine.network, shards_experts=False)
    data = DataParallel(plans, groups, framework=machine.framework, precision=machine.precision)
    none = np.zeros(1)
    units = FsdpUnits(
        layers=LAYERS, dense=np.array([LAYERS * LAYER]), expert=none, ends=none, embedding_parameters=none
    )
    found = data.step(units, ExchangeCounts.of(plans, machine.framework, 0))
    return float(found.units[0] + found.buckets[0]), float(found.whole_s[0])


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_a_bucket_of_one_parameter_is_a_tensor(zero_stage: int) -> None:
    """Six of a layer: four products', two norms'."""
    parallel = {"dp": 64, "zero_stage": zero_stage}
    messages, _ = exchanged(plan(bucket_parameters=1, parallel=parallel))
    assert messages == pytest.approx(6 * LAYERS, abs=1)


def test_small_buckets_pay_latency_and_no_more_bytes() -> None:
    """Of a layer each by default; so many more messages as there are take so much longer as a small one does."""
    _, by_layers_s = exchanged(plan())
    few, few_s = exchanged(plan(bucket_parameters=10**9))
    many, many_s = exchanged(plan(bucket_parameters=1))
    assert few < LAYERS < many
    assert few_s < by_layers_s < many_s
    ring_of_64_s = (1e-5, 1e-3)  # a message of no bytes, gathered and scattered: NCCL's, 10 us to a millisecond
    assert ring_of_64_s[0] < (many_s - few_s) / (many - few) / 2 < ring_of_64_s[1]


def test_what_the_host_looks_at_lets_the_device_wait_as_often_as_there_are_buckets() -> None:
    def waits_s(bucket: int) -> float:
        looked, not_looked = (step_s(plan(bucket_parameters=bucket, gradient_checks=checks)) for checks in (True, None))
        return looked - not_looked

    norm_s = 2 * 8e9 / 3.35e12  # reads all gradients, at the data sheet's bandwidth at best
    once_s, often_s = waits_s(10**10) - norm_s, waits_s(1) - norm_s
    assert 0 < once_s < 5e-3
    assert 1e-5 < (often_s - once_s) / (6 * LAYERS) < 1e-3


@pytest.mark.parametrize(("tp", "on_a_gpu"), [(1, 8.03e9), (8, 8.03e9 / 8)])
def test_every_weight_on_a_gpu_is_hashed_whatever_zero_shards(tp: int, on_a_gpu: float) -> None:
    """Llama 3 8B (Dubey et al. 2024: 8.03 billion parameters); hosts put 0.4 to 4 GB/s of float32 through SHA-1."""
    cut = {"parallel": {"dp": 64 // tp, "tp": tp, "zero_stage": 1}}
    hashed_s = step_s(plan(weight_checks=True, **cut)) - step_s(plan(**cut))
    assert 1e-9 * on_a_gpu < hashed_s < 1e-8 * on_a_gpu
    other = cut | {"gradient_dtype": "fp32"}
    others_s = step_s(plan(weight_checks=True, **other)) - step_s(plan(**other))
    assert others_s == pytest.approx(hashed_s, rel=1e-2)  # it is of weights alone


@pytest.mark.parametrize(("interval", "every_step"), [(1, True), (10, None), (None, None)])
def test_steps_between_megatrons_hashes_hash_nothing(interval: int | None, every_step: bool | None) -> None:
    name = "check-weight-hash-across-dp-replicas-interval"
    found = megatron_run(SMALL | {name: interval}, gpu="h100-sxm-80gb", gpus=8)
    assert found.plan["weight_checks"] is every_step
    assert bool(found.left_out) == (interval == 10)


def test_megatrons_argument() -> None:
    said = SMALL | {"overlap-grad-reduce": True, "ddp-bucket-size": 64}
    assert megatron_run(said, gpu="h100-sxm-80gb", gpus=8).plan["bucket_parameters"] == 64


@pytest.mark.parametrize("said", [{"bucket_parameters": 64}, {"gradient_checks": True}, {"weight_checks": True}])
def test_buckets_are_megatrons(said: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(said))):
        plan(backend="torch", precision="bf16-mixed", **said)
