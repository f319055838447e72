"""Writes a profile: `manifest.json` and one Parquet file a table, appended as measured and safe to interrupt.

While measuring, finished rows go to `TABLE/part-0000.parquet`, …; `consolidate` merges them into `TABLE.parquet`. Every
file is written beside its place and renamed into it, so a reader never sees half of one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from moemodel.model.core.errors import ProfileError
from moemodel.model.operators.work import SHAPE_FIELDS
from moemodel.model.records.profile import MANIFEST, MERGED_PARTS, SCHEMA_VERSION, TABLES, Manifest, Topology

Row = Mapping[str, Any]
Key = tuple[Hashable, ...]

# What makes two rows repetitions of the same point: a point that is there is not measured again.
_POINT: Final[dict[str, tuple[str, ...]]] = {
    "operators": ("kind", "direction", *SHAPE_FIELDS, "sweep"),
    "power": ("load",),
    "thermal": ("load",),
    "alternating": ("load",),
    "host": ("block", "direction", "detail"),
    "collectives": ("collective", "ranks", "nodes", "size_B", "skew"),
    "overlap": ("computation", "m", "n", "k", "collective", "ranks", "nodes", "size_B", "priority"),
    "iterations": ("plan", "rank"),
}
_TYPES: Final[dict[str, pa.DataType]] = {"string": pa.string(), "float64": pa.float64(), "int64": pa.int64()}


def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table of `model.profile.TABLES`; every column may be null."""
    return pa.schema([(column, _TYPES[kind]) for column, kind in TABLES[table].items()])


class ProfileWriter:
    """One profile folder being written.

    Args:
        folder: made if it is not there. An existing profile is resumed.
        manifest: of this run.

    Raises:
        ProfileError: the folder holds a profile of another device, GPU, dtype or schema, files that are no profile,
            or a damaged one.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = _resumed(folder, manifest)
        folder.mkdir(parents=True, exist_ok=True)
        _remove_half_written(folder)
        self._pending: dict[str, list[Row]] = {table: [] for table in TABLES}
        self._done: dict[str, set[Key]] = {table: set() for table in TABLES}
        self._next_part: dict[str, int] = dict.fromkeys(TABLES, 0)
        for table in TABLES:
            self._recover(table)
        self._write_manifest()

    def append(self, table: str, rows: Sequence[Row]) -> None:
        """Add finished rows; columns left out are null. They reach the disk with `flush`.

        Raises:
            ProfileError: a row has a column that the table does not.
        """
        for row in rows:
            unknown = set(row) - set(TABLES[table])
            if unknown:
                allowed = ", ".join(TABLES[table])
                raise ProfileError(f"table {table}: found column {', '.join(sorted(unknown))}; allowed: {allowed}")
        self._pending[table].extend(rows)
        self._done[table].update(_keys(table, rows))

    def has(self, table: str, row: Row) -> bool:
        """Whether this point of the table was measured already, in this run or the one that it resumes."""
        return _key(table, row) in self._done[table]

    def rows(self) -> dict[str, int]:
        """Rows of every table that `consolidate` has written."""
        files = {table: self._file(table) for table in TABLES}
        return {table: pq.read_metadata(file).num_rows if file.exists() else 0 for table, file in files.items()}

    def pending_rows(self) -> int:
        """Rows that would be lost if the process died now."""
        return sum(len(rows) for rows in self._pending.values())

    def flush(self) -> None:
        """Write the rows appended since the last time, one part a table."""
        for table, rows in self._pending.items():
            if not rows:
                continue
            part = self._parts_folder(table) / f"part-{self._next_part[table]:04d}.parquet"
            part.parent.mkdir(exist_ok=True)
            _write_parquet(part, pa.Table.from_pylist(_complete(table, rows), schema=arrow_schema(table)))
            self._next_part[table] += 1
            self._pending[table] = []

    def section_finished(self, section: str, seconds: float) -> None:
        """Record in the manifest that a section ended, adding to the time it took in earlier runs."""
        sections = dict(self.manifest.sections)
        sections[section] = round(sections.get(section, 0.0) + seconds, 3)
        self.manifest = self.manifest.model_copy(update={"sections": sections})
        self.flush()
        self._write_manifest()

    def consolidate(self) -> None:
        """Merge the parts of every table into its one file. A crash at any point loses and doubles nothing."""
        self.flush()
        for table in TABLES:
            parts = self._parts(table)
            if not parts:
                continue
            target = self._file(table)
            sources = [*([target] if target.exists() else []), *parts]
            merged = pa.concat_tables([_read_parquet(source, table) for source in sources])
            names = json.dumps([part.name for part in parts]).encode()
            _write_parquet(target, merged.replace_schema_metadata({MERGED_PARTS: names}))
            self._remove(table, parts)

    def _recover(self, table: str) -> None:
        target, parts = self._file(table), self._parts(table)
        merged = _merged_parts(target, table) if target.exists() else set()
        # Numbers are never used twice: a merged part that a crash left behind is known by its number.
        numbers = [int(name[len("part-") : -len(".parquet")]) for name in merged | {part.name for part in parts}]
        self._next_part[table] = 1 + max(numbers, default=-1)
        self._remove(table, [part for part in parts if part.name in merged])
        for source in [*([target] if target.exists() else []), *self._parts(table)]:
            self._done[table].update(_keys(table, _read_parquet(source, table).to_pylist()))

    def _remove(self, table: str, parts: Sequence[Path]) -> None:
        for part in parts:
            part.unlink()
        folder = self._parts_folder(table)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def _file(self, table: str) -> Path:
        return self.folder / f"{table}.parquet"

    def _parts_folder(self, table: str) -> Path:
        return self.folder / table

    def _parts(self, table: str) -> list[Path]:
        return sorted(self._parts_folder(table).glob("part-*.parquet"))

    def note_host(self, **facts: Any) -> None:
        """Record what was found out about the machine beside what the manifest began with."""
        self.manifest = self.manifest.model_copy(update={"host": {**self.manifest.host, **facts}})
        self._write_manifest()

    def note_topology(self, topology: Topology) -> None:
        """Record how the GPUs are connected."""
        self.manifest = self.manifest.model_copy(update={"topology": topology})
        self._write_manifest()

    def _write_manifest(self) -> None:
        target = self.folder / MANIFEST
        temporary = target.with_name(f"{MANIFEST}.tmp")
        temporary.write_text(self.manifest.model_dump_json(indent=2) + "\n")
        temporary.replace(target)


def read_manifest(file: Path) -> Manifest:
    """A manifest as it stands on disk.

    Raises:
        ProfileError: it is not JSON, not a manifest, or of another schema version.
    """
    try:
        raw = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ProfileError(f"{file}: not readable as JSON ({error}); delete the profile and measure again") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise ProfileError(f"{file}: found schema_version {version}, expected {SCHEMA_VERSION}; profile anew elsewhere")
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        raise ProfileError(f"{file}: not a manifest: {error}") from error


def _resumed(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest to go on with: the old one where there is a profile, after checking that it is of the same thing."""
    file = folder / MANIFEST
    if not file.exists():
        if folder.is_dir() and any(f for f in folder.iterdir() if not f.name.endswith(".tmp")):
            raise ProfileError(f"{folder}: has files but no {MANIFEST}; give an empty or new folder as --output")
        return manifest
    old = read_manifest(file)
    for what, found, expected in (
        ("gpu", old.gpu, manifest.gpu),
        ("device", _identity(old), _identity(manifest)),
        ("dtype", old.dtype, manifest.dtype),
        ("clocks", old.clocks, manifest.clocks),
    ):
        if found != expected:
            raise ProfileError(f"{file}: found {what} {found}, expected {expected}; give another folder as --output")
    return old


