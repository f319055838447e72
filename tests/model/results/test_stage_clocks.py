"""What an answer says about clocks by stage and phase."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import predict
from moemodel.model.results.clock_changes import ChangeWorth, _pays_from, change_worth
from moemodel.model.results.outcome import Outcome, outcome
from moemodel.model.step.system import system_of


def answer(clock_MHz: Any, **changes: Any) -> Outcome:
    document = {
        "architecture": "opt-350m",
        "sequence_length": 2048,
        "global_batch": 32,
        "micro_batch": 4,
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 4},
        "parallel": {"pp": 4},
        "clock_MHz": clock_MHz,
    }
    return outcome(Plan.model_validate(document | changes), shipped("h100-sxm-80gb"))


def test_stages_are_in_the_answer() -> None:
    found = answer({"stages": [1200, 1200, {"forward": 900}, None], "optimizer": 600})
    stages = found.to_json()["stages"]
    assert [stage["stage"] for stage in stages] == [0, 1, 2, 3]
    assert stages[0]["clock_asked_MHz"] == {"forward": 1200.0, "backward": 1200.0, "optimizer": 1200.0}
    assert stages[2]["clock_asked_MHz"] == {"forward": 900.0, "backward": None, "optimizer": 600.0}
    assert stages[0]["clock_set_MHz"]["forward"] == pytest.approx(1200, rel=1e-3)
    assert stages[0]["clock_MHz"]["forward"] <= 1200
    watts = [stage["power_per_gpu_W"] for stage in stages]
    assert np.mean(watts) == pytest.approx(found.power_W.value, rel=1e-9)
    assert found.to_json()["plan"]["clock_MHz"]["optimizer"] == 600.0


def test_one_clock_has_no_stages() -> None:
    assert "stages" not in answer(1200).to_json()
    assert "stages" not in answer({"stages": [1200] * 4}).to_json()


def test_what_is_not_granted_is_said() -> None:
    notes = " ".join(answer({"stages": [600, 600, 600, 1980]}, power_cap_W=300).notes)
    assert "Under the power limit of 300 W not every clock is granted: stage 3 forward" in notes
    assert "of 1980 MHz" in notes
    assert "stage 0" not in notes
    assert "never measured on a real card" in notes


def test_clocks_that_stay_within_a_step_have_no_changes() -> None:
    assert not any("A change of the clock" in note for note in answer({"stages": [600, 900, 1200, 1500]}).notes)
    assert any("A change of the clock takes 4.5 ms" in note for note in answer({"forward": 1200}).notes)
    assert any("A change of the clock takes 20 ms" in n for n in answer({"forward": 1200, "change_ms": 20}).notes)


@pytest.mark.parametrize(
    ("saved", "change_s", "pays_from"),
    [
        ([0.2, 0.1, 0.0], 1.0, 1 / (1 + 0.0999 / 0.1)),  # the longest that pays lies a thousandth before the last
        ([0.2, 0.1, -0.1], 4.0, 4 / (1 + 0.0999 / 0.2)),
        ([0.2, 0.1, 0.05], 1.0, 0.0),
        ([-0.1, 0.1, 0.2], 1.0, np.inf),
    ],
)
def test_passes_pay_from_the_longest_change_that_does(saved: list[float], change_s: float, pays_from: float) -> None:
    assert _pays_from(np.array([0.0, 1.0, 2.0]), np.array(saved), change_s) == pytest.approx(pays_from)


def test_a_change_of_the_length_that_is_said_breaks_even() -> None:
    """An optimizer that waits for memory alone saves at a low clock, if it lasts long enough against the change."""

    def saving(change_ms: float) -> ChangeWorth:
        plan = Plan.model_validate(
            {
                "architecture": "olmoe-1b-7b",
                "layers": 4,
                "sequence_length": 2048,
                "global_batch": 16,
                "cluster": {"gpu": "h100-sxm-80gb"},
                "clock_MHz": {"forward": 1605, "backward": 1605, "optimizer": 900, "change_ms": change_ms},
            }
        )
        architecture, machine = architecture_of(plan), system_of(plan, shipped("h100-sxm-80gb"))
        found = change_worth(plan, architecture, machine, predict(architecture, batch_of(plan), machine))
        assert found is not None
        return found

    first = saving(4.5)
    assert 0 < first.pays_from < np.inf
    longest_ms = 4.5 / first.pays_from
    assert saving(0.8 * longest_ms).saving > 0 > saving(1.3 * longest_ms).saving
    assert saving(2 * 4.5).pays_from == pytest.approx(2 * first.pays_from, rel=0.1)
    assert first.changes == 2 * 16 + 1
    assert "from phases of about" in first.text()
