"""Buffers padded to the busiest expert's rows hold zeros, which take less energy than numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Moe
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.layers import moe
from moemodel.model.layers.routing import expert_rows
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.predict.predict import predict
from moemodel.model.step.system import System

MOE = cast(Moe, read_architecture("olmoe-1b-7b").layers[-1].feed_forward)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0])
def test_zeros_are_counted_row_by_row(sigma: float) -> None:
    loads = np.random.default_rng(0).lognormal(0.0, sigma, MOE.experts)
    loads *= 2048 * MOE.top_k / loads.sum()
    rows = [1.0 if place < load else moe._OF_ZEROS for load in loads for place in range(round(loads.max()))]
    tokens, skew = np.array([2048.0]), np.array([loads.max() / loads.mean()])
    form = framework_of("deepspeed").moe
    filled = float(np.ravel(expert_rows(MOE, form, tokens, skew).filled)[0])
    assert filled + moe._OF_ZEROS * (1 - filled) == pytest.approx(np.mean(rows), rel=5e-3)


@pytest.mark.parametrize(("backend", "saves"), [("deepspeed", True), ("torch", False), ("fastmoe", False)])
def test_zeros_take_less_energy(
    backend: str,
    saves: bool,
    batch: Callable[..., PlanBatch],
    machine: System,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine, found = replace(machine, framework=framework_of(backend)), []
    for zeros in (moe._OF_ZEROS, 1.0):
        monkeypatch.setattr(moe, "_OF_ZEROS", zeros)
        found.append(predict(read_architecture("olmoe-1b-7b"), batch(skew=4.0, micro_batch=8, global_batch=8), machine))
    less, alike = (one.forward_J.item() for one in found)
    assert (less < alike) is saves
    assert saves or less == alike
