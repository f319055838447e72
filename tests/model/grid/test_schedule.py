"""Schedules of plans: sums that follow from one another, what is refused, and what is said."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moemodel.model.core.errors import CalibrationError, InfeasiblePlanError, InputError
from moemodel.model.grid.options import PausedRun, paused_run
from moemodel.model.grid.schedule import Schedule, schedule
from moemodel.model.grid.series import Series, read_series
from moemodel.model.grid.times import deadline_of, time_of
from moemodel.model.plan.spec import Plan
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.outcome import outcome
from studies.brute_force_schedule import brute_force

MakePlan = Callable[..., Plan]

START = datetime(2026, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SITE: dict[str, Any] = {"region": "DEU", "pue": 1.25, "host_power_W": 100.0, "price_per_kWh": 0.25, "currency": "EUR"}
DAY = [
    400,
    380,
    350,
    300,
    200,
    120,
    80,
    60,
    60,
    100,
    200,
    320,
    450,
    500,
    480,
    460,
    300,
    150,
    90,
    80,
    200,
    300,
    350,
    400,
]


@pytest.fixture
def series(tmp_path: Path) -> Callable[..., Series]:
    """A series of hours from the start on, gCO2eq/kWh unless told."""

    def make(values: list[float | None], *, unit: str = "gCO2eq/kWh", zone: str = "", minute: int = 0) -> Series:
        path = tmp_path / "hours.csv"
        rows = [
            f"{(START + n * HOUR).replace(minute=minute).isoformat()},{zone},{'' if value is None else value}"
            for n, value in enumerate(values)
        ]
        path.write_text("\n".join(["time,zone,value", *rows]), encoding="utf-8")
        return read_series(path, unit=unit)

    return make


@pytest.fixture
def run_of(plan_of: MakePlan, calibration: Calibration) -> Callable[..., PausedRun]:
    """A run of so many hours at the governor's clock."""

    def make(hours: float = 6.0, *, clocks: Any = (1200.0,), **changes: Any) -> PausedRun:
        options = {name: changes.pop(name) for name in ("when_off", "start_s", "checkpoint_s") if name in changes}
        plan = plan_of(**{"site": SITE} | changes, tokens=1e9)
        found = outcome(plan, calibration)
        tokens = found.tokens * round(hours * 3600 / found.step_time_s.value)
        return paused_run(plan.model_copy(update={"tokens": tokens}), calibration, clocks=clocks, **options)

    return make


def _check(found: Schedule) -> None:
    """A schedule fills its hours, does the whole run, and sums up."""
    segments = found.segments
    assert segments[0].begins == found.start
    for before, after in pairwise(segments):
        assert abs((after.begins - before.ends) / HOUR) < 1e-4
    assert abs((segments[-1].ends - found.deadline) / HOUR) < 1e-4
    assert sum(s.share for s in segments) == pytest.approx(1.0, rel=1e-4)
    assert sum(s.share for s in found.at_once) == pytest.approx(1.0, rel=1e-4)
    run, carbon = found.run, found.hours.carbon
    standing = sum(s.hours for s in segments if s.does in ("start", "checkpoint"))
    stops = found.totals.pauses + 1
    assert standing * 3600 == pytest.approx(stops * (run.start_s + run.checkpoint_s), rel=1e-3, abs=0.5)
    assert found.totals.emissions_kg == pytest.approx(sum(s.energy_kWh * carbon[s.hour] for s in segments))


@pytest.mark.parametrize("when_off", ["kept", "released"])
@pytest.mark.parametrize("minimise", ["carbon", "cost"])
def test_a_schedule_is_no_worse_than_running_at_once(
    run_of: Callable[..., PausedRun], series: Callable[..., Series], when_off: str, minimise: Any
) -> None:
    run = run_of(when_off=when_off, site=SITE | {"gpu_hour_price": 0.05})
    given = [series(list(DAY)), series([value / 2 for value in DAY], unit="EUR/MWh")]
    found = schedule(run, given, start=START, deadline=START + 24 * HOUR, minimise=minimise)
    _check(found)
    saved = found.saved()
    assert found.minimised == minimise
    best = saved["emissions" if minimise == "carbon" else "cost"]
    assert best is not None
    assert 0 <= best < 1
    if when_off == "released":
        assert best > 0.3  # the cheapest hours have a sixth of the dearest's
    else:
        idle_kW = run.standing_kW
        waits = [s for s in found.segments if s.does == "wait"]
        assert sum(s.energy_kWh for s in waits) == pytest.approx(idle_kW * found.totals.waiting_h)


