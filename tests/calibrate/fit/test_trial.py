"""Which calibrations are good for trying the commands only."""

from __future__ import annotations

import pytest

from moemodel.calibration.fit.operators import HeldOut
from moemodel.calibration.fit.trial import trial_reason
from moemodel.calibration.store.catalogue import list_calibrations, shipped
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.records.calibration import OperatorFit


def _held_out(worst: float) -> HeldOut:
    return HeldOut(kind=Kind.GELU, direction=Pass.FORWARD, shapes=2, median=0.1, mean=0.1, p90=0.2, worst=worst)


def _fits(*log_errors: float) -> list[OperatorFit]:
    one = shipped("h100-sxm-80gb").operators[0]
    return [one.model_copy(update={"log_error": log_error}) for log_error in log_errors]


@pytest.mark.parametrize("name", list_calibrations())
def test_those_that_ship_are_good_for_more(name: str) -> None:
    calibration = shipped(name)
    assert calibration.trial is None
    assert trial_reason(calibration.operators, [_held_out(0.1)]) is None


def test_more_than_a_quarter_of_useless_operators_makes_a_trial() -> None:
    """Useless: its 90 % interval reaches beyond half and twice the time, so e^(1.645 x log error) > 2."""
    assert trial_reason(_fits(0.05, 0.05, 0.05, 0.43), [_held_out(0.1)]) is None
    assert trial_reason(_fits(0.05, 0.05, 0.41, 0.41), [_held_out(0.1)]) is None
    said = trial_reason(_fits(0.05, 0.05, 0.43, 0.43), [_held_out(0.1), _held_out(7.67)])
    assert said is not None
    assert said.startswith("For trying the commands only: the times of 2 of 4 operators and passes ")
    assert "the worst was 767% off (gelu forward)." in said
