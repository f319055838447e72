"""Forms of Mixture-of-Experts blocks: closed forms of their work, kernels as they are counted, drops by brute force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Layer, Moe
from moemodel.model.frameworks.base import Framework
from moemodel.model.frameworks.moe_form import MEASURED_BLOCK, measured_layer
from moemodel.model.frameworks.registry import FRAMEWORKS, framework_of
from moemodel.model.layers.base import MicroBatch
from moemodel.model.layers.layer import layer_blocks
from moemodel.model.layers.moe import MoeBlock
from moemodel.model.layers.routing import expert_rows, kept_share
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import Kind, work
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.router_policies import form_as_asked
from moemodel.model.plan.routing import RoutingSpec
from moemodel.model.plan.spec import Plan
from moemodel.model.step.layer_operators import Workload
from moemodel.model.step.system import framework_as_run

Batch = Callable[..., PlanBatch]

TOKENS, HIDDEN = 2048, 2048  # of one sequence of the fixture's plans; of OLMoE


def block(**changes: object) -> Moe:
    """OLMoE's: top 8 of 64, gated, 1024 wide."""
    found = read_architecture("olmoe-1b-7b").layers[-1].feed_forward
    assert isinstance(found, Moe)
    return replace(found, **changes)  # type: ignore[arg-type]


def calls_of(moe: Moe, plans: PlanBatch, framework: Framework) -> list[Call]:
    """Of one layer with such a block."""
    architecture = read_architecture("olmoe-1b-7b")
    layer: Layer = replace(architecture.layers[-1], feed_forward=moe)
    return Workload(architecture, plans, framework=framework, precision="bf16-mixed").layer(layer)


def flops(calls: list[Call], phase: Phase, *, gating: bool) -> float:
    """Of products in a phase, of the gating or of all else but attention."""
    return sum(
        float((call.count * work(call.kind, call.direction, call.shape).flops)[0])
        for call in calls
        if call.phase is phase
        and call.gating is gating
        and call.kind in (Kind.GEMM, Kind.GROUPED_GEMM)
        and np.max(call.shape.batch) == 1  # a product for every head is of attention
    )


# ---- products with masks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 1.25, 2.0])
@pytest.mark.parametrize("top_k", [1, 2, 8])
def test_masks_cost_products_of_all_tokens_with_all_places(batch: Batch, factor: float, top_k: int) -> None:
    """`sec,sm->ecm` and `sec,ecm->sm`: 2 S (E C) M FLOPs each; five of them, since the first mask has no gradient."""
    moe = block(top_k=top_k, capacity_factor=factor)
    calls = calls_of(moe, batch(), framework_of("deepspeed-einsum"))
    capacity = max(int(np.ceil(TOKENS * top_k * factor / 64)), 4)
    one = 2.0 * TOKENS * (64 * capacity) * HIDDEN
    router = 2.0 * TOKENS * 64 * HIDDEN
    assert flops(calls, Phase.FORWARD, gating=True) == pytest.approx(2 * one + router)
    assert flops(calls, Phase.BACKWARD, gating=True) == pytest.approx(3 * one + 2 * router)


def test_masks_are_kept(batch: Batch) -> None:
    """Of every token, for every place of every expert: 2 B of either mask; 4 B of places with many experts a token."""
    for top_k, size_B in ((1, 4), (2, 4), (8, 8)):
        moe = block(top_k=top_k, capacity_factor=1.0)
        kept = {name: kept_B(moe, batch(), framework_of(name)) for name in ("deepspeed", "deepspeed-einsum")}
        places = TOKENS * 64 * (TOKENS * top_k / 64)
        gathered_B = TOKENS * top_k * HIDDEN * 2 + 12 * TOKENS * top_k  # which the other form keeps in their place
        assert kept["deepspeed-einsum"] - kept["deepspeed"] == pytest.approx(size_B * places - gathered_B)


def kept_B(moe: Moe, plans: PlanBatch, framework: Framework) -> float:
    """That a block keeps for its backward pass."""
    micro_batch = MicroBatch.of(plans, framework, "bf16-mixed")
    return sum(float(one.size_B[0]) for one in MoeBlock(spec=moe, hidden=HIDDEN).kept(micro_batch))


