"""What the ranks of a plan say to each other over a micro-batch, and how long it takes.

Per layer and micro-batch, with T tokens of a GPU, D hidden, elements as wide as the framework's:
    tp   two all-reduces of T D forward and two backward (Shoeybi et al. 2019, section 3), as many again when layers
         are recomputed; under sequence parallelism a reduce-scatter and an all-gather, the same bytes
    ep   two all-to-alls of the routed rows forward, two backward, two when recomputed; under tensor parallelism each
         rank sends its share of the rows, and the ranks that share an expert gather and scatter them among themselves
         (or, where whole experts lie on a GPU, a rank sends the rows of its share of the tokens, and nothing else; or,
         in `profiler/backends/torch_native`, all rows of its tokens, and first how many they are); of other ways, and
         of rows that run behind another micro-batch's computation, `plan.dispatch` tells
    cp   keys and values around a ring forward, and with their gradients backward (Liu et al. 2023), each message behind
         the attention to the block that came before (`_ring`); or gathered (`_gathered`); or queries, keys, values and
         outputs exchanged by heads, which nothing hides (`plan.context_comm`)
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
DeepSpeed's pipeline engine (deepspeed/runtime/pipe/engine.py, schedule.py: TrainSchedule) sends and receives one after
another on the stream that computes: a stage inside takes part in four messages for each micro-batch, one at an end in
two. Under tensor parallelism each of its ranks sends a part of the tensor (`pipe_partitioned` and `grad_partitioned`,
on by default in runtime/config.py) behind a few integers that describe it (`PartitionedTensor.to_meta`), and those that
receive gather the parts. Megatron-LM of 2021 and 2022 cuts messages too (`cuts_messages`), unless sequence parallelism
has done so already.
Nanotron's stages (parallel/pipeline_parallel/p2p.py) say of each tensor what it is before they send it, in two messages
whose contents the host reads, and wait for each; forward they send the mask of the sequences beside the activation.
Over data-parallel ranks, once a step or a pass: `data_parallel`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np

from moemodel.model.architecture.spec import Architecture, Layer, Moe
from moemodel.model.core.arrays import BoolArray, FloatArray
from moemodel.model.frameworks.base import Framework, Precision
from moemodel.model.layers.base import LayerComm, MicroBatch
from moemodel.model.layers.embedding_head import EmbeddingBlock, HeadBlock
from moemodel.model.layers.layer import layer_blocks
from moemodel.model.layers.routing import places_reached
from moemodel.model.network.collectives import Collective, Network
from moemodel.model.network.node_dispatch import HIDEABLE, DispatchTime, dispatch_time, nodes_of
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.context_comm import all_to_all_ranks
from moemodel.model.plan.dispatch import AS_THE_FRAMEWORK, DEEPEP, EXPOSED, OVERLAPPED
from moemodel.model.schedule.base import Messages
from moemodel.model.step.communication_groups import Group, Groups, OverlappableComm
from moemodel.model.step.launch_overhead import CollectiveLaunches
from moemodel.model.step.recomputation import Recomputation

_KINDS = tuple(f.name for f in fields(CollectiveLaunches))
# Of each axis, the collective whose measured overlap stands for all of its communication.
_MOSTLY = {
    "tp": Collective.ALL_REDUCE,
    "ep": Collective.ALL_TO_ALL,
    "cp": Collective.SEND_RECV,
    "pp": Collective.SEND_RECV,
}


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Communication of a block in one micro-batch. [P].

    Attributes:
        exposed_s: time that nothing hides.
        overlappable: what may hide behind computation.
        calls: what the host queues.
        beside_s: that links inside a node are busy beside the NIC, or the NIC beside them; it takes energy, not time.
    """

    exposed_s: FloatArray
    overlappable: OverlappableComm
    calls: CollectiveLaunches
    beside_s: FloatArray | float = 0.0

    @classmethod
    def none(cls, plans: int) -> Exchange:
        """No communication, in every plan."""
        overlappable, calls = OverlappableComm.none(plans), CollectiveLaunches.none(plans)
        return cls(exposed_s=np.zeros(plans), overlappable=overlappable, calls=calls)

    @property
    def whole_s(self) -> FloatArray:
        """All of it, hidden or not."""
        return np.asarray(self.exposed_s + self.overlappable.time_s)

    def __add__(self, other: Exchange) -> Exchange:
        return Exchange(
            exposed_s=self.exposed_s + other.exposed_s,
            overlappable=self.overlappable + other.overlappable,
            calls=self.calls + other.calls,
            beside_s=self.beside_s + other.beside_s,
        )

    def times(self, factor: FloatArray | float) -> Exchange:
        """That many of it."""
        return Exchange(
            exposed_s=np.asarray(self.exposed_s * factor),
            overlappable=self.overlappable.times(factor),
            calls=self.calls.times(factor),
            beside_s=self.beside_s * factor,
        )


