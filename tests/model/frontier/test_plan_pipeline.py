"""The pipeline of a plan against the prediction of the same plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import moemodel
from moemodel.calibration.store.catalogue import shipped
from moemodel.model.frontier.frontier import Point, Solver
from moemodel.model.frontier.pipeline import Pipeline
from moemodel.model.frontier.plan_pipeline import pipeline_of
from moemodel.model.plan.spec import Plan
from moemodel.model.results.outcome import Outcome
from moemodel.model.step.system import system_of


def plan(**changes: Any) -> Plan:
    return Plan.model_validate(
        {
            "architecture": "olmoe-1b-7b",
            "sequence_length": 2048,
            "global_batch": 32,
            "micro_batch": 4,
            "recompute": "full",
            "cluster": {"gpu": "h100-sxm-80gb", "gpus": 4},
            "parallel": {"pp": 4},
        }
        | changes
    )


def pipeline(asked: Plan) -> Pipeline:
    return pipeline_of(asked, system_of(asked, shipped(asked.cluster.gpu)))


def at_highest(case: Pipeline) -> Point:
    """Every pass at the clock that the governor lets it keep."""
    return Solver(case).at({work: float(case.table(work).clock_Hz.max()) for work in case.operations})


def optimizer(answer: Outcome) -> tuple[float, float]:
    phase = answer.phases["optimizer"]
    return phase.time_s, phase.energy_J


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": "gpipe"},
        {"schedule": "zero-bubble"},
        {"parallel": {"pp": 4, "virtual_stages": 2}},
        {"power_cap_W": 350.0},
        {"cluster": {"gpu": "a100-sxm-80gb", "gpus": 4}},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "h100",
)
def test_the_step_at_the_governors_clocks_is_the_one_that_is_predicted(changes: dict[str, Any]) -> None:
    """Passes, bubbles and messages are all of a step but for the optimizer, which is told apart there."""
    asked = plan(**changes)
    answer = moemodel.predict(asked, even_if_it_does_not_fit=True)
    found, (optimizer_s, optimizer_J) = at_highest(pipeline(asked)), optimizer(answer)
    assert found.time_s == pytest.approx(answer.step_time_s.value - optimizer_s, rel=0.01)
    assert found.energy_J == pytest.approx(answer.gpu_energy_J.value - optimizer_J, rel=0.03)


def test_clocks_are_those_of_the_gpu_up_to_what_the_governor_lets_stand() -> None:
    table = pipeline(plan(power_cap_W=350.0)).tables[1, "B"]
    assert np.diff(table.clock_Hz[:-1]) == pytest.approx(15e6)
    assert 1e9 < table.clock_Hz[-1] < 1.9e9
    assert (np.diff(table.time_s) < 0).all()


def test_the_stage_with_the_head_takes_longer() -> None:
    case = pipeline(plan())
    assert case.tables[3, "F"].time_s.min() > 1.2 * case.tables[1, "F"].time_s.min()
    assert case.tables[1, "F"] is case.tables[2, "F"]
