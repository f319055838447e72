"""What the host queues under Megatron-LM, against closed forms: a change of one thing, and what it must add."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moemodel
from moemodel.calibration.store.catalogue import load_calibration
from moemodel.model.frameworks.megatron_lm import (
    DETERMINISTIC_HOST,
    LATENT_CALLS,
    RING_CALLS,
    SHARD_CALLS,
    TENSOR_CALLS,
    TRANSFORMER_ENGINE_HOST,
)
from moemodel.model.frameworks.moe_form import measured_layer
from moemodel.model.plan.batch import joined
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.megatron_arguments import megatron_run
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import PricedPlans
from moemodel.model.step.stage_cost import StageCost
from moemodel.model.step.system import system_of

GPT: dict[str, Any] = {
    "--num-layers": 12,
    "--hidden-size": 512,
    "--num-attention-heads": 8,
    "--seq-length": 1024,
    "--max-position-embeddings": 1024,
    "--micro-batch-size": 4,
    "--global-batch-size": 32,
    "--bf16": True,
}
LLAMA = {"--swiglu": True, "--normalization": "RMSNorm", "--position-embedding-type": "rope"}


def cost(
    folder: Path, changes: dict[str, Any], *, gpu: str = "h100-sxm-80gb", backend: str | None = None, **framework: Any
) -> StageCost:
    """Of the first stage; under the backend that arguments are read as, if none is said."""
    run = megatron_run(GPT | changes, gpu=gpu, gpus=8)
    (folder / "config.json").write_text(json.dumps(run.config), encoding="utf-8")
    said = {"architecture": str(folder / "config.json")} | ({"backend": backend} if backend else {})
    plan = Plan.model_validate(run.plan | said)
    system = system_of(plan, load_calibration(None, gpu))
    system = replace(system, framework=replace(system.framework, **framework))
    return PricedPlans(architecture_of(plan), joined([plan]), system)._pipelines[0].pipe.costs[0]


def host_s(folder: Path, changes: dict[str, Any], **options: Any) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Of a forward and of a backward pass."""
    host = cost(folder, changes, **options).host
    return np.array([np.ravel(host.forward_s)[0], np.ravel(host.backward_s)[0]])


def dense_s() -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Of the plain layer that the H100's profile measured, forward and backward, s."""
    lane = next(lane for lane in load_calibration(None, "h100-sxm-80gb").host if lane.backend == "torch")
    return np.array([lane.blocks[f"dense_layer/{way}"].value for way in ("forward", "backward")])


def test_a_layer_costs_what_the_plain_one_does_whatever_it_fuses(tmp_path: Path) -> None:
    """12 layers, less 6, as often as its modules take torch's time, beside what a pass costs in calls of the mean one,
    and each of its tensors."""
    alone: dict[str, Any] = {"pass_calls": 0.0, "tensor_calls": (0.0, 0.0)}
    plain, gated = (host_s(tmp_path, changes, **alone) for changes in ({}, LLAMA))
    assert plain == pytest.approx(gated)
    half = host_s(tmp_path, {"--num-layers": 6}, **alone)
    assert plain - half == pytest.approx(6 * TRANSFORMER_ENGINE_HOST.forward * dense_s())


@pytest.mark.parametrize(
    ("changes", "tensors"),
    [
        ({}, 12),  # four products and two norms, with a bias each
        ({"--disable-bias-linear": True}, 8),
        (LLAMA | {"--disable-bias-linear": True}, 6),  # gate and up-projection are one
        ({"--qk-layernorm": True}, 14),  # assumed of norms of heads: no bias
    ],
)
def test_each_tensor_costs_a_hook_and_a_part_of_the_step(tmp_path: Path, changes: dict[str, Any], tensors: int) -> None:
    """Of a layer as Megatron joins them (core/models/gpt/gpt_layer_specs.py)."""
    modules_s = TRANSFORMER_ENGINE_HOST.forward * dense_s() / np.array(measured_layer("dense_layer"))
    with_tensors, without = (
        cost(tmp_path, changes, pass_calls=0.0, **some) for some in ({}, {"tensor_calls": (0.0, 0.0)})
    )
    hooks_s = np.ravel(with_tensors.host.backward_s)[0] - np.ravel(without.host.backward_s)[0]
    assert hooks_s == pytest.approx(12 * TENSOR_CALLS[0] * tensors * modules_s[1])
    assert np.ravel(with_tensors.host.forward_s) == pytest.approx(np.ravel(without.host.forward_s))
    lane = np.array(measured_layer("dense_layer"))
    mean_s = TRANSFORMER_ENGINE_HOST.forward * dense_s().sum() / lane.sum()
    looped_s = np.ravel(with_tensors.host_step_s)[0] - np.ravel(without.host_step_s)[0]
    assert looped_s == pytest.approx(12 * TENSOR_CALLS[1] * tensors * mean_s, rel=0.3)  # of gated layers, too


