"""Adapters beside frozen weights: parameters, FLOPs and bytes against closed forms, and a published speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InputError
from moemodel.model.layers.adapted_model import model_adapters
from moemodel.model.layers.base import MicroBatch
from moemodel.model.layers.flops import model_flops
from moemodel.model.layers.layer import layer_blocks
from moemodel.model.layers.parameters import parameters
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.predict.prediction import Prediction
from moemodel.model.records.calibration import Calibration
from moemodel.model.step.system import framework_as_run, system_of
from moemodel.model.step.volumes import StepVolumes, step_volumes

MakePlan = Callable[..., Plan]

# Llama 3 8B: 32 layers of width 4096, 4096 + 2 x 1024 outputs of attention's inputs, feed-forward blocks of 14336
LAYERS, H, QKV, F = 32, 4096, 4096 + 2 * 1024, 14336
FUSED = {"qkv": H + QKV, "proj": 2 * H, "fc1": H + 2 * F, "fc2": F + H}
TOKENS = 2048
APART = FUSED | {"qkv": 3 * H + QKV, "fc1": 2 * (H + F)}


@pytest.fixture
def plan(plan_of: MakePlan) -> Callable[..., Plan]:
    def make(lora: dict[str, Any] | None, *, backend: str = "megatron-core", **others: Any) -> Plan:
        parallel = {"dp": 1} | others.pop("parallel", {})
        gpus = int(np.prod([parallel.get(degree, 1) for degree in ("dp", "tp", "pp", "cp")]))
        return plan_of(
            **{"architecture": "llama-3-8b", "global_batch": 4 * parallel["dp"]} | others,
            backend=backend,
            lora=lora,
            parallel=parallel,
            cluster={"gpus": gpus},
        )

    return make


@pytest.fixture
def found(plan: Callable[..., Plan], calibration: Calibration) -> Callable[..., Prediction]:
    def make(lora: dict[str, Any] | None, **others: Any) -> Prediction:
        made = plan(lora, **others)
        return predict(architecture_of(made), batch_of(made), system_of(made, calibration))

    return make


@pytest.fixture
def volumes(plan: Callable[..., Plan], calibration: Calibration) -> Callable[..., StepVolumes]:
    """Of a step of four micro-batches."""

    def make(**lora: Any) -> StepVolumes:
        others = {key: lora.pop(key) for key in ("parallel", "tp_comm_overlap") if key in lora}
        made = plan({"rank": 16} | lora, **others)
        return step_volumes(architecture_of(made), batch_of(made), system_of(made, calibration))

    return make


@pytest.mark.parametrize(("backend", "sizes"), [("megatron-core", FUSED), ("torch", APART)])
@pytest.mark.parametrize("targets", [("qkv",), ("proj", "fc2"), ("qkv", "proj", "fc1", "fc2")])
def test_parameters(backend: str, sizes: dict[str, int], targets: tuple[str, ...], plan: Callable[..., Plan]) -> None:
    """r (k + n) for each product (Hu et al. 2021, section 4.2)."""
    made = plan({"rank": 16, "targets": targets}, backend=backend)
    trained = model_adapters(architecture_of(made), framework_as_run(made), made.precision)
    assert trained == 16 * LAYERS * sum(sizes[name] for name in targets)


def test_memory_of_states(found: Callable[..., Prediction]) -> None:
    """Weights 2 bytes; gradients and states of adapters alone: 2 and 12 over dp."""
    adapted = found({"rank": 16}, parallel={"dp": 8, "zero_stage": 1})
    trained, frozen = 16 * LAYERS * sum(FUSED.values()), parameters(read_architecture("llama-3-8b")).total
    terms = adapted.memory_terms_B
    assert terms["parameters"][0] == pytest.approx(2 * (frozen + trained))
    assert terms["gradients"][0] == pytest.approx(2 * trained)
    assert terms["optimizer_states"][0] == pytest.approx(12 * trained / 8)


@pytest.mark.parametrize("tp", [2, 4])
def test_tensor_parallel_ranks_share_adapters(tp: int, found: Callable[..., Prediction]) -> None:
    adapted = found({"rank": 16}, parallel={"tp": tp})
    assert adapted.memory_terms_B["optimizer_states"][0] == pytest.approx(12 * 16 * LAYERS * sum(FUSED.values()) / tp)


def test_frozen_shards_are_gathered_in_every_pass(plan: Callable[..., Plan], calibration: Calibration) -> None:
    """ZeRO 3: as many bytes of parameters as where all is trained, and of gradients next to none; ZeRO 1 sends next to
    nothing."""

    def sent_B(lora: dict[str, Any] | None, zero: int) -> float:
        made = plan(lora, backend="torch", parallel={"dp": 8, "zero_stage": zero})
        volumes = step_volumes(architecture_of(made), batch_of(made), system_of(made, calibration))
        return float(volumes.sent_B["dp"][0])

    every_B = 2 * parameters(read_architecture("llama-3-8b")).total * 7 / 8
    ends_B = 2 * 2 * 128256 * H * 7 / 8
    micro_batches = 4
    adapters_B = 2 * 16 * LAYERS * sum(APART.values())
    assert sent_B({"rank": 16}, 3) == pytest.approx(micro_batches * (2 * every_B - ends_B), rel=0.02)
    assert sent_B({"rank": 16}, 1) < 4 * adapters_B
    assert sent_B(None, 1) > 1.9 * every_B


def test_flops_of_forward_and_half_of_backward(plan: Callable[..., Plan], calibration: Calibration) -> None:
    """2 FLOPs of a weight forward and 2 backward, not 4; 6 of an adapter's."""
    architecture = read_architecture("llama-3-8b")
    whole, adapted = plan(None), plan({"rank": 16})
    done = [
        step_volumes(architecture, batch_of(made), system_of(made, calibration)).flops[0] for made in (whole, adapted)
    ]
    tokens = whole.global_batch * whole.sequence_length
    weights = (
        parameters(architecture).total - 128256 * H - (2 * LAYERS + 1) * H
    )  # an embedding and norms multiply nothing
    trained = 16 * LAYERS * sum(FUSED.values())
    assert done[0] - done[1] == pytest.approx((2 * weights - 6 * trained) * tokens)
    counted = model_flops(architecture, np.array([whole.sequence_length]), adapters=float(trained))[0]
    plain = model_flops(architecture, np.array([whole.sequence_length]))[0]
    assert plain - counted == pytest.approx((2 * weights - 6 * trained) * whole.sequence_length)