@dataclass(frozen=True, kw_only=True)
class Attention:
    """How long the cores of a layer's attention take in a pass of one micro-batch, s. [P]."""

    forward_s: FloatArray
    backward_s: FloatArray


@dataclass(frozen=True, kw_only=True)
class Products:
    """How long a layer's products take in a pass of one micro-batch, s. [P]."""

    forward_s: FloatArray
    backward_s: FloatArray


_BESIDE = 3.0  # of a layer's products in a backward pass, a third run beside what is gathered, a third beside the rest
_LONG_ATTENTION = Attention(forward_s=np.array(np.inf), backward_s=np.array(np.inf))

# Of a tensor of three dimensions that is cut in two, int64: three sizes and how many they are, parts, the rank's own,
# where parts begin and end (deepspeed/runtime/utils.py, PartitionedTensor.to_meta); more parts hardly take longer, and
# nanotron's seven numbers and six sizes are as few
_DESCRIPTION_B = 72.0

_GRADIENT_B = 4.0  # of keys and values that go around while they are summed (convert_to_f32)
_KEPT_BY_OPERATOR = ("reduce_scatter", "all_to_all")  # what they bring stays where layers run again by operator


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
        self.batch = MicroBatch.of(plans, framework, precision)
        self._again = Recomputation.of(plans, architecture, framework)

    def _calls(self, **kinds: FloatArray) -> CollectiveLaunches:
        """So many of some kinds, none of the others."""
        none = np.zeros(len(self.plans))
        return CollectiveLaunches(**dict.fromkeys(_KINDS, none) | kinds)

    def none(self) -> Exchange:
        """No communication, in every plan."""
        return Exchange.none(len(self.plans))

    # ---- blocks ---------------------------------------------------------------------------------------------------

    def layer(
        self,
        layer: Layer,
        *,
        axis: str | None = None,
        attention: Attention | None = None,
        products: Products | None = None,
    ) -> tuple[Exchange, Exchange]:
        """Forward and backward of one layer; a pass that recomputes repeats what the forward pass sent.

        `axis`: of the mesh, whose communication alone is meant; None: all. `attention`, `products`: how long they take;
        None: long.
        """
        blocks = layer_blocks(layer, self.architecture.hidden)
        collectives = [comm for comm in blocks.collectives(self.batch) if axis in (None, comm.axis)]
        forward, backward = self.priced(collectives, attention, products)
        again, to_experts = self._again, self._again.part("moe")
        backward = backward + forward.times(again.layers)
        if to_experts.any():
            rows = self.priced(comm for comm in collectives if comm.axis == "ep")[0]
            backward = backward + rows.times(to_experts.astype(np.float64))
        cores = again.part("core_attn") & (self.framework.cp_comm is not None)
        if cores.any():
            reached = self.priced((comm for comm in collectives if comm.axis == "cp"), attention)[0]
            backward = backward + reached.times(cores.astype(np.float64))
        if again.by_operator.any():
            most = self.priced((c for c in collectives if c.collective not in _KEPT_BY_OPERATOR), attention)[0]
            backward = backward + most.times(again.by_operator.astype(np.float64))
        return forward, backward

    def embedding(self) -> tuple[Exchange, Exchange]:
        """Forward and backward of the embedding."""
        return self.priced(EmbeddingBlock(architecture=self.architecture).collectives(self.batch))

    def head(self) -> tuple[Exchange, Exchange]:
        """Forward and backward of final norm, head and loss."""
        return self.priced(HeadBlock(architecture=self.architecture).collectives(self.batch))

    def priced(
        self,
        collectives: Iterable[LayerComm],
        attention: Attention | None = None,
        products: Products | None = None,
    ) -> tuple[Exchange, Exchange]:
        """Time of collectives in a forward and in a backward pass."""
        forward, backward = self.none(), self.none()
        for comm in collectives:
            group = self._group(comm)
            if not (group[0] > 1).any():  # there is nobody to send to in any plan
                continue
            around = comm.axis == "cp" and comm.collective == "send_recv"
            if around and (attention is not None or self.framework.gathers_keys):
                exchanged = self._gathered if self.framework.gathers_keys else self._ring
                there, back = exchanged(comm, group, attention or _LONG_ATTENTION)
                forward, backward = forward + there, backward + back
                continue
            time_s, beside_s = self._time_s(comm, group)
            there = self._exchange(comm, time_s * comm.forward, comm.forward_launches)
            back = self._exchange(comm, time_s * comm.backward, comm.backward_launches)
            if comm.overlap == "products" and products is not None:
                there, back = self._beside(there, products.forward_s), self._beside(back, products.backward_s)
            forward = forward + replace(there, beside_s=beside_s * comm.forward)
            backward = backward + replace(back, beside_s=beside_s * comm.backward)
        return forward, backward

    @staticmethod
    def _beside(exchange: Exchange, products_s: FloatArray) -> Exchange:
        """What hides, where no more of a layer's products run beside it than `_BESIDE` says. Blocks with collectives
        have two of three products' weights, so that both may hide behind a third of all."""
        found = exchange.overlappable
        hideable_s = np.minimum(found.hideable_s, products_s / (2 * _BESIDE))
        return replace(exchange, overlappable=replace(found, hideable_s=hideable_s))

    def _ring(self, comm: LayerComm, group: Group, attention: Attention) -> tuple[Exchange, Exchange]:
        """Keys and values around a ring of c ranks, each message behind attention to one block, a c-th of all.

        Forward c - 1 messages, the first of them while a rank attends to its own block; backward keys and values first,
        with the gradients of another block c - 2 times, gradients last: c messages for c blocks (Transformer Engine,
        pytorch/attention/dot_product_attention/context_parallel.py, AttnFuncWithCPAndKVP2P). Causal blocks are of one
        size: a rank holds a part of the sequence's begin and one of its end.
        """
        c = group[0].astype(np.float64)
        one_s = self.groups.time_s(Collective.SEND_RECV, comm.size_B, group)
        both_s = self.groups.time_s(Collective.SEND_RECV, 2 * comm.size_B, group)
        hides = self.network.message_hides(group[1], group[0])
        pairs, ends = np.maximum(c - 2, 0.0), 2.0 * (c > 1)
        blocks_s = attention.forward_s / c, attention.backward_s / c
        there = OverlappableComm(time_s=(c - 1) * one_s, hideable_s=hides * (c - 1) * np.minimum(one_s, blocks_s[0]))
        behind_s = ends * np.minimum(one_s, blocks_s[1]) + pairs * np.minimum(both_s, blocks_s[1])
        back = OverlappableComm(time_s=ends * one_s + pairs * both_s, hideable_s=hides * behind_s)
        launches = (comm.forward_launches, comm.backward_launches)
        return self._queued(comm, there, launches[0]), self._queued(comm, back, launches[1])

    def _gathered(self, comm: LayerComm, group: Group, attention: Attention) -> tuple[Exchange, Exchange]:
        """Keys and values gathered from c ranks beside attention to a rank's own block, in either pass; gradients go
        around a ring in float32, behind attention to the next block, the last behind none (torch,
        distributed/tensor/experimental/_context_parallel/_attention.py, _AllGatherRotater and its use).
        """
        c, gathers = group[0].astype(np.float64), group[0] > 1
        whole_s = self.groups.time_s(Collective.ALL_GATHER, c * comm.size_B, group)
        wide_B = comm.size_B * _GRADIENT_B / self.batch.element_size_B
        gradients_s = self.groups.time_s(Collective.SEND_RECV, wide_B, group)
        hides, gathers_hide = (
            self.network.message_hides(group[1], group[0]),
            self.network.overlap_of(Collective.ALL_GATHER),
        )
        if self.framework.compiled:  # waits stand behind what they wait for (torch, _functional_collectives.py)
            hides, gathers_hide = np.zeros_like(c), 0.0
        blocks_s = attention.forward_s / c, attention.backward_s / c
        there = OverlappableComm(time_s=whole_s, hideable_s=gathers_hide * np.minimum(whole_s, blocks_s[0]))
        back = OverlappableComm(
            time_s=whole_s + gathers * c * gradients_s,
            hideable_s=gathers_hide * np.minimum(whole_s, blocks_s[1])
            + hides * (c - 1) * np.minimum(gradients_s, blocks_s[1]),
        )
        return self._queued(comm, there, gathers.astype(np.float64)), self._queued(comm, back, gathers * (c + 1))

    def _queued(self, comm: LayerComm, overlappable: OverlappableComm, launches: FloatArray | float) -> Exchange:
        """What may hide, and what the host queues for it."""
        none = np.zeros(len(self.plans))
        calls = self._calls(**({} if comm.launch is None else {comm.launch: launches + none}))
        return Exchange(exposed_s=none, overlappable=overlappable, calls=calls)

    def _group(self, comm: LayerComm) -> Group:
        """The ranks that take part."""
        if comm.group in ("cp_a2a", "cp_ring"):
            ranks = all_to_all_ranks(self.framework.cp_comm, self.plans.cp)
            return self.groups.parts("cp", ranks)[comm.group == "cp_ring"]
        return self.groups[comm.group or comm.axis]

    def _time_s(self, comm: LayerComm, group: Group) -> tuple[FloatArray, FloatArray | float]:
        """Of one collective, and of it what other links move beside those that it waits for, [P]."""
        size_B = comm.size_B if comm.skew is None else self.network.skewed_B(comm.size_B, comm.skew)
        if comm.once is not None:
            return self._dispatch_time(comm.once, size_B, group)
        time_s = self.groups.time_s(Collective(comm.collective), size_B, group)
        return time_s + comm.small_sums * self.network.small_sum_s(*group), 0.0

    def _dispatch_time(self, moe: Moe, size_B: FloatArray, group: Group) -> DispatchTime:
        """Of rows that go to a node once; all ranks that share an expert get them."""
        ranks, route = group
        nodes, ep = nodes_of(ranks, route), self.batch.ep
        limit = self.plans.node_limit.astype(np.float64)
        reached = partial(places_reached, moe, nodes=nodes, node_limit=limit)
        return dispatch_time(
            self.network,
            size_B,
            ranks,
            route,
            nodes_reached=reached(nodes),
            ranks_reached=reached(ep) * self.batch.etp,
        )

    def _exchange(self, comm: LayerComm, time_s: FloatArray, launches: FloatArray | float) -> Exchange:
        """A collective's time, hidden by computation or not, and what the host queues for it."""
        none = np.zeros(len(self.plans))
        queued = {} if comm.launch is None else {comm.launch: launches + none}
        calls = self._calls(**queued)
        overlaps = comm.overlap in ("always", "products") or (
            comm.overlap == "framework" and comm.axis in self.framework.overlapped
        )
        if comm.axis == "ep" and comm.overlap == "framework" and self._dispatch_is_told:
            return self._behind_another(comm, time_s, calls, overlaps=overlaps)
        return self._hidden_or_not(comm.axis, time_s, calls, overlaps=overlaps)

    @property
    def _dispatch_is_told(self) -> bool:
        """Whether any plan says how or when rows get to experts."""
        return bool((self.plans.dispatch_overlap != AS_THE_FRAMEWORK).any() or (self.plans.dispatch == DEEPEP).any())

    def _behind_another(
        self, comm: LayerComm, time_s: FloatArray, calls: CollectiveLaunches, *, overlaps: bool
    ) -> Exchange:
        """Rows on their way behind another micro-batch's computation, in plans that say so; else as the framework has
        it."""
        said = self.plans.dispatch_overlap
        paired = np.where(said == OVERLAPPED, self._paired_share(), np.where(said == EXPOSED, 0.0, float(overlaps)))
        hideable = self.network.overlap_of(_MOSTLY["ep"])
        if comm.once is not None:
            hideable = HIDEABLE
        behind_s = paired * time_s
        return Exchange(
            exposed_s=time_s - behind_s,
            overlappable=OverlappableComm(time_s=behind_s, hideable_s=hideable * behind_s),
            calls=calls,
        )

    def _paired_share(self) -> FloatArray:
        """Of the passes of a micro-batch, those that another's runs beside: all but the forward passes that come before
        the first backward pass, on the mean stage, and the backward passes behind the last forward pass. [P]

        In 1F1B and what is like it; Megatron Core merges a forward and a backward pass so
        (overlap_moe_expert_parallel_comm, combined_1f1b.py). DualPipeV pairs 2 m - (5 n - 1) / 2 of 2 m forward passes
        of chunks with backward passes, on the mean stage.
        """
        p, n = self.plans, self.plans.pp
        folded = (2 * p.scheduled - 2.5 * n + 0.5) / (2 * p.scheduled)
        alone = (p.pp - 1) / 2 + (p.virtual_stages - 1) * p.pp + np.where(p.virtual_stages > 1, (p.pp - 1) / 2, 0.0)
        passes = p.scheduled * p.virtual_stages
        in_a_row = (passes - 1 - alone) / passes
        return np.asarray(np.clip(np.where(p.schedules.folds, folded, in_a_row), 0.0, 1.0))

    def _hidden_or_not(self, axis: str, time_s: FloatArray, calls: CollectiveLaunches, *, overlaps: bool) -> Exchange:
        """Time on an axis that may hide behind computation, or that nothing hides."""
        none = self.none()
        if overlaps:
            overlappable = self.groups.overlappable(_MOSTLY[axis], time_s)
            return Exchange(exposed_s=none.exposed_s, overlappable=overlappable, calls=calls)
        return Exchange(exposed_s=time_s, overlappable=none.overlappable, calls=calls)

    def embedding_grad_all_reduce(self, vocab_parameters: float, gradient_B: float) -> FloatArray:
        """Gradients of a tied embedding, summed between the first and the last stage, once a step."""
        size = gradient_B * vocab_parameters / self.plans.tp
        ranks, route = self.groups["pp"]
        return self.groups.time_s(Collective.ALL_REDUCE, size, (np.minimum(ranks, 2), route))

    def norm_s(self) -> FloatArray:
        """The norm of all gradients, once a step: one number, up and down a tree of all ranks."""
        ranks, route = self.groups["world"]
        hops = 2 * np.ceil(np.log2(ranks))
        return np.where(ranks > 1, self.network.start_s + hops * route.latency_s_G, 0.0)

    def small_sums_s(self, tensors: FloatArray, size_B: float) -> FloatArray:
        """Of so many small tensors of float32, `size_B` each, that tensor-parallel ranks sum in one call, [P]."""
        group = self.groups["tp"]
        time_s = self.groups.time_s(Collective.ALL_REDUCE, tensors * size_B, group)
        return np.asarray(time_s + tensors * self.network.small_sum_s(*group, grouped=True))

    # ---- stages ---------------------------------------------------------------------------------------------------

    def message_B(self) -> FloatArray:
        """Bytes that a rank sends over a stage boundary, for one micro-batch of one chunk."""
        return np.asarray(self._whole_B() / np.where(self._cuts, self.plans.tp, 1))

    def _message(self) -> FloatArray:
        """Time of an activation or gradient over a stage boundary, for one micro-batch of one chunk."""
        return self.groups.time_s(Collective.SEND_RECV, self.message_B(), self.groups["pp"])

    def _whole_B(self) -> FloatArray:
        """Of an activation that a rank holds."""
        return self.batch.element_size_B * self.batch.sequence_parallel_tokens * self.architecture.hidden

    @property
    def _cuts(self) -> BoolArray:
        """Where a rank sends a part of what it holds."""
        whole = (self.plans.tp > 1) & ~self.plans.sequence_parallel.astype(bool)
        return np.asarray(self.framework.cuts_messages & whole)

    def pipeline_p2p(self, *, first: bool, last: bool) -> tuple[Exchange, Exchange]:
        """What a stage's forward and backward pass of one micro-batch send and receive.

        Args:
            first, last: whether the stage is the first or the last of its pipeline.
        """
        sent = self._message()
        # interleaving crosses every boundary once for each virtual stage
        passes = np.where(self.plans.pp > 1, self.plans.virtual_stages, 0.0)
        if self.framework.pipeline == "deepspeed":
            return (
                self._one_after_another(received=not first, sent=not last, gathers=1),
                # a backward pass puts the parts of what the stage had sent together too (`_exec_backward_pass`)
                self._one_after_another(received=not last, sent=not first, gathers=2),
            )
        if self.framework.pipeline == "described":
            return (
                self._described(received=not first, sent=not last, tensors=2),
                self._described(received=not last, sent=not first, tensors=1),
            )
        if self.framework.pipeline != "torch":
            return self._sent_together(received=not first), self._sent_together(received=not last)
        before = self.plans.schedules.exchange(Messages.BEFORE_A_PASS)
        behind_it = self.plans.schedules.exchange(Messages.BEHIND_A_PASS)
        forward = np.where(before, sent * (not first), np.where(behind_it, sent * (not last), 0.0))
        backward = np.where(before, sent * (not last), np.where(behind_it, sent * (not first), 0.0))
        none, waits_for_them = OverlappableComm.none(len(sent)), before | behind_it
        calls = self._calls(messages=passes * waits_for_them, actions=passes * ~waits_for_them)
        return (
            Exchange(exposed_s=forward, overlappable=none, calls=calls),
            Exchange(exposed_s=backward, overlappable=none, calls=calls),
        )

    def _sent_together(self, *, received: bool) -> Exchange:
        """What a pass sends and receives at once under Megatron's schedules, and gathers where that was cut."""
        gathers = np.where((self.plans.pp > 1) & received, self.plans.virtual_stages * self._cuts, 0.0)
        passes = np.where(self.plans.pp > 1, self.plans.virtual_stages, 0.0)
        gathered_s = self.groups.time_s(Collective.ALL_GATHER, self._whole_B(), self.groups["tp"])
        time_s = self._message() * self.plans.virtual_stages + gathers * gathered_s
        calls = self._calls(messages=passes, tensor_parallel=gathers)
        return self._hidden_or_not("pp", time_s, calls, overlaps="pp" in self.framework.overlapped)

    def _one_after_another(self, *, received: bool, sent: bool, gathers: int) -> Exchange:
        """What a pass waits for under DeepSpeed's engine, which cuts messages among tensor-parallel ranks.

        Args:
            received, sent: whether the pass does.
            gathers: of tensors that are cut, in a pass that receives.
        """
        gathers *= received
        tp, whole_B = self.plans.tp, self._whole_B()
        message_s = self.groups.time_s(Collective.SEND_RECV, whole_B / tp, self.groups["pp"])
        described_s = np.where(tp > 1, self.groups.time_s(Collective.SEND_RECV, _DESCRIPTION_B, self.groups["pp"]), 0.0)
        gathered_s = self.groups.time_s(Collective.ALL_GATHER, whole_B, self.groups["tp"])
        ends, passes = float(received) + float(sent), np.where(self.plans.pp > 1, self.plans.virtual_stages, 0.0)
        made_s = float(received) * whole_B / self.framework.message_copy_Bps
        time_s = passes * (ends * (message_s + described_s) + gathers * gathered_s + made_s)
        calls = self._calls(messages=passes * (ends * np.where(tp > 1, 2.0, 1.0) + gathers * (tp > 1)))
        return self._hidden_or_not("pp", time_s, calls, overlaps=False)

    def _described(self, *, received: bool, sent: bool, tensors: int) -> Exchange:
        """What a pass waits for where two messages say what each tensor is.

        Args:
            received, sent: whether the pass does.
            tensors: that go over a boundary, one of them the activation or its gradient.
        """
        small_s = self.groups.time_s(Collective.SEND_RECV, _DESCRIPTION_B, self.groups["pp"])
        messages = 3 * tensors
        one_s = self._message() + (messages - 1) * small_s + messages * self.framework.message_s
        passes = np.where(self.plans.pp > 1, self.plans.virtual_stages, 0.0) * (float(received) + float(sent))
        return self._hidden_or_not("pp", passes * one_s, self._calls(messages=passes * messages), overlaps=False)

    def pipeline_fill_comm_s(self) -> FloatArray:
        """Messages on the way of the first micro-batch to the last chunk and of the last one's gradient back, in every
        run of a schedule, where those of the others run behind computation.
        """
        if self.framework.pipeline != "torch":
            return np.zeros(len(self.plans))
        p = self.plans
        overlapped = p.schedules.exchange(Messages.OVERLAPPED)
        return np.where(overlapped, 2 * p.rounds * (p.pp * p.virtual_stages - 1) * self._message(), 0.0)
