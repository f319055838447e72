"""Muon: states, work of Newton and Schulz, and what tensor-parallel ranks gather, against closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InputError
from moemodel.model.layers.parameters import parameters
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.megatron_arguments import megatron_run
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.predict.prediction import Prediction
from moemodel.model.search.candidates import candidates
from moemodel.model.search.document import Search
from moemodel.model.search.problem import problem_of
from moemodel.model.step.system import system_of
from moemodel.model.step.volumes import StepVolumes, step_volumes

# Llama 3 8B, of each of 32 layers: queries, keys, values, output, gate and up-projection in one, down-projection
SHAPES = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (2 * 14336, 4096), (4096, 14336)]
LAYERS = 32
MATRICES = LAYERS * sum(m * n for m, n in SHAPES)
TOTAL = parameters(read_architecture("llama-3-8b")).total


def steps_flops(shapes: list[tuple[float, float]], steps: int = 5) -> float:
    """X X^T, its square, and their sum times X."""
    return steps * sum(4 * min(s) ** 2 * max(s) + 2 * min(s) ** 3 for s in shapes)


def plan(optimizer: dict[str, Any] | None, **changes: Any) -> Plan:
    parallel = {"dp": 4, "zero_stage": 1} | changes.pop("parallel", {})
    gpus = int(np.prod([parallel.get(degree, 1) for degree in ("dp", "tp", "pp", "cp")]))
    return Plan.model_validate(
        {"architecture": "llama-3-8b", "sequence_length": 4096, "backend": "megatron-core"}
        | {"global_batch": parallel["dp"], "optimizer": optimizer, "parallel": parallel}
        | {"cluster": {"gpu": "h100-sxm-80gb", "gpus": gpus}}
        | changes
    )


def predicted(made: Plan) -> Prediction:
    return predict(architecture_of(made), batch_of(made), system_of(made, shipped("h100-sxm-80gb")))


def volumes(made: Plan) -> StepVolumes:
    return step_volumes(architecture_of(made), batch_of(made), system_of(made, shipped("h100-sxm-80gb")))


MUON = {"name": "muon"}


@pytest.mark.parametrize("zero_stage", [0, 1])
@pytest.mark.parametrize(("types", "matrix_B", "other_B"), [({}, 8, 12), ({"exp_avg": "bf16"}, 4, 8)])
def test_states(zero_stage: int, types: dict[str, str], matrix_B: int, other_B: int) -> None:
    """Master and one moment of matrices, two of the rest; beside a smaller moment a remainder of 2 as master."""
    types = types if zero_stage else {}  # smaller ones need shards
    matrix_B, other_B = (matrix_B, other_B) if zero_stage else (8, 12)
    held = predicted(plan(MUON | types, parallel={"zero_stage": zero_stage})).memory_terms_B["optimizer_states"][0]
    every = (matrix_B * MATRICES + other_B * (TOTAL - MATRICES)) / (4 if zero_stage else 1)
    assert held == pytest.approx(every)


@pytest.mark.parametrize(("zero_stage", "ranks"), [(0, 1), (1, 4)])
@pytest.mark.parametrize("steps", [5, 8])
def test_work(zero_stage: int, ranks: int, steps: int) -> None:
    """Ranks share whole matrices out under ZeRO 1."""
    parallel = {"zero_stage": zero_stage}
    done = [volumes(plan(o, parallel=parallel)).flops[0] for o in (None, MUON | {"ns_steps": steps})]
    assert done[1] - done[0] == pytest.approx(LAYERS * steps_flops(SHAPES, steps) / ranks)


@pytest.mark.parametrize("mode", ["duplicated", "blockwise"])
def test_tensor_parallel_ranks(mode: str) -> None:
    """All do whole matrices, which they gather in float32; or each a part."""
    parallel = {"dp": 1, "tp": 4, "zero_stage": 0}
    plain, muon = (volumes(plan(o, parallel=parallel)) for o in (None, MUON | {"tp_mode": mode}))
    parts = [(m / 4, n) if place not in (3, 5) else (m, n / 4) for place, (m, n) in enumerate(SHAPES)]
    shapes = SHAPES if mode == "duplicated" else parts
    assert muon.flops[0] - plain.flops[0] == pytest.approx(LAYERS * steps_flops(shapes))
    gathered_B = 3 / 4 * 4 * MATRICES if mode == "duplicated" else 0
    assert muon.sent_B["tp"][0] - plain.sent_B["tp"][0] == pytest.approx(gathered_B, abs=1)
    if mode == "duplicated":
        found = predicted(plan(MUON, parallel=parallel)), predicted(plan(None, parallel=parallel))
        assert found[0].exposed_communication_s[0] > found[1].exposed_communication_s[0]


def test_time_is_that_of_the_products() -> None:
    """At 45 to 90 % of the peak of 989 TFLOP/s, beside AdamW's update."""
    found = [predicted(plan(o, global_batch=64, micro_batch=2)) for o in (None, MUON)]
    more_s = found[1].optimizer_s[0] - found[0].optimizer_s[0]
    assert LAYERS * steps_flops(SHAPES) / 4 / more_s == pytest.approx(0.65 * 989e12, rel=0.35)
    assert found[1].optimizer_J[0] > found[0].optimizer_J[0]
    assert found[1].forward_s[0] == pytest.approx(found[0].forward_s[0], rel=0.02)


