"""FSDP as MosaicML's llm-foundry ran its benchmarks of 2023 and January 2024: MPT under Composer.

Read from llm-foundry (commits b2a43a147 and 5e85bd62d: scripts/train/benchmarking, llmfoundry/models/mpt). What torch
does there is as in this project's own code: units that are gathered and reduced behind computation, eager kernels.
`fsdp` is of torch 2.1, which it names beside 2.0 by October 2023 (README.md), and whose checkpoints, which are not
reentrant there (submit_benchmarks.py, activation_checkpointing_reentrant), stop early.
"""

from __future__ import annotations

from dataclasses import replace

from moemodel.model.frameworks.base import PrecisionRecipe
from moemodel.model.frameworks.moe_form import PLAIN_FORM, WIDEN_B
from moemodel.model.frameworks.torch_native import TORCH

FSDP = replace(
    TORCH,
    name="fsdp",
    precisions={
        "bf16-mixed": TORCH.precisions["bf16-mixed"],
        # Transformer Engine's layers (submit_benchmarks.py, fc_type te), scaled by what was largest in steps before
        # (Composer's DelayedScaling): an element read (2) and written in both orders (2)
        "fp8": PrecisionRecipe(
            weight_B=2,
            gradient_B=2,
            state_B=12,
            transient_B=4,
            matmul_dtype="fp8",
            splits_accumulation=True,  # transformer_engine/pytorch/module/base.py, _2X_ACC_DGRAD and _2X_ACC_WGRAD
        ),
    },
    fused_qkv=True,  # Wqkv (llmfoundry/models/layers/attention.py)
    splits_heads=True,  # its output is cut by `chunk`, and the three gradients are put together again
    # Composer's DecoupledAdamW steps tensor by tensor, kernel by kernel over float32 parameters, 80 bytes in place of
    # 28 (composer/optim/decoupled_weight_decay.py, adamw; weights don't decay in the benchmarks)
    optimizer_B=52.0,
    # submit_benchmarks.py, --attn_impl: by default `triton`, a copy of the first FlashAttention in Triton
    # (llmfoundry/models/layers/flash_attn_triton.py); tables of both commits name no other
    attention="flash1",
    # flash-attention's csrc/xentropy: logits read forward, and read and written in place backward
    fused_loss_B=(2.0, 4.0),
    # LanguageCrossEntropy and LanguagePerplexity (llmfoundry/models/mpt/modeling_mpt.py, train_metrics), each
    # torch.nn.CrossEntropyLoss under autocast, of every micro-batch's logits (Composer, trainer.py,
    # _eval_train_metrics; metrics/nlp.py)
    logged_losses=2,
    logit_B=4.0,  # 16-bit logits and their gradient in their place, and the 16-bit copy that is shifted
    eager_sharding=False,
    # nobody tells its layers which micro-batch is a step's first (is_first_microbatch of te.Linear)
    casts_weights="pass",
    # cast, and divided before they are summed (torch.distributed.fsdp, _runtime_utils.py, _reduce_grad)
    scattered_B=WIDEN_B + 8,
    gradient_wire_B=4.0,  # Composer's mixed_precision DEFAULT reduces in float32
    moe=PLAIN_FORM,
    compiles=False,
    memory_log_error=None,
)

# Before 2.1 torch's checkpoints ran whole layers again; as llm-foundry ran its benchmarks of 2022
FSDP_1_13 = replace(FSDP, name="fsdp-1.13", recompute_stops_early=False)
