"""What one micro-batch makes one GPU do: an architecture and a plan's degrees become operator calls with shapes.

Blocks are the units that a pipeline stage is built of: each distinct layer, the embedding, the head. All sizes are
arrays of length P (plans), so that one call describes the operator in every plan at once.

Symbols: T tokens of a micro-batch on one GPU (micro_batch x seq / cp), D hidden, R = T top_k rows of (token, expert).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from moemodel.model.architecture.parameters import mlp_products
from moemodel.model.architecture.spec import Architecture, Attention, Latent, Layer, Mlp, Moe
from moemodel.model.core.arrays import FloatArray
from moemodel.model.frameworks.base import Framework, Precision
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import PASSES, Kind, Pass, Shape
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.choices import Recompute, Schedule

# Tensors of bf16 elements that elementwise kernels of Megatron-LM 2.x read and write; a dropout mask is half of one.
_SOFTMAX, _SOFTMAX_BACKWARD = 2.0, 3.0  # scale, mask and softmax in one kernel
_DROPOUT = 2.5
_BIAS = 2.0  # a bias added in place of the product's epilogue, since dropout comes behind it
_LAYOUT = 2.0  # a tensor copied into another order
# The same softmax where the fused kernel cannot run: to float32, scale, mask, softmax, back to 16 bits; and backward
_SOFTMAX_SLOW, _SOFTMAX_SLOW_BACKWARD = (3.0, 4.0, 4.5, 4.0, 3.0), (3.0, 6.0, 4.5, 4.0, 3.0)
_SOFTMAX_PLAIN, _SOFTMAX_PLAIN_BACKWARD = (2.0, 2.0), (2.0, 3.0)  # mask filled in, softmax; and backward
# What tensor parallelism adds or puts in place of one kernel, in `profiler/parallel`; a float32 element is two of bf16.
# Cross-entropy: to float32, maximum, shift, exponential, sum, division; and backward scale, to 16 bits. Those forward,
# half of them along rows, reach 1 / 1.4 of a copy's bandwidth (two models on two H100, measured for this project, 2026)
_CUT_LOSS, _CUT_LOSS_BACKWARD = 1.4 * (3.0 + 2.0 + 4.0 + 4.0 + 2.0 + 4.0), 4.0 + 3.0
# Norms of all queries and of all keys: squares; two scalings, to 16 bits. Backward: float32 gradients, scaled; their
# products with the input, summed; two scaled terms, their difference, to 16 bits; the weights' products, summed
_CUT_NORM, _CUT_NORM_BACKWARD = 1.0 + 3.0 + 4.0 + 3.0, 3.0 + 4.0 + 5.0 + 2.0 + 4.0 + 3.0 + 6.0 + 3.0 + 3.0 + 5.0 + 2.0
_SOFTMAX_BATCHES = 4  # the fused kernel takes micro_batch x heads in fours (fused_softmax.py, is_kernel_available)
_SOFTMAX_LONGEST = 2048  # and sequences up to this


@dataclass(frozen=True, kw_only=True)
class _Forward:
    """A forward operator and what its backward adds beyond its own passes.

    `bias`: the gradient of a bias. `joins`: its input feeds other operators too, whose gradients are added up.
    `copies`: elementwise kernels of its backward, each as the copy that moves as many bytes. `core`: part of the
    attention core, which selective recomputation runs again. `share`: in which plans it runs (1, or 0), None for all.
    `mean_share`: as in `Call`.
    """

    kind: Kind
    shape: Shape
    bias: bool = False
    joins: Shape | None = None
    copies: tuple[Shape, ...] = ()
    core: bool = False
    share: FloatArray | None = None
    mean_share: FloatArray | float = 1.0


def expert_rank_skew(skew: FloatArray, ep: FloatArray, experts: int) -> FloatArray:
    """Rows of the busiest expert-parallel rank over the mean.

    A rank sums experts / ep loads. If loads vary like draws from a normal distribution that add up to all rows, a
    rank's deviate by sqrt((ep - 1) / (experts - 1)) of an expert's, and the largest of n such that add up to nothing is
    m(n) sqrt(n / (n - 1)) deviations, m(n) the mean of the largest of n normal ones (Blom 1958, section 6.9):
    `1 + (skew - 1) sqrt(ep / experts) m(ep) / m(experts)`, exact at ep = 1 and at ep = experts.
    Leaves out routers that load neighbouring experts together.
    """
    if experts < 2:
        return np.ones(np.broadcast(skew, ep).shape)
    degrees, place = np.unique(ep, return_inverse=True)
    largest = np.array([_largest_of(n) for n in degrees])[place.reshape(np.shape(ep))]
    return np.asarray(1 + (skew - 1) * np.sqrt(ep / experts) * largest / _largest_of(experts))


@cache
def _largest_of(count: float) -> float:
    """Mean of the largest of so many draws from a standard normal distribution: Blom's approximation, within 5 %."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


