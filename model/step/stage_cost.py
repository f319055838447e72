"""From blocks to stages: price each distinct micro-batch shape once, then add up what a stage holds.

Axes: U distinct micro-batch shapes, P plans, K clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TypeVar

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray, IntArray, distinct_rows, one_behind_another, take_rows
from moemodel.model.device.host_overhead import HOSTS, HostCost, HostModel
from moemodel.model.device.operator_cost import OperatorCostModel, PhaseCost, shares
from moemodel.model.device.power import PowerModel
from moemodel.model.device.roofline import chip_of_calibration
from moemodel.model.frameworks.base import CapturedParts, HostFactors, HostOffload
from moemodel.model.frameworks.moe_form import MEASURED_ROUTER, kernels_behind, measured_layer
from moemodel.model.layers.adapters import adapted
from moemodel.model.layers.base import MicroBatch
from moemodel.model.layers.layer import LayerBlocks, layer_blocks
from moemodel.model.layers.parameters import parameters
from moemodel.model.network.collectives import Collective
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import Kind
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.dispatch import OF_DISPATCH, OVERLAPPED
from moemodel.model.schedule.pipeline_layout import Pipeline, Stage, Stages, distinct_layers, held_layers
from moemodel.model.step.collective_checks import checks_s, step_checks_s
from moemodel.model.step.communication_groups import Groups
from moemodel.model.step.data_parallel import DataParallel, ExchangeCounts, FsdpUnits, StepExchange
from moemodel.model.step.host_offload import copied, update_s
from moemodel.model.step.launch_overhead import ParallelHost
from moemodel.model.step.layer_operators import Workload, accumulated_fraction, gradients_in_ddp_buckets
from moemodel.model.step.memory import Memory, MemoryModel, fullest
from moemodel.model.step.microbatch_comm import Attention, Communication, Exchange, Products
from moemodel.model.step.orthogonal import gathered_B, newton_schulz, orthogonalized, queued
from moemodel.model.step.recomputation import Recomputation
from moemodel.model.step.system import System

_Part = TypeVar("_Part")
_Priced = tuple[dict[Phase, PhaseCost], IntArray]  # work by phase, of few sizes, and which of these each plan's is

_CORES = (Kind.ATTENTION, Kind.ATTENTION_FULL)
_PLAIN = "dense_layer"  # of measured layers
_CALLS_OF_A_WAIT = 2.0  # assumed, of the host: reading what it waited for, and queueing what uses it
_UPDATE_B = 32.0  # of a parameter: its norm (4), and a fused update (28, as framework records count it)
_CALLS_OF_A_DRAIN = 1.0  # queueing the next kernel on a device that has nothing to do
# Host time a parameter, of an H100's host: copied to it, made float32, and through SHA-1 (Megatron Core, core/utils.py,
# check_param_hashes_across_dp_replicas). By a functional test of Megatron-LM with 52 million parameters on a GPU, which
# hashes them in every step (gpt3_moe_mcore_te_ep8_resume_torch_dist_muon on H100, second run)
HASHED_S = 3.9e-9


@dataclass(kw_only=True)
class StageCost:
    """One stage: work of a micro-batch and of the optimizer step, and its communication. Arrays [P, K] or [P].

    Attributes:
        forward, backward: work of the device for one micro-batch.
        optimizer: work of the device for one step.
        forward_exchange, backward_exchange: communication of one micro-batch.
        step_exchange: communication of one step (gradients, parameters).
        unoverlappable_fraction_forward, unoverlappable_fraction_backward: shares of a pass that are over when the first
            of that may begin, [P, 1].
        host: host time of one micro-batch, [P, 1]; `host_exchange_s` of a step's exchange, which falls into its passes;
            `host_step_s` of the optimizer.
        host_step_read, step_read: shares of it and of the device's work for the optimizer that come before the last
            result that the host reads: until then neither does any of the rest.
        host_sync_s: that the device stands idle in a forward pass after the host waited for it, [P, 1].
        runs_dry: the host waits for the device around every product of an expert: neither works while the other does.
        recompute_sync_s: the same in a backward pass, and in what it recomputes.
        host_behind_s, before_share: what the host queues in a forward pass behind its waits in each layer, for a router
            that the device comes to no sooner than it has done what comes before, and the share of the device's forward
            pass that comes before, [P, 1]; 0 where it does not wait, or its time was found as it does.
        host_update_s: in which the host updates what it keeps of the parameters, or looks at gradients or weights, and
            the GPU waits, [P, 1].
        variance_s2: of the device's time in a step, [P]; what it does has no spread of its own.
        pipeline_fill_comm_s: messages on a micro-batch's way through the pipeline that nothing hides, once a step, [P].
    """

    forward: PhaseCost
    backward: PhaseCost
    optimizer: PhaseCost
    forward_exchange: Exchange
    backward_exchange: Exchange
    step_exchange: StepExchange
    unoverlappable_fraction_forward: FloatArray
    unoverlappable_fraction_backward: FloatArray
    host: HostCost
    host_exchange_s: FloatArray
    host_step_s: FloatArray | float
    host_step_read: float
    step_read: float
    host_sync_s: FloatArray
    runs_dry: bool
    recompute_sync_s: FloatArray
    host_behind_s: FloatArray
    before_share: FloatArray
    pipeline_fill_comm_s: FloatArray
    host_update_s: FloatArray
    variance_s2: FloatArray

    def at_highest_clock(self) -> StageCost:
        """With the device's work at the highest clock alone."""
        forward, backward, optimizer = (
            lane.at_highest_clock() for lane in (self.forward, self.backward, self.optimizer)
        )
        return replace(self, forward=forward, backward=backward, optimizer=optimizer)

    @property
    def weight_share(self) -> FloatArray:
        """Gradients of weights, as a share of the backward pass, [P, 1]."""
        return shares(self.backward.weights_s_U, self.backward.time_s_UK[:, -1])[:, None]

    @property
    def weight_call_share(self) -> FloatArray:
        """The same of what the host queues for it, [P, 1]."""
        return np.asarray(self.backward.weights_calls_U / np.maximum(self.backward.calls_U, 1.0))[:, None]


