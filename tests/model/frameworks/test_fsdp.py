"""llm-foundry's FSDP: what its trainer computes beside the training step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.device.roofline import chip_of_calibration, operator_time
from moemodel.model.operators.work import Kind, Pass, Shape
from moemodel.model.plan.spec import Plan
from moemodel.model.results.outcome import Outcome, outcome

_GPU, _CLOCK_MHZ = "a100-sxm-80gb", 1200
_SEQUENCE, _MICRO_BATCH, _MICRO_BATCHES = 512, 16, 3


def answer(backend: str) -> Outcome:
    plan = Plan.model_validate(
        {
            "architecture": "opt-350m",
            "sequence_length": _SEQUENCE,
            "global_batch": _MICRO_BATCH * _MICRO_BATCHES,
            "micro_batch": _MICRO_BATCH,
            "backend": backend,
            "clock_MHz": _CLOCK_MHZ,
            "cluster": {"gpu": _GPU, "gpus": 1},
        }
    )
    return outcome(plan, shipped(_GPU))


def test_two_more_losses_of_every_micro_batch_are_for_the_log(tmp_path: Path) -> None:
    """Forward passes of torch's own cross-entropy, as the calibration times it, and nothing backward."""
    quiet = tmp_path / "quiet.yaml"
    quiet.write_text("name: quiet\nlike: fsdp\nlogged_losses: 0\n", encoding="utf-8")
    logging, silent = answer("fsdp"), answer(str(quiet))
    calibration = shipped(_GPU)
    fit = calibration.operator(Kind.CROSS_ENTROPY, Pass.FORWARD)
    assert fit is not None
    shape = Shape(m=_MICRO_BATCH * _SEQUENCE, n=50272)
    loss_s = operator_time(fit, chip_of_calibration(calibration), shape, np.array([_CLOCK_MHZ * 1e6])).time_s_UK[0, 0]
    added_s = {name: phase.time_s - silent.phases[name].time_s for name, phase in logging.phases.items()}
    assert added_s["forward"] == pytest.approx(2 * _MICRO_BATCHES * loss_s, rel=0.01)
    assert added_s["backward"] == pytest.approx(0.0, abs=1e-3 * loss_s)