def test_it_is_what_brute_force_finds(run_of: Callable[..., PausedRun], series: Callable[..., Series]) -> None:
    values = [400.0, 100.0, 500.0, 90.0, 300.0]
    for when_off in ("kept", "released"):
        run = run_of(1.7, when_off=when_off)
        found = schedule(run, [series(list(values))], start=START, deadline=START + 5 * HOUR)
        expected = brute_force([1.0] * 5, [value / 1e3 for value in values], run.machine(hourly_cost=0.0))
        assert found.totals.emissions_kg == pytest.approx(expected, rel=1e-5)
        _check(found)


def test_running_at_once_is_the_prediction_and_a_start(
    run_of: Callable[..., PausedRun], series: Callable[..., Series], calibration: Calibration
) -> None:
    run = run_of(6.0, start_s=600.0, checkpoint_s=300.0)
    found = schedule(run, [series([250.0] * 24)], start=START, deadline=START + 24 * HOUR)
    predicted = outcome(run.plan, calibration).run
    assert predicted is not None
    standing_kWh = (run.idle_W + 100) * 1.25 / 1e3 * 900 / 3600
    totals = found.at_once_totals
    assert totals.energy_kWh == pytest.approx(predicted.energy_kWh.value + standing_kWh, rel=1e-4)
    assert totals.emissions_kg == pytest.approx(totals.energy_kWh * 0.25)
    assert totals.cost == pytest.approx(totals.energy_kWh * 0.25)
    assert (totals.ends - totals.begins) / HOUR == pytest.approx(predicted.hours.value + 0.25, rel=1e-4)
    assert any("All hours are alike" in note for note in found.notes)
    assert found.totals.pauses == 0


def test_hours_may_be_cut_and_begin_at_half_past(
    run_of: Callable[..., PausedRun], series: Callable[..., Series]
) -> None:
    start = START + timedelta(hours=2, minutes=50)
    found = schedule(run_of(3.0), [series(list(DAY), minute=30)], start=start, deadline=start + timedelta(hours=7.5))
    _check(found)
    assert found.hours.hours.sum() == pytest.approx(7.5)
    assert found.hours.hours[0] == pytest.approx(40 / 60)
    assert found.hours.carbon[0] == pytest.approx(DAY[2] / 1e3)


def test_too_late_says_by_how_much(run_of: Callable[..., PausedRun], series: Callable[..., Series]) -> None:
    run = run_of(6.0)
    with pytest.raises(InfeasiblePlanError) as caught:
        schedule(run, [series(list(DAY))], start=START, deadline=START + 4 * HOUR)
    moves = re.search(r"has to move by ([\d.]+) hours, to (\S+ \S+) UTC", str(caught.value))
    assert moves is not None
    assert float(moves[1]) == pytest.approx(2.1, abs=0.1)
    enough = datetime.fromisoformat(f"{moves[2]}+00:00") + timedelta(minutes=1)
    assert schedule(run, [series(list(DAY))], start=START, deadline=enough).totals.pauses == 0


def test_failures_make_it_longer(run_of: Callable[..., PausedRun], plan_of: MakePlan, calibration: Calibration) -> None:
    block = {"mtbf_hours_per_gpu": 10.0, "checkpoint_s": 90.0, "restart_s": 450.0}
    calm, failing = run_of(6.0), run_of(6.0, failures=block)
    assert (failing.start_s, failing.checkpoint_s) == (450.0, 90.0)
    assert (calm.start_s, calm.checkpoint_s) == (300.0, 60.0)
    assert failing.clocks[0].hours > calm.clocks[0].hours * 1.05
    phases = paused_run(plan_of(tokens=1e9, clock_MHz={"forward": 1500.0, "backward": 1200.0}), calibration)
    assert (phases.clocks[0].name, phases.clocks[0].clock_MHz) == ("the plan's clocks", None)
    held = paused_run(plan_of(tokens=1e9, clock_MHz=1500.0), calibration, clocks=[1500.0, 1200.0])
    assert [(option.name, option.is_own) for option in held.clocks] == [("1500 MHz", True), ("1200 MHz", False)]
    own = paused_run(plan_of(tokens=1e9), calibration, clocks="plan")
    assert [option.is_own for option in own.clocks] == [True]
    assert len(paused_run(plan_of(tokens=1e9), calibration).clocks) == 11