def test_deepspeed_keeps_what_was_seen_of_its_layer(batch: Batch) -> None:
    """In bytes, seen on a processor with deepspeed 0.19.8, dropless: 4 T D of the float32 input, 2 of the rows, 8 of an
    expert's width, 2 of the chosen rows; indices and scores are thousandths of these."""
    found = kept_B(block(), batch(), framework_of("deepspeed"))
    rows = TOKENS * 8
    seen = 4 * TOKENS * HIDDEN + 2 * rows * HIDDEN + 8 * rows * 1024 + 2 * rows * HIDDEN
    assert found == pytest.approx(seen, rel=0.02)


# ---- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torch", "deepspeed", "fastmoe", "megatron-core-local", "megatron-core"])
def test_experts_multiply_the_rows_that_a_framework_gives_them(batch: Batch, name: str) -> None:
    """Where the busiest expert has 2.5 times the mean, a framework that pads dropless rows computes 2.5 as many."""
    padded = 2.5 if name == "deepspeed" else 1.0
    for skew in (1.0, 2.5):
        calls = calls_of(block(), batch(skew=skew), framework_of(name))
        attention = 2.0 * TOKENS * 4 * HIDDEN**2
        experts = flops(calls, Phase.FORWARD, gating=False) - attention
        expected = 2.0 * TOKENS * 8 * 3 * HIDDEN * 1024
        assert experts == pytest.approx(expected * (padded if skew > 1 else 1.0))


def test_a_capacity_is_a_whole_number_of_rows_and_four_at_least() -> None:
    form = framework_of("deepspeed").moe
    tokens = np.array([100.0, 64.0, 4096.0])
    found = expert_rows(block(top_k=1, capacity_factor=1.25), form, tokens, np.ones(3))
    assert (found.slots * tokens).tolist() == pytest.approx([64 * 4, 64 * 4, 64 * 80])


@pytest.mark.parametrize("experts", [8, 64])
@pytest.mark.parametrize("factor", [1.0, 1.25, 2.0])
@pytest.mark.parametrize("deviation", [0.2, 0.6])
def test_drops_are_those_of_drawn_loads(experts: int, factor: float, deviation: float) -> None:
    """Loads drawn from a log-normal distribution, cut one by one."""
    dice = np.random.default_rng(0)
    loads = np.exp(dice.normal(0, deviation, size=(20_000, experts)))
    loads /= loads.mean(axis=1, keepdims=True)
    kept = np.minimum(loads, factor).mean()
    skew = np.exp(np.log(loads.max(axis=1)).mean())
    # the largest load's logarithm is about the mean of normal scores, Blom's within 5 %
    assert kept_share(np.array([skew]), factor, experts)[0] == pytest.approx(kept, abs=0.04)


def test_nothing_is_dropped_where_the_busiest_has_room() -> None:
    assert kept_share(np.array([1.0, 1.2, 1.25]), 1.25, 64).tolist() == [1, 1, 1]
    shares = kept_share(np.linspace(1.3, 8, 30), 1.25, 64)
    assert (np.diff(shares) <= 0).all()
    assert (shares < 1).all()


def test_experts_that_choose_are_alike() -> None:
    moe = block(router="expert_choice", capacity_factor=2.0)
    found = expert_rows(moe, framework_of("torch").moe, np.array([4096.0]), np.array([3.0]))
    assert (found.slots.item(), found.skew.item()) == (16, 1)


# ---- what the host queues -------------------------------------------------------------------------------------------


def test_a_loop_over_experts_is_queued_expert_by_expert(batch: Batch) -> None:
    """DeepSpeed's layer, top 8 of 64 gated, as its operators were counted: 59 + 5 an expert, and 36 + 10."""
    plans = batch(ep=[1, 4], dp=4)
    found = MoeBlock(spec=block(), hidden=HIDDEN).more_launches(
        MicroBatch.of(plans, framework_of("deepspeed"), "bf16-mixed")
    )
    forward, backward = (more + torch for more, torch in zip(found, MEASURED_BLOCK, strict=True))
    assert forward.tolist() == [59 + 5 * 64, 59 + (5 + 2) * 16]  # chunks of several ranks' rows are copied twice
    assert backward.tolist() == [36 + 10 * 64, 36 + 10 * 16]


