"""Plain PyTorch as this project runs it (`profiler/backends/torch_native`), read from torch 2.11.

DDP and FSDP2, which copy parameters and gradients on their way; torch.distributed.pipelining; SDPA attention, grouped
GEMM experts, AdamW.
"""

from __future__ import annotations

from moemodel.model.frameworks.base import Framework, PrecisionRecipe
from moemodel.model.frameworks.moe_form import HostWaits, MoeForm

TORCH = Framework(
    name="torch",
    precisions={
        # torch.optim.AdamW on bf16 parameters keeps its moments in bf16
        "bf16": PrecisionRecipe(weight_B=2, gradient_B=2, state_B=4, master_weights=False),
        # float32 master weights and moments; gradients become float32 for the step
        "bf16-mixed": PrecisionRecipe(weight_B=2, gradient_B=2, state_B=12, transient_B=4),
        # torch.backends.cuda.matmul.allow_tf32 is off by default: products are the FP32 pipes'
        "fp32": PrecisionRecipe(
            weight_B=4, gradient_B=4, state_B=8, master_weights=False, element_size_B=4.0, matmul_dtype="fp32"
        ),
    },
    fused_qkv=False,
    fused_gate_up=False,
    compiles=True,
    eager_sharding=True,
    # bf16 moments beside float32 weights: torchtitan, docs/bf16_optimizer_states.md; 8-bit ones: bitsandbytes, torchao
    moment_dtypes=("fp32", "bf16", "int8"),
    torch_launch=True,
    busy_waits=True,
    selective="operators",
    # torch/utils/checkpoint.py, since 2.1: _StopRecomputationError, raised as the last tensor is saved, before the
    # product that reads it is computed
    recompute_stops_early=True,
    program_chooses=True,
    memory_log_error=0.0,  # its own runs, which the calibration states the error of
    overlapped=frozenset({"parameters", "gradients"}),
    data_parallel="ddp-fsdp2",
    replicates_shards=True,  # fully_shard over a mesh of two dimensions
    pipeline="torch",
    # torch.distributed.tensor.experimental._context_parallel: rotate_method ALL_GATHER unless a program says otherwise
    gathers_keys=True,
    # rows beyond a capacity are dropped, which the host waits for, and without one it does for other ranks' rows
    moe=MoeForm(padding="never", host_waits=HostWaits(cut=1, spread=1)),
    dispatches_all_tokens=True,
)
