"""Random legal plans of every architecture, framework, schedule and calibrated GPU, as batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.architecture.hf_config import list_architectures, read_architecture
from moemodel.model.architecture.spec import Architecture, Moe
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.dispatch import AS_THE_FRAMEWORK, DISPATCHES, OF_DISPATCH, OVERLAPPED
from moemodel.model.plan.rules import architecture_rules, degree_rules
from moemodel.model.plan.spec import Plan
from moemodel.model.schedule import registry as schedules
from moemodel.model.step.system import System, system_of

# Framework, precision, GPU.
SOFTWARE: tuple[tuple[str, str, str], ...] = (
    ("torch", "bf16-mixed", "h100-sxm-80gb"),
    ("torch", "bf16-mixed", "a100-sxm-80gb"),
    ("torch", "bf16", "h100-sxm-80gb"),
    ("megatron", "bf16-mixed", "a100-sxm-40gb"),
    ("megatron-v2", "bf16-mixed", "a100-sxm-80gb"),
    ("megatron-core", "bf16-mixed", "h100-sxm-80gb"),
    ("megatron-core-fp8", "fp8", "h100-sxm-80gb"),
    ("megatron-deepspeed-fp32", "fp32", "h100-sxm-80gb"),
)
# Of plans that share sequence length, skew, batch and what most of the price depends on; more where these allow few.
_DRAWS = 6
_MOST_DRAWS = 60
_SEQUENCES = (256, 1000, 1024, 2048, 4096, 8192, 32768)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Legal plans of one architecture on one system."""

    architecture: Architecture
    system: System
    plans: PlanBatch
    label: str


def draw(each: int, *, seed: int, lines: int = len(SOFTWARE)) -> Iterator[Drawn]:
    """Plans of every architecture under some lines of `SOFTWARE`, which take turns.

    Args:
        each: about so many of an architecture under a line.
        seed: of the dice.
        lines: under how many lines.
    """
    for index, name in enumerate(list_architectures()):
        for line in range(lines):
            software = SOFTWARE[(index + 3 * line) % len(SOFTWARE)]
            dice = np.random.default_rng([seed, *f"{name} {software}".encode()])
            architecture, system = read_architecture(name), _system(*software)
            parts = [_some(architecture, system, each // _DRAWS, dice) for _ in range(_DRAWS)]
            while sum(map(len, parts)) < each and len(parts) < _MOST_DRAWS:
                parts.append(_some(architecture, system, each // _DRAWS, dice))
            columns = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(PlanBatch)}
            yield Drawn(
                architecture=architecture,
                system=system,
                plans=PlanBatch(**columns),
                label=f"{name} {' '.join(software)}",
            )


@cache
def _system(backend: str, precision: str, gpu: str) -> System:
    plan = {
        "architecture": "olmoe-1b-7b",
        "sequence_length": 128,
        "global_batch": 1,
        "cluster": {"gpu": gpu, "gpus": 1, "internode": "infiniband-ndr"},
        "backend": backend,
        "precision": precision,
    }
    return system_of(Plan.model_validate(plan), shipped(gpu))


def _some(architecture: Architecture, system: System, size: int, dice: np.random.Generator) -> PlanBatch:
    """Legal plans that share sequence length, skew and the batch of a step; none where these allow none."""
    longest = min(architecture.learned_positions or 10**9, architecture.max_seq or 10**9)
    seq = int(dice.choice([s for s in _SEQUENCES if s <= longest]))
    experts = [layer.feed_forward for layer in architecture.layers if isinstance(layer.feed_forward, Moe)]
    most = min((moe.experts / moe.top_k for moe in experts), default=1.0)
    skew = float(dice.choice([1.0, 1.0, 1 + dice.random() * (most - 1)]))
    global_batch = int(dice.choice([1, 3, 4, 5, 8]) * 2 ** dice.integers(3, 10))
    columns = _columns(size * 60, len(architecture.layers), bool(experts), dice)
    legal = np.ones(size * 60, dtype=bool)
    rules = degree_rules(global_batch=global_batch, framework=system.framework)
    rules += architecture_rules(architecture, sequence_length=seq, skew=skew)
    for rule in rules:
        legal &= ~np.asarray(rule.is_violated(columns))
    rows = np.flatnonzero(legal)[:size]
    low_Hz, high_Hz = system.calibration.clock_range_Hz
    clocks = np.where(dice.random(len(rows)) < 0.5, np.inf, low_Hz + dice.random(len(rows)) * (high_Hz - low_Hz))
    caps = np.where(dice.random(len(rows)) < 0.6, np.inf, (0.35 + 0.65 * dice.random(len(rows))) * system.power_limit_W)
    return PlanBatch.of(
        **{name: column[rows] for name, column in columns.items() if name != "gpus"},
        global_batch=global_batch,
        seq=seq,
        skew=skew,
        clock_Hz=clocks,
        power_cap_W=caps,
    )


def _columns(size: int, layers: int, has_experts: bool, dice: np.random.Generator) -> dict[str, Any]:
    """Random choices, legal or not; few distinct values of what is priced, so that many share a shape."""
    columns: dict[str, Any] = {
        "tp": np.full(size, 2 ** dice.integers(0, 5)),
        "pp": dice.choice([1, min(layers, int(dice.choice([2, 3, 4, 8, 16])))], size),
        "cp": np.full(size, dice.choice([1, 1, 2, 4])),
        "dp": dice.choice([1, 2, 4, 8, 16, 64, 256], size),
        "ep": dice.choice(2 ** dice.integers(0, 7, 2), size) if has_experts else np.ones(size, dtype=np.int64),
        "zero_stage": dice.integers(0, 4, size),
        "sequence_parallel": dice.integers(0, 2, size),
        "micro_batch": np.full(size, dice.choice([1, 2, 3, 4, 8, 16])),
        "recompute": dice.integers(0, 3, size),
        "schedule": dice.integers(0, len(schedules.NAMES), size),
    }
    columns["virtual_stages"] = np.where(columns["pp"] > 1, dice.choice([1, int(dice.choice([2, 3]))], size), 1)
    columns["gpus"] = columns["dp"] * columns["tp"] * columns["pp"] * columns["cp"]
    columns["replicas"] = np.ones(size, dtype=np.int64)
    return columns | _dispatches(size, has_experts)


def _dispatches(size: int, has_experts: bool) -> dict[str, Any]:
    """How experts are cut and reached, in half of the plans as the framework does it; of dice of its own."""
    names = ("etp", *OF_DISPATCH)
    if not has_experts:
        return {name: np.zeros(size, dtype=np.int64) for name in names}
    dice = np.random.default_rng(size)
    values = ((0, 0, 1, 2), range(len(DISPATCHES)), (0, 0, 1, 3), (AS_THE_FRAMEWORK, OVERLAPPED))
    said = dice.integers(0, 2, size)
    return {name: said * dice.choice(tuple(some), size) for name, some in zip(names, values, strict=True)}
