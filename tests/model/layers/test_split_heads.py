"""Queries, keys and values that one product of Megatron's gives, and their gradients: bytes against closed forms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.operators.calls import Phase
from moemodel.model.operators.work import Kind
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.step.layer_operators import Workload
from moemodel.model.step.system import system_of

SEQ = 4096


def added_B(architecture: str, tp: int) -> tuple[float, float]:
    """What copies of a layer move more, forward and backward, than where the heads come apart."""
    plan = Plan.model_validate(
        {"architecture": architecture, "sequence_length": SEQ, "global_batch": 8, "backend": "megatron-core"}
        | {"cluster": {"gpu": "h100-sxm-80gb", "gpus": 8}, "parallel": {"tp": tp, "dp": 8 // tp}}
    )
    model, batch, machine = architecture_of(plan), batch_of(plan), system_of(plan, shipped("h100-sxm-80gb"))
    moved = []
    for splits in (False, True):
        framework = replace(machine.framework, splits_heads=splits)
        calls = Workload(model, batch, framework=framework, precision=plan.precision).passes(model.layers[0])
        copies = [call for call in calls if call.kind is Kind.COPY]
        moved.append(
            [
                sum(4 * np.sum(call.shape.m * call.count) for call in copies if call.phase is phase)
                for phase in (Phase.FORWARD, Phase.BACKWARD)
            ]
        )
    (forward, backward), (split_forward, split_backward) = moved
    return float(split_forward - forward), float(split_backward - backward)


@pytest.mark.parametrize(
    ("architecture", "tp", "queries", "all_three"),
    [
        ("llama-3-8b", 1, 4096, 4096 + 2 * 1024),
        ("llama-3-8b", 4, 1024, 1024 + 2 * 256),
        ("llama-3-8b", 8, 0, 512 + 2 * 128),  # one group, whose queries lie side by side
        ("gpt3-175b", 4, 0, 3 * 3072),  # groups of one query
    ],
)
def test_bytes(architecture: str, tp: int, queries: int, all_three: int) -> None:
    """A copy reads and writes 2 bytes of an element."""
    forward_B, backward_B = added_B(architecture, tp)
    assert forward_B == pytest.approx(4 * SEQ * queries)
    assert backward_B == pytest.approx(4 * SEQ * all_three)
