"""How frameworks differ: what they send and when, how they cut models and experts, their element sizes and products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import InputError
from moemodel.model.frameworks.base import Precision
from moemodel.model.frameworks.registry import FRAMEWORKS, framework_of
from moemodel.model.network.collectives import Network
from moemodel.model.operators.calls import Call
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.outcome import outcome
from moemodel.model.schedule.pipeline_layout import PipelineLayout, stages
from moemodel.model.step.layer_operators import Workload
from moemodel.model.step.memory import MemoryModel
from moemodel.model.step.microbatch_comm import Communication, Exchange
from moemodel.model.step.system import System, system_of
from tests.networks import NODE

Batch = Callable[..., PlanBatch]
MakePlan = Callable[..., Plan]


@pytest.fixture(scope="module")
def olmoe() -> Architecture:
    return read_architecture("olmoe-1b-7b")


@pytest.fixture(scope="module")
def opt() -> Architecture:
    return read_architecture("opt-350m")


def talk(architecture: Architecture, plans: PlanBatch, network: Network = NODE, **facts: Any) -> Communication:
    """Under Megatron-LM, but for some facts."""
    framework = replace(framework_of("megatron"), **facts)
    return Communication(architecture, plans, network, framework=framework, precision="bf16-mixed")


def sent(architecture: Architecture, plans: PlanBatch, **facts: Any) -> Exchange:
    """An activation from the first stage to the next."""
    return talk(architecture, plans, **facts).pipeline_p2p(first=True, last=False)[0]


def calls(
    architecture: Architecture, plans: PlanBatch, backend: str, precision: Precision = "bf16-mixed"
) -> list[Call]:
    return Workload(architecture, plans, framework=framework_of(backend), precision=precision).layer(
        architecture.layers[-1]
    )


def work_of(found: list[Call], kind: Kind, direction: Pass) -> float:
    """m n k of all calls of an operator."""
    own = [call.shape.arrays() for call in found if call.kind is kind and call.direction is direction]
    return float(sum((s["m"] * s["n"] * s["k"]).sum() for s in own))


# ---- what is sent, and when ----


def test_what_runs_behind_computation_may_hide(olmoe: Architecture, batch: Batch) -> None:
    plans = batch(dp=8, ep=8, tp=2, pp=2)
    shown, _ = talk(olmoe, plans).layer(olmoe.layers[0])
    assert shown.overlappable.time_s == 0
    for name in ("tp", "ep"):
        some, back = talk(olmoe, plans, overlapped=frozenset({name})).layer(olmoe.layers[0])
        assert 0 < some.overlappable.time_s < shown.exposed_s
        assert some.exposed_s + some.overlappable.time_s == pytest.approx(shown.exposed_s)
        assert back.exposed_s + back.overlappable.time_s == pytest.approx(shown.exposed_s)
    hidden, shown = (
        sent(olmoe, plans, overlapped=overlappable) for overlappable in (frozenset({"pp"}), frozenset[str]())
    )
    assert hidden.exposed_s == 0
    assert hidden.overlappable.time_s == shown.exposed_s > 0


def _of_width(architecture: Architecture, plans: PlanBatch, element_size_B: float) -> Communication:
    """Whose elements have so many bytes."""
    recipe = replace(framework_of("megatron").precisions["bf16-mixed"], element_size_B=element_size_B)
    return talk(architecture, plans, precisions={"bf16-mixed": recipe})


def test_wider_elements_take_longer(olmoe: Architecture, batch: Batch) -> None:
    plans = batch(dp=8, ep=8, tp=2, pp=2)
    two, four = (_of_width(olmoe, plans, width) for width in (2.0, 4.0))
    assert four.layer(olmoe.layers[0])[0].exposed_s == pytest.approx(2 * two.layer(olmoe.layers[0])[0].exposed_s)
    narrow, wide = (comm.pipeline_p2p(first=True, last=False)[0] for comm in (two, four))
    assert wide.exposed_s == pytest.approx(2 * narrow.exposed_s)


def test_deepspeed_sends_parts_one_after_another(opt: Architecture, batch: Batch) -> None:
    """Two messages on a boundary for a micro-batch, each of half the tensor under tp 2, which the receivers gather."""
    plans = batch(pp=4, tp=2, micro_batch=2)
    engine = talk(opt, plans, NODE, pipeline="deepspeed")
    whole_B = 2 * 2 * 2048 * opt.hidden  # bf16
    message_s, described_s = whole_B / 2 / 400e9, 72 / 400e9
    gather_s = whole_B / 2 / 400e9  # the other's half
    first, inside, last = (
        [exchange.exposed_s[0] for exchange in engine.pipeline_p2p(first=f, last=z)]
        for f, z in ((True, False), (False, False), (False, True))
    )
    one = message_s + described_s
    assert first == pytest.approx([one, one + 2 * gather_s])
    assert inside == pytest.approx([2 * one + gather_s, 2 * one + 2 * gather_s])
    assert last == pytest.approx([one + gather_s, one])


def test_a_host_that_makes_buffers_delays_who_receives(opt: Architecture, batch: Batch) -> None:
    """The whole tensor's bytes at 1 GB/s, on receiving stages alone, and not without a pipeline."""
    plans = batch(pp=[1, 4], dp=[4, 1], tp=2, micro_batch=2)
    at_once, slowly = (
        [
            np.array([exchange.exposed_s for exchange in engine.pipeline_p2p(first=f, last=z)])
            for f, z in ((True, False), (False, False), (False, True))
        ]
        for engine in (
            talk(opt, plans, NODE, pipeline="deepspeed"),
            talk(opt, plans, NODE, pipeline="deepspeed", message_copy_Bps=1e9),
        )
    )
    one_s = 2 * 2 * 2048 * 1024 * 2 / 1e9 / 2  # two sequences of 2,048 tokens 1,024 wide in bf16
    later = [slow - quick for slow, quick in zip(slowly, at_once, strict=True)]
    assert later[0] == pytest.approx(np.array([[0, 0], [0, one_s]]))
    assert later[1] == pytest.approx(np.array([[0, one_s], [0, one_s]]))
    assert later[2] == pytest.approx(np.array([[0, one_s], [0, 0]]))


