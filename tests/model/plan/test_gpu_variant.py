"""A board that differs from the description of its GPU."""

from __future__ import annotations

import pytest

from moemodel.calibration.store.catalogue import load_calibration, shipped
from moemodel.model.core.errors import InputError
from moemodel.model.plan.spec import Plan
from moemodel.model.results.outcome import outcome
from moemodel.model.step.system import system_of

PLAN = {
    "architecture": "llama-3-8b",
    "layers": 4,
    "sequence_length": 4096,
    "global_batch": 2,
    "micro_batch": 2,
    "cluster": {"gpu": "h100-sxm-80gb", "gpus": 1},
}


def varied(**variant: float) -> Plan:
    return Plan.model_validate(PLAN | {"cluster": {"gpu": "h100-sxm-80gb", "gpus": 1, "gpu_variant": variant}})


def test_what_is_said_is_what_the_gpu_has() -> None:
    system = system_of(varied(memory_GB=96, memory_bandwidth_TBps=2.4, power_limit_W=500), shipped("h100-sxm-80gb"))
    assert system.memory_B == 96e9
    assert system.power_limit_W == 500
    assert system.calibration.chip["bandwidth_Bps"].value == 2.4e12
    assert [change.name for change in system.changes] == ["memory_bandwidth_Bps"]


def test_links_are_those_between_gpus() -> None:
    assert varied(links_GBps=200).cluster.description().nvlink_Bps == 200e9
    plan = Plan.model_validate(PLAN | {"cluster": {"gpu": "l40s-48gb", "gpu_variant": {"links_GBps": 20}}})
    assert plan.cluster.description().pcie_Bps == 20e9


def test_a_lower_limit_is_as_a_cap() -> None:
    """The same power, and so the same clock and time, whoever sets the limit."""
    capped = outcome(Plan.model_validate(PLAN | {"power_cap_W": 450.0}), shipped("h100-sxm-80gb"))
    limited = outcome(varied(power_limit_W=450), shipped("h100-sxm-80gb"))
    assert limited.step_time_s.value == pytest.approx(capped.step_time_s.value, rel=1e-6)
    assert limited.power_W.value == pytest.approx(capped.power_W.value, rel=1e-6)


def test_half_the_bandwidth_takes_longer_and_is_said() -> None:
    plain = outcome(Plan.model_validate(PLAN), shipped("h100-sxm-80gb"))
    slow = outcome(varied(memory_bandwidth_TBps=2.0), shipped("h100-sxm-80gb"))
    assert slow.step_time_s.value > 1.05 * plain.step_time_s.value
    assert any("memory_bandwidth_Bps 2e+12 instead of 3.35e+12" in note for note in slow.notes)


@pytest.mark.parametrize("wrong", [{"memory_GB": 0}, {"power_limit_W": -5}, {"bandwidth": 3}, {"multiprocessors": 1.5}])
def test_what_no_board_has_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"cluster\.gpu_variant"):
        varied(**wrong)


def test_a_cap_below_a_limit_whose_range_nobody_knows_is_taken_and_said() -> None:
    plan = PLAN | {"cluster": {"gpu": "v100-pcie-32gb"}, "precision": "bf16", "layers": 1}
    capped = outcome(Plan.model_validate(plan | {"power_cap_W": 125.0}), load_calibration(None, "v100-pcie-32gb"))
    assert capped.power_W.value == pytest.approx(125, rel=0.02)
    assert any("v100-pcie-32gb can be set to isn't known: 125 W may be below it" in note for note in capped.notes)
    with pytest.raises(InputError, match=r"power_cap_W: found 300; allowed on v100-pcie-32gb: above 0 to 250, or null"):
        outcome(Plan.model_validate(plan | {"power_cap_W": 300.0}), load_calibration(None, "v100-pcie-32gb"))
