"""Layers of stages as a plan says them, against Megatron's own cuts, published memory, and time's closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.errors import InputError
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.schedule.pipeline_layout import layer_bounds
from moemodel.model.search.document import Search
from moemodel.model.step.system import system_of

MakePlan = Callable[..., Plan]


def counts(plan: Plan) -> list[int]:
    """Layers of each chunk, in the order of the model."""
    p = plan.parallel
    return np.diff(layer_bounds(architecture_of(plan), p.pp * p.virtual_stages)).tolist()


@pytest.fixture
def llama_plan(plan_of: MakePlan) -> Callable[..., Plan]:
    """Of Llama 3 8B, 32 layers."""

    def make(stage_layers: Any, *, pp: int = 4, virtual: int = 1) -> Plan:
        return plan_of(
            architecture="llama-3-8b",
            backend="megatron",
            global_batch=8,
            stage_layers=stage_layers,
            parallel={"pp": pp, "virtual_stages": virtual},
            cluster={"gpus": pp},
        )

    return make


@pytest.mark.parametrize(
    ("said", "pp", "virtual", "expected"),
    [
        (None, 4, 1, [8, 8, 8, 8]),
        ({"embedding": 1, "head": 1}, 17, 2, [0, *[1] * 32, 0]),
        ({"first": 7, "last": 7}, 4, 1, [7, 9, 9, 7]),
        ({"last": 5}, 4, 1, [9, 9, 9, 5]),
        ({"first": 6, "last": 6}, 4, 2, [3, 5, 5, 3] * 2),
        ([6, 9, 9, 8], 4, 1, [6, 9, 9, 8]),
        ([3, 5, 4, 4, 4, 4, 5, 3], 4, 2, [3, 5, 4, 4, 4, 4, 5, 3]),
        ([0, 16, 16, 0], 4, 1, [0, 16, 16, 0]),
    ],
)
def test_layers_lie_where_the_plan_says(
    said: Any, pp: int, virtual: int, expected: list[int], plan_of: MakePlan
) -> None:
    plan = plan_of(
        architecture="llama-3-8b",
        backend="megatron",
        global_batch=pp,
        stage_layers=said,
        parallel={"pp": pp, "virtual_stages": virtual},
        cluster={"gpus": pp},
    )
    assert counts(plan) == expected


@pytest.mark.parametrize(
    ("said", "pp", "virtual", "message"),
    [
        ([8, 8, 8], 4, 1, "found 3 values; allowed: 4, one a stage"),
        ([8, 8, 8, 9], 4, 1, "found 33 layers in all; llama-3-8b has 32"),
        ([7, 9, 9, 7], 4, 2, "found 7 layers in a stage of 2 chunks; allowed: multiples of virtual_stages 2, or 8"),
        ([16, 0, 8, 8], 4, 1, "found no layer in chunk 1"),
        ({"first": 7}, 4, 1, "leaves 25 to 3 stages; allowed: what they can share evenly"),
        ({"first": 16, "last": 15}, 2, 1, "leaves 1 to 0 stages"),
        ([32], 1, 1, "layers of stages with pp 1"),
    ],
)
def test_what_does_not_add_up_is_refused(
    said: Any, pp: int, virtual: int, message: str, llama_plan: Callable[..., Plan]
) -> None:
    with pytest.raises(InputError, match="stage_layers: .*" + message):
        architecture_of(llama_plan(said, pp=pp, virtual=virtual))


@pytest.mark.parametrize("said", [{"first": -1}, {"first": 7, "head": 1}, {}, [], "even", [1.5], {"middle": 3}])
def test_other_forms_are_refused(said: Any, llama_plan: Callable[..., Plan]) -> None:
    if said == {}:
        assert counts(llama_plan(said)) == [8] * 4  # no slots
        return
    with pytest.raises(InputError, match="stage_layers"):
        llama_plan(said)


def test_the_slowest_stage_sets_the_pace(plan_of: MakePlan, calibration: Calibration) -> None:
    """Of m micro-batches through stages of t_s each, 1F1B takes the sum of all t_s and m - 1 times the slowest."""

    def plan(m: int, layers: list[int]) -> Plan:
        return plan_of(
            architecture="llama-3-8b",
            backend="megatron",
            global_batch=m,
            stage_layers=layers,
            parallel={"pp": 4},
            cluster={"gpus": 4},
        )

    def times_s(layers: list[int]) -> list[float]:
        found = []
        for m in (16, 32):
            one = plan(m, layers)
            found += predict(architecture_of(one), batch_of(one), system_of(one, calibration)).step_time_s.tolist()
        return found

    one, other = times_s([12, 12, 4, 4]), times_s([8, 16, 4, 4])
    assert (other[1] - other[0]) / (one[1] - one[0]) == pytest.approx(16 / 12, rel=0.03)


def test_a_search_counts_ends() -> None:
    document = {
        "architecture": "llama-3-8b",
        "sequence_length": 2048,
        "global_batch": 64,
        "backend": "megatron",
        "stage_layers": {"embedding": 1, "head": 1},
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 2},
    }
    plan = Search.model_validate(document).plan(gpus=2, pp=2)
    assert counts(plan) == [16, 16]
    with pytest.raises(InputError, match="stage_layers"):
        Search.model_validate(document | {"stage_layers": [16, 16]})


def test_a_model_cut_evenly_by_hand_costs_the_same(plan_of: MakePlan, calibration: Calibration) -> None:
    even = plan_of(
        architecture="llama-3-8b", backend="megatron", global_batch=8, parallel={"pp": 4}, cluster={"gpus": 4}
    )
    by_hand = even.model_copy(update={"stage_layers": (8, 8, 8, 8)})
    machine = system_of(even, calibration)
    found = [predict(architecture_of(one), batch_of(one), machine) for one in (even, by_hand)]
    assert found[0].step_time_s[0] == found[1].step_time_s[0]
    assert found[0].energy_J[0] == found[1].energy_J[0]
    assert found[0].memory_B[0] == found[1].memory_B[0]


@pytest.mark.parametrize(
    ("pp", "expected"),
    [(2, [18, 14]), (4, [9, 9, 8, 6]), (8, [5, 4, 4, 5, 4, 4, 4, 2]), (32, [2, *[1] * 30, 0])],
)
def test_nanotron_fills_stages_beyond_their_share(pp: int, expected: list[int], plan_of: MakePlan) -> None:
    """Of 32 layers and a head of 2.16 of them, each stage takes layers until it has more than its share: with four
    stages of 8.54, 9, then 18 of 17.08, then 26 of 25.62; worked out by hand."""
    plan = plan_of(
        architecture="llama-3-8b", backend="nanotron", global_batch=pp, parallel={"pp": pp}, cluster={"gpus": pp}
    )
    assert counts(plan) == expected


def test_nanotrons_first_stage_holds_most(plan_of: MakePlan) -> None:
    """Nine layers and four micro-batches in flight, where an even cut has eight: an eighth more of activations."""
    calibration = shipped("h100-sxm-80gb")

    def activations_B(**others: Any) -> float:
        plan = plan_of(
            architecture="llama-3-8b",
            backend="nanotron",
            global_batch=8,
            parallel={"pp": 4},
            cluster={"gpus": 4},
            **others,
        )
        found = predict(architecture_of(plan), batch_of(plan), system_of(plan, calibration))
        return float(found.memory_terms_B["activations"][0])

    assert activations_B() / activations_B(stage_layers=[8, 8, 8, 8]) == pytest.approx(9 / 8, rel=0.01)