def test_deepspeed_sends_whole_tensors_without_tensor_parallelism(opt: Architecture, batch: Batch) -> None:
    plans = batch(pp=[1, 2], dp=[2, 1])
    there, back = talk(opt, plans, NODE, pipeline="deepspeed").pipeline_p2p(first=True, last=False)
    assert there.exposed_s == pytest.approx([0, 2 * 2048 * opt.hidden / 400e9])
    assert back.exposed_s == pytest.approx(there.exposed_s)
    assert there.calls.messages.tolist() == [0, 1]


@pytest.mark.parametrize(("sequence_parallel", "gathers"), [(0, 1), (1, 0)])
def test_megatron_of_2021_sends_parts_over_every_nic(
    opt: Architecture, batch: Batch, sequence_parallel: int, gathers: int
) -> None:
    """tp 8 fills a node: an eighth over each NIC, the other seven by NVLink; shards of sequences go as they are."""
    plans = batch(pp=4, tp=8, sequence_parallel=sequence_parallel)
    whole_B = 2 * 2048 * opt.hidden  # bf16
    part_s, gather_s = whole_B / 8 / 50e9, gathers * whole_B * (7 / 8) / 400e9
    cut = talk(opt, plans, NODE, cuts_messages=True)
    first, inside = (cut.pipeline_p2p(first=f, last=False) for f in (True, False))
    assert [each.exposed_s[0] for each in first] == pytest.approx([part_s, part_s + gather_s])
    assert [each.exposed_s[0] for each in inside] == pytest.approx([part_s + gather_s] * 2)
    assert cut.message_B() == pytest.approx(whole_B / 8)
    whole = talk(opt, plans, NODE).pipeline_p2p(first=True, last=False)[0]
    assert whole.exposed_s == pytest.approx(whole_B / 50e9 / (8 if sequence_parallel else 1))


def test_which_framework_sends_parts() -> None:
    assert {name for name, framework in FRAMEWORKS.items() if framework.cuts_messages} == {"megatron-v2"}


# ---- experts that tp does not cut ----


def test_whole_experts_do_the_same_work(olmoe: Architecture, batch: Batch) -> None:
    """Of as many rows in fewer, wider products; and as many parameters on a GPU where ep counts the tp ranks."""
    cut = calls(olmoe, batch(dp=8, tp=2, ep=4, sequence_parallel=1), "megatron")
    whole = calls(olmoe, batch(dp=8, tp=2, ep=8, sequence_parallel=1), "megatron-core")
    for direction in (Pass.FORWARD, Pass.BACKWARD_WEIGHT):
        assert work_of(whole, Kind.GROUPED_GEMM, direction) == pytest.approx(work_of(cut, Kind.GROUPED_GEMM, direction))


