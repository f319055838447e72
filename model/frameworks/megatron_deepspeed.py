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
    # its throughput timer, which is on by default, waits for the device before every forward pass (deepspeed 0.16,
    # utils/timer.py, ThroughputTimer.start; Sailor's deepspeed/pipe_engine.py, _exec_forward_pass)
    synchronizes_every_pass=True,
    # both passes of 24 layers take 70 ms by steps of one sequence on GH200; how they share them, by those of two and
    # four (Sailor's OPT-350M), and by the order of four plans on A100 (results/parallelism.py, MEASURED_FASTEST)
    host_factors=HostFactors(forward=3.0, backward=1.05),
    # by Sailor's profile of layers without tensor parallelism on a GH200 (sailor_planner/profiles/OPT-350/GH-96, torch
    # 2.5): 1 to 4 sequences forward and backward; backward passes over more than 2 GB of scores take longer still
    plain_softmax_time=1.25,
    host_update_B=4 * 4.0 + 3 * 4.0 + 2.0,  # DeepSpeed's, as in `deepspeed`
    pipeline="deepspeed",  # Sailor's deepspeed/pipe_engine.py too cuts what it sends, whatever the configuration says
    # `torch.zeros(...).cuda()` in Sailor's deepspeed/utils.py, reconstruct_tensor: pages that are touched first and not
    # pinned; so fast by its pipelines of 2 and 4 stages
    message_copy_Bps=1e10,
    keeps_norm_shards=True,
    # what nvidia-smi has beside the allocator's: fused kernels of Apex and of Megatron, 4.76e9 in Sailor's
    # Planner/simulations/runtime_simulator.py (get_memory_footprint_on_gpu), which counts all that is reserved; by its
    # runs 4.45e9 beside what it calls `comm`, 4 bytes a parameter
    context_B=4.45e9,
    flat_copy_B=4.0,
    memory_log_error=0.1,  # assumed: Sailor's fifteen runs err by 2 %, but are of one model
    logit_B=12.0,  # logits, the softmax and its gradient, all float32
)
