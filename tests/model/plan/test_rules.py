"""Rules of plans: one plan and many at once are refused alike, and as dealing things out one by one says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.plan.checks import check_architecture
from moemodel.model.plan.rules import PlanRule, architecture_rules, as_counted, degree_rules, messages
from moemodel.model.plan.spec import Plan

COMBINATIONS = 1500  # of each architecture
VALUES: dict[str, tuple[Any, ...]] = {
    "gpus": (8, 12, 16),
    "tp": (1, 1, 2, 3, 4),
    "pp": (1, 1, 2, 3, 4),
    "cp": (1, 1, 1, 2, 3),
    "dp": (1, 2, 3, 4, 8),
    "ep": (1, 1, 2, 3, 4),
    "etp": (None, None, None, 1, 2, 3),
    "sequence_parallel": (False, False, True),
    "virtual_stages": (1, 1, 2, 3),
    "schedule": ("1f1b", "gpipe", "zero-bubble"),
    "zero_stage": (0, 1, 2, 3),
    "replicas": (1, 1, 1, 2, 3),
    "recompute": ("none", "full"),
    "micro_batch": (1, 2, 3),
}
MODELS: dict[str, tuple[str, str, int, int]] = {  # architecture, framework, layers, sequence
    "dense": ("llama-3-8b", "torch", 6, 1026),
    "learned positions": ("opt-350m", "megatron", 4, 2052),
    "experts that tp cuts": ("olmoe-1b-7b", "torch", 8, 1024),
    "whole experts": ("qwen3-30b-a3b", "megatron-core", 3, 1000),
    "two kinds of layers": ("deepseek-v3", "megatron", 4, 4096),
    "encoder and decoder": ("switch-base-128", "torch", 4, 512),
}
GLOBAL_BATCH = 24


def cut(name: str, layers: int) -> Architecture:
    architecture = read_architecture(name)
    return replace(architecture, decoder=architecture.decoder[:layers])


def combinations(seed: int) -> list[dict[str, Any]]:
    """Random choices; of two in three, the GPUs are what the degrees ask for."""
    rng = np.random.default_rng(seed)
    found = [{name: values[rng.integers(len(values))] for name, values in VALUES.items()} for _ in range(COMBINATIONS)]
    for choices in found[: 2 * COMBINATIONS // 3]:
        choices["gpus"] = choices["dp"] * choices["tp"] * choices["pp"] * choices["cp"]
    return found


def plan_of(model: tuple[str, str, int, int], choices: dict[str, Any]) -> Plan:
    """As a user writes it down.

    Raises:
        InputError: the degrees don't go together.
    """
    name, backend, layers, sequence = model
    others = ("gpus", "schedule", "recompute", "micro_batch")
    return Plan.model_validate(
        {name: choices[name] for name in others if name != "gpus"}
        | {"architecture": name, "backend": backend, "layers": layers, "sequence_length": sequence}
        | {"precision": "bf16-mixed", "global_batch": GLOBAL_BATCH}
        | {"cluster": {"gpu": "h100", "gpus": choices["gpus"]}}
        | {"parallel": {name: value for name, value in choices.items() if name not in others}}
    )


def rules_of(model: tuple[str, str, int, int]) -> tuple[list[PlanRule], list[PlanRule]]:
    name, backend, layers, sequence = model
    shapes = architecture_rules(cut(name, layers), sequence_length=sequence, skew=1.0)
    return degree_rules(global_batch=GLOBAL_BATCH, framework=framework_of(backend)), shapes


def numbers(listed: list[dict[str, Any]]) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """Choices as arrays."""
    schedules, recomputes = VALUES["schedule"], ("none", "selective", "full")
    rows = [
        c | {"schedule": schedules.index(c["schedule"]), "recompute": recomputes.index(c["recompute"])} for c in listed
    ]
    usual = dict.fromkeys(("dispatch", "node_limit", "dispatch_overlap"), 0)
    return {name: np.array([int(row[name] or 0) for row in rows]) for name in VALUES} | {
        name: np.full(len(rows), value) for name, value in usual.items()
    }


def said(model: tuple[str, str, int, int], architecture: Architecture, choices: dict[str, Any]) -> str:
    """What a user is told of a plan; nothing if it is legal."""
    try:
        check_architecture(plan_of(model, choices), architecture)
    except InputError as error:
        return str(error).removeprefix("Plan: ")
    except InfeasiblePlanError as error:
        return str(error).removeprefix("plan: ")
    return ""


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_one_plan_and_many_are_refused_alike(model: tuple[str, str, int, int]) -> None:
    """A plan is told of the first rule of the degrees that it breaks, or of all those of the architecture."""
    listed, architecture = combinations(1), cut(model[0], model[2])
    columns, seen = numbers(listed), Counter[str]()
    degrees, shapes = (
        [(rule, np.broadcast_to(rule.is_violated(columns), len(listed))) for rule in rules] for rules in rules_of(model)
    )
    for row, choices in enumerate(listed):
        one = {name: int(values[row]) for name, values in columns.items()}
        first = [rule.message(one) for rule, refused in degrees if refused[row]][:1]
        every = dict.fromkeys(rule.message(one) for rule, refused in shapes if refused[row])
        assert said(model, architecture, choices) == "; ".join(first or every)
        seen["degrees" if first else "architecture" if every else "none"] += 1
    assert {"degrees", "architecture"} < seen.keys() or model[3] == 2052, seen


# ---- an oracle that deals things out --------------------------------------------------------------------------------


@cache
def deal(things: int, hands: int) -> bool:
    """Whether things dealt out one by one leave all hands with as many, none of them empty."""
    held = Counter(thing % hands for thing in range(things))
    return len(held) == hands and len(set(held.values())) == 1


def shapes_fit(architecture: Architecture, sequence: int, c: dict[str, Any]) -> bool:
    for layer in set(architecture.layers):
        for attention in layer.attentions:
            keys = (
                attention.latent is not None or deal(attention.kv_heads, c["tp"]) or deal(c["tp"], attention.kv_heads)
            )
            if not (deal(attention.heads, c["tp"]) and keys):
                return False
        block = layer.feed_forward
        cut_by = (c["etp"] or c["tp"]) if isinstance(block, Moe) else c["tp"]
        if not deal(block.width, cut_by) or (isinstance(block, Moe) and not deal(block.experts, c["ep"])):
            return False
    experts = any(isinstance(layer.feed_forward, Moe) for layer in architecture.layers)
    chunks = Counter(layer % (c["pp"] * c["virtual_stages"]) for layer in range(len(architecture.layers)))
    return (
        (experts or (c["ep"] == 1 and c["etp"] is None))
        and len(chunks) == c["pp"] * c["virtual_stages"]
        and (c["cp"] == 1 or deal(sequence, 2 * c["cp"]))
        and (not c["sequence_parallel"] or deal(sequence, c["tp"]))
    )


def replicas_fit(ranks: int, c: dict[str, Any]) -> bool:
    """Whether each group gets as many ranks, of all and of those that hold the same experts."""
    return c["zero_stage"] > 0 and deal(c["dp"], c["replicas"]) and deal(ranks // c["ep"], c["replicas"])


def degrees_fit(backend: str, c: dict[str, Any]) -> bool:
    stages = [list(np.ndindex(c["dp"], c["cp"], c["tp"])) for _ in range(c["pp"])]
    ranks = stages[0] if backend == "megatron-core" else [rank for rank in stages[0] if rank[2] == 0]
    batches = [n for n in range(GLOBAL_BATCH) if n % (c["dp"] * c["micro_batch"]) == 0]  # first sequence of each round
    pipelined, interleaved = len(stages) > 1, c["virtual_stages"] > 1
    return (
        sum(len(stage) for stage in stages) == c["gpus"]
        and (deal(len(ranks), c["ep"]) if c["etp"] is None else deal(len(stages[0]), c["ep"] * c["etp"]))
        and deal(GLOBAL_BATCH, c["dp"] * c["micro_batch"])
        and (c["replicas"] == 1 or replicas_fit(len(stages[0]) // c["etp"] if c["etp"] else len(ranks), c))
        and (not c["sequence_parallel"] or c["tp"] > 1)
        and (not interleaved or (pipelined and c["schedule"] != "gpipe" and deal(len(batches), c["pp"])))
    )


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_rules_refuse_what_cannot_be_dealt_out(model: tuple[str, str, int, int]) -> None:
    listed = combinations(2)
    columns, (degrees, shapes) = numbers(listed), rules_of(model)
    architecture = cut(model[0], model[2])
    fit = np.array([[degrees_fit(model[1], c), shapes_fit(architecture, model[3], c)] for c in listed])
    for column, rules in enumerate((degrees, shapes)):
        refused = np.logical_or.reduce([rule.is_violated(columns) for rule in rules if rule.needs])
        assert refused.tolist() == (~fit[:, column]).tolist()
        assert 10 < refused.sum() < COMBINATIONS - 10


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_search_asks_every_rule_that_choices_can_mend(model: tuple[str, str, int, int]) -> None:
    degrees, shapes = rules_of(model)
    counted = as_counted([*shapes, *degrees])
    assert {id(rule) for rule in counted} == {id(rule) for rule in (*degrees, *shapes) if rule.needs}
    assert all(rule.needs <= {*VALUES, "dispatch", "node_limit", "dispatch_overlap"} for rule in counted)
    keys = list(dict.fromkeys(rule.key for rule in counted))
    assert [rule.key for rule in counted] == sorted((rule.key for rule in counted), key=keys.index)  # together
    assert len({(rule.key, rule.summary, rule.needs) for rule in counted}) == len(keys)


def test_no_choice_mends_a_sequence_longer_than_the_positions() -> None:
    model = MODELS["learned positions"]
    _, shapes = rules_of(model)
    found = list(messages([rule for rule in shapes if not rule.needs], {}))
    assert found == ["sequence_length 2052: opt-350m has 2048 learned positions; allowed: at most that"]
