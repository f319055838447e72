"""A run as the keywords of Megatron Core's `TransformerConfig`; no Megatron here, so that the mapping can be tested.

Without Transformer Engine and apex these stay off: persist_layer_norm, masked_softmax_fusion and
gradient_accumulation_fusion (apex's kernels); moe_grouped_gemm, moe_permute_fusion, moe_router_fusion and
apply_rope_fusion (Transformer Engine's). bias_activation_fusion and bias_dropout_fusion need neither, but
`torch.compile`, and with it a C compiler on the machine and a compilation in the first steps; they are off always.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.plan.recompute import RecomputeName
from moemodel.model.plan.routing import RoutingSpec
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.megatron_core.supported_models import dense_of, mixture_of

NORM_EPS = 1e-5  # the torch backend's (torch.nn.LayerNorm's default, and Llama's); it changes no time
ROTARY_BASE = 10_000  # the torch backend's; any base costs the same


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """What is installed beside Megatron Core.

    Attributes:
        engine: Transformer Engine, of whose layers the model is then built.
    """

    engine: bool


def transformer_settings(run: TrainingRun, kernels: Kernels) -> dict[str, Any]:
    """Keywords of `TransformerConfig`; the activation by its name, and no functions.

    Args:
        run: whose plan and architecture are supported.
        kernels: of the process that runs it.
    """
    architecture = run.architecture
    return {
        **_shape(architecture),
        **_products(architecture),
        **_recompute(run.recompute),
        **mixture_settings(architecture, run.routing, kernels),
        **_parallel(run),
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "layernorm_epsilon": NORM_EPS,
        "perform_initialization": False,  # weights are those of the torch backend (`weights`)
        "transformer_impl": "transformer_engine" if kernels.engine else "local",
        "gradient_accumulation_fusion": kernels.engine,
        "masked_softmax_fusion": False,
        "persist_layer_norm": kernels.engine,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "apply_rope_fusion": kernels.engine,
    }


def model_settings(run: TrainingRun) -> dict[str, Any]:
    """Keywords of `GPTModel` beside the configuration and the layers."""
    architecture = run.architecture
    (attention,) = architecture.decoder[0].attentions
    positions = "rope" if attention.rotary else "learned_absolute" if architecture.learned_positions else "none"
    return {
        "vocab_size": architecture.vocab,
        "max_sequence_length": architecture.learned_positions or run.seq,
        "share_embeddings_and_output_weights": architecture.tied,
        "position_embedding_type": positions,
        "rotary_base": ROTARY_BASE,
    }


def mixture_settings(architecture: Architecture, routing: RoutingSpec, kernels: Kernels) -> dict[str, Any]:
    """Of these, what concerns experts; nothing of a dense model."""
    block = mixture_of(architecture)
    if block is None:
        return {}
    layers = [int(isinstance(layer.own_feed_forward, Moe)) for layer in architecture.decoder]
    return {
        "num_moe_experts": block.experts,
        "moe_layer_freq": layers,
        "moe_ffn_hidden_size": block.width,
        "moe_shared_expert_intermediate_size": block.shared_width or None,
        "moe_shared_expert_gate": block.shared_gate,
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": kernels.engine,
        "moe_permute_fusion": kernels.engine,
        "moe_expert_capacity_factor": block.capacity_factor,
        "moe_pad_expert_input_to_capacity": bool(routing.pad) and block.capacity_factor is not None,
        **_router(block, routing),
    }


def _router(block: Moe, routing: RoutingSpec) -> dict[str, Any]:
    sigmoid = block.router == "sigmoid_topk"
    return {
        "moe_router_topk": block.top_k,
        "moe_router_score_function": "sigmoid" if sigmoid else "softmax",
        # over all experts, so that a token's weights add up to less than one; with one expert Megatron wants it so
        "moe_router_pre_softmax": not sigmoid and (routing.normalize is False or block.top_k == 1),
        "moe_router_load_balancing_type": "aux_loss" if routing.balance_loss else "none",
        "moe_aux_loss_coeff": routing.balance_loss,
        "moe_z_loss_coeff": routing.z_loss or None,
        "moe_input_jitter_eps": routing.jitter or None,
        "moe_router_enable_expert_bias": sigmoid and (block.score_correction or routing.bias_rate > 0),
        "moe_router_bias_update_rate": routing.bias_rate,
    }


def _shape(architecture: Architecture) -> dict[str, Any]:
    (attention,) = architecture.decoder[0].attentions
    dense, mixture = dense_of(architecture), mixture_of(architecture)
    block = dense or mixture
    assert block is not None
    return {
        "num_layers": len(architecture.decoder),
        "hidden_size": architecture.hidden,
        "num_attention_heads": attention.heads,
        "num_query_groups": attention.kv_heads,
        "kv_channels": attention.head_dim,
        "ffn_hidden_size": block.width,
        "normalization": "RMSNorm" if architecture.decoder[0].norm == "rms" else "LayerNorm",
        "qk_layernorm": attention.qk_norm != "none",
    }


def _products(architecture: Architecture) -> dict[str, Any]:
    (attention,), block = architecture.decoder[0].attentions, architecture.decoder[0].own_feed_forward
    return {
        "gated_linear_unit": block.gated,
        "activation_func": block.activation,
        "add_bias_linear": block.bias,
        "add_qkv_bias": attention.bias_qkv and not block.bias,
    }


def _recompute(recompute: RecomputeName) -> dict[str, Any]:
    if recompute == "full":
        return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    if recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {}


def _parallel(run: TrainingRun) -> dict[str, Any]:
    p = run.parallel
    return {
        "tensor_model_parallel_size": p.tp,
        "pipeline_model_parallel_size": p.pp,
        "virtual_pipeline_model_parallel_size": p.virtual_stages if p.virtual_stages > 1 else None,
        "expert_model_parallel_size": p.ep,
        "expert_tensor_parallel_size": 1,  # whole experts, as the record of the framework says
        "sequence_parallel": p.sequence_parallel and p.tp > 1,
        "overlap_p2p_comm": p.virtual_stages > 1,
        "batch_p2p_comm": p.virtual_stages == 1,
        "deallocate_pipeline_outputs": True,
    }
