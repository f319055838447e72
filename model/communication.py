"""What the ranks of a plan say to each other, and how long it takes.

Ranks are numbered with tensor parallelism innermost, then context, data and pipeline parallelism (Megatron's order);
experts spread over the data and context ranks.

Per layer and micro-batch, with T tokens of a GPU, D hidden, bf16:
    tp   two all-reduces of T D forward and two backward (Shoeybi et al. 2019, section 3), as many again when layers
         are recomputed; under sequence parallelism a reduce-scatter and an all-gather, the same bytes
    ep   two all-to-alls of the routed rows forward, two backward, two when recomputed; under tensor parallelism each
         rank sends its share of the rows, and the ranks that share an expert gather and scatter them among themselves
         (or, where whole experts lie on a GPU, a rank sends the rows of its share of the tokens, and nothing else)
    cp   keys and values around a ring forward, and with their gradients backward (Liu et al. 2023); behind attention
    pp   one activation forward, one gradient backward at each stage boundary, each as slow as the slowest boundary
Per step, where "behind" says which computation may hide it:
    ZeRO 0   all-reduce of the gradients, behind the last backward pass
    ZeRO 1   reduce-scatter of the gradients, behind the last backward pass; all-gather of the parameters, exposed
             unless the framework runs it behind the next forward pass, which counts as behind the last backward pass
    ZeRO 2   reduce-scatter layer by layer in every micro-batch, behind the backward passes; all-gather, exposed
    ZeRO 3   the same, and parameters gathered layer by layer before every forward and backward pass, behind both
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moemodel.model.architecture import Architecture, Attention, Layer, Moe
from moemodel.model.memory import Shard
from moemodel.model.network import Collective, Network, Route
from moemodel.model.plan import PlanBatch, Recompute
from moemodel.model.workload import expert_rank_skew

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class StepExchange:
    """Communication over data-parallel ranks in one step, s: what may hide behind computation, and the rest. [P]."""

    hideable_s: FloatArray
    exposed_s: FloatArray

    def __add__(self, other: StepExchange) -> StepExchange:
        return StepExchange(hideable_s=self.hideable_s + other.hideable_s, exposed_s=self.exposed_s + other.exposed_s)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Communication of a block in one micro-batch. [P].

    Attributes:
        exposed_s: time that nothing hides.
        hideable_s: time that may hide behind computation.
        calls: collectives that the host queues.
    """

    exposed_s: FloatArray
    hideable_s: FloatArray
    calls: FloatArray

    def __add__(self, other: Exchange) -> Exchange:
        return Exchange(
            exposed_s=self.exposed_s + other.exposed_s,
            hideable_s=self.hideable_s + other.hideable_s,
            calls=self.calls + other.calls,
        )

    def times(self, factor: FloatArray | float) -> Exchange:
        """That many of it."""
        return Exchange(
            exposed_s=np.asarray(self.exposed_s * factor),
            hideable_s=np.asarray(self.hideable_s * factor),
            calls=np.asarray(self.calls * factor),
        )


