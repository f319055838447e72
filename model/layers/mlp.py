"""Dense feed-forward blocks, gated or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moemodel.model.architecture.spec import Mlp, Moe
from moemodel.model.core.arrays import FloatArray
from moemodel.model.frameworks.base import AdaptedLinear, Framework
from moemodel.model.layers.base import Block, Component, Kept, LayerOp, MicroBatch, elementwise, linear
from moemodel.model.operators.work import Kind, Shape

ACTIVATION: dict[str, Kind] = {"gelu": Kind.GELU, "relu": Kind.RELU, "relu2": Kind.RELU, "silu": Kind.GELU}


_FP8 = 1.0  # bytes of an element
_CAST = 1.5  # tensors of 16 bits that a cast to or from 8 bits reads and writes


def mlp_products(block: Mlp | Moe, hidden: int) -> tuple[tuple[int, int], ...]:
    """(inputs, outputs) of each product of a dense block or of one routed expert, in order.

    A gate and its up-projection count as one product of twice the width, as kernels run them.
    """
    first = (hidden, block.width * (2 if block.gated else 1))
    last = (block.width, hidden if block.out_width is None else block.out_width)
    return (first, *[(block.width, block.width)] * (block.depth - 1), last)


def mlp_parameters(block: Mlp | Moe, hidden: int) -> int:
    """A dense block, or one routed expert: all its products, and biases where it has them."""
    matrices = mlp_products(block, hidden)
    return sum(inputs * outputs + (outputs if block.bias else 0) for inputs, outputs in matrices)


@dataclass(frozen=True, kw_only=True)
class MlpBlock(Block):
    """A dense block; `shared`: the experts that every token of a Mixture-of-Experts block passes, as one."""

    spec: Mlp
    hidden: int
    parts: ClassVar = ("mlp",)

    def parameters(self) -> Iterator[Component]:
        yield Component.of("feed_forward", mlp_parameters(self.spec, self.hidden), "tp")

    def parameter_tensors(self) -> int:
        return (self.spec.depth + 1 + self.spec.gated) * (1 + self.spec.bias)

    def joined_tensors(self, framework: Framework) -> int:
        return self.spec.gated * (1 + self.spec.bias) * framework.fused_gate_up

    def first_target(self) -> AdaptedLinear:
        return "fc1"

    def host_block(self) -> str:
        return "dense_layer_gated" if self.spec.gated else "dense_layer"

    def matmul_parameters(self) -> int:
        return mlp_parameters(self.spec, self.hidden)

    def operators(self, batch: MicroBatch) -> Iterator[LayerOp]:
        mlp, tokens, tp = self.spec, batch.tokens, batch.tp
        first, *middle, last = mlp_products(mlp, self.hidden)
        up = first[1] / tp
        split = mlp.gated and not batch.framework.fused_gate_up
        for index, n in enumerate((up / 2, up / 2) if split else (up,)):
            yield linear(tokens, n, first[0], bias=mlp.bias, shares_input=index > 0, target="fc1")
        gate = Kind.SWIGLU if split else Kind.SWIGLU_PACKED
        kind = gate if mlp.gated else ACTIVATION[mlp.activation]
        yield LayerOp(kind=kind, shape=Shape(m=tokens, n=mlp.width / tp))
        yield from stored_input(batch, mlp, tokens * (mlp.width / tp))
        for inputs, outputs in middle:
            yield linear(tokens, outputs / tp, inputs, bias=mlp.bias)
            yield LayerOp(kind=ACTIVATION[mlp.activation], shape=Shape(m=tokens, n=outputs / tp))
        yield linear(tokens, last[1], last[0] / tp, bias=mlp.bias, target="fc2")

    def kept(self, batch: MicroBatch) -> Iterator[Kept]:
        """Of each hidden width what its activation reads and the product behind it; gated, as the framework does."""
        mlp = self.spec
        rows = batch.tokens * (mlp.width / batch.tp)
        extra = (len(mlp_products(mlp, self.hidden)) - 2) * 2
        stays = batch.keeps_input_of("fc2") or (mlp.activation == "relu" and not mlp.gated)  # which it reads backward
        last_B = 0.0 if stays else batch.recipe.product_input_B
        kept_B = activated_B(batch, mlp) - last_B + batch.element_size_B * extra
        yield Kept(size_B=rows * kept_B, parts=("mlp",))

    def passing_B(self, batch: MicroBatch) -> FloatArray:
        """Behind the activation: the last product has freed its input and made that input's gradient."""
        rows = batch.tokens * (self.spec.width / batch.tp)
        return np.asarray(batch.element_size_B * rows * (2.0 if self.spec.gated else 1.0))


def activated_B(batch: MicroBatch, block: Mlp | Moe) -> float:
    """Bytes that an activation and the product behind it keep of one hidden width."""
    tensors = batch.framework.gated_tensors if block.gated else (1.0 if block.activation == "relu" else 2.0)
    kept_B = _FP8 if _stores_fp8(batch, block) else batch.element_size_B
    return kept_B * (tensors - 1.0) + batch.recipe.product_input_B


def stored_input(batch: MicroBatch, block: Mlp | Moe, elements: FloatArray) -> Iterator[LayerOp]:
    """Gate and up-projection of so many elements each, cast to the 8 bits that they are kept in, and back (Megatron
    Core, fusions/fused_bias_swiglu.py): 2 bytes read and 1 written, and the other way round."""
    if _stores_fp8(batch, block):
        yield elementwise(elements, 2 * _CAST, (2 * _CAST,))


def _stores_fp8(batch: MicroBatch, block: Mlp | Moe) -> bool:
    return block.gated and batch.framework.stores_fp8_inputs
