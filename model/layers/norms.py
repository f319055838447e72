"""Norms of a layer, as operators and as parameters."""

from __future__ import annotations

import numpy as np

from moemodel.model.architecture.spec import Layer
from moemodel.model.core.arrays import FloatArray
from moemodel.model.layers.base import LayerOp, MicroBatch
from moemodel.model.operators.work import Kind, Shape


def norm(layer: Layer, tokens: FloatArray, width: float | FloatArray) -> LayerOp:
    """A norm of the layer's kind over so many rows."""
    kind = Kind.LAYER_NORM if layer.norm == "layer" else Kind.RMS_NORM
    return LayerOp(kind=kind, shape=Shape(m=tokens, n=width), of_stream=True)


def norm_kept_B(layer: Layer, batch: MicroBatch) -> FloatArray:
    """Bytes of an element that a norm of the residual stream keeps, beside its output: its input, or what plain kernels
    keep in its place. [P]"""
    plain = None if layer.norm == "layer" else batch.framework.plain("rms_norm")
    if plain is None:
        return batch.stream_B
    return np.where(batch.autocast > 0, plain.under_autocast.kept_B, plain.kept_B)


def head_norm_kept_B(batch: MicroBatch) -> float:
    """The same of a norm of queries or keys, which are 16-bit in any case."""
    plain = batch.framework.plain("head_norm")
    return batch.element_size_B if plain is None else plain.kept_B


def norm_parameters(layer: Layer, hidden: int) -> int:
    """One norm of a layer: a scale, and a shift where it has one."""
    if layer.norm is None:
        return 0
    return hidden * (layer.norm_scale + layer.norm_bias)
