"""How likely plans fit: where the interval holds what there is, a verdict says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moemodel.model.core.errors import InfeasiblePlanError
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.feasibility import verdict_of
from moemodel.model.results.outcome import Outcome, outcome
from moemodel.model.step.memory_fit import likely_below
from moemodel.model.step.system import System, system_of

MakePlan = Callable[..., Plan]
DENSE: dict[str, Any] = {
    "architecture": "llama-3-8b",
    "sequence_length": 8192,
    "global_batch": 32,
    "cluster": {"gpus": 8},
    "parallel": {"dp": 2, "tp": 4, "zero_stage": 1, "sequence_parallel": True},
    "backend": "megatron",
}


def test_a_peak_on_the_edge_is_even_odds() -> None:
    peaks = np.array([80e9, 80e9 * math.exp(-0.1645), 80e9 * math.exp(0.1645)])
    assert likely_below(peaks, 80e9, 0.1) == pytest.approx([0.5, 0.95, 0.05], abs=1e-3)
    assert likely_below(peaks, 80e9, 0.0).tolist() == [1, 1, 0]
    assert likely_below(peaks, math.inf, 0.1).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("probability", "verdict"),
    [(1.0, "fits"), (0.951, "fits"), (0.94, "may not fit"), (0.06, "may not fit"), (0.04, "does not fit")],
)
def test_a_verdict_is_sure_where_the_interval_is(probability: float, verdict: str) -> None:
    assert verdict_of(probability) == verdict


def on(plan: Plan, memory_B: float, calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """The answer on a GPU with so much memory."""

    def smaller(plan: Plan, calibration: Calibration) -> System:
        return replace(system_of(plan, calibration), memory_B=memory_B)

    monkeypatch.setattr("moemodel.model.results.outcome.system_of", smaller)
    return outcome(plan, calibration)


def test_verdict_and_interval_say_the_same(
    plan_of: MakePlan, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(**DENSE)
    memory = outcome(plan, calibration).memory_B
    assert memory.low is not None
    assert memory.high is not None
    for there_B, verdict in (
        (memory.high * 1.001, "fits"),
        (memory.high * 0.999, "may not fit"),
        (memory.value, "may not fit"),
        (memory.low * 1.001, "may not fit"),
    ):
        answer = on(plan, there_B, calibration, monkeypatch)
        assert answer.verdict == verdict
        assert answer.to_json()["memory"]["verdict"] == verdict
        assert any("may not fit" in note for note in answer.notes) is (verdict != "fits")
    assert on(plan, memory.value, calibration, monkeypatch).fit_probability == pytest.approx(0.5)
    with pytest.raises(InfeasiblePlanError, match="does not fit in memory"):
        on(plan, memory.low * 0.999, calibration, monkeypatch)


def test_a_loss_that_may_be_fused_leaves_it_open(
    plan_of: MakePlan, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain it does not fit, fused it does; what the plan says decides."""
    document = {**DENSE, "backend": "torch", "parallel": {"dp": 8, "zero_stage": 3}, "micro_batch": 2}
    document["recompute"] = "full"
    plain, fused = (outcome(plan_of(**document, cross_entropy=how), calibration) for how in ("plain", "fused"))
    open_ = outcome(plan_of(**document), calibration)
    assert open_.memory_B == plain.memory_B
    logits = 2 * 8192 * 128256
    assert plain.memory_terms_B["loss"] - fused.memory_terms_B["loss"] == pytest.approx(8 * logits)
    between_B = math.sqrt(plain.memory_B.value * fused.memory_B.value)
    assert on(plan_of(**document), between_B, calibration, monkeypatch).verdict == "may not fit"
    assert on(plan_of(**document, cross_entropy="fused"), between_B, calibration, monkeypatch).verdict == "fits"
    with pytest.raises(InfeasiblePlanError, match="cross_entropy fused"):
        on(plan_of(**document, cross_entropy="plain"), between_B, calibration, monkeypatch)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "With cross_entropy: fused, where your program does so, it may need less."),
        ({"cross_entropy": "plain"}, None),
        (
            {"parallel": {"dp": 4, "pp": 2, "zero_stage": 1}},
            "With cross_entropy: fused or micro_batches_per_schedule: 2, where your program does so, it may need less.",
        ),
        (
            {"parallel": {"dp": 4, "pp": 2, "zero_stage": 1}, "cross_entropy": "fused"},
            "With micro_batches_per_schedule: 2, where your program does so, it may need less.",
        ),
        ({"parallel": {"dp": 4, "pp": 2}, "cross_entropy": "plain", "micro_batches_per_schedule": 2}, None),
        ({"backend": "megatron"}, None),
    ],
)
def test_what_the_plan_leaves_to_the_program_is_named(
    changes: dict[str, Any], words: str | None, plan_of: MakePlan, calibration: Calibration, monkeypatch: Any
) -> None:
    """As keys that this plan may take and does not state; no words where it states all, or the framework does."""
    plan = plan_of(**{**DENSE, "backend": "torch", "parallel": {"dp": 8, "zero_stage": 3}} | changes)
    peak_B = outcome(plan, calibration, even_if_it_does_not_fit=True).memory_B.value
    answer = on(plan, peak_B / 1.02, calibration, monkeypatch)
    assert answer.verdict == "may not fit"
    (note,) = (note for note in answer.notes if "may not fit" in note)
    assert f"it fits with a probability of {answer.fit_probability:.0%}" in note
    assert words is None or note.endswith(words)
    assert ("where your program does so" in note) == (words is not None)


def test_gradients_are_summed_as_the_plan_says(plan_of: MakePlan, calibration: Calibration) -> None:
    found = {
        dtype: outcome(plan_of(**DENSE | {"backend": "megatron-core"}, gradient_dtype=dtype), calibration)
        for dtype in (None, "bf16", "fp32")
    }
    gradients = {dtype: answer.memory_terms_B["gradients"] for dtype, answer in found.items()}
    assert gradients[None] == gradients["bf16"]
    assert gradients["fp32"] == pytest.approx(2 * gradients["bf16"])
    assert found["fp32"].step_time_s.value >= found["bf16"].step_time_s.value


def test_an_unmeasured_framework_is_less_sure(plan_of: MakePlan, calibration: Calibration) -> None:
    measured, unmeasured = (
        outcome(plan_of(**DENSE | {"backend": backend, "sequence_length": 2048}), calibration).memory_B
        for backend in ("megatron", "megatron-v2")
    )
    assert measured.high is not None
    assert unmeasured.high is not None
    assert unmeasured.high / unmeasured.value > measured.high / measured.value
