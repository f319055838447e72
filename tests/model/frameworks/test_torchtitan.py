"""What torchtitan's reports and code say, beside predictions of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moemodel.calibration.derive.public_voltage import published_drop
from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.device.power import power_model
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.spec import Plan
from moemodel.model.results.outcome import Outcome, outcome
from moemodel.model.step.layer_operators import Workload
from moemodel.model.step.microbatch_comm import Attention, Communication
from tests.networks import NODE

Batch = Callable[..., PlanBatch]

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


# benchmarks/llama3_h100_202412_torchtitan.md, tables 1 and 4: tokens/s per GPU, GiB
_EIGHT = {"global_batch": 16, "micro_batch": 2, "parallel": {"dp": 8, "zero_stage": 3}}
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
        assert reserved_B / 2**30 == pytest.approx(reserved_GiB, rel=0.08)


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
    plans = batch(micro_batch=1)
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
    plans = batch(micro_batch=1)
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
