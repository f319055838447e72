"""A search that rules plans out by their bounds, against one that predicts them all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moemodel.model.records.calibration import Calibration
from moemodel.model.search.candidates import candidates
from moemodel.model.search.contenders import contenders
from moemodel.model.search.document import Search
from moemodel.model.search.problem import problem_of
from moemodel.model.search.result import SearchResult
from moemodel.model.search.search import predicted_plans, search
from moemodel.model.search.state import SearchState

# Spaces of thousands of plans: dense and with experts, several schedules, clocks, sizes of clusters and objectives.
SPACES: dict[str, dict[str, Any]] = {
    "dense, schedules": {
        "architecture": "opt-350m",
        "global_batch": 96,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 12},
        "schedule": ["1f1b", "gpipe", "zero-bubble"],
        "search": {"cp": 1},
        "clocks_MHz": [None, 1200],
    },
    "experts, clocks": {
        "architecture": "olmoe-1b-7b",
        "global_batch": 64,
        "backend": "megatron-core",
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": [8, 16]},
        "search": {"cp": 1, "recompute": ["none", "full"], "virtual_stages": [1, 2]},
        "clocks_MHz": [None, 1200, 1605],
    },
    "cost of a run": {
        "architecture": "olmoe-1b-7b",
        "global_batch": 64,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": [8, 16]},
        "search": {"cp": 1, "zero_stage": [1, 3], "recompute": "none"},
        "objectives": ["run_cost", "run_hours"],
        "limits": {"run_hours": 8.0},
        "clocks_MHz": [None, 1200],
    },
    "memory and time": {
        "architecture": "llama-3-8b",
        "global_batch": 32,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 16},
        "search": {"cp": 1, "virtual_stages": 1},
        "objectives": ["memory_B", "step_time_s"],
        "clocks_MHz": None,
    },
    "one objective": {
        "architecture": "llama-3-8b",
        "global_batch": 32,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 16},
        "search": {"cp": 1, "virtual_stages": 1},
        "objectives": "tokens_per_s_per_gpu",
        "clocks_MHz": [None, 1200],
    },
    "power, of which a bound says nothing": {
        "architecture": "opt-350m",
        "global_batch": 32,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
        "search": {"cp": 1, "virtual_stages": 1, "recompute": "none"},
        "objectives": ["step_time_s", "cluster_power_W"],
        "clocks_MHz": [None, 1200],
    },
}


def make(space: dict[str, Any], **changes: Any) -> Search:
    site = {"host_power_W": 200.0, "price_per_kWh": 0.1, "gpu_hour_price": 2.0}
    return Search.model_validate({"sequence_length": 2048, "site": site, "tokens": 1e9} | space | changes)


def _kept(found: SearchResult) -> list[tuple[str, float]]:
    return [(entry.plan_yaml, entry.step_time_s.value) for entry in (*found.front, *found.next_best)]


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_the_front_and_what_is_behind_it_are_those_of_all_plans(
    space: dict[str, Any], calibration: Calibration
) -> None:
    document = make(space, keep=3)
    every, some = (search(document, calibration, exhaustive=exhaustive) for exhaustive in (True, False))
    assert _kept(some) == _kept(every)
    assert (some.counts.front, some.picks) == (every.counts.front, every.picks)
    assert every.counts.outdone == 0
    for found in (every, some):
        counts = found.counts
        refused = sum(refusal.plans for refusal in counts.refused)
        assert counts.feasible + counts.outdone + refused == counts.combinations
    assert some.counts.feasible <= every.counts.feasible


def test_most_of_a_space_is_ruled_out_and_each_of_it_is_beaten(calibration: Calibration) -> None:
    """By brute force: a plan that was not predicted is worse than one of the front in time and in energy."""
    problem = problem_of(make(SPACES["experts, clocks"]), calibration)
    legal = candidates(problem, calibration)
    state = SearchState(problem, legal)
    fitting, seen = state.keep_fitting(legal), list[int]()
    for some in contenders(problem, fitting, state):
        for predicted in predicted_plans(problem, some):
            state.add(predicted)
        seen += some.index.tolist()
    assert len(seen) == len(set(seen)) == state.predicted // 3
    assert len(seen) < len(fitting) / 2
    others = fitting.take(~np.isin(fitting.index, seen))
    assert state.outdone == 3 * len(others)
    front = state.costs_FO
    for predicted in predicted_plans(problem, others):
        costs = np.stack([predicted.values[name] for name in problem.objectives], axis=1)
        assert (costs[:, None] > front[None]).all(axis=2).any(axis=1).all()


def test_a_limit_that_every_bound_exceeds_is_named(calibration: Calibration) -> None:
    document = make(SPACES["one objective"], limits={"step_time_s": 1e-6})
    with pytest.raises(Exception, match=r"limits.step_time_s 1e-06"):
        search(document, calibration, exhaustive=False)


def test_small_spaces_are_predicted_whole(calibration: Calibration) -> None:
    found = search(make(SPACES["power, of which a bound says nothing"], keep=2), calibration)
    assert found.counts.outdone == 0
