"""Interleaved 1F1B (Narayanan et al. 2021, section 2.2): v chunks of the model on each of n stages.

The chunks of a stage take turns, a round of n micro-batches each, or of g where a plan says so, of which the last may
be shorter (Megatron-LM's core/pipeline_parallel/schedules.py, microbatch_group_size_per_vp_stage). They fill and drain
the pipeline v times faster than whole stages do: a step takes as long as under 1F1B (`one_f_one_b`), with the path
before and behind a stage's own work over v. Stages hold more micro-batches for it, as chunks: (v - 1) g +
2 (n - 1 - s) + 1 on stage s.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.schedule.base import Messages, Schedule, Sizes, StageTimes, Work
from moemodel.model.schedule.one_f_one_b import slowest_stage


class Interleaved(Schedule):
    """1F1B with virtual stages."""

    name: ClassVar = "interleaved"
    messages: ClassVar = Messages.OVERLAPPED

    def order(self, stage: int, sizes: Sizes[int]) -> list[Work]:
        forward, backward = turns(stage, sizes), turns(stage, sizes, back=True)
        warm = (sizes.virtual - 1) * (sizes.round or sizes.stages) + 2 * (sizes.stages - 1 - stage)
        work = [Work("F", *turn) for turn in forward[:warm]]
        for k, turn in enumerate(backward):
            work += [Work("F", *turn) for turn in forward[warm + k : warm + k + 1]]
            work.append(Work("B", *turn))
        return work

    def makespan(self, times: StageTimes, sizes: Sizes[IntArray]) -> FloatArray:
        return slowest_stage(times, sizes.micro_batches, filling=sizes.virtual)

    def in_flight(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> FloatArray:
        chunks = (sizes.virtual - 1) * _round(sizes) + 2 * (sizes.stages - 1 - stage) + 1
        return np.minimum(chunks / sizes.virtual, sizes.micro_batches)

    def overlap_passes_forward(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> FloatArray:  # noqa: ARG002
        """The first round, through all chunks but the last one."""
        return turns_before_last_chunk(sizes) / sizes.virtual

    def overlap_passes_backward(self, stage: int | IntArray, sizes: Sizes[IntArray]) -> FloatArray:  # noqa: ARG002
        """The last round, through all chunks but the last one, whose gradients are ready first."""
        return turns_after_last_chunk(sizes) / sizes.virtual


def turns_before_last_chunk(sizes: Sizes[IntArray]) -> IntArray:
    """Forward passes of a stage's other chunks before its last one begins, [P]."""
    return np.asarray((sizes.virtual - 1) * np.minimum(_round(sizes), sizes.micro_batches))


def turns_after_last_chunk(sizes: Sizes[IntArray]) -> IntArray:
    """Backward passes of a stage's other chunks behind those of its last one, [P]: of a round that may be shorter."""
    before = (sizes.micro_batches - 1) // _round(sizes) * _round(sizes)
    return np.asarray((sizes.virtual - 1) * (sizes.micro_batches - before))


def _round(sizes: Sizes[IntArray]) -> IntArray:
    """Micro-batches of a round, [P]."""
    return np.where(np.asarray(sizes.round) > 0, sizes.round, sizes.stages)


def turns(stage: int, sizes: Sizes[int], *, back: bool = False) -> list[tuple[int, int]]:
    """Chunk and micro-batch of each pass of a stage: a round of micro-batches through one chunk, then the next.

    Args:
        stage: counted from 0.
        sizes: of the pipeline.
        back: of the backward passes, which begin with a stage's last chunk.
    """
    stages, all_of_them = sizes.stages, range(sizes.micro_batches)
    each = sizes.round or stages
    chunks = range(sizes.virtual)[:: -1 if back else 1]
    return [
        (chunk * stages + stage, micro_batch)
        for first in all_of_them[::each]
        for chunk in chunks
        for micro_batch in all_of_them[first : first + each]
    ]