def test_megatron_fsdp_costs_each_layer_in_every_pass(tmp_path: Path) -> None:
    """Gathered either way and scattered in each of the step's micro-batches; nothing where ZeRO shards states alone."""
    sharded = {"--use-megatron-fsdp": True, "--data-parallel-sharding-strategy": "optim_grads_params"}
    one = host_s(tmp_path, sharded, pass_calls=1.0) - host_s(tmp_path, sharded, pass_calls=0.0)
    found = np.ravel(cost(tmp_path, sharded).host_exchange_s)[0]
    micro_batches = 32 / (4 * 8)
    assert found == pytest.approx(micro_batches * 12 * SHARD_CALLS * (one[0] + 2 * one[1]), rel=1e-6)
    assert not np.ravel(cost(tmp_path, {"--use-distributed-optimizer": True}).host_exchange_s)[0]


def test_a_pass_costs_as_much_whatever_it_passes(tmp_path: Path) -> None:
    """A chunk of an interleaved pipeline as much as a whole stage."""
    one = {"--pipeline-model-parallel-size": 4}
    three = one | {"--num-layers-per-virtual-pipeline-stage": 1}
    without = {"pass_calls": 0.0}
    found = [host_s(tmp_path, changes) - host_s(tmp_path, changes, **without) for changes in (one, three)]
    assert found[1] == pytest.approx(3 * found[0])
    assert (found[0] > 0).all()


def test_the_same_bits_take_a_tenth_longer(tmp_path: Path) -> None:
    usual, same = (host_s(tmp_path, changes) for changes in ({}, {"--deterministic-mode": True}))
    assert same == pytest.approx(DETERMINISTIC_HOST * usual)


def test_a_forward_pass_that_runs_again_takes_as_long_again(tmp_path: Path) -> None:
    full = {"--recompute-granularity": "full", "--recompute-method": "uniform", "--recompute-num-layers": 1}
    alone: dict[str, Any] = {"pass_calls": 0.0, "tensor_calls": (0.0, 0.0)}
    usual, again = (host_s(tmp_path, changes, **alone) for changes in ({}, full))
    layers_s = 12 * TRANSFORMER_ENGINE_HOST.forward * dense_s()[0]
    # the head's forward pass is not among what runs again, and a mean operator's share of it is
    assert again[1] - usual[1] == pytest.approx(layers_s, rel=0.15)
    assert again[0] == pytest.approx(usual[0])


@pytest.mark.parametrize("backend", ["megatron", "megatron-core"])
def test_a_ring_of_two_has_two_blocks_a_layer(tmp_path: Path, backend: str) -> None:
    """Beside its message, of which both backends queue as much: the code around it is Transformer Engine's."""
    ring = {"--context-parallel-size": 2}
    usual = host_s(tmp_path, ring, backend=backend)
    found = usual - host_s(tmp_path, ring, backend=backend, ring_calls=(0.0, 0.0))
    without, one = (host_s(tmp_path, ring, backend=backend, pass_calls=calls) for calls in (0.0, 1.0))
    assert found == pytest.approx(12 * 2 * np.array(RING_CALLS) * (one - without))
    assert (found > 0).all()


def test_latent_attention_has_kernels_beside_the_plain_layers(tmp_path: Path) -> None:
    latent = {"--multi-latent-attention": True, "--q-lora-rank": 192, "--kv-lora-rank": 64, "--qk-head-dim": 16}
    alone: dict[str, Any] = {"pass_calls": 0.0, "tensor_calls": (0.0, 0.0)}
    found = host_s(tmp_path, latent, **alone) - host_s(tmp_path, {}, **alone)
    each_s = TRANSFORMER_ENGINE_HOST.forward * dense_s() / np.array(measured_layer("dense_layer"))
    assert found == pytest.approx(12 * np.array(LATENT_CALLS) * each_s)
    in_graphs = alone | {"captured_parts": "attention"}
    assert host_s(tmp_path, latent, **in_graphs) == pytest.approx(host_s(tmp_path, {}, **in_graphs))


def test_experts_one_by_one_cost_as_many_as_there_are_and_grouped_ones_as_three(tmp_path: Path) -> None:
    def of(experts: int, **more: bool) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return host_s(
            tmp_path,
            {"--num-experts": experts, "--moe-router-topk": 1, "--disable-bias-linear": True, **more},
            pass_calls=0.0,
        )

    assert of(6) - of(4) == pytest.approx(of(4) - of(2))
    assert of(8, **{"--moe-grouped-gemm": True}) == pytest.approx(of(3))


