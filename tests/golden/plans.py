"""The plans whose predictions are kept: a fixed random sample of what each framework can run of every architecture.

Drawn once (`python tests/golden/record.py`) and stored beside what was predicted for each, so that a change of the
rules of legality changes no plan.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.plan.checks import architecture_of, check_architecture
from moemodel.model.plan.spec import Plan

# Framework, precision, GPU: every pair of the first two once or more, every GPU that has a calibration.
SOFTWARE: tuple[tuple[str, str, str], ...] = (
    ("torch", "bf16-mixed", "h100-sxm-80gb"),
    ("torch", "bf16-mixed", "a100-sxm-80gb"),
    ("torch", "bf16", "h100-sxm-80gb"),
    ("megatron", "bf16-mixed", "a100-sxm-40gb"),
    ("megatron", "bf16", "h100-sxm-80gb"),
    ("megatron-v2", "bf16-mixed", "a100-sxm-80gb"),
    ("megatron-v2", "bf16", "h100-sxm-80gb"),
    ("megatron-core", "bf16-mixed", "h100-sxm-80gb"),
    ("megatron-core-fp8", "fp8", "h100-sxm-80gb"),
    ("megatron-deepspeed-fp32", "fp32", "h100-sxm-80gb"),
    ("megatron-deepspeed-fp32", "fp32", "a100-sxm-80gb"),
)
PLANS_EACH = 20  # of every architecture and line above: 220 plans of an architecture
GPUS = 64
_POWER_CAPS_W = {"h100-sxm-80gb": (350.0, 500.0), "a100-sxm-80gb": (250.0, 320.0), "a100-sxm-40gb": (250.0, 320.0)}
_CLOCKS_MHz = {"h100-sxm-80gb": (705.0, 1200.0, 1590.0), "a100-sxm-80gb": (705.0, 1110.0), "a100-sxm-40gb": (1110.0,)}


def draw(architecture: str) -> Iterator[dict[str, Any]]:
    """Legal plans of an architecture, as documents."""
    for backend, precision, gpu in SOFTWARE:
        dice = random.Random(f"{architecture} {backend} {precision} {gpu}")
        found = 0
        for _ in range(20_000):
            document = _document(dice, architecture, backend, precision, gpu)
            if document is None or not _legal(document):
                continue
            yield document
            found += 1
            if found == PLANS_EACH:
                break


def _document(dice: random.Random, architecture: str, backend: str, precision: str, gpu: str) -> dict[str, Any] | None:
    """One throw of the dice; None where the degrees are no divisors of the GPUs."""
    pp, tp, cp = dice.choice((1, 1, 2, 4, 8)), dice.choice((1, 1, 2, 4, 8)), dice.choice((1, 1, 1, 2, 4))
    if GPUS % (pp * tp * cp):
        return None
    dp = GPUS // (pp * tp * cp)
    micro_batch = dice.choice((1, 1, 2, 4))
    return {
        "name": "golden",
        "architecture": architecture,
        "sequence_length": dice.choice((512, 2048, 1536)),
        "global_batch": micro_batch * dp * dice.choice((1, 2, 8, 24, 64)),
        "micro_batch": micro_batch,
        "precision": precision,
        "recompute": dice.choice(("none", "selective", "full")),
        "schedule": dice.choice(("1f1b", "1f1b", "gpipe", "zero-bubble")) if pp > 1 else "1f1b",
        "backend": backend,
        "cluster": {"gpu": gpu, "gpus": GPUS, "internode": dice.choice(("infiniband-ndr", "infiniband-hdr"))},
        "parallel": {
            "dp": dp,
            "tp": tp,
            "pp": pp,
            "cp": cp,
            "ep": dice.choice((1, 2, 4, 8, 16, 64)),
            "zero_stage": dice.choice((0, 1, 2, 3)),
            "sequence_parallel": tp > 1 and dice.random() < 0.5,
            "virtual_stages": dice.choice((1, 1, 2, 3)) if pp > 1 else 1,
        },
        "routing": {"skew": dice.choice(("balanced", "balanced", 1.0, 1.25, 1.6))},
        "clock_MHz": dice.choice((None, None, *_CLOCKS_MHz[gpu])),
        "power_cap_W": dice.choice((None, None, *_POWER_CAPS_W[gpu])),
        "site": {"inlet_C": dice.choice((None, None, 40.0))},
        "tokens": dice.choice((None, 1e12)),
    }


def _legal(document: dict[str, Any]) -> bool:
    try:
        plan = Plan.model_validate(document)
        check_architecture(plan, architecture_of(plan))
    except (InputError, InfeasiblePlanError):
        return False
    return True
