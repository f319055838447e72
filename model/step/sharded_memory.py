"""Gradients and gathered parameters that a GPU holds at three of the moments of `memory`, by how they are exchanged.

DDP (ZeRO 0 over several ranks) keeps all gradients in its buckets from the first step on. FSDP2 (ZeRO 1 to 3), by
units: layers, and the ends of the model, whose parameters are gathered first and whose gradients are reduced last.

    moment     ZeRO 1, 2: gathered         ZeRO 3: gathered       gradients
    head       everything                  ends, one layer        of the micro-batches before, if there are any
    backward   everything; in the only     ends, two layers       the same; what is on its way: of the ends, of a layer,
               micro-batch as ZeRO 3                              and a layer's copy that is being scattered
    step       nothing                     nothing                sharded

Gradients of the micro-batches before are whole under ZeRO 1, which reduces them in the last micro-batch, and sharded
from ZeRO 2 on. A pipeline scatters none before its last pass and frees no parameters behind a backward pass
(torch.distributed.pipelining 2.11): its gradients are whole under ZeRO 2 and 3 too, and under ZeRO 3 a forward pass
frees what it gathers, so that a backward pass ends with everything gathered. Read from torch.distributed.fsdp 2.11: of
gathered layers the next one is prefetched, in backward passes too, and one buffer to be scattered is in flight. Other
frameworks: gradients at any time, in buffers of their own, or when a backward pass ends; and under ZeRO 3 two layers
and the gradients of one at any time.

Axes: P plans.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, kw_only=True)
class ResidentStates:
    """Bytes at the beginning of a backward pass, at its end, and in the optimizer step. [P] each.

    Attributes:
        gradients_B, gathered_B: the three of each.
    """

    gradients_B: tuple[FloatArray, FloatArray, FloatArray]
    gathered_B: tuple[FloatArray, FloatArray, FloatArray]


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Parameters on one GPU, [P].

    Attributes:
        whole: all of them; `sharded` what is left over data-parallel ranks.
        gathered: of all, those that are gathered; `ends` of them embedding and head, `end` the larger of the two,
            `layer` the largest layer.
    """

    whole: FloatArray
    sharded: FloatArray
    gathered: FloatArray
    ends: FloatArray
    end: FloatArray
    layer: FloatArray


def ddp_fsdp2_states(
    parts: ParameterCounts,
    *,
    trained: ParameterCounts,
    zero: IntArray,
    pipeline: BoolArray,
    shared: BoolArray,
    accumulating: BoolArray,
    gradient_B: float,
    weight_B: float,
    ends_apart: bool = False,
) -> ResidentStates:
    """Under DDP and FSDP2.

    Units of FSDP2 are layers, and what is left: embedding and head, or one each (`ends_apart`): then the head's stays
    gathered from its forward to its backward pass, and of a unit's gradients those of 16 bits and what is scattered in
    their place are held at once, behind which the last unit's were scattered (torch/distributed/fsdp/_fully_shard,
    _fsdp_param_group.py, post_backward; torchtitan, apply_fsdp).

    Args:
        parts: parameters; `trained` those of them that have gradients.
        pipeline: whether there are several stages.
        zero: ZeRO stage; `shared` whether there are several data-parallel ranks to shard over.
        accumulating: whether there were micro-batches before the one whose passes are looked at.
        gradient_B, weight_B: bytes of an element.
        ends_apart: see above.
    """
    zero = np.where(shared, zero, 0)
    ends = parts.end if ends_apart else parts.ends
    none = np.zeros_like(parts.whole)
    whole, sharded = gradient_B * trained.whole, gradient_B * trained.sharded
    at_end = pipeline & (zero >= 2)
    summed = np.where(at_end, whole, np.choose(zero, [whole, whole, sharded, sharded]))
    before = np.where(accumulating, summed, 0.0)
    copied_B = gradient_B + weight_B
    on_the_way = copied_B * trained.layer if ends_apart else gradient_B * (trained.ends + 2 * trained.layer)
    last_unit = copied_B * trained.end if ends_apart else none
    some = weight_B * (ends + (1 if ends_apart else 2) * parts.layer)
    everything = weight_B * parts.gathered
    remaining = np.where(accumulating, everything, some)
    scattered = sharded + on_the_way
    return ResidentStates(
        gradients_B=(
            np.where(shared & (zero == 0), whole, before),
            np.where(
                at_end, whole, np.choose(zero, [whole, np.where(accumulating, whole, scattered), scattered, scattered])
            ),
            np.where(zero == 0, whole, sharded + np.where(zero >= 2, last_unit, 0.0)),
        ),
        gathered_B=(
            np.choose(
                zero,
                [none, everything, everything, weight_B * (ends + parts.layer)],
            ),
            np.choose(zero, [none, remaining, remaining, np.where(at_end, everything, some)]),
            none,
        ),
    )


def distributed_optimizer_states(
    parts: ParameterCounts,
    *,
    trained: ParameterCounts,
    zero: IntArray,
    pipeline: BoolArray,
    shared: BoolArray,
    accumulating: BoolArray,
    gradient_B: float,
    weight_B: float,
) -> ResidentStates:
    """Where gradients are views of buffers that stay from step to step (Megatron-LM's core/distributed,
    param_and_grad_buffer.py; nanotron's optim/gradient_accumulator.py); arguments as `ddp_fsdp2_states`.
    """
    return flattened_states(
        parts,
        trained=trained,
        zero=zero,
        pipeline=pipeline,
        shared=shared,
        accumulating=np.ones_like(accumulating),
        gradient_B=gradient_B,
        weight_B=weight_B,
    )


def flattened_states(
    parts: ParameterCounts,
    *,
    trained: ParameterCounts,
    zero: IntArray,
    pipeline: BoolArray,  # noqa: ARG001 - it shards gradients there as elsewhere
    shared: BoolArray,
    accumulating: BoolArray,
    gradient_B: float,
    weight_B: float,
) -> ResidentStates:
    """Where a backward pass makes them anew; arguments as `ddp_fsdp2_states`."""
    gradients = gradient_B * np.where(zero >= 2, trained.sharded, trained.whole)
    # embedding and head are gathered one by one
    largest, reduced = np.maximum(parts.end, parts.layer), np.maximum(trained.end, trained.layer)
    gathered = np.where((zero >= 3) & shared, 2 * weight_B * largest + gradient_B * reduced, 0.0)
    return ResidentStates(
        gradients_B=(np.where(accumulating, gradients, 0.0), gradients, gradients),
        gathered_B=(gathered, gathered, gathered),
    )