def test_megatron_queues_what_was_counted_of_a_layer(batch: Batch) -> None:
    """68 + 6 an expert forward, 65 + 13 backward, of a whole layer."""
    architecture = read_architecture("mixtral-8x7b")
    layer = layer_blocks(architecture.layers[-1], architecture.hidden)
    found = layer.more_launches(MicroBatch.of(batch(), framework_of("megatron-core-local"), "bf16-mixed"))
    measured = measured_layer(layer.host_block())
    assert [more.item() + torch for more, torch in zip(found, measured, strict=True)] == [68 + 6 * 8, 65 + 13 * 8]


@pytest.mark.parametrize("name", ["torch", "megatron-core", "nanotron"])
def test_others_queue_what_was_measured(batch: Batch, name: str) -> None:
    framework = FRAMEWORKS[name]
    found = MoeBlock(spec=block(), hidden=HIDDEN).more_launches(
        MicroBatch.of(batch(), framework, next(iter(framework.precisions)))
    )
    assert [more.item() for more in found] == [0, 0]


def test_policies_are_queued_and_move_bytes(batch: Batch) -> None:
    routing = RoutingSpec(jitter=0.01, z_loss=1e-3, balance_loss=0.01)
    framework = framework_of("torch")
    asked = replace(framework, moe=form_as_asked(framework, routing))
    plain, more = (calls_of(block(), batch(), one) for one in (framework, asked))
    queued = MoeBlock(spec=block(), hidden=HIDDEN).more_launches(MicroBatch.of(batch(), asked, "bf16-mixed"))
    counted = [
        sum(float(call.count[0]) for call in calls if call.phase is Phase.FORWARD and call.kind is Kind.COPY)
        for calls in (plain, more)
    ]
    assert counted[1] - counted[0] == queued[0].item() == 2 + 4 + 4


def test_the_host_waits_where_rows_are_counted(batch: Batch) -> None:
    """DeepSpeed for the largest count, FastMoE around each product of each expert; torch for rows of other ranks."""

    def waits(name: str, **changes: float) -> tuple[float, float]:
        micro_batch = MicroBatch.of(batch(ep=2, dp=2), framework_of(name), "bf16-mixed")
        found = MoeBlock(spec=block(**changes), hidden=HIDDEN).host_waits(micro_batch)
        return found.reads.item(), found.drains_forward.item()

    assert waits("torch") == (1, 0)
    assert waits("torch", capacity_factor=1.25) == (2, 0)
    assert waits("deepspeed") == (1, 0)
    assert waits("deepspeed", capacity_factor=1.25) == (0, 0)
    assert waits("fastmoe") == (5, 3 * 32)
    assert waits("megatron-core") == (1, 0)


class TestDeepSpeedItself:
    """Its layer, run here: operators that are no views, counted as they come to the dispatcher."""

    @pytest.mark.parametrize(("top_k", "capacity"), [(1, None), (2, None), (8, None), (2, 1.25)])
    def test_it_queues_as_many_kernels(self, top_k: int, capacity: float | None, batch: Batch) -> None:
        moe = pytest.importorskip("deepspeed.moe.sharded_moe", reason="DeepSpeed is not installed")
        from tests.model.layers.deepspeed_layer import counted_kernels

        forward, backward = counted_kernels(moe, experts=16, top_k=top_k, capacity=capacity)
        plans = batch()
        spec = block(experts=16, top_k=top_k, capacity_factor=capacity)
        found = MoeBlock(spec=spec, hidden=HIDDEN).more_launches(
            MicroBatch.of(plans, framework_of("deepspeed"), "bf16-mixed")
        )
        expected = [more.item() + torch for more, torch in zip(found, MEASURED_BLOCK, strict=True)]
        assert expected == pytest.approx([forward, backward], abs=7)


def test_experts_apart_are_tensors_apart(batch: Batch) -> None:
    """Three products of each of 64 experts, over four ranks, in place of two tensors of all."""
    plans = batch(ep=[1, 4], dp=4)
    for name, expected in (("torch", [0, 0]), ("fastmoe", [190, 46]), ("megatron-core-local", [126, 30])):
        micro_batch = MicroBatch.of(plans, framework_of(name), "bf16-mixed")
        assert MoeBlock(spec=block(), hidden=HIDDEN).more_tensors(micro_batch).tolist() == expected


