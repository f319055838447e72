"""Goals, limits and explanations against every plan of a small space, predicted alone and compared by hand."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest

from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.device.power import power_model
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.outcome import Outcome, outcome
from moemodel.model.search.document import Search
from moemodel.model.search.explain import Explanation, explain, in_words, is_plan_but_for_rules
from moemodel.model.search.problem import problem_of
from moemodel.model.search.quantities import QUANTITIES
from moemodel.model.search.relax import NothingFeasibleError, advise
from moemodel.model.search.result import SearchResult, figure_of, read_search_result
from moemodel.model.search.search import search

HOST_W = 200.0
CHOICES: dict[str, list[Any]] = {
    "tp": [1, 2],
    "pp": [1, 2],
    "zero_stage": [1],
    "micro_batch": [1, 4],
    "recompute": ["none", "full"],
}
CLOCKS = [None, 1200.0]
GPUS = [4, 8]
MEMORY_B = 85_520_809_984  # of the preset of the GPU


def make(**changes: Any) -> Search:
    """OPT-350M on 4 or 8 GPUs in nodes of 4."""
    document: dict[str, Any] = {
        "architecture": "opt-350m",
        "sequence_length": 2048,
        "global_batch": 64,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": GPUS, "gpus_per_node": 4},
        "search": CHOICES | {"cp": 1, "ep": 1, "sequence_parallel": False, "virtual_stages": 1},
        "clocks_MHz": CLOCKS,
        "site": {"host_power_W": HOST_W, "price_per_kWh": 0.1, "gpu_hour_price": 2.0},
        "tokens": 1e10,
    }
    return Search.model_validate(document | changes)


@cache
def everything(calibration_id: int) -> list[tuple[Plan, Outcome, dict[str, float]]]:
    """Every plan of the space that is one, its prediction alone, and its quantities."""
    calibration, found = CALIBRATIONS[calibration_id], []
    document = make()
    for gpus, clock, *values in product(GPUS, CLOCKS, *CHOICES.values()):
        choices = dict(zip(CHOICES, values, strict=True))
        dp = gpus // (choices["tp"] * choices["pp"])
        try:
            plan = document.plan(**choices, dp=dp, gpus=gpus, clock_MHz=clock)
            answer = outcome(plan, calibration)
        except (InputError, InfeasiblePlanError):
            continue
        found.append((plan, answer, quantities(answer, calibration)))
    return found


CALIBRATIONS: dict[int, Calibration] = {}


@pytest.fixture
def plans(calibration: Calibration) -> list[tuple[Plan, Outcome, dict[str, float]]]:
    CALIBRATIONS[id(calibration)] = calibration
    return everything(id(calibration))


def quantities(answer: Outcome, calibration: Calibration) -> dict[str, float]:
    """By hand, from what a plan costs alone."""
    gpus, run = answer.plan.cluster.gpus, answer.run
    assert run is not None
    assert run.cost is not None
    mean_W, hottest_W = answer.power_W.value, answer.hottest_power_W.value
    node = min(gpus, 4)
    phases = {name: phase for name, phase in answer.phases.items() if phase.time_s > 0}
    link_W = power_model(calibration).link_W * answer.hidden_communication_s
    link_W /= phases["forward"].time_s + phases["backward"].time_s
    computing = {name: phases[name].energy_J / gpus / phases[name].time_s for name in ("forward", "backward")}
    peak_W = max(max(computing.values()) + link_W, phases["optimizer"].energy_J / gpus / phases["optimizer"].time_s)
    peak_W = max(peak_W * hottest_W / mean_W, hottest_W)
    return {
        "step_time_s": answer.step_time_s.value,
        "it_energy_J": answer.it_energy_J.value,
        "gpu_energy_J": answer.gpu_energy_J.value,
        "memory_B": answer.memory_B.value,
        "tokens_per_s_per_gpu": answer.tokens_per_s_per_gpu.value,
        "gpus": float(gpus),
        "power_per_gpu_W": hottest_W,
        "node_power_W": min(node * hottest_W, gpus * mean_W) + node * HOST_W,
        "cluster_power_W": gpus * (mean_W + HOST_W),
        "peak_power_per_gpu_W": peak_W,
        "peak_node_power_W": node * (peak_W + HOST_W),
        "peak_cluster_power_W": gpus * (peak_W + HOST_W),
        "run_hours": run.hours.value,
        "run_days": run.hours.value / 24,
        "run_kWh": run.energy_kWh.value,
        "run_kgCO2e": run.emissions_kg.value,
        "run_cost": run.cost.value,
    }


Known = list[tuple[Plan, Outcome, dict[str, float]]]


def middle(plans: Known, name: str, share: float = 0.5) -> float:
    return float(np.quantile([values[name] for _, _, values in plans], share))


# ---- goals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "quantity", "limited"),
    [
        ("fewest-gpus", "gpus", "run_days"),
        ("least-energy", "run_kWh", "run_hours"),
        ("least-cost", "run_cost", "deadline"),
        ("least-carbon", "run_kgCO2e", "run_days"),
        ("least-power", "cluster_power_W", "step_time_s"),
        ("fastest", "step_time_s", "cluster_power_W"),
        ("fastest", "step_time_s", "run_kWh"),
        ("fastest", "step_time_s", "run_cost"),
        ("fastest", "step_time_s", "run_kgCO2e"),
        ("fastest", "step_time_s", "node_power_W"),
        ("fastest", "step_time_s", "peak_cluster_power_W"),
    ],
)
@pytest.mark.parametrize("share", [0.15, 0.6])
def test_a_goal_finds_the_best_plan_within_its_limit(
    goal: str, quantity: str, limited: str, share: float, plans: Known, calibration: Calibration
) -> None:
    name = "run_hours" if limited == "deadline" else limited
    limit = middle(plans, name, share)
    within = [values for _, _, values in plans if values[name] <= limit]
    best = min((values[quantity], values["step_time_s"]) for values in within)
    found = search(make(goal=goal, limits={limited: limit}), calibration)
    first = found.front[0]
    figure = figure_of(first, found.objectives[0])
    assert figure is not None
    assert (figure.value, first.step_time_s.value) == pytest.approx(best, rel=1e-9)
    assert found.counts.feasible == len(within)
    assert found.picks[QUANTITIES[quantity].best] == 1


@pytest.mark.parametrize("pair", [("node_power_W", "run_hours"), ("gpus", "run_cost"), ("peak_node_power_W", "gpus")])
def test_a_front_of_any_two_is_that_of_all_plans(pair: tuple[str, str], plans: Known, calibration: Calibration) -> None:
    found = search(make(objectives=pair, keep=1000), calibration)
    costs = {(values[pair[0]], values[pair[1]]) for _, _, values in plans}
    front = [c for c in costs if not any(_beats(other, c) for other in costs)]
    shown = [tuple(_of(entry, name) for name in pair) for entry in found.front]
    assert {tuple(f"{x:.9g}" for x in cost) for cost in shown} == {tuple(f"{x:.9g}" for x in cost) for cost in front}


def _of(entry: Any, name: Any) -> float:
    figure = figure_of(entry, name)
    assert figure is not None
    return figure.value


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    no_worse = all(a <= b * (1 + 1e-9) for a, b in zip(one, other, strict=True))
    return no_worse and any(a < b * (1 - 1e-9) for a, b in zip(one, other, strict=True))


def test_every_quantity_is_that_of_the_plan_alone(plans: Known, calibration: Calibration) -> None:
    found = search(make(keep=1000), calibration)
    alone = {plan.model_dump_json(exclude={"name"}): values for plan, _, values in plans}
    assert len(found.front) > 1
    for entry in found.front:
        values = alone[entry.plan.model_dump_json(exclude={"name"})]
        for name in QUANTITIES:
            assert _of(entry, name) == pytest.approx(values[name], rel=1e-9), name
        assert values["peak_node_power_W"] >= values["node_power_W"]


def test_a_goal_needs_what_its_quantity_needs() -> None:
    with pytest.raises(InputError, match="goal: least-cost: what is of the whole run needs `tokens`"):
        make(goal="least-cost", tokens=None)
    with pytest.raises(InputError, match="goal: found fastest beside objectives"):
        make(goal="fastest", objectives="step_time_s")
    assert make(goal="least-energy", tokens=None).optimized(has_power=True) == ("it_energy_J", "step_time_s")
    assert make(goal="fastest").optimized(has_power=False) == ("step_time_s",)


def test_numbers_of_gpus_may_be_a_range() -> None:
    def gpus(value: Any) -> tuple[int, ...]:
        return make(cluster={"gpu": "h100-sxm-80gb", "gpus": value}).cluster.gpus

    assert gpus({"from": 8, "to": 32}) == (8, 16, 24, 32)
    assert gpus({"from": 4, "to": 10, "step": 3}) == (4, 7, 10)
    assert gpus(8) == (8,)
    for wrong in ({"from": 8}, {"from": 8, "to": 4}, {"from": 1, "to": 4, "by": 1}, {"from": True, "to": 4}):
        with pytest.raises(InputError, match="from, to, step"):
            gpus(wrong)


# ---- deadlines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "hours"),
    [
        ({"deadline": 36}, 36.0),
        ({"deadline": "36 h"}, 36.0),
        ({"deadline": "1.5 days"}, 36.0),
        ({"deadline": "2 weeks"}, 336.0),
        ({"deadline": "2027-01-03", "start": "2027-01-01"}, 48.0),
        ({"deadline": "2027-01-01T12:00+02:00", "start": "2027-01-01T00:00Z"}, 10.0),
    ],
)
def test_a_deadline_is_a_number_of_hours(limits: dict[str, Any], hours: float) -> None:
    document = make(limits=limits)
    assert document.limits.given == {"deadline": hours}
    assert Search.model_validate_json(document.model_dump_json(by_alias=True)).limits.given == {"deadline": hours}


def test_a_deadline_counts_from_now_unless_it_says_from_when() -> None:
    limits = make(limits={"deadline": "2100-01-01"}).limits
    assert limits.start is not None
    assert timedelta(0) <= datetime.now(UTC) - limits.start < timedelta(minutes=2)
    assert limits.given["deadline"] * 3600 == (datetime(2100, 1, 1, tzinfo=UTC) - limits.start).total_seconds()
    assert "2100-01-01 00:00 UTC" in limits.deadline_note


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"deadline": "soon"}, "allowed: hours"),
        ({"deadline": "3 fortnights"}, "units are h, hour"),
        ({"deadline": 0}, "allowed: hours"),
        ({"deadline": True}, "allowed: hours"),
        ({"deadline": "2026-01-01", "start": "2026-01-02"}, "not after the start"),
        ({"start": "tomorrow"}, "allowed: hours"),
    ],
)
def test_what_is_no_deadline(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(limits=limits)


def test_a_deadline_needs_tokens() -> None:
    with pytest.raises(InputError, match=r"limits\.deadline: what is of the whole run needs `tokens`"):
        make(limits={"deadline": 3}, tokens=None)


def test_a_result_with_a_date_is_read_back(calibration: Calibration, tmp_path: Any) -> None:
    found = search(make(goal="least-cost", limits={"deadline": "2100-01-01", "start": "2099-01-01"}), calibration)
    path = tmp_path / "result.json"
    path.write_text(found.to_json(), encoding="utf-8")
    assert read_search_result(path) == found
    assert found.notes[0].startswith("The deadline, 2100-01-01 00:00 UTC, is 8,760.0 hours after the start")


# ---- nothing feasible -----------------------------------------------------------------------------------------------


def _ratios(plans: Known, limits: dict[str, float]) -> list[dict[str, float]]:
    return [{name: values[name] / limit for name, limit in limits.items()} for _, _, values in plans]


@pytest.mark.parametrize(
    "shares",
    [
        {"step_time_s": 0.0, "it_energy_J": 0.0},
        {"step_time_s": 0.1, "cluster_power_W": 0.1, "run_cost": 0.3},
        {"run_days": 0.2, "node_power_W": 0.2, "run_kgCO2e": 0.05, "gpu_energy_J": 0.9},
        {"step_time_s": 0.02, "peak_power_per_gpu_W": 0.02},
    ],
)
def test_it_says_what_to_relax_and_by_how_much(
    shares: dict[str, float], plans: Known, calibration: Calibration
) -> None:
    limits = {name: float(f"{middle(plans, name, share) * 0.995:.6g}") for name, share in shares.items()}
    with pytest.raises(NothingFeasibleError) as caught:
        search(make(limits=limits), calibration)
    advice, ratios = caught.value.advice, _ratios(plans, limits)
    for name, limit in limits.items():
        alone = [r[name] for r in ratios if all(r[other] <= 1 for other in limits if other != name)]
        if not alone:
            assert name in advice.in_vain
            continue
        (needed,) = advice.alone[name].limits
        assert min(alone) * limit <= needed.needed <= min(alone) * limit * 1.001
        assert search(make(limits=limits | {name: needed.needed}), calibration).counts.feasible >= 1
        with pytest.raises(InfeasiblePlanError):
            search(make(limits=limits | {name: min(alone) * limit * 0.9999}), calibration)
        assert f"limits.{name} {needed.needed:.6g} instead of {limit:.6g}" in str(caught.value)
    assert advice.together is not None
    worst = max(one.needed / one.given for one in advice.together.limits)
    assert worst == pytest.approx(min(max(r.values()) for r in ratios), rel=1e-3)
    relaxed = {one.limit: one.needed for one in advice.together.limits}
    assert search(make(limits=limits | relaxed), calibration).counts.feasible >= 1


def test_memory_is_relaxed_too(plans: Known, calibration: Calibration) -> None:
    """A share of memory that no plan keeps."""
    least_B = min(values["memory_B"] for _, _, values in plans)
    with pytest.raises(NothingFeasibleError) as caught:
        search(make(limits={"memory_share": 0.001, "run_days": 1e3}), calibration)
    (needed,) = caught.value.advice.alone["memory_share"].limits
    assert least_B / MEMORY_B <= needed.needed <= least_B / MEMORY_B * 1.001
    assert caught.value.advice.in_vain == ("run_days",)
    assert search(make(limits={"memory_share": needed.needed}), calibration).counts.feasible >= 1


def test_without_a_plan_there_is_nothing_to_relax(calibration: Calibration) -> None:
    with pytest.raises(NothingFeasibleError) as caught:
        search(make(search={"tp": 3}), calibration)
    assert (caught.value.advice.alone, caught.value.advice.together) == ({}, None)
    assert "Relax" not in str(caught.value)


def test_where_there_are_too_many_plans_some_are_looked_at(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moemodel.model.search import relax
    from moemodel.model.search.candidates import candidates
    from moemodel.model.search.search import predicted_plans

    problem = problem_of(make(limits={"step_time_s": 1e-4}), calibration)
    monkeypatch.setattr(relax, "_MOST_PREDICTIONS", 30)
    found = advise(problem, candidates(problem, calibration), predicted_plans)
    assert 0 < found.share < 1
    assert f"For this {found.share:.2%} of the plans that fit" in found.says(problem.document.limits)


# ---- explanations ---------------------------------------------------------------------------------------------------


def explained(
    document: Search, plan: Plan | dict[str, Any], calibration: Calibration, done: SearchResult
) -> Explanation:
    """With the search made once for many plans."""
    return explain(document, plan, calibration, lambda _: done)


def test_every_plan_is_explained_as_all_of_them_say(plans: Known, calibration: Calibration) -> None:
    limits = {"step_time_s": middle(plans, "step_time_s", 0.7), "node_power_W": middle(plans, "node_power_W", 0.8)}
    document = make(limits=limits)
    done = search(document.model_copy(update={"keep": 1000}), calibration)
    costs = {
        id(plan): (values["step_time_s"], values["it_energy_J"])
        for plan, _, values in plans
        if all(values[name] <= limit for name, limit in limits.items())
    }
    seen = set()
    for plan, _, values in plans[::2]:
        found = explained(document, plan, calibration, done)
        seen.add(found.verdict)
        over = {name: values[name] / limit - 1 for name, limit in limits.items() if values[name] > limit}
        assert {reason.name: reason.over for reason in found.reasons} == pytest.approx(over, rel=1e-6)
        if over:
            assert found.verdict == "refused"
            continue
        mine = costs[id(plan)]
        better = [cost for cost in costs.values() if _beats(cost, mine)]
        assert (found.verdict == "beaten") == bool(better)
        if found.beaten_by is not None:
            entry = done.front[found.beaten_by.number - 1]
            its = (entry.step_time_s.value, _of(entry, "it_energy_J"))
            assert _beats(its, mine)
            shares = [change.share for change in found.beaten_by.objectives.values()]
            assert shares == pytest.approx([a / b - 1 for a, b in zip(mine, its, strict=True)], rel=1e-6)
            told = found.beaten_by.objectives["step_time_s"]
            assert told.interval is not None
            assert told.told_apart == (not told.interval[0] <= 0 <= told.interval[1])
            assert "beats it" in in_words(found)
        else:
            assert found.number is not None
    assert seen >= {"refused", "beaten", "on the front"}


def test_a_better_plan_than_the_search_has_is_said_to_be_one(calibration: Calibration) -> None:
    slow = make(clocks_MHz=[600])
    fast = slow.plan(dp=8, gpus=8, micro_batch=4, zero_stage=1)
    found = explain(slow, fast, calibration, lambda asked: search(asked, calibration))
    assert (found.verdict, [reason.name for reason in found.reasons]) == ("better", ["clock_MHz"])


@pytest.mark.parametrize(
    ("changes", "kind", "name", "words"),
    [
        ({"global_batch": 128}, "job", "global_batch", "global_batch 128: the search is for 64"),
        ({"precision": "bf16"}, "job", "precision", "the search is for bf16-mixed"),
        ({"gradient_dtype": "fp32"}, "job", "gradient_dtype", "the search is for None"),
        ({"micro_batch": 2}, "choice", "micro_batch", "micro_batch 2: the search has 1, 4"),
        ({"clock_MHz": 1500.0}, "choice", "clock_MHz", "clock_MHz 1500: the search has auto, 1200"),
        ({"parallel": {"dp": 4, "tp": 2, "zero_stage": 3}}, "choice", "zero_stage", "zero_stage 3: the search has 1"),
        ({"clock_MHz": 1201.0}, "rule", "clock", "the nearest are 1200 and 1215"),
        ({"parallel": {"dp": 3}}, "rule", "degrees", "dp 3 x tp 1 x pp 1 x cp 1 = 3, but cluster.gpus is 8"),
        ({"parallel": {"dp": 8, "ep": 8}}, "rule", "experts", "opt-350m has no experts"),
        ({"parallel": {"dp": 8}, "micro_batch": 3}, "rule", "batch", "must be a multiple of micro_batch x dp = 24"),
    ],
)
def test_what_refuses_a_plan_is_named(
    changes: dict[str, Any], kind: str, name: str, words: str, calibration: Calibration
) -> None:
    data: dict[str, Any] = {
        "architecture": "opt-350m",
        "sequence_length": 2048,
        "global_batch": 64,
        "micro_batch": 4,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8, "gpus_per_node": 4},
        "parallel": {"dp": 8, "zero_stage": 1},
    } | changes
    try:
        plan: Plan | dict[str, Any] = Plan.model_validate(data)
    except InputError:
        assert is_plan_but_for_rules(data)
        plan = data
    found = explain(make(), plan, calibration, lambda asked: search(asked, calibration))
    told = {(reason.kind, reason.name): reason.says for reason in found.reasons}
    assert words in told[kind, name]  # type: ignore[index]
    if kind != "choice":
        assert found.verdict == "refused"


def test_memory_is_a_reason(calibration: Calibration) -> None:
    document = make(limits={"memory_share": 0.03})
    plan = document.plan(dp=8, gpus=8, micro_batch=4, zero_stage=1)
    found = explain(document, plan, calibration, lambda asked: search(asked, calibration))
    (reason,) = found.reasons
    assert (reason.kind, reason.name) == ("memory", "memory_share")
    assert reason.limit == pytest.approx(0.03 * MEMORY_B)
    assert reason.value == pytest.approx(found.values["memory_B"])


def test_where_the_search_finds_nothing_both_are_said(calibration: Calibration) -> None:
    document = make(limits={"step_time_s": 1e-3})
    plan = document.plan(dp=8, gpus=8, micro_batch=4, zero_stage=1)
    found = explain(document, plan, calibration, lambda asked: search(asked, calibration))
    assert [reason.name for reason in found.reasons] == ["step_time_s"]
    assert found.nothing_feasible is not None
    assert "Relax one limit" in in_words(found)


def test_what_is_wrong_otherwise_is_no_matter_of_rules() -> None:
    data = {
        "architecture": "opt-350m",
        "sequence_length": 2048,
        "global_batch": 64,
        "cluster": {"gpu": "h100-sxm-80gb"},
    }
    assert is_plan_but_for_rules(data | {"parallel": {"dp": 3}})
    assert not is_plan_but_for_rules(data | {"paralel": {"dp": 3}})
    assert not is_plan_but_for_rules(data | {"parallel": {"dp": "three"}})
    assert not is_plan_but_for_rules(data | {"micro_batch": 0})
    assert not is_plan_but_for_rules({"parallel": {"dp": 3}})


# ---- against the fastest --------------------------------------------------------------------------------------------


def test_picks_differ_from_the_fastest_as_their_predictions_do(calibration: Calibration) -> None:
    found = search(make(goal="least-cost"), calibration)
    fastest = min(found.front, key=lambda entry: entry.step_time_s.value)
    assert found.differences
    assert {one.number for one in found.differences} == {*found.picks.values()} - {fastest.number}
    for one in found.differences:
        pick, (a, b) = (
            found.front[one.number - 1],
            (outcome(e.plan, calibration) for e in (found.front[one.number - 1], fastest)),
        )
        assert one.fastest == fastest.number
        assert one.step_time.share == pytest.approx(a.step_time_s.value / b.step_time_s.value - 1)
        assert one.it_energy is not None
        assert one.it_energy.share == pytest.approx(a.it_energy_J.value / b.it_energy_J.value - 1)
        assert sum(one.phases_J.values()) == pytest.approx(a.it_energy_J.value - b.it_energy_J.value, rel=1e-6)
        said = {text.split(" instead of ")[0].rsplit(" ", 1)[0] for text in one.choices if not text.startswith("clock")}
        other = {k.replace("_", " ") for k, v in pick.plan.choices.items() if fastest.plan.choices[k] != v}
        assert said == other


def test_phases_of_an_entry_add_up(calibration: Calibration) -> None:
    for entry in search(make(), calibration).front:
        assert sum(phase.time_s for phase in entry.phases.values()) == pytest.approx(entry.step_time_s.value)
        energies_J = [phase.energy_J or 0.0 for phase in entry.phases.values()]
        assert entry.gpu_energy_J is not None
        assert math.fsum(energies_J) == pytest.approx(entry.gpu_energy_J.value)
