"""Read a profile: the manifest checked by pydantic, the tables as typed columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from moemodel.calibration.store.profile_checks import check_table
from moemodel.calibration.store.profile_tables import (
    AlternatingTable,
    CollectiveTable,
    HostTable,
    OperatorTable,
    OverlapTable,
    PowerTable,
    ProfileTable,
    ThermalTable,
)
from moemodel.model.core.documents import read_json
from moemodel.model.core.errors import InputError, ProfileError
from moemodel.model.records.profile import MANIFEST, MERGED_PARTS, SCHEMA_VERSION, TABLES, DeviceInfo, Manifest

_MOST_ROWS = 5_000_000  # of a file; a profile has tens of thousands

_Table = TypeVar("_Table", bound=ProfileTable)


class _Version(BaseModel):
    schema_version: int


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A profile in memory: tables are empty where a section was not measured; `chips` is how many it pools."""

    folder: Path
    manifest: Manifest
    operators: OperatorTable
    power: PowerTable
    alternating: AlternatingTable
    thermal: ThermalTable
    host: HostTable
    collectives: CollectiveTable
    overlap: OverlapTable
    chips: int = 1


def read_profile(folder: Path) -> Profile:
    """A profile from its folder.

    Raises:
        ProfileError: no such folder or manifest, another schema version, a table that is truncated, lacks columns or
            holds what they cannot.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ProfileError(f"{folder}: no such folder; make a profile with `moemodel profile -o {folder}`")
    try:
        version = read_json(path, _Version).schema_version
        if version != SCHEMA_VERSION:
            raise ProfileError(f"{path}: schema_version: found {version}; this moemodel reads {SCHEMA_VERSION}")
        manifest = read_json(path, Manifest)
    except InputError as error:
        raise ProfileError(str(error)) from None
    device = manifest.device
    return Profile(
        folder=folder,
        manifest=manifest,
        operators=_table(folder, OperatorTable, device),
        power=_table(folder, PowerTable, device),
        alternating=_table(folder, AlternatingTable, device),
        thermal=_table(folder, ThermalTable, device),
        host=_table(folder, HostTable, device),
        collectives=_table(folder, CollectiveTable, device),
        overlap=_table(folder, OverlapTable, device),
    )


def _table(folder: Path, table: type[_Table], device: DeviceInfo) -> _Table:
    return table.of(read_table(folder, table.ROW.TABLE, device))


def read_table(folder: Path, name: str, device: DeviceInfo | None = None) -> pd.DataFrame:
    """A table of a profile with the schema's columns: what was merged, and the parts that an unfinished profile left
    beside it; empty where there is neither.

    Args:
        folder: of the profile.
        name: of the table.
        device: whose limits bound what may be read.

    Raises:
        ProfileError: it is truncated, lacks columns or holds what they cannot; with file, column and row.
    """
    whole = folder / f"{name}.parquet"
    there = whole.exists() or whole.is_symlink()
    merged = _merged_parts(whole) if there else set()
    parts = [part for part in sorted((folder / name).glob("part-*.parquet")) if part.name not in merged]
    tables = [_parquet(path, name, device) for path in [*([whole] if there else []), *parts]]
    frames = [table.to_pandas() for table in tables]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(TABLES[name]))


def _merged_parts(whole: Path) -> set[str]:
    """Names of the parts that are in a merged table, as the profiler notes them.

    Raises:
        ProfileError: the note is damaged.
    """
    try:
        metadata = pq.read_schema(whole).metadata or {}
    except _DAMAGED:
        return set()  # `_parquet` says what is wrong with it
    try:
        names = json.loads(metadata.get(MERGED_PARTS, b"[]"))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ProfileError(
            f"{whole}: metadata {MERGED_PARTS.decode()}: found no list of file names; delete the file and run "
            "`moemodel profile` on this folder again"
        )
    return set(names)


def _parquet(path: Path, name: str, device: DeviceInfo | None) -> pa.Table:
    if not path.is_file():
        raise ProfileError(f"{path}: is no file; a table is expected")
    columns = list(TABLES[name])
    try:
        with pq.ParquetFile(path) as file:
            rows, found = file.metadata.num_rows, list(file.schema_arrow.names)
            _check_columns(found, columns, path)
            if rows > _MOST_ROWS:
                raise ProfileError(f"{path}: found {rows} rows; up to {_MOST_ROWS} are read")
            # what pandas noted of its types is nothing that the tables need
            table = file.read(columns=columns).select(columns).replace_schema_metadata(None)
            table.validate(full=True)
    except _DAMAGED as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ProfileError(
            f"{path}: truncated or not Parquet ({first}); delete it and run `moemodel profile` on this folder again"
        ) from None
    check_table(table, name, path, device)
    return table


# What pyarrow raises of damaged files: its own errors, of reading, of texts that are not UTF-8 and of sizes.
_DAMAGED = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)


def _check_columns(found: Sequence[str], columns: Sequence[str], path: Path) -> None:
    missing = [column for column in columns if column not in found]
    if missing:
        raise ProfileError(f"{path}: columns missing: {', '.join(missing)}; expected {', '.join(columns)}")
    twice = [column for column in columns if list(found).count(column) > 1]
    if twice:
        raise ProfileError(f"{path}: columns that stand twice: {', '.join(twice)}")
