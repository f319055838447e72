"""Read a profile: the manifest checked by pydantic, the tables as typed columns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

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
from moemodel.model.records.profile import MANIFEST, MERGED_PARTS, SCHEMA_VERSION, TABLES, Manifest

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
        ProfileError: no such folder or manifest, another schema version, a table that is truncated or lacks columns.
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
    return Profile(
        folder=folder,
        manifest=manifest,
        operators=_table(folder, OperatorTable),
        power=_table(folder, PowerTable),
        alternating=_table(folder, AlternatingTable),
        thermal=_table(folder, ThermalTable),
        host=_table(folder, HostTable),
        collectives=_table(folder, CollectiveTable),
        overlap=_table(folder, OverlapTable),
    )


def _table(folder: Path, table: type[_Table]) -> _Table:
    return table.of(read_table(folder, table.ROW.TABLE))


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """A table of a profile with the schema's columns: what was merged, and the parts that an unfinished profile left
    beside it; empty where there is neither.

    Raises:
        ProfileError: it is truncated or lacks columns.
    """
    whole = folder / f"{name}.parquet"
    merged = _merged_parts(whole) if whole.exists() else set()
    parts = [part for part in sorted((folder / name).glob("part-*.parquet")) if part.name not in merged]
    frames = [_parquet(path, name) for path in [*([whole] if whole.exists() else []), *parts]]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(TABLES[name]))


def _merged_parts(whole: Path) -> set[str]:
    """Names of the parts that are in a merged table, as the profiler notes them."""
    try:
        metadata = pq.read_schema(whole).metadata or {}
    except (pa.ArrowException, OSError):
        return set()  # `_parquet` says what is wrong with it
    return set(json.loads(metadata.get(MERGED_PARTS, b"[]")))


def _parquet(path: Path, name: str) -> pd.DataFrame:
    try:
        frame: pd.DataFrame = pq.read_table(path).to_pandas()
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise ProfileError(
            f"{path}: truncated or not Parquet ({first}); delete it and run `moemodel profile` on this folder again"
        ) from None
    missing = [column for column in TABLES[name] if column not in frame.columns]
    if missing:
        raise ProfileError(f"{path}: columns missing: {', '.join(missing)}; expected {', '.join(TABLES[name])}")
    return frame[list(TABLES[name])]
