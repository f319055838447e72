"""Megatron Core as Megatron-Bridge 0.1-0.6 runs it: whole experts (expert_tensor_parallel_size 1).

Its recipes (perf_recipes) overlap collectives of tensor parallelism and between stages, gradients and parameters.
"""

from __future__ import annotations

from moemodel.model.frameworks.base import Framework, PrecisionRecipe

MEGATRON_CORE = Framework(
    name="megatron-core",
    precisions={
        # sums and reduces 16-bit gradients: `grad_reduce_in_fp32` is off in Megatron-Bridge's bf16 recipes
        "bf16-mixed": PrecisionRecipe(weight_B=2, gradient_B=2, state_B=12),
        # Transformer Engine's 8-bit products (Micikevicius et al. 2022); weights in 8 bits, in two orders, in place of
        # 16-bit ones
        "fp8": PrecisionRecipe(weight_B=2, gradient_B=2, state_B=12, matmul_dtype="fp8"),
        # the same in blocks of 32 with a scale each (Blackwell's tensor cores)
        "mxfp8": PrecisionRecipe(weight_B=2, gradient_B=2, state_B=12, matmul_dtype="mxfp8"),
        # in 4 bits, in blocks of 16, beside 16-bit weights (assumed: those are quantised anew in every step)
        "nvfp4": PrecisionRecipe(weight_B=2, gradient_B=2, state_B=12, matmul_dtype="nvfp4"),
    },
    fused_qkv=True,
    fused_gate_up=True,
    fused_optimizer=True,
    keeps_norm_shards=True,
    gated_tensors=3.0,  # Transformer Engine's and Megatron's fused kernels (fused_bias_swiglu.py)
    keeps_expert_outputs=False,  # probabilities are applied with the activation (moe/experts.py)
    logit_B=4.0,  # cross_entropy_fusion_impl te
    placeholder_gradients=True,
    memory_log_error=0.05,  # as `megatron`, which is the same code under another program
    shards_experts=False,
    overlapped=frozenset({"tp", "pp", "parameters", "gradients"}),
)