def test_whole_experts_take_the_memory_of_cut_ones(olmoe: Architecture, batch: Batch, machine: System) -> None:
    stage = stages(olmoe, 1, 1)[0]
    memory = [
        MemoryModel(
            olmoe, plans, framework=framework_of(backend), precision="bf16-mixed", calibration=machine.calibration
        )
        for plans, backend in (
            (batch(dp=8, tp=2, ep=4, zero_stage=1), "megatron"),
            (batch(dp=8, tp=2, ep=8, zero_stage=1), "megatron-core"),
        )
    ]
    cut, whole = (model.shard(stage) for model in memory)
    assert whole.expert == pytest.approx(cut.expert)
    assert memory[1].owned(whole) == pytest.approx(memory[0].owned(cut))


def test_whole_experts_send_no_rows_over_tp(olmoe: Architecture, batch: Batch) -> None:
    plans = batch(dp=4, tp=2, ep=8, sequence_parallel=1)
    cut, whole = (
        talk(olmoe, plans, shards_experts=not whole).layer(olmoe.layers[0])[0].exposed_s for whole in (False, True)
    )
    assert whole < cut


# ---- element sizes and products ----


def test_float32_words_double_what_is_kept(opt: Architecture, batch: Batch, machine: System) -> None:
    plans = batch(micro_batch=2)
    wide = MemoryModel(
        opt, plans, framework=framework_of("megatron-deepspeed"), precision="fp32", calibration=machine.calibration
    ).kept(opt.layers[0])
    narrow = MemoryModel(
        opt, plans, framework=framework_of("megatron-v2"), precision="bf16", calibration=machine.calibration
    )
    scores = plans.micro_batch * 16 * plans.seq**2
    # no dropout: everything twice, but statistics of norms, and of the scores probabilities alone
    dropped = (1 + 2) * scores + 2 * plans.micro_batch * plans.seq * opt.hidden
    statistics = 2 * 4.0 * 2 * plans.micro_batch * plans.seq
    assert wide == pytest.approx(2 * (narrow.kept(opt.layers[0]) - dropped - statistics) + statistics)


def test_float32_recipe_has_sixteen_bytes_a_parameter() -> None:
    recipe = framework_of("megatron-deepspeed").precisions["fp32"]
    assert recipe.weight_B + recipe.gradient_B + recipe.state_B == 16


def test_a_plain_softmax_is_two_kernels(opt: Architecture, batch: Batch) -> None:
    plans = batch(micro_batch=1)
    scores = float(plans.seq[0]) ** 2 * 16
    copies = [
        float(np.max(call.shape.arrays()["m"]))
        for call in calls(opt, plans, "megatron-deepspeed", "fp32")
        if call.kind is Kind.COPY and call.phase == "forward"
    ]
    # as copies of so many elements: filling takes 1.6 times a copy's time, softmax over rows 1.33 times (measured), and
    # 1.25 times that with the torch that it was published with
    assert copies[:2] == pytest.approx([2.0 * scores, 1.656 * scores], rel=1e-3)


def test_operands_are_cast_before_every_product_of_eight_bits(opt: Architecture, batch: Batch) -> None:
    plans = batch(micro_batch=1)
    plain, cast = (calls(opt, plans, "megatron-core", precision) for precision in ("bf16-mixed", "fp8"))
    products = [call for call in plain if call.kind is Kind.GEMM and call.direction is Pass.FORWARD]
    fused = [call for call in plain if call.kind is Kind.COPY]
    casts = [call for call in cast if call.kind is Kind.COPY]
    assert len(casts) - len(fused) == 2 * len(products)
    # as copies of 4 bytes that move 6: the largest element looked for, each read, written in both orders
    sizes = [1.5 * float((s["m"] * s["k"]).item()) for s in (call.shape.arrays() for call in products)]
    moved = [
        [float(np.max(one.shape.arrays()["m"])) for one in some if one.phase == "forward"] for some in (fused, casts)
    ]
    assert sorted(moved[1]) == sorted(moved[0] + sizes)
    assert [call.kind for call in cast if call.kind is not Kind.COPY] == [
        call.kind for call in plain if call.kind is not Kind.COPY
    ]


SOFTWARE: dict[tuple[str, Precision], tuple[float, float]] = {  # rate of products, bandwidth, against 16 bits
    ("megatron-core", "bf16-mixed"): (1.0, 1.0),
    ("megatron-core", "fp8"): (2.0, 1.0),
    ("megatron-deepspeed", "fp32"): (0.5, 0.5),
}


