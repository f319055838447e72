"""What layers keep for their backward pass, against what others measured and against closed forms of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp, Moe
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.layers.base import MicroBatch
from moemodel.model.layers.layer import layer_blocks
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.recompute import recompute_number
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.schedule.base import Sizes
from moemodel.model.schedule.interleaved import Interleaved
from moemodel.model.schedule.pipeline_layout import PipelineLayout, stages
from moemodel.model.step.memory import MemoryModel
from moemodel.model.step.system import System

Batch = Callable[..., PlanBatch]
GiB = 2.0**30


def gpt(hidden: int, heads: int, layers: int) -> Architecture:
    """As Megatron-LM trained it: four times as wide in between, GPT-2's vocabulary, padded."""
    attention = Attention(
        heads=heads, kv_heads=heads, head_dim=hidden // heads, bias_qkv=True, bias_out=True, rotary=False
    )
    layer = Layer(
        attentions=(attention,),
        feed_forward=Mlp(width=4 * hidden, activation="gelu", gated=False, bias=True),
        norm="layer",
        norm_bias=True,
    )
    return Architecture(
        name="gpt",
        hidden=hidden,
        vocab=51200,
        embedding_width=hidden,
        tied=True,
        learned_positions=2048,
        decoder=(layer,) * layers,
    )


def terms_GiB(
    architecture: Architecture, plans: PlanBatch, calibration: Calibration, *, backend: str, stage: int = 0
) -> dict[str, float]:
    """Of one stage, of one plan; `allocated` is what an allocator counts."""
    framework = framework_of(backend)
    model = MemoryModel(architecture, plans, framework=framework, precision="bf16-mixed", calibration=calibration)
    memory = model.stage(stages(architecture, int(plans.pp[0]), int(plans.virtual_stages[0]))[stage])
    terms = {name: float(size_B[0]) / GiB for name, size_B in memory.terms_B.items()}
    return terms | {"allocated": sum(terms.values()) - terms["context"] - terms["fragmentation"]}


# ---- measured by others ---------------------------------------------------------------------------------------------


def test_activations_of_a_trillion_parameters(batch: Batch, calibration: Calibration) -> None:
    """26.56 GiB with sequence parallelism and the attention core recomputed (Korthikanti et al. 2022, figure 1)."""
    plans = batch(tp=8, pp=64, sequence_parallel=1, global_batch=512, recompute=recompute_number("selective"))
    found = terms_GiB(gpt(25600, 160, 128), plans, calibration, backend="megatron-v2")["activations"]
    assert found == pytest.approx(26.56, rel=0.02)


LLAMA_70B_12_LAYERS = {  # allocated on 8 B200 under Megatron-LM, GiB (SimuMax, Apache-2.0)
    (1, 2, 4, 0): 66.55,
    (1, 2, 4, 1): 62.97,
    (2, 1, 4, 0): 60.68,
    (4, 1, 2, 0): 39.07,
    (8, 1, 1, 0): 28.29,
}


@pytest.mark.parametrize(("plan", "measured_GiB"), LLAMA_70B_12_LAYERS.items())
def test_llama_under_megatron(
    plan: tuple[int, int, int, int], measured_GiB: float, batch: Batch, calibration: Calibration
) -> None:
    tp, pp, dp, stage = plan
    llama = read_architecture("llama-3-70b")
    cut = replace(llama, decoder=llama.decoder[:12])
    plans = batch(dp=dp, tp=tp, pp=pp, zero_stage=1, sequence_parallel=int(tp > 1), global_batch=8 * dp, seq=4096)
    terms = terms_GiB(cut, plans, calibration, backend="megatron", stage=stage)
    of_their_torch = terms["workspace"] - 2 * (32 - 8.125) / 1024  # whose own workspaces were not yet Hopper's
    assert terms["allocated"] - terms["workspace"] + of_their_torch == pytest.approx(measured_GiB, rel=2e-3)


@pytest.mark.parametrize(
    ("parallel", "global_batch", "allocated_B"),
    [
        ({"dp": 8, "zero_stage": 1}, 32, 4_702_430_720),  # tp1_pp1_dist_optimizer
        ({"dp": 2, "pp": 4, "virtual_stages": 3, "zero_stage": 1}, 32, 3_942_493_696),  # tp1_pp4_vp1
    ],
)
def test_gpt_under_megatron_without_flash_attention(
    parallel: dict[str, int], global_batch: int, allocated_B: float, batch: Batch, calibration: Calibration
) -> None:
    """Megatron-LM's functional tests on H100 (golden values of commit d98e8a6): 12 layers of 512, the last stage."""
    small = replace(gpt(512, 8, 12), vocab=50304, learned_positions=1024)
    framework = replace(framework_of("megatron"), flash_attention=False, dropout=True)
    plans = batch(micro_batch=4, global_batch=global_batch, seq=1024, **parallel)
    model = MemoryModel(small, plans, framework=framework, precision="bf16-mixed", calibration=calibration)
    memory = model.stage(stages(small, int(plans.pp[0]), int(plans.virtual_stages[0]))[-1])
    beside = memory.terms_B["context"][0] + memory.terms_B["fragmentation"][0]
    assert memory.peak_B[0] - beside == pytest.approx(allocated_B, rel=4e-3)


