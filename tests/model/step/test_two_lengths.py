"""Encoder-decoders whose sequences are of two lengths, as Megatron-LM's T5: against closed forms, and a peak of memory
that its functional tests state."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.layers.flops import model_flops
from moemodel.model.operators.calls import Call
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.megatron_arguments import megatron_run
from moemodel.model.plan.spec import Plan
from moemodel.model.results.outcome import Outcome, outcome
from moemodel.model.step.layer_operators import Workload
from moemodel.model.step.system import framework_as_run

HIDDEN, HEADS, INNER, LAYERS, VOCAB = 512, 8, 2048, 3, 1024
READ, WRITTEN, SEQUENCES = 512, 128, 4
Make = Callable[..., Plan]

# Megatron-LM's functional test t5_11b_mcore_tp4_pp1 (tests/functional_tests/test_cases/t5): its arguments, and what the
# allocator of the first GPU gave out at most on H100 (golden_values_dev_dgx_h100.json)
T5_11B_ALLOCATED_B = 44_989_894_656
T5_11B = {
    "encoder-num-layers": 24,
    "decoder-num-layers": 24,
    "hidden-size": 4096,
    "num-attention-heads": 64,
    "kv-channels": 64,
    "ffn-hidden-size": 10240,
    "encoder-seq-length": 512,
    "decoder-seq-length": 128,
    "max-position-embeddings": 512,
    "tensor-model-parallel-size": 4,
    "pipeline-model-parallel-size": 1,
    "micro-batch-size": 4,
    "global-batch-size": 8,
    "bf16": True,
    "vocab-extra-ids": 100,
    "transformer-impl": "transformer_engine",
    "tokenizer-type": "BertWordPieceCase",
    "deterministic-mode": True,
}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def of(*, backend: str = "torch", architecture: str | None = None, **keys: Any) -> Plan:
        config = {
            "model_type": "megatron",
            "model": "t5",
            "vocab_size": VOCAB,
            "num_layers": LAYERS,
            "hidden_size": HIDDEN,
            "num_attention_heads": HEADS,
            "ffn_hidden_size": INNER,
            "max_position_embeddings": 512,
        }
        file = tmp_path / "t5.json"
        file.write_text(json.dumps(config))
        document = {
            "architecture": architecture or str(file),
            "sequence_length": READ,
            "decoder_sequence_length": WRITTEN,
            "global_batch": SEQUENCES,
            "micro_batch": SEQUENCES,
            "precision": "bf16-mixed",
            "backend": backend,
            "cluster": {"gpu": "h100-sxm-80gb"},
        }
        return Plan.model_validate(document | keys)

    return of


def _told(plan: Plan) -> Outcome:
    return outcome(plan, load_calibration(None, plan.cluster.gpu))


def _forward_flops(read: int, written: int) -> float:
    """Of one sequence: 2 a weight and token, and 4 h for each pair of a query and a key, of which causal ones are half.
    Keys and values of cross attention are products of what the encoder gives."""
    attention, block = 4 * HIDDEN**2, 2 * HIDDEN * INNER
    encoder = 2 * (attention + block) * read + 4 * HIDDEN * read**2
    own = 2 * (attention + block) * written + 4 * HIDDEN * written**2 / 2
    cross = 2 * (2 * HIDDEN**2) * (written + read) + 4 * HIDDEN * written * read
    return LAYERS * (encoder + own + cross) + 2 * VOCAB * HIDDEN * written


@pytest.mark.parametrize("written", [64, 128, 512])
def test_flops(written: int, make: Make) -> None:
    """Biases of products count as weights of theirs."""
    plan = make(decoder_sequence_length=written)
    batch = batch_of(plan)
    found = model_flops(read_architecture(plan.architecture), batch.seq, decoder_seq=batch.predicted_seq)[0] / 3
    assert found == pytest.approx(_forward_flops(READ, written), rel=3e-3)


@pytest.mark.parametrize("backend", ["torch", "megatron", "megatron-v2"])
def test_products_of_a_step_are_those(backend: str, make: Make) -> None:
    """Of flash attention the pairs, of unfused all of them."""
    plan = make(backend=backend)
    model = read_architecture(plan.architecture)
    workload = Workload(model, batch_of(plan), framework=framework_as_run(plan), precision=plan.precision)
    calls: list[Call] = [*workload.head()]
    for layer in dict.fromkeys(model.layers):
        calls += model.layers.count(layer) * workload.passes(layer)
    forward = [call for call in calls if call.direction is Pass.FORWARD]
    products = 0.0
    for call in forward:
        s = call.shape.arrays()
        if call.kind is Kind.GEMM:
            products += float(np.max(2 * s["batch"] * s["m"] * s["n"] * s["k"]))
        elif call.kind in (Kind.ATTENTION, Kind.ATTENTION_FULL):
            pairs = s["batch"] * s["heads"] * s["seq"] ** 2 * (0.5 if call.kind is Kind.ATTENTION else 1.0)
            products += float(np.max(4 * pairs * s["head_dim"]))
    masked = 0.0 if framework_as_run(plan).flash_attention else LAYERS * 4 * HIDDEN * WRITTEN**2 / 2
    assert products == pytest.approx(SEQUENCES * (_forward_flops(READ, WRITTEN) + masked), rel=1e-6)


def test_one_length_is_two_that_are_alike(make: Make) -> None:
    alike, one = _told(make(decoder_sequence_length=READ)), _told(make(decoder_sequence_length=None))
    assert alike.step_time_s == one.step_time_s
    assert alike.memory_terms_B == one.memory_terms_B


@pytest.mark.parametrize("backend", ["torch", "megatron", "megatron-local"])
def test_a_shorter_decoder_is_less_work_and_less_memory(backend: str, make: Make) -> None:
    told = [
        _told(make(backend=backend, decoder_sequence_length=written, global_batch=64, micro_batch=64))
        for written in (64, 128, 256, 512)
    ]
    times, memories = [one.step_time_s.value for one in told], [one.memory_B.value for one in told]
    assert times == sorted(times)
    assert memories == sorted(memories)
    assert [one.tokens for one in told] == [64 * written for written in (64, 128, 256, 512)]


def test_arguments_of_megatron_lm_are_read() -> None:
    run = megatron_run(T5_11B, gpu="h100-sxm-80gb", gpus=8)
    assert (run.plan["sequence_length"], run.plan["decoder_sequence_length"]) == (512, 128)
    assert (run.config["encoder_num_layers"], run.config["num_layers"]) == (24, 24)
    assert not run.unknown


def test_t5_of_megatron_lm_holds_what_its_test_states(tmp_path: Path) -> None:
    run = megatron_run(T5_11B, gpu="h100-sxm-80gb", gpus=8)
    file = tmp_path / "t5-11b.json"
    file.write_text(json.dumps(run.config))
    told = _told(Plan.model_validate(run.plan | {"architecture": str(file)}))
    allocated_B = told.memory_B.value - told.memory_terms_B["context"] - told.memory_terms_B["fragmentation"]
    assert allocated_B == pytest.approx(T5_11B_ALLOCATED_B, rel=0.01)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"architecture": "llama-3-8b"}, "found 128 with llama-3-8b, whose layers attend to no encoder; allowed: null"),
        (
            {"parallel": {"pp": 2}, "cluster": {"gpu": "h100-sxm-80gb", "gpus": 2}, "micro_batch": 1},
            "found 128 with pp 2 and cp 1; allowed: null, or pp 1 and cp 1",
        ),
        ({"decoder_sequence_length": 1024}, "found 1024; t5 has 512 learned positions, allowed: at most that"),
        ({"decoder_sequence_length": 0}, "decoder_sequence_length"),
        (
            {
                "decoder_sequence_length": 127,
                "parallel": {"tp": 2, "sequence_parallel": True},
                "cluster": {"gpu": "h100-sxm-80gb", "gpus": 2},
            },
            "found 127; allowed with sequence_parallel: multiples of tp 2",
        ),
    ],
)
def test_what_is_refused(keys: dict[str, Any], said: str, make: Make) -> None:
    with pytest.raises((InputError, InfeasiblePlanError), match=said):
        _told(make(**keys))
