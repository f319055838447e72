"""How much there is to do in a step, whatever it takes: FLOPs, bytes of device memory, bytes between GPUs.

No calibration is needed. FLOPs and bytes are the least that the operators of `layer_operators` need (`operators.work`),
recomputation, accumulation and optimizer included. What a GPU sends is the time of its collectives on links of one
byte a second that start at once: for a ring of n ranks 2 (n-1)/n of an all-reduced tensor, (n-1)/n of one that is
gathered, scattered or exchanged (`network.collectives`). Rows that go to a node once count once for each rank. Left
out: the two numbers of a token that a sharded loss reduces count as everything else of that axis.

Axes: P plans. All figures are of the mean GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray, distinct_rows
from moemodel.model.layers.base import LayerComm
from moemodel.model.layers.embedding_head import EmbeddingBlock, HeadBlock
from moemodel.model.layers.parameters import parameters
from moemodel.model.network.collectives import Collective, Network
from moemodel.model.operators.calls import Call, Phase
from moemodel.model.operators.work import work
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.schedule.pipeline_layout import Stage, distinct_layers, stages
from moemodel.model.step.data_parallel import DataParallel, ExchangeCounts
from moemodel.model.step.layer_operators import Workload
from moemodel.model.step.memory import MemoryModel
from moemodel.model.step.microbatch_comm import Communication, Exchange
from moemodel.model.step.orthogonal import gathered_B, newton_schulz, orthogonalized
from moemodel.model.step.system import System

AXES = ("tp", "ep", "cp", "pp", "dp")  # whose communication is told apart
_IN_A_LAYER = ("tp", "ep", "cp")
_WORK_B = 2.0  # bytes of an element in `operators.work`

# Every GPU in one place, on links of one byte a second without a start: seconds are bytes.
_BYTES = Network(
    gpus_per_node=2**62,
    node_Bps=1.0,
    nic_Bps=1.0,
    node_latency_s=0.0,
    nic_latency_s=0.0,
    efficiency=dict.fromkeys(Collective, 1.0),
    start_s=0.0,
    overlap=1.0,
    imbalance_penalty=0.0,
    nic_dispatch_efficiency=1.0,
    node_dispatch_efficiency=1.0,
    nic_dispatch_call_s=0.0,
    node_dispatch_call_s=0.0,
)


@dataclass(frozen=True, kw_only=True)
class StepVolumes:
    """Of the mean GPU in a step, [P] each.

    Attributes:
        flops: on tensor cores, recomputation included.
        memory_traffic_B: least bytes to and from device memory.
        sent_B: bytes that it sends over each axis of `AXES`.
    """

    flops: FloatArray
    memory_traffic_B: FloatArray
    sent_B: dict[str, FloatArray]


def step_volumes(architecture: Architecture, plans: PlanBatch, machine: System) -> StepVolumes:
    """What each plan has to do in a step.

    Args:
        architecture: the model to train.
        plans: P plans; degrees must divide.
        machine: framework, precision, and memory overheads; its times and links are not read.
    """
    size = len(plans)
    flops, traffic_B = np.zeros(size), np.zeros(size)
    sent_B = {axis: np.zeros(size) for axis in AXES}
    first, pipeline = distinct_rows(plans.pipeline_columns)
    for index, row in enumerate(first):
        rows = np.flatnonzero(pipeline == index)
        layout = stages(architecture, *plans.pipeline(row))
        part = _PipelineVolumes(architecture, plans.take(rows), machine)
        for stage in layout:
            part_of_all = stage.count / sum(one.count for one in layout)
            done, moved_B = part.device(stage)
            flops[rows] += part_of_all * done
            traffic_B[rows] += part_of_all * moved_B
            for axis, bytes_B in part.sent_B(stage).items():
                sent_B[axis][rows] += part_of_all * bytes_B
        sent_B["pp"][rows] += part.between_stages_B()
    return StepVolumes(flops=flops, memory_traffic_B=traffic_B, sent_B=sent_B)


class _PipelineVolumes:
    """Of plans that share a pipeline."""

    def __init__(self, architecture: Architecture, plans: PlanBatch, machine: System) -> None:
        framework, precision = machine.framework, machine.precision
        self._architecture, self._plans, self._gradient_B = architecture, plans, machine.gradient_B
        self._framework = framework
        self._kinds = distinct_layers(architecture)
        self._m = plans.micro_batches.astype(np.float64)
        self._workload = Workload(architecture, plans, framework=framework, precision=precision)
        self._comm = Communication(architecture, plans, _BYTES, framework=framework, precision=precision)
        self._data = DataParallel(plans, self._comm.groups, framework=framework, precision=precision)
        self._memory = MemoryModel(
            architecture, plans, framework=framework, precision=precision, calibration=machine.calibration
        )
        self._element = self._workload.batch.element_size_B / _WORK_B
        self._layers = [self._done(self._workload.layer(kind)) for kind in self._kinds]
        self._ends = {
            "embedding": self._done(self._workload.embedding()),
            "head": self._done(self._workload.head()),
        }

    # ---- on the device ----------------------------------------------------------------------------------------------

    def device(self, stage: Stage) -> tuple[FloatArray, FloatArray]:
        """FLOPs and bytes of a stage."""
        parts = [(count, done) for count, done in zip(stage.layers, self._layers, strict=True) if count]
        parts += [(1, self._ends[end]) for end in ("embedding", "head") if getattr(stage, end)]
        parts.append((1, self._done(self._updates(stage))))
        flops = np.asarray(sum(count * done[0] for count, done in parts))
        return flops, np.asarray(sum(count * done[1] for count, done in parts))

    def _done(self, calls: Sequence[Call]) -> tuple[FloatArray, FloatArray]:
        """FLOPs and bytes of calls in a step."""
        flops, moved_B = np.zeros(len(self._m)), np.zeros(len(self._m))
        for call in calls:
            least = work(call.kind, call.direction, call.shape)
            times = call.count * call.load_balance * (1.0 if call.phase is Phase.OPTIMIZER else self._m)
            flops += times * least.flops
            moved_B += times * least.bytes_B * self._element
        return flops, moved_B

    def _updates(self, stage: Stage) -> list[Call]:
        """What a stage does with its parameters, as `stage_cost` prices it."""
        shard, units = self._memory.trained(stage), self._memory.units(stage)
        owned = self._memory.owned(shard)
        inner = units.dense + np.where(self._memory.expert_copies > 1, units.expert, 0.0)
        calls = self._workload.accumulate(self._memory.accumulated(shard)) + self._workload.optimizer(owned)
        calls += newton_schulz(self._memory, orthogonalized(self._memory, stage))
        owned, lone = self._memory.owned(self._memory.trained(stage)), self._memory.lone(units)
        exchanges, reduced = self._exchanges(stage), self._reduced(stage)
        return calls + self._workload.copies(inner, units.ends, exchanges, reduced, owned=owned, lone=lone)

    def _reduced(self, stage: Stage) -> FloatArray | None:
        """Parameters that have gradients, where not all do."""
        if self._framework.lora is None:
            return None
        units = self._memory.reduced_units(stage)
        return np.asarray(units.dense + units.ends)

    def _exchanges(self, stage: Stage) -> ExchangeCounts:
        return ExchangeCounts.of(self._plans, self._framework, stage.first)

    # ---- between GPUs -----------------------------------------------------------------------------------------------

    def sent_B(self, stage: Stage) -> dict[str, FloatArray]:
        """Bytes that a GPU of a stage sends in a step, over each axis but that between stages."""
        sent = {axis: np.zeros(len(self._m)) for axis in AXES}
        for axis in _IN_A_LAYER:
            for kind, count in zip(self._kinds, stage.layers, strict=True):
                if count:
                    sent[axis] += count * self._sent_B(self._comm.layer(kind, axis=axis))
        ends = (stage.embedding, EmbeddingBlock), (stage.head, HeadBlock)
        for comm in (comm for held, end in ends if held for comm in self._collectives(end)):
            sent[comm.axis] += self._sent_B(self._comm.priced([comm]))
        matrices_B = gathered_B(self._memory, orthogonalized(self._memory, stage))
        sent["tp"] += self._comm.groups.time_s(Collective.ALL_GATHER, matrices_B, self._comm.groups["tp"])
        units, reduced = self._memory.units(stage), self._memory.reduced_units(stage)
        sent["dp"] += self._data.step(units, self._exchanges(stage), reduced).whole_s
        if self._framework.lora is None and self._architecture.tied and stage.embedding != stage.head:
            vocabulary = parameters(self._architecture).embedding
            sent["pp"] += self._comm.embedding_grad_all_reduce(vocabulary, self._gradient_B)
        return sent

    def _collectives(self, end: type[EmbeddingBlock] | type[HeadBlock]) -> Iterator[LayerComm]:
        return end(architecture=self._architecture).collectives(self._comm.batch)

    def _sent_B(self, passes: Iterable[Exchange]) -> FloatArray:
        """Of all micro-batches, in a forward and a backward pass."""
        of_one = sum(exchange.exposed_s + exchange.overlappable.time_s for exchange in passes)
        return np.asarray(self._m * of_one)

    def between_stages_B(self) -> FloatArray:
        """Activations forward and their gradients backward over every boundary between chunks, of the mean stage."""
        plans, message_B = self._plans, self._comm.message_B()
        boundaries = np.where(plans.pp > 1, plans.pp * plans.virtual_stages - 1, 0)
        return np.asarray(2 * self._m * boundaries / plans.pp * message_B)