def test_inputs_that_nobody_needs_are_not_kept(found: Callable[..., Prediction]) -> None:
    """Of queries alone: less stay a tensor of a norm's width and one of the hidden width, of each token and layer."""
    some, every = found({"rank": 1, "targets": ["qkv"]}), found({"rank": 1})
    tokens = 2048
    inner_B = 2 * tokens * 3  # of the adapters that are not there
    less_B = LAYERS * (2 * tokens * (H + F) + inner_B)
    kept = [one.memory_terms_B["activations"][0] for one in (every, some)]
    assert kept[0] - kept[1] == pytest.approx(less_B, rel=0.05)


def test_dropout_reads_and_writes_inputs_and_its_mask(
    volumes: Callable[..., StepVolumes], found: Callable[..., Prediction]
) -> None:
    """Five bytes of an element either way. The mask stays, a byte, and what dropout has left: in place of a norm's
    output, but beside attention's, which attention reads backward."""
    elements = LAYERS * TOKENS * 2 * H  # inputs of attention, and of its output's product
    lora = {"targets": ["qkv", "proj"]}
    moved_B = [volumes(**lora, dropout=drops).memory_traffic_B[0] for drops in (False, True)]
    assert moved_B[1] - moved_B[0] == pytest.approx(4 * 2 * 5 * elements)
    kept = [found({"rank": 16, "dropout": d} | lora).memory_terms_B["activations"][0] for d in (False, True)]
    assert kept[1] - kept[0] == pytest.approx(elements + 2 * elements / 2, rel=0.01)


