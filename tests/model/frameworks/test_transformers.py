"""Hugging Face's Trainer: against its runs on an H200 that nothing was mended by, and what its kernels keep and
move."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moemodel.api import predict
from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InputError
from moemodel.model.layers.base import MicroBatch
from moemodel.model.layers.layer import layer_blocks
from moemodel.model.operators.work import Kind
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.spec import Plan
from moemodel.model.results.outcome import outcome
from moemodel.model.step.system import framework_as_run

BENCH = Path(__file__).parents[3] / "bench"
UNSEEN = sorted(file.stem for file in (BENCH / "measured" / "transformers-unseen").glob("*.json"))
BOARD = "h200-sxm-141gb"


@pytest.mark.parametrize("name", UNSEEN)
def test_steps_take_as_long_and_draw_as_much_as_measured(name: str) -> None:
    measured = json.loads((BENCH / "measured" / "transformers-unseen" / f"{name}.json").read_text())
    found = predict(BENCH / "plans" / "transformers-unseen" / f"{name}.yaml")
    assert found.step_time_s.value == pytest.approx(measured["step_time_s"], rel=0.05)
    assert found.energy.gpu_J.value == pytest.approx(measured["energy_J"], rel=0.08)
    reserved_B = found.memory_B.value - found.memory_terms_B["context"]
    allocated_B = reserved_B - found.memory_terms_B["fragmentation"]
    assert allocated_B == pytest.approx(measured["allocated_B"], rel=0.06)
    assert reserved_B == pytest.approx(measured["reserved_B"], rel=0.09)
    assert found.parameters == measured["parameters"]


def _plan(**keys: Any) -> Plan:
    document = {
        "architecture": "llama-3-8b",
        "layers": 4,
        "sequence_length": 4096,
        "global_batch": 2,
        "micro_batch": 2,
        "precision": "bf16",
        "backend": "transformers",
        "cluster": {"gpu": BOARD},
    }
    return Plan.model_validate(document | keys)


def _kept_B(precision: str, backend: str = "transformers") -> float:
    """Of a layer of Llama 3 8B, for each of its hidden elements."""
    model = read_architecture("llama-3-8b")
    plan = _plan(precision=precision, backend=backend)
    batch = MicroBatch.of(batch_of(plan), framework_as_run(plan), plan.precision)
    kept = layer_blocks(model.layers[0], model.hidden).kept(batch)
    return float(sum(np.max(one.size_B) for one in kept)) / (2 * 4096 * 4096)


def test_a_layer_keeps_what_autograd_does() -> None:
    """Of two norms the float32 copy of the input and the scaled rows, both for their gradients, where torch's own keeps
    the 16-bit input: 4 bytes more each. Of float32 rows both are float32; and each of three and of two products that
    read one norm has a cast of its own."""
    torch_B, plain_B, autocast_B = _kept_B("bf16", "torch"), _kept_B("bf16"), _kept_B("bf16-mixed")
    assert plain_B - torch_B == pytest.approx(2 * 4)
    assert autocast_B - plain_B == pytest.approx(2 * 2 + (2 + 1) * 2)


def test_what_is_compiled_reads_a_mask() -> None:
    """Attention to all pairs, and slower: of a layer 4.9 ms more forward and backward at one clock (traced); a step
    without it runs at another, which the power limit holds."""
    calibration = load_calibration(None, BOARD)
    longer = {}
    for layers in (4, 8):
        times = [
            outcome(_plan(layers=layers, compile=True, attention=attention), calibration).step_time_s.value
            for attention in (None, "cudnn")
        ]
        longer[layers] = times[0] - times[1]
    assert 3e-3 < (longer[8] - longer[4]) / 4 < 5.5e-3


def test_a_mask_is_not_known_on_other_generations() -> None:
    plan = _plan(compile=True, cluster={"gpu": "a100-sxm-80gb"})
    with pytest.raises(InputError, match=r"compile: found true with backend transformers.*allowed: false"):
        outcome(plan, load_calibration(None, "a100-sxm-80gb"))


def test_the_device_waits_once_a_micro_batch_and_once_a_step() -> None:
    """On an H200 about 3 ms each (traced, 2026-11-29): of four micro-batches 15 ms, of one 6."""
    calibration = load_calibration(None, BOARD)
    idle_s = []
    for global_batch in (2, 8):
        idle_s.append(outcome(_plan(global_batch=global_batch), calibration).host_wait_s)
    assert idle_s == pytest.approx([6e-3, 15e-3], rel=0.15)


def test_norms_of_queries_are_none_of_the_stream() -> None:
    """OLMoE's norms of queries are as wide as its residual stream, and are none of it."""
    plan, model = _plan(architecture="olmoe-1b-7b"), read_architecture("olmoe-1b-7b")
    batch = MicroBatch.of(batch_of(plan), framework_as_run(plan), plan.precision)
    operators = layer_blocks(model.layers[0], model.hidden).operators(batch)
    norms = [op for op in operators if op.kind is Kind.RMS_NORM]
    assert [op.of_stream for op in norms] == [True, False, False, True]
    assert {float(np.max(op.shape.n)) for op in norms} == {float(model.hidden)}


@pytest.mark.parametrize("degree", ["tp", "pp", "cp"])
def test_every_gpu_trains_the_whole_model(degree: str) -> None:
    with pytest.raises(InputError, match=f"{degree} 2.*transformers, which trains the whole model"):
        _plan(cluster={"gpu": BOARD, "gpus": 2}, parallel={degree: 2})


def test_gradients_travel_as_they_are_kept() -> None:
    """16-bit ones of a model in 16 bits, float32 ones under autocast (DistributedDataParallel)."""
    framework = framework_as_run(_plan())
    assert (framework.wire_B("bf16"), framework.wire_B("bf16-mixed")) == (2, 4)


def test_experts_in_float32_are_refused() -> None:
    experts = _plan(architecture="olmoe-1b-7b", precision="bf16-mixed")
    with pytest.raises(InputError, match=r"precision: found bf16-mixed with experts.*allowed: bf16, or zero_stage 3"):
        outcome(experts, load_calibration(None, BOARD))
