"""Which plans are alternatives to one another."""

from __future__ import annotations

from collections.abc import Callable

from moemodel.model.plan.spec import Plan
from moemodel.validation.select.runnable import comparison_group


def test_plans_of_one_model_and_batch_are_alternatives(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of()
    same = plan_of(micro_batch=4, recompute="full", clock_MHz=1200.0, cluster={"gpus": 2}, parallel={"tp": 2})
    assert comparison_group(plan) == comparison_group(same)
    for other in (plan_of(global_batch=32), plan_of(layers=12), plan_of(sequence_length=1024)):
        assert comparison_group(plan) != comparison_group(other)
