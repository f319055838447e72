"""Clocks by stage in a search: against every pair of clocks, against what was enumerated, and each plan by itself."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.errors import InputError
from moemodel.model.plan.batch import batch_of, joined
from moemodel.model.plan.clock import ByStage, ClocksSpec
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.results.outcome import outcome
from moemodel.model.search import stage_clocks
from moemodel.model.search.document import Search
from moemodel.model.search.problem import problem_of
from moemodel.model.search.result import SearchResult
from moemodel.model.search.search import search
from moemodel.model.search.stage_clocks import clocks_spec, exchange, gpu_clocks_MHz

CLOCKS_MHz = np.array([1200.0, 1320.0, 1440.0, 1560.0, 1680.0, 1800.0])


def document(clocks_MHz: Any, **changes: Any) -> Search:
    plain = {
        "architecture": "opt-350m",
        "sequence_length": 2048,
        "global_batch": 32,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 2},
        "search": {
            "pp": 2,
            "tp": 1,
            "cp": 1,
            "micro_batch": 4,
            "zero_stage": 0,
            "recompute": "none",
            "virtual_stages": 1,
        },
        "clocks_MHz": clocks_MHz,
    }
    return Search.model_validate(plain | changes)


def found(clocks_MHz: Any, **changes: Any) -> SearchResult:
    return search(document(clocks_MHz, **changes), shipped("h100-sxm-80gb"))


def costs(result: SearchResult) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([[entry.step_time_s.value, entry.it_energy_J.value] for entry in result.front])


@pytest.fixture(scope="module")
def one_clock() -> SearchResult:
    return found([1320, 1560, 1800], keep=1000)


@pytest.fixture(scope="module")
def by_stage() -> SearchResult:
    return found({"per": "stage", "clocks": [1320, 1560, 1800]}, keep=1000)


def test_nothing_that_was_enumerated_beats_a_plan_of_the_front(one_clock: SearchResult, by_stage: SearchResult) -> None:
    front, before = costs(by_stage), costs(one_clock)
    for time_s, energy_J in before:
        as_good = (front[:, 0] <= time_s * (1 + 1e-9)) & (front[:, 1] <= energy_J * (1 + 1e-9))
        assert as_good.any()  # itself, if no other
    for time_s, energy_J in front:
        beaten = (before[:, 0] <= time_s) & (before[:, 1] <= energy_J)
        strictly = beaten & ((before[:, 0] < time_s) | (before[:, 1] < energy_J))
        assert not strictly.any()
    assert (np.diff(front[:, 0]) > 0).all()
    assert (np.diff(front[:, 1]) < 0).all()


def test_slowing_the_stage_that_waits_extends_the_front(one_clock: SearchResult, by_stage: SearchResult) -> None:
    own = [entry for entry in by_stage.front if isinstance(entry.plan.clock, ByStage)]
    assert own
    fast = one_clock.front[0]
    saving = [e for e in own if e.step_time_s.value <= 1.02 * fast.step_time_s.value]
    assert min(e.it_energy_J.value for e in saving) < 0.95 * fast.it_energy_J.value
    first, last = own[0].plan.clock.limits_Hz  # type: ignore[union-attr]
    assert first[0] < last[0]  # the last stage holds the head


def test_a_plan_of_the_front_predicted_alone_gives_the_same_numbers(by_stage: SearchResult) -> None:
    calibration = shipped("h100-sxm-80gb")
    for entry in by_stage.front:
        alone = outcome(entry.plan, calibration)
        assert alone.step_time_s.value == pytest.approx(entry.step_time_s.value, rel=1e-9)
        assert alone.gpu_energy_J.value == pytest.approx(entry.gpu_energy_J.value, rel=1e-9)


def test_the_front_is_near_that_of_every_pair_of_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every pair of six clocks there is a plan on the front within a per cent in both time and energy."""
    monkeypatch.setattr(stage_clocks, "gpu_clocks_MHz", lambda _: CLOCKS_MHz)
    result = found({"per": "stage", "clocks": CLOCKS_MHz.tolist()}, keep=1000)
    plan = result.front[0].plan
    pairs = [plan.model_copy(update={"clock_MHz": {"stages": pair}}) for pair in product(CLOCKS_MHz.tolist(), repeat=2)]
    problem = problem_of(document(None), shipped("h100-sxm-80gb"))
    every = predict(problem.architecture, joined(pairs), problem.machine)
    front = costs(result)
    for time_s, energy_J in zip(every.step_time_s, every.energy_J, strict=True):
        assert ((front[:, 0] <= 1.01 * time_s) & (front[:, 1] <= 1.01 * energy_J)).any()