def test_the_host_waits_for_each_routers_choice(tmp_path: Path) -> None:
    """And queues what comes behind it while the device has nothing to do: not in a dense model."""
    experts = {"--num-experts": 8, "--moe-router-topk": 2, "--disable-bias-linear": True, "--moe-grouped-gemm": True}
    dense, sparse = (cost(tmp_path, changes) for changes in ({"--disable-bias-linear": True}, experts))
    assert not np.ravel(dense.host_behind_s)[0]
    assert not np.ravel(dense.host_sync_s)[0]
    assert 0 < np.ravel(sparse.host_behind_s)[0] < np.ravel(sparse.host.forward_s)[0]
    assert 0 < np.ravel(sparse.before_share)[0] < 1
    assert np.ravel(sparse.host_sync_s)[0] > 0


def test_a_slower_host_takes_longer_for_everything(tmp_path: Path) -> None:
    """DGX A100 over DGX H100; its calibration takes its hosts from the H100's."""
    fast, slow = (host_s(tmp_path, {}, gpu=gpu) for gpu in ("h100-sxm-80gb", "a100-sxm-80gb"))
    assert slow == pytest.approx(1.51 * fast, rel=0.05)


@pytest.mark.parametrize(("backend", "times", "beside"), [("megatron-core", 2.8, (2, 6)), ("torch", 12 / 14, (0, 0))])
def test_layers_that_run_again_take_the_host_as_long_as_forward(
    tmp_path: Path, backend: str, times: float, beside: tuple[int, int]
) -> None:
    """Of a model so small that the host alone takes time: a gated layer's measured forward pass, of 29 kernels, by its
    modules, and what these have to do to run again, counted in kernels forward and backward, of which there are 46.
    torch stops before the last two of the layer's fourteen operators, a product and the sum behind it."""
    llama = {"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 8}
    llama |= {"num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 128}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(llama | {"tie_word_embeddings": False, "rms_norm_eps": 1e-5}), encoding="utf-8")
    plan = {"architecture": str(config), "sequence_length": 128, "global_batch": 4, "micro_batch": 1}
    plan |= {"backend": backend, "precision": "bf16-mixed", "cluster": {"gpu": "h100-sxm-80gb", "gpus": 1}}
    layers = "none", "full", "layernorm", "layernorm+core_attn"
    none_s, full_s, norms_s, three_s = (
        moemodel.predict(plan | {"recompute": again}).step_time_s.value for again in layers
    )
    lane = next(lane for lane in load_calibration(None, "h100-sxm-80gb").host if lane.backend == "torch")
    there_s, back_s = (lane.blocks[f"dense_layer_gated/{way}"].value for way in ("forward", "backward"))
    module_s = beside[0] * there_s / 29 + beside[1] * back_s / 46
    assert full_s - none_s == pytest.approx(4 * 8 * times * (there_s + module_s), rel=1e-3)
    assert norms_s - none_s > 4 * 8 * times * 2 * module_s
    assert three_s - norms_s > 4 * 8 * times * module_s


def mixtral_s(folder: Path, experts: int, **changes: Any) -> float:
    """Step of a Mixtral of eight layers, so small that the host alone takes time, in Megatron-Bridge."""
    mixtral = {"model_type": "mixtral", "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 8}
    mixtral |= {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 32,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
    }
    config = folder / f"{experts}.json"
    config.write_text(json.dumps(mixtral | {"num_local_experts": experts}), encoding="utf-8")
    plan = {"architecture": str(config), "sequence_length": 128, "micro_batch": 1, "backend": "megatron-core"}
    plan |= {"precision": "bf16-mixed", "global_batch": 4, "cluster": {"gpu": "h100-sxm-80gb", "gpus": 1}}
    return moemodel.predict(plan | changes).step_time_s.value


def moe_kernels_s() -> tuple[float, float]:
    """Of torch's measured layer with experts, which has 56 kernels forward and 70 backward, one of either, s."""
    lane = next(lane for lane in load_calibration(None, "h100-sxm-80gb").host if lane.backend == "torch")
    return lane.blocks["moe_layer/forward"].value / 56, lane.blocks["moe_layer/backward"].value / 70


def test_each_more_expert_takes_the_host_six_products(tmp_path: Path) -> None:
    """Two products forward and four backward, of 0.8 of torch's kernels each."""
    there_s, back_s = moe_kernels_s()
    found_s = mixtral_s(tmp_path, 16) - mixtral_s(tmp_path, 8)
    assert found_s == pytest.approx(4 * 8 * (16 - 8) * 0.8 * (2 * there_s + 4 * back_s), rel=1e-3)


def test_layers_that_take_turns_with_another_micro_batch_take_the_host_longer(tmp_path: Path) -> None:
    """24 kernels of the framework's modules either way, 2.8 times torch's, on two GPUs as long as on one."""
    spread = {"cluster": {"gpu": "h100-sxm-80gb", "gpus": 2}, "global_batch": 8, "parallel": {"dp": 2, "ep": 2}}
    found_s = [mixtral_s(tmp_path, 8, **spread, routing={"dispatch_overlap": overlap}) for overlap in (False, True)]
    assert found_s[1] - found_s[0] == pytest.approx(4 * 8 * 24 * 2.8 * sum(moe_kernels_s()), rel=0.01)
