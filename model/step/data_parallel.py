"""What data-parallel ranks say to each other in a step: gradients and parameters, and which passes hide them.

Frameworks exchange a stage's parameters by units: FSDP's are layers, and the ends of the model (embedding, final norm,
head) as one that begins every pass and ends it; DDP fills buckets in the order in which gradients come. Megatron Core's
buckets under ZeRO are taken for layers and ends too: buckets of 40 million fit published runs no better.

    ZeRO 0   gradients reduced in buckets behind the last backward pass; exposed: the last bucket, with the embedding,
             whose gradient comes last
    ZeRO 1   parameters gathered behind the first forward pass, gradients scattered behind the last backward pass;
             exposed: what begins a forward pass (the ends and one layer) and what ends a backward pass (the same)
    ZeRO 2   the same, but gradients are scattered in the backward pass of every micro-batch
    ZeRO 3   the same, and parameters are gathered for the forward and again, but for the ends, for the backward pass of
             every micro-batch; also in a pipeline

Where chunks of a stage take turns, what ZeRO 0 and 1 exchange once is hidden by more passes than one: all but those of
the chunk that begins (`schedule.base`, `overlap_passes_forward`, `overlap_passes_backward`).

Where a plan says how many parameters a bucket has (`bucket_parameters`), buckets take the place of layers.

(Rajbhandari et al. 2020, section 7; Zhao et al. 2023, section 3.3.) In a pipeline of torch, gradients that FSDP
scatters, and those of zero-bubble's backward passes in two parts, are exchanged when all passes are done, once a run of
its schedule whatever the ZeRO stage (torch.distributed.pipelining 2.11,
`_PipelineStageBase.backward_maybe_with_nosync`); so are those of experts that DDP leaves alone. A backward pass leaves
there what it gathers, and a forward pass frees it: so under ZeRO 3 those forward passes gather that follow another, as
many as a stage holds micro-batches, and those backward passes that follow a forward pass. Every run of a schedule
gathers and reduces for itself. Frameworks that run none of it behind computation send each in one message; DeepSpeed
all-reduces gradients under ZeRO 1 and 2 too (`allreduce_and_scatter`). Left out: by how much computation delays a
collective, which waits for room on the GPU; it matters where exchanges fill most of a pass.

Axes: P plans.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray
from moemodel.model.frameworks.base import Framework, Precision
from moemodel.model.network.collectives import Collective
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.step.communication_groups import Group, Groups, OverlappableComm

_BUCKET_B = 25 * 2**20  # torch.nn.parallel.DistributedDataParallel, bucket_cap_mb
_TENSORS = 7  # of a dense layer, that may fill a bucket each: four of attention, three of a gated block
_LARGE_TENSORS = 3  # of a layer whose products are fused a mean byte is in a tensor of a third of it
_HALF_B = 2.0  # of a 16-bit gradient
_EXPERT_TENSORS = 2  # of an MoE layer: all experts' gate and up in one, and down (profiler.backends.torch_native.model)


@dataclass(frozen=True, kw_only=True)
class FsdpUnits:
    """How a stage's parameters on one GPU fall into units that are exchanged together.

    Attributes:
        layers: how many layers there are, in all or in each plan.
        dense, expert: parameters of all layers: those that all data-parallel ranks share, and those of experts.
        ends: of embedding, final norm and head.
        embedding_parameters: of these, those whose gradients come last in a backward pass.
    """

    layers: IntArray | int
    dense: FloatArray
    expert: FloatArray
    ends: FloatArray
    embedding_parameters: FloatArray


@dataclass(frozen=True, kw_only=True)
class ExchangeCounts:
    """How often a stage's parameters and gradients are exchanged in a step. [P].

    Attributes:
        gathers_forward, gathers_backward: of parameters, for so many passes.
        reductions: of gradients.
    """

    gathers_forward: FloatArray
    gathers_backward: FloatArray
    reductions: FloatArray

    @classmethod
    def of(cls, plans: PlanBatch, framework: Framework, stage: int | IntArray) -> ExchangeCounts:
        """Of one stage of each plan's pipeline."""
        zero, m, rounds = plans.zero_stage, plans.micro_batches.astype(np.float64), plans.rounds.astype(np.float64)
        afterwards = reduces_when_all_passes_are_done(plans, framework)
        held = np.clip(plans.schedules.in_flight(stage), 1.0, plans.scheduled)
        return cls(
            gathers_forward=np.where(
                zero >= 3, np.where(afterwards, rounds * held, m), np.where(zero >= 1, rounds, 0.0)
            ),
            gathers_backward=np.where(zero >= 3, np.where(afterwards, m - rounds * (held - 1), m), 0.0),
            reductions=np.where((zero >= 2) & ~afterwards, m, rounds),
        )

    def take(self, rows: IntArray) -> ExchangeCounts:
        """Of the plans at these rows."""
        return ExchangeCounts(
            gathers_forward=self.gathers_forward[rows],
            gathers_backward=self.gathers_backward[rows],
            reductions=self.reductions[rows],
        )


