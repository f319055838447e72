"""Megatron-LM: today's fused layers, and its 2.x versions of 2021."""

from __future__ import annotations

from dataclasses import replace

from moemodel.model.frameworks.base import Framework, FusedOperator, HostFactors, PrecisionRecipe
from moemodel.model.frameworks.moe_form import PLAIN_FORM, ByChoices, HostWaits, Launches, StreamedKernels

# What Megatron's layers fuse with Transformer Engine, unless its command line says otherwise: norms, rotation
# (`--no-rope-fusion`) and activations, which torch.compile fuses (`--no-bias-swiglu-fusion`; core/jit.py)
TRANSFORMER_ENGINE: frozenset[FusedOperator] = frozenset(
    {"rms_norm", "layer_norm", "rotary", "gelu", "relu", "swiglu", "swiglu_packed"}
)

# What the host needs for a layer of Transformer Engine's modules, over torch's, fitted to the same tests as what stands
# below (`PASS_CALLS`); of either pass alike: step times do not tell them apart
TRANSFORMER_ENGINE_HOST = HostFactors(forward=2.15, backward=2.15)

# Experts in 8 and 4 bits: Transformer Engine casts and multiplies expert by expert, products on a few streams
# (pytorch/module/grouped_linear.py: split_quantize, general_grouped_gemm). What casts behind moving bytes, in cycles of
# an SM a byte, and what each expert's kernel takes beside its work (launched behind one another, begun and ended on an
# SM) were chosen by Megatron-Bridge's runs of Qwen3 and Nemotron 3 on H100 and Blackwell, whose device is behind. The
# first makes 1.1 TB/s on a B200, on which these casts were read at 1.0 to 1.25 (ROCm/TransformerEngine, pull request
# 598: 8,192 x 28,672 elements). In 16 bits nothing asks for them (a run of Qwen3-30B on 8 H100 is predicted 11 % too
# slow, DeepSeek-V3 on 1,024 1 %)
CAST_CYCLES, EXPERT_KERNEL_S = 0.21, 8e-6

# Of experts with biases: of the second product's that of each expert times its rows' probabilities (float32 written),
# added to its rows (read; float32 read and written), all side by side, and to 16 bits; backward to float32, of each to
# 16 bits, times probabilities and summed, times the bias and summed, and the rows' side by side; of each expert's two
# biases a gradient to 16 bits, and added to what is there by a hook (moe/experts.py, _apply_bias;
# distributed/distributed_data_parallel.py, _make_backward_post_hook). The first product's come with its own kernels
EXPERT_BIASES = (
    StreamedKernels(
        over="expert_rows", forward=2, backward=5, forward_B=4 + 10, backward_B=6 + 12 + 12, each_expert=True
    ),
    StreamedKernels(over="expert_rows", forward=2, backward=2, forward_B=8 + 6, backward_B=6 + 4),
    StreamedKernels(over="router_weights", backward=6, each_expert=True),
)
# Gate and up-projection clamped and put side by side before the kernel that activates them; backward what was clamped
# is looked up (three kernels and a choice, one and a choice), zeros for either are filled, gradients put side by side
# (fusions/fused_bias_geglu.py, weighted_bias_quick_geglu_impl; torch, FunctionsManual.cpp, clamp_backward)
CLAMPED_ROWS = (
    StreamedKernels(over="inner_rows", forward=3, backward=9, forward_B=8 + 8, backward_B=14 + 8 + 8, kept_B=4),
)

# Sequences up to which one kernel scales, masks and normalises scores (is_kernel_available): Transformer Engine's since
# 1.4 (pytorch/attention/dot_product_attention/softmax.py, before in pytorch/softmax.py), Megatron Core's and that of
# Megatron-LM in 2021 (core/fusions/fused_softmax.py, megatron/model/fused_softmax.py)
ENGINE_SOFTMAX, _CORE_SOFTMAX, _SOFTMAX_2021 = 16383, 4096, 2048

_MiB = 2.0**20