@pytest.fixture
def kept_B() -> Callable[..., float]:
    """Of a layer of Llama 3 70B, of a micro-batch of 8,192 tokens."""

    def make(lora: dict[str, Any] | None, **others: Any) -> float:
        parallel = {"tp": 4, "sequence_parallel": True} | others.pop("parallel", {})
        made = Plan.model_validate(
            {
                "architecture": "llama-3-70b",
                "sequence_length": 8192,
                "global_batch": 1,
                "backend": "megatron-core",
                "precision": "bf16-mixed",
                "lora": lora,
                "cluster": {"gpu": "h100-sxm-80gb", "gpus": parallel["tp"]},
                "parallel": parallel,
            }
            | others
        )
        batch = MicroBatch.of(batch_of(made), framework_as_run(made), made.precision)
        (layer,) = set(architecture_of(made).layers)
        return float(sum(np.asarray(kept.size_B) for kept in layer_blocks(layer, 8192).kept(batch))[0])

    return make


@pytest.mark.parametrize("precision", ["bf16-mixed", "fp8"])
@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize("target", ["qkv", "fc1"])
def test_adapters_behind_norms_keep_all_tokens_in_16_bits(
    target: str, tp: int, precision: str, kept_B: Callable[..., float]
) -> None:
    """134 MB of a layer, in place of what the frozen product need not keep, and an inner tensor of 16 columns."""
    parallel = {"tp": tp, "sequence_parallel": tp > 1}
    without, beside = (
        kept_B({"rank": 16, "targets": targets}, precision=precision, parallel=parallel)
        for targets in (["proj"], ["proj", target])
    )
    assert beside - without == 2 * 8192 * (8192 + 16)


@pytest.mark.parametrize("precision", ["bf16-mixed", "fp8"])
def test_adapters_behind_activations_keep_16_bits(precision: str, kept_B: Callable[..., float]) -> None:
    """Of a rank's quarter of 28,672 features."""
    without, beside = (
        kept_B({"rank": 16, "targets": targets}, precision=precision) for targets in (["proj"], ["proj", "fc2"])
    )
    assert beside - without == 2 * 8192 * (28672 / 4 + 16)


def test_frozen_products_keep_nothing_in_8_bits(kept_B: Callable[..., float]) -> None:
    """Casts are for gradients of weights; all else that a layer keeps is as wide as under 16 bits."""
    narrow, wide = (kept_B({"rank": 16}, precision=precision) for precision in ("fp8", "bf16-mixed"))
    assert narrow == wide


@pytest.mark.parametrize(("buffers", "masked"), [(None, 8192), (True, 8192 / 4)])
def test_dropout_masks_what_it_reads(buffers: bool | None, masked: float, kept_B: Callable[..., float]) -> None:
    """Gathered tokens, but before the gather where exchanges run over user buffers: a byte of each; A keeps all tokens
    either way."""
    lora = {"rank": 16, "targets": ["qkv"]}
    plain, drops = (kept_B(lora | {"dropout": d}, tp_comm_overlap=buffers) for d in (False, True))
    assert drops - plain == masked * 8192


@pytest.mark.parametrize(("target", "sums"), [("qkv", 1 + 2), ("proj", 2 + 2)])
def test_inner_tensors_are_gathered_or_summed_over_ranks(
    target: str, sums: int, volumes: Callable[..., StepVolumes]
) -> None:
    """By rings, once either way: an all-gather sends each rank's (t - 1)/t, an all-reduce twice as much."""
    sharded = {"tp": 4, "sequence_parallel": True}
    sent_B = [volumes(rank=r, targets=[target], parallel=sharded).sent_B["tp"][0] for r in (16, 48)]
    assert sent_B[1] - sent_B[0] == pytest.approx(4 * LAYERS * sums * 3 / 4 * 2 * TOKENS * (48 - 16))


def test_an_all_to_all_sends_a_rank_its_tokens_alone(volumes: Callable[..., StepVolumes]) -> None:
    """A tp-th of what all ranks gather, forward and backward."""
    output_B = 3 / 4 * 2 * TOKENS * H

    def sent_B(*, ordered: bool) -> float:
        sharded = {"tp": 4, "sequence_parallel": True}
        return float(volumes(targets=["proj"], all_to_all=ordered, parallel=sharded).sent_B["tp"][0])

    saved_B = sent_B(ordered=False) - sent_B(ordered=True)
    assert saved_B == pytest.approx(4 * LAYERS * 2 * (output_B - output_B / 4))