def test_experts_lie_with_their_ranks() -> None:
    """OLMoE: 64 experts of 2 x 1024 by 2048 and 2048 by 1024 in 16 layers, over ep 8 and no copies."""
    made = [plan(o, architecture="olmoe-1b-7b", parallel={"dp": 8, "ep": 8}) for o in (None, MUON)]
    done = [volumes(one).flops[0] for one in made]
    experts = 16 * 64 / 8 * steps_flops([(2048, 2048), (2048, 1024)])
    rest = 16 / 8 * steps_flops([(2048, 2048)] * 4 + [(64, 2048)])
    assert done[1] - done[0] == pytest.approx(experts + rest)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"parallel": {"zero_stage": 2}}, "found muon with zero_stage 2, which cuts its matrices"),
        ({"backend": "torch"}, "optimizer.name: found muon with backend torch"),
        ({"optimizer": {"name": "lion"}}, "optimizer.name"),
        ({"optimizer": {"ns_steps": 3}}, "optimizer"),
        ({"optimizer": {"exp_avg": "bf16", "ns_steps": 3}}, "allowed with name muon alone"),
        ({"optimizer": MUON | {"ns_steps": 0}}, "optimizer.ns_steps"),
        ({"lora": {"rank": 8}, "offload": {"optimizer": 1.0}}, "found muon beside lora and offload.optimizer"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        plan(**{"optimizer": MUON} | changes)


def test_a_search_leaves_out_what_cuts_matrices() -> None:
    document = Search.model_validate(
        {
            "architecture": "llama-3-8b",
            "backend": "megatron-core",
            "sequence_length": 8192,
            "global_batch": 16,
            "optimizer": MUON,
            "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
            "search": {"tp": 1, "cp": 1, "micro_batch": 1, "recompute": "none", "pp": 1},
            "clocks_MHz": None,
        }
    )
    calibration = shipped("h100-sxm-80gb")
    found = candidates(problem_of(document, calibration), calibration)
    assert set(found.columns["zero_stage"].tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("arguments", "optimizer", "zero_stage"),
    [
        ({"optimizer": "muon", "use-distributed-optimizer": True}, {"name": "muon", "ns_steps": 5}, 1),
        ({"optimizer": "dist_muon"}, {"name": "muon", "ns_steps": 5}, 1),
        (
            {"optimizer": "muon", "muon-num-ns-steps": 6, "muon-tp-mode": "blockwise", "muon-momentum": 0.9},
            {"name": "muon", "ns_steps": 6, "tp_mode": "blockwise"},
            0,
        ),
        ({"optimizer": "adam"}, None, 0),
    ],
)
def test_megatrons_words(arguments: dict[str, Any], optimizer: dict[str, Any] | None, zero_stage: int) -> None:
    least = {"num-layers": 2, "hidden-size": 64, "num-attention-heads": 8, "micro-batch-size": 1, "seq-length": 64}
    least |= {"global-batch-size": 8, "vocab-size": 1000, "max-position-embeddings": 64, "bf16": True}
    found = megatron_run(least | arguments, gpu="h100-sxm-80gb", gpus=8)
    assert found.plan["optimizer"] == optimizer
    assert found.plan["parallel"]["zero_stage"] == zero_stage
    assert not found.left_out
    assert not found.unknown