class BlockCosts:
    """Prices of all blocks of an architecture, for each distinct shape of a micro-batch in a batch of plans."""

    def __init__(
        self,
        architecture: Architecture,
        plans: PlanBatch,
        *,
        machine: System,
        power: PowerModel,
        clock_Hz_K: FloatArray,
    ) -> None:
        calibration = machine.calibration
        self.architecture = architecture
        self.plans = plans
        self.machine = machine
        self.kinds = distinct_layers(architecture)
        self.layer_blocks = [layer_blocks(layer, architecture.hidden) for layer in self.kinds]
        self._reduce: Callable[[PhaseCost], PhaseCost] = lambda lane: lane
        self.clocks = len(clock_Hz_K)
        chip = chip_of_calibration(calibration)
        self.pricer = OperatorCostModel(calibration, chip, power, clock_Hz_K, uncast=machine.uncast)
        self.host = HostModel(calibration, machine.framework.name)
        batch = MicroBatch.of(plans, machine.framework, machine.precision)
        again = Recomputation.of(plans, architecture, machine.framework)
        first, self.shape = distinct_rows(
            [*batch.shape_columns, plans.recompute, again.layers, plans.node_limit, *_of_overlapped_rows(plans)]
        )
        self.shapes = len(first)
        alike, place = distinct_rows([column[first] for column in batch.shape_columns])  # but for recomputation
        workload = self._workload(plans.take(first[alike]))
        repeated = [workload.repeatable(layer) for layer in self.kinds] if plans.recompute.any() else []
        passes = [*(workload.passes(layer) for layer in self.kinds), workload.embedding(), workload.head()]
        layers = passes[: len(self.kinds)]
        self._exchanged(plans.take(first), self._attention(layers, alike, place), self._products(layers, alike, place))
        priced = self.pricer.blocks([*passes, *(calls for parts in repeated for calls in parts.values())], len(alike))
        self.behind_router_s = self._behind_router_s(workload, len(alike), place)
        *self.layers, self.embedding, self.head = (take_rows(lanes, place) for lanes in priced[: len(passes)])
        self.recomputed_calls = [np.zeros(len(first)) for _ in self.kinds]
        more = iter(priced[len(passes) :])
        times = take_rows(again, first).times
        for lanes, calls, parts in zip(self.layers, self.recomputed_calls, repeated, strict=False):
            for (names, kept), lane in zip(parts, more, strict=False):
                _repeat(lanes[Phase.BACKWARD], calls, lane[Phase.BACKWARD], place, times(names, saved=kept))

    def _behind_router_s(self, workload: Workload, count: int, place: IntArray) -> list[FloatArray]:
        """Of a forward pass of each kind of layer what comes behind its router, at the highest clock, [U] each; empty
        where the host waits for no router, or its time was found as it does, and graphs hold all of a layer or none."""
        framework = self.machine.framework
        reads_choice = framework.moe.host_waits.forward > 0 and framework.plain_host and self.architecture.has_experts
        if framework.captured_parts is None and not reads_choice:
            return []
        nothing = PhaseCost.empty(count, self.clocks)
        priced = self.pricer.blocks([workload.behind_router(layer) for layer in self.kinds], count)
        return [lanes.get(Phase.FORWARD, nothing).time_s_UK[place, -1] for lanes in priced]

    def _attention(self, passes: list[list[Call]], alike: IntArray, place: IntArray) -> list[Attention | None]:
        """Time of flash attention in each kind of layer at the highest clock, [U]; None: no rings."""
        if not ((self.plans.cp > 1).any() and self.machine.framework.flash_attention):
            return [None] * len(passes)
        taken_s = self._taken_s(passes, _CORES, alike, place)
        return [Attention(forward_s=forward_s, backward_s=backward_s) for forward_s, backward_s in taken_s]

    def _products(self, passes: list[list[Call]], alike: IntArray, place: IntArray) -> list[Products | None]:
        """The same of products; None: nothing runs beside them alone."""
        if not ((self.plans.tp > 1).any() and self.machine.framework.gathers_inputs_again):
            return [None] * len(passes)
        taken_s = self._taken_s(passes, (Kind.GEMM,), alike, place)
        return [Products(forward_s=forward_s, backward_s=backward_s) for forward_s, backward_s in taken_s]

    def _taken_s(
        self, passes: list[list[Call]], kinds: tuple[Kind, ...], alike: IntArray, place: IntArray
    ) -> list[list[FloatArray]]:
        """By operators of these kinds in either pass of each kind of layer, at the highest clock, [U] each."""
        some = [[call for call in calls if call.kind in kinds] for calls in passes]
        nothing = PhaseCost.empty(len(alike), self.clocks)
        return [
            [lanes.get(phase, nothing).time_s_UK[place, -1] for phase in (Phase.FORWARD, Phase.BACKWARD)]
            for lanes in self.pricer.blocks(some, len(alike))
        ]

    def _exchanged(self, shapes: PlanBatch, attention: list[Attention | None], products: list[Products | None]) -> None:
        """What blocks exchange in a forward and in a backward pass, in plans of which each has a shape of its own."""
        machine = self.machine
        comm = Communication(
            self.architecture, shapes, machine.network, framework=machine.framework, precision=machine.precision
        )
        beside = zip(self.kinds, attention, products, strict=True)
        self.layer_exchanges = [comm.layer(layer, attention=core, products=own) for layer, core, own in beside]
        self.embedding_exchange, self.head_exchange = comm.embedding(), comm.head()

    def price(self, calls: Iterable[Call], count: int) -> dict[Phase, PhaseCost]:
        """Costs of more calls, of so many shapes."""
        return {phase: self._reduce(lane) for phase, lane in self.pricer.phase_costs(calls, count).items()}

    def least(self) -> BlockCosts:
        """The same at one clock that there is not: every time, and every energy, is the least over the clocks."""
        least = copy(self)
        least._reduce, least.clocks = PhaseCost.least, 1
        reduced = [{phase: lane.least() for phase, lane in lanes.items()} for lanes in self._lanes()]
        *least.layers, least.embedding, least.head = reduced
        return least

    def _lanes(self) -> list[dict[Phase, PhaseCost]]:
        return [*self.layers, self.embedding, self.head]

    def at(self, rows: IntArray, pipeline: Pipeline) -> StageCosts:
        """What stages cost under the plans at these rows, which have this pipeline."""
        return self.at_each([(rows, pipeline)])[0]

    def at_each(self, layouts: Sequence[tuple[IntArray, Pipeline]]) -> list[StageCosts]:
        """The same of several pipelines; what their stages do once a step is priced together."""
        costs = [StageCosts(self, rows, pipeline) for rows, pipeline in layouts]
        if self.machine.framework.forward_only:
            return costs
        once = iter(_once_a_step(self, [held for one in costs for held in one.of_a_step]))
        for one in costs:
            one.once = list(islice(once, len(one.pipeline)))
        return costs

    def step_exchange(self, plans: PlanBatch, held: _Held) -> StepExchange:
        """What data-parallel ranks exchange in a step, in each of these plans."""
        machine = self.machine
        groups = Groups(plans, machine.network, shards_experts=machine.framework.shards_experts)
        data = DataParallel(plans, groups, framework=machine.framework, precision=machine.precision)
        return data.step(held.units, held.counts, held.reduced)

    def updates(self, plans: PlanBatch, held: _Held) -> list[_Priced]:
        """What a GPU does with its parameters beside its layers: a micro-batch's gradients added up, the optimizer
        step, copies on their way between ranks; each priced once for plans that are alike in what it reads.
        """
        shared = [plans.zero_stage, plans.dp * plans.cp > 1, gradients_in_ddp_buckets(plans, self.machine.framework)]
        ends, counts = held.units.ends, held.counts
        frozen = self.machine.framework.lora is not None
        reduced = held.reduced.dense + held.reduced.ends if frozen else held.inner + ends

        def priced(calls: Callable[[Workload, IntArray], list[Call]], *read: FloatArray | IntArray) -> _Priced:
            first, place = distinct_rows([*read, *shared])
            return self.price(calls(self._workload(plans.take(first)), first), len(first)), place

        matrices = held.orthogonalized
        orthogonal = [
            priced(
                lambda work, rows: newton_schulz(self._memory(work.plans), matrices[rows]),
                *(plans.tp, plans.ep, plans.etp, *matrices.T),
            )
        ]
        return [
            *(orthogonal if self.machine.framework.muon is not None else []),
            priced(
                lambda work, rows: work.accumulate(held.accumulated[rows]) + work.gradients(held.accumulated[rows]),
                *(held.accumulated, plans.micro_batches),
            ),
            priced(lambda work, rows: work.optimizer(held.owned[rows]), held.owned),
            priced(lambda work, rows: work.weights(held.weights[rows]), held.weights, plans.micro_batches),
            priced(
                lambda work, rows: work.copies(
                    held.inner[rows],
                    ends[rows],
                    counts.take(rows),
                    reduced[rows],
                    owned=held.owned[rows],
                    lone=held.lone[rows],
                ),
                *(held.inner, ends, reduced, held.owned, held.lone, plans.micro_batches, *vars(counts).values()),
            ),
        ]

    def _memory(self, plans: PlanBatch) -> MemoryModel:
        machine = self.machine
        return MemoryModel(
            self.architecture,
            plans,
            framework=machine.framework,
            precision=machine.precision,
            calibration=machine.calibration,
        )

    def _workload(self, plans: PlanBatch) -> Workload:
        machine = self.machine
        return Workload(self.architecture, plans, framework=machine.framework, precision=machine.precision)


