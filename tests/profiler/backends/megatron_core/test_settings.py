"""A run as the keywords of Megatron Core's configuration; without Megatron Core."""

from __future__ import annotations

from typing import Any

import pytest

from moemodel.model.plan.routing import RoutingSpec, routed_architecture
from moemodel.model.plan.spec import ParallelSpec
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.megatron_core.settings import Kernels, model_settings, transformer_settings
from tests.profiler.backends.megatron_core.here import ARCHITECTURES

_PLAIN = Kernels(engine=False)


def _run(name: str, **changes: Any) -> TrainingRun:
    routing = RoutingSpec(**changes.pop("routing", {}))
    architecture = routed_architecture(ARCHITECTURES[name], routing)
    return TrainingRun(name=name, architecture=architecture, seq=16, micro_batch=1, routing=routing, **changes)


def _settings(name: str, **changes: Any) -> dict[str, Any]:
    return transformer_settings(_run(name, **changes), _PLAIN)


def test_shape_of_a_sparse_model() -> None:
    found = _settings("qwen3")
    expected = {
        "num_layers": 4,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "kv_channels": 8,
        "normalization": "RMSNorm",
        "qk_layernorm": True,
        "gated_linear_unit": True,
        "activation_func": "silu",
        "add_bias_linear": False,
        "num_moe_experts": 8,
        "moe_ffn_hidden_size": 16,
        "moe_layer_freq": [1, 1, 1, 1],
        "moe_router_topk": 2,
        "moe_token_dispatcher_type": "alltoall",
    }
    assert expected.items() <= found.items()


def test_shape_of_a_dense_model_with_biases() -> None:
    found = _settings("opt")
    assert (found["normalization"], found["activation_func"], found["gated_linear_unit"]) == (
        "LayerNorm",
        "relu",
        False,
    )
    assert found["add_bias_linear"]
    assert not found["add_qkv_bias"]
    assert not [name for name in found if name.startswith("moe_")]
    model = model_settings(_run("opt"))
    assert model["position_embedding_type"] == "learned_absolute"
    assert model["max_sequence_length"] == 16
    assert model["share_embeddings_and_output_weights"]


def test_dense_layers_among_sparse_ones_keep_their_width() -> None:
    found = _settings("sparse")
    assert found["moe_layer_freq"] == [0, 1, 0, 1]
    assert (found["ffn_hidden_size"], found["moe_ffn_hidden_size"]) == (64, 16)


@pytest.mark.parametrize(
    ("routing", "expected"),
    [
        ({}, {"moe_router_pre_softmax": False, "moe_router_load_balancing_type": "none", "moe_aux_loss_coeff": 0.0}),
        ({"normalize": True}, {"moe_router_pre_softmax": False}),
        ({"normalize": False}, {"moe_router_pre_softmax": True}),
        ({"top_k": 1}, {"moe_router_pre_softmax": True, "moe_router_topk": 1}),
        (
            {"balance_loss": 0.01, "z_loss": 0.001},
            {"moe_router_load_balancing_type": "aux_loss", "moe_aux_loss_coeff": 0.01, "moe_z_loss_coeff": 0.001},
        ),
        (
            {"router": "sigmoid_topk", "bias_rate": 0.001},
            {
                "moe_router_score_function": "sigmoid",
                "moe_router_enable_expert_bias": True,
                "moe_router_bias_update_rate": 0.001,
                "moe_router_pre_softmax": False,
            },
        ),
        ({"capacity_factor": 1.25}, {"moe_expert_capacity_factor": 1.25, "moe_pad_expert_input_to_capacity": False}),
        ({"capacity_factor": 1.25, "pad": True}, {"moe_pad_expert_input_to_capacity": True}),
        ({"jitter": 0.01}, {"moe_input_jitter_eps": 0.01}),
    ],
)
def test_what_a_plan_asks_of_routers(routing: dict[str, Any], expected: dict[str, Any]) -> None:
    assert expected.items() <= _settings("mixtral", routing=routing).items()


def test_degrees() -> None:
    parallel = ParallelSpec(dp=2, tp=2, pp=2, ep=4, sequence_parallel=True, virtual_stages=2)
    found = _settings("qwen3", parallel=parallel)
    expected = {
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 2,
        "expert_model_parallel_size": 4,
        "expert_tensor_parallel_size": 1,
        "sequence_parallel": True,
    }
    assert expected.items() <= found.items()
    assert _settings("qwen3")["virtual_pipeline_model_parallel_size"] is None


@pytest.mark.parametrize(
    ("recompute", "expected"),
    [
        ("none", {}),
        ("selective", {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}),
        ("full", {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}),
    ],
)
def test_recompute(recompute: Any, expected: dict[str, Any]) -> None:
    found = _settings("llama", recompute=recompute)
    assert {name: value for name, value in found.items() if name.startswith("recompute")} == expected


def test_kernels_of_what_is_not_installed_stay_off() -> None:
    fused = ("moe_grouped_gemm", "moe_permute_fusion", "gradient_accumulation_fusion", "apply_rope_fusion")
    assert not any(_settings("qwen3")[name] for name in fused)
    assert all(transformer_settings(_run("qwen3"), Kernels(engine=True))[name] for name in fused)