@pytest.mark.parametrize(("targets", "gathers"), [(["qkv"], 1), (["qkv", "fc1"], 2), (["proj"], 0)])
def test_over_user_buffers_adapters_gather_their_input_themselves(
    targets: list[str], gathers: int, volumes: Callable[..., StepVolumes]
) -> None:
    """Once more than the frozen product, and scatter its gradient: by rings 3/4 of it from each of four ranks."""
    sharded = {"tp": 4, "sequence_parallel": True}
    plain, over = (volumes(targets=targets, parallel=sharded, tp_comm_overlap=o).sent_B["tp"][0] for o in (None, True))
    assert over - plain == pytest.approx(4 * LAYERS * gathers * 2 * 3 / 4 * 2 * TOKENS * H)


def test_llama_70b_on_eight_h100() -> None:
    """Megatron-Bridge, docs/performance-summary-archive.md, 26.02: FP8, LoRA of linear_qkv, 2,643 tokens/s of a GPU
    (1.61 times those of full fine-tuning on 32)."""
    made = Plan.model_validate(
        {
            "architecture": "llama-3-70b",
            "sequence_length": 4096,
            "global_batch": 32,
            "backend": "megatron-core",
            "precision": "fp8",
            "lora": {"rank": 16, "targets": ["qkv"]},
            "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
            "parallel": {"tp": 2, "pp": 4, "virtual_stages": 20, "sequence_parallel": True},
        }
    )
    adapted = predict(architecture_of(made), batch_of(made), system_of(made, shipped("h100-sxm-80gb")))
    assert adapted.tokens[0] / adapted.step_time_s[0] / 8 == pytest.approx(2643, rel=0.15)
    assert bool(adapted.fits[0])


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ({"rank": 0}, "lora.rank"),
        ({}, "lora.rank"),
        ({"rank": 8, "targets": []}, "one or more of qkv, proj, fc1, fc2"),
        ({"rank": 8, "targets": ["qkv", "qkv"]}, "each once"),
        ({"rank": 8, "targets": ["experts"]}, "lora.targets"),
        ({"rank": 8, "dropout": 1.5}, "lora.dropout: found 1.5; allowed: true, false, or a probability, from 0 to 1"),
        ({"rank": 8, "dropout": "some"}, "lora.dropout: found 'some'; allowed: true, false, or a probability"),
        (
            {"rank": 8, "targets": ["qkv"], "all_to_all": True},
            "all_to_all: found true with targets qkv; allowed: false, or proj or fc2 among the targets",
        ),
        (
            {"rank": 8, "all_to_all": True},
            "lora.all_to_all: found true with parallel.tp 1 and sequence_parallel false; allowed: false, or true with",
        ),
    ],
)
def test_what_is_refused(lora: dict[str, Any], says: str, plan_of: MakePlan) -> None:
    with pytest.raises(InputError, match="lora") as caught:
        plan_of(lora=lora)
    assert says in str(caught.value)


@pytest.mark.parametrize(("said", "drops"), [(0.1, True), (1, True), (True, True), ("off", False), (0, False)])
def test_dropout_is_a_probability_or_a_switch(said: float | str, drops: bool, plan_of: MakePlan) -> None:
    plan = plan_of(lora={"rank": 8, "dropout": said}, backend="megatron-core")
    lora = framework_as_run(plan).lora
    assert lora is not None
    assert lora.dropout is drops
    assert Plan.model_validate(plan.model_dump()) == plan


def test_what_adapters_read_is_gathered_before_products(found: Callable[..., Prediction]) -> None:
    """Of two gathers of a forward pass the one before the products of attention's inputs, or both; and adapters do."""
    parallel = {"tp": 2, "sequence_parallel": True}

    def exposed_s(*targets: str) -> float:
        lora = {"rank": 16, "targets": targets} if targets else None
        changes = {"parallel": parallel, "sequence_length": 8192}
        shown, hidden = (found(lora, tp_comm_overlap=o, **changes).exposed_communication_s[0] for o in (False, True))
        return float(hidden / shown)

    assert exposed_s() < exposed_s("qkv") < exposed_s("qkv", "fc1")
    assert exposed_s() < 1
