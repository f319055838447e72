"""FastMoE as this project runs it: its MoE layer in the torch backend's model, with torch's optimizer.

Read from FastMoE 1.1.0 (fmoe/layers.py, fmoe/functions.py, cuda/parallel_linear.cuh). Left out: the one block of
threads that counts the rows of experts, and empty experts, whose products are skipped.
"""

from __future__ import annotations

from dataclasses import replace

from moemodel.model.frameworks.moe_form import ByChoices, HostWaits, Launches, MoeForm, StreamedKernels
from moemodel.model.frameworks.torch_native import TORCH

_KERNELS = (
    # counts, running sums, places and tokens of places, all of choices (prepare_forward): int64 read and written
    StreamedKernels(over="choices", forward=10, backward=2, forward_B=48, backward_B=16, kept_B=8),
    # a row for every choice by a gather (4); behind the experts zeros (2), written into places (4), weighted and summed
    # by a batched product (2); backward: rows weighted (4) and the weights' gradient (4), gathered (4), zeros (2 of a
    # token, left out) and rows added into tokens (6)
    StreamedKernels(over="chosen_rows", forward=4, backward=4, forward_B=12, backward_B=18, kept_B=2),
)

FASTMOE = replace(
    TORCH,
    name="fastmoe",
    moe=MoeForm(
        padding="never",  # gates mark choices beyond a capacity with -1, which are sent nowhere
        products="streams",  # a cuBLAS call for each expert, on 16 streams in turn (fmoe_cuda_linear_forward_impl)
        splits_gate=True,
        dispatch="kernels",
        sorts_again=False,  # expert by expert, rows arrive in order (global_exchange.h)
        kernels=_KERNELS,
        launches=Launches(forward=ByChoices(one=24, two=24, more=24), backward=ByChoices(one=12, two=12, more=12)),
        # lec_cum[-1].item(), int(fwd_expert_count.sum()), three .cpu() of counts
        waits=HostWaits(forward=5, each_product=2),  # syncTorch before and sync behind each call
        messages_each=True,  # one group of sends and receipts for each expert of a rank
    ),
    keeps_expert_outputs=False,  # as rows of choices (`_KERNELS`)
    memory_log_error=None,
    torch_launch=False,
    overlapped=frozenset(),
    data_parallel="flattened",  # DistributedGroupedDataParallel.allreduce_gradients
)
