"""What it takes that torch checks every collective before it begins, which TORCH_DISTRIBUTED_DEBUG=DETAIL asks for.

Every process group is then wrapped in one that makes the hosts of all its ranks meet, and compare what they are about
to run, over TCP (torch/csrc/distributed/c10d/ProcessGroupWrapper.cpp, `runCollectiveChecks`: a monitored barrier, in
which the first rank hears and answers the others one after another, and two all-gathers, which go around a ring). So a
collective of n ranks takes the host

    c = (n - 1) s       s = 0.32 ms of each rank beyond the first, on one node or on many

s is from 469 runs of nanotron on AWS p5 (Hugging Face, Ultra-Scale Playbook, 2024): before each, an all-gather, a
reduce-scatter and an all-reduce of 1 GiB over all ranks took 20, 40, 81 and 166 ms on 64 to 512 GPUs, all three alike,
where those that are not checked took 6 to 24 ms. Messages between two ranks are not checked.

Left out: other networks' TCP.
"""

from __future__ import annotations

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.step.communication_groups import Groups
from moemodel.model.step.data_parallel import ExchangeCounts, StepExchange
from moemodel.model.step.launch_overhead import CollectiveLaunches

CHECK_s = 0.32e-3


def check_s(ranks: FloatArray) -> FloatArray:
    """Of one collective over so many ranks."""
    return np.asarray(CHECK_s * np.maximum(ranks - 1.0, 0.0))


def checks_s(calls: CollectiveLaunches, groups: Groups) -> FloatArray:
    """Of a micro-batch's collectives, [P, 1]."""
    of_tp = (calls.tensor_parallel + calls.sequence_parallel) * check_s(groups["tp"][0])
    return np.asarray(of_tp + calls.expert_parallel * check_s(groups["ep"][0]))[:, None]


def step_checks_s(exchange: StepExchange, counts: ExchangeCounts, groups: Groups) -> FloatArray:
    """Of what data-parallel ranks exchange in a step, and of the norm of all gradients, [P, 1]."""
    each = counts.gathers_forward + counts.gathers_backward + counts.reductions
    shared = (exchange.units * each + exchange.buckets) * check_s(groups["data_parallel"][0])
    return np.asarray(shared + check_s(groups["world"][0]))[:, None]
