"""FastMoE as this project runs it: its MoE layer in the torch backend's model, with torch's optimizer.

Read from FastMoE 1.1.0 (fmoe/layers.py, fmoe/functions.py, cuda/parallel_linear.cuh). Left out: the one block of
threads that counts the rows of experts, and empty experts, whose products are skipped.
"""

from __future__ import annotations

from dataclasses import replace

from moemodel.model.frameworks.base import HostFactors
from moemodel.model.frameworks.moe_form import (
    INDEX_ADD_B,
    INDEX_ADD_ENERGY,
    ByChoices,
    HostWaits,
    Launches,
    MoeForm,
    StreamedKernels,
)
from moemodel.model.frameworks.torch_native import TORCH

_KERNELS = (
    # counts, running sums, places and tokens of places, all of choices (prepare_forward): int64 read and written
    StreamedKernels(over="choices", forward=10, backward=2, forward_B=48, backward_B=16, kept_B=8),
    # a row for every choice by a gather (4); behind the experts side by side (4), zeros (2), written into places (4),
    # weighted and summed by a batched product (2); backward: rows weighted (4) and the weights' gradient (4), gathered
    # (4), zeros (2 of a token, left out); rows added into tokens by atomic sums
    StreamedKernels(over="chosen_rows", forward=5, backward=3, forward_B=16, backward_B=12, kept_B=2),
    StreamedKernels(over="chosen_rows", backward=1, backward_B=INDEX_ADD_B, energy=INDEX_ADD_ENERGY),
    # an expert's slice of the rows has a gradient as large as all of them: zeros (2), added up (6) (FMoE.expert_fn)
    StreamedKernels(over="every_expert_rows", backward=2, backward_B=8),
)

FASTMOE = replace(
    TORCH,
    name="fastmoe",
    moe=MoeForm(
        padding="never",  # gates mark choices beyond a capacity with -1, which are sent nowhere
        products="each",  # FMoETransformerMLP: a module an expert, one after another
        splits_gate=True,
        dispatch="kernels",
        sorts_again=False,  # expert by expert, rows arrive in order (global_exchange.h)
        kernels=_KERNELS,
        launches=Launches(
            forward=ByChoices(one=25, two=25, more=25),
            backward=ByChoices(one=12, two=12, more=12),
            each_forward=1,  # the number of its rows, a tensor on the host
            each_backward=3,  # zeros, the slice and a sum
        ),
        # lec_cum[-1].item(), int(fwd_expert_count.sum()), three .cpu() of counts; streams that are waited for around
        # each product (fmoe_cuda_linear_forward_impl)
        host_waits=HostWaits(forward=5, cut=5, each_product=1),
        messages_each=True,  # one group of sends and receipts for each expert of a rank
        separate_experts=True,
    ),
    host_factors=HostFactors(forward=0.96, backward=1.07, step=0.75),  # bench/host_factors.py, one H200, 2026
    keeps_expert_outputs=False,  # as rows of choices (`_KERNELS`)
    memory_log_error=None,
    torch_launch=False,
    overlapped=frozenset(),
    data_parallel="flattened",  # DistributedGroupedDataParallel.allreduce_gradients
)
