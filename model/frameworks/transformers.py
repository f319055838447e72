"""Hugging Face's Trainer, on models of transformers: read from transformers 5.17 and accelerate 1.15.

`bf16` is a model loaded in 16 bits, as `from_pretrained` does unless told otherwise, whose optimizer keeps its states
in 16 bits too; `bf16-mixed` one in float32. Both with `bf16=True` and the Trainer's other defaults: autocast, torch's
fused AdamW, gradients clipped, PyTorch's scaled dot product attention.
"""

from __future__ import annotations

from dataclasses import replace

from moemodel.model.frameworks.base import PlainKernels
from moemodel.model.frameworks.moe_form import MoeForm, StreamedKernels, copied_B
from moemodel.model.frameworks.torch_native import TORCH

# Kernels traced on an H200 (torch 2.11, 2026-11-29) in layers of Llama 3 8B, two sequences of 4,096 tokens: as many
# bytes as a copy there moves in their time, of an element; `energy` has those that they move.
_B_PER_S = copied_B(1.0, 8192 * 4096)
_ROTATED_B_PER_S = copied_B(1.0, 8192 * (32 + 8) * 128)

# models/llama/modeling_llama.py, LlamaRMSNorm, and those of other models alike: to float32, squared, mean, scaled, to
# 16 bits, times weights; backward the weights' product and gradient, to float32, scaled, times the input and summed,
# the mean's spread, divided and copied, times twice the input, both summed, to 16 bits. Of float32 elements nothing is
# cast. What is scaled and what the weights multiply stays, this for their gradient alone, a product and a sum.
_NORM = PlainKernels(
    forward_B=453e-6 * _B_PER_S,
    backward_B=973e-6 * _B_PER_S,
    energy=(36 + 92) / ((453e-6 + 973e-6) * _B_PER_S),
    kept_B=4.0 + 2.0,
    weights_kept_B=2.0,
    weights_B=8.0,
    kernels=(8, 16),
    autocast=PlainKernels(
        forward_B=312e-6 * _B_PER_S,
        backward_B=889e-6 * _B_PER_S,
        energy=(28 + 92) / ((312e-6 + 889e-6) * _B_PER_S),
        kept_B=4.0 + 4.0,
        weights_kept_B=4.0,
        weights_B=16.0,
    ),
)
# The same of queries and keys (models/qwen3_moe/modeling_qwen3_moe.py, Qwen3MoeAttention), whose rows lie apart, in
# layers of Qwen3-30B-A3B; of 16-bit rows, whatever the weights
_HEAD_NORM = PlainKernels(
    forward_B=473e-6 * _B_PER_S,
    backward_B=1241e-6 * _B_PER_S,
    energy=(36 + 92) / ((473e-6 + 1241e-6) * _B_PER_S),
    kept_B=6.0,
    weights_kept_B=2.0,
    weights_B=8.0,
    kernels=(8, 16),
)
# apply_rotary_pos_emb: times cosines, a half negated, halves put together, times sines, both summed; backward times
# cosines and sines, halves taken apart into zeros and one negated, summed twice, and put in the products' order. Under
# autocast cosines and sines are float32, as the residual stream is, and so are queries and keys until attention casts
# them.
_ROTARY = PlainKernels(
    forward_B=666e-6 * _ROTATED_B_PER_S,
    backward_B=896e-6 * _ROTATED_B_PER_S,
    energy=(20 + 34) / ((666e-6 + 896e-6) * _ROTATED_B_PER_S),
    kernels=(5, 10),
    autocast=PlainKernels(
        forward_B=918e-6 * _ROTATED_B_PER_S,
        backward_B=1286e-6 * _ROTATED_B_PER_S,
        energy=(36 + 60) / ((918e-6 + 1286e-6) * _ROTATED_B_PER_S),
    ),
)

