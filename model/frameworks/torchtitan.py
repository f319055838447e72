"""torchtitan, on dense Llama models and DeepSeek-V3's.

`torchtitan` is read from torchtitan 9dec370 (26 December 2024), which its benchmarks of that month name, and 820504e
(June 2025); `torchtitan-0.2` from v0.2.2 (February 2026). Layers are eager torch's unless a plan says `compile: true`,
as configurations may (`training.compile`, `compile.enable`).
"""

from __future__ import annotations

from dataclasses import replace

from moemodel.model.frameworks.base import PrecisionRecipe
from moemodel.model.frameworks.torch_native import TORCH

TORCHTITAN = replace(
    TORCH,
    name="torchtitan",
    precisions={
        # gradients become float32 for the exchange and stay so: sharded, or summed whole where micro-batches of a
        # pipeline exchange none (torch.distributed.fsdp, FSDPParam.to_accumulated_grad_if_needed)
        "bf16-mixed": replace(TORCH.precisions["bf16-mixed"], gradient_B=4, transient_B=0),
        # torchao's dynamic scaling by tensors: products of every linear layer but the output's (torchtitan/float8.py).
        # The largest element is looked for (2), an element read (2) and written in both orders (2), whose strides make
        # the whole take as long as 7.4: torch.compile's kernels at 2.92 and 2.26 TB/s on an H100 that copies at 3.02
        # (measured for this project, 2026-11-28; `bench/kernel_generations.py`)
        "fp8": PrecisionRecipe(
            weight_B=2,
            gradient_B=4,
            state_B=12,
            matmul_dtype="fp8",
            cast_B=7.4,
            reordered_B=2.0,
            splits_accumulation=True,  # use_fast_accum is off for gradients (torchao/float8/config.py)
        ),
    },
    # F.scaled_dot_product_attention, whose first choice was the flash kernel of its second generation (models/llama/
    # model.py; models/attention.py of 2025 names cuDNN first on Blackwell alone)
    attention="flash2",
    # torch's loss_parallel: log-probabilities, what the target adds, their exponentials, and the sum of both, float32
    # (torch.distributed.tensor.parallel.loss, _nll_loss_and_log_softmax_backward)
    part_logit_B=16.0,
    float32_shards=True,  # FSDP2 casts parameters that the model holds in float32 (parallelize_llama.py)
    pools_by_stream=True,  # its reports tell reserved memory (metrics.py)
    compiles_loss=False,  # train.py of December 2024 leaves it out; `cross_entropy: compiled` puts it in
    # torch's foreach AdamW, kernel by kernel over float32 parameters, 80 bytes in place of 28 (optimizer.py: `fused` is
    # off by default)
    optimizer_B=52.0,
    # models/norms.py, RMSNorm, kernel by kernel: to float32 (6), squared (8), mean (4), scaled (8), to 16 bits (6),
    # times weights (4); backward the weights' product and gradient (4 + 10), to float32 (6), scaled (8), times the
    # input and summed (16), the mean's spread and times twice the input (12), both summed (12), to 16 bits (6)
    plain_norm_B=(36.0, 74.0),
    repeats_keys=True,  # models/llama/model.py, repeat_kv
    # Float8Linear.forward casts its weight (torchao/float8/float8_linear.py), where no 8 bits are gathered:
    # `enable_fsdp_float8_all_gather` is off by default (config_manager.py)
    casts_weights="pass",
    casts_shards=True,  # torchao's float8_tensor_parallel.py; docs/float8.md: by default for TP
    gradient_wire_B=4.0,  # mixed_precision_reduce float32 (config_manager.py)
    memory_log_error=None,
)

TORCHTITAN_0_2 = replace(
    TORCHTITAN,
    name="torchtitan-0.2",
    attention=None,  # cuDNN's first, then FlashAttention-2 (models/attention.py, ScaledDotProductAttentionWrapper)
    repeats_keys=False,  # enable_gqa (models/llama3/model/model.py)
    plain_norm_B=None,  # torch.nn.RMSNorm
    compiles_loss=True,  # `compile.components` names the loss beside the model (config/job_config.py)
    # torch's fused AdamW (config/job_config.py, Optimizer.implementation); gradients are read for their norm (4), read
    # and written to be clipped (8) (distributed/utils.py, clip_grad_norm_ with foreach)
    fused_optimizer=True,
    optimizer_B=12.0,
)
