"""DeepSpeed as this project runs it: its MoE layer and its ZeRO, in the torch backend's model.

Read from deepspeed 0.19.8 (moe/sharded_moe.py, moe/experts.py), whose layer gathers rows into padded buffers; and from
0.18.4, which as all up to 0.19.3 dispatches by products with masks as GShard does. Counts of kernels: of aten operators
that are no views, in both passes of the layer on a processor (`tests/model/layers/test_moe_forms.py` counts them where
DeepSpeed is there).
"""

from __future__ import annotations

from dataclasses import replace

from moemodel.model.frameworks.base import HostFactors, Precision, PrecisionRecipe
from moemodel.model.frameworks.moe_form import (
    INDEX_ADD_B,
    INDEX_ADD_ENERGY,
    ByChoices,
    HostWaits,
    Launches,
    MoeForm,
    StreamedKernels,
    copied_B,
)
from moemodel.model.frameworks.torch_native import TORCH

# Everything behind the router is float32 or int64 (TopKGate.forward); x in float32 is kept for the weight's gradient
_FLOAT32_INPUT = StreamedKernels(over="tokens", forward=1, backward=1, forward_B=6, backward_B=6, kept_B=4)
_FLOAT32_WEIGHT = StreamedKernels(over="router_weights", forward=1, backward=1, forward_B=6, backward_B=6)
# Of topkgating beside softmax and choice: the mask (1 and 1 B an element), counts (1), means of probabilities (4) and
# of the mask (5 and 4), places by a running sum (9) and less one (16), masked probabilities (9), their sum (4), divided
# (8); backward the gradients of the last three, and the loss's
_GATE = StreamedKernels(over="scores", forward=12, backward=9, forward_B=62, backward_B=60, kept_B=9)
# Places by a running sum down the tokens, which one block of threads adds up, a row after another: 0.759 ms for 4,096
# on an H200 (traced, torch 2.11; 2026), as long as a copy of so many bytes takes, the other
# multiprocessors idle
_SCAN = StreamedKernels(over="places", forward=1, forward_B=copied_B(0.759e-3, 4_096), energy=0.0)
# A dozen of routes, int32 and int64
_ROUTES = StreamedKernels(over="choices", forward=16, backward=3, forward_B=150, backward_B=24, kept_B=12)

_GATHERS = (
    # encode: x behind a row of zeros, copied; decode: chosen rows gathered (2 read, 2 written), times float32 weights
    # (2 read, 4 written), summed over a token's (4 read), the sum to 16 bits (6 of tokens)
    StreamedKernels(over="tokens", forward=2, backward=3, forward_B=4 + 6, backward_B=6 + 4 + 4),
    # backward: the sum's gradient spread (4), times weights and times rows (4 + 4, 6 + 4), to 16 bits (6); added into
    # places by atomic sums
    StreamedKernels(over="chosen_rows", forward=3, backward=4, forward_B=14, backward_B=28, kept_B=2),
    StreamedKernels(over="chosen_rows", backward=1, backward_B=INDEX_ADD_B, energy=INDEX_ADD_ENERGY),
    # the buffer is filled by a gather (2 read, 2 written); outputs of experts, put side by side (4) and behind a row of
    # zeros (4); backward: zeros (2), the inputs' gradients side by side (4); added into tokens by atomic sums
    StreamedKernels(over="expert_rows", forward=3, backward=2, forward_B=12, backward_B=6),
    StreamedKernels(over="expert_rows", backward=1, backward_B=INDEX_ADD_B, energy=INDEX_ADD_ENERGY),
)

# Of every token, for every place of every expert: float32 weights (4 written), as booleans (4 read, 1 written), both as
# 16 bits (6 and 3), which the products keep; backward 16-bit gradients to float32 (6), times the weights (4). Up to two
# experts of a token, of one place each of them; of more, places as one-hot int64 (8 written), to float32 (12), which
# are weighted (4) and kept
_MASKS = (
    StreamedKernels(over="masks", forward=4, backward=2, forward_B=4 + 5 + 6 + 3, backward_B=6 + 4, kept_B=4),
    StreamedKernels(over="masks", forward=2, forward_B=4 + 12, fewest=2, most=2),  # the second's weights, and their sum
    StreamedKernels(over="masks", forward=3, forward_B=8 + 12 + 4, kept_B=4, fewest=3),
    StreamedKernels(over="expert_rows", forward=1, backward=1, forward_B=4, backward_B=4),  # outputs side by side
)

