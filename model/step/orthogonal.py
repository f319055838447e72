"""What Muon does in a step: matrices of a stage, which GPU makes which orthogonal, and what of them is gathered.

Data-parallel ranks share whole matrices out where ZeRO shards, and each does all of them where it does not (Megatron
Core, optimizer/layer_wise_optimizer.py). Newton and Schulz's products are of 16 bits; what two of them are added to is
float32.
Left out: that shares of matrices are uneven, and that products may be of another precision than the plan's.

Axes: P plans, S shapes of matrices of the architecture.
"""

from __future__ import annotations

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.layers.matrices import Matrices
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.schedule.pipeline_layout import Stage, Stages
from moemodel.model.step.memory import MemoryModel

_READ = 1.0  # copies of an element of 16 bits that move as much as one of float32 is read: b A + c A A, a X + B X
# That the host queues for a matrix: of each step the three products (torch.addmm adds); beside them, assumed, to keep
# momentum, scale to norm 1, scale, decay, update the master and cast it
_STEP_KERNELS, _KERNELS = 3.0, 10.0
_GRADIENT_B = 4.0  # of momentum that tensor-parallel ranks gather


def orthogonalized(memory: MemoryModel, stage: Stage | Stages) -> FloatArray:
    """How many matrices of each shape a GPU of a stage makes orthogonal in a step. [P, S]"""
    muon, plans = memory.framework.muon, len(memory.plans)
    if muon is None:
        return np.zeros((plans, 0))
    shards, copies = memory.mesh.shard_group.size, memory.expert_copies / memory.plans.replicas
    columns = []
    for kind, count in zip(memory.kinds, stage.layers, strict=True):
        for one in memory.matrices(kind, whole=muon.gathers):
            among = np.where(memory.plans.zero_stage >= 1, np.maximum(copies, 1) if one.expert else shards, 1)
            columns.append(count * one.count / among)
    return np.stack(columns, axis=1)


def shapes(memory: MemoryModel) -> list[Matrices]:
    """The S shapes, in the order of `orthogonalized`."""
    muon = memory.framework.muon
    if muon is None:
        return []
    return [one for kind in memory.kinds for one in memory.matrices(kind, whole=muon.gathers)]


def newton_schulz(memory: MemoryModel, counts: FloatArray) -> list[Call]:
    """Products and sums of all steps; of so many matrices, [P, S], in the plans of a memory model."""
    muon = memory.framework.muon
    if muon is None:
        return []
    found = []
    for one, count in zip(shapes(memory), (muon.steps * counts).T, strict=True):
        short, long = np.minimum(one.rows, one.columns), np.maximum(one.rows, one.columns)
        found += [
            _call(Kind.GEMM, Shape(m=short, n=short, k=long), count),
            _call(Kind.GEMM, Shape(m=short, n=short, k=short), count),
            _call(Kind.GEMM, Shape(m=short, n=long, k=short), count),
            _call(Kind.COPY, Shape(m=_READ * (short**2 + short * long)), count),
        ]
    return found


def queued(memory: MemoryModel, counts: FloatArray) -> FloatArray:
    """Kernels that the host queues for so many matrices, [P, S], in a step. [P]"""
    muon = memory.framework.muon
    steps = 0 if muon is None else muon.steps
    return np.asarray((_STEP_KERNELS * steps + _KERNELS) * counts.sum(axis=1))


def gathered_B(memory: MemoryModel, counts: FloatArray) -> FloatArray:
    """Bytes of whole matrices that tensor-parallel ranks gather in a step. [P]"""
    muon = memory.framework.muon
    if muon is None or not muon.gathers:
        return np.zeros(len(memory.plans))
    sizes = zip(shapes(memory), counts.T, strict=True)
    cut = [count * one.rows * one.columns for one, count in sizes if not one.expert]
    return np.asarray(_GRADIENT_B * sum(cut, np.zeros(len(memory.plans))))


def _call(kind: Kind, shape: Shape, count: FloatArray) -> Call:
    is_product = kind is Kind.GEMM
    return Call(kind=kind, direction=Pass.FORWARD, shape=shape, phase=Phase.OPTIMIZER, count=count, uncast=is_product)