def test_limits_hold_for_clocks_by_stage(by_stage: SearchResult) -> None:
    limit_s = 1.03 * by_stage.front[0].step_time_s.value
    asked = {"per": "stage", "clocks": [1320, 1560, 1800]}
    limited = found(asked, keep=1000, limits={"step_time_s": limit_s})
    assert max(entry.step_time_s.value for entry in limited.front) <= limit_s
    assert any(isinstance(entry.plan.clock, ByStage) for entry in limited.front)


def test_one_objective_has_the_one_best_plan(by_stage: SearchResult) -> None:
    least = found({"per": "stage", "clocks": [1320, 1560, 1800]}, objectives="gpu_energy_J")
    assert len(least.front) == 1
    assert least.front[0].gpu_energy_J.value <= min(e.gpu_energy_J.value for e in by_stage.front) * (1 + 1e-3)


def test_phases_are_sought_behind_stages() -> None:
    by_phase = found({"per": "phase", "clocks": [1560]}, keep=1000)
    by_stage = found({"per": "stage", "clocks": [1560]}, keep=1000)
    assert min(e.it_energy_J.value for e in by_phase.front) <= min(e.it_energy_J.value for e in by_stage.front)
    assert any("predictions more" in note for note in by_phase.notes)


def test_what_has_one_stage_keeps_its_clock() -> None:
    plain = document(None).model_dump()["search"] | {"pp": (1,)}
    result = found({"per": "stage", "clocks": [1560]}, search=plain)
    assert [entry.plan.clock_MHz for entry in result.front] == [1560.0]
    assert any("has several stages" in note for note in result.notes)


@pytest.mark.parametrize(
    ("clocks", "words"),
    [
        ({"per": "layer"}, "clocks_MHz.per: found 'layer'; input should be 'stage' or 'phase'"),
        ({"per": "stage", "clocks": {"from": 1500, "to": 1200, "step": 15}}, "allowed: `to` no lower than `from`"),
        ({"per": "stage", "clock": 1200}, "unknown key 'clocks_MHz.clock'"),
    ],
)
def test_what_cannot_be_asked_is_refused(clocks: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        document(clocks)
    assert words in str(error.value)


def test_clocks_are_those_that_the_gpu_has() -> None:
    clocks = gpu_clocks_MHz(problem_of(document(None), shipped("h100-sxm-80gb")))
    assert clocks[-1] == 1980
    assert set(np.diff(clocks)) == {15.0}
    assert ((clocks - 345) % 15 == 0).all()


def test_a_spec_is_as_short_as_it_can_be() -> None:
    spec = clocks_spec(((1200.0, 1200.0, 1200.0), (np.inf, 1500.0, 900.0), (np.inf,) * 3))
    assert isinstance(spec, ClocksSpec)
    assert (clocks_spec(((1200.0,) * 3,) * 2), clocks_spec(((np.inf,) * 3,) * 2)) == (1200.0, None)
    assert spec.model_dump(exclude_none=True)["stages"] == (1200.0, {"backward": 1500.0, "optimizer": 900.0}, None)
    plan = Plan.model_validate(
        {
            "architecture": "opt-350m",
            "sequence_length": 2048,
            "global_batch": 32,
            "cluster": {"gpu": "h100-sxm-80gb", "gpus": 3},
            "parallel": {"pp": 3},
            "clock_MHz": spec.model_dump(),
        }
    )
    assert batch_of(plan).clock_limits_Hz[0, 1].tolist() == [np.inf, 1.5e9, 0.9e9]


def test_the_exchange_of_a_front_is_its_slope() -> None:
    """E = 100 / T^2 along a front: two per cent for one, everywhere."""
    time = np.array([1.0, 1.1, 1.3, 2.0])
    assert exchange(np.stack([time, 100 / time**2], axis=1)) == pytest.approx(2.0)
    assert exchange(time[:1, None]).tolist() == [0.0]
