"""Writes a profile: `manifest.json` and one Parquet file a table, appended as measured and safe to interrupt.

While measuring, finished rows go to `TABLE/part-0000.parquet`, …; `consolidate` merges them into `TABLE.parquet`. Every
file is written beside its place and renamed into it, so a reader never sees half of one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import PydanticSerializationError

from moemodel.model.core.documents import load_json, parse_data
from moemodel.model.core.errors import InputError, ProfileError
from moemodel.model.core.files import TEMPORARY_SUFFIX, write_atomic
from moemodel.model.records.profile import (
    MANIFEST,
    MERGED_PARTS,
    ROWS,
    SCHEMA_VERSION,
    TABLES,
    Manifest,
    TableRow,
    Topology,
    Value,
)
from moemodel.profiler.store.folder_lock import LOCK

Key = tuple[Hashable, ...]
_PART = re.compile(r"part-([0-9]{4,9})\.parquet")

_TYPES: Final[dict[str, pa.DataType]] = {"string": pa.string(), "float64": pa.float64(), "int64": pa.int64()}


@dataclass(kw_only=True)
class _Part:
    """Rows that are not written yet, and the number of the part that they will be."""

    number: int
    rows: list[dict[str, Value]] = field(default_factory=list)


def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table of `model.records.profile.TABLES`; every column may be null."""
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
        self._pending: dict[str, _Part] = {}
        self._done: dict[str, set[Key]] = {table: set() for table in TABLES}
        for kind in ROWS:
            if self._parts_folder(kind.TABLE).exists() and not self._parts_folder(kind.TABLE).is_dir():
                raise _damaged(self._parts_folder(kind.TABLE), "it is no folder")
            self._recover(kind)
        self._write_manifest()

    def append(self, rows: Iterable[TableRow]) -> None:
        """Add finished rows; they reach the disk with `flush`."""
        for row in rows:
            columns = row.columns()
            self._pending[row.TABLE].rows.append(columns)
            self._done[row.TABLE].add(_key(type(row), columns))

    def has(self, kind: type[TableRow], /, **columns: Value) -> bool:
        """Whether a point was measured already, in this run or the one that it resumes.

        Args:
            kind: of its rows.
            columns: at least those that make two rows repetitions of the same point.
        """
        return _key(kind, columns) in self._done[kind.TABLE]

    def rows(self) -> dict[str, int]:
        """Rows of every table that `consolidate` has written."""
        files = {table: self._file(table) for table in TABLES}
        return {table: pq.read_metadata(file).num_rows if file.exists() else 0 for table, file in files.items()}

    def pending_rows(self) -> int:
        """Rows that would be lost if the process died now."""
        return sum(len(part.rows) for part in self._pending.values())

    def flush(self) -> None:
        """Write the rows appended since the last time, one part a table.

        An interruption at any point loses and doubles nothing: the part that was written is written again.
        """
        for table, part in self._pending.items():
            if not part.rows:
                continue
            file = self._parts_folder(table) / f"part-{part.number:04d}.parquet"
            file.parent.mkdir(exist_ok=True)
            _write_parquet(file, pa.Table.from_pylist(part.rows, schema=arrow_schema(table)))
            self._pending[table] = _Part(number=part.number + 1)

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

    def _recover(self, kind: type[TableRow]) -> None:
        table = kind.TABLE
        target, parts = self._file(table), self._parts(table)
        merged = _merged_parts(target, table) if target.exists() else set()
        # Numbers are never used twice: a merged part that a crash left behind is known by its number.
        numbers = [_number(part.name, part) for part in parts] + [_number(name, target) for name in merged]
        self._pending[table] = _Part(number=1 + max(numbers, default=-1))
        self._remove(table, [part for part in parts if part.name in merged])
        for source in [*([target] if target.exists() else []), *self._parts(table)]:
            self._done[table].update(_key(kind, row) for row in _read_parquet(source, table).to_pylist())

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
        write_atomic(self.folder / MANIFEST, self.manifest.model_dump_json(indent=2) + "\n")


def read_manifest(file: Path) -> Manifest:
    """A manifest as it stands on disk.

    Raises:
        ProfileError: it is not JSON, not a manifest, or of another schema version.
    """
    try:
        raw = load_json(file)
    except InputError as error:
        raise ProfileError(f"{error}; delete the profile and measure again") from None
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise ProfileError(f"{file}: found schema_version {version}, expected {SCHEMA_VERSION}; profile anew elsewhere")
    try:
        return parse_data(raw, Manifest, str(file))
    except InputError as error:
        raise ProfileError(str(error)) from None


def _resumed(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest to go on with: the old one where there is a profile, after checking that it is of the same thing."""
    file = folder / MANIFEST
    if not file.exists():
        if folder.is_dir() and any(f for f in folder.iterdir() if f.suffix != TEMPORARY_SUFFIX and f.name != LOCK):
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
    try:
        old.model_dump_json()
    except PydanticSerializationError:  # half of a character
        raise ProfileError(f"{file}: holds what is no text; give another folder as --output") from None
    return old


def _identity(manifest: Manifest) -> str:
    device = manifest.device
    return " ".join(str(part) for part in (device.name, device.uuid, device.power_limit_W) if part is not None)


def _key(kind: type[TableRow], columns: Mapping[str, Value]) -> Key:
    return tuple(columns[column] for column in kind.KEY)


def _remove_half_written(folder: Path) -> None:
    for temporary in [*folder.glob(f"*{TEMPORARY_SUFFIX}"), *folder.glob(f"*/*{TEMPORARY_SUFFIX}")]:
        temporary.unlink()


def _no_file(file: Path) -> pa.Table:
    raise OSError(f"{file} is no file")


def _write_parquet(target: Path, table: pa.Table) -> None:
    write_atomic(target, lambda temporary: pq.write_table(table, temporary, compression="zstd"), sync=True)


def _merged_parts(file: Path, table: str) -> set[str]:
    """Names of the parts that are in a table's file.

    Raises:
        ProfileError: its metadata say something else.
    """
    metadata = _read_parquet(file, table).schema.metadata or {}
    try:
        names = json.loads(metadata.get(MERGED_PARTS, b"[]"))
        return {name for name in names if _number(name, file) >= 0}
    except (ValueError, TypeError, RecursionError) as error:
        raise _damaged(file, f"its list of merged parts is none: {error}") from None


def _number(name: str, file: Path) -> int:
    """Of a part, from its name; `file` is where that stands.

    Raises:
        ProfileError: it is no part's.
    """
    found = _PART.fullmatch(name)
    if found is None:
        raise _damaged(file, f"{name!r} is the name of no part of a table")
    return int(found[1])


def _damaged(file: Path, reason: str) -> ProfileError:
    return ProfileError(
        f"{file}: damaged or truncated ({reason}); delete this file and run again: only its rows are measured anew"
    )


def _read_parquet(file: Path, table: str) -> pa.Table:
    """A file of a table, with exactly its columns.

    Raises:
        ProfileError: truncated, no Parquet, or other columns than the table's.
    """
    try:
        found: pa.Table = pq.read_table(file, partitioning=None) if file.is_file() else _no_file(file)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise _damaged(file, str(error).strip().partition("\n")[0]) from None
    if not found.schema.equals(arrow_schema(table)):
        expected = ", ".join(f"{column} {kind}" for column, kind in TABLES[table].items())
        raise ProfileError(f"{file}: found columns {found.schema.names}, expected {expected}")
    return found
