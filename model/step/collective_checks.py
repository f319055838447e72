"""What it takes that torch checks every collective before it begins, which TORCH_DISTRIBUTED_DEBUG=DETAIL asks for.

Every process group is then wrapped in one that makes the hosts of all its ranks meet, and compare what they are about
to run, over TCP (torch/csrc/distributed/c10d/ProcessGroupWrapper.cpp, `runCollectiveChecks`: a monitored barrier, in
which the first rank hears and answers the others one after another, and two all-gathers, which go around a ring; these
are handed to another thread and waited for, however few ranks there are). So a collective of n ranks, g of them in a
node, takes the host

    c = s + (g - 1) a + (n - g) b       s = 0.16 ms, a = 0.21 ms, b = 0.31 ms

b is from nanotron on AWS p5 (Hugging Face, Ultra-Scale Playbook, 2024; branch nouamane/bench2, trainer.py,
`measure_bandwidth`): before 469 runs an all-gather, a reduce-scatter and an all-reduce of 1 GiB over all ranks took 20,
40, 81 and 166 ms on 64 to 512 GPUs, all three alike and linear in the ranks, where others took 6 to 24 ms. s and a are
fitted to how long steps of those runs took that the host bound, of pipelines of both models: a collective of 2, 4 and 8
GPUs of a node takes 0.38, 0.84 and 1.66 ms, whatever the model, the micro-batch and the stages, 16 of two nodes 4.2 ms.
Messages between two ranks are not checked.

Where they take longer than the device, hosts are behind it (`hosts_bind`); else they run ahead of it as they do
without. Left out: other networks' TCP; that a host may run ahead of others.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.layers.base import MicroBatch
from moemodel.model.layers.layer import LayerBlocks
from moemodel.model.network.collectives import Collective
from moemodel.model.operators.work import Kind, Pass, work
from moemodel.model.records.calibration import Calibration
from moemodel.model.step.communication_groups import Group, Groups
from moemodel.model.step.data_parallel import ExchangeCounts, StepExchange
from moemodel.model.step.launch_overhead import CollectiveLaunches

IN_A_NODE_s, BETWEEN_NODES_s = 0.21e-3, 0.31e-3
ANY_s = 0.16e-3  # however many ranks there are


# Of a forward pass's time without collectives, that products take at the data sheet's rate (assumed)
_PRODUCTS = 0.5


def check_s(group: Group) -> FloatArray:
    """Of one collective in each group, [P]."""
    ranks, route = group
    return _check_s(ranks, np.minimum(route.local_G, ranks))


def _check_s(ranks: FloatArray | IntArray, local: FloatArray) -> FloatArray:
    always_s = ANY_s * (ranks > 1)
    return np.asarray(always_s + IN_A_NODE_s * np.maximum(local - 1.0, 0.0) + BETWEEN_NODES_s * (ranks - local))


def hosts_bind(layers: Iterable[LayerBlocks], batch: MicroBatch, calibration: Calibration) -> BoolArray:
    """Whether a forward pass of these layers takes the hosts, which check its collectives, longer than the device. [P]

    The device's time is that of products and of the links in a node, which those between nodes are about as fast as.
    """
    gpu, network = read_gpu(calibration.gpu), calibration.network.parameters
    link_Bps = network["bandwidth"].value * network[f"efficiency_{Collective.ALL_GATHER}"].value
    peak = gpu.peak_16_bit
    each_s = _check_s(batch.tp, np.minimum(batch.tp, gpu.gpus_per_node))
    host_s, device_s = np.zeros((2, batch.plans))
    for layer in layers:
        for comm in layer.collectives(batch):
            if comm.axis == "tp":
                host_s = host_s + comm.forward_launches * each_s
                device_s = device_s + comm.forward * comm.size_B * (batch.tp - 1) / batch.tp / link_Bps
        for op in layer.operators(batch):
            if op.kind is Kind.GEMM and peak is not None:
                flops = work(op.kind, Pass.FORWARD, op.shape).flops * (1.0 if op.mask is None else op.mask)
                device_s = device_s + flops / (_PRODUCTS * peak.flops_per_s)
    return np.asarray(host_s > device_s)


def checks_s(calls: CollectiveLaunches, groups: Groups) -> FloatArray:
    """Of a micro-batch's collectives, [P, 1]."""
    of_tp = (calls.tensor_parallel + calls.sequence_parallel) * check_s(groups["tp"])
    return np.asarray(of_tp + calls.expert_parallel * check_s(groups["ep"]))[:, None]


def step_checks_s(exchange: StepExchange, counts: ExchangeCounts, groups: Groups) -> FloatArray:
    """Of what data-parallel ranks exchange in a step, and of the norm of all gradients, [P, 1]."""
    each = counts.gathers_forward + counts.gathers_backward + counts.reductions
    shared = (exchange.units * each + exchange.buckets) * check_s(groups["data_parallel"])
    return np.asarray(shared + check_s(groups["world"]))[:, None]
