"""Memory of one GPU at its peak, term by term.

Parameters, gradients and optimizer states shard as Rajbhandari et al. 2020 (ZeRO, section 5) describe: states over the
data-parallel ranks from stage 1, gradients from 2, parameters from 3; experts over dp cp / ep ranks, the rest over
dp cp. Activations are the tensors that autograd keeps, counted operator by operator for the module that the torch
backend runs (`profiler/backends/torch_native/model.py`); after Korthikanti et al. 2022, section 4, but for flash
attention and for experts. Backends without flash attention keep the scores, and those with dropout its masks, as
counted there. The peak is the largest of three moments:

    head      static + activations + the loss's own tensors        (the backward pass begins)
    backward  static + gradients + the inputs of all layers and one layer's own tensors        (it ends)
    step      static + gradients + what the optimizer allocates for itself

with the gradients and gathered parameters of `held` at each. Left out: fragmentation of the caching allocator, beyond
the share that the calibration gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moemodel.model.architecture.parameters import (
    LayerParameters,
    layer_parameters,
    mlp_products,
    norm_parameters,
    parameters,
)
from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp, Moe
from moemodel.model.core.arrays import FloatArray
from moemodel.model.frameworks.base import Framework, Precision
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.choices import Recompute, Schedule
from moemodel.model.records.calibration import Calibration
from moemodel.model.schedule.pipeline_layout import Stage, distinct_layers
from moemodel.model.step.data_parallel import Units
from moemodel.model.step.layer_operators import expert_rank_skew
from moemodel.model.step.sharded_memory import Held, Parts, held_by_others, held_by_torch

_F = 4.0  # bytes of a float32 element
_I = 8.0  # bytes of an index
_MASK = 1.0  # byte of a dropout mask


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Parameters of one stage that one GPU holds before ZeRO: those shared by all, and those of experts. [P]."""

    dense: FloatArray
    expert: FloatArray

    @property
    def total(self) -> FloatArray:
        return self.dense + self.expert


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Peak of the fullest stage, bytes per GPU, and its terms. [P]."""

    peak_B: FloatArray
    terms_B: dict[str, FloatArray]


class MemoryModel:
    """Memory of an architecture under a batch of plans."""

    def __init__(
        self,
        architecture: Architecture,
        plans: PlanBatch,
        *,
        framework: Framework,
        precision: Precision,
        calibration: Calibration,
    ) -> None:
        self.architecture = architecture
        self.plans = plans
        self.recipe = framework.precisions[precision]
        self.framework = framework
        self.word_B = self.recipe.element_size_B
        self.cut = plans.tp.astype(np.float64) if framework.shards_experts else np.ones(len(plans))  # of an expert
        self.kinds = distinct_layers(architecture)
        overhead = {name: p.value for name, p in calibration.memory.parameters.items()}
        self.context_B = overhead["context"]
        self.workspace_B = overhead["workspace"]
        self.fragmentation = overhead["fragmentation"]
        self.tokens = plans.micro_batch * plans.seq / plans.cp
        self.outer = np.where(plans.sequence_parallel > 0, self.tokens / plans.tp, self.tokens)

    # ---- parameters ---------------------------------------------------------------------------------------------

    def shard(self, stage: Stage) -> Shard:
        """Parameters of a stage on one GPU."""
        tp = self.plans.tp.astype(np.float64)
        dense = np.zeros(len(self.plans))
        expert = np.zeros(len(self.plans))
        for kind, count in zip(self.kinds, stage.layers, strict=True):
            p = layer_parameters(kind, self.architecture.hidden)
            dense += count * _dense(p, tp)
            expert += count * p.routed / (self.cut * self.plans.ep)
        return Shard(dense=dense + self._ends(stage, tp), expert=expert)

    def units(self, stage: Stage) -> Units:
        """The same, as it is exchanged."""
        tp = self.plans.tp.astype(np.float64)
        shard, ends = self.shard(stage), self._ends(stage, tp)
        return Units(
            layers=sum(stage.layers),
            dense=shard.dense - ends,
            expert=shard.expert,
            ends=ends,
            late=self._first_end(stage, tp),
        )

    def _first_end(self, stage: Stage, tp: FloatArray) -> FloatArray:
        """Parameters of the embedding, whose gradients come last."""
        p = parameters(self.architecture)
        return stage.embedding * (p.embedding / tp + p.positions + p.projections / 2)

    def _ends(self, stage: Stage, tp: FloatArray) -> FloatArray:
        a, p = self.architecture, parameters(self.architecture)
        ends = self._first_end(stage, tp)
        if stage.head:
            # a tied head on another stage is a copy of the embedding
            head = p.head if not a.tied else (0 if stage.embedding else p.embedding * a.has_head)
            ends = (
                ends + head / tp + p.projections / 2 + (norm_parameters(a.layers[-1], a.hidden) if a.final_norm else 0)
            )
        return ends

    def states(self, shard: Shard) -> dict[str, FloatArray]:
        """Bytes of parameters and optimizer states of a shard under ZeRO."""
        zero = self.plans.zero_stage
        shared = self._sharded(shard)
        recipe = self.recipe
        whole = zero < (1 if self.framework.data_parallel == "ddp-fsdp2" else 3)  # FSDP2 gathers into memory of its own
        return {
            "parameters": recipe.weight_B * np.where(whole, shard.total, shared),
            "optimizer_states": recipe.state_B * np.where(zero >= 1, shared, shard.total),
            "optimizer_transient": recipe.transient_B * np.where(zero >= 1, shared, shard.total),
        }

    def _sharded(self, shard: Shard) -> FloatArray:
        return np.asarray(shard.dense / (self.plans.dp * self.plans.cp) + shard.expert / self.expert_copies)

    @property
    def expert_copies(self) -> FloatArray:
        """GPUs that hold the same experts."""
        whole = self.plans.tp / self.cut  # tensor-parallel ranks that hold different experts
        return np.asarray(np.maximum(self.plans.dp * self.plans.cp * whole / self.plans.ep, 1))

    def owned(self, shard: Shard) -> FloatArray:
        """Parameters that one GPU updates in the optimizer step."""
        return np.where(self.plans.zero_stage >= 1, self._sharded(shard), shard.total)

    def _held(self, stage: Stage, shard: Shard, several: NDArray[np.bool_]) -> Held:
        """Gradients, and parameters that are gathered."""
        tp = self.plans.tp.astype(np.float64)
        alone = self.expert_copies == 1  # experts that no other rank has are not sharded
        layers = [np.zeros(len(self.plans))]
        for kind, count in zip(self.kinds, stage.layers, strict=True):
            if count:
                p = layer_parameters(kind, self.architecture.hidden)
                layers.append(_dense(p, tp) + np.where(alone, 0.0, p.routed / (self.cut * self.plans.ep)))
        parts = Parts(
            whole=shard.total,
            sharded=self._sharded(shard),
            gathered=shard.dense + np.where(alone, 0.0, shard.expert),
            ends=self._ends(stage, tp),
            layer=np.maximum.reduce(layers),
        )
        held = held_by_torch if self.framework.data_parallel == "ddp-fsdp2" else held_by_others
        return held(
            parts,
            zero=self.plans.zero_stage,
            shared=self.plans.dp * self.plans.cp > 1,
            several=several,
            gradient_B=self.recipe.gradient_B,
            weight_B=self.recipe.weight_B,
        )

    # ---- activations --------------------------------------------------------------------------------------------

    def kept(self, layer: Layer) -> FloatArray:
        """Bytes that one layer keeps for the backward pass of one micro-batch."""
        everything = self._layer_bytes(layer, selective=False)
        selective = self._layer_bytes(layer, selective=True)
        recompute = self.plans.recompute
        return np.where(
            recompute == Recompute.FULL,
            self.word_B * self.outer * self.architecture.hidden,
            np.where(recompute == Recompute.SELECTIVE, selective, everything),
        )

    def _layer_bytes(self, layer: Layer, *, selective: bool) -> FloatArray:
        d = self.architecture.hidden
        kept = np.zeros(len(self.plans))
        for attention in layer.attentions:
            kept += self._norm_bytes(layer, d) + self._attention_bytes(attention, selective=selective)
        kept += self._norm_bytes(layer, d)
        if self.framework.dropout and layer.norm is not None:
            kept += (len(layer.attentions) + 1) * _MASK * self.outer * d
        block = layer.feed_forward
        return kept + (self._moe_bytes(block) if isinstance(block, Moe) else self._mlp_bytes(block, self.tokens))

    def _norm_bytes(self, layer: Layer, width: int) -> FloatArray:
        """Input and output of a norm (the output feeds products), and its statistics."""
        if layer.norm is None:
            return self.word_B * self.tokens * width
        statistics = _F * self.outer * (2 if layer.norm == "layer" else 1)
        return self.word_B * (self.outer + self.tokens) * width + statistics

    def _attention_bytes(self, a: Attention, *, selective: bool) -> FloatArray:
        """Queries, keys, values, output and softmax statistics; with a query/key norm, its inputs as well."""
        tp, t = self.plans.tp, self.tokens
        heads, kv = a.heads / tp, np.maximum(a.kv_heads / tp, 1)
        if a.latent is not None:
            return self._latent_bytes(a, heads, selective=selective)
        q, k = heads * a.head_dim, kv * a.head_dim
        statistics = 0.0 if selective else self._scores_bytes(heads)
        output = self.word_B * t * q
        normed = self.word_B * t * (q + k) if a.qk_norm != "none" else 0.0
        return np.asarray(self.word_B * t * (q + 2 * k) + output + statistics + normed)

    def _scores_bytes(self, heads: FloatArray) -> FloatArray:
        """What the attention core keeps: flash, its statistics; else probabilities, and dropout's mask and output."""
        if self.framework.flash_attention:
            return np.asarray(_F * self.tokens * heads)
        per_score = self.word_B + (_MASK + self.word_B if self.framework.dropout else 0.0)
        return np.asarray(per_score * self.tokens * heads * self.plans.seq)

    def _latent_bytes(self, a: Attention, heads: FloatArray, *, selective: bool) -> FloatArray:
        latent = a.latent
        if latent is None:
            return np.zeros(len(self.plans))
        ranks = 2 * (latent.q_rank or 0) + 2 * latent.kv_rank
        wide = heads * (2 * (a.head_dim + latent.rope_head_dim) + 2 * latent.value_head_dim)
        return np.asarray(
            self.word_B * self.tokens * (ranks + wide) + (0.0 if selective else self._scores_bytes(heads))
        )

    def _mlp_bytes(self, mlp: Mlp, tokens: FloatArray) -> FloatArray:
        """Of each hidden width: gate, its silu, up and their product; or the input and output of an activation."""
        width = mlp.width / self.plans.tp
        per_width = 4 if mlp.gated else (1 if mlp.activation == "relu" else 2)
        extra = (len(mlp_products(mlp, self.architecture.hidden)) - 2) * 2
        return np.asarray(self.word_B * tokens * width * (per_width + extra))

    def _moe_bytes(self, moe: Moe) -> FloatArray:
        d, t = self.architecture.hidden, self.tokens * self.cut / self.plans.tp
        slots = moe.top_k * (moe.capacity_factor or 1.0)
        skew = self.plans.skew if moe.capacity_factor is None else np.ones(len(self.plans))
        rows = t * slots * expert_rank_skew(skew, self.plans.ep.astype(np.float64), moe.experts)
        width = moe.width / self.cut
        routed = self.word_B * rows * (2 * d + (4 if moe.gated else 2) * width)
        router = t * (_F * moe.experts + moe.top_k * (_I + 2 * _F + self.word_B))
        order = 2 * _I * t * slots
        if self.framework.eager_sharding:  # rows that come from other ranks are sorted again
            order = order + np.where(self.plans.ep > 1, 2 * _I * rows, 0.0)
        shared = Mlp(width=moe.shared_width, activation=moe.activation, gated=moe.gated)
        return np.asarray(routed + router + order + (self._mlp_bytes(shared, self.tokens) if moe.shared_width else 0.0))

    def loss_bytes(self) -> FloatArray:
        """Tensors of the loss when its backward pass begins: log-probabilities and two gradients in float32."""
        a = self.architecture
        if not a.has_head:
            return np.zeros(len(self.plans))
        whole = 3 * _F
        # a rank's part of a vocabulary: 16-bit logits, and one float32 tensor that becomes the gradient in place
        parts = self.word_B + _F if self.framework.eager_sharding else whole
        return np.asarray(np.where(self.plans.tp > 1, parts, whole) * self.tokens * a.vocab / self.plans.tp)

    def _losses(self, stage: Stage) -> FloatArray:
        """Of the micro-batch at hand, and the log-probabilities of those that the last stage passed before it."""
        if not stage.head:
            return np.zeros(len(self.plans))
        plans = self.plans
        before = np.where(plans.schedule == Schedule.GPIPE, self._in_flight(stage) - 1, self._put_off(stage))
        kept = before * (self.framework.pipeline == "torch") * _F * self.tokens * self.architecture.vocab / plans.tp
        return np.asarray(self.loss_bytes() + np.where(plans.pp > 1, kept, 0.0) * self.architecture.has_head)

    # ---- peak ---------------------------------------------------------------------------------------------------

    def stage(self, stage: Stage) -> Memory:
        """Peak of one stage."""
        shard = self.shard(stage)
        terms = self.states(shard)
        transient = terms.pop("optimizer_transient")
        flight = self._in_flight(stage)
        held = self._held(stage, shard, (self.plans.micro_batches > 1) | (flight > 1))
        per_micro_batch = np.zeros(len(self.plans))
        working = np.zeros(len(self.plans))
        for kind, count in zip(self.kinds, stage.layers, strict=True):
            if count == 0:
                continue
            kept = self.kept(kind)
            per_micro_batch += count * kept
            # one layer's own tensors in its backward pass: recomputed if they were not kept, and gradients beside
            working = np.maximum(working, self._layer_bytes(kind, selective=False))
        activations = (flight + 0.5 * self._put_off(stage)) * per_micro_batch
        loss = self._losses(stage)
        again = np.where(self.plans.recompute == Recompute.FULL, working, 0.5 * working)
        earlier = activations - per_micro_batch
        none = np.zeros(len(self.plans))
        at_each = {
            "gradients": held.gradients_B,
            "gathered_layers": held.gathered_B,
            "activations": (activations, earlier + again, none),
            "loss": (loss, none, none),
            "optimizer_transient": (none, none, transient),
        }
        worst = np.stack([sum(moment, none) for moment in zip(*at_each.values(), strict=True)]).argmax(axis=0)
        terms |= {name: np.choose(worst, moments) for name, moments in at_each.items()}
        terms["messages"] = self._messages(stage, flight)
        terms["workspace"] = np.full(len(self.plans), self.workspace_B)
        terms["fragmentation"] = np.asarray(self.fragmentation * sum(terms.values()))
        terms["context"] = np.full(len(self.plans), self.context_B)
        return Memory(peak_B=np.asarray(sum(terms.values())), terms_B=terms)

    def _put_off(self, stage: Stage) -> FloatArray:
        """Micro-batches whose weight gradients a zero-bubble schedule puts off; half as much again is kept for them."""
        waiting = np.minimum(stage.first, self.plans.micro_batches)
        return np.where(self.plans.schedule == Schedule.ZERO_BUBBLE, waiting, 0).astype(np.float64)

    def _messages(self, stage: Stage, flight: FloatArray) -> FloatArray:
        """Between stages torch (distributed.pipelining 2.11) keeps a buffer for each message of a step: activations
        received, of which those in flight count as activations, their gradients, and gradients received; what a stage
        sent stays until its backward pass.
        """
        plans = self.plans
        if self.framework.pipeline != "torch" or not (plans.pp > 1).any():
            return np.zeros(len(plans))
        m, virtual = plans.micro_batches, plans.virtual_stages
        arrivals = virtual - float(stage.embedding)  # chunks that something is sent to, and chunks that send something
        departures = virtual - float(stage.head)
        one = self.word_B * self.outer * self.architecture.hidden
        kept = arrivals * (2 * m - flight) + departures * (m + flight)
        return np.where(plans.pp > 1, kept * one, 0.0)

    def _in_flight(self, stage: Stage) -> FloatArray:
        """Micro-batches whose activations a stage holds at once (Narayanan et al. 2021, section 2.2).

        1F1B: those between a stage and the last. Interleaved, in chunks: (v - 1) n + 2 (n - 1 - s) + 1 of v to a stage.
        ZB-H1: as many as the first stage on all, since the others put off weight gradients (Qi et al. 2023, section
        2.1).
        """
        m, pp, v = self.plans.micro_batches, self.plans.pp, self.plans.virtual_stages
        behind = pp - 1 - stage.first
        one_f_one_b = np.where(v > 1, ((v - 1) * pp + 2 * behind + 1) / v, behind + 1)
        schedule = self.plans.schedule
        most = np.where(schedule == Schedule.GPIPE, m, np.where(schedule == Schedule.ZERO_BUBBLE, pp, one_f_one_b))
        return np.minimum(most, m).astype(np.float64)


def fullest(model: MemoryModel, pipeline: Sequence[Stage]) -> Memory:
    """Memory of the fullest class of stages of a pipeline that all plans of the model share."""
    peaks = [model.stage(stage) for stage in pipeline]
    worst = np.stack([peak.peak_B for peak in peaks]).argmax(axis=0)

    def pick(values: list[FloatArray]) -> FloatArray:
        return values[0] if len(values) == 1 else np.asarray(np.choose(worst, values))

    return Memory(
        peak_B=pick([peak.peak_B for peak in peaks]),
        terms_B={name: pick([peak.terms_B[name] for peak in peaks]) for name in peaks[0].terms_B},
    )


def _dense(p: LayerParameters, tp: FloatArray) -> FloatArray:
    """Parameters of a layer on one tensor-parallel rank, without routed experts."""
    return np.asarray((p.attention + p.feed_forward + p.shared_experts) / tp + p.latent + p.norms + p.router)
