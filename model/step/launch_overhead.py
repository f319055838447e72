"""The launch overhead that parallel plans add: collectives, units of FSDP, buckets of DDP, the schedule of a pipeline.

Each costs what the profile measured of it (`profiler/host_overhead/parallel_plans.py`, two ranks together). What it
did not measure counts as so many calls of a mean operator of the stage's layers (`_CALLS`): what that profile gave on
two H100 with torch 2.11 in 2026, in calls. Of frameworks other than torch a collective or message is a call, and the
exchange over data-parallel ranks nothing.

Fitted to plans of OPT-350M on the same machine, and assumed of others:
    a gradient that is added to what is there (`layer_operators.accumulated_fraction`) costs 1.25 backward calls for
        each tensor
    a unit of FSDP costs 5 % more for each tensor beyond the nine of the layer that was measured
    a pass that torch's runtime of schedules drives (interleaved, zero-bubble) costs as many calls as `_CALLS` says
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.host_overhead import HostCost, HostModel
from moemodel.model.step.data_parallel import ExchangeCounts

# In calls of a mean operator: two H100 with torch 2.11 in 2026, see above.
_CALLS: dict[str, float] = {
    "tensor_collective": 9.0,
    "tensor_collective_rows": 6.0,
    "expert_exchange": 20.0,
    "pipeline_pass": 4.0,
    "pipeline_action": 37.0,
    "fsdp_unit/forward": 32.0,
    "fsdp_unit/backward": 51.0,
    "fsdp_unit_kept": 35.0,
    "fsdp_unit_quiet": 4.0,
    "ddp_bucket": 13.0,
}
_CALLS_OF_A_SUM = 1.25  # of adding a gradient to what is there; fitted, see above
_TENSORS = 9.0  # of the layer that was measured as a unit of FSDP, and as a bucket of DDP: 4 + 3 products, 2 norms
_MORE_TENSORS = 0.05  # of a unit's cost, for each tensor beyond these; fitted, see above


@dataclass(frozen=True, kw_only=True)
class CollectiveLaunches:
    """What a block or pass queues beside its operators. [P].

    Attributes:
        tensor_parallel: all-reduces over its ranks, and messages of context parallelism.
        sequence_parallel: all-gathers and reduce-scatters over the same ranks.
        expert_parallel: all-to-alls.
        messages: passes of a chunk that send and receive; `actions` those that torch's runtime of schedules drives.
    """

    tensor_parallel: FloatArray
    sequence_parallel: FloatArray
    expert_parallel: FloatArray
    messages: FloatArray
    actions: FloatArray

    @classmethod
    def none(cls, plans: int) -> CollectiveLaunches:
        """Nothing."""
        return cls(**{f.name: np.zeros(plans) for f in fields(cls)})

    @property
    def total(self) -> FloatArray:
        """All of them."""
        return np.asarray(
            self.tensor_parallel + self.sequence_parallel + self.expert_parallel + self.messages + self.actions
        )

    def __add__(self, other: CollectiveLaunches) -> CollectiveLaunches:
        return CollectiveLaunches(
            tensor_parallel=self.tensor_parallel + other.tensor_parallel,
            sequence_parallel=self.sequence_parallel + other.sequence_parallel,
            expert_parallel=self.expert_parallel + other.expert_parallel,
            messages=self.messages + other.messages,
            actions=self.actions + other.actions,
        )

    def times(self, factor: FloatArray | float) -> CollectiveLaunches:
        """That many of it."""
        return CollectiveLaunches(
            tensor_parallel=np.asarray(self.tensor_parallel * factor),
            sequence_parallel=np.asarray(self.sequence_parallel * factor),
            expert_parallel=np.asarray(self.expert_parallel * factor),
            messages=np.asarray(self.messages * factor),
            actions=np.asarray(self.actions * factor),
        )


class ParallelHost:
    """Host times of one stage's parallel parts.

    Args:
        host: of the backend.
        call: host time of a mean operator in either pass, [P, 1].
        measured: the framework launches as torch does, which the profile measured (`Framework.torch_launch`).
        shard_calls: of a layer that other frameworks gather or scatter.
    """

    def __init__(self, host: HostModel, call: HostCost, *, measured: bool, shard_calls: float = 0.0) -> None:
        self._host, self._call, self._measured, self._shard_calls = host, call, measured, shard_calls

    def _one_s(self, block: str, direction: str) -> FloatArray | float:
        measured_s = self._host.block_s(f"{block}/{direction}")
        if measured_s is not None and self._measured:
            return measured_s
        calls = _CALLS.get(block, _CALLS.get(f"{block}/{direction}", 0.0)) if self._measured else 1.0
        return calls * (self._call.forward_s if direction == "forward" else self._call.backward_s)

    def queued_s(self, calls: CollectiveLaunches, direction: str) -> FloatArray:
        """Of a micro-batch's collectives and messages in a pass, [P, 1]."""
        return np.asarray(
            self._one_s("tensor_collective", direction) * calls.tensor_parallel[:, None]
            + self._one_s("tensor_collective_rows", direction) * calls.sequence_parallel[:, None]
            + self._one_s("expert_exchange", direction) * calls.expert_parallel[:, None]
            + self._one_s("pipeline_pass", direction) * calls.messages[:, None]
            + self._one_s("pipeline_action", direction) * calls.actions[:, None]
        )

    def added_s(self, tensors: FloatArray) -> FloatArray:
        """Of adding that many tensors' gradients to what is there, [P, 1]."""
        return np.asarray(_CALLS_OF_A_SUM * self._measured * self._call.backward_s * tensors[:, None])

    def step_s(
        self,
        *,
        units: FloatArray,
        buckets: FloatArray,
        layers: FloatArray,
        tensors: FloatArray | float,
        counts: ExchangeCounts,
        micro_batches: FloatArray,
    ) -> FloatArray:
        """Of a step's exchange over data-parallel ranks, [P, 1].

        Args:
            units: of FSDP that are exchanged; `buckets` of DDP. [P].
            layers: of the stage, [P].
            tensors: parameters of the stage, in all plans or in each, [P].
            counts: how often they are exchanged.
            micro_batches: of a step, [P].
        """
        m, gathers, again, reductions = (
            column[:, None]
            for column in (micro_batches, counts.gathers_forward, counts.gathers_backward, counts.reductions)
        )
        if not self._measured:
            calls_s = gathers * self._call.forward_s + (again + reductions) * self._call.backward_s
            return np.asarray(self._shard_calls * layers[:, None] * (again > 0) * calls_s)
        kept_s = self._one_s("fsdp_unit_kept", "backward")  # reduces alone; `fsdp_unit` gathers too
        gathered_s = np.maximum(self._one_s("fsdp_unit", "backward") - kept_s, 0.0)
        forward = gathers * self._one_s("fsdp_unit", "forward")
        backward = again * gathered_s + reductions * kept_s
        quiet = (m - gathers) * self._one_s("fsdp_unit_quiet", "forward")
        quiet = quiet + (m - np.maximum(reductions, again)) * self._one_s("fsdp_unit_quiet", "backward")
        step_s = self._host.block_s("fsdp_unit/step") or 0.0
        full = np.where(buckets > 0, np.maximum(buckets, counts.reductions * tensors / _TENSORS), 0.0)
        size = 1 + _MORE_TENSORS * np.maximum(tensors / np.maximum(units, 1.0) - _TENSORS, 0.0)
        return np.asarray(
            (units * size)[:, None] * (forward + backward + quiet + step_s)
            + full[:, None] * self._one_s("ddp_bucket", "backward")
        )