# What is read of a plan by the parts of a stage that a micro-batch passes, and by those of a step; both know the
# pipeline. How many micro-batches there are, and how many at a time, comes in their place into the latter.
_PIPELINE = ("dp", "tp", "pp", "ep", "etp", "cp", "virtual_stages", "schedule")
_OF_A_MICRO_BATCH = (*_PIPELINE, *OF_DISPATCH, "micro_batch", "seq", "sequence_parallel", "recompute", "skew")
_OF_A_STEP = (*_PIPELINE, "zero_stage", "replicas")


def _of_overlapped_rows(plans: PlanBatch) -> list[IntArray]:
    """What says how much of the rows to experts runs behind another micro-batch's passes, where any do, [P] each."""
    overlapped = plans.dispatch_overlap == OVERLAPPED
    columns = (plans.scheduled, plans.pp, plans.virtual_stages, plans.schedule)
    return [plans.dispatch_overlap, *(np.where(overlapped, column, 0) for column in columns)]


class StageCosts:
    """Blocks added up into stages, for some of the plans.

    What a stage does with a micro-batch does not depend on how parameters are sharded, and what it does once a step not
    on what micro-batches are made of: each is priced once for all plans that are alike in what it reads.
    """

    def __init__(self, blocks: BlockCosts, rows: IntArray, pipeline: Pipeline) -> None:
        self.plans = plans = blocks.plans.take(rows)
        self.blocks, self.pipeline = blocks, pipeline
        self.once: list[_Once] = []  # of each class of stages, as `BlockCosts.at_each` finds it
        self._forward_only = blocks.machine.framework.forward_only
        self._every = _StageParts(blocks, rows)
        read = [getattr(plans, name) for name in _OF_A_MICRO_BATCH]
        self._first_micro, self._micro_P = distinct_rows([*read, plans.rounds, *_of_overlapped_rows(plans)])
        self._micro = _StageParts(blocks, rows[self._first_micro])
        read = [getattr(plans, name) for name in _OF_A_STEP]
        self._first_step, self._step_P = distinct_rows([*read, plans.micro_batches, plans.scheduled])
        self._step = _StageParts(blocks, rows[self._first_step])

    @property
    def of_a_step(self) -> list[tuple[_StageParts, Stage | Stages]]:
        """Each class of stages, in the plans that differ in what it does once a step."""
        return [(self._step, stage.take(self._first_step)) for stage in self.pipeline]

    def fullest(self) -> Memory:
        """Memory of the fullest class of stages."""
        return fullest(self._every.memory, self.pipeline)

    def stages(self) -> list[StageCost]:
        """Cost of each class of stages."""
        if self._forward_only:
            return [self._every.forward_only(stage) for stage in self.pipeline]
        passes = [self._micro.passes(stage.take(self._first_micro)) for stage in self.pipeline]
        return [self._stage(of_micro, of_step) for of_micro, of_step in zip(passes, self.once, strict=True)]

    def _stage(self, of_micro: _Passes, of_step: _Once) -> StageCost:
        """Cost of a class of stages, of what it does with a micro-batch and once a step."""
        variance_s2 = self._variance_s2(of_micro, of_step)
        passes = take_rows(of_micro.without_spread(), self._micro_P)
        once = take_rows(of_step.without_spread(), self._step_P)
        forward, backward = passes.forward, passes.backward
        _merge(forward, once.updates.get(Phase.FORWARD), 1)
        _merge(backward, once.updates.get(Phase.BACKWARD), 1)
        again, call = passes.recomputed_calls, passes.call
        queue = self._every.queue(call)
        return StageCost(
            forward=forward,
            backward=backward,
            optimizer=once.updates[Phase.OPTIMIZER],
            forward_exchange=passes.forward_exchange,
            backward_exchange=passes.backward_exchange,
            step_exchange=once.exchange,
            unoverlappable_fraction_forward=passes.unoverlappable_fraction_forward,
            unoverlappable_fraction_backward=passes.unoverlappable_fraction_backward,
            host=self._every.kernels(forward.calls_U, backward.calls_U - again, passes.layers_host)
            + self._every.again(call, again)
            + HostCost(
                forward_s=passes.queued.forward_s,
                backward_s=passes.queued.backward_s + queue.added_s(once.added_tensors),
            ),
            host_exchange_s=queue.step_s(
                units=once.exchange.units,
                layers=once.layers,
                buckets=once.exchange.buckets,
                tensors=once.tensors,
                counts=once.counts,
                micro_batches=self.plans.micro_batches.astype(np.float64),
            ),
            host_step_s=passes.host_step_s + once.checks_s,
            host_step_read=passes.host_step_read,
            step_read=passes.step_read,
            host_sync_s=passes.host_sync_s,
            runs_dry=passes.runs_dry,
            recompute_sync_s=passes.recompute_sync_s,
            host_behind_s=passes.host_behind_s,
            before_share=passes.before_share,
            pipeline_fill_comm_s=passes.pipeline_fill_comm_s,
            host_update_s=once.host_update_s[:, None] + self._looked_at_s(call, once),
            variance_s2=variance_s2,
        )

    def _looked_at_s(self, call: HostCost, once: _Once) -> FloatArray:
        """In which the device stands idle since the host looks at gradients before it has them exchanged, [P, 1].

        It asks of every bucket's norm whether it is a number, and whether it is infinite, waits for either answer,
        queues the exchange and then the next kernel (Megatron Core, core/distributed/param_and_grad_buffer.py,
        check_grads; core/rerun_state_machine.py, validate_result).
        """
        if not self.blocks.machine.framework.checks_gradients:
            return np.zeros((len(self.plans), 1))
        buckets = once.exchange.units * once.counts.reductions + once.exchange.buckets
        calls = 2 * _CALLS_OF_A_WAIT + 1 + _CALLS_OF_A_DRAIN
        return np.asarray(calls * buckets[:, None] * call.backward_s)

    def _variance_s2(self, passes: _Passes, once: _Once) -> FloatArray:
        """Of the device's time in a step, [P]: errors of an operator's calls add up, those of several do not. Only what
        both a micro-batch and the rest of a step call is put together for every plan."""
        m, m_step = (plans.micro_batches for plans in (self.plans, self._step.plans))
        in_pass = _spreads_s([(passes.forward, 1), (passes.backward, 1)])
        updates = once.updates.items()
        in_step = _spreads_s([(lane, 1 if phase is Phase.OPTIMIZER else m_step) for phase, lane in updates])
        both = [(in_pass.pop(name), in_step.pop(name)) for name in [*in_pass] if name in in_step]
        variance_s2 = np.square(m) * _squares(in_pass, len(self._micro.plans))[self._micro_P]
        variance_s2 = variance_s2 + _squares(in_step, len(m_step))[self._step_P]
        for of_pass, of_step in both:
            variance_s2 = variance_s2 + np.square(m * of_pass[self._micro_P] + of_step[self._step_P])
        return np.asarray(variance_s2)


