"""Which passes hide what data-parallel ranks exchange once, where chunks of a stage take turns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.predict.timeline import PipelineStep
from moemodel.model.records.calibration import Calibration
from moemodel.model.schedule.base import Sizes, Work
from moemodel.model.schedule.interleaved import Interleaved
from moemodel.model.step.system import system_of

DP, PP, MICRO_BATCHES = 8, 4, 8


def document(virtual: int, **parallel: Any) -> dict[str, Any]:
    """Of a network so slow that passes hide a part of the exchange alone."""
    return {
        "architecture": "llama-3-8b",
        "sequence_length": 2048,
        "global_batch": DP * MICRO_BATCHES,
        "backend": "megatron-core",
        "cluster": {
            "gpu": "h100-sxm-80gb",
            "gpus": DP * PP,
            "internode": {"bandwidth_GBps": 10.0, "latency_us": 5.0},
            "gpus_per_node": 1,
        },
        "parallel": {"dp": DP, "pp": PP, "virtual_stages": virtual, "zero_stage": 1} | parallel,
    }


def exposed_s(virtual: int, calibration: Calibration, **parallel: Any) -> float:
    plan = Plan.model_validate(document(virtual, **parallel))
    found = predict(architecture_of(plan), batch_of(plan), system_of(plan, calibration))
    return float(found.exposed_communication_s[0])


def asked(monkeypatch: pytest.MonkeyPatch, passes: float) -> None:
    monkeypatch.setattr(PipelineStep, "hiding_passes", np.array([[passes]]))


@pytest.mark.parametrize(("stages", "virtual", "micro_batches"), [(4, 2, 8), (2, 4, 2), (8, 3, 16)])
def test_they_are_those_before_the_last_chunk_begins_and_behind_the_first_that_ends(
    stages: int, virtual: int, micro_batches: int
) -> None:
    """Counted in the order of the schedule."""
    order = Interleaved().order(0, Sizes(stages=stages, virtual=virtual, micro_batches=micro_batches))
    last = (virtual - 1) * stages  # chunk of stage 0: whose parameters are needed last, and gradients ready first
    forward = [work for work in order if work.kind == "F"]
    backward = [work for work in order if work.kind == "B"]
    before = _places(forward, last)[0]
    after = len(backward) - 1 - _places(backward, last)[-1]
    step = object.__new__(PipelineStep)
    plan = Plan.model_validate(
        document(virtual, pp=stages, dp=1)
        | {"global_batch": micro_batches, "layers": stages * virtual}
        | {"cluster": {"gpu": "h100-sxm-80gb", "gpus": stages}}
    )
    step.plans = batch_of(plan)
    assert before == after
    assert step.hiding_passes[0, 0] == pytest.approx(before / virtual)


def _places(passes: list[Work], chunk: int) -> list[int]:
    return [place for place, work in enumerate(passes) if work.chunk == chunk]


def test_every_one_hides_as_much(calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    shown_s = []
    for passes in (1.0, 2.0, 3.0):
        asked(monkeypatch, passes)
        shown_s.append(exposed_s(4, calibration))
    # but for clocks, which fall where GPUs wait less
    assert shown_s[0] - shown_s[1] == pytest.approx(shown_s[1] - shown_s[2], rel=0.05)
    assert shown_s[0] > shown_s[1]
    monkeypatch.undo()
    assert exposed_s(4, calibration) == pytest.approx(shown_s[2])  # three of four chunks, by four micro-batches each


@pytest.mark.parametrize(("virtual", "zero"), [(1, 1), (4, 2)])
def test_one_pass_hides_what_is_exchanged_around_it(
    virtual: int, zero: int, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages of one chunk; and gradients that are scattered in every pass."""
    usual = exposed_s(virtual, calibration, zero_stage=zero)
    asked(monkeypatch, 1.0)
    assert exposed_s(virtual, calibration, zero_stage=zero) == usual
