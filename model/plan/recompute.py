"""What a backward pass computes again instead of keeping it.

A plan says it in a word (RECOMPUTE_FORMS), which a batch of plans holds as a number:

    none
    selective     what the framework calls so (`frameworks.base.Framework.selective`): under Megatron the core of
                  attention (Korthikanti et al. 2022, section 5); under torch all operators of a layer but every other
                  product, attention, and what reduce-scatters and all-to-alls bring (torchtitan's `selective_ac_option:
                  op`)
    full          every layer, from its input
    every-K       every K-th layer so (torchtitan's `selective_ac_option: K`); every-1 is full
    first-N       so the first N layers of each chunk of a pipeline (Megatron's `recompute_method: block`)
    A+B+...       these parts of every layer (Megatron Core's `recompute_modules`): core_attn, mla_up_proj, layernorm,
                  mlp, moe_act, moe, shared_experts
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray


class Recompute(IntEnum):
    """What the backward pass computes again; other numbers stand for layers (`every-K`, `first-N`) or parts of them."""

    NONE = 0
    SELECTIVE = 1
    FULL = 2


PARTS = ("core_attn", "mla_up_proj", "layernorm", "mlp", "moe_act", "moe", "shared_experts")
RECOMPUTE: dict[str, Recompute] = {name.name.lower(): name for name in Recompute}
RECOMPUTE_FORMS = f"'none', 'selective' or 'full', every-K or first-N layers, or parts joined by +: {', '.join(PARTS)}"

# Numbers of the others: 16 + one bit for each part; 1000 + K, 2000 + N
_OF_PARTS, _EVERY, _FIRST, _MOST = 16, 1000, 2000, 999
_LAYERS = re.compile(r"(every|first)-([1-9]\d{0,2})", re.ASCII)


def recompute_number(name: str) -> int:
    """What stands for a word in a batch of plans.

    Raises:
        ValueError: it is none of those allowed, which are named.
    """
    if name in RECOMPUTE:
        return int(RECOMPUTE[name])
    if layers := _LAYERS.fullmatch(name):
        return (_EVERY if layers[1] == "every" else _FIRST) + int(layers[2])
    parts = name.split("+")
    if len(set(parts)) == len(parts) and set(parts) <= set(PARTS):
        return _OF_PARTS + sum(1 << PARTS.index(part) for part in parts)
    raise ValueError(f"allowed: {RECOMPUTE_FORMS}")


def recompute_name(number: int) -> str:
    """The word that a number stands for."""
    if number >= _EVERY:
        kind, start = ("every", _EVERY) if number < _FIRST else ("first", _FIRST)
        return f"{kind}-{number - start}"
    if number >= _OF_PARTS:
        return "+".join(part for bit, part in enumerate(PARTS) if number - _OF_PARTS >> bit & 1)
    return Recompute(number).name.lower()


def _in_order(name: str) -> str:
    """A word, its parts in the order of `PARTS`."""
    return recompute_name(recompute_number(name))


RecomputeName = Annotated[str, AfterValidator(_in_order)]


def is_part_recomputed(numbers: IntArray, part: str) -> BoolArray:
    """Where a part of every layer is named. [P]"""
    of_parts = (numbers >= _OF_PARTS) & (numbers < _EVERY)
    return np.asarray(of_parts & (((numbers - _OF_PARTS) >> PARTS.index(part)) & 1 > 0))


def recomputed_layers(numbers: IntArray, layers: FloatArray) -> FloatArray:
    """Share of the layers that run again from their input. [P]

    Args:
        numbers: of the plans.
        layers: of a chunk of the pipeline, in the mean. [P]
    """
    if not numbers.any():
        return np.zeros(len(numbers))
    every = (numbers > _EVERY) & (numbers <= _EVERY + _MOST)
    first = numbers > _FIRST
    return np.select(
        [numbers == Recompute.FULL, every, first],
        [np.ones(len(numbers)), 1 / np.maximum(numbers - _EVERY, 1), np.minimum((numbers - _FIRST) / layers, 1.0)],
        default=0.0,
    )
