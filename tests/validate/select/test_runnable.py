"""Which plans are alternatives to one another."""

from __future__ import annotations

from collections.abc import Callable

from moemodel.model.plan.spec import Plan
from moemodel.model.results.validation import SkippedPlan
from moemodel.validation.select.runnable import Choice, Hardware, PlanRequest, choice_of, comparison_group


def test_plans_of_one_model_and_batch_are_alternatives(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of()
    same = plan_of(micro_batch=4, recompute="full", clock_MHz=1200.0, cluster={"gpus": 2}, parallel={"tp": 2})
    assert comparison_group(plan) == comparison_group(same)
    for other in (plan_of(global_batch=32), plan_of(layers=12), plan_of(sequence_length=1024)):
        assert comparison_group(plan) != comparison_group(other)


def test_clocks_by_stage_are_held_and_those_that_cannot_be_told_apart_are_not(
    hardware: Callable[..., Hardware], plan_of: Callable[..., Plan]
) -> None:
    two = {"cluster": {"gpus": 2}, "parallel": {"pp": 2}}
    by_stage = PlanRequest(plan=plan_of(clock_MHz={"stages": [1200, 1500]}, **two), role="asked")
    chosen = choice_of(by_stage, hardware())
    assert isinstance(chosen, Choice)
    assert chosen.plan == by_stage.plan
    by_phase = PlanRequest(plan=plan_of(clock_MHz={"forward": 1200}, **two), role="asked")
    skipped = choice_of(by_phase, hardware())
    assert isinstance(skipped, SkippedPlan)
    assert "forward and backward passes of a pipeline are not told apart" in skipped.reason
    free = choice_of(by_phase, hardware(no_locks="no permission"))
    assert isinstance(free, Choice)
    assert free.plan.clock_MHz is None
    assert "It asks for 1200/auto/auto MHz, which was not held (no permission)" in free.notes[0]
