"""What routing costs beside even loads, and how far intervals of a forecast reach that knows nothing of its routers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.plan.spec import Plan
from moemodel.model.results.estimate import Estimate
from moemodel.model.results.outcome import Outcome, outcome

MakePlan = Callable[..., Plan]

# Three layers of Mixtral over four GPUs took 1.83 times the time of the balanced forecast, from random weights
SEEN = 525 / 287


def mixtral(skew: object = ..., **changes: object) -> Outcome:
    document = {
        "architecture": "mixtral-8x7b",
        "layers": 3,
        "sequence_length": 4096,
        "global_batch": 8,
        "micro_batch": 2,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 4},
        "parallel": {"dp": 4, "ep": 4, "zero_stage": 1},
        "routing": {} if skew is ... else {"skew": skew},
    }
    return outcome(Plan.model_validate(document | changes), shipped("h100-sxm-80gb"))


def test_the_interval_of_a_forecast_holds_what_was_seen() -> None:
    unknown, stated = mixtral(), mixtral("balanced")
    assert unknown.step_time_s.value == stated.step_time_s.value
    assert unknown.step_time_s.low == stated.step_time_s.low
    assert unknown.step_time_s.high is not None
    assert stated.step_time_s.high is not None
    assert stated.step_time_s.high < SEEN * stated.step_time_s.value < unknown.step_time_s.high
    assert unknown.tokens_per_s.low is not None
    assert unknown.tokens_per_s.low == pytest.approx(unknown.tokens / unknown.step_time_s.high)
    assert "Intervals reach, to the slower side" in "\n".join(unknown.notes)
    assert "Intervals reach" not in "\n".join(stated.notes)


def test_the_other_prediction_is_that_of_a_plan_that_says_so() -> None:
    unknown = mixtral()
    assert unknown.routing is not None
    uneven = mixtral(unknown.routing.uneven.skew)
    assert uneven.routing is not None
    assert unknown.routing.uneven == uneven.routing.uneven
    assert unknown.routing.balanced == uneven.routing.balanced
    assert uneven.step_time_s.value == uneven.routing.uneven.step_time_s
    assert uneven.step_time_s.value / unknown.step_time_s.value == pytest.approx(unknown.routing.time_reach)
    assert uneven.routing.time_reach == 1


def test_uneven_loads_take_more_of_all_three() -> None:
    found = mixtral().routing
    assert found is not None
    for name in ("step_time_s", "all_to_all_s", "gpu_energy_J"):
        assert getattr(found.uneven, name) > getattr(found.balanced, name) > 0


def test_the_gating_is_a_part_of_the_passes() -> None:
    answer = mixtral("balanced")
    assert answer.routing is not None
    passes_s = answer.phases["forward"].time_s + answer.phases["backward"].time_s
    assert 0 < answer.routing.gating_s < 0.5 * passes_s
    assert answer.routing.gating_share == pytest.approx(answer.routing.gating_s / answer.step_time_s.value)
    json = answer.to_json()["routing"]
    assert json["gating_share"] == answer.routing.gating_share
    assert json["balanced"]["skew"] == 1


def test_masks_make_the_gating_larger() -> None:
    shares = {}
    for backend in ("deepspeed", "deepspeed-einsum"):
        routing = mixtral("balanced", backend=backend).routing
        assert routing is not None
        shares[backend] = routing.gating_s
    assert shares["deepspeed-einsum"] > 1.2 * shares["deepspeed"]


def test_padding_to_the_busiest_makes_skew_dearer() -> None:
    """On one GPU, where every rank's rows are all rows."""
    alone = {"cluster": {"gpu": "h100-sxm-80gb", "gpus": 1}, "parallel": {}, "layers": 1}
    costs = {}
    for backend in ("torch", "deepspeed"):
        routing = mixtral(2.0, backend=backend, **alone).routing
        assert routing is not None
        costs[backend] = routing.uneven.step_time_s - routing.balanced.step_time_s
    assert costs["deepspeed"] > 3 * costs["torch"]


def test_a_model_without_experts_has_no_routing() -> None:
    answer = mixtral(architecture="opt-350m", layers=2, sequence_length=2048, parallel={"dp": 4})
    assert answer.routing is None
    assert answer.to_json()["routing"] is None


def test_an_interval_reaches_to_one_side() -> None:
    one = Estimate(value=10.0, low=9.0, high=12.0)
    assert one.reaching(1.5) == Estimate(value=10.0, low=9.0, high=18.0)
    assert one.reaching(0.5) == Estimate(value=10.0, low=4.5, high=12.0)
    assert one.reaching(1.0) == one
    unknown = Estimate.of(math.nan, None)
    assert unknown.reaching(2.0) is unknown
