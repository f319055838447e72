"""Profiles on disk: schema, resuming, atomicity, damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moemodel.model.core.errors import ProfileError
from moemodel.model.operators.work import SHAPE_FIELDS, Kind, Pass
from moemodel.model.records.profile import (
    MERGED_PARTS,
    ROWS,
    TABLES,
    AlternatingRow,
    CollectiveRow,
    HostRow,
    IterationRow,
    Manifest,
    OperatorColumns,
    OperatorRow,
    OverlapRow,
    PowerRow,
    TableRow,
    ThermalRow,
)
from moemodel.profiler.microbench.points import Point, Sizes
from moemodel.profiler.store import profile_writer
from moemodel.profiler.store.profile_writer import ProfileWriter, arrow_schema

SHIPPED = sorted((Path(__file__).parents[3] / "calibrate" / "profiles").glob("*/*.parquet"))
IDLE = PowerRow(load="idle", duty=0.0, power_W=122.8)
POINT = Point(kind=Kind.GEMM, direction=Pass.FORWARD, sizes=Sizes(m=8192))
GEMM = PowerRow(operator=POINT.operator(), load="gemm", duty=1.0, power_W=697.4)
OTHERS: tuple[TableRow, ...] = (
    OperatorRow(operator=POINT.operator(), sweep="solo", calls=1, time_s=1e-3),
    AlternatingRow(load="turns"),
    ThermalRow(load="heat: idle"),
    HostRow(block="step", direction="step", detail="bf16", host_time_s=1e-3),
    CollectiveRow(collective="all_reduce", ranks=2, nodes=1, size_B=1024, skew=1.0),
    OverlapRow(computation="add", m=1, n=0, k=0, collective="all_reduce", ranks=2, nodes=1, size_B=1024, priority=0),
    IterationRow(plan="a", rank=0, steps=20, step_time_s=0.1),
)


def _loads(folder: Path) -> list[str]:
    return [row["load"] for row in pq.read_table(folder / "power.parquet").to_pylist()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "profile"


def test_one_file_a_table_with_exactly_its_columns(folder: Path, manifest: Manifest) -> None:
    writer = ProfileWriter(folder, manifest)
    writer.append([IDLE, *OTHERS])
    writer.consolidate()
    assert sorted(f.name for f in folder.iterdir()) == sorted([*(f"{t}.parquet" for t in TABLES), "manifest.json"])
    for table in TABLES:
        assert pq.read_table(folder / f"{table}.parquet").schema.equals(arrow_schema(table))
    assert writer.rows() == dict.fromkeys(TABLES, 1)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_profiles_that_are_shipped_have_these_columns(file: Path) -> None:
    assert pq.read_schema(file).remove_metadata().equals(arrow_schema(file.stem))


def test_an_operator_is_named_by_all_of_its_shape() -> None:
    assert [field.name for field in fields(OperatorColumns)] == ["kind", "direction", "dtype", *SHAPE_FIELDS]
    for kind in ROWS:
        assert set(kind.KEY) <= set(TABLES[kind.TABLE])


def test_missing_readings_are_null(folder: Path, manifest: Manifest) -> None:
    writer = ProfileWriter(folder, manifest)
    writer.append([IDLE])
    writer.consolidate()
    (row,) = pq.read_table(folder / "power.parquet").to_pylist()
    assert (row["power_W"], row["clock_Hz"], row["m"]) == (122.8, None, None)


def test_flushed_rows_survive_and_are_known_again(folder: Path, manifest: Manifest) -> None:
    first = ProfileWriter(folder, manifest)
    first.append([IDLE])
    first.flush()
    first.append([GEMM])  # and dies here
    second = ProfileWriter(folder, manifest)
    assert second.has(PowerRow, load="idle")
    assert not second.has(PowerRow, load="gemm")
    second.append([GEMM])
    second.consolidate()
    assert _loads(folder) == ["idle", "gemm"]


def test_resuming_a_consolidated_profile_appends(folder: Path, manifest: Manifest) -> None:
    for i in range(3):
        writer = ProfileWriter(folder, manifest)
        writer.append([PowerRow(load=f"load {i}")])
        writer.consolidate()
    assert _loads(folder) == ["load 0", "load 1", "load 2"]


def test_a_crash_while_parts_are_removed_doubles_nothing(
    folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = ProfileWriter(folder, manifest)
    writer.append([IDLE])
    monkeypatch.setattr(ProfileWriter, "_remove", lambda *_: None)
    writer.consolidate()
    monkeypatch.undo()
    assert list((folder / "power").iterdir())
    for _ in range(2):  # the second time with a new part, which must not take the number of the merged one
        writer = ProfileWriter(folder, manifest)
        writer.append([GEMM])
        writer.flush()
    writer.consolidate()
    assert _loads(folder) == ["idle", "gemm", "gemm"]
    assert not (folder / "power").exists()


def test_a_failed_write_leaves_nothing_behind(
    folder: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = ProfileWriter(folder, manifest)
    writer.append([IDLE])

    def fail(_: object, where: Path, **__: object) -> None:
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="No space left"):
        writer.flush()
    assert [f.name for f in folder.rglob("*") if f.is_file()] == ["manifest.json"]
    monkeypatch.undo()
    writer.consolidate()  # the rows were kept
    assert _loads(folder) == ["idle"]


def test_half_written_files_of_a_killed_run_are_swept_up(folder: Path, manifest: Manifest) -> None:
    ProfileWriter(folder, manifest)
    (folder / "power").mkdir()
    (folder / "power" / "part-0000.parquet.tmp").write_bytes(b"PAR1")
    (folder / "manifest.json.tmp").write_text("{")
    ProfileWriter(folder, manifest)
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("keep", [0, 4, 100])
def test_a_truncated_part_is_named(folder: Path, manifest: Manifest, keep: int) -> None:
    writer = ProfileWriter(folder, manifest)
    writer.append([IDLE])
    writer.flush()
    part = folder / "power" / "part-0000.parquet"
    part.write_bytes(part.read_bytes()[:keep])
    with pytest.raises(ProfileError, match=r"part-0000\.parquet: damaged or truncated"):
        ProfileWriter(folder, manifest)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"gpu": "a100"}, r"found gpu h100-sxm-80gb, expected a100"),
        ({"dtype": "fp16"}, r"found dtype bf16, expected fp16"),
        ({"clocks": "as-is"}, r"found clocks passive, expected as-is"),
    ],
)
def test_another_profile_is_refused(folder: Path, manifest: Manifest, change: dict[str, str], says: str) -> None:
    ProfileWriter(folder, manifest)
    with pytest.raises(ProfileError, match=r"manifest\.json: " + says):
        ProfileWriter(folder, manifest.model_copy(update=change))


def test_another_card_of_the_same_kind_is_refused(folder: Path, manifest: Manifest) -> None:
    ProfileWriter(folder, manifest)
    other = manifest.device.model_copy(update={"uuid": "GPU-2"})
    with pytest.raises(ProfileError, match=r"found device .*GPU-1, expected .*GPU-2"):
        ProfileWriter(folder, manifest.model_copy(update={"device": other}))


def test_another_schema_is_refused(folder: Path, manifest: Manifest) -> None:
    ProfileWriter(folder, manifest)
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 99}))
    with pytest.raises(ProfileError, match=r"manifest\.json: found schema_version 99, expected 1"):
        ProfileWriter(folder, manifest)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": 1}'])
def test_a_damaged_manifest_is_named(folder: Path, manifest: Manifest, text: str) -> None:
    folder.mkdir()
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ProfileError, match=r"manifest\.json"):
        ProfileWriter(folder, manifest)


def test_a_folder_of_something_else_is_left_alone(folder: Path, manifest: Manifest) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("")
    with pytest.raises(ProfileError, match="empty or new folder"):
        ProfileWriter(folder, manifest)
    assert [f.name for f in folder.iterdir()] == ["thesis.tex"]


def test_section_times_add_up_over_runs(folder: Path, manifest: Manifest) -> None:
    ProfileWriter(folder, manifest).section_finished("power", 10.0)
    writer = ProfileWriter(folder, manifest)
    writer.section_finished("power", 2.5)
    assert Manifest.model_validate_json((folder / "manifest.json").read_text()).sections == {"power": 12.5}


# --- damage ----------------------------------------------------------------------------------------------------------


def _damages(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What a crash, a disk or a person does to a profile, by name; each is done to a fresh one."""
    random = Random(0)
    for name in ("manifest.json", "power.parquet", "host/part-0001.parquet"):
        file = folder / name
        size = file.stat().st_size
        yield f"{name} is empty", lambda file=file: file.write_bytes(b"")
        yield f"{name} is a folder", lambda file=file: (file.unlink(), file.mkdir())
        for _ in range(12):
            end, at, byte = random.randrange(size), random.randrange(size), random.randrange(256)
            yield f"{name} ends at {end}", lambda file=file, end=end: file.write_bytes(file.read_bytes()[:end])
            yield f"{name} has {byte} at {at}", lambda file=file, at=at, byte=byte: _flip(file, at, byte)
    for name in ("part-abc.parquet", "part-²²²².parquet", "part-99999999999999999999.parquet"):
        yield name, lambda name=name: shutil.copy(folder / "power.parquet", folder / "host" / name)
    yield "a table is a file", lambda: (shutil.rmtree(folder / "host"), (folder / "host").write_text("x"))
    for names in (b"{", b"5", b'["a"]', b"[[]]", b"\xff", b"[" * 50_000):
        yield f"merged {names[:5]!r}", lambda names=names: _merge(folder / "power.parquet", names)
    for text in ("[]", "null", "[" * 50_000, '{"schema_version": [[]]}', "NaN"):
        yield f"manifest {text[:9]}", lambda text=text: (folder / "manifest.json").write_text(text)


