"""What plans are called in a figure."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from moemodel.model.core.errors import InputError
from moemodel.model.plan.spec import Plan
from moemodel.validation.report.names import alike, labels, shortened


def test_both_ends_of_a_name_stay() -> None:
    assert shortened("short", 5) == "short"
    assert shortened("olmoe-1b-7b-dp4-tp2-mb8", 11) == "olmoe…2-mb8"
    assert [len(shortened("x" * 50, most)) for most in (10, 11)] == [10, 11]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["olmoe-4l-2xh100-01", "olmoe-4l-2xh100-02", "olmoe-4l-2xh100-random"], True),
        (["opt-350m-dp2-mb8", "olmoe-1b-dp2"], False),
        (["plan", "plan"], False),  # nothing of them may be cut
        (["one"], False),
        (["a-1", "b-1"], False),
    ],
)
def test_names_that_share_the_better_part_are_alike(names: list[str], expected: bool) -> None:
    assert alike(names) is expected


def _reported(plan: Plan) -> Any:
    return SimpleNamespace(name=plan.name, plan=plan)


def test_plans_of_like_names_are_called_by_their_degrees(plan_of: Callable[..., Plan]) -> None:
    plans = [
        plan_of(name="search-of-today-01", micro_batch=4, cluster={"gpus": 2}, parallel={"dp": 2}),
        plan_of(name="search-of-today-02", micro_batch=2, cluster={"gpus": 2}, parallel={"dp": 2, "zero_stage": 1}),
        plan_of(name="search-of-today-random", micro_batch=2, cluster={"gpus": 2}, parallel={"tp": 2}),
    ]
    found = labels([_reported(plan) for plan in plans], 30)
    assert list(found.values()) == ["01: dp2 mb4", "02: dp2 zero1 mb2", "random: tp2 mb2"]
    assert list(labels([_reported(plan) for plan in plans], 12).values()) == ["01: dp2 mb4", "02: dp2 …", "random"]
    assert labels([_reported(plans[0])], 30) == {"search-of-today-01": "search-of-today-01"}


def test_a_plan_that_cannot_be_read_any_more_keeps_its_name(plan_of: Callable[..., Plan]) -> None:
    class Lost:
        name = "search-of-today-02"

        @property
        def plan(self) -> Plan:
            raise InputError("no such architecture")

    found = labels([_reported(plan_of(name="search-of-today-01")), Lost()], 30)  # type: ignore[list-item]
    assert found["search-of-today-02"] == "02"