@dataclass(frozen=True, kw_only=True)
class _Passes:
    """A stage's passes of one micro-batch; names as in `StageCost`. Arrays [P, K], [P, 1] or [P].

    Attributes:
        forward, backward: without copies of parameters and gradients on their way between ranks.
        unoverlappable_fraction_forward, unoverlappable_fraction_backward: of a pass, as in `StageCost`.
        call: host time of a call; `layers_host` of the layers and ends, `queued` of collectives and messages.
        recomputed_calls: forward operators that a backward pass runs again.
    """

    forward: PhaseCost
    backward: PhaseCost
    forward_exchange: Exchange
    backward_exchange: Exchange
    unoverlappable_fraction_forward: FloatArray
    unoverlappable_fraction_backward: FloatArray
    call: HostCost
    layers_host: HostCost
    queued: HostCost
    recomputed_calls: FloatArray
    host_step_s: FloatArray | float
    host_step_read: float
    step_read: float
    host_sync_s: FloatArray
    runs_dry: bool
    recompute_sync_s: FloatArray
    host_behind_s: FloatArray
    before_share: FloatArray
    pipeline_fill_comm_s: FloatArray

    def without_spread(self) -> _Passes:
        """Without how far the device's times may be off."""
        return replace(self, forward=self.forward.without_spread(), backward=self.backward.without_spread())


@dataclass(frozen=True, kw_only=True)
class _Once:
    """What a stage does with its parameters in a step.

    Attributes:
        updates: work of the device, by the phase that it falls into.
        exchange: over data-parallel ranks; `counts` how often.
        added_tensors: whose gradients the mean micro-batch adds to what is there, [P]; `tensors` of the stage, and its
            `layers`.
        checks_s: host time of checks of what is exchanged, and of what matrices are made orthogonal by, [P, 1].
        host_update_s: as in `StageCost`, of parameters, [P].
    """

    updates: dict[Phase, PhaseCost]
    exchange: StepExchange
    counts: ExchangeCounts
    added_tensors: FloatArray
    tensors: int | FloatArray
    layers: FloatArray
    checks_s: FloatArray
    host_update_s: FloatArray

    def without_spread(self) -> _Once:
        """Without how far the device's times may be off."""
        return replace(self, updates={phase: lane.without_spread() for phase, lane in self.updates.items()})


@dataclass(frozen=True, kw_only=True)
class _Held:
    """Parameters of a stage on one GPU. [P].

    Attributes:
        units: as they are exchanged; `reduced` those that have gradients; `counts` how often.
        orthogonalized: matrices of each shape that it makes orthogonal, [P, S].
        inner: of layers, those that other ranks hold, too; `weights` all of them; `lone` those that none does, and
            that FSDP shards all the same.
        owned: that it updates in the optimizer step.
        accumulated: whose gradients a micro-batch adds to those before it.
    """

    units: FsdpUnits
    reduced: FsdpUnits
    orthogonalized: FloatArray
    counts: ExchangeCounts
    inner: FloatArray
    lone: FloatArray
    weights: FloatArray
    owned: FloatArray
    accumulated: FloatArray


def _once_a_step(blocks: BlockCosts, classes: Sequence[tuple[_StageParts, Stage | Stages]]) -> list[_Once]:
    """What classes of stages do once a step, and in their passes with what that exchanges."""
    held = one_behind_another([parts.held(stage) for parts, stage in classes])
    ends = np.cumsum([len(parts.rows) for parts, _ in classes])
    plans = blocks.plans.take(np.concatenate([parts.rows for parts, _ in classes]))
    exchange, updates = blocks.step_exchange(plans, held), blocks.updates(plans, held)
    return [
        parts.once(stage, take_rows(exchange, rows), _summed(updates, rows), take_rows(held, rows))
        for (parts, stage), rows in zip(classes, np.split(np.arange(ends[-1]), ends[:-1]), strict=True)
    ]


def _summed(priced: Sequence[_Priced], rows: IntArray) -> dict[Phase, PhaseCost]:
    """By phase, of the plans at these rows."""
    total: dict[Phase, PhaseCost] = {}
    for lanes, place in priced:
        for phase, lane in take_rows(lanes, place[rows]).items():
            if phase in total:
                _merge(total[phase], lane, 1)
            else:
                total[phase] = lane
    return total