# Transformer Engine's (pytorch/cpp_extensions/gemm.py, get_cublas_workspace_size_bytes: 32 MiB from compute capability
# 9 on, 4 before), and two of torch's (a thread and stream each, of forward passes and of autograd; 8.125 MiB, as
# discuss.pytorch.org/t/178671 shows, and on Hopper the 32 that NVIDIA's cuBLAS reference recommends). Of Blackwell
# torch's are what Megatron-LM's functional tests on GB200 hold, by their releases 8.125 or 32 MiB; here 32
_ENGINE_B = {"hopper": 32 * _MiB, "blackwell": 32 * _MiB, "blackwell-ultra": 32 * _MiB, "others": 4 * _MiB}
_TORCH_B = {"hopper": 32 * _MiB, "blackwell": 32 * _MiB, "blackwell-ultra": 32 * _MiB, "others": 8.125 * _MiB}
TRANSFORMER_ENGINE_WORKSPACE_B = {gpu: engine_B + 2 * _TORCH_B[gpu] for gpu, engine_B in _ENGINE_B.items()}
# Torch's where products are to give the same bits: 8 of 4 MiB (megatron/training/determinism.py sets
# CUBLAS_WORKSPACE_CONFIG to :4096:8, unless the user has)
DETERMINISTIC_B = 8 * 4 * _MiB
DETERMINISTIC_ENGINE_B = {gpu: engine_B + 2 * DETERMINISTIC_B for gpu, engine_B in _ENGINE_B.items()}
# Beside these, of grouped products: one for each of four streams (Transformer Engine, pytorch/cpp_extensions/gemm.py,
# get_multi_stream_cublas_workspace)
GROUPED_WORKSPACE_B = {gpu: 4 * engine_B for gpu, engine_B in _ENGINE_B.items()}

# Fitted together to 254 step times of Megatron-LM's functional tests (commit d98e8a6, tests/functional_tests; on A100,
# H100 and GB200), beside which three levels stood for what their arguments do not say: timers that wait (tests recorded
# with `--timing-log-level 2`), a release (A100, 2025-07), a cloud's runner (H100, 2026-05-07 and 07-25). With levels
# these step times are 7 % off, without 11 %; the factor above is the one with least mean error by GPU, with which those
# of H100 are 4 to 5 % fast in the median. Of the host beside layers in a pass (batches put on the device, timers, means
# of losses, messages), in calls of a mean operator; around a ring of context parallelism, of a block of keys and values
# (nine kernels forward and eight backward that copy parts of queries and keys, attend, put sums and outputs right:
# Transformer Engine, context_parallel.py, AttnFuncWithCPAndKVP2P); how much longer kernels take that give the same bits
# every time (torch fills what it allocates, sorts indices)
PASS_CALLS = 20.0
RING_CALLS = (4.0, 4.0)
DETERMINISTIC_HOST = 1.13
# In kernels of its modules. Of each tensor in a backward pass a hook, which adds its gradient to what is there and
# tells its bucket (core/distributed/distributed_data_parallel.py, _make_backward_post_hook); and in a step the loops
# over all of them (core/optimizer/optimizer.py and distrib_optimizer.py: gradients to float32, those of the norm;
# clip_grads.py, count_zeros_fp32, which the tests ask for)
TENSOR_CALLS = (1.4, 1.5)
# Of a layer that Megatron-FSDP gathers or scatters: hooks of its modules, buckets looked up, allocated and freed
# (core/distributed/fsdp/src/megatron_fsdp/megatron_fsdp.py, param_and_grad_buffer.py), in calls of a mean operator. By
# the six of them that shard parameters
SHARD_CALLS = 12.0
# Of latent attention (three modules in place of one, rotations of parts, copies of keys: core/transformer/
# multi_latent_attention.py), in kernels of its modules
LATENT_CALLS = (18.0, 28.0)
# Router, dispatch and combination: some 25 kernels of torch forward (topk_routing_with_score_function, or Sinkhorn's
# iterations; permute and unpermute of core/transformer/moe/moe_utils.py; gathers), as eight of Transformer Engine's;
# an expert's products, and its rows' weights, as two and four. Fitted to the same tests; grouped products as three
# experts
SEQUENTIAL_FORM = replace(
    PLAIN_FORM,
    launches=Launches(
        forward=ByChoices(one=8, two=8, more=8),
        backward=ByChoices(one=16, two=16, more=16),
        each_forward=2,
        each_backward=4,
        grouped=3,
    ),
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
    replicates_shards=True,  # num_distributed_optimizer_instances
    fused_kernels=TRANSFORMER_ENGINE,  # not permutations and the loss, whose flags are off
    turns_scaled=False,  # apply_rotary_pos_emb with an mscale (core/models/common/embeddings/rope_utils.py)
    # chunks of rows are split and put together in another order (moe/moe_utils.py, sort_chunks_by_idxs)
    # how many rows each expert has the host reads, in alltoall's dispatch or before products (moe/token_dispatcher.py,
    # _maybe_dtoh_and_synchronize; moe/experts.py, tokens_per_expert.tolist()); `linear_offset` of clamped rows is a
    # tensor that it copies, and waits (fused_bias_geglu.py)
    moe=replace(
        SEQUENTIAL_FORM,
        sorts_several=True,
        cast_cycles=CAST_CYCLES,
        expert_kernel_s=EXPERT_KERNEL_S,
        biases=EXPERT_BIASES,
        clamps=CLAMPED_ROWS,
        host_waits=HostWaits(forward=1, cut=1, clamped=1),
    ),
    eager_loss=True,  # tensor_parallel/cross_entropy.py
    host_factors=TRANSFORMER_ENGINE_HOST,
    plain_host=True,
    softmax_longest=ENGINE_SOFTMAX,
    pass_calls=PASS_CALLS,
    ring_calls=RING_CALLS,
    tensor_calls=TENSOR_CALLS,
    shard_calls=SHARD_CALLS,
    latent_calls=LATENT_CALLS,
    deterministic_host=DETERMINISTIC_HOST,
    fused_dropout=True,  # megatron/core/fusions/fused_bias_dropout.py
    moment_dtypes=("fp32", "bf16", "fp16", "fp8"),  # transformer_engine/pytorch/optimizers/fused_adam.py
    master_dtypes=("fp32", "fp16", "remainder"),
    sharded_dtypes=True,  # use_precision_aware_optimizer (core/optimizer/__init__.py)
    # get_query_key_value_tensors: `query.reshape`, and SplitAlongDim's backward (core/transformer/attention.py)
    splits_heads=True,
    fills_gradients=True,  # reset (core/distributed/param_and_grad_buffer.py)
    keeps_norm_shards=True,
    gated_tensors=3.0,
    keeps_expert_outputs=False,
    logit_B=6.0,
    placeholder_gradients=True,  # transformer_engine/pytorch/module/base.py, get_dummy_wgrad
    workspace_B=TRANSFORMER_ENGINE_WORKSPACE_B,
    deterministic_workspace_B=DETERMINISTIC_ENGINE_B,
    experts_workspace_B=GROUPED_WORKSPACE_B,
    counts_passes=True,
    memory_log_error=0.02,  # Megatron-LM's functional tests on one node; 0.009 on 8 B200 (bench/memory.py)
)

