"""What every block of a model gives: its parameters, operators, kept activations and communication on one GPU.

A block knows its shape (`architecture.spec`) and what one GPU sees of a micro-batch (`MicroBatch`); it knows no times.
All sizes are arrays of length P (plans), so that one call describes a block in every plan at once. A new kind of block
is a file beside these, and a line in `registry`.

Symbols: T tokens of a micro-batch on one GPU (micro_batch x seq / cp), D hidden, R = T top_k rows of (token, expert).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from moemodel.model.architecture.spec import Moe
from moemodel.model.core.arrays import FloatArray, IntArray, at_rows
from moemodel.model.frameworks.base import AdaptedLinear, Framework, PlainKernels, Precision, PrecisionRecipe
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.dispatch import ALL_TO_ALL, OVERLAPPED
from moemodel.model.plan.mesh import ParallelMesh

CollectiveName = Literal["all_reduce", "reduce_scatter", "all_gather", "all_to_all", "send_recv"]

COPY_B = 4.0  # of an element that a copy moves: 16 bits read and written


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one GPU sees of a micro-batch, in each of P plans.

    Attributes:
        framework, recipe: what trains, and the bytes and types of its precision.
        tp, cp, ep: degrees of parallelism; `etp` the one that cuts an expert.
        sequences: of the micro-batch; `seq` tokens each.
        read_seq: tokens of a sequence that cross attention reads; of a decoder whose sequences are as long, `seq`.
        decoder_seq: of a decoder whose sequences are not; 0: they are, or these are that decoder's.
        tokens: T.
        sequence_parallel_tokens: that norms and residuals see: sequence parallelism spreads them over tp.
        sequence_parallel: whether it does, 1 or 0.
        skew: rows of the busiest expert over the mean.
        dispatch: how rows get to experts (`plan.dispatch`).
        paired: they do so behind the computation of another micro-batch, since the plan says so, 1 or 0.
        autocast: parameters are float32 ones that nobody shards, of which torch.autocast makes 16-bit copies, 1 or 0.
    """

    framework: Framework
    recipe: PrecisionRecipe
    tp: FloatArray
    cp: FloatArray
    ep: FloatArray
    etp: FloatArray
    sequences: FloatArray
    seq: FloatArray
    read_seq: FloatArray
    decoder_seq: FloatArray
    tokens: FloatArray
    sequence_parallel_tokens: FloatArray
    sequence_parallel: FloatArray
    skew: FloatArray
    dispatch: FloatArray
    paired: FloatArray
    autocast: FloatArray

    @classmethod
    def of(cls, plans: PlanBatch, framework: Framework, precision: Precision) -> MicroBatch:
        """Of a batch of plans."""
        mesh = ParallelMesh.of(plans, shards_experts=framework.shards_experts)
        tp, cp = plans.tp.astype(np.float64), plans.cp.astype(np.float64)
        tokens = plans.micro_batch * plans.seq / cp
        shares = plans.sequence_parallel > 0
        return cls(
            framework=framework,
            recipe=framework.precisions[precision],
            tp=tp,
            cp=cp,
            ep=plans.ep.astype(np.float64),
            etp=mesh.etp.astype(np.float64),
            sequences=plans.micro_batch.astype(np.float64),
            seq=plans.seq.astype(np.float64),
            read_seq=plans.seq.astype(np.float64),
            decoder_seq=plans.decoder_seq.astype(np.float64),
            tokens=tokens,
            sequence_parallel_tokens=np.where(shares, tokens / tp, tokens),
            sequence_parallel=shares.astype(np.float64),
            skew=plans.skew,
            dispatch=plans.dispatch.astype(np.float64),
            paired=(plans.dispatch_overlap == OVERLAPPED).astype(np.float64),
            autocast=((plans.zero_stage == 0) & framework.float32_shards).astype(np.float64),
        )

    def take(self, rows: IntArray) -> MicroBatch:
        """Those of the plans at these rows."""
        columns = vars(self) | {
            name: at_rows(value, rows) for name, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        return MicroBatch(**columns)

    @property
    def shape_columns(self) -> tuple[FloatArray, ...]:
        """What tells apart plans whose micro-batches are different work, recomputation left aside. [P] each."""
        degrees = (self.tp, self.cp, self.ep, self.etp)
        forms = (self.sequence_parallel, self.skew, self.dispatch, self.autocast)
        return (*degrees, self.sequences, self.seq, self.decoder_seq, *forms)

    def of_decoder(self) -> MicroBatch:
        """What a decoder behind an encoder sees of it."""
        if not self.decoder_seq.any():
            return self
        share = np.where(self.decoder_seq > 0, self.decoder_seq / self.seq, 1.0)
        return replace(
            self,
            seq=share * self.seq,
            tokens=share * self.tokens,
            sequence_parallel_tokens=share * self.sequence_parallel_tokens,
            decoder_seq=np.zeros_like(self.seq),
        )

    @property
    def read_tokens(self) -> FloatArray:
        """That cross attention reads. [P]"""
        return np.asarray(self.tokens * (self.read_seq / self.seq))

    @property
    def plans(self) -> int:
        """P."""
        return len(self.tp)

    @property
    def element_size_B(self) -> float:
        """Bytes of an element of parameters and activations."""
        return self.recipe.element_size_B

    @property
    def stream_B(self) -> FloatArray:
        """Bytes of an element of the residual stream, which is float32 where autocast has eager layers cast what
        products read (`step.autocast`). [P]"""
        in_float32 = self.autocast * (not self.framework.compiled)
        return np.where(in_float32 > 0, 4.0, self.element_size_B)

    @property
    def product_copy_B(self) -> float:
        """Bytes of an element that a product keeps of what its maker keeps too: of its cast copy, or none; frozen ones
        keep none (transformer_engine/pytorch/module/linear.py, backward_needs_input)."""
        return self.recipe.product_input_B if self.recipe.casts and self.framework.lora is None else 0.0

    def has_adapter(self, target: AdaptedLinear | Literal[""] | None) -> bool:
        """Whether a linear layer has an adapter; "" and None: one that may have none."""
        lora = self.framework.lora
        return lora is not None and target in lora.targets

    @property
    def copies_adapter_inputs(self) -> bool:
        """Whether each adapter keeps an input of its own: what dropout leaves of it, or a cast."""
        lora = self.framework.lora
        return lora is not None and (lora.dropout or self.framework.casts_adapters)

    def keeps_input_of(self, target: AdaptedLinear | None) -> bool:
        """Whether a product's input is kept, for a gradient of its weights or of an adapter's; None: other operators
        read it backward too. Adapters that have an input of their own keep that in its place."""
        if self.framework.lora is None or target is None:
            return True
        return self.has_adapter(target) and not self.copies_adapter_inputs

    def is_sharded(self, degree: Literal["tp", "ep"]) -> FloatArray:
        """In which plans a degree cuts the model, 1 or 0. [P]"""
        values: FloatArray = self.tp if degree == "tp" else self.ep
        return np.asarray(values > 1, dtype=np.float64)

    def sends_by(self, dispatch: int) -> FloatArray:
        """In which plans rows are sent to experts so (`plan.dispatch`), 1 or 0. [P]"""
        return np.asarray((self.ep > 1) & (self.dispatch == dispatch), dtype=np.float64)

    def sorts_spread_rows(self, experts: FloatArray) -> FloatArray | None:
        """Where rows of several ranks are sorted by expert again, 1 or 0; None: nowhere. [P]

        By plain kernels wherever experts are spread; by one of its own where a GPU holds several of them (`experts`)
        and rows came by all-to-all (Megatron, moe/token_dispatcher.py, sort_chunks_by_idxs).
        """
        framework, spread = self.framework, self.sends_by(ALL_TO_ALL)
        if framework.moe.sorts_several:
            spread = spread * (experts > 1)
        elif not (framework.moe.sorts_again and framework.eager_sharding):
            return None
        return np.asarray(spread) if spread.any() else None

    def adds_kernels(self, degree: Literal["tp", "ep"]) -> bool:
        """Whether cutting by a degree adds plain kernels, in any plan."""
        return self.framework.eager_sharding and bool(self.is_sharded(degree).any())


@dataclass(frozen=True, kw_only=True)
class Component:
    """Parameters of a part of a block, on all ranks together.

    Attributes:
        name: for a reader.
        count: of them.
        axis: over which ranks they are shared out: those of tensor parallelism, those of expert (and expert tensor)
            parallelism, or none.
        active: of them, those that one token passes.
    """

    name: str
    count: int
    axis: Literal["tp", "experts", "none"]
    active: int

    @classmethod
    def of(cls, name: str, count: int, axis: Literal["tp", "none"]) -> Component:
        """Parameters that every token passes."""
        return cls(name=name, count=count, axis=axis, active=count)


@dataclass(frozen=True, kw_only=True)
class LayerOp:
    """A forward operator and what its backward adds beyond its own passes.

    Attributes:
        kind, shape: of the operator.
        bias: its backward sums the gradient of a bias.
        grad_fan_in: its input feeds other operators too, whose gradients are added up.
        copies: elementwise kernels of its backward, each as the copy that moves as many bytes.
        attention_core: part of the core of attention.
        parts: of a layer (`plan.recompute.PARTS`), whose recomputation runs it again.
        mask: how often it runs in each plan, 1 or 0 where nothing repeats it; None: once in all.
        load_balance: work of the mean rank over that of the busiest, whose shape this is.
        operand_energy: of its work, forward and backward, over that of random numbers and of a kernel of its kind.
        backward: its passes that run backward; None: all that its kind has.
        only_backward: it runs in backward passes alone, where its `copies` and `grad_fan_in` do.
        gating: of a router, or of what moves rows to experts and back.
        plain: none of the framework's fused kernels does it.
        of_stream: a norm of the residual stream, and not of what a product gave.
        sm_cycles: of all SMs together, that its kernel takes behind what it moves; backward where it runs there alone.
            [P]
        added_s: that its kernels take behind the rest in each pass, whatever the clock. [P]
        target: which linear layer it is, that may have an adapter (`layers.adapters`); "": none such.
        duplicated: every tensor-parallel rank has all its weights, and gives it its own tokens alone.
    """

    kind: Kind
    shape: Shape
    bias: bool = False
    grad_fan_in: Shape | None = None
    copies: tuple[Shape, ...] = ()
    attention_core: bool = False
    parts: tuple[str, ...] = ()
    mask: FloatArray | None = None
    load_balance: FloatArray | float = 1.0
    operand_energy: FloatArray | float = 1.0
    backward: tuple[Pass, ...] | None = None
    only_backward: bool = False
    gating: bool = False
    plain: bool = False
    of_stream: bool = False
    sm_cycles: FloatArray | float = 0.0
    added_s: FloatArray | float = 0.0
    target: AdaptedLinear | Literal[""] = ""
    duplicated: bool = False


def plain_kernels_of(op: LayerOp, framework: Framework) -> PlainKernels | None:
    """Kernels, one after another, that a framework says it runs of an operator; None: it runs torch's."""
    if op.kind is Kind.RMS_NORM:
        return framework.plain("rms_norm" if op.of_stream else "head_norm")
    return framework.plain("rotary") if op.kind is Kind.ROTARY else None


@dataclass(frozen=True, kw_only=True)
class HostReadings:
    """Where the host cannot run ahead of the device in a micro-batch. [P] each.

    Attributes:
        reads: of a forward pass, that it waits for a number that the device makes.
        drains_forward, drains_backward: that it lets the device run dry before it queues the next kernel.
    """

    reads: FloatArray
    drains_forward: FloatArray
    drains_backward: FloatArray


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Tensors that a block keeps for its backward pass.

    Attributes:
        size_B: of one micro-batch, [P].
        parts: of a layer (`plan.recompute.PARTS`), whose recomputation frees them.
    """

    size_B: FloatArray
    parts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LayerComm:
    """A collective of a block over one axis of the mesh.

    Attributes:
        axis: whose communication it is; `group` whose ranks take part, where they are another axis's.
        collective: of `network.collectives.Collective`, by its name.
        size_B: of the full tensor, [P].
        forward, backward: how often, in a pass of either direction (recomputation not counted). [P] or the same in all.
        overlap: `framework`: where the framework overlaps the axis; `always`, or `never`; `products`: beside a third of
            the layer's products in that pass.
        launch: what the host queues for it; None: nothing of its own.
        forward_launches, backward_launches: how many of these.
        skew: of an all-to-all: rows of the busiest rank over the mean. [P]
        once: whose rows go to a node once; `size_B` is then of one copy of each, of one rank.
        small_sums: float32 sums of few bytes, each a collective of its own, that `size_B` is of.
    """

    axis: Literal["tp", "cp", "ep"]
    collective: CollectiveName
    size_B: FloatArray
    forward: FloatArray | float = 1.0
    backward: FloatArray | float = 1.0
    overlap: Literal["framework", "always", "never", "products"] = "framework"
    launch: Literal["tensor_parallel", "sequence_parallel", "expert_parallel"] | None = None
    forward_launches: FloatArray | float = 0.0
    backward_launches: FloatArray | float = 0.0
    skew: FloatArray | None = None
    once: Moe | None = None
    group: Literal["etp", "experts", "cp_a2a", "cp_ring"] | None = None
    small_sums: int = 0


class Block(ABC):
    """A part of a layer with a residual around it, in a model of width `hidden`."""

    hidden: int
    parts: ClassVar[tuple[str, ...]] = ()  # of a layer (`plan.recompute.PARTS`) that it is

    @abstractmethod
    def parameters(self) -> Iterator[Component]:
        """Its parameters, by part."""

    @abstractmethod
    def parameter_tensors(self) -> int:
        """How many tensors hold them where queries, keys, values, gate and up-projection are apart."""

    def joined_tensors(self, framework: Framework) -> int:  # noqa: ARG002 - of those blocks that have such ones
        """Of these so many fewer where a framework joins some: queries, keys and values; gate and up-projection."""
        return 0

    def more_tensors(self, batch: MicroBatch) -> FloatArray:
        """Tensors beyond these of a framework that keeps some apart, on one GPU. [P]"""
        return np.zeros(batch.plans)

    @abstractmethod
    def matmul_parameters(self) -> int:
        """Weights that a token is multiplied with: 2 FLOPs each, forward (Kaplan et al. 2020, section 2.1)."""

    def read_parameters(self) -> int:
        """Of these, those that an encoder's tokens are multiplied with, behind a decoder's."""
        return 0

    def core_flops(self, seq: FloatArray) -> FloatArray:
        """FLOPs of attention's core on one sequence of so many tokens, forward. [P]"""
        return np.zeros_like(seq)

    @abstractmethod
    def operators(self, batch: MicroBatch) -> Iterator[LayerOp]:
        """Its forward operators, in order."""

    @abstractmethod
    def kept(self, batch: MicroBatch) -> Iterator[Kept]:
        """What it keeps for the backward pass of one micro-batch, beside its input."""

    def core_kept(self, batch: MicroBatch) -> Iterator[Kept]:  # noqa: ARG002 - a block may have none
        """Of that, the output of attention's core, and what the core keeps beside it."""
        yield from ()

    def exchanged_B(self, batch: MicroBatch) -> FloatArray:
        """Bytes of the rows that all-to-alls bring it in a forward pass. [P]"""
        return np.zeros(batch.plans)

    def passing_B(self, batch: MicroBatch) -> FloatArray:
        """Bytes of gradients inside it at most, beyond the tensors that its backward pass has freed by then. [P]"""
        return np.zeros(batch.plans)

    def first_target(self) -> AdaptedLinear | None:
        """The linear layer that reads its input alone, if an adapter may stand beside it; None: others read it too."""
        return None

    def buffer_B(self, batch: MicroBatch) -> FloatArray:
        """Bytes that it works in and leaves to the next layer. [P]"""
        return np.zeros(batch.plans)

    def products_keep_input(self) -> bool:
        """Whether products alone read its input, which they may keep in 8 bits."""
        return True

    def collectives(self, batch: MicroBatch) -> Iterator[LayerComm]:  # noqa: ARG002 - a block may have none
        """Its communication beside the reduction of its output over tensor-parallel ranks."""
        yield from ()

    def host_block(self) -> str | None:
        """Which measured block of `host_overhead` a layer with this one is like; None: others of its layer say."""
        return None

    def host_variant(self) -> str | None:
        """What that block is called with this one beside it; None: nothing special."""
        return None

    def more_launches(self, batch: MicroBatch) -> tuple[FloatArray, FloatArray]:
        """Kernels that the host queues for it, forward and backward, beyond those of the measured block. [P] each."""
        return np.zeros(batch.plans), np.zeros(batch.plans)

    def expert_launches(self, batch: MicroBatch) -> tuple[FloatArray, FloatArray]:
        """Beside these, what it queues for each of its experts, and so on: no calls of operators. [P] each."""
        return np.zeros(batch.plans), np.zeros(batch.plans)

    def forward_kernels(self, batch: MicroBatch) -> FloatArray | None:  # noqa: ARG002 - of those blocks that say so
        """All that the host queues for a forward pass of it alone; None: a kernel for each operator. [P]"""
        return None

    def host_waits(self, batch: MicroBatch) -> HostReadings:
        """Where the host waits for the device."""
        none = np.zeros(batch.plans)
        return HostReadings(reads=none, drains_forward=none, drains_backward=none)


def linear(
    m: FloatArray,
    n: float | FloatArray,
    k: float | FloatArray,
    *,
    bias: bool = False,
    shares_input: bool = False,
    target: AdaptedLinear | Literal[""] = "",
) -> LayerOp:
    """A linear layer of m rows from k to n features; `shares_input`: another one reads the same input; `target`: which
    it is, if it may have an adapter."""
    fan_in = Shape(m=m, n=k) if shares_input else None
    return LayerOp(kind=Kind.GEMM, shape=Shape(m=m, n=n, k=k), bias=bias, grad_fan_in=fan_in, target=target)


def elementwise(
    elements: FloatArray,
    tensors: float,
    backward: tuple[float, ...],
    *,
    attention_core: bool = False,
    mask: FloatArray | None = None,
) -> LayerOp:
    """An elementwise kernel over so many tensors, and those of its backward: copies that move as many bytes."""
    copies = tuple(Shape(m=elements * passes / 2) for passes in backward)
    shape = Shape(m=elements * tensors / 2)
    return LayerOp(kind=Kind.COPY, shape=shape, copies=copies, attention_core=attention_core, mask=mask)


def tensor_parallel_reduction(
    batch: MicroBatch, size_B: FloatArray, gathered: float = 1.0, *, first: AdaptedLinear | None = None
) -> Iterator[LayerComm]:
    """The sum of a block's output over tensor-parallel ranks, and of its input's gradient backward.

    An all-reduce each way (Shoeybi et al. 2019, section 3); under sequence parallelism a reduce-scatter and an
    all-gather, the same bytes (Korthikanti et al. 2022, section 4.2.2), or `gathered` times as many. What the `first`
    product reads is gathered beforehand, and whole, where an adapter reads it, too (transformer_engine/pytorch/module/
    layernorm_linear.py, ub_overlap_ag_fprop, with_quantized_all_gather: not with return_layernorm_output).
    """
    whole, shares = 1 - batch.sequence_parallel, batch.sequence_parallel
    yield tensor_parallel(batch, "all_reduce", size_B, forward=whole, backward=whole)
    adapted = batch.has_adapter(first)
    read_B = size_B if adapted else gathered * size_B
    gather = tensor_parallel(batch, "all_gather", read_B, forward=shares, backward=0.0)
    yield replace(gather, overlap="never") if adapted else gather
    yield tensor_parallel(batch, "all_gather", gathered * size_B, forward=0.0, backward=shares)
    if not batch.framework.gathers_inputs_again:
        yield tensor_parallel(batch, "reduce_scatter", size_B, forward=shares, backward=shares)
        return
    yield tensor_parallel(batch, "reduce_scatter", size_B, forward=shares, backward=0.0)
    scattered = tensor_parallel(batch, "reduce_scatter", size_B, forward=0.0, backward=shares)
    yield replace(scattered, overlap="products")
    yield from gathered_again(batch, size_B)


def gathered_again(batch: MicroBatch, size_B: FloatArray) -> Iterator[LayerComm]:
    """The input of a product under sequence parallelism, where a backward pass gathers it once more."""
    if batch.framework.gathers_inputs_again:
        again = tensor_parallel(
            batch, "all_gather", size_B, forward=0.0, backward=np.asarray(batch.sequence_parallel, dtype=np.float64)
        )
        yield replace(again, overlap="products")


def tensor_parallel(
    batch: MicroBatch,
    collective: Literal["all_reduce", "reduce_scatter", "all_gather", "all_to_all"],
    size_B: FloatArray,
    *,
    forward: FloatArray | float,
    backward: FloatArray | float,
) -> LayerComm:
    """A collective over tensor-parallel ranks, which the host queues by itself."""
    cut = batch.is_sharded("tp")
    return LayerComm(
        axis="tp",
        collective=collective,
        size_B=size_B,
        forward=forward,
        backward=backward,
        launch="tensor_parallel" if collective in ("all_reduce", "all_to_all") else "sequence_parallel",
        forward_launches=cut * forward,
        backward_launches=cut * backward,
    )
