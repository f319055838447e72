"""Mixture-of-Experts feed-forward blocks: router, dispatch, experts, combination, shared experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from moemodel.model.architecture.spec import Mlp, Moe
from moemodel.model.core.arrays import FloatArray
from moemodel.model.layers.base import Block, Component, Kept, LayerComm, LayerOp, MicroBatch, elementwise, linear
from moemodel.model.layers.mlp import ACTIVATION, MlpBlock, activated_B, mlp_parameters, mlp_products
from moemodel.model.layers.routing import expert_rank_skew
from moemodel.model.operators.work import Kind, Shape

_F = 4.0  # bytes of a float32 element
_I = 8.0  # bytes of an index
_COUNT_B = 8.0  # of an expert: how many rows it gets, an int64 (profiler.backends.torch_native.operators.dispatch)


@dataclass(frozen=True, kw_only=True)
class MoeBlock(Block):
    """`top_k` of `experts` for each token, dropless or padded to a capacity, plus shared ones."""

    spec: Moe
    hidden: int
    parts: ClassVar = ("moe",)

    @property
    def _shared(self) -> MlpBlock | None:
        """The experts that every token passes, as one dense block; None: there are none."""
        moe = self.spec
        if not moe.shared_width:
            return None
        shared = Mlp(width=moe.shared_width, activation=moe.activation, gated=moe.gated, bias=moe.bias)
        return MlpBlock(spec=shared, hidden=self.hidden)

    # ---- parameters and FLOPs ---------------------------------------------------------------------------------------

    def parameters(self) -> Iterator[Component]:
        moe, expert = self.spec, mlp_parameters(self.spec, self.hidden)
        yield Component.of("router", self._router_parameters(), "none")
        yield Component.of("shared_experts", self._shared_parameters(), "tp")
        yield Component(name="experts", count=expert * moe.experts, axis="experts", active=expert * moe.top_k)

    def _router_parameters(self) -> int:
        """Scores of the experts, their biases or corrections, and the gate of the shared experts."""
        moe = self.spec
        return moe.experts * (self.hidden + (1 if moe.router_bias else 0)) + (self.hidden if moe.shared_gate else 0)

    def _shared_parameters(self) -> int:
        return 0 if self._shared is None else self._shared.matmul_parameters()

    def parameter_tensors(self) -> int:
        moe = self.spec
        shared = (2 + moe.gated) * (moe.shared_width > 0) + moe.shared_gate
        return 1 + (moe.depth + 1) * (1 + moe.bias) + shared

    def matmul_parameters(self) -> int:
        moe = self.spec
        return moe.experts * self.hidden + self._shared_parameters() + mlp_parameters(moe, self.hidden) * moe.top_k

    # ---- rows -------------------------------------------------------------------------------------------------------

    @property
    def _slots(self) -> float:
        """Rows of a token: its experts, padding included."""
        return self.spec.top_k * (self.spec.capacity_factor or 1.0)

    def _tokens(self, batch: MicroBatch) -> FloatArray:
        """Whose rows one GPU sends: all of its own, or its share of those of its tensor-parallel group. [P]"""
        return batch.tokens / (batch.tp / batch.etp)

    def _skew(self, batch: MicroBatch) -> FloatArray:
        """Rows of the busiest expert over the mean; padded to a capacity they are all alike. [P]"""
        return batch.skew if self.spec.capacity_factor is None else np.ones(batch.plans)

    # ---- operators --------------------------------------------------------------------------------------------------

    def operators(self, batch: MicroBatch) -> Iterator[LayerOp]:
        moe, d, skew = self.spec, self.hidden, self._skew(batch)
        tokens, busiest = self._tokens(batch), expert_rank_skew(skew, batch.ep, moe.experts)
        rows, local = tokens * self._slots * busiest, moe.experts / batch.ep
        routed = Shape(m=tokens, n=d, experts=moe.experts, top_k=self._slots)
        yield linear(tokens, moe.experts, d)
        yield LayerOp(kind=Kind.ROUTER, shape=Shape(m=tokens, experts=moe.experts, top_k=moe.top_k))
        yield LayerOp(kind=Kind.PERMUTE, shape=routed, grad_fan_in=Shape(m=tokens, n=d))
        if batch.adds_kernels("ep"):  # rows of several ranks, sorted by expert again, and back into their order
            again = Shape(m=rows, n=d, experts=local, top_k=1)
            yield LayerOp(kind=Kind.PERMUTE, shape=again, mask=batch.is_sharded("ep"), load_balance=1 / busiest)
        for op in self._experts(batch, Shape(m=rows, experts=local, skew=skew)):
            yield replace(op, load_balance=1 / busiest)
        if batch.adds_kernels("ep"):
            yield replace(elementwise(rows * d, 2.0, (2.0,), mask=batch.is_sharded("ep")), load_balance=1 / busiest)
        yield LayerOp(kind=Kind.UNPERMUTE, shape=routed)
        if self._shared is not None:
            yield from (replace(op, parts=("shared_experts",)) for op in self._shared_operators(batch, self._shared))

    def _experts(self, batch: MicroBatch, rows: Shape) -> Iterator[LayerOp]:
        """The products of the experts that a GPU holds, over all their rows."""
        moe = self.spec
        *inner, last = mlp_products(moe, self.hidden)
        for position, (inputs, outputs) in enumerate(inner):
            depth = inputs if position == 0 else inputs / batch.etp
            yield LayerOp(kind=Kind.GROUPED_GEMM, shape=replace(rows, n=outputs / batch.etp, k=depth))
            activation = Kind.SWIGLU_PACKED if moe.gated and position == 0 else ACTIVATION[moe.activation]
            yield LayerOp(kind=activation, shape=Shape(m=rows.m, n=moe.width / batch.etp), parts=("moe_act",))
        yield LayerOp(kind=Kind.GROUPED_GEMM, shape=replace(rows, n=last[1], k=last[0] / batch.etp))

    def _shared_operators(self, batch: MicroBatch, shared: MlpBlock) -> Iterator[LayerOp]:
        yield from MlpBlock(spec=replace(shared.spec, bias=False), hidden=self.hidden).operators(batch)
        yield LayerOp(kind=Kind.RESIDUAL_ADD, shape=Shape(m=batch.tokens, n=self.hidden))

    # ---- memory -----------------------------------------------------------------------------------------------------

    def kept(self, batch: MicroBatch) -> Iterator[Kept]:
        """Rows of experts, the router's scores and choices, the order of rows, shared experts."""
        moe, t = self.spec, self._tokens(batch)
        rows = t * self._slots * expert_rank_skew(self._skew(batch), batch.ep, moe.experts)
        width, product_B = moe.width / batch.etp, batch.recipe.product_input_B
        output_B = batch.element_size_B if batch.framework.keeps_expert_outputs else 0.0
        yield Kept(size_B=rows * self.hidden * (product_B + output_B), parts=("moe",))
        inner_B = activated_B(batch, moe) if moe.gated else product_B + batch.element_size_B
        yield Kept(size_B=rows * width * (inner_B - product_B), parts=("moe",))
        yield Kept(size_B=rows * width * product_B, parts=("moe", "moe_act"))
        router = t * (_F * moe.experts + moe.top_k * (_I + 2 * _F + batch.element_size_B))
        order = 2 * _I * t * self._slots
        if batch.framework.eager_sharding:  # rows that come from other ranks are sorted again
            order = order + np.where(batch.ep > 1, 2 * _I * rows, 0.0)
        yield Kept(size_B=np.asarray(router + order), parts=("moe",))
        if self._shared is not None:
            input_B = batch.product_copy_B * batch.sequence_parallel_tokens * self.hidden
            yield Kept(size_B=input_B, parts=("moe", "shared_experts"))
            for kept in self._shared.kept(batch):
                yield replace(kept, parts=("moe", "shared_experts"))

    def exchanged_B(self, batch: MicroBatch) -> FloatArray:
        """Rows of others to its experts, and its own back from theirs."""
        moe, own = self.spec, self._tokens(batch) * self._slots
        there = own * expert_rank_skew(self._skew(batch), batch.ep, moe.experts)
        return np.asarray(batch.element_size_B * (there + own) * self.hidden)

    def products_keep_input(self) -> bool:
        return False  # the router reads it as it is

    # ---- communication ----------------------------------------------------------------------------------------------

    def collectives(self, batch: MicroBatch) -> Iterator[LayerComm]:
        """Rows to their experts and back; the busiest rank's rows prolong it.

        Under tensor parallelism each rank sends its share of the rows, and the ranks that share an expert gather and
        scatter them among themselves; or, where whole experts lie on a GPU, a rank sends the rows of its share of the
        tokens, and nothing else; or all rows of its tokens, and first how many they are.
        """
        moe, framework = self.spec, batch.framework
        sends = (batch.ep > 1).astype(np.float64)
        size_B = batch.element_size_B * batch.tokens * self._slots * self.hidden
        skew = expert_rank_skew(batch.skew, batch.ep, moe.experts) if moe.capacity_factor is None else None
        yield LayerComm(
            axis="ep",
            collective="all_to_all",
            size_B=size_B if framework.dispatches_all_tokens else size_B / batch.tp,
            forward=2 * sends,
            backward=2 * sends,
            launch="expert_parallel",
            forward_launches=2 * sends,
            backward_launches=2 * sends,
            skew=skew,
            experts_per_token=moe.top_k,
        )
        if framework.shards_experts and not framework.dispatches_all_tokens:
            gathered = LayerComm(
                axis="ep", group="tp", collective="all_gather", size_B=size_B, forward=sends, backward=sends, skew=skew
            )
            yield gathered
            yield replace(gathered, collective="reduce_scatter")
        if framework.dispatches_all_tokens and moe.capacity_factor is None:
            counts_B = np.full(batch.plans, _COUNT_B * moe.experts)
            yield LayerComm(axis="ep", collective="all_to_all", size_B=counts_B, backward=0.0, overlap="never")

    def host_block(self) -> str:
        return "moe_layer"

    def waits_for_counts(self) -> bool:
        return self.spec.capacity_factor is None
