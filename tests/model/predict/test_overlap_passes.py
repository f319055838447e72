"""Which passes hide what data-parallel ranks exchange once, where chunks of a stage take turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.records.calibration import Calibration
from moemodel.model.schedule.batch import PlanSchedules
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


def exposed_s(virtual: int, calibration: Calibration, more: Mapping[str, Any] | None = None, **parallel: Any) -> float:
    plan = Plan.model_validate(document(virtual, **parallel) | dict(more or {}))
    found = predict(architecture_of(plan), batch_of(plan), system_of(plan, calibration))
    return float(found.exposed_communication_s[0])


def asked(monkeypatch: pytest.MonkeyPatch, passes: float) -> None:
    for way in ("forward", "backward"):
        monkeypatch.setattr(PlanSchedules, f"overlap_passes_{way}", lambda *_: np.array([passes]))


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


def test_a_v_s_stages_have_their_own(calibration: Calibration, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one holds both ends of the model, and has most passes to hide them; the last one has half of one."""
    v = {"schedule": "dualpipe-v"}
    usual = exposed_s(2, calibration, v)
    few = PlanSchedules.overlap_passes_forward
    stages: list[int] = []
    monkeypatch.setattr(PlanSchedules, "overlap_passes_forward", lambda s, at: stages.extend(at) or few(s, at))
    assert exposed_s(2, calibration, v) == usual
    assert {0, PP - 1} <= set(stages)
    asked(monkeypatch, 1.0)
    assert exposed_s(2, calibration, v) > usual
    asked(monkeypatch, 3.5)
    assert exposed_s(2, calibration, v) < usual


def test_longer_rounds_hide_more(calibration: Calibration) -> None:
    usual = exposed_s(2, calibration)
    assert exposed_s(2, calibration, {"micro_batches_per_round": PP}) == usual
    assert exposed_s(2, calibration, {"micro_batches_per_round": MICRO_BATCHES}) < usual
