"""What torchtitan's reports and code say, beside predictions of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moemodel.api import predict
from moemodel.calibration.derive.public_voltage import published_drop
from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import InputError
from moemodel.model.device.power import power_model
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.spec import Plan
from moemodel.model.results.outcome import Outcome, outcome
from moemodel.model.schedule.pipeline_layout import stages
from moemodel.model.step.data_parallel import ExchangeCounts
from moemodel.model.step.layer_operators import Workload
from moemodel.model.step.memory import MemoryModel
from moemodel.model.step.microbatch_comm import Attention, Communication
from tests.networks import NODE

Batch = Callable[..., PlanBatch]

BENCH = Path(__file__).parents[3] / "bench"
SHARDED = [
    file for name in ("two-gpus", "cp") for file in sorted((BENCH / "measured" / f"torchtitan-{name}").glob("*.json"))
]
BOARD = "h100-sxm-96gb"  # 96 GB of HBM2e and 500 W, as its reports say


@pytest.fixture(scope="module")
def llama() -> Architecture:
    return read_architecture("llama-3-8b")


def _predicted(**keys: Any) -> Outcome:
    plan = {
        "architecture": "llama-3-8b",
        "sequence_length": 8192,
        "backend": "torchtitan",
        "recompute": "selective",
        "cluster": {"gpu": BOARD, "gpus": keys["parallel"]["dp"] * keys["parallel"].get("tp", 1)},
        "power_cap_W": 500.0,
    }
    document = Plan.model_validate(plan | keys)
    return outcome(document, load_calibration(None, BOARD), even_if_it_does_not_fit=True)


# benchmarks/llama3_h100_202412_torchtitan.md, tables 1, 2 and 4: tokens/s per GPU, GiB
_EIGHT = {"global_batch": 16, "micro_batch": 2, "parallel": {"dp": 8, "zero_stage": 3}}
_LONG = {"sequence_length": 32768, "global_batch": 8, "recompute": "full", "parallel": {"dp": 8, "zero_stage": 3}}
_TWO_D = {
    "architecture": "llama-3-70b",
    "global_batch": 512,
    "micro_batch": 16,
    "recompute": "full",
    "precision": "fp8",
    "compile": True,
    "parallel": {"dp": 32, "tp": 8, "zero_stage": 3, "sequence_parallel": True},
}
REPORTED = [
    ({"precision": "bf16-mixed", **_EIGHT}, 5762, 82.4),
    ({"precision": "bf16-mixed", "compile": True, **_EIGHT}, 6667, 77.0),
    ({"precision": "fp8", "compile": True, **_EIGHT}, 8532, 76.8),
    ({"precision": "fp8", "compile": True, **_LONG}, 3890, 83.9),
    (_TWO_D, 829, None),
    ({**_TWO_D, "tp_comm_overlap": True}, 876, None),
]


@pytest.mark.parametrize(("keys", "rate", "reserved_GiB"), REPORTED)
def test_runs_are_as_fast_and_as_large_as_reported(
    keys: dict[str, Any], rate: float, reserved_GiB: float | None
) -> None:
    found = _predicted(**keys)
    assert found.tokens_per_s_per_gpu.value == pytest.approx(rate, rel=0.05)
    if reserved_GiB is not None:
        reserved_B = found.memory_B.value - found.memory_terms_B["context"]
        assert reserved_B / 2**30 == pytest.approx(reserved_GiB, rel=0.03)


_TOKENS = 2 * 8192  # of `_EIGHT`, on each of 32 layers 4,096 wide


def test_compiled_layers_keep_no_output_of_their_last_product() -> None:
    kept = {
        compiled: _predicted(precision="bf16-mixed", compile=compiled, **_EIGHT).memory_terms_B["activations"]
        for compiled in (True, False)
    }
    assert kept[False] - kept[True] == pytest.approx(32 * 2 * _TOKENS * 4096)


def test_casts_run_again_and_are_not_kept() -> None:
    kept = {
        precision: _predicted(precision=precision, compile=True, **_EIGHT).memory_terms_B["activations"]
        for precision in ("bf16-mixed", "fp8")
    }
    assert kept["fp8"] == pytest.approx(kept["bf16-mixed"])


def test_logits_of_16_bits_stay_reserved_beside_a_loss_in_float32() -> None:
    """A compiled loss keeps 10 bytes of a logit for 12, of which 3 % are lost to fragmentation; it outgrows nothing."""
    terms = {
        loss: _predicted(precision="bf16-mixed", compile=True, cross_entropy=loss, **_EIGHT).memory_terms_B
        for loss in (None, "compiled")
    }
    logits = _TOKENS * 128_256
    assert terms[None]["loss"] - terms["compiled"]["loss"] == pytest.approx(2 * logits)
    lost_B = terms[None]["fragmentation"] - terms["compiled"]["fragmentation"]
    assert lost_B == pytest.approx((2 + 0.03 * 2) * logits)


def test_the_heads_input_is_kept_as_it_is_gathered() -> None:
    """Two ranks, each of half of the vocabulary: beside the loss all hidden states, where half of them were sharded."""
    parallel = {"dp": 4, "tp": 2, "zero_stage": 3}
    loss_B = {
        cut: _predicted(
            precision="bf16-mixed",
            compile=True,
            global_batch=8,
            micro_batch=2,
            parallel=parallel | {"sequence_parallel": cut},
        ).memory_terms_B["loss"]
        for cut in (True, False)
    }
    assert loss_B[True] - loss_B[False] == pytest.approx(2 * _TOKENS * 4096)


def test_weights_are_cast_in_every_pass(llama: Architecture, batch: Batch) -> None:
    """Forward: 7.4 bytes of every weight and of what four products read (three more read what was cast before)."""
    framework = replace(framework_of("torchtitan"), compiled=True, plain_kernels={}, repeats_keys=False)
    calls = Workload(llama, batch(zero_stage=3), framework=framework, precision="fp8").passes(llama.layers[0])
    casts = [call for call in calls if call.kind is Kind.COPY and call.phase == "forward"]
    weights = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    read = 2048 * (3 * 4096 + 14336)
    moved_B = sum(float(np.max(call.count * np.asarray(call.shape.m))) * 4 for call in casts)
    assert moved_B == pytest.approx(7.4 * (weights + read))


def test_what_is_gathered_travels_in_eight_bits(llama: Architecture, batch: Batch) -> None:
    """Of a reduce-scatter and a gather of as many 16-bit elements, the gather halved; scattered sums stay."""
    plans = batch(tp=2, sequence_parallel=True)
    wide, narrow = (
        Communication(llama, plans, NODE, framework=framework_of("torchtitan"), precision=precision).layer(
            llama.layers[0], axis="tp"
        )
        for precision in ("bf16-mixed", "fp8")
    )
    for there, here in zip(wide, narrow, strict=True):
        assert here.exposed_s == pytest.approx(0.75 * there.exposed_s)


@pytest.mark.parametrize("compiled", [True, False])
def test_keys_travel_as_often_as_heads_read_them(llama: Architecture, batch: Batch, compiled: bool) -> None:
    """Walked by hand: c - 1 ranks' keys and values of 32 heads of 128, gathered; backward gathered again, and their
    gradients in float32 c times on. Nothing of it hides where layers are compiled."""
    cp, tokens = 4, 2048 / 4
    plans = batch(cp=cp)
    framework = replace(framework_of("torchtitan"), compiled=compiled)
    comm = Communication(llama, plans, NODE, framework=framework, precision="bf16-mixed")
    long = Attention(forward_s=np.array([100.0]), backward_s=np.array([100.0]))
    there, back = comm.layer(llama.layers[0], axis="cp", attention=long)
    elements = tokens * 32 * 128 * 2
    gathered_s = (cp - 1) * 2 * elements / 400e9
    assert there.whole_s == pytest.approx(gathered_s)
    assert back.whole_s == pytest.approx(gathered_s + cp * 4 * elements / 400e9)
    assert (there.overlappable.hideable_s > 0).all() != compiled
    assert (back.overlappable.hideable_s > 0).all() != compiled


def test_operands_that_three_products_read_are_cast_once_where_compiled(llama: Architecture, batch: Batch) -> None:
    plans = batch(micro_batch=1, zero_stage=3)
    casts = {}
    for compiled in (True, False):
        framework = replace(framework_of("torchtitan"), compiled=compiled)
        calls = Workload(llama, plans, framework=framework, precision="fp8").layer(llama.layers[0])
        forward = [call for call in calls if call.kind is Kind.COPY and call.phase == "forward"]
        casts[compiled] = sum(float(np.max(call.shape.arrays()["m"])) for call in forward)
    # wk, wv and w3 read what wq and w1 do: 4,096 features of 2,048 tokens each, 7.4 bytes as copies of 4
    assert casts[False] - casts[True] == pytest.approx(3 * 2048 * 4096 * 7.4 / 4)


def test_a_norm_of_plain_kernels_moves_nine_times_what_one_would(llama: Architecture, batch: Batch) -> None:
    """36 bytes of an element for 4, forward, of both norms; none of either where torch.compile makes one of them."""
    plans = batch(micro_batch=1, zero_stage=3)
    framework = framework_of("torchtitan")
    calls = Workload(llama, plans, framework=framework, precision="bf16-mixed").layer(llama.layers[0])
    moved = [
        float(np.max(call.shape.arrays()["m"]))
        for call in calls
        if call.kind is Kind.COPY and call.direction is Pass.FORWARD and call.phase == "forward"
    ]
    assert moved.count(pytest.approx(9 * 2048 * 4096)) == 2
    assert not any(call.kind is Kind.RMS_NORM for call in calls)


def test_a_pipeline_sums_whole_gradients_in_float32() -> None:
    """Half of Llama 3 8B, with the embedding or the head: 16 layers of 218 M parameters and 128,256 x 4,096."""
    found = _predicted(
        precision="bf16-mixed",
        recompute="full",
        global_batch=32,
        micro_batch=1,
        parallel={"dp": 4, "pp": 2, "zero_stage": 3},
        cluster={"gpu": BOARD, "gpus": 8},
    )
    layer = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336) + 2 * 4096
    half = 16 * layer + 128_256 * 4096
    assert found.memory_terms_B["gradients"] == pytest.approx(4 * half, rel=1e-3)


def test_voltage_drops_as_readings_at_locked_clocks_say() -> None:
    """Watts beyond idle for each MHz of FP64 products: from 345 to 1,005 MHz, and at 1,260 and 1,305 (drifting)."""
    low = (288.9 - 140.65) / (1005 - 345)
    idle_W = 288.9 - 1005 * low
    high = ((460.5 - idle_W) / 1260 + (466.3 - idle_W) / 1305) / 2
    board, other = (power_model(load_calibration(None, gpu)) for gpu in (BOARD, "h100-sxm-80gb"))
    clocks = np.array([1.005e9, 1.26e9])
    assert board.voltage2(clocks)[0] / board.voltage2(clocks)[1] == pytest.approx(low / high, rel=0.02)
    assert other.voltage2(clocks)[0] == other.voltage2(clocks)[1]
    assert published_drop(read_gpu("h100-sxm-80gb")) == {}


# What the allocator reserved of an H200 in runs of torchtitan 0.2.2 under autocast (bench/measured/torchtitan,
# 2026-11-29), GB: whose peak is a loss of plain kernels, and whose is the update, or the passes beside a compiled loss
@pytest.mark.parametrize(
    ("keys", "reserved_GB"),
    [
        ({"layers": 8, "recompute": "none"}, 67.0),
        ({"layers": 8, "compile": True}, 46.9),
        ({"architecture": "llama-3-70b", "layers": 3, "compile": True}, 79.3),
    ],
)
def test_one_gpu_holds_what_was_measured(keys: dict[str, Any], reserved_GB: float) -> None:
    plan = {"architecture": "llama-3-8b", "sequence_length": 8192, "global_batch": 1, "recompute": "selective"}
    board = "h200-sxm-141gb"
    document = Plan.model_validate(plan | keys | {"backend": "torchtitan-0.2", "cluster": {"gpu": board}})
    found = outcome(document, load_calibration(None, board))
    reserved_B = found.memory_B.value - found.memory_terms_B["context"]
    assert reserved_B / 1e9 == pytest.approx(reserved_GB, rel=0.06)


@pytest.mark.parametrize("file", SHARDED, ids=lambda file: file.stem)
def test_several_gpus_hold_what_was_measured(file: Path) -> None:
    """Under FSDP2, expert and context parallelism, what the allocator of each of two H200 gave out."""
    measured = json.loads(file.read_text())
    found = predict(BENCH / "plans" / file.parent.name / f"{file.stem}.yaml")
    allocated_B = found.memory_B.value - found.memory_terms_B["context"] - found.memory_terms_B["fragmentation"]
    assert allocated_B == pytest.approx(measured["allocated_B"], rel=0.04)


def _over_measured(runs: str, name: str) -> float:
    """What is predicted of a step of a run in bench/measured, over what it took."""
    root = Path(__file__).parents[3] / "bench"
    measured = json.loads((root / "measured" / runs / f"{name}.json").read_text())
    found = predict(root / "plans" / runs / f"{name}.yaml")
    return found.step_time_s.value / float(measured["step_time_s"])


# Of runs that no constant was traced in (`studies.public.own_runs`)
@pytest.mark.parametrize(
    ("runs", "name"),
    [
        ("torchtitan", "llama-3-8b-6l-4k-accumulate-every-2"),
        ("torchtitan", "llama-3-8b-8l-8k"),
        ("torchtitan", "llama-3-8b-8l-8k-compile-op"),
        ("torchtitan", "llama-3-8b-8l-8k-mb2-compile-full"),
        ("torchtitan", "qwen3-4b-4k-compile-op"),
        ("torchtitan-unseen", "deepseek-16b-6l-2k"),
        ("torchtitan-unseen", "deepseek-236b-2l-4k-compile"),
        ("torchtitan-unseen", "qwen3-14b-6l-4k"),
        ("torchtitan-unseen", "qwen3-235b-a22b-2l-4k"),
        ("torchtitan-unseen", "qwen3-30b-a3b-6l-2k-compile-full"),
        ("torchtitan-two-gpus", "deepseek-16b-12l-4k-dp2-ep2-compile-full"),
        ("torchtitan-two-gpus", "llama-3-8b-16l-8k-dp2-compile-op"),
        ("torchtitan-two-gpus", "llama-3-8b-8l-8k-dp2-replicated"),
    ],
)
def test_steps_take_as_long_as_measured(runs: str, name: str) -> None:
    assert _over_measured(runs, name) == pytest.approx(1, rel=0.06)


def _moved(calls: list[Call], kinds: tuple[Kind, ...] = (Kind.COPY,)) -> dict[Phase, float]:
    """Bytes by phase of calls of some kinds, of copies those of 16 bits."""
    moved = dict.fromkeys(Phase, 0.0)
    for call in calls:
        if call.kind in kinds:
            moved[call.phase] += float(np.max(call.count * call.shape.arrays()["m"])) * 4
    return moved


def test_autocast_casts_weights_and_adds_to_a_float32_stream(llama: Architecture, batch: Batch) -> None:
    """Compiled, a layer of Llama 3 8B: 218 M weights read or written in 16 bits and in 32; of the stream, 2,048 x
    4,096, both norms read 2 bytes more and both sums 4, backward both norms 4 and three sums of gradients 4."""
    framework = replace(framework_of("torchtitan-0.2"), compiled=True)
    found = []
    for zero_stage in (0, 3):
        plans = batch(micro_batch=1, zero_stage=zero_stage)
        found.append(_moved(Workload(llama, plans, framework=framework, precision="bf16-mixed").layer(llama.layers[0])))
    weights, stream = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336), 2048 * 4096
    casts = found[0][Phase.FORWARD] - found[1][Phase.FORWARD], found[0][Phase.BACKWARD] - found[1][Phase.BACKWARD]
    assert casts[0] == pytest.approx(6 * weights + stream * 2 * (2 + 4), rel=1e-6)
    fan_in = 2 + 1  # of keys and values beside queries; of the up-projection beside the gate
    assert casts[1] == pytest.approx(6 * weights + stream * (2 * 4 + fan_in * 4), rel=1e-6)


def test_an_update_of_float32_parameters_casts_nothing(llama: Architecture, batch: Batch) -> None:
    """28 bytes a parameter of the update that profiles measure, and no norm of 16-bit gradients beside."""
    work = Workload(llama, batch(zero_stage=3), framework=framework_of("torchtitan-0.2"), precision="bf16-mixed")
    calls = work.optimizer(np.array([1e9]))
    assert [call.kind for call in calls] == [Kind.ADAMW_MIXED]


@pytest.mark.parametrize(("experts", "ep"), [(128, 1), (128, 16)])
def test_what_pads_an_expert_is_summed_row_after_row(experts: int, ep: int, batch: Batch) -> None:
    """8 rows of each expert that a GPU holds, 0.79 us each, once in a backward pass."""
    qwen = read_architecture("qwen3-30b-a3b")
    plans = batch(dp=16, ep=ep, zero_stage=3)
    calls = Workload(qwen, plans, framework=framework_of("torchtitan-0.2"), precision="bf16-mixed").layer(
        qwen.layers[0]
    )
    waited_s = sum(float(np.max(call.count * call.added_s)) for call in calls)
    assert waited_s == pytest.approx(experts / ep * 8 * 0.79e-6)


def test_experts_that_no_other_rank_holds_are_sharded_over_one(batch: Batch) -> None:
    """Of 128 experts of Qwen3-30B-A3B in 48 layers eight a rank, 768 wide: cast and copied for either pass (10 bytes of
    a parameter each), gradients cast (12), copied and divided in float32 (8 each); on half as many ranks none alone."""
    qwen = read_architecture("qwen3-30b-a3b")
    moved = []
    for dp in (16, 32):
        plans = batch(dp=dp, ep=16, zero_stage=3)
        memory = MemoryModel(
            qwen,
            plans,
            framework=framework_of("torchtitan-0.2"),
            precision="bf16-mixed",
            calibration=load_calibration(None, BOARD),
        )
        (stage,) = stages(qwen, 1, 1)
        moved.append(float(memory.lone(memory.units(stage))[0]))
    assert moved == [48 * 8 * 3 * 2048 * 768, 0.0]
    work = Workload(qwen, plans, framework=framework_of("torchtitan-0.2"), precision="bf16-mixed")
    once = ExchangeCounts(gathers_forward=np.ones(1), gathers_backward=np.ones(1), reductions=np.ones(1))
    lone, none = np.array([1e9]), np.zeros(1)
    calls = _moved(work.copies(none, none, once, owned=lone, lone=lone))
    micro_batches = float(plans.micro_batches[0])
    assert calls[Phase.FORWARD] * micro_batches == pytest.approx(10e9)
    assert calls[Phase.BACKWARD] * micro_batches == pytest.approx((10 + 12 + 8 + 8) * 1e9, rel=0.01)


@pytest.mark.parametrize(
    ("degrees", "is_refused"),
    [
        ({"tp": 8, "sequence_parallel": True}, True),
        ({"tp": 8, "sequence_parallel": True, "zero_stage": 3}, True),
        ({"pp": 8}, True),
        ({"cp": 8}, True),
        ({"cp": 8, "zero_stage": 3}, False),
        ({"dp": 8}, False),
        ({"dp": 4, "tp": 2, "sequence_parallel": True, "zero_stage": 3}, False),
    ],
)
def test_a_model_that_fsdp_does_not_shard_is_cut_in_float32(degrees: dict[str, Any], is_refused: bool) -> None:
    """distributed/utils.py, maybe_enable_amp: FSDP mixes precisions, autocast does on one GPU and under DDP alone."""
    plan = {"architecture": "llama-3-8b", "sequence_length": 8192, "global_batch": 8, "backend": "torchtitan-0.2"}
    document = plan | {"cluster": {"gpu": BOARD, "gpus": 8}, "parallel": degrees}
    if not is_refused:
        assert Plan.model_validate(document).parallel.dp == degrees.get("dp", 1)
        return
    with pytest.raises(InputError, match=r"where backend torchtitan-0.2 trains in float32.*allowed: zero_stage 3"):
        Plan.model_validate(document)
