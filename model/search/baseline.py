"""A first plan for an architecture on some GPUs: legal, and small enough for their memory. Not an optimum."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.hardware.gpu import Gpu, read_gpu
from moemodel.model.layers.parameters import parameters
from moemodel.model.plan.checks import check_architecture
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.feasibility import fits
from moemodel.model.step.system import System, system_of

_SEQUENCE = 4096  # tokens, where the architecture takes as many: Llama 2's (Touvron et al. 2023, table 1)
_ENCODER_SEQUENCE = 512  # what T5 and Switch were trained with (Raffel et al. 2020, section 3.1.2)
_TOKENS_PER_GPU = 2**16  # of a step: with a billion active parameters and 400 TFLOP/s, about a second (6 x 1e9 x 2**16)
_TOKENS_PER_PARAMETER = 20.0  # of a run (Hoffmann et al. 2022, section 3)
# Tried in this order. Powers of two, as heads, experts and GPUs of a node are; tp and ep stay within a node of 8 GPUs.
_STAGES = (1, 2, 4, 8, 16)
_RECOMPUTE = ("none", "full")
_TENSOR = (1, 2, 4, 8)
_EXPERT = (1, 2, 4, 8)
_MICRO_BATCHES = (4, 2, 1)  # sequences: the largest that fits is the most efficient


def baseline_plan(architecture: str, gpu: str, gpus: int, calibration: Calibration) -> Plan:
    """The first plan that fits, from plain data parallelism to whatever it takes.

    Smaller micro-batches are tried first, then spreading experts, tensor parallelism inside a node, recomputation,
    pipeline stages, and in their place parameters sharded over the replicas (ZeRO 3).

    Raises:
        InputError: unknown architecture or GPU.
        CalibrationError: the calibration is of another GPU.
        InfeasiblePlanError: nothing fits on that many GPUs.
    """
    model, device = read_architecture(architecture), read_gpu(gpu)
    refused: list[str] = []
    plans = list(_candidates(architecture, model, device, gpus, refused))
    if not plans:
        raise InfeasiblePlanError(
            f"{model.name} on {gpus} x {device.name}: found no legal first plan; the simplest is refused: {refused[0]}"
        )
    plan = first_that_fits(model, plans, system_of(plans[0], calibration))
    if plan is None:
        raise InfeasiblePlanError(
            f"{model.name} on {gpus} x {device.name}: none of {len(plans)} plans tried fits in memory; use more GPUs"
        )
    return plan


def first_that_fits(architecture: Architecture, plans: list[Plan], machine: System) -> Plan | None:
    """The first of some plans that fits in memory."""
    fitting = np.flatnonzero(fits(architecture, plans, machine)) if plans else np.zeros(0, dtype=np.int64)
    return plans[int(fitting[0])] if fitting.size else None


def _candidates(name: str, architecture: Architecture, gpu: Gpu, gpus: int, refused: list[str]) -> Iterator[Plan]:
    """Legal plans, from the simplest on; why others are none is added to `refused`."""
    sequence, tokens = _sequence(architecture), _TOKENS_PER_PARAMETER * parameters(architecture).active
    for choices in first_choices(architecture, gpus, gpu.gpus_per_node):
        rows = choices["parallel"]["dp"] * choices["micro_batch"]
        document = {
            "name": f"{architecture.name}-{gpus}x{gpu.name}",
            "architecture": name,
            "sequence_length": sequence,
            "global_batch": rows * max(1, round(_TOKENS_PER_GPU * gpus / (sequence * rows))),
            "cluster": {"gpu": gpu.name, "gpus": gpus},
            "tokens": float(f"{tokens:.2g}"),
        }
        try:
            plan = Plan.model_validate(document | choices)
            check_architecture(plan, architecture)
        except (InputError, InfeasiblePlanError) as error:
            refused.append(str(error))
            continue
        yield plan


def first_choices(architecture: Architecture, gpus: int, gpus_per_node: int) -> Iterator[dict[str, Any]]:
    """What a first plan on some GPUs chooses, from the simplest on: `micro_batch`, `recompute`, `parallel`.

    Some of it may not divide the architecture.
    """
    routed = architecture.has_experts
    cuts = [*product(_STAGES, (1,)), (1, 3)]  # pipeline stages, ZeRO stage of several replicas
    for (pp, zero), recompute, tp, ep, micro_batch in product(cuts, _RECOMPUTE, _TENSOR, _EXPERT, _MICRO_BATCHES):
        if gpus % (tp * pp) or tp > gpus_per_node or (ep > 1 and not routed):
            continue
        dp = gpus // (tp * pp)
        yield {
            "micro_batch": micro_batch,
            "recompute": recompute,
            "parallel": {"dp": dp, "tp": tp, "pp": pp, "ep": ep, "zero_stage": zero if dp > 1 else 0},
        }


def _sequence(architecture: Architecture) -> int:
    longest = architecture.max_seq or architecture.learned_positions or _SEQUENCE
    return min(longest, _ENCODER_SEQUENCE if architecture.encoder else _SEQUENCE)
