"""Parquet tables of a profile, nearly right: a calibration or one message, within seconds and megabytes.

Inputs are the same in every run. `MOEMODEL_FUZZ=500 pytest tests/fuzz/test_tables.py` tries as many.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from test_documents import fuzz

from fuzz_guard import reads

pytest.importorskip("scipy", reason="needs the extra calibrate")
pa = pytest.importorskip("pyarrow", reason="needs the extra calibrate")
pq = pytest.importorskip("pyarrow.parquet")

PROFILES = Path(__file__).parents[2] / "calibrate" / "profiles"
PROFILE, LINKS = PROFILES / "h100-sxm-80gb-second", PROFILES / "4xh100-sxm-80gb-links"
KINDS = ("copy", "gemm")  # what the loads of `alternating` run, so that all tables are fitted
SHAPES = 2  # of every operator: quick to fit

# What may stand in a column in place of all its values, as Arrow has them.
_TYPES: dict[str, Callable[[int], Any]] = {
    "texts": lambda rows: pa.array(["x"] * rows),
    "lists": lambda rows: pa.array([[1.0]] * rows),
    "records": lambda rows: pa.array([{"a": 1}] * rows),
    "switches": lambda rows: pa.array([True] * rows),
    "times": lambda rows: pa.array([0] * rows, pa.timestamp("us")),
    "decimals": lambda rows: pa.array([1] * rows, pa.decimal128(5, 1)),
    "halves": lambda rows: pa.array([1.0] * rows, pa.float64()).cast(pa.float16()),
    "bytes": lambda rows: pa.array([b"\xff"] * rows),
    "nothing": pa.nulls,
}
_NUMBERS = (-1.0, 0.0, math.nan, math.inf, -math.inf, 1e300, 1e-300, 1e9, -1e9, 3.7, float(0xFFFFFFFF), 1e-12, 1.0, 9.0)
_TEXTS = ("", "\x1b[31m", "é", "x" * 1000, "adamw", "\ud7ff", "forward")
_FACTORS = (0.0, 0.1, 10.0, 1e3, 1e-3, -1.0)


@pytest.fixture(scope="module")
def tables() -> dict[str, Any]:
    """Every table of a profile, with few operators."""
    found = {path.stem: pq.read_table(path) for folder in (LINKS, PROFILE) for path in folder.glob("*.parquet")}
    rows = found["operators"].to_pandas()
    rows = rows[rows["kind"].isin(KINDS)]
    shapes = [name for name in rows if name in ("m", "n", "k", "batch", "heads", "seq", "head_dim", "experts")]
    points = rows[["kind", "direction", *shapes]].drop_duplicates()
    kept = points[points.groupby(["kind", "direction"]).cumcount() < SHAPES]
    few = rows.merge(kept, how="inner")
    found["operators"] = pa.Table.from_pandas(few, schema=found["operators"].schema, preserve_index=False)
    found["thermal"] = found["thermal"].slice(0, 400)
    loads = found["power"].to_pandas()
    loads = loads[loads["kind"].isin(KINDS) | loads["kind"].isna()]
    found["alternating"] = found["alternating"].slice(0, 1)
    in_bursts = loads["duty"].between(0.01, 0.99)  # each takes the fit of the governor's gain a while
    loads = loads[~in_bursts | (in_bursts.cumsum() == 1)]
    found["power"] = pa.Table.from_pandas(loads, schema=found["power"].schema, preserve_index=False)
    return found


def _changes(tables: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
    """One to three things to do to tables: which, which column, what, and a number that says where."""
    column = st.sampled_from([(name, column) for name, table in tables.items() for column in table.column_names])
    whole = st.sampled_from(["drop", "twice", "none", "first", "half", "doubled", "missing", "cut", "flipped"])
    values = st.tuples(st.sampled_from(["one", "all"]), st.sampled_from([*_NUMBERS, *_TEXTS, None]))
    what = st.one_of(
        st.tuples(whole, st.none()),
        st.tuples(st.just("type"), st.sampled_from(sorted(_TYPES))),
        values,
        values,
        st.tuples(st.just("times"), st.sampled_from(_FACTORS)),
    )
    change = st.tuples(column, what, st.integers(0, 10**6))
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: json.dumps(changes).encode())


def _changed(table: Any, column: str, what: str, value: Any, where: int) -> Any:
    """A table with something wrong; as it is where that cannot be done to it."""
    place, rows = table.column_names.index(column), table.num_rows
    held = table.column(column).to_pylist()
    if what == "drop":
        return table.drop_columns([column])
    if what == "twice":
        return table.append_column(column, table.column(column))
    if what in ("none", "first", "half"):
        return table.slice(0, {"none": 0, "first": 1, "half": rows // 2}[what])
    if what == "doubled":
        return pa.concat_tables([table, table])
    if what == "type":
        return table.set_column(place, column, _TYPES[value](rows))
    if what == "times":
        held = [each * value if isinstance(each, float | int) else each for each in held]
    elif what == "one" and rows:
        held[where % rows] = value
    elif what == "all":
        held = [value] * rows
    try:
        return table.set_column(place, column, pa.array(held))
    except (pa.ArrowException, TypeError, ValueError):  # texts among numbers
        return table


def _write(folder: Path, tables: Mapping[str, Any], changes: list[Any]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(PROFILE / "manifest.json", folder)
    made = dict(tables)
    bad: dict[str, tuple[str, int]] = {}
    for (name, column), (what, value), where in changes:
        if what in ("missing", "cut", "flipped"):
            bad[name] = (what, where)
        elif column in made[name].column_names and len(set(made[name].column_names)) == made[name].num_columns:
            made[name] = _changed(made[name], column, what, value, where)
    for name, table in made.items():
        file = folder / f"{name}.parquet"
        pq.write_table(table, file)
        what, where = bad.get(name, ("", 0))
        content = bytearray(file.read_bytes())
        if what == "missing":
            file.unlink()
        elif what == "cut":
            file.write_bytes(content[: where % len(content)])
        elif what == "flipped":
            content[where % len(content)] ^= 1 << where % 8
            file.write_bytes(content)


def test_tables_of_a_profile(folder: Path, tables: dict[str, Any], examples: int) -> None:
    from moemodel.calibration.fit.calibration import calibrate_profile
    from moemodel.model.records.calibration import Calibration

    def check(folder: Path, content: bytes) -> bool:
        _write(folder / "profile", tables, json.loads(content))

        def fit() -> None:
            made, _ = calibrate_profile(folder / "profile")
            assert Calibration.model_validate_json(made.model_dump_json()) == made

        return reads(fit)

    fuzz(_changes(tables), folder, check, examples or 25)