# ---- tensors of a layer ---------------------------------------------------------------------------------------------


def kept_B(architecture: Architecture, plans: PlanBatch, backend: str, precision: str = "bf16-mixed") -> float:
    batch = MicroBatch.of(plans, framework_of(backend), precision)  # type: ignore[arg-type]
    layer = layer_blocks(architecture.layers[0], architecture.hidden)
    return float(sum(np.broadcast_to(kept.size_B, 1)[0] for kept in layer.kept(batch)))


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_a_layer_under_sequence_parallelism_keeps_34_s_b_h_over_t(tp: int, batch: Batch) -> None:
    """Korthikanti et al. 2022, equation 4, without the core of attention; statistics of two norms beside."""
    hidden, tokens = 4096, 2048
    plans = batch(tp=tp, sequence_parallel=int(tp > 1))
    whole = kept_B(gpt(hidden, 32, 1), plans, "megatron-v2")
    core = 5 * 32 * tokens**2 / tp  # 5 a s^2 b / t
    assert whole - core == pytest.approx((34 * tokens * hidden + 2 * 2 * 4 * tokens) / tp)


def test_fused_swiglu_keeps_three_widths(batch: Batch) -> None:
    """Gate and up-projection, and their product; queries, keys, values, output; two norms, in and out."""
    llama, plans = read_architecture("llama-3-8b"), batch(tp=4, sequence_parallel=1)
    widths = 3 * 14336 + (4096 + 2 * 1024) + 4096 + 4 * 4096
    statistics_B = 4 * (32 + 2)
    assert kept_B(llama, plans, "megatron-core") == pytest.approx(2048 / 4 * (2 * widths + statistics_B))


def test_products_keep_their_inputs_in_8_bits(batch: Batch) -> None:
    """Two norms' outputs and the gated product take half; attention's output is kept as it was, and in 8 bits."""
    llama, plans = read_architecture("llama-3-8b"), batch()
    less = 2 * 4096 + 14336 - 4096
    found = kept_B(llama, plans, "megatron-core") - kept_B(llama, plans, "megatron-core", "fp8")
    assert found == pytest.approx(2048 * less)


def test_the_head_holds_what_its_loss_does(batch: Batch, calibration: Calibration) -> None:
    """Of a model so shallow that the peak is there."""
    llama = read_architecture("llama-3-8b")
    llama, logits = replace(llama, decoder=llama.decoder[:1]), 16 * 2048 * llama.vocab / GiB
    found = {
        backend: terms_GiB(llama, batch(micro_batch=16), calibration, backend=backend)["loss"]
        for backend in ("torch", "megatron")
    }
    assert found["torch"] == pytest.approx(12 * logits)
    # the gradient of 16-bit logits, and the place of the head's own beside it; the final norm's input and output
    hidden_states = 2 * 16 * 2048 * llama.hidden / GiB
    head_B = max(6 * logits, 2 * logits + 2 * llama.vocab * llama.hidden / GiB + hidden_states)
    assert found["megatron"] == pytest.approx(head_B + 2 * hidden_states)


# ---- recomputation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["torch", "megatron", "megatron-core", "megatron-v2"])
@pytest.mark.parametrize("name", ["llama-3-8b", "olmoe-1b-7b", "deepseek-v3"])
def test_more_recomputation_keeps_less_and_takes_longer(name: str, backend: str, batch: Batch, machine: System) -> None:
    words = ["none", "core_attn", "layernorm+mlp+moe_act", "mla_up_proj+layernorm+mlp+moe", "every-2", "full"]
    ordered = {"none": words[1:], "every-2": ["full"], "layernorm+mlp+moe_act": ["mla_up_proj+layernorm+mlp+moe"]}
    architecture = read_architecture(name)
    plans = batch(dp=8, ep=8 if name != "llama-3-8b" else 1, recompute=[recompute_number(word) for word in words])
    found = predict(architecture, plans, replace(machine, framework=framework_of(backend)))
    activations = found.memory_terms_B["activations"] + found.memory_terms_B["loss"]
    for less, more in ((words.index(a), words.index(b)) for a, others in ordered.items() for b in others):
        assert activations[more] <= activations[less] * (1 + 1e-9)
        assert found.step_time_s[more] >= found.step_time_s[less] * (1 - 1e-9)


def test_layers_are_counted(batch: Batch, calibration: Calibration) -> None:
    """32 layers on two stages of two chunks: every second, or four of the eight of a chunk."""
    llama = read_architecture("llama-3-8b")

    def activations(word: str) -> float:
        plans = batch(pp=2, virtual_stages=2, recompute=recompute_number(word))
        return terms_GiB(llama, plans, calibration, backend="megatron")["activations"]

    half = (activations("none") + activations("full")) / 2
    assert activations("every-2") == activations("first-4") == pytest.approx(half, rel=0.01)  # but for one layer's own
    assert activations("first-8") == activations("every-1") == activations("first-999") == activations("full")


