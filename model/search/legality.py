"""Which combinations of choices are no legal plan, and why.

The rules are those of `plan.Plan` and `plan.check_architecture`, over arrays; a test holds the two to the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.core.arrays import BoolArray, IntArray
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.schedule import registry as schedules
from moemodel.model.schedule.batch import can_interleave
from moemodel.model.search.document import Search

Columns = dict[str, IntArray]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Why a combination is no plan.

    Attributes:
        key: of the reason, for programs.
        says: the same in words.
        needs: choices that it looks at.
        refuses: which of some combinations it refuses.
    """

    key: str
    says: str
    needs: frozenset[str]
    refuses: Callable[[Columns], BoolArray]


def rules(document: Search, architecture: Architecture) -> list[Rule]:
    """All rules, in the order in which they are asked where several can be."""
    return [*_shape_rules(document, architecture), *_plan_rules(document), *_same_plans(document)]


def _rule(key: str, says: str, needs: str, refuses: Callable[[Columns], BoolArray]) -> Rule:
    return Rule(key=key, says=says, needs=frozenset(needs.split()), refuses=refuses)


def _shape_rules(document: Search, architecture: Architecture) -> list[Rule]:
    """What `plan.check_architecture` refuses."""
    layers, seq = len(architecture.layers), document.sequence_length
    heads, widths, kv, experts = (f(architecture) for f in (heads_of, widths_of, kv_heads_of, experts_of))
    return [
        _rule("heads", f"tp does not divide the attention heads ({_named(heads)})", "tp", _not_dividing("tp", heads)),
        _rule("kv_heads", f"neither of tp and the key/value heads ({_named(kv)}) divides the other", "tp", _kv(kv)),
        _rule(
            "width", f"tp does not divide the feed-forward width ({_named(widths)})", "tp", _not_dividing("tp", widths)
        ),
        _rule(
            "layers",
            f"pp x virtual_stages is more than the layers ({layers})",
            "pp virtual_stages",
            lambda c: c["pp"] * c["virtual_stages"] > layers,
        ),
        _rule(
            "context",
            f"twice cp does not divide the sequence length ({seq})",
            "cp",
            lambda c: (c["cp"] > 1) & (seq % (2 * c["cp"]) != 0),
        ),
        _rule("experts", f"ep does not divide the experts ({_named(experts)})", "ep", _ep(experts)),
        _rule(
            "sequence_shards",
            f"sequence_parallel: tp does not divide the sequence length ({seq})",
            "tp sequence_parallel",
            lambda c: (c["sequence_parallel"] > 0) & (seq % c["tp"] != 0),
        ),
    ]


def _named(sizes: Iterable[int]) -> str:
    return ", ".join(str(size) for size in sorted(set(sizes))) or "none"


def _not_dividing(name: str, sizes: list[int]) -> Callable[[Columns], BoolArray]:
    size = math.gcd(*sizes) if sizes else 0  # 0: everything divides it
    return lambda c: size % c[name] != 0


def _kv(sizes: list[int]) -> Callable[[Columns], BoolArray]:
    def refuses(c: Columns) -> BoolArray:
        bad = [(size % c["tp"] != 0) & (c["tp"] % size != 0) for size in sizes]
        return np.logical_or.reduce(bad) if bad else np.zeros(len(c["tp"]), dtype=np.bool_)

    return refuses


def _ep(experts: list[int]) -> Callable[[Columns], BoolArray]:
    if not experts:
        return lambda c: c["ep"] > 1
    return _not_dividing("ep", experts)


def _plan_rules(document: Search) -> list[Rule]:
    """What `plan.Plan` refuses."""
    batch = document.global_batch
    return [
        _rule(
            "degrees",
            "dp x tp x pp x cp is not the number of GPUs",
            "gpus dp tp pp cp",
            lambda c: c["dp"] * c["tp"] * c["pp"] * c["cp"] != c["gpus"],
        ),
        _expert_ranks(document),
        _rule(
            "sequence_parallel",
            "sequence_parallel needs tp > 1",
            "tp sequence_parallel",
            lambda c: (c["sequence_parallel"] > 0) & (c["tp"] == 1),
        ),
        _rule(
            "virtual_stages",
            "virtual_stages need pp > 1",
            "pp virtual_stages",
            lambda c: (c["virtual_stages"] > 1) & (c["pp"] == 1),
        ),
        _rule(
            "schedule",
            f"virtual_stages need schedule {' or '.join(schedules.INTERLEAVING)}",
            "virtual_stages schedule",
            lambda c: (c["virtual_stages"] > 1) & ~can_interleave(c["schedule"]),
        ),
        _rule(
            "zero_pipeline",
            "zero_stage 2 or 3 with pp > 1",
            "zero_stage pp",
            lambda c: (c["zero_stage"] >= 2) & (c["pp"] > 1),
        ),
        _rule(
            "batch",
            f"micro_batch x dp does not divide global_batch ({batch})",
            "dp micro_batch",
            lambda c: batch % (c["micro_batch"] * c["dp"]) != 0,
        ),
        _rule(
            "interleaving",
            "virtual_stages: the micro-batches are no multiple of pp",
            "virtual_stages dp micro_batch pp",
            lambda c: (c["virtual_stages"] > 1) & ((batch // (c["micro_batch"] * c["dp"])) % c["pp"] != 0),
        ),
    ]


def _same_plans(document: Search) -> list[Rule]:
    """What is the same plan as another combination: without a pipeline every schedule is."""
    if len(document.schedule) < 2:
        return []
    first = schedules.number(document.schedule[0])
    return [
        _rule(
            "same_schedule",
            "schedules are all the same with pp 1",
            "pp schedule",
            lambda c: (c["pp"] == 1) & (c["schedule"] != first),
        )
    ]


def _expert_ranks(document: Search) -> Rule:
    if not framework_of(document.backend).shards_experts:
        return _rule(
            "expert_ranks",
            "ep does not divide dp x cp x tp",
            "ep dp cp tp",
            lambda c: (c["dp"] * c["cp"] * c["tp"]) % c["ep"] != 0,
        )
    return _rule("expert_ranks", "ep does not divide dp x cp", "ep dp cp", lambda c: (c["dp"] * c["cp"]) % c["ep"] != 0)


# ---- sizes that degrees divide -------------------------------------------------------------------------------------


def experts_of(architecture: Architecture) -> list[int]:
    blocks = (layer.feed_forward for layer in dict.fromkeys(architecture.layers))
    return [block.experts for block in blocks if isinstance(block, Moe)]


def heads_of(architecture: Architecture) -> list[int]:
    return [a.heads for layer in dict.fromkeys(architecture.layers) for a in layer.attentions]


def widths_of(architecture: Architecture) -> list[int]:
    return [layer.feed_forward.width for layer in dict.fromkeys(architecture.layers)]


def tensor_sizes(architecture: Architecture) -> list[int]:
    return heads_of(architecture) + widths_of(architecture)


def kv_heads_of(architecture: Architecture) -> list[int]:
    """Key/value heads of attentions that have heads of their own for them."""
    layers = dict.fromkeys(architecture.layers)
    return sorted({a.kv_heads for layer in layers for a in layer.attentions if a.latent is None})


def keys_split(architecture: Architecture, tp: int) -> bool:
    return all(heads % tp == 0 or tp % heads == 0 for heads in kv_heads_of(architecture))
