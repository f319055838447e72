"""A stored report: read back as it was written, and what a reader says to one that is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moemodel.model.core.errors import InputError
from moemodel.model.plan.spec import Plan, plan_text
from moemodel.model.results.validation import (
    COLUMNS,
    REPORT,
    SCHEMA_VERSION,
    Failed,
    Report,
    Visit,
    read_report,
    row_of,
)
from tests.reports import plan_report, whole_report


@pytest.fixture
def report(plan_of: Any) -> Report:
    plan: Plan = plan_of(clock_MHz=1200.0)
    ran = plan.model_copy(update={"clock_MHz": None})
    row = row_of({"step_time_s": 0.1, "energy_J": float("nan"), "rank": 0, "plan": "a", "unheard": 3.0})
    visit = Visit(repeat=0, clock_held=False, seconds=5.0, rows=(row,))
    failed = Failed(repeat=1, kind="crashed", reason="it did")
    return whole_report(plan_report(plan, visit, name="a", plan_yaml=plan_text(ran), failures=(failed,)))


def test_it_reads_what_it_writes(report: Report, tmp_path: Path) -> None:
    (tmp_path / REPORT).write_text(report.to_json(), encoding="utf-8")
    assert read_report(tmp_path / REPORT) == report
    assert read_report(tmp_path) == report


def test_what_torchrun_started_is_still_read(report: Report, tmp_path: Path) -> None:
    environment = json.loads(report.to_json())["environment"] | {"launcher": "torchrun"}
    assert read_report(_broken(report, tmp_path, environment=environment)).environment.launcher == "torchrun"


def test_a_row_keeps_the_numbers_of_the_table(report: Report) -> None:
    row = report.plans[0].visits[0].rows[0]
    assert set(row) == set(COLUMNS)
    assert row["step_time_s"] == 0.1
    assert row["energy_J"] is None


def test_the_plan_is_the_one_that_ran(report: Report) -> None:
    assert report.plans[0].plan.clock_MHz is None
    assert "clock_MHz: 1200" in report.plans[0].asked_yaml
    assert report.failed == report.plans


def _broken(report: Report, tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "other.json"
    path.write_text(json.dumps(json.loads(report.to_json()) | changes), encoding="utf-8")
    return path


def test_another_version_is_named(report: Report, tmp_path: Path) -> None:
    path = _broken(report, tmp_path, schema_version=99)
    with pytest.raises(InputError) as caught:
        read_report(path)
    assert str(caught.value) == (
        f"{path}: schema_version: found 99; this moemodel reads {SCHEMA_VERSION}. "
        "Validate again with `moemodel validate`"
    )


def test_unknown_keys_and_columns_are_named(report: Report, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown key 'mood'"):
        read_report(_broken(report, tmp_path, mood="good"))
    plans = json.loads(report.to_json())["plans"]
    plans[0]["visits"][0]["rows"][0]["mood"] = 1
    with pytest.raises(InputError, match="found mood; allowed: numeric columns of table iterations"):
        read_report(_broken(report, tmp_path, plans=plans))


def test_a_report_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: no such file"):
        read_report(tmp_path / "none.json")
