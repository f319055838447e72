"""What two plans' errors have in common, against pairs that were measured on the same GPUs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.documents import parse_yaml
from moemodel.model.core.interval import Z
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.outcome import Outcome, outcome
from moemodel.model.results.validation import read_report
from moemodel.model.search.distinguish import alike, difference_errors
from moemodel.model.step.system import system_of

MEASURED = Path(__file__).parents[3] / "bench" / "measured"
PLAN: dict[str, Any] = {
    "architecture": "opt-350m",
    "sequence_length": 2048,
    "global_batch": 64,
    "micro_batch": 4,
    "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
    "parallel": {"dp": 8, "zero_stage": 1},
}


@pytest.fixture(scope="module")
def pairs() -> list[tuple[dict[str, float], dict[str, float]]]:
    """Of plans of one model in one session: differences of log(measured / predicted), and what was expected of them."""
    calibration = shipped("h100-sxm-80gb")
    found = []
    for path in sorted(MEASURED.glob("validation*/2xh100-*.json")):
        plans = read_report(path).plans
        answers = [outcome(parse_yaml(plan.plan_yaml, Plan, path.name), calibration) for plan in plans]
        errors = difference_errors(answers, system_of(answers[0].plan, calibration))
        residuals = [dict(_residuals(plan.quantities, answer)) for plan, answer in zip(plans, answers, strict=True)]
        for a, b in combinations(range(len(plans)), 2):
            if answers[a].plan.architecture == answers[b].plan.architecture:
                differences = {name: residuals[a][name] - residuals[b][name] for name in errors}
                found.append((differences, {name: float(values[a, b]) for name, values in errors.items()}))
    return found


def _residuals(quantities: Any, answer: Outcome) -> Iterator[tuple[str, float]]:
    yield "time", math.log(quantities["step_time"].measured.mean / answer.step_time_s.value)
    yield "energy", math.log(quantities["energy"].measured.mean / answer.gpu_energy_J.value)


@pytest.mark.parametrize("name", ["time", "energy"])
def test_nine_of_ten_pairs_differ_as_expected(
    name: str, pairs: list[tuple[dict[str, float], dict[str, float]]]
) -> None:
    """Not all of them either: then plans would be called alike that are not."""
    inside = [abs(found[name]) <= Z * expected[name] for found, expected in pairs]
    assert len(pairs) > 100
    assert 0.85 <= np.mean(inside) <= 0.99, np.mean(inside)


def answered(calibration: Calibration, *changes: dict[str, Any]) -> list[Outcome]:
    return [outcome(Plan.model_validate(PLAN | change), calibration) for change in changes]


def test_what_plans_share_cancels(calibration: Calibration) -> None:
    tp2 = {"parallel": {"dp": 4, "tp": 2, "zero_stage": 1}}
    answers = answered(calibration, {}, {"micro_batch": 2}, tp2, {"clock_MHz": 1500.0}, {"clock_MHz": 1515.0})
    machine = system_of(answers[0].plan, calibration)
    errors = difference_errors(answers, machine)
    for values in errors.values():
        assert values == pytest.approx(values.T)
        assert np.diag(values) == pytest.approx(np.zeros(5), abs=1e-12)
    alone = [
        math.log(answer.step_time_s.high / answer.step_time_s.value) / Z
        for answer in answers
        if answer.step_time_s.high
    ]
    time = errors["time"]
    assert time[3, 4] < 0.1 * time[0, 1] < time[0, 2] < math.hypot(alone[0], alone[2])  # clock, micro-batch, degrees
    assert time[0, 3] > time[3, 4]  # which clock the governor chooses isn't known as well as one that is set
    assert errors["energy"][0, 2] < 0.6 * math.sqrt(2) * calibration.power.log_error


def test_alike_means_that_neither_time_nor_energy_tells(calibration: Calibration) -> None:
    answers = answered(
        calibration, {}, {"name": "same"}, {"clock_MHz": 1500.0}, {"clock_MHz": 705.0}, {"micro_batch": 1}
    )
    machine = system_of(answers[0].plan, calibration)
    found = alike(answers, machine)
    assert (found == found.T).all()
    assert not np.diag(found).any()
    assert found[0, 1]
    assert not found[0, 3]
    assert not found[2, 3]
    assert not found[0, 4]


def test_without_power_time_alone_tells(calibration: Calibration) -> None:
    blind = calibration.model_copy(update={"power": calibration.power.model_copy(update={"points": 0})})
    answers = answered(blind, {}, {"name": "same"}, {"micro_batch": 1})
    found = alike(answers, system_of(answers[0].plan, blind))
    assert found.tolist() == [[False, True, False], [True, False, False], [False, False, False]]
