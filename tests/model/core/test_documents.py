"""The door for documents: what is read, and how a mistake in one is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moemodel.model.core.documents import Strict, parse_yaml, read_json, read_text, read_yaml
from moemodel.model.core.errors import InputError


class Inner(Strict):
    size: int = 1


class Outer(Strict):
    name: str
    rate: float = 0.0
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()


def test_yaml_becomes_a_document() -> None:
    read = parse_yaml("name: a\nrate: 1e12\ninner: {size: 3}\nmany: [{size: 1}, {}]", Outer, "here")
    assert read == Outer(name="a", rate=1e12, inner=Inner(size=3), many=(Inner(size=1), Inner()))


@pytest.mark.parametrize("number", ["1e12", "1E+12", "1.0e12", "1_000_000_000_000", "1000000000000.0"])
def test_numbers_as_people_write_them(number: str) -> None:
    assert parse_yaml(f"name: a\nrate: {number}", Outer, "here").rate == 1e12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "here: found nothing; a mapping of keys is expected"),
        ("- a", "here: found list; a mapping of keys is expected"),
        ("name: [", "here:1: not YAML: "),
        ("name: a\nname: b", "here:2: the key 'name' stands twice; keep one of them"),
        ("name: a\nsize: 1", "here:2: unknown key 'size'; allowed here: inner, many, name, rate"),
        ("name: a\ninner:\n  sise: 1", "here:3: unknown key 'inner.sise'; allowed here: size"),
        ("rate: 1", "here:1: the key 'name' is missing"),
        ("name: a\n\nrate: fast", "here:3: rate: found 'fast'; input should be a valid number"),
        ("name: a\nmany:\n- size: 1\n- size: x", "here:4: many.1.size: found 'x'; input should be a valid integer"),
        (
            "name: !!python/object/apply:os.system [ls]",
            "here:1: found the tag '!!python/object/apply:os.system'; allowed: plain values, without tags",
        ),
        ("name: a\n? [1, 2]\n: b", "here:2: a key must be a plain name"),
        ("name: a\nmany: " + "[" * 5000, "here:2: nested too deeply; allowed: 64 levels"),
    ],
)
def test_a_mistake_has_a_place(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_yaml(text, Outer, "here")
    assert str(caught.value).startswith(message)


def test_yaml_from_others_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    text = f"name: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{mark}']]"
    with pytest.raises(InputError):
        parse_yaml(text, Outer, "here")
    assert not mark.exists()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing, binary = tmp_path / "missing.yaml", tmp_path / "binary.yaml"
    binary.write_bytes(b"name: \xff")
    for path, message in (
        (missing, "no such file"),
        (tmp_path, "is a folder; a file is expected"),
        (binary, "not UTF-8 text (byte 6)"),
    ):
        with pytest.raises(InputError) as caught:
            read_yaml(path, Outer)
        assert str(caught.value) == f"{path}: {message}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.yaml"
    path.write_text("name: a")
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        read_text(path)


def test_json_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{\n"name": \n}')
    with pytest.raises(InputError) as caught:
        read_json(path, Outer)
    assert str(caught.value).startswith(f"{path}:3: not JSON: ")


def test_json_names_the_key(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"name": "a", "inner": {"size": "big"}}')
    with pytest.raises(InputError) as caught:
        read_json(path, Outer)
    assert str(caught.value).startswith(f"{path}: inner.size: found 'big'; input should be a valid integer")
