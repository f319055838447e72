"""Lower bounds of time and energy, against the predictions that they bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moemodel.model.predict.bounds import lower_bounds
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.search.candidates import at_clocks, candidates
from moemodel.model.search.document import Search
from moemodel.model.search.problem import problem_of

MODELS: dict[str, dict[str, Any]] = {
    "olmoe-1b-7b": {"cluster": {"gpus": 16}, "schedule": ["1f1b", "gpipe", "zero-bubble"]},
    "deepseek-v3": {"cluster": {"gpus": 256}, "backend": "megatron-core", "global_batch": 1024},
    "opt-350m": {"cluster": {"gpus": 12}, "global_batch": 48, "power_cap_W": 300},
    "switch-base-128": {"cluster": {"gpus": 8}, "sequence_length": 512},
}


@pytest.mark.parametrize("model", MODELS)
def test_no_plan_is_below_its_bound_at_any_clock(model: str, calibration: Calibration) -> None:
    document: dict[str, Any] = {"architecture": model, "sequence_length": 2048, "global_batch": 64} | MODELS[model]
    document["cluster"] = {"gpu": "h100-sxm-80gb"} | document["cluster"]
    problem = problem_of(Search.model_validate(document), calibration)
    legal = candidates(problem, calibration)
    rows = np.sort(np.random.default_rng(0).permutation(len(legal))[:150])
    plans = legal.take(rows).batch(problem.document)
    least = lower_bounds(problem.architecture, plans, problem.machine)
    clocks_Hz = np.array([0.4e9, 0.8e9, 1.2e9, 1.6e9, np.inf])
    found = predict(problem.architecture, at_clocks(plans, clocks_Hz), problem.machine)
    fastest, thriftiest = (values.reshape(len(plans), -1).min(axis=1) for values in (found.step_time_s, found.energy_J))
    assert (least.step_time_s <= fastest).all()
    assert (least.energy_J <= thriftiest).all()
    assert np.median(fastest / least.step_time_s) < 1.1  # and they are worth something
    assert np.median(thriftiest / least.energy_J) < 1.3


def test_a_plan_alone_has_the_bound_that_it_has_among_others(calibration: Calibration) -> None:
    document = {"architecture": "olmoe-1b-7b", "sequence_length": 2048, "global_batch": 64}
    problem = problem_of(
        Search.model_validate(document | {"cluster": {"gpu": "h100-sxm-80gb", "gpus": 8}}), calibration
    )
    legal = candidates(problem, calibration)
    plans = legal.batch(problem.document)
    least = lower_bounds(problem.architecture, plans, problem.machine)
    for row in np.random.default_rng(1).integers(len(plans), size=10).tolist():
        alone = lower_bounds(problem.architecture, plans.take(np.array([row])), problem.machine)
        assert least.step_time_s[row] == pytest.approx(alone.step_time_s[0], rel=1e-9)
        assert least.energy_J[row] == pytest.approx(alone.energy_J[0], rel=1e-9)
