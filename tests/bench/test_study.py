"""`bench/study.py`."""

from __future__ import annotations

import json

import pytest
import study


def test_three_findings_and_what_they_rest_on(capsys: pytest.CaptureFixture[str]) -> None:
    study.main(["--json"])
    found = json.loads(capsys.readouterr().out)
    assert [insight["name"] for insight in found["insights"]] == ["degrees", "clock", "joint"]
    assert all(insight["holds"] == (insight["margin"] > 0) for insight in found["insights"])
    assert found["fastest_at_full_clock_right"]
    assert found["ahead"] > 0
