"""NeMo's Megatron-Bridge (main of 2026) with the settings of its own recipes, on Megatron Core's layers.

`megatron-core` is the same code as its recipes for performance set it: gradients summed in 16 bits, exchanges of tensor
parallelism behind products.
"""

from __future__ import annotations

from dataclasses import replace

from moemodel.model.frameworks.megatron_core import MEGATRON_CORE

NEMO = replace(
    MEGATRON_CORE,
    name="nemo",
    # `grad_reduce_in_fp32` is on in every mixed precision of bf16 (training/mixed_precision.py, bf16_mixed and what
    # begins with it)
    precisions={name: replace(recipe, gradient_B=4) for name, recipe in MEGATRON_CORE.precisions.items()},
    parameter_dtype="fp8",  # `fp8_param_gather` is on with products of 8 bits (the same file)
    # recipes leave `comm_overlap` out (recipes/common.py), so that tensor parallelism does not overlap; gradients and
    # parameters do, and messages between stages with virtual stages (training/comm_overlap.py), taken for all pipelines
    overlapped=frozenset({"pp", "parameters", "gradients"}),
)