def in_buckets(plans: PlanBatch, framework: Framework) -> NDArray[np.bool_]:
    """Where gradients stay in DDP's buckets from step to step, [P]: not where torch splits backward passes in two."""
    split = (plans.pp > 1) & (plans.schedule == Schedule.ZERO_BUBBLE)
    return np.asarray(
        (plans.zero_stage == 0) & (plans.dp * plans.cp > 1) & ~split & (framework.data_parallel == "ddp-fsdp2")
    )


def added(plans: PlanBatch, framework: Framework) -> FloatArray:
    """Share of the micro-batches whose gradients are added to what is there; the first one's only in buckets, [P]."""
    m = plans.micro_batches
    return np.where(in_buckets(plans, framework), 1.0, (m - 1) / m)


class Workload:
    """Operator calls of every block of an architecture under a batch of plans."""

    def __init__(
        self, architecture: Architecture, plans: PlanBatch, *, framework: Framework, precision: Precision
    ) -> None:
        self.architecture = architecture
        self.plans = plans
        self.framework = framework
        self.recipe = framework.precisions[precision]
        self.tp = plans.tp.astype(np.float64)
        self.cp = plans.cp.astype(np.float64)
        self.ep = plans.ep.astype(np.float64)
        self.tokens = plans.micro_batch * plans.seq / self.cp
        # tokens that norms and residuals of one GPU see: sequence parallelism spreads them over tp
        self.outer_tokens = np.where(plans.sequence_parallel > 0, self.tokens / self.tp, self.tokens)
        self._one = np.ones(len(plans))

    # ---- blocks -------------------------------------------------------------------------------------------------

    def layer(self, layer: Layer) -> list[Call]:
        """Calls of one layer: forward, recomputation and backward of one micro-batch."""
        forward = list(
            self._casts(self._layer_forward(layer)) if self.recipe.matmul_dtype == "fp8" else self._layer_forward(layer)
        )
        again = np.where(self.plans.recompute == Recompute.FULL, 1.0, 0.0)
        core = np.where(self.plans.recompute >= Recompute.SELECTIVE, 1.0, 0.0)
        calls = self._with_backward(forward)
        for op in forward:
            count = (core if op.core else again) * self._share(op)
            if count.any():
                calls.append(_call(op.kind, Pass.FORWARD, op.shape, Phase.BACKWARD, count, op.mean_share))
        return calls

    def embedding(self) -> list[Call]:
        """Token (and learned position) embedding, and the projection behind it where widths differ."""
        a = self.architecture
        if not a.has_head:
            return []
        forward = [_Forward(kind=Kind.EMBEDDING, shape=Shape(m=self.tokens, n=a.embedding_width, k=a.vocab / self.tp))]
        if self._cuts("tp"):  # tokens whose rows lie elsewhere, filled with zeros
            forward.append(_elementwise(self.tokens * a.embedding_width, 2.0, (2.0,), share=self._cut("tp")))
        if a.learned_positions:
            forward.append(_Forward(kind=Kind.EMBEDDING, shape=Shape(m=self.tokens, n=a.hidden, k=a.learned_positions)))
            forward.append(_Forward(kind=Kind.RESIDUAL_ADD, shape=Shape(m=self.tokens, n=a.hidden)))
        if a.embedding_width != a.hidden:
            forward.append(self._product(self.tokens, a.hidden, a.embedding_width))
        return self._with_backward(forward)

    def head(self) -> list[Call]:
        """Final norm, projection to the vocabulary and loss."""
        a = self.architecture
        forward: list[_Forward] = []
        if a.final_norm and a.layers[-1].norm is not None:
            forward.append(self._norm(a.layers[-1], self.outer_tokens, a.hidden))
        if a.has_head:
            if a.embedding_width != a.hidden:
                forward.append(self._product(self.tokens, a.embedding_width, a.hidden))
            forward.append(self._product(self.tokens, a.vocab / self.tp, a.embedding_width))
            forward += self._loss(a.vocab / self.tp)
        return self._with_backward(forward)

    def accumulate(self, parameters: FloatArray) -> list[Call]:
        """Adding a micro-batch's gradients to those before it (`added`)."""
        count = added(self.plans, self.framework)
        return [_call(Kind.ACCUMULATE, Pass.BACKWARD, Shape(m=parameters), Phase.BACKWARD, count)]

    def copies(self, layers: FloatArray, ends: FloatArray) -> list[Call]:
        """Parameters and gradients on their way between shards and whole tensors, per micro-batch.

        DDP scales the gradients in its buckets once a step. FSDP2 gathers into one buffer and copies the parameters out
        of it, and copies gradients into one that it scatters, as often as it gathers and scatters (`step_exchange`).

        Args:
            layers, ends: parameters of a stage's layers, and of embedding and head.
        """
        plans = self.plans
        if self.framework.data_parallel != "ddp-fsdp2" or not (plans.dp * plans.cp > 1).any():
            return []
        zero, once = plans.zero_stage, 1 / plans.micro_batches
        shared = np.where(plans.dp * plans.cp > 1, 1.0, 0.0)
        gathered = shared * np.choose(zero, [0.0, once, once, 1.0])
        again = shared * np.where(zero == 3, 1.0, 0.0)
        reduced = shared * np.where(zero >= 2, 1.0, once)
        inner, whole = Shape(m=layers), Shape(m=layers + ends)
        return [
            _call(Kind.COPY, Pass.FORWARD, whole, Phase.FORWARD, gathered),
            _call(Kind.COPY, Pass.FORWARD, whole, Phase.BACKWARD, reduced),
            _call(Kind.COPY, Pass.FORWARD, inner, Phase.BACKWARD, again),
        ]

    def optimizer(self, owned: FloatArray) -> list[Call]:
        """One step over the parameters that this GPU owns: norm and clip of their gradients, and the update."""
        kind = Kind.ADAMW_MIXED if self.recipe.master_weights else Kind.ADAMW
        calls = [
            _call(Kind.GRAD_NORM, Pass.STEP, Shape(m=owned), Phase.OPTIMIZER, self._one),
            _call(kind, Pass.STEP, Shape(m=owned), Phase.OPTIMIZER, self._one),
        ]
        kept = in_buckets(self.plans, self.framework).astype(np.float64)
        if kept.any():  # filled with zeros: half the bytes of a copy
            calls.append(_call(Kind.COPY, Pass.FORWARD, Shape(m=owned / 2), Phase.OPTIMIZER, kept))
        return calls

    # ---- pieces -------------------------------------------------------------------------------------------------

    def _cut(self, degree: str) -> FloatArray:
        """In which plans a degree cuts the model."""
        return np.asarray(getattr(self, degree) > 1, dtype=np.float64)

    def _cuts(self, degree: str) -> bool:
        """Whether cutting by a degree adds plain kernels, in any plan."""
        return self.framework.eager_sharding and bool(self._cut(degree).any())

    def _loss(self, width: FloatArray) -> Iterator[_Forward]:
        """Over the whole vocabulary one operator; over a rank's part of it, kernels one after another."""
        whole = _Forward(kind=Kind.CROSS_ENTROPY, shape=Shape(m=self.tokens, n=width))
        if not self._cuts("tp"):
            yield whole
            return
        cut = self._cut("tp")
        yield replace(whole, share=1 - cut)
        yield _elementwise(self.tokens * width, _CUT_LOSS, (_CUT_LOSS_BACKWARD,), share=cut)

    def _with_backward(self, forward: list[_Forward]) -> list[Call]:
        calls = [
            _call(op.kind, Pass.FORWARD, op.shape, Phase.FORWARD, self._share(op), op.mean_share) for op in forward
        ]
        for op in forward:
            backward: list[tuple[Kind, Pass, Shape]] = [
                (op.kind, direction, op.shape) for direction in PASSES[op.kind] if direction is not Pass.FORWARD
            ]
            if op.joins is not None:
                backward.append((Kind.RESIDUAL_ADD, Pass.BACKWARD, op.joins))
            backward += [(Kind.COPY, Pass.FORWARD, elements) for elements in op.copies]
            if op.bias:
                backward.append((Kind.BIAS, Pass.BACKWARD, Shape(m=op.shape.m, n=op.shape.n)))
            calls += [_call(*call, Phase.BACKWARD, self._share(op), op.mean_share) for call in backward]
        return calls

    def _casts(self, forward: Iterator[_Forward]) -> Iterator[_Forward]:
        """Before every product, its input cast to 8 bits; backward the gradient of its output. Weights stay cast.

        In two orders, since tensor cores read 8-bit operands along the depth alone: of an element 2 bytes read and 2
        written, as by a copy.
        """
        for op in forward:
            if op.kind in (Kind.GEMM, Kind.GROUPED_GEMM):
                m, n, k = (np.asarray(size, dtype=np.float64) for size in (op.shape.m, op.shape.n, op.shape.k))
                elements = np.broadcast_to(m * k, self._one.shape)
                yield _Forward(kind=Kind.COPY, shape=Shape(m=elements), copies=(Shape(m=m * n),), core=op.core)
            yield op

    def _share(self, op: _Forward) -> FloatArray:
        return self._one if op.share is None else op.share

    def _layer_forward(self, layer: Layer) -> Iterator[_Forward]:
        width = self.architecture.hidden
        for attention in layer.attentions:
            if layer.norm is not None:
                yield self._norm(layer, self.outer_tokens, width)
            yield from self._attention(attention)
            if layer.norm is not None:
                yield from self._residual(self.outer_tokens, width)
        if layer.norm is not None:
            yield self._norm(layer, self.outer_tokens, width)
        if isinstance(layer.feed_forward, Moe):
            yield from self._moe(layer.feed_forward)
        else:
            yield from self._mlp(layer.feed_forward, self.tokens)
        if layer.norm is not None:
            yield from self._residual(self.outer_tokens, width)

    def _residual(self, tokens: FloatArray, width: float) -> Iterator[_Forward]:
        """The end of a block: its output, after bias and dropout if there is one, added to its input."""
        if self.framework.dropout:
            yield _elementwise(tokens * width, _BIAS, ())
            yield _elementwise(tokens * width, _DROPOUT, (_DROPOUT,))
        yield _Forward(kind=Kind.RESIDUAL_ADD, shape=Shape(m=tokens, n=width))

    def _norm(self, layer: Layer, tokens: FloatArray, width: float | FloatArray) -> _Forward:
        kind = Kind.LAYER_NORM if layer.norm == "layer" else Kind.RMS_NORM
        return _Forward(kind=kind, shape=Shape(m=tokens, n=width))

    def _product(
        self, m: FloatArray, n: float | FloatArray, k: float | FloatArray, *, bias: bool = False, joins: bool = False
    ) -> _Forward:
        """A linear layer; `joins`: another one reads the same input."""
        return _Forward(kind=Kind.GEMM, shape=Shape(m=m, n=n, k=k), bias=bias, joins=Shape(m=m, n=k) if joins else None)

    def _attention(self, a: Attention) -> Iterator[_Forward]:
        if a.latent is not None:
            yield from self._latent_projections(a, a.latent)
            value_width = a.latent.value_head_dim
            head_dim = a.head_dim + a.latent.rope_head_dim
        else:
            yield from self._projections(a)
            value_width = head_dim = a.head_dim
        heads = a.heads / self.tp
        seq = self.plans.seq
        if self.framework.flash_attention:
            core = Shape(
                batch=self.plans.micro_batch,
                heads=heads / self.cp,
                kv_heads=np.maximum(a.kv_heads / self.tp, 1.0) / self.cp,
                seq=seq,
                head_dim=head_dim,
            )
            kind = Kind.ATTENTION if a.causal and not a.cross else Kind.ATTENTION_FULL
            yield _Forward(kind=kind, shape=core, core=True)
        else:
            yield from self._unfused_attention(heads, head_dim, value_width)
        yield self._product(self.tokens, self.architecture.hidden, heads * value_width, bias=a.bias_out)

    def _unfused_attention(self, heads: FloatArray, head_dim: int, value_width: int) -> Iterator[_Forward]:
        """All scores, masked or not: their product, softmax, dropout, and the product with the values."""
        seq = self.plans.seq.astype(np.float64)
        batch = self.plans.micro_batch * heads / self.cp
        scores, values = batch * seq**2, batch * seq * value_width
        yield _Forward(kind=Kind.GEMM, shape=Shape(batch=batch, m=seq, n=seq, k=head_dim), core=True)
        yield from self._softmax(scores, batch, seq)
        if self.framework.dropout:
            yield _elementwise(scores, _DROPOUT, (_DROPOUT,), core=True)
        yield _Forward(kind=Kind.GEMM, shape=Shape(batch=batch, m=seq, n=value_width, k=seq), core=True)
        yield _elementwise(values, _LAYOUT, (_LAYOUT,), core=True)

    def _softmax(self, scores: FloatArray, batch: FloatArray, seq: FloatArray) -> Iterator[_Forward]:
        if self.framework.softmax == "plain":
            for there, back in zip(_SOFTMAX_PLAIN, _SOFTMAX_PLAIN_BACKWARD, strict=True):
                yield _elementwise(scores, there, (back,), core=True)
            return
        fused = ((batch % _SOFTMAX_BATCHES == 0) & (seq <= _SOFTMAX_LONGEST)).astype(np.float64)
        yield _elementwise(scores, _SOFTMAX, (_SOFTMAX_BACKWARD,), core=True, share=fused)
        for there, back in zip(_SOFTMAX_SLOW, _SOFTMAX_SLOW_BACKWARD, strict=True):
            yield _elementwise(scores, there, (back,), core=True, share=1 - fused)

    def _projections(self, a: Attention) -> Iterator[_Forward]:
        width = self.architecture.hidden
        q = a.heads * a.head_dim / self.tp
        kv_heads = np.maximum(a.kv_heads / self.tp, 1.0)
        kv = kv_heads * a.head_dim
        for index, n in enumerate((q + 2 * kv,) if self.framework.fused_qkv else (q, kv, kv)):
            yield self._product(self.tokens, n, width, bias=a.bias_qkv, joins=index > 0)
        heads = a.heads / self.tp
        if a.qk_norm == "full":
            yield from self._wide_norms(q, kv)
        elif a.qk_norm == "per_head":
            yield _Forward(kind=Kind.RMS_NORM, shape=Shape(m=self.tokens * heads, n=a.head_dim))
            yield _Forward(kind=Kind.RMS_NORM, shape=Shape(m=self.tokens * kv_heads, n=a.head_dim))
        if a.rotary:
            yield _Forward(kind=Kind.ROTARY, shape=Shape(m=self.tokens, n=q + kv))

    def _wide_norms(self, q: FloatArray, kv: FloatArray) -> Iterator[_Forward]:
        """Over all queries and over all keys; where tensor-parallel ranks share them, kernels one after another."""
        share = 1 - self._cut("tp") if self._cuts("tp") else None
        for n in (q, kv):
            yield _Forward(kind=Kind.RMS_NORM, shape=Shape(m=self.tokens, n=n), share=share)
        if share is not None:
            yield _elementwise(self.tokens * (q + kv), _CUT_NORM, (_CUT_NORM_BACKWARD,), share=1 - share)

    def _latent_projections(self, a: Attention, latent: Latent) -> Iterator[_Forward]:
        """Multi-head latent attention (DeepSeek-V2, eq. 9-19): down- and up-projections, norms between."""
        width, rope = self.architecture.hidden, latent.rope_head_dim
        heads = a.heads / self.tp
        q_width = heads * (a.head_dim + rope)
        if latent.q_rank is None:
            yield self._product(self.tokens, q_width, width)
        else:
            yield self._product(self.tokens, latent.q_rank, width)
            yield _Forward(kind=Kind.RMS_NORM, shape=Shape(m=self.tokens, n=latent.q_rank))
            yield self._product(self.tokens, q_width, latent.q_rank)
        yield self._product(self.tokens, latent.kv_rank + rope, width)
        yield _Forward(kind=Kind.RMS_NORM, shape=Shape(m=self.tokens, n=latent.kv_rank))
        yield self._product(self.tokens, heads * (a.head_dim + latent.value_head_dim), latent.kv_rank)
        yield _Forward(kind=Kind.ROTARY, shape=Shape(m=self.tokens, n=(heads + 1) * rope))

    def _mlp(self, mlp: Mlp, tokens: FloatArray) -> Iterator[_Forward]:
        first, *middle, last = mlp_products(mlp, self.architecture.hidden)
        f = mlp.width / self.tp
        up = first[1] / self.tp
        split = mlp.gated and not self.framework.fused_gate_up
        for index, n in enumerate((up / 2, up / 2) if split else (up,)):
            yield self._product(tokens, n, first[0], bias=mlp.bias, joins=index > 0)
        gate = Kind.SWIGLU if split else Kind.SWIGLU_PACKED
        yield _Forward(kind=gate if mlp.gated else _ACTIVATION[mlp.activation], shape=Shape(m=tokens, n=f))
        for inputs, outputs in middle:
            yield self._product(tokens, outputs / self.tp, inputs, bias=mlp.bias)
            yield _Forward(kind=_ACTIVATION[mlp.activation], shape=Shape(m=tokens, n=outputs / self.tp))
        yield self._product(tokens, last[1], last[0] / self.tp, bias=mlp.bias)

    def _moe(self, moe: Moe) -> Iterator[_Forward]:
        d = self.architecture.hidden
        slots = moe.top_k * (moe.capacity_factor or 1.0)
        dropless = moe.capacity_factor is None
        skew = self.plans.skew if dropless else self._one
        tokens = self.tokens if self.framework.shards_experts else self.tokens / self.tp
        rows = tokens * slots * expert_rank_skew(skew, self.ep, moe.experts)
        local = moe.experts / self.ep
        routed = Shape(m=tokens, n=d, experts=moe.experts, top_k=slots)
        yield self._product(tokens, moe.experts, d)
        yield _Forward(kind=Kind.ROUTER, shape=Shape(m=tokens, experts=moe.experts, top_k=moe.top_k))
        yield _Forward(kind=Kind.PERMUTE, shape=routed, joins=Shape(m=tokens, n=d))
        busiest = expert_rank_skew(skew, self.ep, moe.experts)
        if self._cuts("ep"):  # rows of several ranks, sorted by expert again, and back into their order
            again = Shape(m=rows, n=d, experts=local, top_k=1)
            yield _Forward(kind=Kind.PERMUTE, shape=again, share=self._cut("ep"), mean_share=1 / busiest)
        for op in self._experts(moe, Shape(m=rows, experts=local, skew=skew)):
            yield replace(op, mean_share=1 / busiest)
        if self._cuts("ep"):
            unsorted = _elementwise(rows * d, 2.0, (2.0,), share=self._cut("ep"))
            yield replace(unsorted, mean_share=1 / busiest)
        yield _Forward(kind=Kind.UNPERMUTE, shape=routed)
        if moe.shared_width:
            shared = Mlp(width=moe.shared_width, activation=moe.activation, gated=moe.gated)
            yield from self._mlp(shared, self.tokens)
            yield _Forward(kind=Kind.RESIDUAL_ADD, shape=Shape(m=self.tokens, n=d))

    def _experts(self, moe: Moe, rows: Shape) -> Iterator[_Forward]:
        """The products of the experts that a GPU holds, over all their rows."""
        *inner, last = mlp_products(moe, self.architecture.hidden)
        cut = self.tp if self.framework.shards_experts else self._one
        for position, (inputs, outputs) in enumerate(inner):
            depth = inputs if position == 0 else inputs / cut
            yield _Forward(kind=Kind.GROUPED_GEMM, shape=replace(rows, n=outputs / cut, k=depth))
            activation = Kind.SWIGLU_PACKED if moe.gated and position == 0 else _ACTIVATION[moe.activation]
            yield _Forward(kind=activation, shape=Shape(m=rows.m, n=moe.width / cut))
        yield _Forward(kind=Kind.GROUPED_GEMM, shape=replace(rows, n=last[1], k=last[0] / cut))


_ACTIVATION: dict[str, Kind] = {"gelu": Kind.GELU, "relu": Kind.RELU, "silu": Kind.GELU}


def _elementwise(
    elements: FloatArray,
    tensors: float,
    backward: tuple[float, ...],
    *,
    core: bool = False,
    share: FloatArray | None = None,
) -> _Forward:
    """An elementwise kernel over so many tensors, and those of its backward: copies that move as many bytes."""
    copies = tuple(Shape(m=elements * passes / 2) for passes in backward)
    return _Forward(kind=Kind.COPY, shape=Shape(m=elements * tensors / 2), copies=copies, core=core, share=share)


def _call(
    kind: Kind,
    direction: Pass,
    shape: Shape,
    phase: Phase,
    count: FloatArray,
    mean_share: FloatArray | float = 1.0,
) -> Call:
    return Call(kind=kind, direction=direction, shape=shape, phase=phase, count=count, mean_share=mean_share)
