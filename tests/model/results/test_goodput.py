"""Failures in long runs: expected times against a simulation of failures, Daly's interval against the true optimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import lambertw

from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.plan.failures import SUGGESTED_MTBF_HOURS, FailuresSpec
from moemodel.model.plan.spec import Plan, plan_text
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.goodput import RunTime, optimal_interval_s, run_time
from moemodel.model.results.outcome import RunTotals, outcome
from moemodel.model.search.document import Search
from moemodel.model.search.search import search

MakePlan = Callable[..., Plan]

GPUS = 1000.0
STEP_S = 10.0
RUN: dict[str, Any] = {
    "architecture": "opt-350m",
    "sequence_length": 2048,
    "global_batch": 64,
    "micro_batch": 4,
    "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
    "parallel": {"dp": 8, "zero_stage": 1},
    "tokens": 1e12,
    "site": {"price_per_kWh": 0.2, "gpu_hour_price": 2.0, "host_power_W": 100.0},
}


def _time(steps: float, step_s: float = STEP_S, gpus: float = GPUS, **failures: Any) -> RunTime:
    spec = FailuresSpec.model_validate(failures)
    return run_time(spec, steps=np.array([steps]), step_time_s=np.array([step_s]), gpus=np.array([gpus]))


def _simulated(
    rng: np.random.Generator, *, mtbf_s: float, stretches_s: list[float], checkpoint_s: float, restart_s: float
) -> dict[str, float]:
    """One run, minute by minute as an operator sees it: a clock, the time of the next failure, and what was saved."""
    clock, failure_at = 0.0, rng.exponential(mtbf_s)
    spent = {"training_s": 0.0, "checkpoints_s": 0.0, "restarts_s": 0.0, "failures": 0.0}

    def passes(name: str, lasts: float) -> bool:
        """Spend time on something; False: a failure cut it short."""
        nonlocal clock, failure_at
        ends = min(clock + lasts, failure_at)
        spent[name] += ends - clock
        failed, clock = failure_at < clock + lasts, ends
        if failed:
            spent["failures"] += 1
            failure_at = clock + rng.exponential(mtbf_s)
        return not failed

    for stretch_s in stretches_s:
        while not (passes("training_s", stretch_s) and passes("checkpoints_s", checkpoint_s)):
            while not passes("restarts_s", restart_s):
                pass
    return spent


@pytest.mark.parametrize(
    ("mtbf_hours", "interval_s", "checkpoint_s", "restart_s", "steps"),
    [
        (2000.0, 1800.0, 120.0, 600.0, 3000.0),  # a failure every two hours, a run of eight
        (500.0, 600.0, 300.0, 900.0, 1000.0),  # every half hour: more than half is lost
        (1000.0, 2500.0, 0.0, 60.0, 777.0),  # checkpoints cost nothing; the last stretch is a short one
        (300.0, 50_000.0, 30.0, 0.0, 200.0),  # one checkpoint, at the end
    ],
)
def test_expected_times_are_those_of_simulated_failures(
    mtbf_hours: float, interval_s: float, checkpoint_s: float, restart_s: float, steps: float
) -> None:
    found = _time(
        steps,
        mtbf_hours_per_gpu=mtbf_hours,
        checkpoint_interval_s=interval_s,
        checkpoint_s=checkpoint_s,
        restart_s=restart_s,
    ).first()
    between = min(steps, interval_s / STEP_S)
    whole, rest = divmod(steps, between)
    stretches_s = [between * STEP_S] * int(whole) + ([rest * STEP_S] if rest else [])
    rng, mtbf_s = np.random.default_rng(13), mtbf_hours * 3600 / GPUS
    runs = [
        _simulated(rng, mtbf_s=mtbf_s, stretches_s=stretches_s, checkpoint_s=checkpoint_s, restart_s=restart_s)
        for _ in range(3000)
    ]
    for name in ("training_s", "checkpoints_s", "restarts_s", "failures"):
        seen = np.array([run[name] for run in runs])
        error = seen.std() / math.sqrt(len(seen))
        assert found[name] == pytest.approx(seen.mean(), abs=4 * error + 1e-9), name
        assert error <= 0.02 * seen.mean() + 1e-9, name
    assert found["useful_s"] == steps * STEP_S


@pytest.mark.parametrize("checkpoint_s", [1.0, 60.0, 600.0, 3600.0])
@pytest.mark.parametrize("mtbf_s", [1800.0, 10_000.0, 1e6])
def test_the_interval_is_near_the_best(checkpoint_s: float, mtbf_s: float) -> None:
    """The exact optimum is M (1 + W(-exp(-delta/M - 1))); by Daly's a run takes hardly longer."""
    daly = float(optimal_interval_s(np.array([checkpoint_s]), np.array([mtbf_s]))[0])

    def per_second(tau: float) -> float:
        return mtbf_s * math.expm1((tau + checkpoint_s) / mtbf_s) / tau

    exact = mtbf_s * (1 + float(lambertw(-math.exp(-checkpoint_s / mtbf_s - 1)).real))
    searched = minimize_scalar(per_second, bounds=(1e-3 * exact, 10 * exact), method="bounded").x
    assert searched == pytest.approx(exact, rel=1e-2)
    assert per_second(daly) <= per_second(exact) * 1.002
    if checkpoint_s < 0.01 * mtbf_s:  # and Young's, the first term, is near
        assert daly == pytest.approx(math.sqrt(2 * checkpoint_s * mtbf_s), rel=0.1)


