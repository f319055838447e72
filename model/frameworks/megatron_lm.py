"""Megatron-LM: today's fused layers, and its 2.x versions of 2021."""

from __future__ import annotations

from moemodel.model.frameworks.base import Framework, FusedOperator, HostFactors, PrecisionRecipe

# What Megatron's layers fuse with Transformer Engine, which its command line turns on: norms, rotation (`--no-rope-fusion`)
# and activations, which torch.compile fuses (`--no-bias-swiglu-fusion`; core/jit.py)
TRANSFORMER_ENGINE: frozenset[FusedOperator] = frozenset(
    {"rms_norm", "layer_norm", "rotary", "gelu", "relu", "swiglu", "swiglu_packed"}
)

# What the host needs for a layer of Transformer Engine's modules, over torch's: the median of 15 step times of the same
# small model that nothing but the host bounds (Megatron-LM, commit d98e8a6, tests/functional_tests, H100: GPT of 12
# layers in six layouts; 2.1 to 2.8 in the middle half, to 4.3 where its machines were slower). In either pass alike: step
# times do not tell them apart
TRANSFORMER_ENGINE_HOST = HostFactors(forward=3.1, backward=3.1)

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
    host_factors=TRANSFORMER_ENGINE_HOST,
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