# integrations/moe.py, grouped_mm_experts_forward, traced in Qwen3's layers: 8,192 tokens, 8 experts each of 128, 2,048
# wide, experts 768. Rows that other ranks' experts would take are filled with zeros in any case.
_ROWS_B_PER_S = copied_B(1.0, 8192 * 8 * 2048)
_INNER_B_PER_S = copied_B(1.0, 8192 * 8 * 768)
_EXPERT_KERNELS = (
    # rows in their experts' order (122 us), filled (364); outputs copied and filled (124 and 364), weighted (331), in
    # the tokens' order (141), summed (113). Backward the sum's gradients to 16 bits (308), in their experts' order (80
    # and 332), weighted (331), the weights' gradients (183 and 77), copied and filled twice (2 x 488), added into
    # tokens (358)
    StreamedKernels(
        over="chosen_rows",
        forward=7,
        backward=12,
        forward_B=1559e-6 * _ROWS_B_PER_S,
        backward_B=2645e-6 * _ROWS_B_PER_S,
        kept_B=2,
        energy=(26 + 44) / ((1559e-6 + 2645e-6) * _ROWS_B_PER_S),
    ),
    # gates and up-projections copied and filled (94 and 273), and so are their gradients
    StreamedKernels(
        over="inner_rows",
        forward=2,
        backward=2,
        forward_B=368e-6 * _INNER_B_PER_S,
        backward_B=368e-6 * _INNER_B_PER_S,
        energy=2 * 16 / (2 * 368e-6 * _INNER_B_PER_S),
    ),
)

TRANSFORMERS = replace(
    TORCH,
    name="transformers",
    precisions={
        "bf16": TORCH.precisions["bf16"],
        # float32 parameters, gradients and moments, of which autocast makes 16-bit copies
        "bf16-mixed": replace(TORCH.precisions["bf16-mixed"], gradient_B=4, transient_B=0),
    },
    plain_kernels={"rms_norm": _NORM, "head_norm": _HEAD_NORM, "rotary": _ROTARY},
    float32_shards=True,
    data_parallel_only=True,  # tensor parallelism of its models and what Accelerate adds are left out
    # masking_utils.py makes none only where it may read tensors, and is_causal is then left (integrations/
    # sdpa_attention.py), which repeats keys and values in that case, too
    compiles_with_mask=True,
    reserves_logits=True,  # logits, float32 ones of the loss, their log-probabilities and the gradients of both
    returns_logits=True,  # accelerate/utils/operations.py, convert_outputs_to_fp32, on all that a model returns
    fused_optimizer=True,  # training_args.py: adamw_torch_fused
    # The loss of every micro-batch is looked at for NaN (trainer.py, logging_nan_inf_filter), and whether its sequences
    # are packed (masking_utils.py, find_packed_sequence_indices), so that the device stands idle before the first layer
    # of each micro-batch, 3 ms on an H200 (traced, 2026-11-29), and while the host prepares a step: by its time in
    # models so small that nothing else counts (bench/plans/transformers-host, an H200's host the same day, where a
    # kernel took 26 us) 1.1 ms, 41 us a tensor that is clipped and stepped, and 90 us beside of each adapter, over
    # whose modules zero_grad and floating_point_ops walk
    synchronizes_every_pass=True,
    drained_calls=(34.0, 16.0),
    tensor_calls=(0.0, 1.6),
    adapter_calls=3.4,
    # hooks on every tensor that is saved, and states of generators (torch/utils/checkpoint.py): 1.1 and 1.5 ms a layer
    repeated_calls=(42.0, 61.0),
    casts_adapters=True,  # PEFT 0.21, unless told otherwise (get_peft_model, autocast_adapter_dtype)
    float32_experts=True,  # integrations/moe.py, _grouped_mm
    moe=MoeForm(padding="never", dispatch="kernels", kernels=_EXPERT_KERNELS),
    keeps_expert_outputs=False,  # as rows of choices (`_EXPERT_KERNELS`)
    memory_log_error=None,
)
