"""Which plans are run: of a search, of files, on what hardware, and beside which controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.hardware.gpu import read_gpu
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.measured import predict_as_run
from moemodel.model.search.document import Search
from moemodel.model.search.result import SearchResult
from moemodel.model.search.search import search
from moemodel.profiler.backends.base import BACKENDS
from moemodel.validation.select.plans import Chosen, _spread, from_plans, from_search
from moemodel.validation.select.runnable import Hardware, PlanRequest

PlanOf = Callable[..., Plan]
Make = Callable[..., Hardware]


def _search(calibration: Calibration, gpus: int = 2, **changes: Any) -> SearchResult:
    document = {
        "name": "small",
        "architecture": "opt-350m",
        "sequence_length": 2048,
        "global_batch": 16,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": gpus},
        "search": {"cp": 1, "micro_batch": [1, 2, 4], "recompute": "none"},
        "clocks_MHz": [None, 1200.0, 1305.0, 1410.0, 1500.0],
    }
    return search(Search.model_validate(document | changes), calibration)


@pytest.fixture(scope="module")
def result(calibration: Calibration) -> SearchResult:
    return _search(calibration)


def _roles(chosen: Chosen) -> list[str]:
    return [role for choice in chosen.choices for role in choice.roles]


# ---- of a search ----------------------------------------------------------------------------------------------------


def test_the_best_of_a_search_and_controls(result: SearchResult, hardware: Make, calibration: Calibration) -> None:
    chosen = from_search(result, hardware(), calibration, top=3, controls=True, seed=0)
    roles = _roles(chosen)
    assert any(role.startswith("front 1 (fastest") for role in roles)
    assert f"front {len(result.front)} (least energy)" in roles
    assert sum(any("front" in role for role in choice.roles) for choice in chosen.choices) == 3
    assert {"control: default", "control: random"} <= set(roles)
    names = [choice.asked.name for choice in chosen.choices]
    assert len(set(names)) == len(names)
    assert chosen.set_aside == chosen.notes == ()


def test_without_controls(result: SearchResult, hardware: Make, calibration: Calibration) -> None:
    chosen = from_search(result, hardware(), calibration, top=2, controls=False, seed=0)
    assert len(chosen.choices) == 2
    assert all(role.startswith("front") for role in _roles(chosen))


def test_more_than_there_are(result: SearchResult, hardware: Make, calibration: Calibration) -> None:
    chosen = from_search(result, hardware(), calibration, top=1000, controls=False, seed=0)
    assert len(chosen.choices) == len(result.front) + len(result.next_best)
    assert chosen.choices[-1].roles == (f"next {len(result.next_best)} behind the front",)


def test_where_clocks_cannot_be_held_plans_that_differ_by_them_are_one(
    result: SearchResult, hardware: Make, calibration: Calibration
) -> None:
    chosen = from_search(result, hardware(no_locks="no permission"), calibration, top=1000, controls=False, seed=0)
    assert len(chosen.choices) < len(result.front) + len(result.next_best)
    assert len(_roles(chosen)) == len(result.front) + len(result.next_best)
    for choice in chosen.choices:
        assert choice.plan.clock_MHz is None
        if choice.asked.clock_MHz is not None:
            (note,) = choice.notes
            assert f"{choice.asked.clock_MHz:g} MHz, which was not held (no permission)" in note


def test_the_random_control_is_drawn_by_the_seed(
    result: SearchResult, hardware: Make, calibration: Calibration
) -> None:
    def drawn(seed: int) -> Plan:
        chosen = from_search(result, hardware(), calibration, top=2, controls=True, seed=seed)
        return next(c.asked for c in chosen.choices if "control: random" in c.roles)

    assert drawn(1) == drawn(1)
    assert len({drawn(seed).model_dump_json() for seed in range(6)}) > 1
    assert drawn(1).name == "small-random"


def test_the_random_control_can_be_run_and_is_another_plan(
    result: SearchResult, hardware: Make, calibration: Calibration
) -> None:
    """Of what isn't on the front, here nothing runs but pipelines."""
    front = {entry.plan.name for entry in result.front}
    refuses = hardware(unable=lambda plan: None if plan.parallel.pp > 1 or plan.name in front else "no")
    chosen = from_search(result, refuses, calibration, top=1000, controls=True, seed=3)
    others = [choice for choice in chosen.choices if choice.roles != ("control: random",)]
    (random,) = [choice for choice in chosen.choices if choice.roles == ("control: random",)]
    assert random.plan.parallel.pp > 1
    assert all(
        random.plan.model_copy(update={"name": other.plan.name}).model_dump(exclude={"site", "tokens"})
        != other.plan.model_dump(exclude={"site", "tokens"})
        for other in others
    )