class _StageParts:
    """The parts of a stage's cost, for some of the plans."""

    def __init__(self, blocks: BlockCosts, rows: IntArray) -> None:
        self._hosts: dict[tuple[int, bool], HostCost] = {}
        self.plans = blocks.plans.take(rows)
        self.rows = rows
        self._blocks = blocks
        self._shape = blocks.shape[rows]

    @cached_property
    def _batch(self) -> MicroBatch:
        machine = self._blocks.machine
        return MicroBatch.of(self.plans, machine.framework, machine.precision)

    @property
    def _chunks(self) -> FloatArray:
        """Of a pipeline on a GPU, that a micro-batch passes, [P, 1]."""
        return np.asarray(self.plans.virtual_stages[:, None].astype(np.float64))

    @cached_property
    def memory(self) -> MemoryModel:
        """Of the plans."""
        machine = self._blocks.machine
        return MemoryModel(
            self._blocks.architecture,
            self.plans,
            framework=machine.framework,
            precision=machine.precision,
            calibration=machine.calibration,
        )

    @cached_property
    def _comm(self) -> Communication:
        machine = self._blocks.machine
        return Communication(
            self._blocks.architecture,
            self.plans,
            machine.network,
            framework=machine.framework,
            precision=machine.precision,
        )

    def passes(self, stage: Stage | Stages) -> _Passes:
        """What a stage does with a micro-batch."""
        blocks = self._blocks
        forward, backward = (self._device(stage, phase) for phase in (Phase.FORWARD, Phase.BACKWARD))
        call = self._call(stage)
        forward_exchange, backward_exchange = self._exchange(stage)
        if self._offload is not None and self._offload.activations:
            moved = self._to_host(stage, self._offload)
            forward_exchange, backward_exchange = forward_exchange + moved, backward_exchange + moved
        host_sync_s, drained_s = self._host_sync_s(stage, call)
        recomputed = Recomputation.of(self.plans, blocks.architecture, blocks.machine.framework).experts[:, None]
        queue, alone = self.queue(call), self._blocks.machine.framework.pass_calls * self._chunks
        host_behind_s, before_share = self._around_waits(stage, forward)
        return _Passes(
            forward=forward,
            backward=backward,
            forward_exchange=forward_exchange,
            backward_exchange=backward_exchange,
            unoverlappable_fraction_forward=self._lead(stage, Phase.FORWARD, forward),
            unoverlappable_fraction_backward=self._lead(stage, Phase.BACKWARD, backward),
            call=call,
            layers_host=self._layers_host(stage),
            queued=HostCost(
                forward_s=queue.queued_s(forward_exchange.calls, "forward")
                + self._checks_s(forward_exchange)
                + alone * call.forward_s,
                backward_s=queue.queued_s(backward_exchange.calls, "backward")
                + self._checks_s(backward_exchange)
                + alone * call.backward_s,
            ),
            recomputed_calls=self._recomputed_calls(stage),
            host_step_s=self._host_step_s(stage),
            host_step_read=blocks.machine.framework.step_read,
            step_read=self._step_read(),
            host_sync_s=host_sync_s,
            runs_dry=self._runs_dry(stage),
            recompute_sync_s=host_sync_s * recomputed + drained_s,
            host_behind_s=host_behind_s,
            before_share=before_share,
            pipeline_fill_comm_s=self._comm.pipeline_fill_comm_s(),
        )

    def once(
        self, stage: Stage | Stages, exchange: StepExchange, updates: dict[Phase, PhaseCost], held: _Held
    ) -> _Once:
        """What a stage does once a step, given what it exchanges, its work, and what a GPU has of its parameters."""
        return _Once(
            updates=updates,
            exchange=exchange.with_exposed(
                self._tied(stage)
                + self._comm.norm_s()
                + self._norm_gradients_s(stage)
                + self._put_in_place_s(stage)
                + self._gathered_s(held.orthogonalized)
            ),
            checks_s=self._step_checks_s(exchange, held.counts) + self._orthogonal_host_s(stage, held.orthogonalized),
            counts=held.counts,
            added_tensors=self._added(stage),
            tensors=self._tensors(stage),
            layers=np.asarray(sum(stage.layers), dtype=np.float64) * np.ones(len(self.plans)),
            host_update_s=self._host_update_s(held.owned) + self._hashed_s(held),
        )

    def _checks_s(self, exchange: Exchange) -> FloatArray:
        """Of a micro-batch's collectives, where a plan asks for them, [P, 1]."""
        if not self._blocks.machine.framework.checks_collectives:
            return np.zeros((len(self.plans), 1))
        return checks_s(exchange.calls, self._comm.groups)

    def _step_checks_s(self, exchange: StepExchange, counts: ExchangeCounts) -> FloatArray:
        """The same of a step's."""
        if not self._blocks.machine.framework.checks_collectives:
            return np.zeros((len(self.plans), 1))
        return step_checks_s(exchange, counts, self._comm.groups)

    def _put_in_place_s(self, stage: Stage | Stages) -> FloatArray:
        """Copies of gathered parameters to their places, tensor by tensor and rank by rank, [P]."""
        ranks = self._comm.groups["shards"][0]
        gathers = (self.plans.zero_stage >= 1) & (ranks > 1)
        return np.asarray(self._blocks.machine.framework.gathered_tensor_s * self._tensors(stage) * ranks * gathers)

    def held(self, stage: Stage | Stages) -> _Held:
        """What a GPU of a stage has of its parameters."""
        memory, shard, units = self.memory, self.memory.trained(stage), self.memory.units(stage)
        return _Held(
            units=units,
            reduced=memory.reduced_units(stage),
            orthogonalized=orthogonalized(memory, stage),
            inner=units.dense + np.where(memory.expert_copies > 1, units.expert, 0.0),
            lone=memory.lone(units),
            weights=units.dense + units.expert,
            counts=ExchangeCounts.of(self.plans, self._blocks.machine.framework, stage.first),
            owned=memory.owned(shard),
            accumulated=memory.accumulated(shard),
        )

    def queue(self, call: HostCost) -> ParallelHost:
        """What the host queues for the parallel parts."""
        framework = self._blocks.machine.framework
        return ParallelHost(
            self._blocks.host,
            call,
            measured=framework.torch_launch and not framework.captured,
            shard_calls=framework.shard_calls,
        )

    def forward_only(self, stage: Stage | Stages) -> StageCost:
        """Cost of a stage where nothing is trained: forward passes, each begun on an idle device."""
        blocks, plans = self._blocks, len(self.plans)
        nothing_s, exchange = np.zeros((plans, 1)), self._exchange(stage)[0]
        call = HostCost(forward_s=self._forward_kernel_s(stage), backward_s=0.0)
        queue = self.queue(call)
        checks_s = self._checks_s(exchange)
        idle_s = self._host_sync_s(stage, call)[0] + _CALLS_OF_A_DRAIN * call.forward_s
        host_s = self._forward_host_s(stage) + queue.queued_s(exchange.calls, "forward") + checks_s
        forward = self._device(stage, Phase.FORWARD)
        return StageCost(
            forward=forward.without_spread(),
            backward=PhaseCost.empty(plans, blocks.clocks),
            optimizer=PhaseCost.empty(plans, blocks.clocks),
            forward_exchange=exchange,
            backward_exchange=self._comm.none(),
            step_exchange=StepExchange.none(plans),
            unoverlappable_fraction_forward=nothing_s,
            unoverlappable_fraction_backward=nothing_s,
            # what it queues while the device stands idle is part of its own time: a pass takes the longer of both
            host=HostCost(forward_s=np.maximum(host_s - idle_s, 0.0), backward_s=nothing_s),
            host_exchange_s=nothing_s,
            host_step_s=0.0,
            host_step_read=0.0,
            step_read=0.0,
            host_sync_s=idle_s,
            runs_dry=False,
            recompute_sync_s=nothing_s,
            host_behind_s=nothing_s,
            before_share=nothing_s,
            pipeline_fill_comm_s=np.zeros(plans),
            host_update_s=nothing_s,
            variance_s2=np.square(self.plans.micro_batches) * _squares(forward.spread_s, plans),
        )

    def _forward_host_s(self, stage: Stage | Stages) -> FloatArray:
        """Host time of a forward pass, [P, 1]: of layers like the measured ones theirs; of blocks that stand alone so
        many kernels, since half of a measured layer is no block of another depth."""
        blocks, total_s = self._blocks, np.zeros((len(self.plans), 1))
        for (count, layer), phase_costs in zip(self._layers(stage), blocks.layers, strict=True):
            if len(layer.blocks) > 1:
                total_s = total_s + _column(count) * self._host_of(layer).forward_s
                continue
            kernels = layer.blocks[0].forward_kernels(self._batch)
            if kernels is None:
                kernels = phase_costs[Phase.FORWARD].calls_U[self._shape]
            total_s = total_s + (count * kernels)[:, None] * self._layer_kernel_s(layer)
        ends = (stage.embedding + stage.head) / 2 * blocks.architecture.has_head
        return np.asarray(total_s + blocks.host.ends(ends).forward_s)

    def _layer_kernel_s(self, layer: LayerBlocks) -> float:
        """Host time of a kernel in the forward pass of the measured layer that one is like."""
        name = layer.host_block()
        return float(self._blocks.host.layer(name, 2).forward_s) / measured_layer(name)[0]

    def _forward_kernel_s(self, stage: Stage | Stages) -> FloatArray | float:
        """The mean over the stage's layers; in each plan, [P, 1], or the same in all."""
        held = held_layers(stage, self._blocks.layer_blocks)
        layers = [(_column(count), self._layer_kernel_s(layer)) for count, layer in held]
        whole = sum((count * kernel_s for count, kernel_s in layers), 0.0)
        return whole / np.maximum(sum(count for count, _ in layers), 1)

    def _device(self, stage: Stage | Stages, phase: Phase) -> PhaseCost:
        blocks, held = self._blocks, self._held_shapes(stage)
        total = PhaseCost.empty(held.shapes, blocks.clocks)
        for count, phase_costs in _parts_of(held.stage, blocks.layers, blocks.embedding, blocks.head):
            if phase in phase_costs:
                _merge(total, held.at(phase_costs[phase]), count)
        return take_rows(total, held.place)

    def _held_shapes(self, stage: Stage | Stages) -> _HeldShapes:
        """Distinct shapes of micro-batches and of what a stage holds: its parts are added up once for each."""
        if isinstance(stage, Stage):
            return _HeldShapes(stage=stage, rows=None, shapes=self._blocks.shapes, place=self._shape)
        counts = [count for count in stage.layers if not isinstance(count, int)]
        first, place = distinct_rows([self._shape, *counts])
        return _HeldShapes(stage=stage.take(first), rows=self._shape[first], shapes=len(first), place=place)

    def _lead(self, stage: Stage | Stages, phase: Phase, lane: PhaseCost) -> FloatArray:
        """Share of a pass that no exchange of parameters hides behind: head and one layer, [P, 1]."""
        blocks, whole_s = self._blocks, lane.time_s_UK[:, -1]
        head_s: FloatArray | float = 0.0
        if stage.head and phase in blocks.head:
            head_s = blocks.head[phase].time_s_UK[self._shape, -1]
        return shares(np.asarray(head_s + (whole_s - head_s) / np.maximum(sum(stage.layers), 1)), whole_s)[:, None]

    def _exchange(self, stage: Stage | Stages) -> tuple[Exchange, Exchange]:
        """Of a micro-batch in a forward and in a backward pass: what blocks exchange, and messages between stages."""
        blocks, held = self._blocks, self._held_shapes(stage)
        forward = backward = Exchange.none(held.shapes)
        exchanges = blocks.layer_exchanges, blocks.embedding_exchange, blocks.head_exchange
        for count, (there, back) in _parts_of(held.stage, *exchanges):
            forward, backward = forward + held.at(there).times(count), backward + held.at(back).times(count)
        sent, received = self._comm.pipeline_p2p(first=stage.embedding, last=stage.head)
        return take_rows(forward, held.place) + sent, take_rows(backward, held.place) + received

    @property
    def _offload(self) -> HostOffload | None:
        return self._blocks.machine.framework.offload

    def _to_host(self, stage: Stage | Stages, offload: HostOffload) -> Exchange:
        """Activations of one micro-batch on their way to the host or back."""
        kinds = zip(self._blocks.kinds, stage.layers, strict=True)
        kept_B = sum((count * self.memory.kept(kind)[0] for kind, count in kinds), np.zeros(len(self.plans)))
        return copied(offload, kept_B, self._blocks.machine.network)

    def _host_update_s(self, owned: FloatArray) -> FloatArray:
        """Time in which the host updates parameters, [P]."""
        if self._offload is None or not self._offload.optimizer:
            return np.zeros(len(self.plans))
        framework = self._blocks.machine.framework
        parameter_B = self._batch.element_size_B
        return update_s(self._offload, owned, parameter_B=parameter_B, update_B=framework.host_update_B)

    def _hashed_s(self, held: _Held) -> FloatArray:
        """Time in which the host hashes all weights that a GPU has, [P]."""
        machine = self._blocks.machine
        if not machine.framework.checks_weights:
            return np.zeros(len(self.plans))
        return np.asarray(HASHED_S * HOSTS.get(machine.gpu.name, 1.0) * (held.weights + held.units.ends))

    def _gathered_s(self, counts: FloatArray) -> FloatArray:
        """Matrices that tensor-parallel ranks gather to make them orthogonal, once a step, [P]."""
        size_B = gathered_B(self.memory, counts)
        return np.asarray(
            self._comm.groups.time_s(Collective.ALL_GATHER, size_B, self._comm.groups["tp"]) * (size_B > 0)
        )

    def _orthogonal_host_s(self, stage: Stage | Stages, counts: FloatArray) -> FloatArray:
        """Host time of what makes so many matrices orthogonal, [P, 1]."""
        framework = self._blocks.machine.framework
        if framework.muon is None:
            return np.zeros((len(self.plans), 1))
        kernels = queued(self.memory, counts)[:, None]
        return np.asarray(framework.host_factors.step * kernels * self._measured_kernel_s(stage))

    def _tied(self, stage: Stage | Stages) -> FloatArray:
        """Gradients of an embedding that the head on another stage shares."""
        architecture = self._blocks.architecture
        frozen, shared = self._blocks.machine.framework.lora is not None, architecture.tied or architecture.modules
        if frozen or not shared or stage.embedding == stage.head:
            return np.zeros(len(self.plans))
        return self._comm.embedding_grad_all_reduce(parameters(architecture).embedding, self._blocks.machine.gradient_B)

    def _norm_gradients_s(self, stage: Stage | Stages) -> FloatArray:
        """Gradients of norms, of which under sequence parallelism each tensor-parallel rank has a part, summed, [P]."""
        shares = (self.plans.tp > 1) & self.plans.sequence_parallel.astype(bool)
        if not (self._blocks.machine.framework.sums_norm_gradients and shares.any()):
            return np.zeros(len(self.plans))
        last = self._blocks.architecture.final_norm and stage.head
        norms = sum(n * layer.norm_tensors() for n, layer in self._layers(stage)) + last
        size_B = self._blocks.machine.gradient_B * self._blocks.architecture.hidden
        return np.asarray(self._comm.small_sums_s(np.asarray(norms * shares, dtype=np.float64), size_B))

    def _host_step_s(self, stage: Stage | Stages) -> FloatArray | float:
        """Host time of the optimizer; in each plan, [P, 1], or the same in all."""
        host, framework = self._blocks.host, self._blocks.machine.framework
        if framework.fused_optimizer:
            return 0.0 if self._drains_before_step else self._looped_s(stage)
        if framework.step_kernels is None:
            return self._looped_s(stage) + framework.host_factors.step * (
                host.fixed_step_s()
                + sum(
                    _column(n) * host.layer_step_s(layer.host_block()) * self._more_tensors(layer)
                    for n, layer in self._layers(stage)
                )
            )
        more = sum((n * layer.more_tensors(self._batch) for n, layer in self._layers(stage)), np.zeros(len(self.plans)))
        kernels = framework.step_kernels * (self._tensors(stage) + more)
        step_s = np.asarray(host.fixed_step_s() + (kernels * self._measured_kernel_s(stage))[:, None])
        return framework.host_factors.step * step_s

    def _looped_s(self, stage: Stage | Stages) -> FloatArray | float:
        """Host time of what goes over the layers' tensors once a step beside the update; in each plan, [P, 1], or the
        same in all."""
        framework, (factors, slower) = self._blocks.machine.framework, self._host_factors
        calls = framework.tensor_calls[1]
        if not calls:
            return 0.0
        each = (_column(n) * self._looped_calls(layer) for n, layer in self._layers(stage))
        return slower * factors.forward * self._measured_kernel_s(stage) * sum(each)

    def _looped_calls(self, layer: LayerBlocks) -> float:
        """Of a layer's tensors that are trained, and of the modules of its adapters."""
        framework = self._blocks.machine.framework
        if framework.lora is None:
            return framework.tensor_calls[1] * layer.tensors_of(framework)
        return (2 * framework.tensor_calls[1] + framework.adapter_calls) * adapted(
            layer.operators(self._batch), self._batch
        )

    def _step_read(self) -> float:
        """Of the device's work for the optimizer what comes before the last result that the host reads, by bytes."""
        framework = self._blocks.machine.framework
        return framework.step_read_B / (_UPDATE_B + framework.optimizer_B)

    def _more_tensors(self, layer: LayerBlocks) -> FloatArray | float:
        """Tensors of a layer over those that it has where experts share theirs, [P, 1]."""
        more = layer.more_tensors(self._batch)
        return 1 + more[:, None] / layer.parameter_tensors() if more.any() else 1.0

    def _measured_kernel_s(self, stage: Stage | Stages) -> float:
        """Host time of a kernel in layers like the measured ones, the mean of both passes."""
        held = held_layers(stage, self._blocks.layer_blocks)
        costs = [self._blocks.host.layer(layer.host_block(), 2) for _, layer in held]
        sums = [float(np.max(cost.forward_s) + np.max(cost.backward_s)) for cost in costs]
        kernels = [sum(measured_layer(layer.host_block())) for _, layer in held]
        return sum(sums) / sum(kernels) if kernels else 0.0

    def _layers(self, stage: Stage | Stages) -> Iterator[tuple[int | FloatArray, LayerBlocks]]:
        """How many of each distinct layer, and its blocks."""
        return zip(stage.layers, self._blocks.layer_blocks, strict=True)

    def _tensors(self, stage: Stage | Stages) -> int | FloatArray:
        """Of parameters that are trained, two of each adapter or all; in all plans or in each, [P]."""
        if self._blocks.machine.framework.lora is None:
            return sum(n * layer.parameter_tensors() for n, layer in self._layers(stage))
        return sum(n * 2 * adapted(layer.operators(self._batch), self._batch) for n, layer in self._layers(stage))

    def _added(self, stage: Stage | Stages) -> FloatArray:
        """Tensors whose gradients the mean micro-batch adds to what is there; on one GPU they are left out."""
        shared = self.plans.gpus > 1
        return np.asarray(
            self._tensors(stage) * accumulated_fraction(self.plans, self._blocks.machine.framework) * shared
        )

    def _recomputed_calls(self, stage: Stage | Stages) -> FloatArray:
        """Forward operators that a backward pass runs again, which the host queues again, [P]."""
        calls = zip(stage.layers, self._blocks.recomputed_calls, strict=True)
        return np.asarray(sum(count * each[self._shape] for count, each in calls))

    def _call(self, stage: Stage | Stages) -> HostCost:
        """Host time of one call in either pass: of a kernel, or the mean over those of the stage's layers, [P, 1]."""
        host, blocks = self._blocks.host, self._blocks
        if blocks.machine.framework.captured:
            return HostCost(forward_s=np.zeros((len(self.plans), 1)), backward_s=np.zeros((len(self.plans), 1)))
        if host.kernel_s:
            return HostCost(forward_s=host.kernel_s, backward_s=host.kernel_s)
        total = HostCost(forward_s=0.0, backward_s=0.0)
        calls = {phase: np.zeros(len(self.plans)) for phase in (Phase.FORWARD, Phase.BACKWARD)}
        for (count, layer), phase_costs in zip(self._layers(stage), blocks.layers, strict=True):
            total = total + self._host_of(layer, without_graphs=True).times(_column(count))
            for phase in calls:
                calls[phase] += count * phase_costs[phase].calls_U[self._shape]
        calls[Phase.BACKWARD] -= self._recomputed_calls(stage)
        forward, backward = (np.maximum(calls[phase], 1.0)[:, None] for phase in calls)
        slower = self._host_factors[1] if self._is_plain else 1.0
        return HostCost(forward_s=slower * total.forward_s / forward, backward_s=slower * total.backward_s / backward)

    def _host_sync_s(self, stage: Stage | Stages, call: HostCost) -> tuple[FloatArray, FloatArray]:
        """Where the host waits for the device, in a forward and in a backward pass, [P, 1] each.

        For how many rows go to which expert, of which it learns, and queues what comes next; or until the device has
        done what was queued. What it does once a step is shared out over the micro-batches.
        """
        forward, backward = np.zeros((2, len(self.plans)))
        for count, layer in held_layers(stage, self._blocks.layer_blocks):
            found = layer.host_waits(self._batch)
            forward += count * (_CALLS_OF_A_WAIT * found.reads + _CALLS_OF_A_DRAIN * found.drains_forward)
            backward += count * _CALLS_OF_A_DRAIN * found.drains_backward
        each, once = self._blocks.machine.framework.drained_calls
        forward += each + once / self.plans.micro_batches
        step_s = self._looped_s(stage) if self._drains_before_step else 0.0
        forward_s = forward[:, None] * call.forward_s + step_s / self.plans.micro_batches[:, None]
        return np.asarray(forward_s), np.asarray(backward[:, None] * call.backward_s)

    @property
    def _drains_before_step(self) -> bool:
        """Whether the device stands idle while the host goes over tensors, before it queues a step's few kernels."""
        framework = self._blocks.machine.framework
        return framework.fused_optimizer and framework.synchronizes_every_pass

    def _runs_dry(self, stage: Stage | Stages) -> bool:
        """Left out: blocks without experts, beside which the host could run ahead."""
        found = [layer.host_waits(self._batch) for _, layer in held_layers(stage, self._blocks.layer_blocks)]
        return any(bool(one.drains_forward.any()) for one in found)

    def _around_waits(self, stage: Stage | Stages, forward: PhaseCost) -> tuple[FloatArray, FloatArray]:
        """What the host queues behind its waits in a forward pass, and the device's share before them, [P, 1] each."""
        blocks, none = self._blocks, np.zeros((len(self.plans), 1))
        if not blocks.behind_router_s:
            return none, none
        host_s, device_s = none, np.zeros(len(self.plans))
        later = list(zip(blocks.layer_blocks, blocks.behind_router_s, strict=True))
        for count, (layer, behind_s) in held_layers(stage, later):
            reads = layer.host_waits(self._batch).reads > 0
            of_experts = layer.expert_launches(self._batch)[0]
            kernels = _kernels_behind(layer)[0] + layer.more_launches(self._batch)[0] + of_experts
            name = self._host_name(layer)
            each_s = self._blocks.host.layer(name, 2).forward_s / measured_layer(name)[0]
            host_s = host_s + _column(count) * each_s * (reads * kernels)[:, None]
            device_s = device_s + count * behind_s[self._shape] * reads
        queued = self.kernels(none[:, 0], none[:, 0], HostCost(forward_s=host_s, backward_s=0.0))
        before = 1 - shares(device_s, forward.time_s_UK[:, -1])
        return np.asarray(queued.forward_s), np.where(host_s > 0, before[:, None], 0.0)

    def _replayed(self, layer: LayerBlocks) -> tuple[float, float]:
        """Of the measured layer's kernels those that graphs hold, but for one a pass that starts them; of a layer of
        one block twice as many, since it is taken for half of that one."""
        parts, scale = self._blocks.machine.framework.captured_parts, len(layer.blocks) / 2
        held = (0.0, 0.0)
        if parts == "router" and _has_experts(layer):
            held = MEASURED_ROUTER
        elif parts == "attention":
            (there, back), (left, left_back) = measured_layer(self._host_name(layer)), _kernels_behind(layer)
            held = (scale * there - left, scale * back - left_back)
        return max(held[0] - 1, 0.0) / scale, max(held[1] - 1, 0.0) / scale

    def _host_name(self, layer: LayerBlocks) -> str:
        """The measured layer that one is like."""
        return _PLAIN if self._is_plain else layer.host_block()

    def _host_of(self, layer: LayerBlocks, *, without_graphs: bool = False) -> HostCost:
        """`_found_host`, which many stages ask for."""
        key = (id(layer), without_graphs)
        if key not in self._hosts:
            self._hosts[key] = self._found_host(layer, without_graphs=without_graphs)
        return self._hosts[key]

    def _found_host(self, layer: LayerBlocks, *, without_graphs: bool) -> HostCost:
        """Host time of one layer in a micro-batch: of the measured one that it is like, and of the kernels that the
        framework queues beside that one's, each at the measured one's cost of a kernel, [P, 1]. Without those that
        graphs of parts of it replay; or without graphs, and without what is no call of an operator."""
        name = self._host_name(layer)
        measured = self._blocks.host.layer(name, len(layer.blocks))
        more, held = layer.more_launches(self._batch), (0.0, 0.0)
        if not without_graphs:
            of_experts, held = layer.expert_launches(self._batch), self._replayed(layer)
            more = (more[0] + of_experts[0], more[1] + of_experts[1])
        if not (more[0].any() or more[1].any() or any(held)):
            return measured
        forward, backward = (
            (kernels[:, None] - less) / each
            for kernels, less, each in zip(more, held, measured_layer(name), strict=True)
        )
        return HostCost(
            forward_s=measured.forward_s * np.maximum(1 + forward, 0.0),
            backward_s=measured.backward_s * np.maximum(1 + backward, 0.0),
        )

    @property
    def _is_plain(self) -> bool:
        """Whether layers are counted from the plain one: not where the framework itself was measured."""
        return self._blocks.machine.framework.plain_host and not self._blocks.host.known

    @property
    def _host_factors(self) -> tuple[HostFactors, float]:
        """What the host takes over torch's, and over the host that was measured."""
        host, machine = self._blocks.host, self._blocks.machine
        if host.known:
            return HostFactors(), 1.0
        framework, slower = machine.framework, HOSTS.get(machine.gpu.name, 1.0)
        return framework.host_factors, slower * (framework.deterministic_host if framework.deterministic else 1.0)

    def again(self, call: HostCost, calls: FloatArray) -> HostCost:
        """Of forward operators that a backward pass runs again, [P, 1]: by the same modules."""
        factors, slower = self._host_factors
        times = factors.forward * (1.0 if self._is_plain else slower)  # `call` of plain layers has the host in it
        return HostCost(forward_s=0.0, backward_s=times * call.forward_s * calls[:, None])

    def kernels(self, forward: FloatArray, backward: FloatArray, layers: HostCost) -> HostCost:
        """Blocks that were measured, and where none were, so many kernels in either pass; the framework's own as they
        are, those of torch times what its host takes over torch's."""
        if self._blocks.machine.framework.captured:
            nothing_s = np.zeros((len(forward), 1))
            return HostCost(forward_s=nothing_s, backward_s=nothing_s)
        kernel_s, (factors, slower) = self._blocks.host.kernel_s, self._host_factors
        queued = HostCost(forward_s=kernel_s * forward[:, None], backward_s=kernel_s * backward[:, None])
        total = queued + layers
        return HostCost(
            forward_s=slower * factors.forward * total.forward_s,
            backward_s=slower * factors.backward * total.backward_s,
        )

    def _layers_host(self, stage: Stage | Stages) -> HostCost:
        """Host time of the blocks that were measured, in either pass."""
        total = HostCost(forward_s=0.0, backward_s=0.0)
        for count, layer in self._layers(stage):
            total = total + (self._host_of(layer) + self._repeated_host(layer)).times(_column(count))
        ends = (stage.embedding + stage.head) / 2 * self._blocks.architecture.has_head
        return total + self._blocks.host.ends(ends)

    def _repeated_host(self, layer: LayerBlocks) -> HostCost:
        """Host time of what runs again in a layer beside its operators, [P, 1]; of measured ones' kernels."""
        there, back = self._blocks.machine.framework.repeated_calls
        if not (there or back) or not self.plans.recompute.any():
            return HostCost(forward_s=0.0, backward_s=0.0)
        name, modules = self._host_name(layer), self._repeated_modules(layer)[:, None]
        measured, kernels = self._blocks.host.layer(name, 2), measured_layer(name)
        return HostCost(
            forward_s=measured.forward_s / kernels[0] * there * modules,
            backward_s=measured.backward_s / kernels[1] * back * modules,
        )

    def _repeated_modules(self, layer: LayerBlocks) -> FloatArray:
        """Modules of a layer that run again, norms one by one, where no graph holds them; one of a whole layer. [P]"""
        blocks, operators = self._blocks, list(layer.operators(self._batch))
        again = Recomputation.of(self.plans, blocks.architecture, blocks.machine.framework)
        parts = {part: 1 for op in operators for part in op.parts}
        parts |= {"core_attn": 1} if any(op.attention_core for op in operators) else {}
        parts |= {"layernorm": len(layer.blocks)} if "layernorm" in parts else {}
        graphs = blocks.machine.framework.captured_parts
        held = _IN_GRAPHS[graphs] if graphs is not None else ()
        return np.asarray(again.layers + sum(n * again.part(part) for part, n in parts.items() if part not in held))