_FORM = MoeForm(
    padding="always",  # drop_tokens=False sets the capacity to the rows of the busiest expert (topkgating)
    min_capacity=4,  # moe/layer.py, MoE
    products="each",  # moe/experts.py loops over modules
    splits_gate=True,
    dispatch="kernels",
    sorts_again=False,
    float32_router=True,
    kernels=(_FLOAT32_INPUT, _FLOAT32_WEIGHT, _GATE, _SCAN, _ROUTES, *_GATHERS),
    launches=Launches(
        forward=ByChoices(one=67, two=80, more=59),
        backward=ByChoices(one=21, two=53, more=36),
        each_spread=2,  # a chunk of several ranks' rows is copied by either product that reads it
    ),
    host_waits=HostWaits(forward=1),  # `C = int(C)` (MOELayer.forward)
    exchanges_counts=False,
    balance_loss=True,
    separate_experts=True,
)

_PRECISIONS: dict[Precision, PrecisionRecipe] = {
    # bf16_master_weights_and_grads with bf16_optimizer_states, under ZeRO 1 and 2 alone (runtime/config.py): 16-bit
    # weights and gradients, and of the partition a copy of the weights and two moments
    "bf16": PrecisionRecipe(weight_B=2, gradient_B=2, state_B=6, master_weights=False),
    # 16-bit weights and gradients; of the partition float32 weights and two moments, and float32 gradients for the step
    # (FP16_Optimizer, DeepSpeedZeroOptimizer)
    "bf16-mixed": PrecisionRecipe(weight_B=2, gradient_B=2, state_B=12, transient_B=4, group_transient_B=4),
}

DEEPSPEED = replace(
    TORCH,
    name="deepspeed",
    precisions=_PRECISIONS,
    moe=_FORM,
    synchronizes_every_pass=True,  # its throughput timer waits for the device (utils/timer.py, ThroughputTimer)
    host_factors=HostFactors(forward=1.09, backward=1.55, step=1.69),  # bench/host_factors.py, one H200, 2026
    # a test for overflow of each gradient and the host's answer, a copy of its master (fp16/fused_optimizer.py); or a
    # copy into the bucket and out of it, to float64 and its norm (zero/stage_1_and_2.py)
    step_kernels=4,
    # gradient, master and moments read, these three written and the 16-bit parameter, in one pass
    # (csrc/includes/cpu_adam.h)
    host_update_B=4 * 4.0 + 3 * 4.0 + 2.0,
    # of 16 calls for a tensor, by a trace of ZeRO 0, two come behind the test, whose result is read
    # (has_overflow_serial): its gradient to float32, and its master back
    step_read=14 / 16,
    step_read_B=2 + 2,  # greatest and least
    # the same trace: greatest and least; to float32; flattened; unscaled and clipped; masters to 16 bits
    optimizer_B=4 + 6 + 8 + 8 + 6,
    # of ZeRO, which was not traced: gradients flattened (4), to float32 (6), read as such (2), masters (4), norms of
    # float64 (get_norm_dtype: 2 + 8 + 8), in place of the above
    sharded_optimizer_B=(4 + 6 + 2 + 4) + (2 + 8 + 8) - 32,
    torch_launch=False,
    overlapped=frozenset(),  # overlap_comm is off by default, and gradients are reduced at the boundary
    data_parallel="flattened",
    reduce_bucket_B=1e9,  # reduce_bucket_size of 5e8 16-bit elements, allocated whatever the model's size
    largest_expert_group=178_956_971,  # moe/utils.py, split_params_into_different_moe_groups_for_optimizer
    keeps_expert_outputs=False,  # the chosen ones are (`_GATHERS`)
    memory_log_error=None,
)

# Before 0.19.4: what the papers up to then ran
DEEPSPEED_EINSUM = replace(
    DEEPSPEED,
    name="deepspeed-einsum",
    moe=replace(
        _FORM,
        dispatch="masks",
        kernels=(_FLOAT32_INPUT, _FLOAT32_WEIGHT, _GATE, _SCAN, *_MASKS),
        launches=Launches(forward=ByChoices(one=55, two=71, more=45), backward=ByChoices(one=21, two=57, more=34)),
    ),
)
