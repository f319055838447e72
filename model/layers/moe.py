"""Mixture-of-Experts feed-forward blocks: router, dispatch, experts, combination, shared experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from moemodel.model.architecture.spec import Mlp, Moe
from moemodel.model.core.arrays import BoolArray, FloatArray
from moemodel.model.frameworks.moe_form import (
    MEASURED_BLOCK,
    PLAIN_DENSE_BLOCK,
    StreamedKernels,
    Tensor,
    expert_kernels,
)
from moemodel.model.layers.base import (
    Block,
    Component,
    HostReadings,
    Kept,
    LayerComm,
    LayerOp,
    MicroBatch,
    elementwise,
    linear,
)
from moemodel.model.layers.mlp import ACTIVATION, MlpBlock, activated_B, mlp_parameters, mlp_products, stored_input
from moemodel.model.layers.moe_forms import (
    combine_by_mask,
    dispatch_by_mask,
    each_expert,
    expert_product,
    gradient_fan_in,
    plain_launches,
    policy_launches,
    router_operators,
    streamed_kept_B,
    streamed_operators,
    tensor_sizes,
)
from moemodel.model.layers.routing import ExpertRows, busiest_rank, expert_rows, expert_slots, routed_skew
from moemodel.model.operators.work import Kind, Shape
from moemodel.model.plan.dispatch import ALL_GATHER, ALL_TO_ALL, DEEPEP

_F = 4.0  # bytes of a float32 element
_I = 8.0  # bytes of an index
# Dynamic energy of a product of zeros over that of one of random numbers: an H200 does 760 TFLOP/s at 542 W of the one,
# 643 at 687 W of the other (measured for this project, docs/public-data.md), of which its calibration counts 446 and
# 584 W as dynamic, and at 643/760 of the clock, where it holds random numbers, 0.887 of the squared voltage
_OF_ZEROS = (446 / 760) / (584 / 643) * 0.887
_CHOICE_B = 1.0 + 4.0  # of an expert and a token: chosen or not, and its probability (MoEAllGatherTokenDispatcher)
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

    @property
    def _row_width(self) -> int:
        """Of a row that an expert reads and gives."""
        return self.spec.latent_width or self.hidden

    # ---- parameters and FLOPs ---------------------------------------------------------------------------------------

    def parameters(self) -> Iterator[Component]:
        moe, expert = self.spec, mlp_parameters(self.spec, self._row_width)
        yield Component.of("latent", self._latent_parameters(), "none")
        yield Component.of("router", self._router_parameters(), "none")
        yield Component.of("shared_experts", self._shared_parameters(), "tp")
        yield Component.of("residual", self._residual_parameters(), "tp")
        yield Component(name="experts", count=expert * expert_slots(moe), axis="experts", active=expert * moe.top_k)

    def _router_parameters(self) -> int:
        """Scores of the experts, their noise, biases or corrections, and the gate of the shared experts."""
        moe = self.spec
        scores = moe.experts * (self.hidden + (1 if moe.router_bias else 0))
        noise = moe.experts * self.hidden if moe.router == "noisy_topk" else 0
        return scores + noise + (self.hidden if moe.shared_gate else 0)

    @property
    def _residual(self) -> MlpBlock | None:
        """The dense block beside the experts, as wide as one of them (Residual-MoE); None: there is none."""
        moe = self.spec
        if not moe.residual:
            return None
        beside = Mlp(width=moe.width, activation=moe.activation, gated=moe.gated, bias=moe.bias)
        return MlpBlock(spec=beside, hidden=self.hidden)

    def _residual_parameters(self) -> int:
        """Its own, and the product that weighs it against the experts (DeepSpeed, moe/layer.py)."""
        return 0 if self._residual is None else self._residual.matmul_parameters() + 2 * (self.hidden + 1)

    def _latent_parameters(self) -> int:
        """Of the products to the experts' width and back (Megatron-LM, moe/moe_layer.py, fc1_latent_proj)."""
        return 2 * self.hidden * (self.spec.latent_width or 0)

    def _shared_parameters(self) -> int:
        return 0 if self._shared is None else self._shared.matmul_parameters()

    def parameter_tensors(self) -> int:
        moe = self.spec
        shared = (2 + moe.gated) * (moe.shared_width > 0) + moe.shared_gate
        return 1 + (moe.depth + 1) * (1 + moe.bias) + shared + 2 * (moe.latent_width is not None)

    def more_tensors(self, batch: MicroBatch) -> FloatArray:
        moe, form = self.spec, batch.framework.moe
        if not form.separate_experts:
            return np.zeros(batch.plans)
        together = (moe.depth + 1) * (1 + moe.bias)
        each = (moe.depth + 1 + (moe.gated and form.splits_gate)) * (1 + moe.bias)
        return np.asarray(self._local(batch) * each - together)

    def matmul_parameters(self) -> int:
        moe = self.spec
        dense = self._shared_parameters() + self._residual_parameters() + self._latent_parameters()
        noise = moe.experts * self.hidden if moe.router == "noisy_topk" else 0
        return moe.experts * self.hidden + noise + dense + mlp_parameters(moe, self._row_width) * moe.top_k

    # ---- rows -------------------------------------------------------------------------------------------------------

    def _tokens(self, batch: MicroBatch) -> FloatArray:
        """As many as bring a GPU the rows that its experts get: all of its own, or its share of those of its
        tensor-parallel group, of each rank that it shares its experts with. [P]"""
        return batch.tokens / (batch.tp / batch.etp)

    def _routed_tokens(self, batch: MicroBatch) -> FloatArray:
        """That one GPU routes, and whose rows it sends: all of its own, where tensor-parallel ranks route alike, or its
        share of them. [P]"""
        alike = batch.framework.shards_experts & (batch.etp >= batch.tp)
        return np.where(alike, batch.tokens, batch.tokens / batch.tp)

    def _rows(self, batch: MicroBatch) -> ExpertRows:
        """Of the experts, as the framework pads them."""
        skew = routed_skew(self.spec, batch.skew)
        return expert_rows(self.spec, batch.framework.moe, self._tokens(batch), skew)

    def _local(self, batch: MicroBatch) -> FloatArray:
        """Experts that a GPU holds, copies among them. [P]"""
        return np.asarray(expert_slots(self.spec) / batch.ep)

    # ---- operators --------------------------------------------------------------------------------------------------

    def operators(self, batch: MicroBatch) -> Iterator[LayerOp]:
        kernels_s = self._local(batch) * batch.framework.moe.expert_kernel_s * batch.recipe.casts
        for op in self._operators(batch):
            yield replace(op, added_s=kernels_s) if op.kind is Kind.GROUPED_GEMM else op

    def _operators(self, batch: MicroBatch) -> Iterator[LayerOp]:
        moe, form, rows = self.spec, batch.framework.moe, self._rows(batch)
        busiest = busiest_rank(moe, rows.skew, batch.ep)
        sent = self._tokens(batch) * rows.slots * busiest
        shape = Shape(m=sent, experts=self._local(batch), skew=rows.skew)
        copied = replace(elementwise(sent * self._row_width, 2.0, (2.0,)), load_balance=1 / busiest)
        yield from router_operators(moe, form, self._routed_tokens(batch), self.hidden)
        if moe.latent_width is not None:
            yield linear(batch.sequence_parallel_tokens, moe.latent_width, self.hidden, shares_input=True)
        yield from self._dispatch(batch, rows)
        sorts = batch.sorts_spread_rows(self._local(batch))
        if sorts is not None:  # rows of several ranks, sorted by expert again, and back
            again = Shape(m=sent, n=self._row_width, experts=shape.experts, top_k=1)
            first = LayerOp(kind=Kind.PERMUTE, shape=again, mask=sorts, load_balance=1 / busiest)
            yield replace(copied, mask=sorts) if form.sorts_several else first
        pads = self._pads(batch)
        if pads is not None:
            yield replace(copied, mask=pads)
        energy = rows.filled + _OF_ZEROS * (1 - rows.filled)
        for op in self._experts(batch, shape):
            multiplies = op.kind in (Kind.GEMM, Kind.GROUPED_GEMM)
            yield replace(op, load_balance=1 / busiest, operand_energy=energy if multiplies else 1.0)
        yield from (replace(copied, mask=mask) for mask in (pads, sorts) if mask is not None)
        yield from self._gathered_zeros(batch)
        yield from self._combine(batch, rows)
        if moe.latent_width is not None:
            yield linear(batch.sequence_parallel_tokens, self.hidden, moe.latent_width)
        sizes, local = self._sizes(batch), self._local(batch)
        yield from streamed_operators((*form.kernels, *form.policies), sizes, moe.top_k, local)
        if batch.autocast.any():
            for op in streamed_operators(form.float32_rows, sizes, moe.top_k, local):
                yield replace(op, mask=batch.autocast if op.mask is None else batch.autocast * op.mask)
        for kernels, parts in self._around_products(batch):
            for op in streamed_operators(kernels, sizes, moe.top_k, local):
                yield replace(op, gating=False, parts=parts, load_balance=1 / busiest)
        if self._shared is not None:
            yield from (replace(op, parts=("shared_experts",)) for op in self._shared_operators(batch, self._shared))
        if self._residual is not None:
            yield from self._residual_operators(batch, self._residual)

    def _around_products(self, batch: MicroBatch) -> Iterator[tuple[tuple[StreamedKernels, ...], tuple[str, ...]]]:
        """Plain kernels of biases and of clamped rows, and the parts of a layer that they are of."""
        form = batch.framework.moe
        if self.spec.clamped:
            yield form.clamps, ("moe_act",)
        if self.spec.bias:
            yield form.biases, ()

    def _pads(self, batch: MicroBatch) -> FloatArray | None:
        """Where rows are copied to what cast products take, and back, 1 or 0; None: nowhere. [P]"""
        if not (batch.framework.moe.pads_cast_rows and batch.recipe.casts) or self.spec.capacity_factor is not None:
            return None
        return np.asarray(1.0 - batch.sends_by(DEEPEP))

    def _residual_operators(self, batch: MicroBatch, residual: MlpBlock) -> Iterator[LayerOp]:
        """The dense block, two weights of a token by a product and a softmax, two products with them and a sum."""
        yield from residual.operators(batch)
        yield linear(batch.tokens, 2.0, self.hidden, shares_input=True)
        yield LayerOp(kind=Kind.ROUTER, shape=Shape(m=batch.tokens, experts=2.0, top_k=2.0))
        for _ in range(2):
            yield elementwise(batch.tokens * self.hidden, 2.0, (2.0, 2.0))
        yield LayerOp(kind=Kind.RESIDUAL_ADD, shape=Shape(m=batch.tokens, n=self.hidden))

    def _dispatch(self, batch: MicroBatch, rows: ExpertRows) -> Iterator[LayerOp]:
        """Tokens into rows of experts; the router reads the same tokens."""
        tokens = self._routed_tokens(batch)
        fan_in = None if self.spec.latent_width else Shape(m=tokens, n=self.hidden)
        match batch.framework.moe.dispatch:
            case "sorted":
                shape = self._routed(tokens, rows)
                yield LayerOp(kind=Kind.PERMUTE, shape=shape, grad_fan_in=fan_in)
            case "masks":
                yield replace(dispatch_by_mask(tokens, rows.slots, self._row_width), grad_fan_in=fan_in)
            case "kernels" if fan_in is not None:
                yield from gradient_fan_in(fan_in)

    def _gathered_zeros(self, batch: MicroBatch) -> Iterator[LayerOp]:
        """Where each rank has all tokens, its experts' rows are added into as many, and so are gradients backward."""
        gathers = batch.sends_by(ALL_GATHER)
        if gathers.any():
            elements = self._routed_tokens(batch) * batch.ep * batch.etp * self._row_width
            yield elementwise(elements, 1.0, (1.0,), mask=gathers)

    def _combine(self, batch: MicroBatch, rows: ExpertRows) -> Iterator[LayerOp]:
        """Rows of experts, weighted, into tokens."""
        tokens = self._routed_tokens(batch)
        match batch.framework.moe.dispatch:
            case "sorted":
                yield LayerOp(kind=Kind.UNPERMUTE, shape=self._routed(tokens, rows))
            case "masks":
                yield combine_by_mask(tokens, rows.slots, self._row_width)
            case "kernels":
                pass

    def _routed(self, tokens: FloatArray, rows: ExpertRows) -> Shape:
        return Shape(m=tokens, n=self._row_width, experts=self.spec.experts, top_k=rows.slots)

    def _sizes(self, batch: MicroBatch) -> dict[Tensor, FloatArray]:
        """Elements of the tensors that plain kernels go over."""
        moe, rows, tokens = self.spec, self._rows(batch), self._routed_tokens(batch)
        there = rows.slots * (self._tokens(batch) / tokens)  # rows of experts over the tokens that a rank routes
        busiest = busiest_rank(moe, rows.skew, batch.ep)
        return tensor_sizes(moe, self._row_width, tokens=tokens, slots=there, busiest=busiest, local=self._local(batch))

    def _experts(self, batch: MicroBatch, rows: Shape) -> Iterator[LayerOp]:
        """The products of the experts that a GPU holds, over all their rows."""
        moe, form = self.spec, batch.framework.moe
        *inner, last = mlp_products(moe, self._row_width)
        for position, (inputs, outputs) in enumerate(inner):
            depth = inputs if position == 0 else inputs / batch.etp
            gate = moe.gated and position == 0
            parts = 2 if gate and form.splits_gate else 1
            for index in range(parts):
                op = expert_product(form, replace(rows, n=outputs / parts / batch.etp, k=depth))
                yield replace(op, grad_fan_in=Shape(m=op.shape.m, n=depth)) if index else op
            packed = Kind.SWIGLU if parts > 1 else Kind.SWIGLU_PACKED
            activation = packed if gate else ACTIVATION[moe.activation]
            yield from each_expert(
                form, LayerOp(kind=activation, shape=Shape(m=rows.m, n=moe.width / batch.etp), parts=("moe_act",)), rows
            )
            casts = stored_input(batch, moe, np.asarray(rows.m) * (moe.width / batch.etp)) if gate else ()
            yield from (replace(op, parts=("moe_act",)) for op in casts)
        yield expert_product(form, replace(rows, n=last[1], k=last[0] / batch.etp))

    def _shared_operators(self, batch: MicroBatch, shared: MlpBlock) -> Iterator[LayerOp]:
        yield from MlpBlock(spec=replace(shared.spec, bias=False), hidden=self.hidden).operators(batch)
        yield LayerOp(kind=Kind.RESIDUAL_ADD, shape=Shape(m=batch.tokens, n=self.hidden))

    # ---- host -------------------------------------------------------------------------------------------------------

    def more_launches(self, batch: MicroBatch) -> tuple[FloatArray, FloatArray]:
        """Kernels forward and backward beyond those of torch's block, which profiles measure. [P] each."""
        moe, form, local = self.spec, batch.framework.moe, self._local(batch)
        policies = policy_launches(form, moe.top_k)
        plain = plain_launches((one for kernels, _ in self._around_products(batch) for one in kernels), local)
        factors = batch.framework.host_factors  # by which all of these are multiplied
        more = policies[0] + plain[0] / factors.forward, policies[1] + plain[1] / factors.backward
        if form.launches is None:
            return more
        products = moe.depth + 1 + (moe.gated and form.splits_gate)
        is_plain = batch.framework.plain_host
        each = expert_kernels(products=products, gated=moe.gated and not is_plain)
        times = local if form.products != "grouped" else local * 0.0 + form.launches.grouped
        spread = self._spread_copies(batch)
        forward = form.launches.forward.of(moe.top_k) + times * (each[0] + form.launches.each_forward + spread)
        backward = form.launches.backward.of(moe.top_k) + times * (each[1] + form.launches.each_backward)
        there = PLAIN_DENSE_BLOCK if is_plain else MEASURED_BLOCK
        return np.asarray(forward + more[0] - there[0]), np.asarray(backward + more[1] - there[1])

    def expert_launches(self, batch: MicroBatch) -> tuple[FloatArray, FloatArray]:
        """Products of experts beyond the first one's, which the measured block has; and what it takes to fall into
        parts, between which another micro-batch's run."""
        framework, queued = batch.framework, float(not batch.framework.captured)
        form, factors = framework.moe, framework.host_factors  # by which these are multiplied
        each = queued * form.expert_products * (self.spec.depth + 1) * (self._local(batch) - 1)
        forward, backward = (queued * calls * batch.paired for calls in framework.paired_calls)
        return np.asarray(each / factors.forward + forward), np.asarray(2 * each / factors.backward + backward)

    def _spread_copies(self, batch: MicroBatch) -> FloatArray:
        """Of an expert's rows, which its products make and keep where a GPU holds several of several ranks'. [P]"""
        launches = batch.framework.moe.launches
        each = 0.0 if launches is None else launches.each_spread
        return np.asarray(each * (batch.is_sharded("ep") * (self._local(batch) > 1)))

    def forward_kernels(self, batch: MicroBatch) -> FloatArray:
        together = batch.framework.moe.launches is None  # else each expert's are counted
        deeper = 2.0 * (self.spec.depth - 1) * together  # a product and its activation each
        return np.asarray(MEASURED_BLOCK[0] + deeper + self.more_launches(batch)[0])

    def host_waits(self, batch: MicroBatch) -> HostReadings:
        """Where the host reads what the device made, or lets it run dry."""
        moe, form = self.spec, batch.framework.moe
        cut = moe.capacity_factor is not None
        known = (cut and form.padding != "never") or moe.router == "expert_choice"
        spread = batch.is_sharded("ep") * form.host_waits.spread
        reads = ((form.host_waits.cut if cut else form.host_waits.forward) + spread) * (not known)
        reads = reads + form.host_waits.clamped * moe.clamped
        calls = (moe.depth + 1 + (moe.gated and form.splits_gate)) * form.host_waits.each_product
        drains = calls * (self._local(batch) if form.separate_experts else 1.0) + 0.0 * spread
        return HostReadings(reads=reads, drains_forward=drains, drains_backward=drains)

    # ---- memory -----------------------------------------------------------------------------------------------------

    def kept(self, batch: MicroBatch) -> Iterator[Kept]:
        """Rows of experts, the router's scores and choices, the order of rows, shared experts."""
        moe, t, padded, form = self.spec, self._routed_tokens(batch), self._rows(batch), batch.framework.moe
        rows = self._tokens(batch) * padded.slots * busiest_rank(moe, padded.skew, batch.ep)
        width, product_B = moe.width / batch.etp, batch.recipe.product_input_B
        read_B = product_B if batch.framework.lora is None else 0.0  # by products of experts, frozen beside adapters
        output_B = batch.element_size_B if self._keeps_outputs(batch) else 0.0
        copied_B = self._spread_copies(batch) * batch.element_size_B
        yield Kept(size_B=rows * self._row_width * (read_B + output_B + copied_B), parts=("moe",))
        inner_B = activated_B(batch, moe) if moe.gated else product_B + batch.element_size_B
        inner_B += batch.element_size_B * self._keeps_unweighted(batch)
        yield Kept(size_B=rows * width * (inner_B - product_B), parts=("moe",))
        yield Kept(size_B=rows * width * read_B, parts=("moe", "moe_act"))
        router = t * (_F * moe.experts + moe.top_k * (_I + 2 * _F + batch.element_size_B))
        order = 2 * _I * t * padded.slots
        if form.sorts_again and batch.framework.eager_sharding:  # rows that come from other ranks are sorted again
            order = order + np.where(batch.sends_by(ALL_TO_ALL) > 0, 2 * _I * rows, 0.0)
        yield Kept(size_B=np.asarray(router + order), parts=("moe",))
        more = streamed_kept_B((*form.kernels, *form.policies), self._sizes(batch), moe.top_k)
        if more is not None:
            yield Kept(size_B=more, parts=("moe",))
        for kernels, parts in self._around_products(batch):
            kept_B = streamed_kept_B(kernels, self._sizes(batch), moe.top_k)
            if kept_B is not None:
                yield Kept(size_B=kept_B, parts=("moe", *parts))
        if moe.latent_width is not None:  # what the products to the experts' width and back read
            latent_B = batch.product_copy_B * self.hidden + product_B * moe.latent_width
            yield Kept(size_B=batch.sequence_parallel_tokens * latent_B, parts=("moe",))
        if self._shared is not None:
            input_B = batch.product_copy_B * batch.sequence_parallel_tokens * self.hidden
            yield Kept(size_B=input_B, parts=("moe", "shared_experts"))
            for kept in self._shared.kept(batch):
                yield replace(kept, parts=("moe", "shared_experts"))
        if self._residual is not None:  # and both outputs, which their weights' gradients need
            yield Kept(size_B=2 * batch.element_size_B * batch.tokens * self.hidden, parts=("moe",))
            yield from self._residual.kept(batch)

    def _keeps_unweighted(self, batch: MicroBatch) -> bool:
        """Whether activated rows stay beside these times their probabilities: but for gates, no kernel does both
        (Megatron-LM, core/transformer/moe/experts.py, bias_act_func; core/transformer/mlp.py)."""
        framework, moe = batch.framework, self.spec
        weighs = not framework.keeps_expert_outputs and framework.moe.dispatch == "sorted"
        return weighs and not moe.gated and moe.activation == "gelu"

    def _keeps_outputs(self, batch: MicroBatch) -> bool:
        """Whether outputs of experts stay: to be weighted; or since rows are added by index_add, whose backward pass in
        torch looks at their shape (core/transformer/moe/moe_utils.py, unpermute; autograd/derivatives.yaml)."""
        framework = batch.framework
        adds_in_order = framework.deterministic and "unpermute" not in framework.fused_kernels
        return framework.keeps_expert_outputs or adds_in_order

    def buffer_B(self, batch: MicroBatch) -> FloatArray:
        """All tokens, where they are gathered (core/transformer/moe/token_dispatcher.py, use_global_buffer)."""
        gathered = self._routed_tokens(batch) * batch.ep * batch.etp * self.hidden
        return np.asarray(batch.element_size_B * gathered * batch.sends_by(ALL_GATHER))

    def passing_B(self, batch: MicroBatch) -> FloatArray:
        """Gradients of rows on their way back to their experts: as they leave, and as they arrive."""
        return self.exchanged_B(batch)

    def exchanged_B(self, batch: MicroBatch) -> FloatArray:
        """Rows of others to its experts, and its own back from theirs."""
        rows = self._rows(batch)
        own = self._routed_tokens(batch) * rows.slots
        there = self._tokens(batch) * rows.slots * busiest_rank(self.spec, rows.skew, batch.ep)
        return np.asarray(batch.element_size_B * (there + own) * self._row_width)

    def products_keep_input(self) -> bool:
        return False  # the router reads it as it is

    # ---- communication ----------------------------------------------------------------------------------------------

    def collectives(self, batch: MicroBatch) -> Iterator[LayerComm]:
        """Rows to their experts and back; the busiest rank's rows prolong it.

        Under tensor parallelism each rank sends its share of the rows, and the ranks that share an expert gather and
        scatter them among themselves; or, where whole experts lie on a GPU, a rank sends the rows of its share of the
        tokens, and nothing else; or all rows of its tokens, and first how many they are. Of other ways to send them
        `plan.dispatch` tells.
        """
        framework, rows = batch.framework, self._rows(batch)
        all_tokens = framework.dispatches_all_tokens & (batch.etp == batch.tp)
        yield from self._all_to_alls(batch, rows, all_tokens)
        if (batch.sends_by(DEEPEP) > 0).any():
            yield from self._once_a_node(batch, rows, all_tokens)
        if (batch.sends_by(ALL_GATHER) > 0).any():
            yield from self._gathered(batch)
        yield from self._among_shards(batch, rows, all_tokens)

    def _rank_skew(self, batch: MicroBatch, rows: ExpertRows) -> FloatArray | None:
        return busiest_rank(self.spec, rows.skew, batch.ep) if (rows.skew > 1).any() else None

    def _sent_B(self, batch: MicroBatch, slots: FloatArray | float, element_B: float) -> FloatArray:
        """Of so many rows of each token of a micro-batch."""
        return np.asarray(element_B * batch.tokens * slots * self._row_width)

    def _all_to_alls(self, batch: MicroBatch, rows: ExpertRows, all_tokens: BoolArray) -> Iterator[LayerComm]:
        """Every row by itself, and how many there are where ranks do not know it."""
        moe, framework, sends = self.spec, batch.framework, batch.sends_by(ALL_TO_ALL)
        launches = 2 * sends * (self._local(batch) if framework.moe.messages_each else 1.0)
        back = self._exchanged(batch, rows, all_tokens, batch.element_size_B)
        there_B = framework.dispatched_B
        once = replace(back, forward_launches=launches, backward_launches=launches, launch="expert_parallel")
        if there_B is None:
            yield replace(once, forward=2 * once.forward, backward=2 * once.backward)
        else:
            yield once
            yield self._exchanged(batch, rows, all_tokens, there_B)
        known = moe.capacity_factor is not None and framework.moe.padding != "never"
        if framework.dispatches_all_tokens and framework.moe.exchanges_counts and not known:
            counts_B = np.full(batch.plans, _COUNT_B * moe.experts)
            counts = (batch.dispatch == ALL_TO_ALL).astype(np.float64)
            yield LayerComm(
                axis="ep", collective="all_to_all", size_B=counts_B, forward=counts, backward=0.0, overlap="never"
            )

    def _exchanged(self, batch: MicroBatch, rows: ExpertRows, all_tokens: BoolArray, element_B: float) -> LayerComm:
        """One all-to-all a pass, of elements of so many bytes."""
        size_B, sends = self._sent_B(batch, rows.slots, element_B), batch.sends_by(ALL_TO_ALL)
        if batch.framework.moe.messages_each:
            messages = self._local(batch)
            size_B, sends = size_B / messages, sends * messages
        size_B = np.where(all_tokens, size_B, size_B / batch.tp)
        skew = self._rank_skew(batch, rows)
        return LayerComm(axis="ep", collective="all_to_all", size_B=size_B, forward=sends, backward=sends, skew=skew)

    def _once_a_node(self, batch: MicroBatch, rows: ExpertRows, all_tokens: BoolArray) -> Iterator[LayerComm]:
        """Rows to nodes and their sums back, the former in 8 bits or not; backward gradients go the same two ways. Of
        experts that drop rows, fewer: what pads them stays where it is."""
        sends, kept = batch.sends_by(DEEPEP), np.minimum(rows.slots / self.spec.top_k, 1.0)
        there_B = batch.framework.dispatched_B or batch.element_size_B
        for element_B in (there_B, batch.element_size_B):
            size_B = self._sent_B(batch, kept, element_B)
            yield LayerComm(
                axis="ep",
                group="experts",
                collective="all_to_all",
                size_B=np.where(all_tokens, size_B, size_B / batch.tp),
                forward=sends,
                backward=sends,
                launch="expert_parallel",
                forward_launches=sends,
                backward_launches=sends,
                skew=self._rank_skew(batch, rows),
                once=self.spec,
            )

    def _gathered(self, batch: MicroBatch) -> Iterator[LayerComm]:
        """All tokens to all ranks with a map of their choices and probabilities, and sums of results back; gradients
        the other way round."""
        sends, ranks = batch.sends_by(ALL_GATHER), batch.ep * batch.etp
        tokens = self._routed_tokens(batch) * ranks
        choices_B = _CHOICE_B * self.spec.experts
        there_B = batch.framework.dispatched_B or batch.element_size_B
        gathered = LayerComm(
            axis="ep",
            group="experts",
            collective="all_gather",
            size_B=tokens * (there_B * self._row_width + choices_B),
            forward=sends,
            backward=sends,
            launch="expert_parallel",
            forward_launches=sends,
            backward_launches=sends,
        )
        yield gathered
        results_B = tokens * batch.element_size_B * self._row_width
        yield replace(gathered, collective="reduce_scatter", size_B=results_B)

    def _among_shards(self, batch: MicroBatch, rows: ExpertRows, all_tokens: BoolArray) -> Iterator[LayerComm]:
        """Rows to all ranks that share an expert, and sums of their results back, behind an all-to-all."""
        if not ((batch.etp > 1) & ~all_tokens).any():
            return
        cut = (batch.etp > 1) & ~all_tokens & (batch.dispatch == ALL_TO_ALL)
        sends = cut & ((batch.ep > 1) | (batch.etp != batch.tp))
        gathered = LayerComm(
            axis="ep",
            group="etp",
            collective="all_gather",
            size_B=self._sent_B(batch, rows.slots, batch.element_size_B) / (batch.tp / batch.etp),
            forward=sends.astype(np.float64),
            backward=sends.astype(np.float64),
            skew=self._rank_skew(batch, rows),
        )
        yield gathered
        yield replace(gathered, collective="reduce_scatter")

    def host_block(self) -> str:
        return "moe_layer"
