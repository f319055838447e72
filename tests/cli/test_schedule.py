"""`moemodel schedule`: a table, hours, and files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Run = Callable[..., Result]


@pytest.fixture
def week(folder: Path) -> Path:
    """Three made-up days; sun at noon."""
    grams = [300 - 200 * math.sin(hour / 24 * math.tau - math.pi / 2) for hour in range(72)]
    rows = [f"2026-06-{1 + h // 24:02d}T{h % 24:02d}:00Z,{value:.0f}" for h, value in enumerate(grams)]
    path = folder / "week.csv"
    path.write_text("\n".join(["time,carbon gCO2eq/kWh", *rows]), encoding="utf-8")
    return path


def test_text(moemodel: Run, week: Path, folder: Path) -> None:
    (folder / "plan.yaml").write_text((folder / "plan.yaml").read_text().replace("1e10", "6e10"), encoding="utf-8")
    result = moemodel(
        "schedule", "plan.yaml", "--series", week, "--deadline", "3d", "--when-off", "released", "-o", "out.csv"
    )
    assert result.exit_code == 0, result.output
    assert "emissions, kgCO2e" in result.output
    bars = [line for line in result.output.splitlines() if line.startswith("2026-06-0")]
    assert len(bars) == 3
    assert all(len(line.rstrip()) == 16 + 24 for line in bars)
    assert max(map(len, result.output.splitlines())) <= 80
    rows = list(csv.DictReader((folder / "out.csv").read_text().splitlines()))
    assert sum(float(row["share_of_run"]) for row in rows) == pytest.approx(1, rel=1e-4)
    assert {row["does"] for row in rows} >= {"start", "train", "checkpoint"}


def test_json(moemodel: Run, week: Path) -> None:
    options = ("--when-off", "released", "--clocks", "1200,1500", "--start", "2026-06-01T06:00Z", "--json")
    result = moemodel("schedule", "plan.yaml", "--series", week, "--deadline", "24h", *options)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert [clock["clock_MHz"] for clock in found["clocks"]] == [None, 1200.0, 1500.0]
    assert found["saved"]["emissions"] >= 0
    assert found["start"] == "2026-06-01T06:00:00+00:00"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--deadline", "10h", "--start", "2026-06-03T23:00Z"), "needed: from"),
        (("--deadline", "1h"), "the deadline has to move by"),
        (("--deadline", "soon"), "--deadline: found 'soon'"),
        (("--deadline", "3d", "--clocks", "fast"), "allowed: measured, plan, or clocks in MHz"),
        (("--deadline", "3d", "--clocks", "99999"), "99999"),
        (("--deadline", "3d", "--column", "price"), "--column: found 'price'"),
        (("--deadline", "3d", "--time-zone", "Mars"), "--time-zone: found 'Mars'"),
    ],
)
def test_refusals(moemodel: Run, week: Path, folder: Path, options: tuple[str, ...], said: str) -> None:
    (folder / "plan.yaml").write_text((folder / "plan.yaml").read_text().replace("1e10", "6e10"), encoding="utf-8")
    result = moemodel("schedule", "plan.yaml", "--series", week, *options)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output


def test_carbon_and_prices(moemodel: Run, week: Path, folder: Path) -> None:
    price = folder / "price.csv"
    price.write_text(week.read_text().replace("carbon gCO2eq/kWh", "value"), encoding="utf-8")
    plan = (folder / "plan.yaml").read_text() + "site: {currency: EUR}\n"
    (folder / "plan.yaml").write_text(plan, encoding="utf-8")
    both = ("schedule", "plan.yaml", "--series", price, "--series", week, "--deadline", "24h", "--clocks", "plan")
    result = moemodel(*both, "--unit", "EUR/MWh", "--unit", "gCO2eq/kWh", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["minimised"] == "cost"
    assert found["schedule"]["cost"] == pytest.approx(
        found["schedule"]["emissions_kgCO2eq"], rel=1e-9
    )  # the same hours
    for units, said in ((1, "one of carbon intensity, one of price"), (3, "unit: found 3 for 2 series")):
        refused = moemodel(*both, *(("--unit", "EUR/MWh") * units))
        assert refused.exit_code == 2
        assert said in refused.output