def test_left_out_the_interval_is_the_best_of_all() -> None:
    terms = {"mtbf_hours_per_gpu": 20_000.0, "checkpoint_s": 100.0, "restart_s": 300.0}
    best = _time(1e6, **terms).wall_s[0]
    for interval_s in np.geomspace(300, 100_000, 40):
        assert best <= _time(1e6, **terms, checkpoint_interval_s=float(interval_s)).wall_s[0] * 1.0002


def test_without_failures_only_checkpoints_are_left() -> None:
    found = _time(1000.0, mtbf_hours_per_gpu=1e12, checkpoint_interval_s=1000.0, checkpoint_s=50.0)
    assert found.wall_s[0] == pytest.approx(10_000 + 10 * 50.0, rel=1e-6)
    assert found.goodput[0] == pytest.approx(1 / 1.05, rel=1e-6)


def test_a_job_that_cannot_end_has_numbers() -> None:
    found = _time(1000.0, mtbf_hours_per_gpu=1e-3, checkpoint_s=1e6, restart_s=1e6)
    assert np.isfinite(found.wall_s[0])
    assert found.goodput[0] < 1e-6


def test_llama_3_fails_as_often_as_was_published() -> None:
    """arXiv 2407.21783: 419 unexpected interruptions in 54 days of 16,384 H100, and more than 90 % of
    the time effective, for which a checkpoint must not hold training up for a minute."""
    days, gpus = 54.0, 16_384.0
    assert gpus * days * 24 / 419 == pytest.approx(SUGGESTED_MTBF_HOURS, rel=0.02)
    slow, quick = (
        _time(days * 86400 / STEP_S, gpus=gpus, mtbf_hours_per_gpu=SUGGESTED_MTBF_HOURS, checkpoint_s=checkpoint_s)
        for checkpoint_s in (60.0, 10.0)
    )
    assert quick.failures[0] / quick.wall_s[0] * days * 86400 == pytest.approx(419, rel=0.02)
    assert slow.goodput[0] == pytest.approx(0.875, abs=0.001)  # as docs/plans.md says of the defaults
    assert quick.goodput[0] > 0.9


def _totals(plan: Plan, calibration: Calibration) -> RunTotals:
    found = outcome(plan, calibration).run
    assert found is not None
    return found


