"""Hybrid models against shapes and FLOPs as Megatron-LM counts them, and memory that its functional tests held."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moemodel
from moemodel.calibration.store.catalogue import shipped
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.device.operator_cost import OperatorCostModel
from moemodel.model.device.power import power_model
from moemodel.model.device.roofline import chip_of_calibration
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.layers.base import MicroBatch
from moemodel.model.layers.flops import model_flops
from moemodel.model.layers.layer import layer_blocks
from moemodel.model.layers.parameters import parameters
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.megatron_arguments import megatron_run
from moemodel.model.plan.spec import Plan
from moemodel.model.results.measured import BESIDE_THE_ALLOCATOR

_SMALL: dict[str, Any] = {
    "model_type": "nemotron_h",
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "hybrid_override_pattern": "M*-E",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "intermediate_size": 96,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 32,
    "n_groups": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "moe_shared_expert_intermediate_size": 80,
    "tie_word_embeddings": False,
}
# Megatron-LM's hybrid/hybrid_mr_mcore_te_* (commit d98e8a6, dev_dgx_h100): arguments, and mem-max-allocated-bytes of
# the last rank
_HYBRID: dict[str, Any] = {
    "--hidden-size": 1024,
    "--num-attention-heads": 16,
    "--group-query-attention": True,
    "--num-query-groups": 8,
    "--micro-batch-size": 4,
    "--global-batch-size": 32,
    "--seq-length": 1024,
    "--max-position-embeddings": 1024,
    "--use-distributed-optimizer": True,
    "--overlap-grad-reduce": True,
    "--overlap-param-gather": True,
    "--bf16": True,
    "--attention-backend": "unfused",
}
_LAYERS = "M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M*-M-M-M-M-"


def _file(folder: Path, config: dict[str, Any]) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(path)


def test_parameters_are_the_tensors_of_the_mixer(tmp_path: Path) -> None:
    """As megatron/core/ssm/mamba_mixer.py makes them, and those of the other layers by hand."""
    hidden, heads, groups, state, inner = 64, 8, 2, 32, 128
    convolved = inner + 2 * groups * state
    mixer = [(hidden, 2 * inner + 2 * groups * state + heads), (convolved, 1, 4), (convolved,)]
    mixer += [(heads,), (heads,), (heads,), (inner,), (inner, hidden)]
    attention = [(hidden, 4 * 24), (hidden, 2 * 24), (hidden, 2 * 24), (4 * 24, hidden)]
    dense = [(hidden, 96), (96, hidden)]
    experts = [(8, hidden), (8, hidden, 40), (8, 40, hidden), (hidden, 80), (80, hidden)]
    norms, ends = [(hidden,)] * 5, [(512, hidden)] * 2
    counted = parameters(read_architecture(_file(tmp_path, _SMALL)))
    assert counted.total == sum(map(prod, mixer + attention + dense + experts + norms + ends))
    assert counted.by_component()["state_space"] == sum(map(prod, mixer))


def test_experts_in_a_latent_space(tmp_path: Path) -> None:
    """Products of the model's width become the latent one's, and two to it and back (moe/moe_layer.py)."""
    plain = parameters(read_architecture(_file(tmp_path, _SMALL))).total
    latent = parameters(read_architecture(_file(tmp_path, _SMALL | {"moe_latent_size": 16}))).total
    assert latent == plain - 8 * 2 * 40 * (64 - 16) + 2 * 64 * 16


def test_flops_are_megatrons(tmp_path: Path) -> None:
    """mamba_layer_flops of megatron/training/training.py: 2 H (2 w + 2 g s + h) + 7 w s + 2 w H a token, thrice."""
    config = _SMALL | {"hybrid_override_pattern": "MM", "num_hidden_layers": 2}
    seq, hidden, inner, groups, state, heads = 96, 64, 128, 2, 32, 8
    layer = 2 * hidden * (2 * inner + 2 * groups * state + heads) + 7 * inner * state + 2 * inner * hidden
    expected = 3 * seq * (2 * layer + 2 * hidden * 512)
    found = model_flops(read_architecture(_file(tmp_path, config)), np.array([seq]))
    assert found[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("degrees", "measured_B"), [({}, 10_145_497_088), ({"tensor-model": 2, "context": 4}, 2_743_789_056)]
)
def test_memory_is_what_megatrons_tests_held(tmp_path: Path, degrees: dict[str, int], measured_B: int) -> None:
    given = _HYBRID | {f"--{axis}-parallel-size": number for axis, number in degrees.items()}
    given |= {"--attention-backend": "fused"} if degrees else {}
    run = megatron_run(given | {"--hybrid-layer-pattern": _LAYERS}, gpu="h100-sxm-80gb", gpus=8)
    found = moemodel.predict(run.plan | {"architecture": _file(tmp_path, run.config)})
    terms_B = found.memory_terms_B
    allocated_B = sum(size_B for name, size_B in terms_B.items() if name not in BESIDE_THE_ALLOCATOR)
    assert allocated_B == pytest.approx(measured_B, rel=0.01)


@pytest.mark.parametrize("cp", [1, 2, 4])
def test_context_parallel_ranks_exchange_what_goes_into_the_scan_tensor_by_tensor(tmp_path: Path, cp: int) -> None:
    """As pre_conv_ssm and post_conv_ssm of megatron/core/ssm/mamba_context_parallel.py shape them: B and C are repeated
    where there are fewer groups than ranks."""
    architecture = read_architecture(_file(tmp_path, _SMALL))
    seq, inner, heads, groups, state = 96, 128, 8, 2, 32
    plan = Plan.model_validate(
        {"architecture": _file(tmp_path, _SMALL), "sequence_length": seq, "global_batch": 8, "micro_batch": 2}
        | {"backend": "megatron", "precision": "bf16-mixed", "cluster": {"gpu": "h100-sxm-80gb", "gpus": 4}}
        | {"parallel": {"dp": 4 // cp, "cp": cp}}
    )
    batch = MicroBatch.of(batch_of(plan), framework_of("megatron"), "bf16-mixed")
    (mixer,) = layer_blocks(architecture.layers[0], architecture.hidden).blocks
    rows = seq // cp * 2
    gate, steps = np.zeros((rows, inner), np.float16), np.zeros((rows, heads), np.float16)
    pairs = np.repeat(np.zeros((rows, groups, state), np.float16), max(cp // groups, 1), axis=1)
    sent = [tensor.nbytes for tensor in (gate, gate, pairs, pairs, steps, gate)]
    found = list(mixer.collectives(batch))
    assert [float(np.ravel(one.size_B)[0]) for one in found] == sent
    assert [float(np.ravel(one.forward)[0]) for one in found] == [float(cp > 1)] * 6


# state-spaces/mamba, issue 904: TFLOP/s of 6 N FLOPs a token, of the model that the project calls mamba2-1.3b
@pytest.mark.parametrize(
    ("gpu", "measured_flops"), [("a100-sxm-80gb", 102.5e12), ("h200-sxm-141gb", 239.2e12), ("gb200-186gb", 360.4e12)]
)
def test_published_runs_of_mamba_2(tmp_path: Path, gpu: str, measured_flops: float) -> None:
    mamba = {"hidden_size": 2048, "num_hidden_layers": 48, "hybrid_override_pattern": 48 * "M", "vocab_size": 50288}
    mamba |= {"mamba_num_heads": 64, "mamba_head_dim": 64, "ssm_state_size": 128, "n_groups": 1, "chunk_size": 256}
    path = _file(tmp_path, _SMALL | mamba | {"tie_word_embeddings": True})
    plan = {"architecture": path, "sequence_length": 4096, "global_batch": 4, "micro_batch": 4}
    plan |= {"backend": "megatron-core", "precision": "bf16-mixed", "cluster": {"gpu": gpu, "gpus": 1}}
    found_s = moemodel.predict(plan | {"parallel": {"dp": 1}}).step_time_s.value
    published_s = 6 * parameters(read_architecture(path)).total * 4 * 4096 / measured_flops
    assert found_s == pytest.approx(published_s, rel=0.06)


def test_cycles_of_sms_come_behind_what_moves() -> None:
    """132 SMs that take a million cycles each do so in a millisecond at 1 GHz, and in half of it at 2."""
    calibration = shipped("h100-sxm-80gb")
    chip, clocks_Hz = chip_of_calibration(calibration), np.array([1e9, 2e9])
    pricer = OperatorCostModel(calibration, chip, power_model(calibration), clocks_Hz)
    copy = Call(
        kind=Kind.COPY,
        direction=Pass.FORWARD,
        shape=Shape(m=np.array([3e7])),
        phase=Phase.FORWARD,
        count=np.ones(1),
    )
    moved, both = (
        pricer.phase_costs([replace(copy, sm_cycles=cycles)], 1)[Phase.FORWARD] for cycles in (0.0, 132 * 1e6)
    )
    assert both.time_s_UK - moved.time_s_UK == pytest.approx(np.array([[1e-3, 0.5e-3]]), rel=1e-9)
    assert (both.energy_J_UK > moved.energy_J_UK).all()


def test_ends_of_stages_are_read() -> None:
    pattern = "M-M-M-M*-M-|M-M-M*-M-M-|M-M*-M-M-M-|M*-M-M-M-M-"
    given = _HYBRID | {"--hybrid-layer-pattern": pattern, "--pipeline-model-parallel-size": 2}
    run = megatron_run(given, gpu="h100-sxm-80gb", gpus=8)
    assert (run.config["num_layers"], run.plan["parallel"]["virtual_stages"]) == (44, 2)
    uneven = megatron_run(given | {"--hybrid-layer-pattern": "M-|M-M*/M-/M-"}, gpu="h100-sxm-80gb", gpus=8)
    assert (uneven.plan["stage_layers"], uneven.config["num_layers"]) == ([2, 4], 6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hybrid_override_pattern": "M*-X"}, "hybrid_override_pattern: found 'X'; allowed: M * - E"),
        ({"hybrid_override_pattern": "M*-"}, "found 3 layers; allowed: num_hidden_layers (4)"),
        ({"hybrid_override_pattern": None}, "the key 'layers_block_type' is missing"),
        ({"hybrid_override_pattern": None, "layers_block_type": ["mamba"] * 3 + ["rnn"]}, "layers_block_type: found"),
        ({"n_groups": 3}, "n_groups: found 3; allowed: a divisor of mamba_num_heads (8)"),
        ({"moe_intermediate_size": None}, "the key 'moe_intermediate_size' is missing, since some layers are experts"),
    ],
)
def test_wrong_files_name_the_key(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    config = {key: value for key, value in (_SMALL | changes).items() if value is not None}
    with pytest.raises(InputError) as caught:
        read_architecture(_file(tmp_path, config))
    assert words in str(caught.value)


def test_words_and_letters_are_one(tmp_path: Path) -> None:
    """Newer files list words and leave out how many there are."""
    words = {"layers_block_type": ["linear_attention", "full_attention", "mlp", "moe"]}
    listed = {key: value for key, value in (_SMALL | words).items() if not key.startswith(("hybrid", "num_hidden"))}
    by_letters = read_architecture(_file(tmp_path, _SMALL))
    assert read_architecture(_file(tmp_path, listed)).decoder == by_letters.decoder


@pytest.mark.parametrize(
    ("parallel", "words"),
    [
        ({"tp": 4, "sequence_parallel": True}, "parallel.tp 4 does not divide the groups of a state space 2"),
        ({"tp": 2, "cp": 8, "sequence_parallel": True}, "parallel.cp: found 8 beside tp 2; allowed"),
    ],
)
def test_degrees_that_cut_no_state_space_are_refused(tmp_path: Path, parallel: dict[str, Any], words: str) -> None:
    gpus = int(np.prod([value for value in parallel.values() if value is not True]))
    plan = {"architecture": _file(tmp_path, _SMALL | {"num_attention_heads": 8}), "sequence_length": 1024}
    plan |= {"global_batch": 8, "backend": "megatron-core", "cluster": {"gpu": "h100-sxm-80gb", "gpus": gpus}}
    with pytest.raises(InfeasiblePlanError) as caught:
        moemodel.predict(plan | {"parallel": parallel})
    assert words in str(caught.value)