# With `--overlap-grad-reduce` and `--overlap-param-gather`: exchanges over data-parallel ranks behind computation, and
# nothing else
MEGATRON_LM_OVERLAPPED = replace(
    MEGATRON_LM, name="megatron-overlap", overlapped=frozenset({"gradients", "parameters"})
)

# Megatron-LM's own layers (`--transformer-impl local`; core/models/gpt/gpt_layer_specs.py, get_gpt_layer_local_spec),
# with norms and optimizer of apex or Transformer Engine: products of torch, but of routers (core/transformer/moe,
# moe_utils.py, router_gating_linear); scores in a buffer of all layers (core/transformer/dot_product_attention.py,
# `mpu`); no dummies in place of gradients; experts one after another (moe/experts.py, SequentialMLP)
MEGATRON_LM_LOCAL = replace(
    MEGATRON_LM,
    name="megatron-local",
    flash_attention=False,
    softmax_longest=_CORE_SOFTMAX,
    attention="unfused",
    workspace_B={gpu: 2 * torch_B for gpu, torch_B in _TORCH_B.items()},
    deterministic_workspace_B={"others": 2 * DETERMINISTIC_B},
    experts_workspace_B=_ENGINE_B,
    keeps_score_buffer=True,
    placeholder_gradients=False,
    moe=replace(MEGATRON_LM.moe, products="each", separate_experts=True),
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
    softmax_longest=_SOFTMAX_2021,
    dropout=True,
    keeps_norm_shards=True,
    fills_gradients=True,  # zero_grad_buffer, and main_grad.add_ in every backward pass (megatron/model/distributed.py)
    logit_B=6.0,
    synchronizes_every_pass=True,
    # `scatter_gather_tensors_in_pipeline`, on by default from February 2021 on (megatron/p2p_communication.py) until
    # pipelines moved to Megatron Core in March 2023, whose core/pipeline_parallel sends what a rank holds
    cuts_messages=True,
)
