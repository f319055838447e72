"""Modules of multi-token prediction that are trained, against what was published, and what Megatron's tests held."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moemodel
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InputError
from moemodel.model.layers.flops import model_flops
from moemodel.model.layers.multi_token import multi_token_flops, multi_token_parameters
from moemodel.model.layers.parameters import parameters
from moemodel.model.plan.megatron_arguments import megatron_run
from moemodel.model.results.measured import BESIDE_THE_ALLOCATOR
from moemodel.model.schedule.pipeline_layout import layer_bounds, stages

# Megatron-LM's nemotron3_5_lightning_no_load_optim_tp1_pp1_cp1_ep4_dgx_gb200_1N4G (commit d98e8a6): two modules of
# attention and experts behind 14 layers, and mem-max-allocated-bytes
_LIGHTNING: dict[str, Any] = {
    "--micro-batch-size": 2,
    "--global-batch-size": 32,
    "--expert-model-parallel-size": 4,
    "--expert-tensor-parallel-size": 1,
    "--data-parallel-sharding-strategy": "optim_grads_params",
    "--hybrid-layer-pattern": "MEMEM*EMEMEM*E/*E/*E",
    "--num-layers": 14,
    "--hidden-size": 768,
    "--ffn-hidden-size": 512,
    "--moe-ffn-hidden-size": 512,
    "--num-attention-heads": 8,
    "--group-query-attention": True,
    "--num-query-groups": 2,
    "--mamba-num-heads": 16,
    "--position-embedding-type": "none",
    "--normalization": "RMSNorm",
    "--squared-relu": True,
    "--num-experts": 32,
    "--moe-router-topk": 4,
    "--moe-shared-expert-intermediate-size": 1024,
    "--mtp-num-layers": 2,
    "--seq-length": 2048,
    "--max-position-embeddings": 2048,
    "--bf16": True,
    "--kv-channels": 64,
    "--untie-embeddings-and-output-weights": True,
    "--disable-bias-linear": True,
    "--moe-router-score-function": "sigmoid",
    "--moe-token-dispatcher-type": "alltoall",
    "--moe-grouped-gemm": True,
    "--use-distributed-optimizer": True,
    "--overlap-grad-reduce": True,
    "--overlap-param-gather": True,
    "--grad-reduce-in-bf16": True,
    "--cross-entropy-loss-fusion": True,
    "--attention-dropout": 0.0,
    "--hidden-dropout": 0.0,
}


def _plan(**changes: Any) -> dict[str, Any]:
    plan = {"architecture": "deepseek-v3", "sequence_length": 4096, "global_batch": 512, "backend": "megatron-core"}
    plan |= {"cluster": {"gpu": "h100-sxm-80gb", "gpus": 512}, "routing": {"skew": "balanced"}}
    return plan | {"parallel": {"dp": 64, "pp": 8, "ep": 64, "zero_stage": 1}, "recompute": "full"} | changes


def test_a_module_of_deepseek_v3_is_as_large_as_published() -> None:
    """11.5 B of its own beside embedding and head (README_WEIGHTS.md of DeepSeek-V3)."""
    whole = read_architecture("deepseek-v3")
    own = parameters(whole.with_modules()).total - parameters(whole).total
    assert own == multi_token_parameters(whole)
    assert own == pytest.approx(11.5e9, rel=0.01)


def test_work_of_a_module_is_what_leaving_it_out_left_out() -> None:
    whole, seq = read_architecture("deepseek-v3"), np.array([4096])
    more = model_flops(whole.with_modules(), seq) - model_flops(whole, seq)
    assert more[0] == pytest.approx(multi_token_flops(whole, 4096), rel=1e-12)


@pytest.mark.parametrize("pp", [1, 2, 8, 61])
def test_modules_lie_on_the_last_stage(pp: int) -> None:
    """Layers are cut as without them."""
    whole = read_architecture("deepseek-v3")
    bounds, without = layer_bounds(whole.with_modules(), pp), layer_bounds(whole, pp)
    assert bounds == (*without[:-1], without[-1] + 1)
    held = stages(whole.with_modules(), pp, 1)
    assert [stage.layers[-1] for stage in held if stage.head] == [1]


def test_the_last_stage_pays_for_it() -> None:
    """In time, and in memory a copy of the embedding too."""
    without, trained = (moemodel.predict(_plan(multi_token=said)) for said in (None, True))
    assert trained.step_time_s.value > 1.02 * without.step_time_s.value
    assert trained.parameters > without.parameters


def test_memory_is_what_megatrons_test_held(tmp_path: Path) -> None:
    run = megatron_run(_LIGHTNING, gpu="gb200-186gb", gpus=4)
    assert run.plan["multi_token"] is True
    path = tmp_path / "config.json"
    path.write_text(json.dumps(run.config), encoding="utf-8")
    found = moemodel.predict(run.plan | {"architecture": str(path)})
    allocated_B = sum(size_B for name, size_B in found.memory_terms_B.items() if name not in BESIDE_THE_ALLOCATOR)
    assert allocated_B == pytest.approx(6_953_188_864, rel=0.01)


def test_a_model_without_modules_says_so() -> None:
    with pytest.raises(InputError) as caught:
        moemodel.predict(_plan(architecture="mixtral-8x7b", multi_token=True))
    assert "multi_token: found true; mixtral-8x7b states no modules of multi-token prediction; allowed" in str(
        caught.value
    )