def reduces_when_all_passes_are_done(plans: PlanBatch, framework: Framework) -> BoolArray:
    """Where FSDP scatters no gradients before, and so keeps them whole, [P]."""
    return np.asarray((framework.data_parallel == "ddp-fsdp2") & (plans.pp > 1))


@dataclass(frozen=True, kw_only=True)
class StepExchange:
    """Communication over data-parallel ranks in one step, s. [P].

    Attributes:
        forward, backward: what may hide behind forward and behind backward passes.
        exposed_s: the rest.
        forward_passes, backward_passes: over how many passes of the step it spreads.
        units: of FSDP that are exchanged; `buckets` of DDP, in all reductions.
        beside_all: it also runs beside the passes' own communication, which takes other links.
    """

    forward: OverlappableComm
    backward: OverlappableComm
    exposed_s: FloatArray
    forward_passes: FloatArray
    backward_passes: FloatArray
    units: FloatArray
    buckets: FloatArray
    beside_all: bool = False

    @classmethod
    def none(cls, plans: int) -> StepExchange:
        """No communication, in every plan."""
        nothing, once = np.zeros(plans), np.ones(plans)
        comm = OverlappableComm.none(plans)
        return cls(
            forward=comm,
            backward=comm,
            exposed_s=nothing,
            forward_passes=once,
            backward_passes=once,
            units=nothing,
            buckets=nothing,
        )

    @property
    def whole_s(self) -> FloatArray:
        """All of it, hidden or not."""
        return np.asarray(self.forward.time_s + self.backward.time_s + self.exposed_s)

    def __add__(self, other: StepExchange) -> StepExchange:
        """Both, behind the same passes."""
        return replace(
            self,
            forward=self.forward + other.forward,
            backward=self.backward + other.backward,
            exposed_s=self.exposed_s + other.exposed_s,
            units=np.maximum(self.units, other.units),
            buckets=self.buckets + other.buckets,
        )

    def with_exposed(self, more_s: FloatArray) -> StepExchange:
        """With more that nothing hides."""
        return replace(self, exposed_s=self.exposed_s + more_s)