# Modules of a layer that graphs of its parts hold; of two norms graphs of the router alone hold one
_IN_GRAPHS: dict[CapturedParts, tuple[str, ...]] = {
    "attention": ("core_attn", "mla_up_proj", "layernorm"),
    "router": (),
}


def _has_experts(layer: LayerBlocks) -> bool:
    return layer.host_block().startswith("moe")


def _kernels_behind(layer: LayerBlocks) -> tuple[float, float]:
    """Of a layer's kernels, forward and backward, those behind attention and router."""
    if layer.layer.feed_forward is None:
        return 0.0, 0.0
    return kernels_behind(experts=_has_experts(layer))


@dataclass(frozen=True, kw_only=True)
class _HeldShapes:
    """Distinct shapes of a micro-batch and of what a class of stages makes of it.

    Attributes:
        stage: of each.
        rows: which of the shapes that are priced each has; None: it is all of these.
        shapes: how many.
        place: which of them each plan's is.
    """

    stage: Stage | Stages
    rows: IntArray | None
    shapes: int
    place: IntArray

    def at(self, priced: _Part) -> _Part:
        """What was priced, of each."""
        return priced if self.rows is None else take_rows(priced, self.rows)


def _spreads_s(lanes: Sequence[tuple[PhaseCost, IntArray | int]]) -> dict[str, FloatArray]:
    """Standard deviations by operator of so many of some lanes, [U] each."""
    spreads_s: dict[str, FloatArray] = {}
    for lane, count in lanes:
        for name, spread_s in lane.spread_s.items():
            spreads_s[name] = spreads_s.get(name, 0.0) + count * spread_s
    return spreads_s


