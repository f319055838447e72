"""Keys of a plan that null leaves to the framework, by what a search makes of them. What does not train as it is told,
as programs that choose for themselves, refuses all of them.
"""

from __future__ import annotations

# Of which one search takes one for all of its plans
ONE_FOR_ALL = (
    "fp8_recipe",
    "parameter_dtype",
    "activation_input_dtype",
    "tp_comm_overlap",
    "loss_chunks",
    "cp_comm",
    "multi_token",
    "dropout",
    "optimizer",
    "lora",
    "offload",
    "stage_layers",
)
# Which a search leaves out
NONE_IN_A_SEARCH = (
    "attention",
    "compile",
    "cuda_graphs",
    "collective_checks",
    "transpose_cache",
    "bucket_parameters",
    "gradient_checks",
    "weight_checks",
    "cross_entropy",
    "deterministic",
    "gradient_dtype",
    "micro_batches_per_schedule",
    "micro_batches_per_round",
    "decoder_sequence_length",
)
