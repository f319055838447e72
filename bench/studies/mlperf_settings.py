"""What configurations of MLPerf Training's submissions set, by keys of a plan: `bench/measured/mlperf-settings.csv`."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

_SETTINGS = Path(__file__).parents[1] / "measured" / "mlperf-settings.csv"
RUN = ("round", "submitter", "system", "benchmark")  # columns of a table of results that tell its runs apart

Settings = Mapping[str, Any]


def settings_of(result: pd.Series[Any]) -> Settings | None:
    """Of a row of a table of results, by column; None where a configuration does not say, or for all of it where none
    is known."""
    return _settings().get(tuple(str(result[key]) for key in RUN))


@cache
def _settings() -> dict[tuple[str, ...], Settings]:
    with _SETTINGS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {tuple(row[key] for key in RUN): {key: _value(text) for key, text in row.items()} for row in rows}


def _value(text: str) -> int | bool | str | None:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isdigit() else text or None