def _squares(spreads_s: dict[str, FloatArray], shapes: int) -> FloatArray:
    """The sum of their squares, [U]."""
    return sum((np.square(spread_s) for spread_s in spreads_s.values()), np.zeros(shapes))


def _parts_of(
    stage: Stage | Stages, layers: Sequence[_Part], embedding: _Part, head: _Part
) -> list[tuple[int | FloatArray, _Part]]:
    """What a stage holds, and how many of each, of something of every distinct layer and of the ends."""
    return [*held_layers(stage, layers), *[(1, embedding)] * stage.embedding, *[(1, head)] * stage.head]


def _column(count: int | FloatArray) -> int | FloatArray:
    """One number of all plans, or one of each, [P, 1]."""
    return count if isinstance(count, int) else count[:, None]


def _repeat(backward: PhaseCost, calls_U: FloatArray, once: PhaseCost, place: IntArray, times_U: FloatArray) -> None:
    """Add operators that run again to a backward pass and to how many calls do.

    Args:
        backward, calls_U: of U shapes.
        once: of all these operators, of shapes that recomputation does not tell apart; `place` which each of U is.
        times_U: how often they run again.
    """
    rows = np.flatnonzero(times_U)
    if not len(rows):
        return
    part, times = take_rows(once, place[rows]), times_U[rows]
    for name in ("time_s_UK", "energy_J_UK", "cycles_UK"):
        getattr(backward, name)[rows] += times[:, None] * getattr(part, name)
    for name in ("extrapolated_s_U", "calls_U", "weights_s_U", "weights_calls_U", "gating_s_U"):
        getattr(backward, name)[rows] += times * getattr(part, name)
    for key, spread_s in part.spread_s.items():
        backward.spread_s.setdefault(key, np.zeros(len(times_U)))[rows] += times * spread_s
    calls_U[rows] += times * part.calls_U


def _merge(total: PhaseCost, part: PhaseCost | None, count: int | FloatArray) -> None:
    """Add `count` times a cost to another, in place; nothing where there is none."""
    if part is None:
        return
    total.time_s_UK += _column(count) * part.time_s_UK
    total.energy_J_UK += _column(count) * part.energy_J_UK
    total.cycles_UK += _column(count) * part.cycles_UK
    total.extrapolated_s_U += count * part.extrapolated_s_U
    total.calls_U += count * part.calls_U
    total.weights_s_U += count * part.weights_s_U
    total.weights_calls_U += count * part.weights_calls_U
    total.gating_s_U += count * part.gating_s_U
    for key, spread in part.spread_s.items():
        total.spread_s[key] = total.spread_s.get(key, 0.0) + count * spread
