"""Calls of operators that one micro-batch, and one optimizer step, make on one GPU.

Blocks (`layers`) say which operators run forward; here each gets its backward passes, what recomputation runs again,
and what happens to parameters beside the layers: copies between shards and whole tensors, accumulation, the optimizer.
All sizes are arrays of length P (plans), so that one call describes the operator in every plan at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from moemodel.model.architecture.spec import Architecture, Layer
from moemodel.model.core.arrays import BoolArray, FloatArray
from moemodel.model.frameworks.base import GATHERED, SCATTERED, Framework, PlainKernels, Precision
from moemodel.model.layers.adapters import trained_operators
from moemodel.model.layers.base import COPY_B, LayerOp, MicroBatch, plain_kernels_of
from moemodel.model.layers.embedding_head import EmbeddingBlock, HeadBlock
from moemodel.model.layers.layer import before_last_product, layer_blocks, saved
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import PASSES, Kind, Pass, Shape, work
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.step.autocast import autocast_operators
from moemodel.model.step.data_parallel import ExchangeCounts
from moemodel.model.step.recomputation import Recomputation

_CAST_B = 6.0  # of an element read in 32 bits and written in 16
# Passes whose products read what is gathered, or give what is scattered: of those that gather forward, gradients of
# inputs are scattered behind gradients of weights, whole
_IN_PARTS = ((Pass.FORWARD, Pass.BACKWARD_INPUT), (Pass.FORWARD,))
_SUM_B = 6.0  # of an element that torch adds: 16 bits, two read and one written
_FLATTENED = 3.0  # copied into one buffer, scaled, and copied back


def gradients_in_ddp_buckets(plans: PlanBatch, framework: Framework) -> BoolArray:
    """Where gradients stay in DDP's buckets from step to step, [P]: not where torch splits backward passes in two."""
    split = (plans.pp > 1) & plans.schedules.splits_backward
    return np.asarray(
        (plans.zero_stage == 0) & (plans.dp * plans.cp > 1) & ~split & (framework.data_parallel == "ddp-fsdp2")
    )


def accumulated_fraction(plans: PlanBatch, framework: Framework) -> FloatArray:
    """Share of the micro-batches whose gradients are added to what is there, [P]; the first one's only where they stay
    in buffers from step to step."""
    m = plans.micro_batches
    stays = gradients_in_ddp_buckets(plans, framework) | framework.fills_gradients
    return np.where(stays, 1.0, (m - 1) / m)


