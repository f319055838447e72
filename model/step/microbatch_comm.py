"""What the ranks of a plan say to each other, and how long it takes.

Per layer and micro-batch, with T tokens of a GPU, D hidden, words of the framework:
    tp   two all-reduces of T D forward and two backward (Shoeybi et al. 2019, section 3), as many again when layers
         are recomputed; under sequence parallelism a reduce-scatter and an all-gather, the same bytes
    ep   two all-to-alls of the routed rows forward, two backward, two when recomputed; under tensor parallelism each
         rank sends its share of the rows, and the ranks that share an expert gather and scatter them among themselves
         (or, where whole experts lie on a GPU, a rank sends the rows of its share of the tokens, and nothing else; or,
         in `profiler/parallel`, all rows of its tokens, and first how many they are)
    cp   keys and values around a ring forward, and with their gradients backward (Liu et al. 2023); behind attention
At the ends of the model and for tp > 1, whose ranks share the vocabulary (Shoeybi et al. 2019, section 3):
    embedding   its output, reduced forward; under sequence parallelism scattered, and its gradient gathered
    head        the gradient of its input, reduced backward; under sequence parallelism the input gathered, the
                gradient scattered; of each token a float32 maximum, then the target's logit and the sum of
                exponentials, forward
Between stages one activation forward and one gradient backward for each micro-batch, each as slow as the slowest
boundary. How torch.distributed.pipelining sends them:
    1F1B    behind every pass a stage sends and receives together, and waits for both
    GPipe   a stage asks for a message when it needs it, and waits
    else    messages run behind other micro-batches; those of the first one's way there and the last one's back remain
Over data-parallel ranks, once a step or a pass: `step_exchange`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from moemodel.model.architecture.spec import Architecture, Attention, Layer, Moe
from moemodel.model.core.arrays import FloatArray
from moemodel.model.frameworks.base import Framework, Precision
from moemodel.model.network.collectives import Collective, Network
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.choices import Recompute, Schedule
from moemodel.model.step.communication_groups import Behind, Group, Groups
from moemodel.model.step.launch_overhead import Calls
from moemodel.model.step.layer_operators import expert_rank_skew

_LOGIT_B = 4.0  # of a token: a float32 maximum, logit or sum
_COUNT_B = 8.0  # of an expert: how many rows it gets
_KINDS = tuple(f.name for f in fields(Calls))
_MOSTLY = {"tp": Collective.ALL_REDUCE, "ep": Collective.ALL_TO_ALL, "pp": Collective.SEND_RECV}  # of each exchange


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Communication of a block in one micro-batch. [P].

    Attributes:
        exposed_s: time that nothing hides.
        behind: what may hide behind computation.
        calls: what the host queues.
    """

    exposed_s: FloatArray
    behind: Behind
    calls: Calls

    def __add__(self, other: Exchange) -> Exchange:
        return Exchange(
            exposed_s=self.exposed_s + other.exposed_s,
            behind=self.behind + other.behind,
            calls=self.calls + other.calls,
        )

    def times(self, factor: FloatArray | float) -> Exchange:
        """That many of it."""
        return Exchange(
            exposed_s=np.asarray(self.exposed_s * factor),
            behind=self.behind.times(factor),
            calls=self.calls.times(factor),
        )


