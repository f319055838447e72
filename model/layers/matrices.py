"""Weights of a layer as matrices, which Muon makes orthogonal one by one.

Products, experts and routers; not embedding, head, norms and biases (Jordan 2024; Megatron Core,
optimizer/layer_wise_optimizer.py, is_managed_by_layer_wise_optimizer).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moemodel.model.architecture.spec import Layer
from moemodel.model.core.arrays import FloatArray
from moemodel.model.layers.base import MicroBatch
from moemodel.model.layers.layer import layer_blocks
from moemodel.model.operators.work import Kind


@dataclass(frozen=True, kw_only=True)
class Matrices:
    """Weights of one shape in a layer, on one GPU before ZeRO. [P] each.

    Attributes:
        count: how many.
        rows, columns: of each.
        expert: whether ranks hold different ones by expert parallelism.
    """

    count: FloatArray
    rows: FloatArray
    columns: FloatArray
    expert: bool

    @property
    def parameters(self) -> FloatArray:
        """Of all of them."""
        return np.asarray(self.count * self.rows * self.columns)

    @property
    def step_flops(self) -> FloatArray:
        """Of one step of Newton and Schulz: X X^T, its square, and their sum times X, of m x n with m <= n: 4 m^2 n + 2
        m^3 (Jordan 2024)."""
        short, long = np.minimum(self.rows, self.columns), np.maximum(self.rows, self.columns)
        return np.asarray(self.count * (4 * short**2 * long + 2 * short**3))


def layer_matrices(layer: Layer, hidden: int, batch: MicroBatch, *, whole: bool) -> list[Matrices]:
    """Matrices of a layer, queries, keys and values apart (Megatron Core's `muon_split_qkv`).

    Args:
        layer, hidden: the layer.
        batch: whose degrees cut it.
        whole: as they are before tensor parallelism cuts them.
    """
    one, framework = np.ones_like(batch.tp), replace(batch.framework, fused_qkv=False, lora=None)
    cut = replace(batch, framework=framework)
    if whole:
        cut = replace(cut, tp=one, etp=one)
    found = []
    for op in layer_blocks(layer, hidden).operators(cut):
        if op.attention_core or op.kind not in (Kind.GEMM, Kind.GROUPED_GEMM):
            continue
        experts, n, k = (_all(size, batch) for size in (op.shape.experts, op.shape.n, op.shape.k))
        grouped, apart = op.kind is Kind.GROUPED_GEMM, op.mask is not None  # experts together, or one by one
        count = experts if grouped else one if op.mask is None else op.mask
        found.append(Matrices(count=count, rows=n, columns=k, expert=grouped or apart))
    return found


def _all(size: object, batch: MicroBatch) -> FloatArray:
    return np.broadcast_to(np.asarray(size, dtype=np.float64), (batch.plans,))


def matrix_parameters(matrices: Sequence[Matrices], *, expert: bool, plans: int) -> FloatArray:
    """Of those that are experts', or of the rest. [P]"""
    return np.asarray(sum((one.parameters for one in matrices if one.expert == expert), np.zeros(plans)))
