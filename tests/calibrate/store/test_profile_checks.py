"""Profiles damaged on purpose: every column of every table with every kind of value that it cannot hold.

What must not be is refused with one line: file, column, row, what was found and what is allowed. What may be, however
odd, is fitted to numbers. `MOEMODEL_FUZZ=1 pytest tests/calibrate/store` fits every one of those, not a few.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moemodel.calibration.fit.calibration import calibrate_profile
from moemodel.calibration.store.profile_checks import check_table
from moemodel.calibration.store.profile_reader import read_profile, read_table
from moemodel.model.core.errors import ProfileError
from moemodel.model.operators.work import Kind, Pass
from moemodel.model.records.profile import MANIFEST, MERGED_PARTS, REQUIRED, TABLES
from moemodel.profiler.store.profile_writer import arrow_schema

WriteProfile = Callable[..., Path]

LINKS = "4xh100-sxm-80gb-links"
READ = tuple(name for name in TABLES if name != "iterations")
ROW = 4  # that is damaged, counted from 1: in table power, the first whose load is an operator
PATH = Path("a-profile/table.parquet")
NUMBERS = [(name, column) for name in READ for column, kind in TABLES[name].items() if kind != "string"]
TEXTS = [(name, column) for name in READ for column, kind in TABLES[name].items() if kind == "string"]
NAMES = [(t, c) for t, c in TEXTS if c in ("kind", "direction", "collective", "computation")]
EVERY = bool(os.environ.get("MOEMODEL_FUZZ"))


@pytest.fixture(scope="module")
def tables(committed: Path) -> dict[str, pa.Table]:
    """A few rows of every table, from the profiles that ship."""
    found = {}
    for name in READ:
        rows = read_table(committed, name)
        rows = rows if len(rows) else read_table(committed.parent / LINKS, name)
        assert len(rows), name
        found[name] = pa.Table.from_pandas(rows.iloc[:7], schema=arrow_schema(name), preserve_index=False)
    return found


def _with(table: pa.Table, column: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, values)


def _one(table: pa.Table, column: str, value: float | None) -> pa.Table:
    """The table with one number that is another."""
    values = [None if v is None else float(v) for v in table.column(column).to_pylist()]
    values[ROW - 1] = value
    return _with(table, column, pa.array(values, pa.float64()))


def _refusal(table: pa.Table, name: str) -> str:
    with pytest.raises(ProfileError) as raised:
        check_table(table, name, PATH)
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def test_tables_as_they_are_measured_pass(tables: dict[str, pa.Table]) -> None:
    for name, table in tables.items():
        check_table(table, name, PATH)


@pytest.mark.parametrize(("name", "column"), NUMBERS)
def test_a_column_of_numbers_holds_nothing_else(name: str, column: str, tables: dict[str, pa.Table]) -> None:
    count = len(tables[name])
    others: dict[str, list[Any]] = {
        "string": ["x"] * count,
        "bool": [True] * count,
        "list": [[1, 2]] * count,
        "binary": [b"\xff"] * count,
        "timestamp": [datetime.datetime(2026, 1, 2, 3, 4, 5)] * count,
        "struct": [{"a": 1}] * count,
    }
    for kind, values in others.items():
        message = _refusal(_with(tables[name], column, pa.array(values)), name)
        assert re.match(rf"{PATH}: {column}: found {kind}.*; numbers are expected", message)


@pytest.mark.parametrize(("name", "column"), NUMBERS)
def test_a_number_that_no_device_reads_is_named_by_its_row(name: str, column: str, tables: dict[str, pa.Table]) -> None:
    for value in (math.inf, -math.inf, 1e300, -1e300, 1e30):
        message = _refusal(_one(tables[name], column, value), name)
        assert message.startswith(f"{PATH}: {column}, row {ROW}: found {value!r}; ")
        assert " is expected. " in message
    if column in REQUIRED[name]:
        for nothing in (None, math.nan):
            message = _refusal(_one(tables[name], column, nothing), name)
            assert message.startswith(f"{PATH}: {column}, row {ROW}: found null; a ")


@pytest.mark.parametrize(
    ("column", "bad"),
    [
        ("time_s", (-1.0, 0.0, 1e-300)),
        ("power_W", (-10_700.0, -1.0, 0.0)),
        ("clock_Hz", (-1.0, 0.0, 1.4)),
        ("temperature_C", (-1.0, 0.0, 4.29e9)),  # not there; NVML's 0xFFFFFFFF
        ("duty", (-0.1, 1.2, 95.0, 1e-300)),
        ("sm_activity", (-0.1, 1.2, 95.0)),
        ("m", (0.0, -1.0, 1.5)),
        ("skew", (0.5, -1.0)),
        ("energy_J", (-1.0,)),
        ("duration_s", (-1.0, 0.0)),
    ],
)
def test_what_a_load_cannot_be(column: str, bad: tuple[float, ...], tables: dict[str, pa.Table]) -> None:
    for value in bad:
        message = _refusal(_one(tables["power"], column, value), "power")
        assert re.search(
            rf"{column}, row {ROW}: found {re.escape(repr(value))}; (0, or )?a (whole )?number from", message
        )


def test_the_limits_of_the_device_bound_power_and_clock(committed: Path, tables: dict[str, pa.Table]) -> None:
    """A counter that jumps by 1 MJ in a window leaves 554 kW; a reading of 2200 W is none of a GPU of 700 W."""
    device = read_profile(committed).manifest.device
    assert (device.power_limit_W, device.clock_max_Hz) == (700, 1.98e9)
    for column, value in (("power_W", 554e3), ("power_W", 2200.0), ("clock_Hz", 6e9), ("clock_reported_Hz", 6e9)):
        damaged = _one(tables["power"], column, value)
        with pytest.raises(
            ProfileError, match=rf"{column}, row {ROW}: found {value!r}; a number from .* to [0-9.e+]+ is"
        ):
            check_table(damaged, "power", PATH, device)
    check_table(_one(tables["thermal"], "power_W", 900.0), "thermal", PATH, device)


def test_power_is_energy_over_time(tables: dict[str, pa.Table]) -> None:
    """So one reading that is wrong by less than the bounds is found, too."""
    for column in ("power_W", "energy_J", "duration_s"):
        value = tables["power"].column(column)[ROW - 1].as_py()
        message = _refusal(_one(tables["power"], column, 1.05 * value), "power")
        assert f"power_W, row {ROW}: found " in message
        assert "; energy_J over duration_s, " in message


def test_a_load_that_stands_twice(tables: dict[str, pa.Table]) -> None:
    rows = len(tables["power"])
    message = _refusal(pa.concat_tables([tables["power"], tables["power"]]), "power")
    assert f"wall_s, row {rows + 1} (and {rows - 1} more rows): found " in message
    assert "; another time, as another row is the same in every column, is expected" in message


@pytest.mark.parametrize(("name", "column"), TEXTS)
def test_a_column_of_texts_holds_nothing_else(name: str, column: str, tables: dict[str, pa.Table]) -> None:
    count = len(tables[name])
    for values in (range(count), [b"x"] * count, [["x"]] * count, [True] * count):
        message = _refusal(_with(tables[name], column, pa.array(list(values))), name)
        assert re.match(rf"{PATH}: {column}: found .*; text is expected", message)
    for text in ("\x1b[31m", "x" * 2000, "a\nb"):
        texts = tables[name].column(column).to_pylist()
        message = _refusal(_with(tables[name], column, pa.array([*texts[:-1], text])), name)
        assert message.startswith(f"{PATH}: {column}, row {count}: found '")
        assert "\x1b" not in message
    if column in REQUIRED[name]:
        message = _refusal(_with(tables[name], column, pa.nulls(count, pa.string())), name)
        assert message.startswith(f"{PATH}: {column}, row 1 (and {count - 1} more rows): found null; ")


@pytest.mark.parametrize(("name", "column"), NAMES)
def test_names_are_those_that_are_known(name: str, column: str, tables: dict[str, pa.Table]) -> None:
    message = _refusal(_with(tables[name], column, pa.array(["foo"] * len(tables[name]))), name)
    known = {"kind": Kind.GEMM, "direction": Pass.FORWARD, "collective": "all_reduce", "computation": "gemm"}
    assert message.startswith(f"{PATH}: {column}, row 1 (and {len(tables[name]) - 1} more rows): found 'foo'; one of ")
    assert f"{known[column]}" in message


def test_a_pass_that_an_operator_does_not_have(tables: dict[str, pa.Table]) -> None:
    table = _with(tables["operators"], "kind", pa.array(["adamw"] * 7))
    assert "direction, row 1" in _refusal(_with(table, "direction", pa.array(["forward"] * 7)), "operators")
    message = _refusal(_with(tables["power"], "direction", pa.array([None] * 6 + ["forward"])), "power")
    assert re.search(r"direction, row \d.*: found None; one of|direction, row \d.*: found null; one of", message)


def test_a_load_that_is_an_operator_has_sizes_and_a_share_of_the_time(tables: dict[str, pa.Table]) -> None:
    for column in ("m", "head_dim", "skew", "time_s"):
        message = _refusal(_one(tables["power"], column, None), "power")
        assert re.search(rf"{column}, row {ROW}: found null; a .*, as kind is given is expected", message)
    message = _refusal(_one(tables["power"], "duty", None), "power")
    assert f"duty, row {ROW}: found null; 0, or a number from 1e-06 to 1, as time_s is given is expected" in message


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def profile(tmp_path: Path, tables: dict[str, pa.Table], committed: Path) -> Path:
    folder = tmp_path / "profile"
    folder.mkdir()
    (folder / MANIFEST).write_text((committed / MANIFEST).read_text(encoding="utf-8"), encoding="utf-8")
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


def _outcome(folder: Path) -> str:
    """What reading it says; nothing where it can be read."""
    try:
        read_profile(folder)
    except ProfileError as error:
        return str(error)
    return ""


def _read_refusal(folder: Path) -> str:
    with pytest.raises(ProfileError) as raised:
        read_profile(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("noted", [b"5", b"null", b"xx", b'"abc"', b"[1, 2]", b'[["a"]]', b"\xff\xfe", b'{"a": 1}'])
def test_notes_of_merged_parts_that_are_damaged(noted: bytes, profile: Path, tables: dict[str, pa.Table]) -> None:
    path = profile / "power.parquet"
    pq.write_table(tables["power"].replace_schema_metadata({MERGED_PARTS: noted}), path)
    assert _read_refusal(profile).startswith(f"{path}: metadata moemodel.merged_parts: found no list of file names")


def test_notes_of_pandas_that_are_damaged_do_not_matter(profile: Path, tables: dict[str, pa.Table]) -> None:
    pq.write_table(tables["power"].replace_schema_metadata({b"pandas": b"{"}), profile / "power.parquet")
    assert len(read_profile(profile).power) == 7


def test_a_folder_or_a_link_to_itself_in_place_of_a_table(profile: Path) -> None:
    path = profile / "operators.parquet"
    path.unlink()
    path.mkdir()
    assert _read_refusal(profile) == f"{path}: is no file; a table is expected"
    path.rmdir()
    path.symlink_to(path.name)
    assert _read_refusal(profile) == f"{path}: is no file; a table is expected"


def test_bytes_that_flipped(profile: Path) -> None:
    """Whatever they make of the file: an error with its name, or a table."""
    path = profile / "operators.parquet"
    raw = path.read_bytes()
    rng = np.random.default_rng(5)
    for _ in range(300 if EVERY else 30):
        data = bytearray(raw)
        for place in rng.integers(0, len(raw), rng.choice([1, 3, 30])):
            data[place] = int(rng.integers(256))
        path.write_bytes(data)
        if message := _outcome(profile):
            assert message.startswith(f"{path}: ")


def test_a_column_that_stands_twice(profile: Path, tables: dict[str, pa.Table]) -> None:
    path = profile / "power.parquet"
    pq.write_table(tables["power"].append_column("power_W", tables["power"].column("power_W")), path)
    assert _read_refusal(profile) == f"{path}: columns that stand twice: power_W"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": {"power_limit_W": -700.0}}, "device.power_limit_W: found -700.0"),
        ({"device": {"power_limit_W": math.inf}}, "device.power_limit_W: found inf"),
        ({"device": {"memory_B": -1}}, "device.memory_B: found -1"),
        ({"device": {"clock_max_Hz": 0.0}}, "device.clock_max_Hz: found 0.0"),
        ({"host": {"context_B": "much"}}, "host: context_B: found 'much'; a number from 0 on is expected"),
        ({"host": {"context_B": -5}}, "host: context_B: found -5"),
        ({"host": {"context_B": [1]}}, "host: context_B: found [1]"),
        ({"gpu": "no-such-gpu"}, "no-such-gpu"),
        ({"topology": {"gpus": [], "pairs": [{"a": 0, "b": 1}]}}, "pairs: found 0 and 1"),
        ({"topology": {"gpus": [{"index": 3, "name": "", "uuid": "", "nvlinks": 0}], "pairs": []}}, "indices"),
    ],
)
def test_a_manifest_that_says_what_cannot_be(
    change: dict[str, Any], reason: str, profile: Path, moemodel: Callable[..., Any]
) -> None:
    path = profile / MANIFEST
    found = json.loads(path.read_text(encoding="utf-8"))
    for key, value in change.items():
        found[key] = found[key] | value if isinstance(found.get(key), dict) else value
    path.write_text(json.dumps(found), encoding="utf-8")
    result = moemodel("calibrate", profile, "-o", "mine.json")
    assert result.exit_code == 2
    assert reason in result.stderr
    assert not Path("mine.json").exists()


# ---- what may be is fitted ------------------------------------------------------------------------------------------


def _odd(table: pd.DataFrame, column: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """The table with odd values of a column that it may hold."""
    yield "all null", table.assign(**{column: None})
    yield "all as the first", table.assign(**{column: table[column].iloc[0]})
    yield "all as the last", table.assign(**{column: table[column].iloc[-1]})
    yield "shuffled", table.assign(**{column: table[column].sample(frac=1, random_state=1).to_numpy()})
    if TABLES_OF[column] != "string":
        for factor in (1000, 0.001):
            yield f"x {factor}", table.assign(**{column: table[column].astype(float) * factor})


TABLES_OF = {column: kind for name in READ for column, kind in TABLES[name].items()}
# Of some hundreds: a clock that was never read, one shape alone, times that no form fits.
FEW = {
    ("operators", "clock_Hz", "all null"),
    ("operators", "m", "all as the first"),
    ("operators", "time_s", "shuffled"),
}


def test_what_a_table_may_hold_is_fitted_to_numbers(
    tmp_path: Path, small_profile: Path, committed: Path, write_profile: WriteProfile
) -> None:
    measured = {name: read_table(small_profile, name) for name in ("operators", "power", "host")}
    if not EVERY:
        measured["operators"] = measured["operators"][measured["operators"]["kind"] == Kind.COPY]
    else:
        measured |= {"thermal": read_table(committed, "thermal").iloc[::8], "power": read_table(committed, "power")}
    fitted = 0
    for name, table in measured.items():
        for column in TABLES[name]:
            for what, odd in _odd(table, column):
                if not EVERY and (name, column, what) not in FEW:
                    continue
                folder = tmp_path / f"{name}-{column}-{what}"
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    fitted += _fits(odd, name, measured, folder, write_profile)
    assert fitted >= len(FEW)


def _fits(
    odd: pd.DataFrame, name: str, measured: dict[str, pd.DataFrame], folder: Path, write_profile: WriteProfile
) -> bool:
    """Whether a calibration comes of it, all of whose numbers are numbers; else an error of one line."""
    try:
        write_profile(folder, measured | {name: odd})
    except (pa.ArrowException, ValueError, TypeError):
        return False  # a column that cannot be written so
    try:
        calibration, _ = calibrate_profile(folder)
    except ProfileError:
        return False
    json.dumps(calibration.model_dump(), allow_nan=False)
    return True
