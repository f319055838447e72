"""Megatron Core as Megatron-Bridge 0.1-0.6 runs it: whole experts (expert_tensor_parallel_size 1).

Its recipes (perf_recipes) overlap collectives of tensor parallelism and between stages, gradients and parameters.
"""

from __future__ import annotations

from dataclasses import replace

from moemodel.model.frameworks.base import Framework, HostFactors, PrecisionRecipe
from moemodel.model.frameworks.megatron_lm import (
    CAST_CYCLES,
    CLAMPED_ROWS,
    DETERMINISTIC_ENGINE_B,
    ENGINE_SOFTMAX,
    EXPERT_BIASES,
    EXPERT_KERNEL_S,
    GROUPED_WORKSPACE_B,
    LATENT_CALLS,
    RING_CALLS,
    TRANSFORMER_ENGINE,
    TRANSFORMER_ENGINE_WORKSPACE_B,
)
from moemodel.model.frameworks.moe_form import (
    INDEX_ADD_B,
    INDEX_ADD_ENERGY,
    ByChoices,
    HostWaits,
    Launches,
    MoeForm,
    StreamedKernels,
)

# Chosen by those of its runs of Qwen3 and gpt-oss on H100 and B200 that the host bounds: what its modules take over
# torch's (Megatron-LM's functional tests, which log and check more in every step, take 3.1); and as how many of torch's
# kernels it queues each expert's product, whose tensors Transformer Engine reads and describes one by one
# (pytorch/csrc/extensions/gemm.cpp, te_general_grouped_gemm): 18 us on the host of an H100
BRIDGE_HOST = HostFactors(forward=2.8, backward=2.8)
EXPERT_PRODUCTS = 0.8
# A layer with experts whose rows overlap runs as four nodes either way, each on its stream, behind an event, and
# backward by a call of autograd of its own (core/models/common/model_chunk_schedule_plan.py,
# TransformerLayerSchedulePlan): as six kernels of its modules each, chosen by Megatron-Bridge's runs of Qwen3 on H100
# and B300 that overlap NCCL's all-to-alls
PAIRED_CALLS = (24.0, 24.0)
# Of a module that runs again (core/tensor_parallel/random.py, CheckpointWithoutOutput): forward the states of three
# random generators are read, in a function of autograd's own; backward they are read, set, and set back, and autograd
# is called within itself. As a kernel of its modules each: assumed
REPEATED_CALLS = (2.0, 6.0)

