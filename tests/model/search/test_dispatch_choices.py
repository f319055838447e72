"""How experts are cut and reached, as choices of a search: it predicts what single plans predict."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from moemodel.model.core.errors import InfeasiblePlanError, InputError
from moemodel.model.plan.batch import joined
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.outcome import outcome
from moemodel.model.search.document import Search
from moemodel.model.search.explain import explain
from moemodel.model.search.result import SearchResult
from moemodel.model.search.search import search as find
from moemodel.model.step.system import system_of

LISTED: dict[str, list[Any]] = {
    "etp": [None, 1, 2],
    "dispatch": ["alltoall", "deepep", "allgather"],
    "node_limit": [None, 1],
    "dispatch_overlap": [None, True],
}
JOB = {
    "architecture": "olmoe-1b-7b",
    "layers": 4,
    "sequence_length": 2048,
    "global_batch": 64,
    "backend": "megatron-core",
}
CLUSTER = {"gpu": "h100-sxm-80gb", "gpus_per_node": 4}
FIXED = {"tp": 1, "pp": 1, "cp": 1, "ep": 8, "dp": 16, "zero_stage": 1, "micro_batch": 1, "recompute": "none"}


def asked(**changes: Any) -> Search:
    ranges = FIXED | {"sequence_parallel": False, "virtual_stages": 1} | LISTED | changes
    cluster = CLUSTER | {"gpus": [16]}
    return Search.model_validate(
        JOB | {"cluster": cluster, "search": ranges, "clocks_MHz": None, "objectives": ["step_time_s"]}
    )


def plan(etp: int | None, **routing: Any) -> Plan:
    parallel = {name: FIXED[name] for name in ("dp", "ep", "zero_stage")} | {"etp": etp}
    return Plan.model_validate(JOB | {"cluster": CLUSTER | {"gpus": 16}, "parallel": parallel, "routing": routing})


def test_the_best_is_that_of_single_plans(calibration: Calibration) -> None:
    found = find(asked(), calibration)
    plans = [
        plan(etp, dispatch=dispatch, node_limit=limit, dispatch_overlap=overlap)
        for etp, dispatch, limit, overlap in product(*LISTED.values())
    ]
    machine = system_of(plans[0], calibration)
    times = predict(architecture_of(plans[0]), joined(plans), machine).step_time_s.tolist()
    assert found.front[0].step_time_s.value == pytest.approx(min(times), rel=1e-9)
    assert len({round(time, 9) for time in times}) > 12  # the choices matter
    assert found.counts.combinations == len(times)


def test_a_plan_outside_of_the_choices_is_explained(calibration: Calibration) -> None:

    def finds(document: Search) -> SearchResult:
        return find(document, calibration)

    document = asked(dispatch=["alltoall", "deepep"], etp=None)
    found = explain(document, plan(None, dispatch="allgather"), calibration, finds)
    assert "dispatch allgather: the search has alltoall, deepep" in [reason.says for reason in found.reasons]
    inside = explain(document, plan(None, dispatch="alltoall", dispatch_overlap=True), calibration, finds)
    assert not [reason for reason in inside.reasons if reason.kind in ("job", "choice")]


def test_a_choice_stands_once() -> None:
    with pytest.raises(InputError, match=r"search.dispatch: stands beside routing.dispatch; keep one of them"):
        Search.model_validate(
            JOB
            | {"cluster": CLUSTER | {"gpus": [16]}, "search": {"dispatch": "deepep"}, "routing": {"dispatch": "deepep"}}
        )


@pytest.mark.parametrize(
    ("parallel", "routing", "message"),
    [
        ({"etp": 3}, {}, r"parallel.etp 3 x ep 8 must divide dp x cp x tp = 16"),
        ({"etp": 0}, {}, r"parallel.etp"),
        ({}, {"node_limit": 0}, r"routing.node_limit"),
        ({}, {"dispatch": "smoke"}, r"routing.dispatch"),
        ({}, {"dispatch_dtype": "fp8"}, r"dispatch_dtype: found fp8 with precision bf16-mixed; allowed: null, or prec"),
    ],
)
def test_what_is_no_plan(parallel: dict[str, Any], routing: dict[str, Any], message: str) -> None:
    degrees = {"dp": 16, "ep": 8} | parallel
    with pytest.raises(InputError, match=message):
        Plan.model_validate(JOB | {"cluster": CLUSTER | {"gpus": 16}, "parallel": degrees, "routing": routing})


def test_a_dense_model_has_nothing_to_dispatch(calibration: Calibration) -> None:
    dense = JOB | {"architecture": "llama-3-8b", "cluster": CLUSTER | {"gpus": 16}, "parallel": {"dp": 16, "etp": 2}}
    found = Plan.model_validate(dense | {"routing": {"dispatch": "deepep"}})
    with pytest.raises(InfeasiblePlanError, match=r"parallel.etp, routing.dispatch: llama-3-8b has no experts"):
        outcome(found, calibration)


def test_notes_say_what_rests_on_published_figures(calibration: Calibration) -> None:
    notes = " ".join(outcome(plan(None, dispatch="deepep", node_limit=1), calibration).notes)
    assert "by DeepEP at 0.9 of the NICs'" in notes
    assert "no router can keep to it" not in notes
    notes = " ".join(outcome(plan(None, node_limit=1), calibration).notes)
    assert "routing.node_limit 1 saves nothing with dispatch alltoall" in notes


def test_intervals_hold_what_nobody_measured_of_a_dispatch(
    calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative error of 0.15 of what is exposed, beside all others."""
    one = plan(None, dispatch="deepep")
    architecture, machine = architecture_of(one), system_of(one, calibration)
    found = predict(architecture, joined([one]), machine)
    monkeypatch.setattr("moemodel.model.predict.predict._DISPATCH_ERROR", 0.0)
    without = float(predict(architecture, joined([one]), machine).step_time_error[0])
    share = float(found.exposed_communication_s[0] / found.step_time_s[0])
    assert float(found.step_time_error[0]) ** 2 - without**2 == pytest.approx((0.15 * share) ** 2)