def _identity(manifest: Manifest) -> str:
    device = manifest.device
    return " ".join(str(part) for part in (device.name, device.uuid, device.power_limit_W) if part is not None)


def _complete(table: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [{column: row.get(column) for column in TABLES[table]} for row in rows]


def _keys(table: str, rows: Sequence[Row]) -> set[Key]:
    return {_key(table, row) for row in rows} if table in _POINT else set()


def _key(table: str, row: Row) -> Key:
    return tuple(row.get(column) for column in _POINT[table])


def _remove_half_written(folder: Path) -> None:
    for temporary in [*folder.glob("*.tmp"), *folder.glob("*/*.tmp")]:
        temporary.unlink()


def _write_parquet(target: Path, table: pa.Table) -> None:
    temporary = target.with_name(f"{target.name}.tmp")
    try:
        pq.write_table(table, temporary, compression="zstd")
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _merged_parts(file: Path, table: str) -> set[str]:
    metadata = _read_parquet(file, table).schema.metadata or {}
    return set(json.loads(metadata.get(MERGED_PARTS, b"[]")))


def _read_parquet(file: Path, table: str) -> pa.Table:
    """A file of a table, with exactly its columns.

    Raises:
        ProfileError: truncated, no Parquet, or other columns than the table's.
    """
    try:
        found: pa.Table = pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ProfileError(
            f"{file}: damaged or truncated ({error}); delete this file and run again: only its rows are measured anew"
        ) from error
    if not found.schema.equals(arrow_schema(table)):
        expected = ", ".join(f"{column} {kind}" for column, kind in TABLES[table].items())
        raise ProfileError(f"{file}: found columns {found.schema.names}, expected {expected}")
    return found