MEGATRON_CORE = Framework(
    name="megatron-core",
    precisions={
        # sums and reduces 16-bit gradients: `grad_reduce_in_fp32` is off in Megatron-Bridge's bf16 recipes
        "bf16-mixed": PrecisionRecipe(weight_B=2, gradient_B=2, state_B=12),
        # Transformer Engine's 8-bit products (Micikevicius et al. 2022); weights in 8 bits, in two orders, in place of
        # 16-bit ones
        "fp8": PrecisionRecipe(
            weight_B=2,
            gradient_B=2,
            state_B=12,
            matmul_dtype="fp8",
            # scaled by the largest element, which is looked for first (2), then read (2) and written in both orders
            # (2): Float8CurrentScaling, which Megatron-Bridge's recipes of Hopper name (fp8_cs)
            cast_B=6.0,
            reordered_B=2.0,  # pytorch/tensor/float8_tensor.py, _create_transpose
            shares_largest=True,  # with_amax_reduction (transformer_engine/pytorch/csrc/quantizer.cpp)
            splits_accumulation=True,  # pytorch/module/base.py, _2X_ACC_DGRAD and _2X_ACC_WGRAD
        ),
        # the same in blocks of 32 with a scale each (Blackwell's tensor cores)
        "mxfp8": PrecisionRecipe(weight_B=2, gradient_B=2, state_B=12, matmul_dtype="mxfp8"),
        # in 4 bits, in blocks of 16, beside 16-bit weights (assumed: those are quantised anew in every step). Elements
        # are gone over thrice: for the largest, of columns that a Hadamard transform has turned, then in either order
        # (pytorch/csrc/quantizer.cpp, NVFP4Quantizer::quantize_impl)
        "nvfp4": PrecisionRecipe(
            weight_B=2, gradient_B=2, state_B=12, matmul_dtype="nvfp4", cast_B=3 * 2.0 + 2 * 9 / 16
        ),
    },
    fused_qkv=True,
    fused_gate_up=True,
    replicates_shards=True,  # num_distributed_optimizer_instances
    # Transformer Engine's norms and rotation (`apply_rope_fusion`), its permutations (`moe_permute_fusion`,
    # common/triton/permutation.py) and router (`moe_router_fusion`); activations by torch.compile (core/jit.py).
    # All are on in Megatron-Bridge's recipes (perf_recipes/_common.py, models/qwen)
    fused_kernels=TRANSFORMER_ENGINE | {"router", "permute", "unpermute"},
    turns_scaled=False,  # apply_rotary_pos_emb with an mscale (core/models/common/embeddings/rope_utils.py)
    softmax_longest=ENGINE_SOFTMAX,
    # common/triton/cross_entropy.py, 16-bit logits: forward read twice, their gradients written in their place;
    # backward these are scaled
    fused_loss_B=(6.0, 4.0),
    fused_dropout=True,  # megatron/core/fusions/fused_bias_dropout.py
    fused_optimizer=True,
    moment_dtypes=("fp32", "bf16", "fp16", "fp8"),  # transformer_engine/pytorch/optimizers/fused_adam.py
    master_dtypes=("fp32", "fp16", "remainder"),
    sharded_dtypes=True,  # use_precision_aware_optimizer (core/optimizer/__init__.py)
    # get_query_key_value_tensors: `query.reshape`, and SplitAlongDim's backward (core/transformer/attention.py)
    splits_heads=True,
    fills_gradients=True,  # reset (core/distributed/param_and_grad_buffer.py)
    # gradient_accumulation_fusion, on where Transformer Engine or apex is there (models/gpt_provider.py)
    sums_in_products=True,
    # of products of 8 and 4 bits (transformer_engine/pytorch/distributed.py, gather_along_first_dim with a quantizer)
    casts_shards=True,
    casts_weights="step",  # is_first_microbatch (core/extensions/transformer_engine.py, TELinear)
    keeps_norm_shards=True,
    gated_tensors=3.0,  # Transformer Engine's and Megatron's fused kernels (fused_bias_swiglu.py)
    keeps_expert_outputs=False,  # probabilities are applied with the activation (moe/experts.py)
    logit_B=4.0,  # cross_entropy_fusion_impl te
    placeholder_gradients=True,
    workspace_B=TRANSFORMER_ENGINE_WORKSPACE_B,
    deterministic_workspace_B=DETERMINISTIC_ENGINE_B,
    experts_workspace_B=GROUPED_WORKSPACE_B,
    counts_passes=True,
    memory_log_error=0.05,  # assumed: more than `megatron`'s, the same code under programs that choose more
    shards_experts=False,
    moe=MoeForm(
        # _maybe_dtoh_and_synchronize (moe/token_dispatcher.py); `linear_offset` of clamped rows, a tensor that the host
        # copies (fusions/fused_bias_geglu.py)
        host_waits=HostWaits(forward=1, cut=1, clamped=1),
        cast_cycles=CAST_CYCLES,
        expert_kernel_s=EXPERT_KERNEL_S,
        expert_products=EXPERT_PRODUCTS,
        biases=EXPERT_BIASES,
        clamps=CLAMPED_ROWS,
        sorts_several=True,  # sort_chunks_by_idxs (moe/token_dispatcher.py)
        # Fp8Padding and Fp8Unpadding (moe/experts.py); HybridEP's permutation pads (pad_multiple, token_dispatcher.py)
        pads_cast_rows=True,
    ),
    host_factors=BRIDGE_HOST,
    latent_calls=LATENT_CALLS,
    ring_calls=RING_CALLS,
    paired_calls=PAIRED_CALLS,
    repeated_calls=REPEATED_CALLS,
    overlapped=frozenset({"tp", "pp", "parameters", "gradients"}),
)

