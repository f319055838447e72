"""Reading a profile: what is there is read, and what is wrong is named with its file, what was found and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moemodel.calibration.store.profile_reader import read_profile, read_table
from moemodel.model.core.errors import ProfileError
from moemodel.model.records.profile import MANIFEST, TABLES, Manifest, ThermalRow
from moemodel.profiler.store.profile_writer import ProfileWriter

WriteProfile = Callable[..., Path]


@pytest.fixture
def tables(committed: Path) -> dict[str, pd.DataFrame]:
    """A few rows of every table of the committed profile, in its order: the first load is idle and has no shape."""
    return {name: table.head(9) for name in TABLES if len(table := read_table(committed, name))}


@pytest.fixture
def profile(tmp_path: Path, tables: dict[str, pd.DataFrame], write_profile: WriteProfile) -> Path:
    return write_profile(tmp_path / "profile", tables)


def _refusal(folder: Path) -> str:
    with pytest.raises(ProfileError) as raised:
        read_profile(folder)
    return str(raised.value)


def _edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_what_was_written_is_read(profile: Path, tables: dict[str, pd.DataFrame]) -> None:
    read = read_profile(profile)
    assert read.folder == profile
    assert read.manifest.gpu == "h100-sxm-80gb"
    for name, table in tables.items():
        pd.testing.assert_frame_equal(read_table(profile, name), table)


def test_a_section_that_was_not_measured_is_an_empty_table(profile: Path) -> None:
    iterations = read_table(profile, "iterations")
    assert iterations.empty
    assert list(iterations.columns) == list(TABLES["iterations"])


@pytest.mark.parametrize("parts", [1, 4])
def test_parts_of_an_unfinished_profile_are_read(
    parts: int, tmp_path: Path, tables: dict[str, pd.DataFrame], write_profile: WriteProfile
) -> None:
    folder = write_profile(tmp_path / "unfinished", tables, parts=parts)
    for name, table in tables.items():
        pd.testing.assert_frame_equal(read_table(folder, name), table, check_dtype=False)


def test_parts_of_a_profile_that_was_resumed_and_killed_are_read(tmp_path: Path, committed: Path) -> None:
    """Nine rows finished, three more measured by a run that died before it could merge them."""
    source = read_profile(committed)
    rows = [ThermalRow(load=load) for load in source.thermal.load[:12].tolist()]
    whole = ProfileWriter(tmp_path / "p", source.manifest)
    whole.append(rows[:9])
    whole.consolidate()
    died = ProfileWriter(tmp_path / "p", source.manifest)
    died.append(rows[9:])
    died.flush()
    assert len(read_profile(tmp_path / "p").thermal) == 12


def test_columns_beyond_the_schema_are_left_out(profile: Path) -> None:
    path = profile / "thermal.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column("mood", pa.nulls(len(table))), path)
    assert list(read_table(profile, "thermal").columns) == list(TABLES["thermal"])


# ---- what is wrong --------------------------------------------------------------------------------------------------


def test_no_folder(tmp_path: Path) -> None:
    message = _refusal(tmp_path / "nowhere")
    assert message.startswith(f"{tmp_path / 'nowhere'}: no such folder")
    assert "moemodel profile" in message


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text("", encoding="utf-8")
    assert str(tmp_path / "profile") in _refusal(tmp_path / "profile")


def test_no_manifest(profile: Path) -> None:
    (profile / MANIFEST).unlink()
    assert _refusal(profile) == f"{profile / MANIFEST}: no such file"


def test_a_manifest_that_is_not_json(profile: Path) -> None:
    path = profile / MANIFEST
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: len(text) // 2], encoding="utf-8")
    assert _refusal(profile).startswith(f"{path}:")
    assert "not JSON" in _refusal(profile)


def test_a_manifest_of_another_schema_version(profile: Path) -> None:
    _edit_manifest(profile, schema_version=2)
    message = _refusal(profile)
    assert message.startswith(f"{profile / MANIFEST}: schema_version: found 2")
    assert "reads 1" in message


def test_a_later_schema_version_may_have_other_keys(profile: Path) -> None:
    _edit_manifest(profile, schema_version=2, rack="12")
    assert "schema_version: found 2" in _refusal(profile)


def test_a_manifest_with_an_unknown_key(profile: Path) -> None:
    _edit_manifest(profile, rack="12")
    message = _refusal(profile)
    assert "unknown key 'rack'" in message
    assert all(name in message for name in Manifest.model_fields)


def test_a_manifest_that_lacks_a_key(profile: Path) -> None:
    path = profile / MANIFEST
    data = json.loads(path.read_text(encoding="utf-8"))
    del data["dtype"]
    path.write_text(json.dumps(data), encoding="utf-8")
    assert _refusal(profile) == f"{path}: the key 'dtype' is missing"


@pytest.mark.parametrize("keep", [0, 4, 0.5])
def test_a_truncated_table(keep: float, profile: Path) -> None:
    path = profile / "operators.parquet"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    message = _refusal(profile)
    assert message.startswith(f"{path}: truncated or not Parquet")
    assert "moemodel profile" in message
    assert "\n" not in message


def test_a_truncated_part(tmp_path: Path, tables: dict[str, pd.DataFrame], write_profile: WriteProfile) -> None:
    folder = write_profile(tmp_path / "unfinished", tables, parts=3)
    path = folder / "power" / "part-0001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert _refusal(folder).startswith(f"{path}: truncated")


def test_a_table_that_lacks_columns(profile: Path) -> None:
    path = profile / "power.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["duty", "clock_Hz"]), path)
    message = _refusal(profile)
    assert message.startswith(f"{path}: columns missing: duty, clock_Hz; expected kind, direction,")


# ---- from the command line ------------------------------------------------------------------------------------------


def test_the_command_refuses_a_truncated_profile_and_writes_nothing(
    profile: Path, tmp_path: Path, moemodel: Callable[..., Any]
) -> None:
    path = profile / "operators.parquet"
    path.write_bytes(path.read_bytes()[:100])
    result = moemodel("calibrate", profile, "-o", "mine.json")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"moemodel: {path}: truncated or not Parquet")
    assert "Traceback" not in result.output
    assert [entry.name for entry in tmp_path.iterdir()] == ["profile"]


def test_a_refusal_leaves_the_calibration_that_was_there(
    profile: Path, tmp_path: Path, moemodel: Callable[..., Any]
) -> None:
    (tmp_path / "mine.json").write_text("old", encoding="utf-8")
    (profile / "power.parquet").write_bytes(b"PAR1")
    assert moemodel("calibrate", profile, "-o", "mine.json").exit_code == 2
    assert (tmp_path / "mine.json").read_text(encoding="utf-8") == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["mine.json", "profile"]


def test_a_profile_without_operators_says_which_sections_it_lacks(
    tmp_path: Path, tables: dict[str, pd.DataFrame], write_profile: WriteProfile, moemodel: Callable[..., Any]
) -> None:
    del tables["operators"]
    folder = write_profile(tmp_path / "profile", tables)
    result = moemodel("calibrate", folder, "-o", "mine.json")
    assert result.exit_code == 2
    assert "operators: found no rows" in result.stderr
    assert "--sections mixed,solo" in result.stderr


def test_an_operator_that_is_not_known(
    tmp_path: Path, tables: dict[str, pd.DataFrame], write_profile: WriteProfile, moemodel: Callable[..., Any]
) -> None:
    tables["operators"] = tables["operators"].assign(kind="softmax")
    result = moemodel("calibrate", write_profile(tmp_path / "profile", tables), "-o", "mine.json")
    assert result.exit_code == 2
    assert "softmax" in result.stderr
