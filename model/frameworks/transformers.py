"""Hugging Face's Trainer, on models of transformers: read from transformers 5.17 and accelerate 1.15.

`bf16` is a model loaded in 16 bits, as `from_pretrained` does unless told otherwise, whose optimizer keeps its states in
16 bits too; `bf16-mixed` one in float32. Both with `bf16=True` and the Trainer's other defaults: autocast, torch's fused
AdamW, gradients clipped, PyTorch's scaled dot product attention.
"""

from __future__ import annotations

from dataclasses import replace

from moemodel.model.frameworks.base import PlainKernels
from moemodel.model.frameworks.torch_native import TORCH

# models/llama/modeling_llama.py, LlamaRMSNorm, and those of other models alike: to float32 (6), squared (8), mean (4),
# scaled (8), to 16 bits (6), times weights (4); backward the weights' product and gradient (4 + 10), to float32 (6),
# scaled (8), times the input and summed (16), the mean's spread and times twice the input (12), both summed (12), to 16
# bits (6). Of float32 elements nothing is cast: squared (8), mean (4), scaled (8), times weights (8); backward the
# weights' product and gradient (8 + 16), scaled (8), times the input and summed (16), the mean's spread and times twice
# the input (16), both summed (12). What is scaled and what the weights multiply stays.
_NORM = PlainKernels(
    forward_B=36.0,
    backward_B=74.0,
    kept_B=4.0 + 2.0,
    autocast=PlainKernels(forward_B=28.0, backward_B=76.0, kept_B=4.0 + 4.0),
)
# apply_rotary_pos_emb: times cosines (4), a half negated (2), halves put together (4), times sines (4), both summed (6);
# backward times cosines and sines (4 + 4), halves taken apart (4 + 4) and one negated (2), summed twice (6 + 6). Under
# autocast cosines and sines are float32, as the residual stream is, and so are queries and keys until attention casts
# them: 6, 2, 4, 6, 12 and 6; backward to float32 (6), times cosines and sines (8 + 8), each to 16 bits (6 + 6), the rest
# as before
_ROTARY = PlainKernels(
    forward_B=20.0,
    backward_B=30.0,
    kept_B=0.0,
    autocast=PlainKernels(forward_B=36.0, backward_B=56.0, kept_B=0.0),
)

TRANSFORMERS = replace(
    TORCH,
    name="transformers",
    precisions={
        "bf16": TORCH.precisions["bf16"],
        # float32 parameters, gradients and moments, of which autocast makes 16-bit copies
        "bf16-mixed": replace(TORCH.precisions["bf16-mixed"], gradient_B=4, transient_B=0),
    },
    plain_kernels={"rms_norm": _NORM, "rotary": _ROTARY},
    float32_shards=True,
    gradient_wire_B=4.0,
    hands_out_logits=True,  # accelerate/utils/operations.py, convert_outputs_to_fp32, on all that a model returns
    fused_optimizer=True,  # training_args.py: adamw_torch_fused
    # the loss of every micro-batch is looked at for NaN (trainer.py, logging_nan_inf_filter)
    synchronizes_every_pass=True,
    memory_log_error=None,
)
