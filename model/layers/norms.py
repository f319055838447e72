"""Norms of a layer, as operators and as parameters."""

from __future__ import annotations

from moemodel.model.architecture.spec import Layer
from moemodel.model.core.arrays import FloatArray
from moemodel.model.layers.base import LayerOp
from moemodel.model.operators.work import Kind, Shape


def norm(layer: Layer, tokens: FloatArray, width: float | FloatArray) -> LayerOp:
    """A norm of the layer's kind over so many rows."""
    kind = Kind.LAYER_NORM if layer.norm == "layer" else Kind.RMS_NORM
    return LayerOp(kind=kind, shape=Shape(m=tokens, n=width))


def norm_parameters(layer: Layer, hidden: int) -> int:
    """One norm of a layer: a scale, and a shift where it has one."""
    if layer.norm is None:
        return 0
    return hidden * (layer.norm_scale + layer.norm_bias)