class Workload:
    """Operator calls of every block of an architecture under a batch of plans."""

    def __init__(
        self, architecture: Architecture, plans: PlanBatch, *, framework: Framework, precision: Precision
    ) -> None:
        self.architecture = architecture
        self.plans = plans
        self.framework = framework
        self.batch = MicroBatch.of(plans, framework, precision)
        self._one = np.ones(len(plans))
        self._fused = {Kind(name) for name in framework.fused_kernels}

    # ---- blocks -------------------------------------------------------------------------------------------------

    def layer(self, layer: Layer) -> list[Call]:
        """Calls of one layer: forward, recomputation and backward of one micro-batch."""
        calls = self.passes(layer)
        if not self.plans.recompute.any():
            return calls
        again = Recomputation.of(self.plans, self.architecture, self.framework)
        for (parts, kept), some in self.repeatable(layer).items():
            times = again.times(parts, saved=kept)
            if times.any():
                calls += [replace(call, count=times * call.count) for call in some]
        return calls

    def passes(self, layer: Layer) -> list[Call]:
        """The same without recomputation."""
        return self._with_backward(self._forward(layer))

    def repeatable(self, layer: Layer) -> dict[tuple[tuple[str, ...], bool], list[Call]]:
        """Calls of forward operators as a backward pass runs them again, once each, by the parts of the layer that they
        are of and whether their output is kept where layers run again but for some operators (`Recomputation.times`).
        """
        forward: Sequence[LayerOp] = self._forward(layer)
        # eager products of cast operands save these behind their kernels (torch.autograd.Function, save_for_backward)
        saves_late = self.framework.dropout or (self.batch.recipe.casts and not self.framework.compiled)
        if self.framework.recompute_stops_early and not saves_late:
            forward = before_last_product(forward)
        found: dict[tuple[tuple[str, ...], bool], list[Call]] = {}
        for op, kept in zip(forward, saved(forward), strict=True):
            if op.only_backward or not self._mask(op).any():
                continue
            parts = (*op.parts, "core_attn") if op.attention_core else op.parts
            call = self._call_of(op, op.kind, Pass.FORWARD, op.shape, Phase.BACKWARD)
            found.setdefault((parts, kept), []).append(replace(call, recomputed=True))
        return found

    def behind_router(self, layer: Layer) -> list[Call]:
        """Forward calls of a layer with experts that come behind its router: rows on their way there, experts, rows on
        their way back."""
        return [
            self._call_of(op, op.kind, Pass.FORWARD, op.shape, Phase.FORWARD)
            for op in self._forward(layer)
            if "moe" in op.parts and not (op.only_backward or _chooses(op))
        ]

    def _forward(self, layer: Layer) -> list[LayerOp]:
        """Forward operators of a layer, with what casts their operands, and with adapters."""
        layer_operators = layer_blocks(layer, self.architecture.hidden).operators(self.batch)
        operators = self._autocast(trained_operators(layer_operators, self.batch))
        return list(self._casts(operators) if self.batch.recipe.casts else operators)

    def _autocast(self, operators: Iterable[LayerOp]) -> Iterable[LayerOp]:
        """With the casts of torch.autocast, in any plan that has it."""
        if not self.batch.autocast.any():
            return operators
        return autocast_operators(operators, self.batch)

    def embedding(self) -> list[Call]:
        """Token (and learned position) embedding, and the projection behind it where widths differ."""
        ends = EmbeddingBlock(architecture=self.architecture).operators(self.batch)
        return self._uncast(self._with_backward(trained_operators(ends, self.batch)))

    def head(self) -> list[Call]:
        """Final norm, projection to the vocabulary and loss."""
        ends = HeadBlock(architecture=self.architecture).operators(self.batch)
        return self._uncast(self._with_backward(self._autocast(trained_operators(ends, self.batch))))

    def _uncast(self, calls: list[Call]) -> list[Call]:
        """With products of 16-bit operands, as those of a model's ends are: no framework casts these (Megatron Core,
        whose ColumnParallelLinear stands outside its fp8 context, models/gpt/gpt_model.py; torchtitan, whose filter
        leaves `output` out, float8.py; llm-foundry's tied head)."""
        if not self.batch.recipe.casts:
            return calls
        return [replace(call, uncast=True) if call.kind is Kind.GEMM else call for call in calls]

    def _with_backward(self, operators: Iterable[LayerOp]) -> list[Call]:
        every = list(operators)
        calls = [
            self._call_of(op, op.kind, Pass.FORWARD, op.shape, Phase.FORWARD)
            for op in every
            if not op.only_backward and not (self.framework.forward_only and op.kind is Kind.CROSS_ENTROPY)
        ]
        if self.framework.forward_only:
            return calls
        for op in every:
            for kind, direction, shape in _backward(op):
                calls.append(self._call_of(op, kind, direction, shape, Phase.BACKWARD))
        return calls

    def _casts(self, forward: Iterable[LayerOp]) -> Iterator[LayerOp]:
        """Before every product, its input cast to 8 or 4 bits; backward the gradient of its output.

        In two orders, since tensor cores read 8-bit operands along the depth alone, as copies that move as many bytes
        (`PrecisionRecipe.cast_B`).
        """
        copies, of_shards = self.batch.recipe.cast_B / COPY_B, self._cast_as_shards(self.batch.recipe.cast_B)
        cast_weights = self.batch.recipe.weight_cast_B / COPY_B
        every = list(forward)
        experts = [op for op in every if op.kind is Kind.GROUPED_GEMM]
        for op in every:
            if op.kind is Kind.GROUPED_GEMM:
                yield from self._expert_casts(op, first=op is experts[0], last=op is experts[-1])
            elif op.kind is Kind.GEMM and not _stays_wide(op):
                m, n, k = (np.asarray(size, dtype=np.float64) for size in (op.shape.m, op.shape.n, op.shape.k))
                gathers = op.target in GATHERED and op.target not in self._adapted
                read = of_shards if gathers else copies
                if self.batch.recipe.normed_B is not None and gathers:
                    read = np.asarray(self._cast_as_shards(self.batch.recipe.normed_B))
                if self.framework.compiled and op.grad_fan_in is not None:  # another product's cast serves (cse)
                    read = np.zeros(1)
                weights = n * k * cast_weights if self.framework.casts_weights == "pass" else 0.0
                elements = Shape(m=np.broadcast_to(m * k * read + weights, self._one.shape))
                gradient = Shape(m=m * n * (of_shards if op.target in SCATTERED else copies))
                yield LayerOp(
                    kind=Kind.COPY,
                    shape=elements,
                    copies=(gradient,),
                    attention_core=op.attention_core,
                    parts=op.parts,
                )
            yield op

    def _expert_casts(self, op: LayerOp, *, first: bool, last: bool) -> Iterator[LayerOp]:
        """The same of a product of experts, the first or last of their products or neither: rows forward and their
        gradients backward, each expert's by a kernel of its own, where the one that activates them does not."""
        form, cast_B = self.framework.moe, self.batch.recipe.cast_B
        m, n, k = (np.asarray(size, dtype=np.float64) for size in (op.shape.m, op.shape.n, op.shape.k))
        of_rows = LayerOp(kind=Kind.COPY, shape=Shape(m=m * k * (cast_B / COPY_B)), parts=op.parts)
        of_gradients = replace(of_rows, shape=Shape(m=m * n * (cast_B / COPY_B)), only_backward=True)
        for cast, fused in ((of_rows, form.fuses_casts and not first), (of_gradients, form.fuses_casts and not last)):
            if fused:
                continue
            copies = (cast.shape,) if cast.only_backward else ()
            cycles = np.asarray(cast.shape.m) * COPY_B * form.cast_cycles
            yield replace(cast, copies=copies, sm_cycles=cycles, added_s=op.added_s)

    def _cast_as_shards(self, cast_B: float) -> FloatArray | float:
        """Copies of an element that ranks cast a part of each, in so many bytes, and gather: of all they write another
        order. [P]"""
        reordered_B = self.batch.recipe.reordered_B
        if not self.framework.casts_shards:
            return cast_B / COPY_B
        cut = (self.batch.sequence_parallel * self.batch.is_sharded("tp")) > 0
        return np.where(cut, (cast_B - reordered_B) / self.batch.tp + reordered_B, cast_B) / COPY_B

    def _call_of(self, op: LayerOp, kind: Kind, direction: Pass, shape: Shape, phase: Phase) -> Call:
        """A call that an operator of a layer makes, as the framework runs it."""
        plain = plain_kernels_of(op, self.framework) if kind is op.kind else None
        size_B = None if op.plain else self._fused_B(kind, direction, shape, plain)
        if size_B is not None:
            kind, direction, shape = Kind.COPY, Pass.FORWARD, Shape(m=size_B / COPY_B)
        count = self._mask(op)
        is_whole = op.target in GATHERED and op.target in self._adapted
        if kind is Kind.GEMM and op.target and direction in _IN_PARTS[op.target in GATHERED] and not is_whole:
            parts = self._parts
            shape, count = replace(shape, m=np.asarray(shape.m, dtype=np.float64) / parts), count * parts
        return Call(
            kind=kind,
            direction=direction,
            shape=shape,
            phase=phase,
            count=count,
            load_balance=op.load_balance,
            operand_energy=op.operand_energy * self._energy(plain),
            sm_cycles=op.sm_cycles,
            added_s=op.added_s,
            uncast=self.batch.recipe.casts and kind is Kind.GEMM and _stays_wide(op),
            gating=_gates(op),
        )

    @property
    def _adapted(self) -> tuple[str, ...]:
        """Linear layers beside which adapters read what norms give, in 16 bits."""
        return () if self.framework.lora is None else self.framework.lora.targets

    @cached_property
    def _parts(self) -> FloatArray:
        """Products that stand for one where ranks pass parts of what it reads or gives around behind it: one a rank
        (Transformer Engine, pytorch/module/base.py, initialize_ub, `ring_exchange`, which Megatron-Bridge's
        training/comm_overlap.py asks for; torch, distributed/_symmetric_memory, _pipelined_multi_all_gather_and_consume
        and _pipelined_produce_and_all2all). Left out: that those of several ranks overlap where they begin and end. [P]
        """
        beside = "tp" in self.framework.overlapped and self.batch.sequence_parallel > 0
        return np.where(beside, self.batch.tp, 1.0)

    def _fused_B(self, kind: Kind, direction: Pass, shape: Shape, plain: PlainKernels | None) -> FloatArray | None:
        """Bytes that a fused kernel moves for an operator; None: it is priced as it was measured.

        The least of the operator. A fused loss moves what the framework says of a logit.
        """
        moved_B = self._moved_B(kind, direction, plain)
        if moved_B is not None:
            elements = np.asarray(shape.m, dtype=np.float64) * np.asarray(shape.n, dtype=np.float64)
            return np.asarray(elements * moved_B)
        return work(kind, direction, shape).bytes_B if kind in self._fused else None

    def _energy(self, plain: PlainKernels | None) -> FloatArray | float:
        """Of plain kernels, over that of copies that take as long. [P]"""
        if plain is None:
            return 1.0
        return np.where(self.batch.autocast > 0, plain.under_autocast.energy, plain.energy)

    def _moved_B(self, kind: Kind, direction: Pass, plain: PlainKernels | None) -> FloatArray | float | None:
        """Bytes of an element that the framework says its kernels of an operator move. [P] or of all plans."""
        forward = direction is Pass.FORWARD
        if kind is Kind.CROSS_ENTROPY:
            loss_B = self.framework.fused_loss_B
            return None if loss_B is None else loss_B[not forward]
        if plain is None:
            return None
        cast = plain.under_autocast
        each = (cast.forward_B, plain.forward_B) if forward else (cast.backward_B, plain.backward_B)
        return np.where(self.batch.autocast > 0, *each)

    def _mask(self, op: LayerOp) -> FloatArray:
        return self._one if op.mask is None else op.mask

    # ---- parameters -------------------------------------------------------------------------------------------------

    def accumulate(self, parameters: FloatArray) -> list[Call]:
        """Adding a micro-batch's gradients to those before it (`accumulated_fraction`)."""
        if self.framework.forward_only:
            return []
        count, own_B = accumulated_fraction(self.plans, self.framework), self.framework.sums_B
        if own_B is not None:
            count, parameters = self._one, parameters * (own_B / _SUM_B)
        if self.framework.sums_in_products:  # read and written in place of a 16-bit gradient
            recipe = self.batch.recipe
            fused = self.plans.zero_stage < 3  # else shards are summed behind their exchange
            fused_B = 2 * recipe.gradient_B - recipe.element_size_B
            count, parameters = np.where(fused, 1.0, count), parameters * np.where(fused, fused_B / _SUM_B, 1.0)
        return [_call(Kind.ACCUMULATE, Pass.BACKWARD, Shape(m=parameters), Phase.BACKWARD, count)]

    def gradients(self, held: FloatArray) -> list[Call]:
        """What a step does with so many gradients, whoever updates their parameters."""
        framework, gradient_B = self.framework, self.batch.recipe.gradient_B
        # written where they are filled with zeros, read where they are looked at
        moved_B = framework.gradients_B + (framework.fills_gradients + framework.checks_gradients) * gradient_B
        if self.framework.forward_only or not moved_B:
            return []
        moved = Shape(m=held * (moved_B / COPY_B))
        return [_call(Kind.COPY, Pass.FORWARD, moved, Phase.OPTIMIZER, self._one)]

    def weights(self, layers: FloatArray) -> list[Call]:
        """Casts of so many parameters of layers, once a step, in the first forward pass."""
        moved_B, recipe = self.batch.recipe.weight_cast_B, self.batch.recipe
        stay = self.framework.lora is not None and recipe.kept_cast_B is not None  # frozen, in both orders from then on
        if self.framework.casts_weights != "step" or stay or not recipe.casts or not moved_B:
            return []
        moved, first = Shape(m=layers * (moved_B / COPY_B)), 1.0 / self.plans.micro_batches
        return [_call(Kind.COPY, Pass.FORWARD, moved, Phase.FORWARD, first)]

    def copies(
        self,
        layers: FloatArray,
        ends: FloatArray,
        counts: ExchangeCounts,
        reduced: FloatArray | None = None,
        *,
        owned: FloatArray,
        lone: FloatArray,
    ) -> list[Call]:
        """Parameters and gradients on their way between shards and whole tensors, per micro-batch.

        DDP scales the gradients in its buckets as often as it reduces them. FSDP2 gathers into one buffer and copies
        the parameters out of it, and copies gradients into one that it scatters; float32 shards it casts on their way
        there. Others copy them into one buffer, scale it, and copy them back (`flattened`).

        Args:
            layers, ends: parameters of a stage's layers, and of embedding and head, that are gathered.
            reduced: of all these, those that have gradients; None: all.
            counts: how often they are exchanged in a step.
            owned: parameters that this GPU updates; `lone` those that no other holds, and that FSDP copies (`_lone`).
        """
        plans, scattered = self.plans, self.framework.scattered_B / COPY_B
        shared = (plans.dp * plans.cp > 1) / plans.micro_batches
        if self.framework.forward_only:
            return []
        if self.framework.data_parallel == "distributed-optimizer":
            return []
        calls = self._lone(lone, counts) if lone.any() else []
        if not shared.any():
            return calls
        cast = (owned - lone) * (_CAST_B / COPY_B) * (self.framework.float32_shards * (plans.zero_stage >= 1))
        inner, whole = Shape(m=layers + cast), Shape(m=layers + ends + cast)
        gradients = Shape(m=layers + ends) if reduced is None else Shape(m=reduced)
        if self.framework.data_parallel == "flattened":
            return [_call(Kind.COPY, Pass.FORWARD, gradients, Phase.BACKWARD, _FLATTENED * shared * counts.reductions)]
        return [
            *calls,
            _call(Kind.COPY, Pass.FORWARD, whole, Phase.FORWARD, shared * counts.gathers_forward),
            _call(Kind.COPY, Pass.FORWARD, gradients, Phase.BACKWARD, shared * counts.reductions * scattered),
            _call(Kind.COPY, Pass.FORWARD, inner, Phase.BACKWARD, shared * counts.gathers_backward),
        ]

    def _lone(self, parameters: FloatArray, counts: ExchangeCounts) -> list[Call]:
        """What FSDP2 does with parameters that it shards over this rank alone: casts (6) and copies them (4) where it
        would gather them, casts their gradients, copies them in float32 (8) and divides them (8) where it would scatter
        them (torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py, foreach_reduce; as traced on an H200)."""
        each = 1.0 / self.plans.micro_batches
        gathered, scattered = (
            Shape(m=parameters * (moved_B / COPY_B)) for moved_B in (_CAST_B + 4.0, self.framework.scattered_B + 16.0)
        )
        return [
            _call(Kind.COPY, Pass.FORWARD, gathered, Phase.FORWARD, each * counts.gathers_forward),
            _call(Kind.COPY, Pass.FORWARD, scattered, Phase.BACKWARD, each * counts.reductions),
            _call(Kind.COPY, Pass.FORWARD, gathered, Phase.BACKWARD, each * counts.gathers_backward),
        ]

    def optimizer(self, owned: FloatArray) -> list[Call]:
        """One step over the parameters that this GPU owns: norm and clip of their gradients, and the update.

        What is measured of an update casts gradients to float32 and weights back, 12 bytes a parameter; where both are
        float32 (`float32_shards`) it does not, and norm (4) and clip (8) of the gradients take their place.
        """
        if self.framework.forward_only:
            return []
        kind = Kind.ADAMW_MIXED if self.batch.recipe.master_weights else Kind.ADAMW
        on_gpu = self._one if self.framework.offload is None else self._one - self.framework.offload.optimizer
        norm = _call(Kind.GRAD_NORM, Pass.STEP, Shape(m=owned), Phase.OPTIMIZER, self._one)
        update = _call(kind, Pass.STEP, Shape(m=owned), Phase.OPTIMIZER, on_gpu * self.batch.recipe.update_share)
        calls = [update] if self.framework.float32_shards else [norm, update]
        sharded = self.framework.sharded_optimizer_B * (self.plans.zero_stage >= 1)
        more_B = np.asarray(self.framework.optimizer_B + sharded)
        if more_B.any():
            more = Shape(m=owned * (more_B / COPY_B))
            calls.append(_call(Kind.COPY, Pass.FORWARD, more, Phase.OPTIMIZER, on_gpu))
        kept = gradients_in_ddp_buckets(self.plans, self.framework).astype(np.float64)
        if kept.any():  # filled with zeros: half the bytes of a copy
            calls.append(_call(Kind.COPY, Pass.FORWARD, Shape(m=owned / 2), Phase.OPTIMIZER, kept))
        return calls


