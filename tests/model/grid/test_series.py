"""Series of hours: whose columns are read, how times and units are converted, and what is refused."""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moemodel.model.core.errors import InputError
from moemodel.model.grid.series import Series, read_series
from moemodel.model.grid.units import unit_in, unit_of

MAPS = (
    "Datetime (UTC),Country,Zone name,Zone id,Carbon intensity gCO₂eq/kWh (direct),"
    "Carbon intensity gCO₂eq/kWh (Life cycle),Carbon-free energy percentage (CFE%),"
    "Renewable energy percentage (RE%),Data source,Data estimated,Data estimation method"
)
FORMER_MAPS = (
    "Datetime (UTC),Country,Zone Name,Zone Id,Carbon Intensity gCO₂eq/kWh (direct),"
    "Carbon Intensity gCO₂eq/kWh (LCA),Low Carbon Percentage,Renewable Percentage,Data Source,Data Estimated,"
    "Data Estimation Method"
)


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Reads lines as a file."""

    def of(*lines: str, **options: Any) -> Series:
        path = tmp_path / "series.csv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return read_series(path, **options)

    return of


def _at(*when: int) -> datetime:
    return datetime(*when, tzinfo=UTC)  # type: ignore[misc, arg-type]


@pytest.mark.parametrize("header", [MAPS, FORMER_MAPS])
def test_electricity_maps(read: Any, header: str) -> None:
    rows = (
        "2024-01-01 00:00:00,Sweden,Sweden,SE,2.54,30.02,99.42,60.13,svk.se,true,X",
        "2024-01-01 01:00:00,Sweden,Sweden,SE,2.6,30.32,99.4,59.52,svk.se,true,X",
    )
    found = read(header, *rows)
    assert found.values == pytest.approx({_at(2024, 1, 1, 0): 0.03002, _at(2024, 1, 1, 1): 0.03032})
    assert (found.unit.kind, found.zone, found.source) == ("carbon", "SE", "Electricity Maps, life cycle")
    direct = read(header, *rows, column="carbon intensity gCO2eq/kWh (direct)")
    assert direct.values[_at(2024, 1, 1)] == pytest.approx(0.00254)
    assert direct.source == "Electricity Maps, direct"


def test_its_answers_as_a_table(read: Any) -> None:
    found = read("zone,carbonIntensity,datetime", "DE,302,2024-01-01T00:00:00.000Z", "DE,310,2024-01-01T01:00:00.000Z")
    assert found.values[_at(2024, 1, 1, 1)] == pytest.approx(0.310)


@pytest.mark.parametrize("header", ["timestamp,MOER", "point_time,value"])
def test_watttime(read: Any, header: str) -> None:
    times = [f"2024-02-28 {hour:02d}:{minute:02d}:00+00:00" for hour in (0, 1) for minute in range(0, 60, 5)]
    found = read(header, *(f"{time},{400 + 10 * number}" for number, time in enumerate(times)))
    assert found.unit.kind == "carbon"
    assert found.values == pytest.approx(
        {  # a pound is 453.59237 g
            _at(2024, 2, 28, 0): 455 * 0.45359237e-3,
            _at(2024, 2, 28, 1): 575 * 0.45359237e-3,
        }
    )
    assert any("means of 12 values" in note for note in found.notes)
    assert any("marginal rate" in note for note in found.notes)
    short = read(header, *(f"{time},400" for time in times[:-1]))
    assert list(short.values) == [_at(2024, 2, 28, 0)]
    assert any("1 hours of which some are missing" in note for note in short.notes)


@pytest.mark.parametrize(
    ("header", "unit", "expected", "kind"),
    [
        ("time,value", "gCO2/kWh", 0.1, "carbon"),
        ("time,value", "EUR/MWh", 0.1, "price"),
        ("time,price EUR/MWh", None, 0.1, "price"),
        ("time,Carbon (kgCO2e/MWh)", None, 0.1, "carbon"),
        ("date,x", "usd/kWh", 100.0, "price"),
    ],
)
def test_anything_else_says_its_unit(read: Any, header: str, unit: str | None, expected: float, kind: str) -> None:
    found = read(header, "2024-01-01T00:00Z,100", "2024-01-01T01:00Z,100", unit=unit)
    assert found.values[_at(2024, 1, 1)] == pytest.approx(expected)
    assert found.unit.kind == kind


@pytest.mark.parametrize(
    ("text", "per_unit"),
    [
        ("gCO₂eq/kWh", 1e-3),
        ("g CO2e/kWh", 1e-3),
        ("kgCO2eq/kWh", 1.0),
        ("tCO2/MWh", 1.0),
        ("lbs_co2_per_mwh", 0.45359237e-3),
        ("lbs/MWh", 0.45359237e-3),
        ("lbs CO2/MWh", 0.45359237e-3),
    ],
)
def test_units(text: str, per_unit: float) -> None:
    found = unit_of(text)
    assert (found.kind, found.currency) == ("carbon", None)
    assert found.factor == pytest.approx(per_unit)


def test_units_in_names() -> None:
    assert unit_in("Day-ahead price (EUR/MWh)") == unit_of("EUR/MWh")
    assert unit_in("Carbon intensity") is None
    for wrong in ("W", "", "EUR", "furlongs/kWh", "kWh/EUR"):
        with pytest.raises(InputError, match="allowed: gCO2eq/kWh"):
            unit_of(wrong)


def test_summer_ends_and_an_hour_comes_twice(read: Any) -> None:
    hours = ("01:00", "02:00", "02:00", "03:00")
    rows = [f"2025-10-26 {hour},{number}" for number, hour in enumerate(hours)]
    found = read("time,value", *rows, unit="g/kWh", time_zone="Europe/Berlin")
    # summer time is two hours ahead of UTC, winter time one
    assert list(found.values) == [
        _at(2025, 10, 25, 23),
        _at(2025, 10, 26, 0),
        _at(2025, 10, 26, 1),
        _at(2025, 10, 26, 2),
    ]
    assert list(found.values.values()) == pytest.approx([0.0, 0.001, 0.002, 0.003])
    assert any("1 times come twice" in note for note in found.notes)


def test_offsets_and_half_hours(read: Any) -> None:
    found = read("time,value", "2025-01-01T00:00+05:30,1", "2025-01-01T01:00+05:30,2", unit="g/kWh")
    assert list(found.values) == [_at(2024, 12, 31, 18, 30), _at(2024, 12, 31, 19, 30)]


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        (("time,value", "2025-01-01,1"), {"unit": "g/kWh"}, ":2: time: found 2025-01-01, which has no time zone"),
        (("time,value", "2025-01-01T00:00Z,1", "2025-01-01T01:00Z,2"), {}, "nothing says its unit"),
        (("time,value", "yesterday,1"), {"unit": "g/kWh"}, ":2: time: found 'yesterday'"),
        (("time,value", "2025-01-01T00:00Z,much"), {"unit": "g/kWh"}, ":2: value: found 'much' in g/kWh"),
        (("time,value", "2025-01-01T00:00Z,nan"), {"unit": "g/kWh"}, "found 'nan'"),
        (("time,value", "2025-01-01T00:00Z,-1"), {"unit": "g/kWh"}, "found '-1'"),
        (("time,value", "2025-01-01T00:00Z,400"), {"unit": "kg/kWh"}, "allowed: 0 to 5 kgCO2eq/kWh"),
        (
            ("time,value", "2025-01-01T00:00Z,1", "2025-01-01T01:00+01:00,1"),
            {"unit": "g/kWh"},
            ":3: found .* line 2 has",
        ),
        (("time,value", "2025-01-01T00:00Z,1,2"), {"unit": "g/kWh"}, ":2: found 3 cells; allowed: 2"),
        (("time,value", "2025-01-01T00:00Z,1", "2025-01-02T00:00Z,1"), {"unit": "g/kWh"}, "a value every 1 day"),
        (("time,value", "2025-01-01T00:00Z,1", "2025-01-01T00:07Z,1"), {"unit": "g/kWh"}, "parts of an hour"),
        (("time,value", "2025-01-01T00:00Z,1"), {"unit": "g/kWh"}, "found 1 values"),
        (("when,value", "x,1"), {"unit": "g/kWh"}, "a column of times called"),
        (("time,a EUR/kWh,b EUR/kWh", "x,1,1"), {}, "say which by --column"),
        (("time,value", "x,1"), {"column": "c"}, "--column: found 'c'; allowed: 'time', 'value'"),
        (("time,value", "2025-03-30 02:30,1"), {"unit": "g/kWh", "time_zone": "Europe/Berlin"}, "skip"),
        (("time,value", "2025-01-01,1"), {"unit": "g/kWh", "time_zone": "Mars"}, "--time-zone: found 'Mars'"),
        (
            ("time,zone,value", "2025-01-01T00:00Z,DE,1", "2025-01-01T01:00Z,FR,1"),
            {"unit": "g/kWh"},
            "found DE, FR; allowed: rows of one place",
        ),
        (("time", "x"), {}, "names of two columns"),
        (("",), {}, "names of two columns"),
    ],
)
def test_refusals_say_where(read: Any, lines: tuple[str, ...], options: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(*lines, **options)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(InputError, match="no such file"):
            read_series(path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="UTF-8"):
        read_series(tmp_path / "binary")


_NAMES = (
    "Datetime (UTC)",
    "timestamp",
    "time",
    "value",
    "MOER",
    "carbonIntensity",
    "zone",
    "EUR/MWh",
    "a g/kWh",
    "",
    "x",
)
_CELLS = (
    *(
        "2025-01-01T00:00Z",
        "2025-01-01T01:00Z",
        "2025-01-01 02:00",
        "2025-01-01T01:05Z",
        "2025-10-26 02:30",
        "0001-01-01",
    ),
    *("9999-12-31T23:00-23:00", "1", "1e999", "nan", "-1", "", '"', "é", "\x1b[31m", "100", "350.5", "1,2", "DE"),
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    header=st.lists(st.sampled_from(_NAMES), min_size=1, max_size=4),
    rows=st.lists(st.lists(st.sampled_from(_CELLS), min_size=1, max_size=4), max_size=6),
    time_zone=st.sampled_from([None, "UTC", "Europe/Berlin", "Asia/Kathmandu"]),
    unit=st.sampled_from([None, "g/kWh", "EUR/MWh"]),
)
def test_any_table_is_a_series_or_an_error(
    read: Any, header: list[str], rows: list[list[str]], time_zone: str | None, unit: str | None
) -> None:
    lines = [",".join(header), *(",".join(row) for row in rows)]
    with suppress(InputError):
        found = read(*lines, time_zone=time_zone, unit=unit)
        assert all(time.tzinfo is UTC and math.isfinite(value) for time, value in found.values.items())
