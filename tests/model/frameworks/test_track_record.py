"""Intervals of a framework are as wide as its predictions have been off; of one without a record, as the worst."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.frameworks.registry import FRAMEWORKS
from moemodel.model.frameworks.track_record import FrameworkRecord, TrackRecord, track_records, widest
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import HostLane
from moemodel.model.results.outcome import Outcome, outcome

MakePlan = Callable[..., Plan]


def _answer(plan_of: MakePlan, backend: str, calibration: str = "h100-sxm-80gb", **changes: str) -> Outcome:
    precision = "fp32" if backend == "megatron-deepspeed" else "bf16-mixed"
    gpu = {"gpu": calibration}
    plan = plan_of(backend=backend, precision=precision, cluster=gpu, micro_batch=4, **changes)
    return outcome(plan, shipped(calibration), even_if_it_does_not_fit=True)


def _factor(answer: Outcome) -> float:
    """Upper end of the interval of step time over the step time."""
    assert answer.step_time_s.high is not None
    return answer.step_time_s.high / answer.step_time_s.value


@pytest.mark.parametrize("backend", sorted(track_records().keys() & FRAMEWORKS.keys() - {"torch"}))
def test_an_interval_holds_what_was_missed(backend: str, plan_of: MakePlan) -> None:
    """Central nine tenths of a normal error reach 1.645 of it to either side."""
    record = track_records()[backend].of(experts=False)
    answer = _answer(plan_of, backend)
    assert _factor(answer) >= math.exp(1.6448 * record.log_error)
    assert answer.gpu_energy_J.low is not None
    assert answer.gpu_energy_J.value / answer.gpu_energy_J.low >= math.exp(1.6448 * record.log_error)
    assert f"Of {record.runs} runs ({', '.join(record.sources)}) nine in ten" in " ".join(answer.notes)


def test_models_with_experts_have_a_record_of_their_own(plan_of: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a record whose kinds differ: those that ship may not."""
    dense, experts = (
        TrackRecord(runs=10, mean_log=0.0, within_log=0.5, log_error=error, sources=("test",)) for error in (0.0, 0.5)
    )
    known = {**track_records(), "megatron-core": FrameworkRecord(dense=dense, experts=experts)}
    monkeypatch.setattr("moemodel.model.step.system.track_records", lambda: known)
    names = ("llama-3-8b", "qwen3-30b-a3b")
    factors = [_factor(_answer(plan_of, "megatron-core", architecture=name)) for name in names]
    assert factors[0] < math.exp(1.6448 * 0.5) <= factors[1]


def test_one_kind_stands_in_for_the_other() -> None:
    record = TrackRecord(runs=10, mean_log=0.0, within_log=0.5, log_error=0.3, sources=("test",))
    assert FrameworkRecord(dense=record).of(experts=True) is FrameworkRecord(experts=record).of(experts=False) is record


@pytest.mark.parametrize("backend", sorted(FRAMEWORKS.keys() - track_records().keys() - {"torch"}))
def test_one_that_nobody_measured_has_the_widest(backend: str, plan_of: MakePlan) -> None:
    answer, worst = _answer(plan_of, backend), widest()[1].log_error
    assert _factor(answer) >= math.exp(1.6448 * worst)
    assert worst == max(record.log_error for one in track_records().values() for record in one.known)
    assert f"No run of backend {backend} was ever held against a prediction" in " ".join(answer.notes)


def test_what_a_profile_measured_is_as_narrow_as_it_was_right(plan_of: MakePlan) -> None:
    answer = _answer(plan_of, "torch")
    assert _factor(answer) < 1.1
    assert "Intervals are of this project's own code on torch." in " ".join(answer.notes)


def test_a_calibration_of_a_framework_speaks_for_it(plan_of: MakePlan) -> None:
    """That of the A100 is fitted to runs of megatron-v2; one of another framework's host times would be to its own."""
    assert _factor(_answer(plan_of, "megatron-v2", "a100-sxm-80gb")) < 1.5
    h100 = shipped("h100-sxm-80gb")
    lane = h100.host[0].model_dump() | {"backend": "megatron-core"}
    own = h100.model_copy(update={"host": [*h100.host, HostLane.model_validate(lane)]})
    assert _factor(outcome(plan_of(backend="megatron-core", micro_batch=4), own)) < 1.1
