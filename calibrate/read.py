"""Read a profile: the manifest checked by pydantic, the tables as data frames with the schema's columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from moemodel.model.documents import read_json
from moemodel.model.errors import InputError, ProfileError
from moemodel.model.profile import MANIFEST, SCHEMA_VERSION, TABLES, Manifest


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A profile in memory: `tables` by name, empty where a section was not measured; `chips` that it pools."""

    folder: Path
    manifest: Manifest
    tables: dict[str, pd.DataFrame]
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
        manifest = read_json(path, Manifest)
    except InputError as error:
        raise ProfileError(str(error)) from None
    if manifest.schema_version != SCHEMA_VERSION:
        raise ProfileError(
            f"{path}: schema_version: found {manifest.schema_version}; this moemodel reads {SCHEMA_VERSION}"
        )
    return Profile(folder=folder, manifest=manifest, tables={name: _table(folder, name) for name in TABLES})


def _table(folder: Path, name: str) -> pd.DataFrame:
    """A table, whole or in the parts that an unfinished profile left."""
    whole = folder / f"{name}.parquet"
    parts = [whole] if whole.exists() else sorted((folder / name).glob("part-*.parquet"))
    frames = [_parquet(path, name) for path in parts]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(TABLES[name]))


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
