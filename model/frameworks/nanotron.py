"""Nanotron, as Hugging Face's Ultra-Scale Playbook ran it: Llama models with tensor (reduce-scatter), data and pipeline
parallelism.

The facts are those of `bench/memory.py`'s rows: what its runs hold between steps, to 1 %, is 10 bytes a parameter that
no ZeRO stage shards and 12 that it does.
"""

from __future__ import annotations

from moemodel.model.frameworks.base import Framework, HostFactors, PrecisionRecipe

NANOTRON = Framework(
    name="nanotron",
    precisions={
        # 16-bit parameters, float32 ones beside them, and float32 sums of gradients (optim/gradient_accumulator.py)
        "bf16-mixed": PrecisionRecipe(weight_B=6, gradient_B=4, state_B=12),
    },
    fused_qkv=True,
    fused_gate_up=True,
    fused_kernels=frozenset({"rms_norm"}),  # flash-attention's in Triton (nn/layer_norm.py, TritonRMSNorm)
    attention="flash2",  # flash_attn_varlen_func (models/llama.py), of flash-attn 2
    eager_loss=True,  # sharded_cross_entropy, float32, whole vocabularies too (tensor_parallel/functional.py)
    # as Megatron Core's layers without Transformer Engine, measured (megatron_core.py), whose functions of tensor
    # parallelism it has: assumed
    host_factors=HostFactors(forward=2.19*1.2, backward=1.51*1.2),
    gathers_inputs_again=True,
    copies_heads=True,
    sums_B=10.0,  # 16-bit gradients into float32 ones, of every micro-batch (FP32GradientAccumulator)
    # clipped (8), and filled with zeros (4), whoever updates the parameters; of these, float32 to 16 bits (6)
    gradients_B=12.0,
    optimizer_B=6.0,
    eager_loss_B=(38.0, 14.0),
    all_reduces=True,
    gradient_bucket_B=25 * 2.0**20,
    gathered_tensor_s=4.5e-6,
    pipeline="described",
    message_s=1e-4,
    # what most of those runs hold grows with tp by two whole inputs a layer; later code gathers them again
    # (tp_recompute_allgather)
    keeps_norm_shards=False,
    may_keep_norm_shards=True,
    cuts_by_cost=True,  # models/base.py, build_model; models/llama.py, get_block_compute_costs
    gated_tensors=4.0,  # its activation and product are two kernels (nn/activations.py, GLUActivation)
    logit_B=12.0,  # float32 logits, their exponentials and the gradient (tensor_parallel/functional.py)
    memory_log_error=0.2,  # against what the allocator reserved
)