def test_gaps(run_of: Callable[..., PausedRun], series: Callable[..., Series]) -> None:
    holed: list[float | None] = [100.0, None, None, 400.0, 100.0, 100.0]
    given = series(holed)
    with pytest.raises(InputError, match=r"2 of 6 hours are missing: 2026-06-01 01:00, 2026-06-01 02:00 UTC"):
        schedule(run_of(2.0), [given], start=START, deadline=START + 6 * HOUR)
    with pytest.raises(InputError, match="2 of 6 hours are missing"):
        schedule(run_of(2.0), [given], start=START, deadline=START + 6 * HOUR, fill_hours=1)
    found = schedule(run_of(2.0), [given], start=START, deadline=START + 6 * HOUR, fill_hours=2)
    assert found.hours.carbon[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert any("2 hours that are missing" in note for note in found.notes)
    with pytest.raises(InputError, match=r"needed: from .* to 2026-06-01 07:00 UTC"):
        schedule(run_of(2.0), [given], start=START, deadline=START + 7 * HOUR)


def test_what_goes_together(
    run_of: Callable[..., PausedRun], series: Callable[..., Series], plan_of: MakePlan, calibration: Calibration
) -> None:
    carbon, dollars = series(list(DAY)), series(list(DAY), unit="USD/MWh")
    when = {"start": START, "deadline": START + 24 * HOUR}
    for wrong in ([], [carbon, carbon]):
        with pytest.raises(InputError, match="one of carbon intensity, one of price"):
            schedule(run_of(), wrong, **when)
    with pytest.raises(InputError, match="found prices in USD; allowed: EUR"):
        schedule(run_of(), [dollars], **when)
    with pytest.raises(InputError, match="electricity has no price"):
        schedule(run_of(site={"gpu_hour_price": 1.0}), [carbon], minimise="cost", **when)
    with pytest.raises(InputError, match="tokens: found none"):
        paused_run(plan_of(), calibration)
    with pytest.raises(InputError, match="a minute or longer"):
        paused_run(plan_of(tokens=1e5), calibration)
    powerless = calibration.model_copy(update={"power": calibration.power.model_copy(update={"points": 0})})
    with pytest.raises(CalibrationError, match="no power was measured"):
        paused_run(plan_of(tokens=1e9), powerless)


def test_a_series_of_another_country_is_named(run_of: Callable[..., PausedRun], series: Callable[..., Series]) -> None:
    when = {"start": START, "deadline": START + 24 * HOUR}
    abroad = schedule(run_of(), [series(list(DAY), zone="FR")], **when)
    at_home = schedule(run_of(), [series(list(DAY), zone="DE")], **when)
    assert any("The series is of FR (France)" in note for note in abroad.notes)
    assert not any("The series is of" in note for note in at_home.notes)


def test_cost_is_unknown_without_a_price(run_of: Callable[..., PausedRun], series: Callable[..., Series]) -> None:
    found = schedule(run_of(site={}), [series(list(DAY))], start=START, deadline=START + 24 * HOUR)
    assert found.totals.cost is None
    assert found.saved()["cost"] is None
    rented = schedule(
        run_of(site={"gpu_hour_price": 2.0}), [series(list(DAY))], start=START, deadline=START + 24 * HOUR
    )
    held_h = (rented.totals.ends - START) / HOUR
    assert rented.totals.cost == pytest.approx(2.0 * held_h, rel=1e-3)
    assert any("without electricity" in note for note in rented.notes)


def test_as_json_and_csv(run_of: Callable[..., PausedRun], series: Callable[..., Series]) -> None:
    found = schedule(run_of(), [series(list(DAY))], start=START, deadline=START + 24 * HOUR)
    document = json.loads(json.dumps(found.to_json(), allow_nan=False))
    rows = list(csv.DictReader(StringIO(found.to_csv())))
    assert len(rows) == len(document["segments"]) == len(found.segments)
    for name in ("energy_kWh", "emissions_kgCO2eq", "cost"):
        assert sum(float(row[name]) for row in rows) == pytest.approx(document["schedule"][name])
    assert sum(float(row["tokens"]) for row in rows) == pytest.approx(found.run.plan.tokens, rel=1e-4)
    assert document["saved"]["emissions"] == pytest.approx(
        1 - document["schedule"]["emissions_kgCO2eq"] / document["at_once"]["emissions_kgCO2eq"]
    )


def test_the_series_decides_what_is_least(run_of: Callable[..., PausedRun], series: Callable[..., Series]) -> None:
    price = series([float(value) for value in DAY], unit="EUR/MWh")
    found = schedule(run_of(), [price], start=START, deadline=START + 24 * HOUR)
    assert found.minimised == "cost"
    assert np.ptp(found.hours.carbon) == 0
    assert any("yearly mean of DEU" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("72h", 72.0),
        ("+5d", 120.0),
        ("1.5 days", 36.0),
        ("2 weeks", 336.0),
        ("2026-06-02", 24.0),
        ("2026-06-01T12:00+02:00", 10.0),
    ],
)
def test_deadlines(text: str, hours: float) -> None:
    assert (deadline_of(text, START, None) - START) / HOUR == pytest.approx(hours)


def test_times_that_are_none() -> None:
    for wrong in ("soon", "", "2026-13-01", "0h", "-3h", "2026-05-31", "99999999999d", "0001-01-01T00:00+14:00"):
        with pytest.raises(InputError, match="--deadline: found"):
            deadline_of(wrong, START, None)
    assert time_of("2026-06-01 02:00", None, key="--start") == START + 2 * HOUR
    assert time_of(START, None, key="--start") == START
