"""Reconciliation: made-up readings of CodeCarbon's against made-up readings of the counter's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from moemodel.profiler.emissions.reconciliation import (
    BOTH,
    CODECARBON,
    METER,
    NEITHER,
    PHASE_METER,
    POWER,
    Finding,
    Shares,
    reconcile,
)
from moemodel.profiler.emissions.records import CarbonReading, CarbonSummary, LevelSummary
from moemodel.profiler.meter.device_meter import FinishedStep, StepTimes
from moemodel.profiler.meter.summary import DeviceSummary, PhaseSummary, Summary

_POWER_W = 500.0
_SESSION_S = 60.0


def _level(gpu_J: float, cpu_J: float = 40.0, seconds: float = _SESSION_S) -> LevelSummary:
    return LevelSummary(
        readings=1,
        duration_s=seconds,
        gpu_J=gpu_J,
        cpu_J=cpu_J,
        ram_J=10.0,
        emissions_kg=1e-6,
        setup_s=1.0,
        inside_s=0.3,
        waited_s=0.0,
        background_s=None,
        share_of_time=0.3 / seconds,
        inside_s_per_step=None,
    )


def _carbon(session_J: float | None = _POWER_W * _SESSION_S, *, pue: float = 1.0, notes: Sequence[str] = ()) -> Any:
    return CarbonSummary(
        folder="f",
        run="r1",
        model="m",
        rank=0,
        country="CAN",
        region="quebec",
        pue=pue,
        steps=0,
        duration_s=_SESSION_S,
        levels={} if session_J is None else {"session": _level(session_J)},
        notes=tuple(notes),
    )


def _meter(device: str = "cuda:0", *, phases: dict[str, PhaseSummary] | None = None, **changes: Any) -> Summary:
    known: dict[str, Any] = {
        "device": device,
        "name": "a GPU",
        "uuid": None,
        "steps": 100,
        "step_time_s": 0.05,
        "step_time_standard_error_s": None,
        "step_time_deviation_s": None,
        "step_energy_J": 25.0,
        "step_energy_standard_error_J": None,
        "duration_s": _SESSION_S,
        "energy_J": _POWER_W * _SESSION_S,
        "power_W": _POWER_W,
        "energy_source": "counter",
        "phases": phases or {},
        "groups": (),
        "counter_lag_s": None,
        "residual_share": None,
        "intervals": None,
        "notes": (),
    }
    devices = (DeviceSummary(**(known | changes)),)
    return Summary(rank=0, world_size=1, start_unix_s=0.0, devices=devices, notes=())


def _phase(power_W: float | None, time_s: float = 0.02, calls: int = 1000, error_W: float = 2.0) -> PhaseSummary:
    return PhaseSummary(
        calls=calls,
        time_s=calls * time_s,
        mean_time_s=time_s,
        mean_time_standard_error_s=None,
        power_W=power_W,
        power_standard_error_W=error_W,
        energy_J=None,
    )


def _reading(step: int, gpu_J: float, seconds: float, phase: str = "") -> CarbonReading:
    return CarbonReading(step, phase, seconds, gpu_J, 1.0, 1.0, 1e-9)


def _counted(step: int, seconds: float, energy_J: float | None, device: str = "cuda:0") -> FinishedStep:
    return FinishedStep(device, StepTimes(step, 10.0 + step, 10.0 + step + seconds, {}), energy_J)


def _ticks(steps: int, seconds: float) -> list[CarbonReading]:
    """Steps without gaps, as a counter with ticks of 100 ms shows them."""
    at_tick = [int(step * seconds / 0.1 + 1e-9) for step in range(steps + 1)]
    return [_reading(i, (at_tick[i + 1] - at_tick[i]) * 0.1 * _POWER_W, seconds) for i in range(steps)]


def _of(found: Sequence[Finding], subject: str) -> list[Finding]:
    return [finding for finding in found if finding.subject == subject]


# --- sessions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [-0.05, 0.0, 0.053])
def test_a_session_within_its_share_agrees(off: float) -> None:
    found = reconcile(_carbon(_POWER_W * _SESSION_S * (1 + off)), {}, _meter(), [])
    assert found.agrees
    assert found.findings == ()
    assert found.comparisons[0].trust == BOTH
    assert found.comparisons[0].difference_share == pytest.approx(off)
    assert found.comparisons[0].allowed_share == pytest.approx(0.05 + 0.2 / 60)


@pytest.mark.parametrize("off", [-0.06, 0.06, 1.0])
def test_a_session_outside_it_is_an_error(off: float) -> None:
    found = reconcile(_carbon(_POWER_W * _SESSION_S * (1 + off)), {}, _meter(), [])
    assert not found.agrees
    (finding,) = found.findings
    assert (finding.level, finding.subject, finding.trust) == ("error", "session", METER)
    assert f"{off:+.1%}, more than the 5.3% that may be. Trust the energy counter" in finding.text
    assert ("other GPUs" in finding.text) == (off == 1.0)


def test_the_share_is_the_users() -> None:
    apart = _carbon(1.08 * _POWER_W * _SESSION_S)
    assert reconcile(apart, {}, _meter(), [], shares=Shares(session=0.1)).agrees


def test_a_short_session_may_be_off_by_its_ticks() -> None:
    carbon = replace(_carbon(), levels={"session": _level(_POWER_W * 1.0 * 1.2, seconds=1.0)})
    assert reconcile(carbon, {}, _meter(), []).agrees


def test_zero_is_an_error_that_says_why() -> None:
    (finding,) = reconcile(_carbon(0.0), {}, _meter(), []).findings
    assert (finding.level, finding.trust) == ("error", METER)
    assert "CodeCarbon read 0 J in 60.0 s, the energy counter 30000 J" in finding.text
    assert "does not see this device" in finding.text


def test_the_pue_is_taken_out() -> None:
    assert reconcile(_carbon(1.4 * _POWER_W * _SESSION_S, pue=1.4), {}, _meter(), []).agrees
    assert not reconcile(_carbon(1.4 * _POWER_W * _SESSION_S), {}, _meter(), []).agrees


def test_on_the_cpu_the_cpus_energy_counts() -> None:
    found = reconcile(_carbon(0.0), {}, _meter("cpu", power_W=40.0 / _SESSION_S), [])
    assert found.agrees
    assert found.comparisons[0].codecarbon_J == 40.0
    off = reconcile(_carbon(0.0), {}, _meter("cpu", power_W=65.0), [])
    assert "guesses a processor's power" in off.findings[0].text


@pytest.mark.parametrize("said_by", ["meter", "codecarbon"])
def test_a_counter_that_ran_backwards(said_by: str) -> None:
    note = "the energy counter ran backwards, by 100.0 J, 5.0 s into the session (a reset, or a reload of the driver)"
    heard = ["CodeCarbon says: Energy counter of GPU 0 went backwards (driver reload or counter reset)"]
    if said_by == "meter":
        found = reconcile(_carbon(), {}, _meter(notes=(note,), energy_source="power readings"), [])
    else:
        found = reconcile(_carbon(notes=heard), {}, _meter(), [])
    (finding,) = found.findings
    assert (finding.level, finding.subject, finding.trust) == ("error", "session", POWER)
    assert "backwards" in finding.text
    assert "no step or phase across it" in finding.text


def test_a_counter_that_stuck() -> None:
    note = "the energy counter did not change for 3.0 s"
    (finding,) = reconcile(_carbon(), {}, _meter(notes=(note,), energy_source="power readings"), []).findings
    assert (finding.level, finding.trust) == ("error", POWER)
    assert finding.text == f"{note}. CodeCarbon reads the same counter"


@pytest.mark.parametrize("fault", ["jumped by 1000000.0 J in 0.10 s", "did not answer for 3.0 s", "never changed"])
def test_a_counter_that_failed_otherwise(fault: str) -> None:
    found = reconcile(_carbon(), {}, _meter(notes=(f"the energy counter {fault}",), energy_source="power readings"), [])
    assert [(finding.level, finding.trust) for finding in found.findings] == [("error", POWER)]


def test_a_gpu_without_a_counter_is_compared_by_its_power() -> None:
    """A P100 has no counter: both have power readings, and where they agree there is no fault."""
    notes = ("no energy counter of this device alone: its energy is the mean of 600 power readings",)
    right_J = _POWER_W * _SESSION_S
    for off, agrees in ((-0.001, True), (0.2, False)):
        meter = _meter(notes=notes, energy_source="power readings")
        found = reconcile(_carbon(right_J * (1 + off)), {}, meter, [])
        assert found.agrees is agrees
        assert found.comparisons[0].trust == (BOTH if agrees else POWER)
        assert "power, J" in found.to_text()
        assert "counter, J" not in found.to_text()


def test_on_a_superchip_codecarbon_has_the_cpu_in_its_counter() -> None:
    notes = ("NVIDIA GH200 480GB is a superchip: its energy counter and the driver's average power are the module's",)
    meter = _meter(notes=notes, energy_source="power readings")
    found = reconcile(_carbon(_POWER_W * _SESSION_S * 1.35), {}, meter, [])
    error, info = found.findings
    assert (error.level, error.trust, info.level, info.trust) == ("error", POWER, "info", POWER)
    assert "counter of the module, CPU and memory included" in error.text


def test_without_a_counter_there_is_nothing_to_compare() -> None:
    found = reconcile(_carbon(), {}, _meter(power_W=None, energy_source=None), [])
    assert found.agrees
    assert found.comparisons[0].counter_J is None
    assert found.comparisons[0].trust == CODECARBON
    assert found.findings[0].level == "info"


# --- steps -----------------------------------------------------------------------------------------------------------


def test_short_steps_read_zero_or_a_tick_and_their_sum_is_right() -> None:
    readings = _ticks(1000, 0.037)
    counted = [_counted(i, 0.037, 0.037 * _POWER_W) for i in range(1000)]
    found = reconcile(_carbon(None), {"step": readings}, _meter(), counted)
    assert found.agrees
    assert found.steps_compared == 1000
    assert found.steps_zero == 630
    assert found.steps_apart == 0
    assert found.comparisons[0].trust == METER
    (finding,) = found.findings
    assert (finding.level, finding.trust) == ("info", METER)
    assert "630 of 1000 steps read 0 J in CodeCarbon, as they must" in finding.text


def test_a_long_step_may_not_read_zero() -> None:
    readings = [replace_gpu(reading, 0.0) if i == 7 else reading for i, reading in enumerate(_ticks(50, 0.43))]
    counted = [_counted(i, 0.43, 0.43 * _POWER_W) for i in range(50)]
    found = reconcile(_carbon(None), {"step": readings}, _meter(), counted)
    (finding,) = found.findings
    assert (finding.level, finding.trust) == ("error", METER)
    assert "1 of 50 steps read 0 J in CodeCarbon although they lasted longer" in finding.text
    assert "step 7, 430 ms, 215.0 J" in finding.text


def replace_gpu(reading: CarbonReading, gpu_J: float) -> CarbonReading:
    return reading._replace(gpu_J=gpu_J)


def test_a_step_further_off_than_a_tick_is_a_warning() -> None:
    readings = _ticks(50, 0.43)
    readings[3] = replace_gpu(readings[3], 215.0 * 1.1 + 51.5)
    counted = [_counted(i, 0.43, 215.0) for i in range(50)]
    found = reconcile(_carbon(None), {"step": readings}, _meter(), counted)
    (finding,) = found.findings
    assert (finding.level, finding.subject, finding.trust) == ("warning", "steps", METER)
    assert "1 of 50 steps are further apart than 10% and a tick (3: 288.0 and 215.0 J)" in finding.text
    readings[3] = replace_gpu(readings[3], 215.0 * 1.1 + 50.5)
    assert reconcile(_carbon(None), {"step": readings}, _meter(), counted).agrees


def test_steps_that_are_each_in_order_may_be_off_together() -> None:
    readings = [replace_gpu(reading, 1.09 * reading.gpu_J) for reading in _ticks(2000, 0.43)]
    counted = [_counted(i, 0.43, 215.0) for i in range(2000)]
    found = reconcile(_carbon(None), {"step": readings}, _meter(), counted)
    (finding,) = found.findings
    assert finding.level == "warning"
    assert finding.text.startswith("together: CodeCarbon read ")


def test_steps_of_several_devices_are_added_up() -> None:
    meter = _meter()
    meter = replace(meter, devices=(meter.devices[0], replace(meter.devices[0], device="cuda:1")))
    readings = [replace_gpu(reading, 2 * reading.gpu_J) for reading in _ticks(50, 0.43)]
    counted = [_counted(i, 0.43, 215.0, device) for i in range(50) for device in ("cuda:0", "cuda:1")]
    found = reconcile(_carbon(None), {"step": readings}, meter, counted[:-1])  # of the last, one device is missing
    assert found.agrees
    assert found.steps_compared == 49


def test_steps_that_the_counter_does_not_know() -> None:
    found = reconcile(_carbon(None), {"step": _ticks(5, 0.2)}, _meter(), [_counted(0, 0.2, None)])
    assert found.steps_compared == 0
    assert found.comparisons[0].counter_J is None


# --- phases ----------------------------------------------------------------------------------------------------------


def _phases(scale: float, calls: int = 1000) -> list[CarbonReading]:
    return [reading._replace(phase="forward", gpu_J=scale * reading.gpu_J) for reading in _ticks(calls, 0.02)]


def test_a_phases_sum_agrees() -> None:
    meter = _meter(phases={"forward": _phase(_POWER_W)})
    found = reconcile(_carbon(None), {"phase": _phases(1.0)}, meter, [])
    assert found.agrees
    assert found.comparisons[0].difference_share == pytest.approx(0.0, abs=0.01)
    assert found.comparisons[0].trust == PHASE_METER


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.4])
def test_a_phases_sum_that_does_not(scale: float) -> None:
    meter = _meter(phases={"forward": _phase(_POWER_W)})
    (finding,) = reconcile(_carbon(None), {"phase": _phases(scale)}, meter, []).findings
    assert (finding.level, finding.subject, finding.trust) == ("warning", "forward", PHASE_METER)


def test_what_the_attribution_does_not_know_is_allowed() -> None:
    uncertain = _meter(phases={"forward": _phase(_POWER_W, error_W=60.0)})
    assert reconcile(_carbon(None), {"phase": _phases(1.4)}, uncertain, []).agrees


def test_a_phase_that_cannot_be_told() -> None:
    found = reconcile(_carbon(None), {"phase": _phases(1.0)}, _meter(phases={"forward": _phase(None)}), [])
    assert found.agrees
    assert found.findings[0].trust == found.comparisons[0].trust == NEITHER


# --- reports ---------------------------------------------------------------------------------------------------------


def test_reports() -> None:
    meter = _meter(phases={"forward": _phase(_POWER_W)})
    readings = {"step": _ticks(3000, 0.037), "phase": _phases(0.5)}
    counted = [_counted(i, 0.037, 0.037 * _POWER_W) for i in range(3000)]
    found = reconcile(_carbon(0.0), readings, meter, counted)
    assert [finding.level for finding in found.findings] == ["error", "warning", "info"]
    text = found.to_text().splitlines()
    assert text[1].split()[:2] == ["session", "1"]
    assert text[1].endswith("-100.0%    5.3%  the energy counter")
    assert any(line.startswith("error: session: CodeCarbon read 0 J") for line in text)
    assert text[-1] == "time inside CodeCarbon's calls, of the session: session 0.50%"
    document = json.loads(found.to_json())
    assert document["agrees"] is False
    assert [row["subject"] for row in document["comparisons"]] == ["session", "steps", "forward"]
    assert len(document["steps"]) == 2000
    assert document["steps_compared"] == 3000
    assert "they agree" in reconcile(_carbon(), {}, _meter(), []).to_text()