def _host(block: str) -> HostRow:
    return HostRow(block=block, direction="forward", detail="", host_time_s=1e-3)


def _flip(file: Path, at: int, byte: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] = byte
    file.write_bytes(data)


def _merge(file: Path, names: bytes) -> None:
    pq.write_table(pq.read_table(file).replace_schema_metadata({MERGED_PARTS: names}), file)


def test_damage_is_one_error_or_none(tmp_path: Path, manifest: Manifest) -> None:
    """Never a traceback; and what is read in spite of it is gone on with."""
    whole, folder = tmp_path / "whole", tmp_path / "p"
    writer = ProfileWriter(whole, manifest)
    writer.append([PowerRow(load="idle", power_W=70.0), _host("a")])
    writer.consolidate()
    writer.append([_host("b")])
    writer.flush()
    shutil.copytree(whole, folder)
    said: list[tuple[str, str]] = []
    for name, damage in list(_damages(folder)):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        damage()
        try:
            resumed = ProfileWriter(folder, manifest)
            resumed.append([_host("c")])
            resumed.consolidate()
        except ProfileError as error:
            said.append((name, str(error)))
    assert len(said) > 40
    assert [name for name, message in said if str(folder) not in message] == []


def test_an_interruption_between_writing_and_forgetting_doubles_nothing(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part is on disk, and then Ctrl-C comes."""
    writer = ProfileWriter(tmp_path / "p", manifest)
    writer.append([PowerRow(load="idle", power_W=70.0)])
    write = profile_writer._write_parquet

    def interrupted(target: Path, table: pa.Table) -> None:
        write(target, table)
        raise KeyboardInterrupt

    monkeypatch.setattr(profile_writer, "_write_parquet", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.flush()
    monkeypatch.setattr(profile_writer, "_write_parquet", write)
    writer.consolidate()
    assert writer.rows()["power"] == 1