class Communication:
    """Times of the collectives of a micro-batch in a batch of plans."""

    def __init__(
        self,
        architecture: Architecture,
        plans: PlanBatch,
        network: Network,
        *,
        framework: Framework,
        precision: Precision,
    ) -> None:
        self.architecture = architecture
        self.framework = framework
        self.plans = plans
        self.network = network
        self.groups = Groups(plans, network, shards_experts=framework.shards_experts)
        self.word_B = framework.precisions[precision].element_size_B
        self.tokens = plans.micro_batch * plans.seq / plans.cp
        self._again = (plans.recompute == Recompute.FULL).astype(np.float64)
        self._shares_sequence = plans.sequence_parallel > 0
        cut = (plans.tp > 1).astype(np.float64)
        self._one_tp = self._calls(tensor=cut * ~self._shares_sequence, rows=cut * self._shares_sequence)
        self._reductions = self._calls(tensor=cut * ~self._shares_sequence, rows=2 * cut * self._shares_sequence)

    def _calls(self, **kinds: FloatArray) -> Calls:
        """So many of some kinds, none of the others."""
        none = np.zeros(len(self.plans))
        return Calls(**dict.fromkeys(_KINDS, none) | kinds)

    def _time(self, collective: Collective, size_B: FloatArray | float, group: Group) -> FloatArray:
        return self.groups.time_s(collective, size_B, group)

    def none(self) -> Exchange:
        zeros = np.zeros(len(self.plans))
        return Exchange(exposed_s=zeros, behind=Behind.none(len(zeros)), calls=Calls.none(len(zeros)))

    # ---- layers ---------------------------------------------------------------------------------------------------

    def layer(self, layer: Layer) -> tuple[Exchange, Exchange]:
        """Forward and backward of one layer."""
        blocks = len(layer.attentions) + 1
        parts = {"tp": blocks * self._activation(self.tokens) + self._wide_norms(layer)}
        calls = self._reductions.times(blocks) + self._calls(
            tensor=len(layer.attentions) * (self.plans.cp - 1).astype(np.float64)
        )
        counted = np.zeros(len(self.plans))
        if isinstance(layer.feed_forward, Moe):
            parts["ep"] = self._experts(layer.feed_forward)
            calls = calls + self._calls(experts=np.where(self.plans.ep > 1, 2.0, 0.0))
            counted = self._counts(layer.feed_forward)
        shown, behind = self._split(parts)
        ring_s = np.zeros(len(self.plans))
        for attention in layer.attentions:
            ring_s = ring_s + self._ring(attention)
        ring = self.groups.behind(Collective.SEND_RECV, ring_s)
        again = self._again
        return (
            Exchange(exposed_s=shown + counted, behind=behind + ring, calls=calls),
            Exchange(
                exposed_s=shown * (1 + again) + counted * again,
                behind=behind.times(1 + again) + ring.times(2 + again),
                calls=calls.times(1 + again),
            ),
        )

    def _split(self, parts: dict[str, FloatArray]) -> tuple[FloatArray, Behind]:
        """Times of exchanges summed: those that nothing hides, those that run behind computation."""
        shown, behind = np.zeros(len(self.plans)), Behind.none(len(self.plans))
        for name, time_s in parts.items():
            if name in self.framework.overlapped:
                behind = behind + self.groups.behind(_MOSTLY[name], time_s)
            else:
                shown = shown + time_s
        return shown, behind

    def _activation(self, tokens: FloatArray) -> FloatArray:
        """One all-reduce over tensor-parallel ranks, or the pair that replaces it under sequence parallelism."""
        size = self.word_B * tokens * self.architecture.hidden
        whole = self._time(Collective.ALL_REDUCE, size, self.groups.tp)
        return np.where(self._shares_sequence, self._scattered(size) + self._gathered(size), whole)

    def _scattered(self, size_B: FloatArray) -> FloatArray:
        return self._time(Collective.REDUCE_SCATTER, size_B, self.groups.tp)

    def _gathered(self, size_B: FloatArray) -> FloatArray:
        return self._time(Collective.ALL_GATHER, size_B, self.groups.tp)

    def _experts(self, moe: Moe) -> FloatArray:
        """Rows to their experts and back; the busiest rank's rows prolong it (`network.skewed_B`)."""
        slots = moe.top_k * (moe.capacity_factor or 1.0)
        skew = expert_rank_skew(self.plans.skew, self.plans.ep.astype(np.float64), moe.experts)
        even = self.word_B * self.tokens * slots * self.architecture.hidden
        size = even if moe.capacity_factor else self.network.skewed_B(even, skew)
        once = self._across_share(moe.top_k) if self.framework.dispatches_once_a_node else 1.0
        ranks, route = self.groups.ep
        own = size if self.framework.dispatches_all_tokens else size / self.plans.tp
        sent = 2 * self.network.time_s(Collective.ALL_TO_ALL, own, ranks, route, across_share=once)
        if not self.framework.shards_experts or self.framework.dispatches_all_tokens:
            return np.where(self.plans.ep > 1, sent, 0.0)
        return np.where(self.plans.ep > 1, sent + self._gathered(size) + self._scattered(size), 0.0)

    def _wide_norms(self, layer: Layer) -> FloatArray:
        """Norms over all queries and all keys of the ranks that share them: their squares, summed."""
        norms = sum(attention.qk_norm == "full" for attention in layer.attentions)
        if not norms or not self.framework.eager_sharding:
            return np.zeros(len(self.plans))
        return norms * self._time(Collective.ALL_REDUCE, 2 * _LOGIT_B * self.tokens, self.groups.tp)

    def _counts(self, moe: Moe) -> FloatArray:
        """How many rows go to each expert, sent before them."""
        if not self.framework.dispatches_all_tokens or moe.capacity_factor is not None:
            return np.zeros(len(self.plans))
        return self._time(Collective.ALL_TO_ALL, _COUNT_B * moe.experts, self.groups.ep)

    def _across_share(self, top_k: int) -> FloatArray:
        """Nodes that a token's experts lie on over its experts, if they fall evenly: `N (1 - (1 - 1/N)^k) / k`."""
        ranks, route = self.groups.ep
        nodes = np.maximum(ranks / route.local_G, 1.0)
        if self.framework.node_limit is not None:
            nodes = np.minimum(nodes, self.framework.node_limit)
        return np.asarray(nodes * (1 - (1 - 1 / nodes) ** top_k) / top_k)

    def _ring(self, a: Attention) -> FloatArray:
        """Keys and values of a GPU's tokens, passed on cp - 1 times."""
        width = 2 * np.maximum(a.kv_heads / self.plans.tp, 1) * a.head_dim
        if a.latent is not None:
            width = a.latent.kv_rank + a.latent.rope_head_dim + 0 * width
        return (self.plans.cp - 1) * self._time(Collective.SEND_RECV, self.word_B * self.tokens * width, self.groups.cp)

    # ---- ends of the model ----------------------------------------------------------------------------------------

    def embedding(self) -> tuple[Exchange, Exchange]:
        """Forward and backward: partial embeddings of the vocabulary's shards, summed."""
        if not self.architecture.has_head:
            return self.none(), self.none()
        size = self.word_B * self.tokens * self.architecture.hidden
        whole = self._time(Collective.ALL_REDUCE, size, self.groups.tp)
        shared = self._shares_sequence
        return (
            self._end(np.where(shared, self._scattered(size), whole), self._one_tp),
            self._end(np.where(shared, self._gathered(size), 0.0), self._one_tp.times(np.where(shared, 1.0, 0.0))),
        )

    def head(self) -> tuple[Exchange, Exchange]:
        """Forward and backward: the input and its gradient, and what the loss needs of all shards of the vocabulary."""
        if not self.architecture.has_head:
            return self.none(), self.none()
        size = self.word_B * self.tokens * self.architecture.hidden
        shared, cut = self._shares_sequence, (self.plans.tp > 1).astype(np.float64)
        whole = self._time(Collective.ALL_REDUCE, size, self.groups.tp)
        loss_s = sum(self._time(Collective.ALL_REDUCE, n * _LOGIT_B * self.tokens, self.groups.tp) for n in (1, 2))
        loss = Exchange(exposed_s=np.asarray(loss_s), behind=Behind.none(len(size)), calls=self._calls(tensor=2 * cut))
        there = self._end(np.where(shared, self._gathered(size), 0.0), self._one_tp.times(np.where(shared, 1.0, 0.0)))
        return there + loss, self._end(np.where(shared, self._scattered(size), whole), self._one_tp)

    def _end(self, time_s: FloatArray, calls: Calls) -> Exchange:
        shown, behind = self._split({"tp": time_s})
        return Exchange(exposed_s=shown, behind=behind, calls=calls)

    def tied(self, vocab_parameters: float, gradient_B: float) -> FloatArray:
        """Gradients of a tied embedding, summed between the first and the last stage, once a step."""
        size = gradient_B * vocab_parameters / self.plans.tp
        ranks, route = self.groups.pp
        return self._time(Collective.ALL_REDUCE, size, (np.minimum(ranks, 2), route))

    def norm_s(self) -> FloatArray:
        """The norm of all gradients, once a step: one number, up and down a tree of all ranks."""
        ranks, route = self.groups.everybody
        hops = 2 * np.ceil(np.log2(ranks))
        return np.where(ranks > 1, self.network.start_s + hops * route.latency_s_G, 0.0)

    # ---- stages ---------------------------------------------------------------------------------------------------

    def _message(self) -> FloatArray:
        """An activation or gradient over a stage boundary, for one micro-batch of one chunk."""
        tokens = np.where(self._shares_sequence, self.tokens / self.plans.tp, self.tokens)
        return self._time(Collective.SEND_RECV, self.word_B * tokens * self.architecture.hidden, self.groups.pp)

    def boundary(self, *, first: bool, last: bool) -> tuple[Exchange, Exchange]:
        """What a stage's forward and backward pass of one micro-batch send and receive.

        Args:
            first, last: whether the stage is the first or the last of its pipeline.
        """
        sent = self._message()
        # interleaving crosses every boundary once for each virtual stage
        passes = np.where(self.plans.pp > 1, self.plans.virtual_stages, 0.0)
        if self.framework.pipeline != "torch":
            shown, behind = self._split({"pp": sent * self.plans.virtual_stages})
            both = Exchange(exposed_s=shown, behind=behind, calls=self._calls(messages=passes))
            return both, both
        gpipe = self.plans.schedule == Schedule.GPIPE
        together = (self.plans.schedule == Schedule.ONE_F_ONE_B) & (self.plans.virtual_stages == 1)
        forward = np.where(gpipe, sent * (not first), np.where(together, sent * (not last), 0.0))
        backward = np.where(gpipe, sent * (not last), np.where(together, sent * (not first), 0.0))
        none, waits = Behind.none(len(sent)), gpipe | together
        calls = self._calls(messages=passes * waits, actions=passes * ~waits)
        return (
            Exchange(exposed_s=forward, behind=none, calls=calls),
            Exchange(exposed_s=backward, behind=none, calls=calls),
        )

    def way_s(self) -> FloatArray:
        """Messages on the way of the first micro-batch to the last chunk and of the last one's gradient back, where
        those of the others run behind computation.
        """
        if self.framework.pipeline != "torch":
            return np.zeros(len(self.plans))
        p = self.plans
        behind = (p.schedule == Schedule.ZERO_BUBBLE) | (p.virtual_stages > 1)
        return np.where(behind, 2 * (p.pp * p.virtual_stages - 1) * self._message(), 0.0)