def test_a_limit_of_the_search_holds_for_the_random_control(
    result: SearchResult, hardware: Make, calibration: Calibration
) -> None:
    """Without the limit, some of these draws are slower."""
    limit_s = 1.2 * result.front[0].step_time_s.value
    limited = _search(calibration, limits={"step_time_s": limit_s})

    def times_s(of: SearchResult) -> list[float]:
        drawn = [from_search(of, hardware(), calibration, top=1, controls=True, seed=seed) for seed in range(5)]
        plans = [choice.plan for one in drawn for choice in one.choices if "control: random" in choice.roles]
        return [predict_as_run(plan, calibration).values["step_time"] for plan in plans]

    assert len(times_s(limited)) == 5
    assert max(times_s(limited)) <= limit_s < max(times_s(result))


def test_plans_for_more_gpus_than_there_are(hardware: Make, calibration: Calibration) -> None:
    both = _search(calibration, cluster={"gpu": "h100-sxm-80gb", "gpus": [1, 4]})
    chosen = from_search(both, hardware(gpus=1), calibration, top=2, controls=True, seed=0)
    assert {choice.plan.cluster.gpus for choice in chosen.choices} == {1}
    assert {aside.reason for aside in chosen.set_aside} == {"it needs 4 GPUs; here are 1"}


def test_nothing_fits_the_hardware(result: SearchResult, hardware: Make, calibration: Calibration) -> None:
    with pytest.raises(InputError) as caught:
        from_search(result, hardware(gpus=1), calibration, top=5, controls=True, seed=0)
    assert str(caught.value) == (
        f"none of the {len(result.front)} plans of search small can be run here: it needs 2 GPUs; here are 1. "
        "Search for the hardware at hand, or name plan files"
    )


def test_another_calibration_than_the_searchs_is_noted(
    result: SearchResult, hardware: Make, calibration: Calibration
) -> None:
    other = calibration.model_copy(update={"name": "other", "provenance": "of another day"})
    (note,) = from_search(result, hardware(), other, top=1, controls=False, seed=0).notes
    assert note.startswith("The search rests on calibration test-h100 (")
    assert "these predictions on other (" in note


@pytest.mark.parametrize("size", range(8))
def test_the_first_few_are_spread_over_the_whole(size: int) -> None:
    values = list(range(size))
    assert sorted(_spread(values)) == values
    assert _spread(list(range(7)))[:3] == [3, 1, 5]


# ---- that are named -------------------------------------------------------------------------------------------------


@pytest.fixture
def named(plan_of: PlanOf) -> Callable[..., PlanRequest]:
    """A plan as if it were of file STEM.yaml."""

    def make(stem: str, /, **changes: Any) -> PlanRequest:
        return PlanRequest(role=f"file {stem}.yaml", plan=plan_of(**{"name": "p", "micro_batch": 4} | changes))

    return make


def test_plans_of_files(named: Callable[..., PlanRequest], hardware: Make, calibration: Calibration) -> None:
    requests = [named("a"), named("b", micro_batch=2), named("c")]
    chosen = from_plans(requests, hardware(), calibration, controls=False, seed=0)
    assert [choice.asked.name for choice in chosen.choices] == ["p", "p-2"]
    assert chosen.choices[0].roles == ("file a.yaml", "file c.yaml")