# ---- padding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [1.0, 2.0, 5.0])
def test_rows_that_pad_a_buffer_are_zeros_and_take_less_energy(batch: Batch, skew: float) -> None:
    """Of `skew` rows one is a token's; zeros take 0.573 of what numbers do, as measured of an H200."""
    calls = calls_of(block(), batch(skew=skew), framework_of("deepspeed"))
    products = [call for call in calls if call.kind is Kind.GEMM and np.allclose(call.count, 64.0)]
    assert len(products) == 9  # gate, up, down; and two each of their gradients
    for call in products:
        assert np.ravel(call.operand_energy)[0] == pytest.approx((1 + 0.573 * (skew - 1)) / skew, rel=1e-3)
    others = [call for call in calls_of(block(), batch(), framework_of("torch")) if np.any(call.operand_energy != 1.0)]
    assert not others


def test_deepspeed_keeps_two_copies_of_rows_from_other_ranks(batch: Batch) -> None:
    """`Experts.forward` cuts chunks of [ep, L, C, D]: gate and up each copy theirs, of 2 B, and keep it."""
    plans = batch(dp=4, ep=4, skew=2.0)
    spread = kept_B(block(), plans, framework_of("deepspeed"))
    form = framework_of("deepspeed").moe
    assert form.launches is not None
    own = replace(framework_of("deepspeed"), moe=replace(form, launches=replace(form.launches, each_spread=0.0)))
    alone = kept_B(block(), plans, own)
    rows = TOKENS * 8 * 2.0  # of all experts' buffers, of as many tokens on each rank
    assert spread - alone == pytest.approx(2 * 2.0 * rows * HIDDEN)


# ---- biases, and inner rows that are clamped ------------------------------------------------------------------------


def _moved_B(calls: list[Call], phase: Phase) -> tuple[float, float]:
    """Bytes of all copies in a phase, and how many there are."""
    copies = [call for call in calls if call.phase is phase and call.kind is Kind.COPY]
    moved_B = sum(4.0 * float((call.count * call.shape.arrays()["m"])[0]) for call in copies)
    return moved_B, sum(float(call.count[0]) for call in copies)


@pytest.mark.parametrize("backend", ["megatron", "megatron-core"])
def test_biases_and_clamps_move_what_is_counted_by_hand(batch: Batch, backend: str) -> None:
    """Of gpt-oss, in bytes of each element, kernel by kernel of torch, as the code of Megatron Core has it."""
    framework, plans = framework_of(backend), batch(micro_batch=1, seq=TOKENS)
    plain, dressed = block(bias=False), block(bias=True, clamped=True)
    rows, experts = TOKENS * 8, 64
    # b p: 4 written; t + b p: 2 + 4 read, 4 written; cat: 4 + 4; to 16 bits: 4 + 2
    biases_B = 4 + 10 + 8 + 6
    # to float32 2 + 4, t's gradient to 16 bits 4 + 2, g p 4 + 4, summed 4, g b 4 + 4, summed 4, t's parts 2 + 2
    biases_back_B = 6 + 6 + 8 + 4 + 8 + 4 + 4
    # two halves clamped, 2 + 2 each, and put side by side, 2 tensors of 2 + 2
    clamps_B = 4 + 4 + 8
    # >= and <= (2 + 1 each), and (1 + 1 + 1), where (1 + 2 + 2); <= and where; two halves side by side
    clamps_back_B = 3 + 3 + 3 + 5 + 3 + 5 + 8
    for phase, by_row_B, by_inner_B, kernels in (
        (Phase.FORWARD, biases_B, clamps_B, 2 * experts + 2 + 3),
        (Phase.BACKWARD, biases_back_B, clamps_back_B, 11 * experts + 2 + 9),
    ):
        before, after = (_moved_B(calls_of(moe, plans, framework), phase) for moe in (plain, dressed))
        expected_B = rows * (by_row_B * HIDDEN + by_inner_B * dressed.width)
        assert after[0] - before[0] == pytest.approx(expected_B, rel=1e-9)
        assert after[1] - before[1] == pytest.approx(kernels)


def test_the_host_queues_them_as_torch_does(batch: Batch) -> None:
    framework, plans = framework_of("megatron-core"), batch(micro_batch=1, seq=TOKENS)
    known = MicroBatch.of(plans, framework, "bf16-mixed")
    forward, backward = (
        part[0] for part in MoeBlock(spec=block(bias=True, clamped=True), hidden=HIDDEN).more_launches(known)
    )
    assert forward * framework.host_factors.forward == pytest.approx(2 * 64 + 5)
    assert backward * framework.host_factors.backward == pytest.approx(11 * 64 + 11)
    waits = MoeBlock(spec=block(clamped=True), hidden=HIDDEN).host_waits(known).reads
    assert waits == pytest.approx(MoeBlock(spec=block(), hidden=HIDDEN).host_waits(known).reads + 1)


