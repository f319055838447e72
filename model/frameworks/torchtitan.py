"""torchtitan, on dense Llama models and DeepSeek-V3's.

`torchtitan` is read from torchtitan 9dec370 (26 December 2024), which its benchmarks of that month name, and 820504e
(June 2025); `torchtitan-0.2` from v0.2.2 (February 2026). Layers are eager torch's unless a plan says `compile: true`,
as configurations may (`training.compile`, `compile.enable`).
"""

from __future__ import annotations

from dataclasses import replace

from moemodel.model.frameworks.base import PlainKernels, PrecisionRecipe
from moemodel.model.frameworks.moe_form import WIDEN_B, HostWaits, MoeForm, StreamedKernels, copied_B
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
    reserves_logits=True,  # its reports tell reserved memory (metrics.py)
    pools_by_stream=True,
    compiles_loss=False,  # train.py of December 2024 leaves it out; `cross_entropy: compiled` puts it in
    # torch's foreach AdamW, kernel by kernel over float32 parameters, 80 bytes in place of 28 (optimizer.py: `fused` is
    # off by default)
    optimizer_B=52.0,
    # models/norms.py, RMSNorm, kernel by kernel: to float32 (6), squared (8), mean (4), scaled (8), to 16 bits (6),
    # times weights (4); backward the weights' product and gradient (4 + 10), to float32 (6), scaled (8), times the
    # input and summed (16), the mean's spread and times twice the input (12), both summed (12), to 16 bits (6)
    # both casts' outputs stay
    plain_kernels={"rms_norm": PlainKernels(forward_B=36.0, backward_B=74.0, kept_B=4.0 + 2.0)},
    repeats_keys=True,  # models/llama/model.py, repeat_kv
    # Float8Linear.forward casts its weight (torchao/float8/float8_linear.py), where no 8 bits are gathered:
    # `enable_fsdp_float8_all_gather` is off by default (config_manager.py)
    casts_weights="pass",
    casts_shards=True,  # torchao's float8_tensor_parallel.py; docs/float8.md: by default for TP
    # cast on its way (torch.distributed.fsdp, _fsdp_collectives.py, chunk_cat: 9.0 ms of 3.1 G elements on an H200, as
    # any cast to float32)
    scattered_B=WIDEN_B,
    gradient_wire_B=4.0,  # mixed_precision_reduce float32 (config_manager.py)
    memory_log_error=None,
)

# Kernels of experts, traced on an H200 in Qwen3's layers (torch 2.11, 2026-11-29): 8,192 tokens, 8 experts each of 128,
# 2,048 wide. As many bytes as a copy there moves in their time, of an element of the chosen rows; `energy` has those
# that they move.
_B_PER_S = copied_B(1.0, 8192 * 8 * 2048)
# Rows of an expert are padded to a multiple of 8 in as many rows as that may ever take, 8 for each expert of a GPU
# (models/moe/utils.py, TOKEN_GROUP_ALIGN_SIZE_M). All that pad are copies of one row, whose gradient one warp adds up
# row after row, 0.79 us each: 1,300 us for 65,536 rows and 1,024 that pad; in float32 1,123, and 983 of 98,304 and 512.
_PADDING_S = 8 * 0.79e-6

_EXPERT_KERNELS = (
    # models/moe/moe.py: rows in their experts' order (89 us), zeros (80), rows back in the tokens' order (611), to
    # float32 (384), weighted and summed by a batched product (240); backward its gradients (912 and 149), to 16 bits
    # (181), in their experts' order (143), sorted and added into tokens (376)
    StreamedKernels(
        over="chosen_rows",
        forward=5,
        backward=6,
        forward_B=1404e-6 * _B_PER_S,
        backward_B=1761e-6 * _B_PER_S,
        kept_B=4,
        energy=(18.75 + 21.25) / ((1404e-6 + 1761e-6) * _B_PER_S),
    ),
    # models/moe/utils.py: a row of zeros behind (135), padded (142), back (625); backward a gradient without the last
    # row (208), padded (142), zeros and sums (80 and 491), what both products give added (184)
    StreamedKernels(
        over="expert_rows",
        forward=3,
        backward=6,
        forward_B=902e-6 * _B_PER_S,
        backward_B=1105e-6 * _B_PER_S,
        energy=(12 + 22) / ((902e-6 + 1105e-6) * _B_PER_S),
        backward_expert_s=_PADDING_S,
    ),
)
# Rows in float32, under autocast: twice the bytes where they are only moved, three casts to 16 bits (188) and back
# (395) about products, forward and backward. The weighted sum is in 16 bits then, whose kernel for rows that are no
# multiple of eight is slow (2,648 us of 98,304 rows; of six experts a token).
_FLOAT32_ROWS = (
    StreamedKernels(
        over="expert_rows",
        forward=3,
        backward=4,
        forward_B=1086e-6 * _B_PER_S,
        backward_B=1342e-6 * _B_PER_S,
        energy=(30 + 40) / ((1086e-6 + 1342e-6) * _B_PER_S),
    ),
    StreamedKernels(
        over="chosen_rows",
        backward=1,
        backward_B=copied_B(2648e-6 - 291e-6, 98_304 * 2048),
        energy=0.1,  # moves 5 bytes of an element, in the time of 49
        most=7,
    ),
)

TORCHTITAN_0_2 = replace(
    TORCHTITAN,
    name="torchtitan-0.2",
    attention=None,  # cuDNN's first, then FlashAttention-2 (models/attention.py, ScaledDotProductAttentionWrapper)
    repeats_keys=False,  # enable_gqa (models/llama3/model/model.py)
    plain_kernels={},  # torch.nn.RMSNorm
    compiles_loss=True,  # `compile.components` names the loss beside the model (config/job_config.py)
    fused_optimizer=True,  # torch's fused AdamW (config/job_config.py, Optimizer.implementation)
    optimizer_B=0.0,
    shards_ends_apart=True,  # apply_fsdp (models/llama3/infra/parallelize.py): tok_embeddings; norm and output
    wraps_lone=True,  # experts of which each rank has its own (models/llama4/infra/parallelize.py, apply_fsdp)
    moe=MoeForm(
        padding="never",
        splits_gate=True,
        dispatch="kernels",
        kernels=_EXPERT_KERNELS,
        float32_rows=_FLOAT32_ROWS,
        host_waits=HostWaits(spread=1),  # how many rows others send (distributed/expert_parallel.py, _token_dispatch)
    ),
    keeps_expert_outputs=False,  # as rows of choices, in float32 (`_EXPERT_KERNELS`)
    recompute_stops_early=False,  # `activation_checkpoint.early_stop` (config/job_config.py) is off
)