def test_controls_for_every_model_and_batch(
    named: Callable[..., PlanRequest], hardware: Make, calibration: Calibration
) -> None:
    requests = [named("a"), named("b", name="q", global_batch=32), named("c", name="r", micro_batch=1)]
    chosen = from_plans(requests, hardware(), calibration, controls=True, seed=0)
    assert sum("control: default" in choice.roles for choice in chosen.choices) == 2
    assert sum("control: random" in choice.roles for choice in chosen.choices) == 2
    names = [choice.asked.name for choice in chosen.choices if "control: random" in choice.roles]
    assert names == ["opt-350m-random", "opt-350m-random-2"]
    for choice in chosen.choices:
        assert choice.plan.cluster.gpus == 1
        assert choice.plan.clock_MHz is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cluster": {"gpus": 4}, "parallel": {"dp": 4}}, "it needs 4 GPUs; here are 2"),
        ({"cluster": {"gpu": "a100-sxm-80gb"}}, "it is for a100-sxm-80gb; here is h100-sxm-80gb"),
        (
            {"backend": "megatron"},
            f"backend megatron can't be run; allowed: {', '.join(BACKENDS)}",
        ),
        (
            {"power_cap_W": 500.0},
            "it asks for a power cap of 500 W, and the limit in force is 700 W; no limit is changed here: set it "
            "yourself, or leave power_cap_W out",
        ),
    ],
)
def test_what_cannot_be_run_is_set_aside(
    changes: dict[str, Any], reason: str, named: Callable[..., PlanRequest], hardware: Make, calibration: Calibration
) -> None:
    other = named("other", name="other", **changes)
    chosen = from_plans([named("a"), other], hardware(), calibration, controls=False, seed=0)
    assert len(chosen.choices) == 1
    (aside,) = chosen.set_aside
    assert aside.name == "other [file other.yaml]"
    assert aside.reason == reason
    with pytest.raises(InputError) as caught:
        from_plans([other], hardware(), calibration, controls=False, seed=0)
    assert str(caught.value) == f"no plan can be run here: {reason}"


def test_what_the_runner_says_is_passed_on(
    named: Callable[..., PlanRequest], hardware: Make, calibration: Calibration
) -> None:
    """It is not asked about the power limit in force, which it need not set."""
    asked: list[Plan] = []

    def unable(plan: Plan) -> str | None:
        asked.append(plan)
        return "parallel.cp: found 2" if plan.power_cap_W is None else "power_cap_W"

    with pytest.raises(InputError, match=r"^no plan can be run here: parallel\.cp: found 2$"):
        from_plans([named("a", power_cap_W=700.0)], hardware(unable=unable), calibration, controls=False, seed=0)
    assert asked


def test_another_power_limit_in_force_is_predicted_for(
    named: Callable[..., PlanRequest], hardware: Make, calibration: Calibration
) -> None:
    chosen = from_plans([named("a")], hardware(power_limit_W=500.0), calibration, controls=False, seed=0)
    (choice,) = chosen.choices
    assert choice.asked.power_cap_W is None
    assert choice.plan.power_cap_W == 500.0
    assert choice.notes == ("The power limit in force is 500 W, not 700 W: predicted for that.",)


def test_a_plan_that_should_not_fit_is_run_and_noted(
    named: Callable[..., PlanRequest], hardware: Make, calibration: Calibration
) -> None:
    large = named("large", micro_batch=256, global_batch=256)
    chosen = from_plans([named("a"), large], hardware(), calibration, controls=False, seed=0)
    assert [choice.notes for choice in chosen.choices] == [(), ("It is predicted not to fit in memory.",)]


def test_an_error_names_the_file(named: Callable[..., PlanRequest], hardware: Make, calibration: Calibration) -> None:
    uneven = named("uneven", cluster={"gpus": 3}, parallel={"tp": 3})
    with pytest.raises(InfeasiblePlanError, match=r"uneven\.yaml: p: parallel\.tp 3 does not divide"):
        from_plans([uneven], hardware(), calibration, controls=False, seed=0)


def test_controls_on_a_processor(named: Callable[..., PlanRequest], hardware: Make, calibration: Calibration) -> None:
    """It has no power to search for, and still a default and a random plan."""
    processor = calibration.model_copy(
        update={"gpu": "cpu", "power": calibration.power.model_copy(update={"points": 0})}
    )
    here = hardware(gpu=read_gpu("cpu"), power_limit_W=None, no_locks="it has none")
    chosen = from_plans([named("a", cluster={"gpu": "cpu"})], here, processor, controls=True, seed=0)
    assert {"control: default", "control: random"} <= set(_roles(chosen))