def _backward(op: LayerOp) -> Iterator[tuple[Kind, Pass, Shape]]:
    """What runs for an operator in a backward pass."""
    passes = PASSES[op.kind] if op.backward is None else op.backward
    yield from ((op.kind, direction, op.shape) for direction in passes if direction is not Pass.FORWARD)
    if op.grad_fan_in is not None:
        yield Kind.RESIDUAL_ADD, Pass.BACKWARD, op.grad_fan_in
    yield from ((Kind.COPY, Pass.FORWARD, elements) for elements in op.copies)
    if op.bias:
        yield Kind.BIAS, Pass.BACKWARD, Shape(m=op.shape.m, n=op.shape.n)


def _call(kind: Kind, direction: Pass, shape: Shape, phase: Phase, count: FloatArray) -> Call:
    return Call(kind=kind, direction=direction, shape=shape, phase=phase, count=count)


def _chooses(op: LayerOp) -> bool:
    """Whether an operator is the router's own."""
    return op.kind is Kind.ROUTER or (op.kind is Kind.GEMM and op.gating)


def _stays_wide(op: LayerOp) -> bool:
    """Whether a layer's product is of 16-bit operands though others are cast: a router's (Megatron Core,
    moe/moe_utils.py, router_gating_linear; torchtitan's filter), and those inside attention."""
    return op.attention_core or op.gating


def _gates(op: LayerOp) -> bool:
    return op.gating or op.kind in (Kind.ROUTER, Kind.PERMUTE, Kind.UNPERMUTE)