class Communication:
    """Times of the collectives of a batch of plans."""

    def __init__(self, architecture: Architecture, plans: PlanBatch, network: Network, gradient_B: float) -> None:
        self.architecture = architecture
        self.plans = plans
        self.network = network
        self.gradient_B = gradient_B
        self.traffic = network.traffic
        self.word_B = network.traffic.word_B
        self.tokens = plans.micro_batch * plans.seq / plans.cp
        p, one = plans, np.ones_like(plans.tp)
        self._tp = self._group(p.tp, one)
        self._cp = self._group(p.cp, p.tp)
        self._ep = self._group(p.ep, one if self.traffic.whole_experts else p.tp)
        self._data = self._group(p.dp * p.cp, p.tp)
        if self.traffic.whole_experts:
            self._expert_data = self._group(np.maximum(p.dp * p.cp * p.tp // p.ep, 1), p.ep)
        else:
            self._expert_data = self._group(np.maximum(p.dp * p.cp // p.ep, 1), p.tp * p.ep)
        self._pp = self._group(p.pp, p.tp * p.cp * p.dp)
        self._again = (plans.recompute == Recompute.FULL).astype(np.float64)
        self._reductions = np.where(
            p.tp > 1, np.where(p.sequence_parallel > 0, 2.0, 1.0), 0.0
        )  # collectives of `_activation`
        self._exchanges = np.where(p.ep > 1, 2.0, 0.0)  # and of `_experts`

    def _group(self, ranks: NDArray[np.int64], stride: NDArray[np.int64]) -> tuple[NDArray[np.int64], Route]:
        return ranks, self.network.route(ranks, stride)

    def _time(self, collective: Collective, size_B: FloatArray, group: tuple[NDArray[np.int64], Route]) -> FloatArray:
        return self.network.time_s(collective, size_B, *group)

    def none(self) -> Exchange:
        zeros = np.zeros(len(self.plans))
        return Exchange(exposed_s=zeros, hideable_s=zeros, calls=zeros)

    def layer(self, layer: Layer) -> tuple[Exchange, Exchange]:
        """Forward and backward of one layer."""
        blocks = len(layer.attentions) + 1
        parts = {"tp": blocks * self._activation(self.tokens)}
        if isinstance(layer.feed_forward, Moe):
            parts["ep"] = self._experts(layer.feed_forward)
        shown, hideable = self._split(parts)
        ring = np.zeros(len(self.plans))
        for attention in layer.attentions:
            ring = ring + self._ring(attention)
        calls = blocks * self._reductions + (self._exchanges if isinstance(layer.feed_forward, Moe) else 0.0)
        calls = calls + len(layer.attentions) * (self.plans.cp - 1)
        return (
            Exchange(exposed_s=shown, hideable_s=hideable + ring, calls=calls),
            Exchange(
                exposed_s=shown * (1 + self._again),
                hideable_s=hideable * (1 + self._again) + ring * (2 + self._again),
                calls=calls * (1 + self._again),
            ),
        )

    def _split(self, parts: dict[str, FloatArray]) -> tuple[FloatArray, FloatArray]:
        """Times of exchanges summed: those that nothing hides, those that run behind computation."""
        shown, hideable = np.zeros(len(self.plans)), np.zeros(len(self.plans))
        for name, time_s in parts.items():
            if name in self.traffic.behind:
                hideable = hideable + time_s
            else:
                shown = shown + time_s
        return shown, hideable

    def _activation(self, tokens: FloatArray) -> FloatArray:
        """One all-reduce over tensor-parallel ranks, or the pair that replaces it under sequence parallelism."""
        size = self.word_B * tokens * self.architecture.hidden
        whole = self._time(Collective.ALL_REDUCE, size, self._tp)
        pair = self._time(Collective.REDUCE_SCATTER, size, self._tp) + self._time(Collective.ALL_GATHER, size, self._tp)
        return np.where(self.plans.sequence_parallel > 0, pair, whole)

    def _experts(self, moe: Moe) -> FloatArray:
        """Rows to their experts and back; the busiest rank's rows set the time."""
        slots = moe.top_k * (moe.capacity_factor or 1.0)
        skew = expert_rank_skew(self.plans.skew, self.plans.ep.astype(np.float64), moe.experts)
        rows = self.tokens * slots * (1.0 if moe.capacity_factor else skew)
        size = self.word_B * rows * self.architecture.hidden
        once = self._across_share(moe.top_k) if self.traffic.once_a_node else 1.0
        ranks, route = self._ep
        sent = 2 * self.network.time_s(Collective.ALL_TO_ALL, size / self.plans.tp, ranks, route, across_share=once)
        if self.traffic.whole_experts:
            return np.where(self.plans.ep > 1, sent, 0.0)
        shared = self._time(Collective.ALL_GATHER, size, self._tp) + self._time(
            Collective.REDUCE_SCATTER, size, self._tp
        )
        return np.where(self.plans.ep > 1, sent + shared, 0.0)

    def _across_share(self, top_k: int) -> FloatArray:
        """Nodes that a token's experts lie on over its experts, if they fall evenly: `N (1 - (1 - 1/N)^k) / k`."""
        ranks, route = self._ep
        nodes = np.maximum(ranks / route.local_G, 1.0)
        if self.traffic.most_nodes is not None:
            nodes = np.minimum(nodes, self.traffic.most_nodes)
        return np.asarray(nodes * (1 - (1 - 1 / nodes) ** top_k) / top_k)

    def _ring(self, a: Attention) -> FloatArray:
        """Keys and values of a GPU's tokens, passed on cp - 1 times."""
        width = 2 * np.maximum(a.kv_heads / self.plans.tp, 1) * a.head_dim
        if a.latent is not None:
            width = a.latent.kv_rank + a.latent.rope_head_dim + 0 * width
        return (self.plans.cp - 1) * self._time(Collective.SEND_RECV, self.word_B * self.tokens * width, self._cp)

    def embedding(self) -> Exchange:
        """Partial embeddings of the vocabulary's shards, summed."""
        zeros = np.zeros(len(self.plans))
        summed = self._activation(self.tokens) if self.architecture.has_head else zeros
        calls = self._reductions if self.architecture.has_head else zeros
        shown, hideable = self._split({"tp": summed})
        return Exchange(exposed_s=shown, hideable_s=hideable, calls=calls)

    def boundary(self) -> Exchange:
        """An activation or gradient over a stage boundary, for one micro-batch."""
        tokens = np.where(self.plans.sequence_parallel > 0, self.tokens / self.plans.tp, self.tokens)
        sent = self._time(Collective.SEND_RECV, self.word_B * tokens * self.architecture.hidden, self._pp)
        # interleaving crosses every boundary once for each virtual stage
        calls = np.where(self.plans.pp > 1, self.plans.virtual_stages, 0.0)
        shown, hideable = self._split({"pp": sent * self.plans.virtual_stages})
        return Exchange(exposed_s=shown, hideable_s=hideable, calls=calls)

    def tied(self, vocab_parameters: float) -> FloatArray:
        """Gradients of a tied embedding, summed between the first and the last stage, once a step."""
        size = self.gradient_B * vocab_parameters / self.plans.tp
        ranks, route = self._pp
        return self._time(Collective.ALL_REDUCE, size, (np.minimum(ranks, 2), route))

    def gradients(self, shard: Shard, layers: int) -> StepExchange:
        """Gradients, and from ZeRO 1 parameters, over the data-parallel ranks in a step of a stage of `layers`."""
        dense = self._over(shard.dense, self._data, layers)
        return dense + self._over(shard.expert, self._expert_data, layers)

    def _over(self, parameters: FloatArray, group: tuple[NDArray[np.int64], Route], layers: int) -> StepExchange:
        units = max(layers, 1)  # FSDP exchanges a layer at a time
        zero, m = self.plans.zero_stage, self.plans.micro_batches
        gradients_B, weights_B = self.gradient_B * parameters, self.word_B * parameters
        reduced = self._time(Collective.ALL_REDUCE, gradients_B, group)
        scattered = self._time(Collective.REDUCE_SCATTER, gradients_B, group)
        gathered = self._time(Collective.ALL_GATHER, weights_B, group)
        scattered_each = units * self._time(Collective.REDUCE_SCATTER, gradients_B / units, group)
        gathered_each = units * self._time(Collective.ALL_GATHER, weights_B / units, group)
        hideable = np.choose(zero, [reduced, scattered, m * scattered_each, m * (scattered_each + 2 * gathered_each)])
        exposed = np.where((zero == 1) | (zero == 2), gathered, 0.0)
        if "dp" in self.traffic.behind:
            hideable, exposed = hideable + exposed, np.zeros_like(exposed)
        return StepExchange(
            hideable_s=np.where(parameters > 0, hideable, 0.0), exposed_s=np.where(parameters > 0, exposed, 0.0)
        )