def test_totals_count_failures(plan_of: MakePlan, calibration: Calibration) -> None:
    plain = _totals(plan_of(**RUN), calibration)
    assert plain.interrupted is None
    block = {"mtbf_hours_per_gpu": 100.0, "checkpoint_interval_s": 3600.0, "checkpoint_s": 120.0, "restart_s": 600.0}
    found = _totals(plan_of(**RUN, failures=block), calibration)
    part = found.interrupted
    assert part is not None
    assert found.hours.value == pytest.approx(
        plain.hours.value + part.lost_h + part.checkpoints_h + part.restarts_h, rel=1e-9
    )
    assert found.hours.value * part.goodput == pytest.approx(plain.hours.value)
    trained = plain.energy_kWh.value * (plain.hours.value + part.lost_h) / plain.hours.value
    standing_kW = 8 * (part.standing_power_W + 100) / 1e3
    stood = standing_kW * (part.checkpoints_h + part.restarts_h) * 1.2
    assert found.energy_kWh.value == pytest.approx(trained + stood)
    assert found.emissions_kg.value / found.energy_kWh.value == pytest.approx(
        plain.emissions_kg.value / plain.energy_kWh.value
    )
    assert found.cost is not None
    assert found.cost.value == pytest.approx(found.energy_kWh.value * 0.2 + found.hours.value * 8 * 2.0)
    assert part.standing_power_W < 200


def test_notes_name_what_is_assumed(plan_of: MakePlan, calibration: Calibration) -> None:
    notes = " ".join(outcome(plan_of(**RUN, failures={"mtbf_hours_per_gpu": 5e4}), calibration).notes)
    assert "every 6.25e+03 hours" in notes
    assert "checkpoint_s and restart_s by default (assumed)" in notes
    hopeless = {"mtbf_hours_per_gpu": 1e-2}
    assert "not expected to end" in " ".join(outcome(plan_of(**RUN, failures=hopeless), calibration).notes)
    without = {name: value for name, value in RUN.items() if name != "tokens"}
    answer = outcome(plan_of(**without, failures={"mtbf_hours_per_gpu": 5e4}), calibration)
    assert answer.run is None
    assert any("give `tokens`" in note for note in answer.notes)


def test_a_plan_keeps_its_failures(plan_of: MakePlan) -> None:
    assert "failures" not in plan_text(plan_of(**RUN))
    assert "mtbf_hours_per_gpu: 5.0" in plan_text(plan_of(**RUN, failures={"mtbf_hours_per_gpu": 5.0}))


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        ({}, "mtbf_hours_per_gpu"),
        ({"mtbf_hours_per_gpu": 0.0}, "mtbf_hours_per_gpu"),
        ({"mtbf_hours_per_gpu": 1.0, "restart_s": -1.0}, "restart_s"),
        ({"mtbf_hours_per_gpu": 1.0, "checkpoint_interval_s": 0.0}, "checkpoint_interval_s"),
        ({"mtbf_hours_per_gpu": 1.0, "mttr_s": 1.0}, "mttr_s"),
    ],
)
def test_wrong_failures_are_refused(failures: dict[str, float], said: str, plan_of: MakePlan) -> None:
    with pytest.raises(InputError, match=said):
        plan_of(**RUN, failures=failures)


def test_forward_passes_alone_have_none(plan_of: MakePlan) -> None:
    with pytest.raises(InputError, match="failures: found a block; allowed: null"):
        plan_of(mode="inference", failures={"mtbf_hours_per_gpu": 1.0})


def test_a_search_counts_them_as_a_prediction_does(calibration: Calibration) -> None:
    document = {name: RUN[name] for name in ("architecture", "sequence_length", "global_batch", "tokens", "site")}
    document |= {
        "cluster": {"gpu": calibration.gpu, "gpus": [4, 8]},
        "search": {"tp": 1, "pp": 1, "cp": 1, "micro_batch": 4, "recompute": "none", "zero_stage": 1},
        "failures": {"mtbf_hours_per_gpu": 50.0},
        "objectives": ["run_hours", "run_cost"],
    }
    free = search(Search.model_validate({k: v for k, v in document.items() if k != "failures"}), calibration)
    found = search(Search.model_validate(document), calibration)
    fastest, undisturbed = found.front[0], free.front[0]
    assert fastest.run is not None
    assert undisturbed.run is not None
    predicted = _totals(fastest.plan, calibration)
    assert predicted.interrupted is not None
    assert fastest.run.hours.value == predicted.hours.value
    assert fastest.run.hours.value > undisturbed.run.hours.value
    limited = document | {"limits": {"run_hours": undisturbed.run.hours.value * 1.0001}}
    with pytest.raises(InfeasiblePlanError, match="run_hours"):  # which it would keep without failures
        search(Search.model_validate(limited), calibration)
