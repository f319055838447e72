"""What phases wait for the host is part of what is idle, and falls to those that wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.predict.predict import predict
from moemodel.model.step.system import System


@pytest.mark.parametrize("backend", ["torch", "deepspeed", "megatron-core-local", "fastmoe"])
def test_waiting_is_told_apart_and_nothing_is_lost(
    backend: str, batch: Callable[..., PlanBatch], machine: System
) -> None:
    """On one GPU all energy lies between marks of phases, and of what is idle each joule in one of them."""
    machine = replace(machine, framework=replace(framework_of(backend)))
    found = predict(read_architecture("olmoe-1b-7b"), batch(global_batch=2), machine)
    waiting_J = np.array([found.forward_idle_J, found.backward_idle_J, found.optimizer_idle_J])
    assert (waiting_J >= 0).all()
    assert waiting_J.sum() == pytest.approx(found.idle_J.item(), rel=1e-9)
    computing_J = found.forward_J + found.backward_J + found.optimizer_J
    assert (computing_J.item() + waiting_J.sum()) == pytest.approx(found.energy_J.item(), rel=1e-9)
    if backend == "fastmoe":  # whose host and device take turns in passes of experts, and not in the update
        assert waiting_J[2] < min(waiting_J[0], waiting_J[1])


def test_a_pipeline_is_not_told_apart(batch: Callable[..., PlanBatch], machine: System) -> None:
    machine = replace(machine, framework=framework_of("megatron-core-local"))
    found = predict(read_architecture("olmoe-1b-7b"), batch(pp=2), machine)
    assert found.idle_J.item() > 0
    assert found.forward_idle_J.item() == found.backward_idle_J.item() == found.optimizer_idle_J.item() == 0
