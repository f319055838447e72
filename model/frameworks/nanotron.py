"""Nanotron, as Hugging Face's Ultra-Scale Playbook ran it: Llama models with tensor (reduce-scatter), data and pipeline
parallelism. Files are those of huggingface/nanotron, branch nouamane/bench2, whose trainer wrote those runs' table.

What its runs hold is 18 bytes a parameter without ZeRO and 2 more in DDP's buckets; under ZeRO 1, 6 that no rank shards
and 12 that ranks do, with 4 and 2 more while a step gathers: what the allocator has given out in a step is that and two
whole hidden states, to 0.2 bytes a parameter (their table, `Mem Alloc`). What is said to be seen was fitted to rows of
one of two models, and holds for the other (`docs/frameworks.md`).
"""

from __future__ import annotations

from moemodel.model.frameworks.base import Framework, HostFactors, PrecisionRecipe

NANOTRON = Framework(
    name="nanotron",
    precisions={
        # 16-bit parameters and float32 sums of all gradients; float32 parameters and Adam's moments of what a rank
        # updates (optim/gradient_accumulator.py)
        "bf16-mixed": PrecisionRecipe(weight_B=2, gradient_B=4, state_B=12),
    },
    fused_qkv=True,
    fused_gate_up=True,
    fused_kernels=frozenset({"rms_norm"}),  # flash-attention's in Triton (nn/layer_norm.py, TritonRMSNorm)
    attention="flash2",  # flash_attn_varlen_func (models/llama.py), of flash-attn 2
    eager_loss=True,  # sharded_cross_entropy, float32, whole vocabularies too (tensor_parallel/functional.py)
    # to 32 bits (6), largest (4), difference (8), exponential (8), sum (4), division (8); scale (8), to 16 bits (6)
    eager_loss_B=(38.0, 14.0),
    copies_heads=True,  # models/llama.py, CausalSelfAttention
    # 1.25 times Megatron Core's layers without Transformer Engine, whose functions of tensor parallelism it has: seen
    # of one sequence in tensor parallelism inside a node, where a layer takes 4.4 ms of either model
    host_factors=HostFactors(forward=2.74, backward=1.89),
    gathers_inputs_again=True,  # tensor_parallel/functional.py, _ColumnLinearAsyncCommunication; tp_recompute_allgather
    sums_B=10.0,  # 16-bit gradients into float32 ones, of every micro-batch (optim/gradient_accumulator.py)
    # clipped (8: optim/clip_grads.py) and filled with zeros (4), whoever updates the parameters; these to 16 bits (6)
    gradients_B=12.0,
    optimizer_B=6.0,
    # DDP's hook reduces float32 sums (optim/gradient_accumulator.py, get_fp32_accum_hook; ddp_bucket_cap_mb); under
    # ZeRO 1 there is no DDP, and all are reduced at once (trainer.py, training_step)
    all_reduces=True,
    gradient_bucket_B=25 * 2.0**20,
    bucket_copies_B=2.0,  # of 16-bit gradients (torch, gradient_as_bucket_view=False)
    # all parameters as they are gathered, twice, and a rank's own (distributed.py, all_gather_coalesced; torch's
    # all_gather of a list makes a buffer of its own)
    gather_copies_B=(4.0, 2.0),
    unsummed_gradients_B=2.0,  # 16-bit ones, of a whole backward pass (optim/gradient_accumulator.py, backward)
    # trainer.py, mark_unsharded_params_as_tied_across_tp; parallel/tied_parameters.py, sync_tied_weights_gradients
    sums_norm_gradients=True,
    gather_buffers=2,  # tensor_parallel/functional.py, MemoryBuffer: "allgather", "allgather2"
    gathered_tensor_s=7e-6,  # distributed.py, all_gather_coalesced; seen of data parallelism over 32 to 256 GPUs
    pipeline="described",
    # seen of stages of two layers whose host binds: 2 ms of a micro-batch's passes, in 18 messages, are no layer's
    message_s=1e-4,
    # inputs are gathered again, into buffers that stay; but the whole outputs of a layer's two products that are
    # scattered, and what of them each rank gets, are not free before the host has seen the end of the collective
    # (tensor_parallel/functional.py, row_linear; torch 2.1, ProcessGroupNCCL.cpp, which records its stream of both)
    keeps_norm_shards=True,
    frees_late=True,
    # a device's queue holds 1,024 launches: some 50 are a layer's forward pass, 35 kernels and events around four
    # collectives, some 70 its backward pass, 45 and around six; of that many layers fitted to what runs reserved whose
    # device was the later (8 to 64 sequences in tensor parallelism), in a second micro-batch beside the first one's
    late_layers=(17.0, 10.0),
    may_keep_norm_shards=True,
    cuts_by_cost=True,  # models/base.py, build_model; models/llama.py, get_block_compute_costs
    gated_tensors=4.0,  # its activation and product are two kernels (nn/activations.py, GLUActivation)
    # 16-bit logits and float32 ones, and of these the exponentials, in which the gradient is made
    # (tensor_parallel/functional.py, _ShardedCrossEntropy)
    logit_B=10.0,
    # beside the allocator: each of three communicators of all GPUs of a node (of the world twice, of the node:
    # parallel/context.py) keeps 1.5 GiB for sums in NVSwitches (NCCL 2.18, src/transport/nvls.cc: for each GPU of 16
    # channels two buffers of 4 and 2 MiB), and rings and trees 0.4 to 1.2 GiB (init.cc, p2p.cc, net.cc); some plans
    # have one or two more. Within these 6 to 11 GiB fitted to which runs ran out of memory; none that did not give
    # memory back and ask again, four to eight times as slow, reserved more than 68 of 80 GiB
    context_B=9 * 2.0**30,
    memory_log_error=0.2,  # against what the allocator reserved
)