@pytest.mark.parametrize(("backend", "precision"), SOFTWARE)
def test_a_plan_can_name_them(backend: str, precision: Precision, plan_of: MakePlan, calibration: Calibration) -> None:
    """Elements and tensor cores follow framework and precision."""
    rate, bandwidth = SOFTWARE[backend, precision]
    plan = plan_of(backend=backend, precision=precision, parallel={"dp": 2}, cluster={"gpus": 2})
    made = system_of(plan, calibration)
    names = ("workspace_B", "deterministic_workspace_B", "experts_workspace_B")
    on_that_gpu = {name: getattr(made.framework, name) for name in names}
    assert made.framework == replace(FRAMEWORKS[backend], **on_that_gpu)
    for name, factor in (("flops_per_cycle", rate), ("bandwidth_Bps", bandwidth)):
        assert made.calibration.chip[name].value == pytest.approx(factor * calibration.chip[name].value, rel=1e-4)
    assert outcome(plan, calibration).step_time_s.value > 0


@pytest.mark.parametrize(
    ("former", "backend", "precision"),
    [("megatron-core-fp8", "megatron-core", "fp8"), ("megatron-deepspeed-fp32", "megatron-deepspeed", "fp32")],
)
def test_former_names_go_on_working(
    former: str, backend: str, precision: Precision, plan_of: MakePlan, calibration: Calibration
) -> None:
    """Names that held a precision: the same plan, and a note says what to write now."""
    old, new = plan_of(backend=former, precision=precision), plan_of(backend=backend, precision=precision)
    assert old.model_dump() == new.model_dump()
    before, after = outcome(old, calibration), outcome(new, calibration)
    assert before.step_time_s == after.step_time_s
    (note,) = set(before.notes) - set(after.notes)
    assert f"{former} is now written backend: {backend} with precision: {precision}" in note


def test_a_former_name_holds_one_precision(plan_of: MakePlan) -> None:
    with pytest.raises(InputError, match=r"found bf16 with backend megatron-core-fp8; allowed: fp8; .* precision"):
        plan_of(backend="megatron-core-fp8", precision="bf16")


def test_an_unknown_framework_is_refused(plan_of: MakePlan) -> None:
    with pytest.raises(InputError, match=r"allowed: .*megatron, .*torch, .*; did you mean 'megatron'"):
        plan_of(backend="megatrom")


def test_products_that_a_gpu_does_not_do(plan_of: MakePlan) -> None:
    plan = plan_of(backend="megatron-core", precision="fp8", cluster={"gpu": "a100-sxm-80gb", "gpus": 1})
    with pytest.raises(
        InputError, match=r"backend megatron-core, precision fp8: its products are fp8; a100-sxm-80gb has peaks for"
    ):
        system_of(plan, shipped("a100-sxm-80gb"))


def test_a_precision_goes_with_a_backend(plan_of: MakePlan) -> None:
    allowed = "bf16, bf16-mixed, fp32; fp8 goes with backend fsdp, fsdp-1.13, megatron-core, nemo, torchtitan"
    words = f"precision: found fp8 with backend torch; allowed: {allowed}"
    with pytest.raises(InputError, match=words):
        plan_of(precision="fp8")


def test_whole_experts_spread_over_tensor_parallel_ranks_too(plan_of: MakePlan) -> None:
    degrees = {"parallel": {"dp": 2, "tp": 2, "ep": 4}, "cluster": {"gpus": 4}, "architecture": "olmoe-1b-7b"}
    assert plan_of(backend="megatron-core", **degrees).parallel.ep == 4
    with pytest.raises(InputError, match=r"parallel.ep 4 must divide dp x cp = 2: experts spread over those GPUs"):
        plan_of(**degrees)


# ---- the cut ----


def held(architecture: Architecture, pp: int, virtual: int = 1) -> list[int]:
    return [sum(stage.layers) for stage in stages(architecture, pp, virtual) for _ in range(stage.count)]


def test_ends_that_count_as_layers_leave_their_stages_fewer(opt: Architecture) -> None:
    assert sorted(held(opt, 4)) == [6, 6, 6, 6]
    assert held(PipelineLayout.of(opt, account_for_embedding=0, account_for_loss=0), 4) == held(opt, 4)
    counted = PipelineLayout.of(opt, account_for_embedding=2, account_for_loss=0)  # Sailor's stages
    first, *middle, last = held(counted, 4)
    assert (first, sorted(middle), last) == (4, [7, 7], 6)
    assert held(counted, 2) == [11, 13]


def test_every_layer_is_held_once(opt: Architecture) -> None:
    for pp, virtual in ((1, 1), (4, 1), (4, 3), (8, 3)):
        for ends in ((0, 0), (1, 1), (1, 2), (9, 9)):
            assert (
                sum(held(PipelineLayout.of(opt, account_for_embedding=ends[0], account_for_loss=ends[1]), pp, virtual))
                == 24
            )
