"""What DeepSpeed's gates decide, for records: how many rows they drop, and the entropy of their probabilities.

A layer of DeepSpeed's returns neither. Its gates call three functions of `deepspeed.moe.sharded_moe` by their names in
that module, so these are wrapped there, once in a process that trains with DeepSpeed: they are given what they were
given and return what they returned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from deepspeed.moe import sharded_moe
from torch import Tensor

from moemodel.profiler.backends.torch_native.router_passes import entropy_of

_GATINGS = ("top1gating", "top2gating", "topkgating")
_INDICES = 3  # of what they return with sparse routes: experts of each row [k, T], -1 where it is dropped


@dataclass
class Watch:
    """What is asked of the next gate, and what the last one did.

    Attributes:
        entropy_wanted: costs a softmax of the logits, a second one.
        entropy: mean over tokens, nats; None where it was not wanted.
        indices_kT: expert of each row, -1 of a dropped one.
    """

    entropy_wanted: bool = False
    entropy: Tensor | None = None
    indices_kT: Tensor | None = None


WATCH = Watch()


def watch_gates() -> None:
    """Wrap the gating functions, if they are not wrapped yet."""
    for name in _GATINGS:
        gating = getattr(sharded_moe, name)
        if not hasattr(gating, "watched"):
            setattr(sharded_moe, name, _watched(gating))


def _watched(gating: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(gating)
    def run(logits_TE: Tensor, *args: Any, **options: Any) -> Any:
        # before the call: top2gating adds its noise to them in place
        WATCH.entropy = entropy_of(logits_TE.softmax(-1)) if WATCH.entropy_wanted else None
        out = gating(logits_TE, *args, **options)
        WATCH.indices_kT = out[_INDICES]
        return out

    run.watched = True  # type: ignore[attr-defined]
    return run
