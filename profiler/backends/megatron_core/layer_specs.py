"""What a GPTModel is built of: Megatron Core's layer specifications, with norms that know sequence parallelism.

Without Transformer Engine and apex, Megatron Core takes torch's norms and refuses them under sequence parallelism
(torch_norm.py, WrappedTorchNorm), under which alone it trains experts with tensor parallelism (moe_layer.py). What they
lack is the mark on their weights by which `finalize_model_grads` sums such gradients; here they have it.

Norms of queries and keys are one a head in Megatron Core; OLMoE's go over all heads at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from torch import Tensor, nn

from moemodel.model.architecture.spec import Architecture
from moemodel.profiler.backends.megatron_core.settings import Kernels


def norm(config: Any, hidden_size: int, eps: float) -> nn.Module:
    """Torch's norm of the kind that the configuration names, marked for sequence parallelism."""
    kind = nn.RMSNorm if config.normalization == "RMSNorm" else nn.LayerNorm
    module: nn.Module = kind(hidden_size, eps=eps, dtype=config.params_dtype, device=torch.cuda.current_device())
    return _marked(module, config)


class NormOverHeads(nn.Module):
    """One norm over all heads of queries or keys [S, B, heads, width of a head] together (OLMoE).

    Args:
        config: of the model.
        heads: of the queries, or of the keys.
        head_dim: width of one.
        eps: of the norm.
    """

    def __init__(self, config: Any, heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.norm = norm(config, heads * head_dim, eps)

    def forward(self, x_SBHK: Tensor) -> Tensor:
        """Normalised, in the same shape."""
        out: Tensor = self.norm(x_SBHK.flatten(2))
        return out.view(x_SBHK.shape)


def block_spec(architecture: Architecture, config: Any, kernels: Kernels, vp_stage: int | None) -> Any:
    """Specifications of this rank's layers.

    Args:
        architecture: of the model.
        config: its `TransformerConfig`.
        kernels: what is installed beside Megatron Core.
        vp_stage: number of the virtual stage; None without any.
    """
    block = get_gpt_decoder_block_spec(
        config, use_transformer_engine=kernels.engine, normalization=config.normalization, vp_stage=vp_stage
    )
    heads = _norms_of_heads(architecture)
    layers = [_with_norms(layer, heads, engine=kernels.engine) for layer in block.layer_specs]
    final = block.layer_norm if kernels.engine else norm
    return replace(block, layer_specs=layers, layer_norm=final if architecture.final_norm else _no_norm)


def _no_norm(**_: Any) -> nn.Module:
    """In place of a final norm that a model has not."""
    return nn.Identity()


def _marked(module: nn.Module, config: Any) -> nn.Module:
    for parameter in module.parameters():
        parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return module


def _norms_of_heads(architecture: Architecture) -> dict[str, Any]:
    """Builders of the norms of queries and keys; none where there are none."""
    (attention,) = architecture.decoder[0].attentions

    def over(heads: int) -> Any:
        return lambda config, hidden_size, eps: NormOverHeads(config, heads, hidden_size, eps)

    if attention.qk_norm == "full":
        return {"q_layernorm": over(attention.heads), "k_layernorm": over(attention.kv_heads)}
    return {} if attention.qk_norm == "none" else {"q_layernorm": norm, "k_layernorm": norm}


def _with_norms(layer: Any, heads: dict[str, Any], *, engine: bool) -> Any:
    parts = layer.submodules
    attention = replace(parts.self_attention, submodules=replace(parts.self_attention.submodules, **heads))
    if engine:  # its own norms are part of its products
        return replace(layer, submodules=replace(parts, self_attention=attention))
    dense = {} if "pre_mlp_layernorm" not in vars(parts) else {"pre_mlp_layernorm": norm}
    return replace(layer, submodules=replace(parts, self_attention=attention, input_layernorm=norm, **dense))