class DataParallel:
    """Exchanges of a batch of plans over their data-parallel ranks.

    Args:
        plans: P plans.
        groups: theirs.
        framework: how it exchanges, and what of it runs behind computation.
        precision: bytes of an element of a gradient and of a parameter.
    """

    def __init__(
        self,
        plans: PlanBatch,
        groups: Groups,
        *,
        framework: Framework,
        precision: Precision,
    ) -> None:
        self._groups = groups
        self._gradient_B = framework.wire_B(precision)
        recipe = framework.precisions[precision]
        self._parameter_B = recipe.element_size_B
        # of layers' weights; embedding, head and norms stay in 16 bits
        self._layer_B = recipe.element_size_B if recipe.gathered_B is None else recipe.gathered_B
        self._reductions_hide = "gradients" in framework.overlapped
        self._gathers_hide = "parameters" in framework.overlapped
        self._zero = plans.zero_stage
        all_reduces = framework.data_parallel == "flattened" or framework.all_reduces
        self._bucket_B = framework.gradient_bucket_B
        self._bucket_parameters = framework.bucket_parameters
        self._reduction = Collective.ALL_REDUCE if all_reduces else Collective.REDUCE_SCATTER
        torch = framework.data_parallel == "ddp-fsdp2"
        self._spread = torch & (plans.ep > 1)
        # a backward pass in two parts tells DDP nothing; of a pipeline FSDP scatters when all passes are done
        self._split_pass = torch & (plans.pp > 1) & plans.schedules.splits_backward
        self._late_scatter = reduces_when_all_passes_are_done(plans, framework)

    def step(self, units: FsdpUnits, counts: ExchangeCounts, trained: FsdpUnits | None = None) -> StepExchange:
        """Gradients, and from ZeRO 1 on parameters, of one stage in a step; `trained` are those that have gradients,
        where not all do."""
        trained = units if trained is None else trained
        none = np.zeros_like(units.dense)
        shared = self._exchange(units, trained, counts)
        experts, of_experts = (
            replace(each, dense=each.expert, ends=none, embedding_parameters=none) for each in (units, trained)
        )
        return shared + self._exchange(experts, of_experts, counts, experts=True)

    def _exchange(
        self, units: FsdpUnits, trained: FsdpUnits, counts: ExchangeCounts, *, experts: bool = False
    ) -> StepExchange:
        """Of `dense` and the ends of both."""
        of = "expert_" if experts else ""
        reduced = self._reduced(trained, counts, self._groups[f"{of}data_parallel"], experts=experts)
        sharded = self._sharded(
            units, trained, counts, self._groups[f"{of}shards"], replicas=self._groups[f"{of}replicas"]
        )
        whole = self._zero == 0
        return StepExchange(
            forward=sharded.forward.times(~whole),
            backward=reduced.backward.times(whole) + sharded.backward.times(~whole),
            exposed_s=np.where(whole, reduced.exposed_s, sharded.exposed_s),
            forward_passes=sharded.forward_passes,
            backward_passes=sharded.backward_passes,
            units=np.where(whole, 0.0, sharded.units),
            buckets=np.where(whole, reduced.buckets, 0.0),
            beside_all=self._bucket_B is not None,
        )

    def _reduced(self, units: FsdpUnits, counts: ExchangeCounts, group: Group, *, experts: bool) -> StepExchange:
        """ZeRO 0. The last bucket holds half of one beside what comes last.

        Experts that other ranks have others of are left alone by DDP, and summed when all passes are done.
        """
        size_B = self._gradient_B * (units.dense + units.ends)
        last_B = (
            np.zeros_like(size_B)
            if experts
            else np.minimum(self._gradient_B * units.embedding_parameters + _BUCKET_B / 2, size_B)
        )
        if not self._reductions_hide and self._bucket_B is None:
            last_B = size_B
        else:
            last_B = np.where(self._split_pass | (self._spread & experts), size_B, last_B)
        most = (_EXPERT_TENSORS if experts else _TENSORS) * np.maximum(units.layers, 1)
        buckets = np.clip((size_B - last_B) / _BUCKET_B, 1.0, most)
        if self._bucket_B is not None or self._bucket_parameters is not None:
            buckets = self._messages(units)
        behind_s = counts.reductions * self._some(Collective.ALL_REDUCE, size_B - last_B, buckets, group)
        shown_s = counts.reductions * self._some(Collective.ALL_REDUCE, last_B, 1.0, group)
        return StepExchange(
            forward=OverlappableComm.none(len(size_B)),
            backward=self._groups.overlappable(Collective.ALL_REDUCE, behind_s),
            exposed_s=shown_s,
            forward_passes=counts.reductions,
            backward_passes=counts.reductions,
            units=np.zeros_like(size_B),
            buckets=counts.reductions * (np.where(behind_s > 0, buckets, 0.0) + (shown_s > 0)),
        )

    def _messages(self, units: FsdpUnits) -> FloatArray:
        """In which the gradients of layers are reduced. A bucket is closed by the tensor that fills it: it holds half a
        tensor more than it has to."""
        inner_B, full_B = _HALF_B * units.dense, self._bucket_B or 0.0
        if self._bucket_parameters is not None:
            full_B = _HALF_B * self._bucket_parameters
        mean_B = full_B + inner_B / np.maximum(units.layers, 1) / (2 * _LARGE_TENSORS)
        return np.maximum(inner_B / np.maximum(mean_B, _HALF_B), 1.0)

    def _sharded(
        self, units: FsdpUnits, trained: FsdpUnits, counts: ExchangeCounts, group: Group, *, replicas: Group
    ) -> StepExchange:
        """ZeRO 1 to 3. A pass gathers, and a pass scatters, each layer or bucket and the ends; one and the ends show.

        Where several groups of ranks hold all shards each, what is scattered in a group is then summed over groups
        (torch.distributed.fsdp 2.11, `foreach_reduce`; Megatron-LM, core/distributed/param_and_grad_buffer.py).
        """
        layers: FloatArray | IntArray = np.maximum(units.layers, 1)
        if self._bucket_parameters is not None:
            layers = self._messages(trained)
        parts, reduced = (units.dense, units.ends), (trained.dense, trained.ends)
        gathered_B, reduced_B = (
            (self._layer_B * parts[0], self._parameter_B * parts[1]),
            (self._gradient_B * reduced[0], self._gradient_B * reduced[1]),
        )
        if not (self._reductions_hide or self._gathers_hide):
            layers = np.asarray(1)
            reduced = reduced[0] + reduced[1], np.zeros_like(reduced[1])
            gathered_B, reduced_B = (
                (inner_B + ends_B, np.zeros_like(ends_B)) for inner_B, ends_B in (gathered_B, reduced_B)
            )
        gather, scatter = (
            [self._some(collective, size_B, 1.0, group) for size_B in (inner_B / layers, ends_B)]
            for collective, (inner_B, ends_B) in (
                (Collective.ALL_GATHER, gathered_B),
                (self._reduction, reduced_B),
            )
        )
        summed = [
            self._some(Collective.ALL_REDUCE, self._gradient_B * p / group[0], 1.0, replicas)
            for p in (reduced[0] / layers, reduced[1])
        ]
        gathered = self._groups.overlappable(Collective.ALL_GATHER, gather[0]).times(float(self._gathers_hide))
        hides = np.where(self._late_scatter, 0.0, float(self._reductions_hide))
        scattered = self._groups.overlappable(self._reduction, scatter[0]).times(hides)
        scattered = scattered + self._groups.overlappable(Collective.ALL_REDUCE, summed[0]).times(hides)
        scatter = [there_s + over_s for there_s, over_s in zip(scatter, summed, strict=True)]
        again, reductions = counts.gathers_backward, counts.reductions
        forward = gathered.times(counts.gathers_forward * (layers - 1))
        backward = scattered.times(reductions * (layers - 1)) + gathered.times(again * layers)
        whole_s = (
            counts.gathers_forward * (layers * gather[0] + gather[1])
            + reductions * (layers * scatter[0] + scatter[1])
            + again * layers * gather[0]
        )
        return StepExchange(
            forward=forward,
            backward=backward,
            exposed_s=whole_s - forward.time_s - backward.time_s,
            forward_passes=np.maximum(counts.gathers_forward, 1.0),
            backward_passes=np.maximum(reductions, again),
            units=np.where(scatter[0] > 0, layers, 0.0) + (scatter[1] > 0),
            buckets=np.zeros_like(units.dense),
        )

    def _some(
        self, collective: Collective, size_B: FloatArray, messages: FloatArray | float, group: Group
    ) -> FloatArray:
        """Time of so many bytes in so many messages; none of nothing."""
        if not size_B.any():
            return np.zeros_like(size_B)
        return np.where(size_B > 0, messages * self._groups.time_s(collective, size_B / messages, group), 0.0)
