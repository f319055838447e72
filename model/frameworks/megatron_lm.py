"""Megatron-LM: today's fused layers, and its 2.x versions of 2021."""

from __future__ import annotations

from moemodel.model.frameworks.base import Framework, FusedOperator, PrecisionRecipe

# What Megatron's layers fuse with Transformer Engine, which its command line turns on: norms, rotation (`--no-rope-fusion`)
# and activations, which torch.compile fuses (`--no-bias-swiglu-fusion`; core/jit.py)
TRANSFORMER_ENGINE: frozenset[FusedOperator] = frozenset(
    {"rms_norm", "layer_norm", "rotary", "gelu", "relu", "swiglu", "swiglu_packed"}
)

MEGATRON_LM = Framework(
    name="megatron",
    precisions={
        "bf16": PrecisionRecipe(weight_B=2, gradient_B=2, state_B=4, master_weights=False),
        # gradients are accumulated in float32 (Narayanan et al. 2021)
        "bf16-mixed": PrecisionRecipe(weight_B=2, gradient_B=4, state_B=12),
    },
    fused_qkv=True,
    fused_gate_up=True,
    fused_kernels=TRANSFORMER_ENGINE,  # not permutations and the loss, whose flags are off
    eager_loss=True,  # tensor_parallel/cross_entropy.py
    keeps_norm_shards=True,
    gated_tensors=3.0,
    keeps_expert_outputs=False,
    logit_B=6.0,
    placeholder_gradients=True,  # transformer_engine/pytorch/module/base.py, get_dummy_wgrad
    memory_log_error=0.05,  # Megatron-LM's functional tests on one node; 0.015 on 8 B200
)

# Fused softmax; bias, dropout and residual, taken to be three kernels since TorchScript's fuser left dropout out
# (megatron/model/transformer.py); timers that synchronise around every pass (megatron/global_vars.py, _Timer)
MEGATRON_LM_2021 = Framework(
    name="megatron-v2",
    precisions={
        "bf16": PrecisionRecipe(weight_B=2, gradient_B=2, state_B=4, master_weights=False),
        # sums 16-bit gradients and makes float32 ones for the step (optimizer.py, 2021)
        "bf16-mixed": PrecisionRecipe(weight_B=2, gradient_B=2, state_B=12, transient_B=4),
    },
    fused_qkv=True,
    fused_gate_up=True,
    flash_attention=False,
    dropout=True,
    keeps_norm_shards=True,
    logit_B=6.0,
    synchronizes_every_pass=True,
)
