"""Megatron-DeepSpeed as Sailor runs OPT (Strati et al. 2025): float32, torch's softmax, no dropout (opt_model.py).

Its container lets float32 products run as TF32 (NGC PyTorch, TORCH_ALLOW_TF32_CUBLAS_OVERRIDE).
"""

from __future__ import annotations

from moemodel.model.frameworks.base import Framework, HostFactors, PrecisionRecipe

MEGATRON_DEEPSPEED = Framework(
    name="megatron-deepspeed",
    precisions={
        # parameters, gradients and moments all float32
        "fp32": PrecisionRecipe(
            weight_B=4, gradient_B=4, state_B=8, master_weights=False, element_size_B=4.0, matmul_dtype="tf32"
        ),
    },
    fused_qkv=True,
    fused_gate_up=True,
    flash_attention=False,
    softmax="plain",
    fused_optimizer=True,
    host_update_B=4 * 4.0 + 3 * 4.0 + 2.0,  # DeepSpeed's, as in `deepspeed`
    # as Megatron Core's layers without Transformer Engine, measured (megatron_core.py): assumed
    host_factors=HostFactors(forward=2.19, backward=1.51),
    pipeline="deepspeed",  # Sailor's deepspeed/pipe_engine.py too cuts what it sends, whatever the configuration says
    keeps_norm_shards=True,
    memory_log_error=0.2,  # Sailor's runs on GH200, of which nvidia-smi was read: what the allocator caches is in it
    logit_B=12.0,  # logits, the softmax and its gradient, all float32
)