def test_operator_by_operator_keeps_every_other_product(batch: Batch) -> None:
    """Queries and values of q, k, v; output of attention, its statistics; of o, gate, up, down the second and fourth
    again run: gate and down stay. With the layer's input.
    """
    llama = read_architecture("llama-3-8b")
    kept = layer_blocks(llama.layers[0], llama.hidden).kept_by_operator_B(
        MicroBatch.of(batch(), framework_of("torch"), "bf16-mixed")
    )
    widths = 4096 + 1024 + 4096 + 14336 + 4096 + 4096
    assert kept == pytest.approx(2048 * (2 * widths + 4 * 32))


# ---- pipelines ------------------------------------------------------------------------------------------------------


def test_a_schedule_for_fewer_micro_batches_holds_fewer_messages(batch: Batch, machine: System) -> None:
    llama = read_architecture("llama-3-8b")
    plans = batch(pp=4, dp=2, global_batch=64, micro_batches_per_schedule=[0, 32, 8, 4])
    found = predict(llama, plans, machine)
    messages = found.memory_terms_B["messages"]
    assert messages[0] == messages[1]
    assert messages[1] > messages[2] > messages[3]
    assert found.step_time_s[0] == pytest.approx(found.step_time_s[1])
    one, four, eight = found.step_time_s[1:]  # times that the pipeline fills and drains
    assert (eight - one) / (four - one) == pytest.approx(7 / 3, rel=0.02)


def test_a_pipeline_shards_what_it_can(batch: Batch, calibration: Calibration) -> None:
    """Torch frees parameters behind forward passes alone and scatters gradients at the end; Megatron's are sharded."""
    llama = read_architecture("llama-3-8b")
    found = {
        (backend, zero): terms_GiB(
            llama, batch(dp=8, pp=2, zero_stage=zero, global_batch=64), calibration, backend=backend
        )
        for backend in ("torch", "megatron")
        for zero in (1, 2, 3)
    }
    assert found["torch", 2]["allocated"] == found["torch", 1]["allocated"]
    assert found["torch", 3]["allocated"] <= found["torch", 2]["allocated"]
    assert found["megatron", 2]["gradients"] == pytest.approx(found["megatron", 1]["gradients"] / 8)
    assert found["megatron", 3]["parameters"] == pytest.approx(found["megatron", 1]["parameters"] / 8)


@pytest.mark.parametrize(("ep", "group"), [(1, "all"), (4, "larger")])
def test_megatron_steps_experts_apart_where_they_are_spread(
    ep: int, group: str, batch: Batch, calibration: Calibration
) -> None:
    """Without expert parallelism one optimizer has all parameters, whose temporaries then lie in memory together."""
    architecture = read_architecture("olmoe-1b-7b")
    moe = architecture.layers[-1].feed_forward
    assert isinstance(moe, Moe)
    routed = 3 * moe.experts * moe.width * architecture.hidden * len(architecture.layers)
    total = 6_919_161_856  # of the published checkpoint
    dense, experts = total - routed, routed / ep
    plans = batch(ep=ep, dp=ep, seq=64, micro_batch=1)  # so short that the peak is the optimizer's
    found = terms_GiB(architecture, plans, calibration, backend="megatron-core-local")["optimizer_transient"]
    temporaries = dense + experts if group == "all" else max(dense, experts)
    assert found == pytest.approx((4 * (dense + experts) + 4 * temporaries) / GiB, rel=1e-3)


@pytest.mark.parametrize(
    "counts", [(0, 1, 1, 1, 1, 1, 1, 0), (1, 2, 2, 1, 2, 2, 2, 1), (3, 1, 1, 1, 1, 1, 1, 1), (2, 2, 2, 2, 2, 2, 2, 2)]
)
def test_chunks_in_flight_are_counted_one_by_one(
    counts: tuple[int, ...], batch: Batch, calibration: Calibration
) -> None:
    """The order of interleaved 1F1B played out: what the passes before a stage's first backward pass keep."""
    pp, virtual, m = 4, 2, 8
    one = gpt(1024, 16, sum(counts))
    layout = PipelineLayout.of(one, chunks=counts)
    plans = batch(pp=pp, virtual_stages=virtual, global_batch=m)
    sizes = Sizes(stages=pp, virtual=virtual, micro_batches=m)
    for stage in stages(layout, pp, virtual):
        before = takewhile(lambda work: work.kind == "F", Interleaved().order(stage.first, sizes))
        layers = sum(counts[work.chunk] for work in before)
        terms = terms_GiB(
            layout, plans, calibration, backend="megatron-v2", stage=stages(layout, pp, virtual).index(stage)
        )
        assert terms["activations"] * GiB == pytest.approx(layers * kept_B(one, plans, "megatron-v2"), rel=1e-6)
