"""Memory of one GPU at its peak, term by term.

Parameters, gradients and optimizer states shard as Rajbhandari et al. 2020 (ZeRO, section 5) describe: states over the
data-parallel ranks from stage 1, gradients from 2, parameters from 3; experts over dp cp / ep ranks, the rest over
dp cp. Activations are the tensors that autograd keeps, counted operator by operator for the module that the torch
backend runs (`profiler/backends/torch_native/model.py`); after Korthikanti et al. 2022, section 4, but for flash
attention and for experts. Backends without flash attention keep the scores, and those with dropout its masks, as
counted there. The peak is the largest of four moments:

    head      static + activations + the loss's own tensors                     (the last chunk's backward pass begins)
    again     static + activations + what the last layer's recomputation makes  (a backward pass begins)
    backward  static + gradients + one layer's own tensors                      (it ends)
    step      static + gradients + what the optimizer allocates for itself

with the gradients and gathered parameters of `sharded_memory` at each. Left out: fragmentation of the caching
allocator, beyond the share that the calibration gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from moemodel.model.architecture.spec import Architecture, Layer, Moe
from moemodel.model.core.arrays import (
    BoolArray,
    FloatArray,
    IntArray,
    at_rows,
    distinct_rows,
    largest,
    take_rows,
    where_largest,
)
from moemodel.model.frameworks.base import Framework, Precision
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.layers.adapters import adapter_parameters
from moemodel.model.layers.base import MicroBatch
from moemodel.model.layers.embedding_head import EmbeddingBlock, HeadBlock
from moemodel.model.layers.layer import layer_blocks
from moemodel.model.layers.matrices import Matrices, layer_matrices, matrix_parameters
from moemodel.model.layers.parameters import LayerParameters, layer_parameters
from moemodel.model.layers.routing import expert_slots
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.dispatch import OVERLAPPED
from moemodel.model.plan.mesh import ParallelMesh
from moemodel.model.records.calibration import Calibration
from moemodel.model.schedule import registry as schedules
from moemodel.model.schedule.pipeline_layout import Stage, Stages, distinct_layers, held_layers, uneven_chunks
from moemodel.model.step.collective_checks import hosts_bind
from moemodel.model.step.data_parallel import FsdpUnits, reduces_when_all_passes_are_done
from moemodel.model.step.recomputation import Recomputation
from moemodel.model.step.sharded_memory import (
    ParameterCounts,
    ResidentStates,
    ddp_fsdp2_states,
    distributed_optimizer_states,
    flattened_states,
)

# Of products whose inputs are gathered (of queries, keys and values, of the first of a dense block, of the gradients of
# all four), and whose outputs are scattered (the other two, and gradients of weights, beside which the inputs' are)
_GATHERED_BUFFERS, _SCATTERED_BUFFERS = 6, 4

_FLOAT32_B = 4.0  # of a parameter


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Parameters of one stage that one GPU holds before ZeRO: those shared by all, and those of experts. [P]."""

    dense: FloatArray
    expert: FloatArray

    @property
    def total(self) -> FloatArray:
        """All parameters, [P]."""
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
        self.framework = framework
        self.calibration = calibration
        self.batch = MicroBatch.of(plans, framework, precision)
        self.recipe = self.batch.recipe
        self.mesh = ParallelMesh.of(plans, shards_experts=framework.shards_experts)
        self.kinds = distinct_layers(architecture)
        self._again = Recomputation.of(plans, architecture, framework)
        self._layer_parameters = [layer_parameters(kind, architecture.hidden) for kind in self.kinds]
        self._adapters = [self._adapter_parameters(kind) for kind in self.kinds]
        self._kept: dict[Layer, tuple[FloatArray, FloatArray]] = {}
        self._embedding = EmbeddingBlock(architecture=architecture)
        self._head = HeadBlock(architecture=architecture)
        overhead = {name: p.value for name, p in calibration.memory.parameters.items()}
        self.context_B = overhead["context"] if framework.context_B is None else framework.context_B
        self.workspace_B = _workspace_B(framework.workspace_B, calibration.gpu, overhead["workspace"])
        if framework.experts_workspace_B is not None and any(isinstance(one.feed_forward, Moe) for one in self.kinds):
            self.workspace_B += _workspace_B(framework.experts_workspace_B, calibration.gpu, 0.0)
        self.fragmentation = overhead["fragmentation"]

    # ---- parameters ---------------------------------------------------------------------------------------------

    def shard(self, stage: Stage | Stages) -> Shard:
        """Parameters of a stage on one GPU."""
        dense = np.zeros(len(self.plans))
        expert = np.zeros(len(self.plans))
        for p, adapters, count in zip(self._layer_parameters, self._adapters, stage.layers, strict=True):
            dense += count * (self._dense(p) + adapters)
            expert += count * self._expert(p)
        return Shard(dense=dense + self._ends(stage), expert=expert)

    def trained(self, stage: Stage | Stages) -> Shard:
        """Of these, those that are trained: all, or adapters."""
        if self.framework.lora is None:
            return self.shard(stage)
        none = np.zeros(len(self.plans))
        counted = zip(self._adapters, stage.layers, strict=True)
        return Shard(dense=sum((count * adapters for adapters, count in counted), none), expert=none)

    def _adapter_parameters(self, kind: Layer) -> FloatArray:
        """Of a layer's adapters on one tensor-parallel rank, if a plan has any."""
        if self.framework.lora is None:
            return np.zeros(len(self.plans))
        return adapter_parameters(layer_blocks(kind, self.architecture.hidden).operators(self.batch), self.batch)

    def _dense(self, p: LayerParameters) -> FloatArray:
        """Parameters of a layer on one tensor-parallel rank, without routed experts."""
        return np.asarray(p.tensor_parallel / self.batch.tp + p.replicated)

    def _expert(self, p: LayerParameters) -> FloatArray:
        """Routed experts of a layer on one rank."""
        return np.asarray(p.routed / (self.batch.etp * self.batch.ep))

    def units(self, stage: Stage | Stages) -> FsdpUnits:
        """The same, as it is exchanged: parameters that are gathered, which frozen ones are under ZeRO 3 alone."""
        shard, ends = self.shard(stage), self._ends(stage)
        whole = FsdpUnits(
            layers=np.full(len(self.plans), sum(stage.layers)),
            dense=shard.dense - ends,
            expert=shard.expert,
            ends=ends,
            embedding_parameters=self._first_end(stage),
        )
        if self.framework.lora is None:
            return whole
        some, all_of_them = self.reduced_units(stage), self.plans.zero_stage >= 3
        return replace(
            whole,
            dense=np.where(all_of_them, whole.dense, some.dense),
            expert=np.where(all_of_them, whole.expert, some.expert),
            ends=np.where(all_of_them, whole.ends, some.ends),
        )

    def reduced_units(self, stage: Stage | Stages) -> FsdpUnits:
        """Those whose gradients are exchanged."""
        if self.framework.lora is None:
            return self.units(stage)
        none, trained = np.zeros(len(self.plans)), self.trained(stage)
        layers = np.full(len(self.plans), sum(stage.layers))
        return FsdpUnits(
            layers=layers, dense=trained.dense, expert=trained.expert, ends=none, embedding_parameters=none
        )

    def _first_end(self, stage: Stage | Stages) -> FloatArray:
        """Parameters of the embedding, whose gradients come last."""
        return np.asarray(stage.embedding * self._embedding.on_one_gpu(self.batch.tp))

    def _ends(self, stage: Stage | Stages) -> FloatArray:
        ends = self._first_end(stage)
        if stage.head:
            ends = ends + self._head.on_one_gpu(self.batch.tp, beside_embedding=stage.embedding)
        return ends

    def states(self, shard: Shard, trained: Shard) -> dict[str, FloatArray]:
        """Bytes of parameters and optimizer states of a shard under ZeRO."""
        zero = self.plans.zero_stage
        shared, updated = self._sharded(shard), self._sharded(trained)
        recipe = self.recipe
        on_gpu = 1.0 if self.framework.offload is None else 1.0 - self.framework.offload.optimizer
        whole = zero < (1 if self.framework.data_parallel == "ddp-fsdp2" else 3)  # FSDP2 gathers into memory of its own
        return {
            "parameters": recipe.weight_B * np.where(whole, shard.total, shared * (not self.framework.float32_shards))
            + self._frozen_B * (np.where(whole, shard.total, shared) - np.where(whole, trained.total, updated)),
            "optimizer_states": on_gpu * self._state_B * np.where(zero >= 1, updated, trained.total),
            "optimizer_transient": on_gpu * recipe.transient_B * np.where(zero >= 1, updated, trained.total),
        }

    @property
    def _frozen_B(self) -> float:
        """Bytes of a frozen parameter that states would count if it were trained: where it is a float32 one."""
        return _FLOAT32_B if self.framework.float32_shards and self.framework.lora is not None else 0.0

    @property
    def _state_B(self) -> FloatArray | float:
        """Bytes a parameter of optimizer states; without ZeRO with copies of gradients in DDP's buckets."""
        copied_B = self.framework.bucket_copies_B
        if copied_B == 0.0:
            return self.recipe.state_B
        copies = (self.plans.zero_stage == 0) & (self.plans.dp * self.plans.cp > 1)
        return np.asarray(self.recipe.state_B + copied_B * copies)

    def matrices(self, kind: Layer, *, whole: bool) -> list[Matrices]:
        """Of a layer, that Muon makes orthogonal: as a GPU has them, or as they are before tensor parallelism."""
        return layer_matrices(kind, self.architecture.hidden, self.batch, whole=whole)

    def _less_states_B(self, stage: Stage | Stages) -> FloatArray:
        """By how many bytes states are fewer, where an optimizer keeps less of matrices. [P]"""
        if self.recipe.matrix_state_B is None:
            return np.zeros(len(self.plans))
        plans, dense, expert = len(self.plans), np.zeros(len(self.plans)), np.zeros(len(self.plans))
        for count, kind in held_layers(stage, self.kinds):
            found = self.matrices(kind, whole=False)
            dense += count * matrix_parameters(found, expert=False, plans=plans)
            expert += count * matrix_parameters(found, expert=True, plans=plans)
        owned = self.owned(Shard(dense=dense, expert=expert))
        return np.asarray((self.recipe.state_B - self.recipe.matrix_state_B) * owned)

    def _orthogonal_B(self, stage: Stage | Stages) -> FloatArray:
        """What Muon works in: the largest matrix as it comes, in each step and behind it, and two squares of its
        shorter side, in float32. [P]"""
        muon, found = self.framework.muon, [np.zeros(len(self.plans))]
        if muon is None:
            return found[0]
        for _, kind in held_layers(stage, self.kinds):
            for one in self.matrices(kind, whole=muon.gathers):
                short = np.minimum(one.rows, one.columns)
                found.append(4.0 * (3 * one.rows * one.columns + 2 * short**2))
        return largest(found)

    def _of_layers_B(self, stage: Stage | Stages, shard: Shard) -> FloatArray:
        """By how many bytes parameters are more than `states` counts, where those of layers are of another size than
        those of the ends. [P]"""
        if self.recipe.layer_B is None:
            return np.zeros(len(self.plans))
        layers = Shard(dense=shard.dense - self._ends(stage), expert=shard.expert)
        held = np.where(self.plans.zero_stage < 3, layers.total, self._sharded(layers))
        return np.asarray((self.recipe.layer_B - self.recipe.weight_B) * held)

    def _tp_buffers_B(self) -> FloatArray:
        """Buffers of exchanges over tensor-parallel ranks that run behind products: one of each kind of product, of all
        hidden states of a micro-batch; of six that are gathered in 8 bits where products are (Transformer Engine,
        pytorch/module/base.py, initialize_ub: ring exchanges, pipelines and bulks). [P]"""
        cut = (self.batch.tp > 1) & (self.batch.sequence_parallel > 0)
        narrow = self.recipe.matmul_dtype == "fp8"
        each_B = _GATHERED_BUFFERS * (1.0 if narrow else self.batch.element_size_B)
        each_B += _SCATTERED_BUFFERS * self.batch.element_size_B
        return np.where(cut, each_B * self.batch.tokens * self.architecture.hidden, 0.0)

    @property
    def _gathered_B(self) -> float:
        """Of a parameter that is gathered into memory of its own."""
        kept_as_sent = self.framework.data_parallel == "ddp-fsdp2" and self.recipe.gathered_B is not None
        return (self.recipe.gathered_B or 0.0) if kept_as_sent else self.recipe.weight_B

    def _sharded(self, shard: Shard) -> FloatArray:
        return np.asarray(shard.dense / self._shards + shard.expert / self._expert_shards)

    @cached_property
    def _shards(self) -> IntArray:
        """Over how many GPUs ZeRO shards what is no expert's."""
        return self.mesh.shard_group.size

    @cached_property
    def _expert_shards(self) -> FloatArray:
        """Over how many GPUs ZeRO shards an expert."""
        return np.asarray(np.maximum(self.expert_copies / self.plans.replicas, 1))

    @cached_property
    def expert_copies(self) -> FloatArray:
        """GPUs that hold the same experts."""
        return np.asarray(np.maximum(self.mesh.max_ep / self.plans.ep, 1))

    def lone(self, units: FsdpUnits) -> FloatArray:
        """Parameters that no other rank holds, and that FSDP shards all the same (`Framework.wraps_lone`). [P]"""
        plans, none = self.plans, np.zeros(len(self.plans))
        if not self.framework.wraps_lone:
            return none
        experts = np.where(self.expert_copies == 1, units.expert, none)
        others = np.where(plans.dp * plans.cp == 1, units.dense + units.ends, none)
        return np.where(plans.zero_stage >= 3, experts + others, none)

    def owned(self, shard: Shard) -> FloatArray:
        """Parameters that one GPU updates in the optimizer step."""
        return np.where(self.plans.zero_stage >= 1, self._sharded(shard), shard.total)

    def accumulated(self, shard: Shard) -> FloatArray:
        """Parameters whose gradients a micro-batch adds to those before it."""
        afterwards = reduces_when_all_passes_are_done(self.plans, self.framework)
        return np.where((self.plans.zero_stage >= 2) & ~afterwards, self._sharded(shard), shard.total)

    def _pooled_B(self, stage: Stage | Stages, shard: Shard) -> FloatArray:
        """Memory that the allocator keeps for some alone: flat buffers of gradients; of 16-bit logits; of FSDP2's
        streams parameters of units on their way to be gathered, and shards of gradients. [P]"""
        kept_B = np.asarray(self.framework.flat_copy_B * shard.total)
        if self.framework.reserves_logits:
            kept_B = kept_B + stage.head * self._head.outgrown_B(self.batch)
        if not self.framework.pools_by_stream:
            return kept_B
        layers = [self._dense(p) for _, p in held_layers(stage, self._layer_parameters)]
        units = self._ends(stage) + 2 * largest([np.zeros(len(self.plans)), *layers])
        lone = (self._shards == 1) & self.framework.wraps_lone
        experts = np.where((self._expert_shards > 1) | lone, shard.expert, 0.0)
        scattered = self._sharded(Shard(dense=shard.dense, expert=experts))
        pooled_B = self.recipe.weight_B * units + self.recipe.gradient_B * scattered
        pooled_B = np.where((self.plans.zero_stage >= 1) & ((self._shards > 1) | lone), pooled_B, 0.0)
        return np.asarray(kept_B + pooled_B)

    def _held(self, stage: Stage | Stages, shard: Shard, accumulating: BoolArray) -> ResidentStates:
        """Gradients, and parameters that are gathered."""
        # experts that no other rank has are not sharded
        alone = (self._expert_shards == 1) & (not self.framework.wraps_lone)
        layers = [np.zeros(len(self.plans))]
        for _, (p, adapters) in held_layers(stage, list(zip(self._layer_parameters, self._adapters, strict=True))):
            layers.append(self._dense(p) + adapters + np.where(alone, 0.0, self._expert(p)))
        parts = ParameterCounts(
            whole=shard.total,
            sharded=self._sharded(shard),
            gathered=shard.dense + np.where(alone, 0.0, shard.expert),
            ends=self._ends(stage),
            end=np.maximum(self._first_end(stage), self._ends(stage) - self._first_end(stage)),
            layer=largest(layers),
        )
        by_name: Mapping[str, Callable[..., ResidentStates]] = {
            "ddp-fsdp2": partial(ddp_fsdp2_states, ends_apart=self.framework.shards_ends_apart),
            "distributed-optimizer": distributed_optimizer_states,
            "flattened": flattened_states,
        }
        return by_name[self.framework.data_parallel](
            parts,
            trained=self._trained_counts(stage) if self.framework.lora is not None else parts,
            zero=self.plans.zero_stage,
            pipeline=self.plans.pp > 1,
            shared=self._shards > 1,
            accumulating=accumulating,
            gradient_B=self.recipe.gradient_B,
            weight_B=self._gathered_B,
        )

    def _trained_counts(self, stage: Stage | Stages) -> ParameterCounts:
        """Of adapters."""
        none, trained = np.zeros(len(self.plans)), self.trained(stage)
        layers = [none, *(each for _, each in held_layers(stage, self._adapters))]
        return ParameterCounts(
            whole=trained.total,
            sharded=self._sharded(trained),
            gathered=trained.total,
            ends=none,
            end=none,
            layer=largest(layers),
        )

    # ---- activations --------------------------------------------------------------------------------------------

    def kept(self, layer: Layer) -> tuple[FloatArray, FloatArray]:
        """Bytes that one layer keeps for the backward pass of one micro-batch, in the mean over layers, and those that
        it holds when that pass has run again what it must; the same on every stage. [P] each.
        """
        if layer not in self._kept:
            batch, again, place = self._shapes
            kept_B, whole_B = self._kept_by(layer, batch, again)
            self._kept[layer] = at_rows(kept_B, place), at_rows(whole_B, place)
        return self._kept[layer]

    @cached_property
    def _shapes(self) -> tuple[MicroBatch, Recomputation, IntArray]:
        """Micro-batches of which layers keep something else, and which of these each plan has."""
        plans, again = self.plans, self._again
        read = [plans.recompute, again.layers, plans.node_limit, plans.dispatch_overlap]
        first, place = distinct_rows([*self.batch.shape_columns, *read])
        return self.batch.take(first), take_rows(again, first), place

    def _kept_by(self, layer: Layer, batch: MicroBatch, again: Recomputation) -> tuple[FloatArray, FloatArray]:
        blocks = layer_blocks(layer, self.architecture.hidden)
        whole_B, kept_B = np.zeros(batch.plans), np.zeros(batch.plans)
        for tensors in blocks.kept(batch):
            freed = np.zeros(batch.plans, dtype=np.bool_)
            for part in tensors.parts:
                freed = freed | again.part(part)
            whole_B = whole_B + tensors.size_B
            kept_B = kept_B + np.where(freed, 0.0, tensors.size_B)
        if again.by_operator.any():
            kept_B = np.where(again.by_operator, blocks.kept_by_operator_B(batch), kept_B)
        inputs_B = batch.stream_B * batch.sequence_parallel_tokens * self.architecture.hidden
        return kept_B + again.layers * (inputs_B - kept_B), whole_B

    def _losses(self, stage: Stage | Stages) -> FloatArray:
        """Of the micro-batch at hand, and the log-probabilities of those that the last stage passed before it."""
        if not stage.head:
            return np.zeros(len(self.plans))
        plans = self.plans
        before = plans.schedules.earlier_losses(stage.first)
        kept = before * (self.framework.pipeline == "torch") * self._head.log_probabilities_B(self.batch)
        return np.asarray(self._head.loss_B(self.batch) + np.where(plans.pp > 1, kept, 0.0))

    # ---- peak ---------------------------------------------------------------------------------------------------

    def stage(self, stage: Stage | Stages) -> Memory:
        """Peak of one stage."""
        if self.framework.forward_only:
            return self._forward_only(stage)
        shard, trained = self.shard(stage), self.trained(stage)
        terms = self.states(shard, trained)
        terms["parameters"] = terms["parameters"] + self._of_layers_B(stage, shard)
        terms["optimizer_states"] = terms["optimizer_states"] - self._less_states_B(stage)
        transient = terms.pop("optimizer_transient")
        flight = self._in_flight(stage)
        held = self._held(stage, shard, (self.plans.micro_batches > 1) | (flight > 1))
        per_micro_batch, largest_B = np.zeros(len(self.plans)), np.zeros(len(self.plans))
        working, again = np.zeros(len(self.plans)), np.zeros(len(self.plans))
        for count, kind in held_layers(stage, self.kinds):
            kept_B, whole_B = self.kept(kind)
            per_micro_batch += count * kept_B
            largest_B = np.maximum(largest_B, kept_B)
            # all tensors of a layer live when its backward pass begins, whether kept or made again
            working = np.maximum(working, whole_B)
            again = np.maximum(again, whole_B - kept_B + self._passing_B(kind))
        # half as much again is kept of a micro-batch whose weight gradients are put off
        activations = (flight + 0.5 * self.plans.schedules.deferred(stage.first)) * per_micro_batch
        activations = activations + self._by_chunk_B(stage, flight, per_micro_batch)
        loss = self._losses(stage)
        inside_B, whole_B = self._hidden_B()
        placeholders = self.framework.placeholder_gradients and self.framework.lora is None
        if stage.head and placeholders:  # beside the gradient of 16-bit logits
            made_B = self._head_placeholder_B(stage) + whole_B * self.framework.counts_passes
            loss = np.maximum(loss, self._head.logits_B(self.batch) + made_B)
        if stage.head and self.framework.counts_passes:  # of the final norm, and the head's input as it is gathered
            loss = loss + 2 * inside_B + whole_B * self.batch.sequence_parallel
        if stage.head and self.framework.data_parallel == "ddp-fsdp2":  # the head's, which its product keeps (torch,
            # distributed/tensor/parallel/style.py, ColwiseParallel)
            loss = loss + whole_B * self.batch.sequence_parallel * self.batch.is_sharded("tp")
        earlier = self._on_gpu(activations - per_micro_batch, largest_B)
        activations = self._on_gpu(activations, largest_B)
        activations = activations + self._freed_late_B(stage, flight)
        earlier = earlier + self._freed_late_B(stage, flight)
        none, orthogonal_B = np.zeros(len(self.plans)), self._orthogonal_B(stage)
        copies_B = self._step_copies_B(trained)
        cached_B = none if self.framework.short_of_memory else copies_B - self._group_transient(trained)
        begins_B, ends_B, steps_B = held.gradients_B
        at_each = {
            "gradients": (begins_B, begins_B, ends_B + self.framework.unsummed_gradients_B * trained.total, steps_B),
            "gathered_layers": (held.gathered_B[0], *held.gathered_B),
            "activations": (activations, activations + again, earlier + working, none),
            "loss": (loss, none, none, none),
            **self._flattened(trained),
            **self._autocast(terms["parameters"]),
            "optimizer_transient": (cached_B, cached_B, cached_B, transient + copies_B + orthogonal_B),
        }
        worst = where_largest([sum(moment, none) for moment in zip(*at_each.values(), strict=True)])
        terms |= {name: np.concatenate(moments).take(worst) for name, moments in at_each.items()}
        if placeholders:
            terms["gradient_placeholders"] = self._placeholders_B(stage)
        terms["messages"] = self._messages(stage, flight)
        if self.framework.counts_passes and not stage.embedding:  # what was last sent (pipeline_parallel/schedules.py)
            terms["messages"] = terms["messages"] + inside_B
        if self.framework.tp_buffers:
            terms["tensor_parallel_buffers"] = self._tp_buffers_B()
        if self.framework.gather_buffers:
            cut = (self.batch.tp > 1) & (self.batch.sequence_parallel > 0)
            terms["tensor_parallel_buffers"] = np.where(cut, self.framework.gather_buffers * whole_B, 0.0)
        terms["workspace"] = self.workspace_B + self._buffer_B(stage)
        terms["fragmentation"] = np.asarray(self.fragmentation * sum(terms.values())) + self._pooled_B(stage, shard)
        terms["context"] = np.full(len(self.plans), self.context_B)
        return Memory(peak_B=np.asarray(sum(terms.values())), terms_B=terms)

    def _buffer_B(self, stage: Stage | Stages) -> FloatArray:
        """What a stage's layers take turns to use: the largest of scores and of what dispatch gathers. [P]"""
        if not self.framework.counts_passes:
            return np.zeros(len(self.plans))
        batch, _, place = self._shapes
        held = [layer_blocks(kind, self.architecture.hidden) for _, kind in held_layers(stage, self.kinds)]
        return largest([np.zeros(batch.plans), *(blocks.buffer_B(batch) for blocks in held)])[place]

    def _on_gpu(self, kept_B: FloatArray, layer_B: FloatArray) -> FloatArray:
        """Of what layers keep, what is not on the host: the rest, and of two layers what is on its way (assumed: one
        that is computed, and the next)."""
        if self.framework.offload is None:
            return kept_B
        away = self.framework.offload.activations
        return np.asarray((1 - away) * kept_B + away * np.minimum(2 * layer_B, kept_B))

    def _hidden_B(self) -> tuple[FloatArray, FloatArray]:
        """Hidden states of a micro-batch as residuals hold them, and all of them. [P] each."""
        one = self.batch.element_size_B * self.architecture.hidden
        return np.asarray(one * self.batch.sequence_parallel_tokens), np.asarray(one * self.batch.tokens)

    def _passing_B(self, layer: Layer) -> FloatArray:
        """Gradients on their way through the last block of a layer, where a backward pass begins. [P]"""
        if not self.framework.counts_passes:
            return np.zeros(len(self.plans))
        batch, _, place = self._shapes
        passing_B = np.broadcast_to(layer_blocks(layer, self.architecture.hidden).passing_B(batch), batch.plans)
        return np.asarray(self._hidden_B()[0] + passing_B[place])

    def _by_chunk_B(self, stage: Stage | Stages, flight: FloatArray, per_micro_batch: FloatArray) -> FloatArray:
        """What chunks that hold unlike many layers keep beyond what as many of their mean would. [P]

        Interleaved 1F1B begins with pp micro-batches of each chunk in turn (Narayanan et al. 2021, section 2.2).
        """
        pp, virtual = int(self.plans.pp[0]), int(self.plans.virtual_stages[0])
        none = np.zeros(len(self.plans))
        chunks = None
        if virtual > 1 and isinstance(stage.first, int):  # with virtual stages plans share their pipeline
            chunks = uneven_chunks(self.architecture, pp, virtual, stage.first)
        if chunks is None:
            return none
        passes = flight * virtual
        rounds, rest = np.floor_divide(passes, pp * virtual), np.mod(passes, pp * virtual)
        kept_B = none
        for place, counts in enumerate(chunks):
            in_flight = rounds * pp + np.clip(rest - place * pp, 0, pp)
            kept_B = kept_B + in_flight * sum(
                count * self.kept(kind)[0] for kind, count in zip(self.kinds, counts, strict=True)
            )
        interleaved = self.plans.schedule == schedules.number(schedules.DEFAULT)
        return np.where(interleaved, kept_B - flight * per_micro_batch, none)

    def _forward_only(self, stage: Stage | Stages) -> Memory:
        """Where nothing is trained: parameters, the tensors of one layer at a time, and logits. What a layer would keep
        for a backward pass bounds what it holds at once."""
        none = np.zeros(len(self.plans))
        held = [self.kept(kind)[1] for _, kind in held_layers(stage, self.kinds)]
        terms = {
            "parameters": np.asarray(self.recipe.weight_B * self.shard(stage).total),
            "activations": largest([none, *held]),
            "logits": np.asarray(self._head.logits_B(self.batch)) if stage.head else none,
            "workspace": np.full(len(self.plans), self.workspace_B),
        }
        terms["fragmentation"] = np.asarray(self.fragmentation * sum(terms.values()))
        terms["context"] = np.full(len(self.plans), self.context_B)
        return Memory(peak_B=np.asarray(sum(terms.values())), terms_B=terms)

    def _flattened(self, shard: Shard) -> dict[str, tuple[FloatArray, ...]]:
        """Buffers in which gradients are reduced, at each moment: of a size of their own under ZeRO, from a backward
        pass's first gradient on; else copies of all of them, when the last one is over."""
        if self.framework.data_parallel != "flattened":
            return {}
        none, plans = np.zeros(len(self.plans)), self.plans
        bucket = np.where(plans.zero_stage >= 1, self.framework.reduce_bucket_B, 0.0)
        whole = self.recipe.gradient_B * shard.total * ((plans.zero_stage == 0) & (plans.dp * plans.cp > 1))
        return {"reduction_buffers": (none, bucket, bucket + whole, none)}

    def _autocast(self, copies_B: FloatArray) -> dict[str, tuple[FloatArray, ...]]:
        """16-bit copies of float32 parameters that no rank shards: autocast makes them in a forward pass, and each is
        gone when its backward pass is done (torch.autocast, whose cache ends with the forward pass)."""
        if not self.framework.float32_shards:
            return {}
        none = np.zeros(len(self.plans))
        return {"parameters": (copies_B, copies_B, none, none)}

    def _freed_late_B(self, stage: Stage | Stages, flight: FloatArray) -> FloatArray:
        """What micro-batches in flight leave to collectives of which the host has not seen the end. [P]

        All do, where the host runs ahead of the device; and so does the backward pass of a micro-batch while the next
        one's forward pass is queued, which in a pipeline waits for messages. Where it is the later of both, since hosts
        wait for one another, all but the first, behind which the device has nothing to wait for, and the last, behind
        which the host waits for gradients (so nanotron's first stages of 2 to 32 reserve, `docs/frameworks.md`).
        """
        none = np.zeros(len(self.plans))
        if not self.framework.frees_late:
            return none
        batch, _, place = self._shapes
        held = [(count, layer_blocks(kind, self.architecture.hidden)) for count, kind in held_layers(stage, self.kinds)]
        layers = sum((count * np.ones(len(self.plans)) for count, _ in held), none)
        each_B = sum((count * blocks.freed_late_B(batch)[place] for count, blocks in held), none)
        ahead = self._runs_ahead(stage)
        forward, backward = (most / np.maximum(layers, 1.0) for most in self.framework.late_layers)
        passes = np.minimum(np.where(ahead, flight, np.maximum(flight - 2.0, 0.0)), forward)
        another = ahead & (self.plans.pp == 1) & (self.plans.micro_batches > 1)
        return np.asarray((passes + another * np.minimum(1.0, backward)) * each_B)

    def _runs_ahead(self, stage: Stage | Stages) -> BoolArray:
        """Whether the host queues layers before the device is done with those before them, [P]."""
        if not self.framework.checks_collectives:
            return np.ones(len(self.plans), dtype=np.bool_)
        batch, _, place = self._shapes
        held = [layer_blocks(kind, self.architecture.hidden) for _, kind in held_layers(stage, self.kinds)]
        return ~hosts_bind(held, batch, self.calibration)[place]

    def _step_copies_B(self, shard: Shard) -> FloatArray:
        """What a step copies: of its largest group of parameters, and of what it gathers under ZeRO. [P]"""
        whole_B, own_B = self.framework.gather_copies_B
        gathered_B = whole_B * shard.total + own_B * self._sharded(shard)
        gathers = (self.plans.zero_stage >= 1) & (self._shards > 1)
        return self._group_transient(shard) + np.where(gathers, gathered_B, 0.0)

    def _group_transient(self, shard: Shard) -> FloatArray:
        """What an optimizer step makes of its largest group of parameters beside what it keeps of all: float32 copies
        of the gradients without ZeRO (DeepSpeed, fp16/fused_optimizer.py), or the update's temporaries (Megatron)."""
        largest = np.maximum(shard.dense, np.minimum(shard.expert, self.framework.largest_expert_group))
        if self.framework.steps_whole_experts_along:
            largest = np.where(self.plans.ep > 1, largest, shard.dense + shard.expert)
        return np.where(self.plans.zero_stage == 0, self.recipe.group_transient_B * largest, 0.0)

    def _placeholders_B(self, stage: Stage | Stages) -> FloatArray:
        """One for each shape of a weight, one expert's among them: those of the layer that has most."""
        layers = [np.zeros(len(self.plans))]
        for _, (kind, p) in held_layers(stage, list(zip(self.kinds, self._layer_parameters, strict=True))):
            experts = expert_slots(kind.feed_forward) if isinstance(kind.feed_forward, Moe) else 1
            layers.append(self._dense(p) + p.routed / (experts * self.batch.etp))
        return np.asarray(self.batch.element_size_B * largest(layers))

    def _head_placeholder_B(self, stage: Stage | Stages) -> FloatArray:
        """Of the product that gives the logits."""
        return np.asarray(
            self.batch.element_size_B * (self._ends(stage) - self._first_end(stage) * (not self.architecture.tied))
        )

    def _in_flight(self, stage: Stage | Stages) -> FloatArray:
        """Micro-batches whose activations a stage holds, of which a chunk more where rows to its experts run behind
        another's computation: that of a forward pass beside the backward pass that would come before it. Without a
        pipeline the one takes up what the other frees, layer by layer (combined_1f1b_schedule_for_no_pipelining)."""
        plans = self.plans
        flight, another = plans.schedules.in_flight(stage.first), 1 / plans.virtual_stages
        paired = (plans.dispatch_overlap == OVERLAPPED) & (plans.ep > 1) & (plans.pp > 1)
        return np.where(paired, np.minimum(flight + another, plans.scheduled), flight)

    def _messages(self, stage: Stage | Stages, flight: FloatArray) -> FloatArray:
        """Between stages torch (distributed.pipelining 2.11) keeps a buffer for each message of a schedule: activations
        received, of which those in flight count as activations, their gradients, and gradients received; what a stage
        sent stays until its backward pass.
        """
        plans = self.plans
        if self.framework.pipeline != "torch" or not (plans.pp > 1).any():
            return np.zeros(len(plans))
        m, virtual = plans.scheduled, plans.virtual_stages
        arrivals = virtual - float(stage.embedding)  # chunks that something is sent to, and chunks that send something
        departures = virtual - float(stage.head)
        one = self.batch.element_size_B * self.batch.sequence_parallel_tokens * self.architecture.hidden
        kept = arrivals * (2 * m - flight) + departures * (m + flight)
        return np.where(plans.pp > 1, kept * one, 0.0)


def _workspace_B(known_B: Mapping[str, float] | None, gpu: str, torch_B: float) -> float:
    """That libraries keep for products on a GPU; `torch_B` torch's alone."""
    if known_B is None:
        return torch_B
    return known_B["others"] if len(known_B) == 1 else known_B.get(read_gpu(gpu).architecture, known_B["others"])


def fullest(model: MemoryModel, pipeline: Sequence[Stage | Stages]) -> Memory:
    """Memory of the fullest class of stages of a pipeline that all plans of the model share."""
    peaks = [model.stage(stage) for stage in pipeline]
    worst = where_largest([peak.peak_B for peak in peaks])

    def pick(values: list[FloatArray]) -> FloatArray:
        return values[0] if len(values) == 1 else np.concatenate(values).take(worst)

    return Memory(
        peak_B=pick([peak.peak_B for peak in peaks]),
        terms_B={name: pick([peak.terms_B[name] for peak in peaks]) for name in peaks[0].terms_B},
    )