def test_clamped_rows_stay_unless_they_are_computed_again(batch: Batch) -> None:
    """Side by side in 16 bits, twice an expert's width; of what `moe_act` computes again."""
    framework, plans = framework_of("megatron-core"), batch(micro_batch=1, seq=TOKENS)
    known = MicroBatch.of(plans, framework, "bf16-mixed")
    kept = list(MoeBlock(spec=block(clamped=True), hidden=HIDDEN).kept(known))
    before = list(MoeBlock(spec=block(), hidden=HIDDEN).kept(known))
    (more,) = kept[len(before) :] or [one for one in kept if one not in before]
    assert more.parts == ("moe", "moe_act")
    assert more.size_B == pytest.approx(TOKENS * 8 * block().width * 2 * 2.0)


@pytest.mark.parametrize(("backend", "kind"), [("megatron-core", Kind.ROTARY), ("torchtitan", Kind.ROTARY)])
def test_rotation_that_scales_is_no_fused_kernel_of_megatron(batch: Batch, backend: str, kind: Kind) -> None:
    framework, architecture = framework_of(backend), read_architecture("olmoe-1b-7b")
    layer = architecture.layers[0]
    (attention,) = layer.attentions
    scaled = replace(layer, attentions=(replace(attention, scaled_rotary=True),))
    workload = Workload(architecture, batch(), framework=framework, precision="bf16-mixed")
    kinds = [{call.kind for call in workload.layer(one)} for one in (layer, scaled)]
    assert kind in kinds[1]
    if backend == "megatron-core":
        assert kind not in kinds[0]
    else:
        assert kinds[0] == kinds[1]


# ---- products and casts of 8 bits -----------------------------------------------------------------------------------


def of_experts(batch: Batch, precision: str, *, captured: bool = False) -> tuple[list[Call], list[Call]]:
    """Products of OLMoE's experts in Megatron, all on one GPU, and casts of their rows."""
    plan = {"architecture": "olmoe-1b-7b", "sequence_length": TOKENS, "global_batch": 1, "backend": "megatron-core"}
    plan |= {"precision": precision, "cuda_graphs": captured or None, "parallel": {"dp": 1}}
    framework = framework_as_run(Plan.model_validate(plan | {"cluster": {"gpu": "gb200-186gb", "gpus": 1}}))
    architecture = read_architecture("olmoe-1b-7b")
    workload = Workload(architecture, batch(), framework=framework, precision=precision)  # type: ignore[arg-type]
    calls = workload.layer(architecture.layers[0])
    products = [call for call in calls if call.kind is Kind.GROUPED_GEMM]
    return products, [call for call in calls if np.any(call.sm_cycles)]


def test_each_expert_of_8_bits_has_ten_kernels(batch: Batch) -> None:
    """Six products, and rows and gradients of both cast: 0.21 cycles a byte, of which MXFP8 moves 4 an element."""
    products, casts = of_experts(batch, "mxfp8")
    assert (len(products), len(casts)) == (6, 4)
    assert [float(np.max(call.added_s)) for call in products + casts] == [pytest.approx(64 * 8e-6)] * 10
    elements = 8 * TOKENS * np.array([HIDDEN, 1024, 2 * 1024, HIDDEN])  # inputs of both; gradients of both outputs
    found = sorted(float(np.max(call.sm_cycles)) for call in casts)
    assert found == pytest.approx(sorted(0.21 * 4 * elements))


def test_experts_of_16_bits_have_nothing_beside_their_products(batch: Batch) -> None:
    products, casts = of_experts(batch, "bf16-mixed")
    assert (len(products), casts) == (6, [])
    assert not any(np.any(call.added_s) for call in products)


def test_experts_in_a_graph_run_together(batch: Batch) -> None:
    """Sizes stay on the device, so kernels are of all experts; inner rows and their gradients are cast on the way."""
    products, casts = of_experts(batch, "mxfp8", captured=True)
    assert len(products) == 6
    assert not any(np.any(call.added_s) for call in products + casts)
    found = [float(np.max(call.sm_cycles)) for call in casts]
    assert found == pytest.approx([0.21 * 4 * 8 * TOKENS * HIDDEN] * 2)