_LOCAL_FORM = MoeForm(
    padding="never",  # moe_pad_expert_input_to_capacity is off by default
    products="each",  # SequentialMLP loops over experts; grouped products need Transformer Engine
    dispatch="kernels",
    sorts_again=False,
    kernels=(
        # map of choices and their probabilities (topk_routing_with_score_function: zeros, scatter and casts of 16 bits,
        # int32 and bool), its sum, and for `permute` transposed, sorted by expert (64-bit keys over E T, several
        # passes, assumed 4 of 16 B) and gathered
        StreamedKernels(over="scores", forward=14, backward=4, forward_B=24 + 64, backward_B=14, kept_B=3),
        # rows gathered (4), once more in order of this rank's experts (4) and, behind the experts, back (4), added into
        # zeros of tokens (6, by a scatter); backward the same the other way round, by atomic sums
        StreamedKernels(over="chosen_rows", forward=4, backward=3, forward_B=18, backward_B=12),
        StreamedKernels(over="chosen_rows", backward=1, backward_B=INDEX_ADD_B, energy=INDEX_ADD_ENERGY),
        StreamedKernels(over="expert_rows", forward=1, forward_B=4),  # outputs side by side
        # glu_linear_offset added (4), times probabilities (4), kept; backward their gradient (6), the rows' (6)
        StreamedKernels(over="inner_rows", forward=2, backward=3, forward_B=8, backward_B=16, kept_B=2),
    ),
    # of a whole layer 68 and 65, and 6 and 13 an expert, against torch's 56 and 70: unfused attention is among them
    launches=Launches(
        forward=ByChoices(one=44, two=44, more=44),
        backward=ByChoices(one=29, two=29, more=29),
        each_forward=2,
        each_backward=5,
    ),
    host_waits=HostWaits(forward=1, cut=1),  # _maybe_dtoh_and_synchronize
    separate_experts=True,
)

# Megatron Core 0.19 without Transformer Engine and apex (`transformer_impl: local`): attention of three products,
# experts one by one, torch's AdamW by tensors
MEGATRON_CORE_LOCAL = replace(
    MEGATRON_CORE,
    name="megatron-core-local",
    precisions={
        # float32 copies of gradients and the update's temporaries; where experts are spread, of the larger of the two
        # optimizers that step one after the other, those of experts and of the rest (ChainedOptimizer)
        "bf16-mixed": PrecisionRecipe(weight_B=2, gradient_B=2, state_B=12, transient_B=4, group_transient_B=4),
    },
    fused_kernels=frozenset(),
    fused_loss_B=None,
    fused_dropout=False,  # without a compiler
    flash_attention=False,
    softmax="plain",
    fused_optimizer=False,
    moment_dtypes=("fp32",),  # Transformer Engine's optimizer alone has others
    master_dtypes=("fp32",),
    step_kernels=5 + 1,  # a gradient to float32, its norm and the host's answer, two of clipping, a copy of its master
    sums_in_products=False,  # fused_weight_gradient_mlp_cuda is apex's
    step_read=3 / 6,  # norms are read as numbers, one by one, before anything is clipped (local_multi_tensor_l2_norm)
    step_read_B=6 + 4,
    optimizer_B=80 + 6 + 6 - 28,  # AdamW's 12 multi-tensor kernels, to float32 and back, against 28 of one kernel
    gated_tensors=5.0,  # silu's input and output, 0 added to the up-projection, the product
    # `allreduce` marks an expert's weights as such only with expert parallelism (tensor_parallel/layers.py)
    steps_whole_experts_along=True,
    eager_loss=True,
    logit_B=6.0,  # float32 softmax, and the 16-bit gradient (tensor_parallel/cross_entropy.py)
    placeholder_gradients=False,
    workspace_B=None,
    deterministic_workspace_B=None,
    experts_workspace_B=None,
    counts_passes=False,
    memory_log_error=None,
    moe=_LOCAL_FORM,
    host_factors=HostFactors(forward=2.19, backward=1.51, step=0.68),  # bench/host_factors.py, one H200, 2026
    overlapped=frozenset({"parameters", "gradients"}),
)
