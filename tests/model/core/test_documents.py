"""The door for documents: what is read, and how a mistake in one is named."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from moemodel.model.core.documents import Real, Strict, parse_data, parse_yaml, read_json, read_text, read_yaml
from moemodel.model.core.errors import InputError
from moemodel.model.core.files import write_atomic


class Inner(Strict):
    size: int = 1


class Numbers(Strict):
    name: str = ""
    rate: Real = 0.0
    inner: Inner = Inner()
    pair: tuple[Real, Real] = (0.0, 0.0)


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


# ---- what would take forever, or be guessed at ----------------------------------------------------------------------

_NINE = ", ".join(["*{0}"] * 9)
BOMB = "x0: &x0 [l]\n" + "".join(f"x{i}: &x{i} [{_NINE.format(f'x{i - 1}')}]\n" for i in range(1, 9))
MERGES = "x0: &x0 {a: 1}\n" + "".join(f"x{i}: &x{i} {{<<: [{_NINE.format(f'x{i - 1}')}]}}\n" for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: 2024-02-30", "here:1: found '2024-02-30', to YAML a date; put it in quotes where it is a name"),
        ("name: a\nrate: 2024-01-01T10:00:00Z", "here:2: found '2024-01-01T10:00:00Z', to YAML a date"),
        ("name: !!int abc", "here:1: found the tag '!!int' with 'abc'; allowed: plain values, without tags"),
        ("name: !!int", "here:1: found the tag '!!int' with ''"),
        ("name: !!float x", "here:1: found the tag '!!float' with 'x'"),
        ("name: !!bool maybe", "here:1: found the tag '!!bool' with 'maybe'"),
        ("name: !!null x", "here:1: found the tag '!!null' with 'x'"),
        ("name: !!timestamp x", "here:1: found 'x', to YAML a date"),
        ("name: !!map [a]", "here:1: found the tag '!!map'; allowed"),
        ("name: !!set {a}", "here:1: found the tag '!!set'; allowed"),
        ("name: !!binary abc=", "here:1: found the tag '!!binary' with 'abc='"),
        ("name: !own x", "here:1: found the tag '!own' with 'x'"),
        ("name: a\nrate: 010", "here:2: found 010, to YAML a number of base 8 or 60; allowed: decimals, or quotes"),
        ("name: a\nrate: 1:30", "here:2: found 1:30, to YAML a number of base 8 or 60"),
        ("name: a\nrate: 1:30.5", "here:2: found 1:30.5, to YAML a number of base 8 or 60"),
        ("name: a\nrate: " + "9" * 5000, "here:2: found a number of 5,000 digits; allowed: 40"),
        ('name: "\\UFFFFFFFF"', "here:1: not YAML: "),
        ("%YAML 9.9\n--- {name: a}", "here:1: not YAML: "),
        ('name: "\\ud800"', "here:1: half of a character (a lone surrogate)"),
        ("name: a\0", "here:1: not YAML: the character '\\x00'"),
        ("name: &a [*a]", "here:1: the alias *a stands inside of what it means"),
        ("name: &a {b: *a}", "here:1: the alias *a stands inside of what it means"),
        ("name: &a {<<: *a}", "here:1: the alias *a stands inside of what it means"),
        ("name: *none", "here:1: not YAML: found undefined alias"),
        ("name: a\n<<: 5", "here:2: << takes a mapping, or a list of mappings"),
        (BOMB, "here:6: more than 20,000 values, those behind aliases counted"),
        (MERGES, "here:5: more than 20,000 values, those behind aliases counted"),
        ("name: a\nmany: " + "{a: " * 100 + "1" + "}" * 100, "here:2: nested too deeply; allowed: 64 levels"),
        ("\n".join(f"k{i}: 1" for i in range(20_001)), "here:10000: more than 20,000 values"),
        ("name: '" + "x" * (9 << 20) + "'", "here: found 9,437,192 characters; allowed: 8,388,608"),
    ],
)
def test_what_yaml_would_guess_at_or_never_end_with(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_yaml(text, Outer, "here")
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["1_000", "0x3e8", "0b1111101000", "1000", "1e3", "+1000", "1000.", "1.0e+3"])
def test_numbers_of_one_meaning_are_read(text: str) -> None:
    assert parse_yaml(f"name: a\nrate: {text}", Outer, "here").rate == 1000


@pytest.mark.parametrize("text", ["no", "NO", "on", "yes", "y", "~x", "0o10", "12e", "2024-1", "<<", "="])
def test_what_looks_like_a_name_is_one(text: str) -> None:
    assert parse_yaml(f"name: {text}", Outer, "here").name == text


def test_aliases_and_merges_that_end_are_read() -> None:
    read = parse_yaml("name: &n a\ninner: &i {size: 2}\nmany: [*i, {<<: *i}, {<<: *i, size: 3}]", Outer, "here")
    assert read.many == (Inner(size=2), Inner(size=2), Inner(size=3))


def test_a_long_comment_takes_no_time() -> None:
    start = time.process_time()
    assert parse_yaml("name: a\n#" + "x" * (5 << 20), Outer, "here").name == "a"
    assert time.process_time() - start < 2


def test_many_mistakes_are_a_short_message() -> None:
    with pytest.raises(InputError) as caught:
        parse_yaml("name: a\n" + "".join(f"key{i}: 1\n" for i in range(9000)), Outer, "here")
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "here: 8,990 more mistakes"
    with pytest.raises(InputError) as caught:
        parse_data({"name": ["x" * 10**6], "y" * 10**6: 1, "rate": 10**5000}, Outer, "here")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a", "name": "b"}', ": the key 'name' stands twice in one object; keep one of them"),
        ('{"inner": {"size": 1, "size": 1}}', ": the key 'size' stands twice in one object"),
        ('{"rate": ' + "9" * 5000 + "}", ": not JSON: found a number of 5,000 digits; allowed: 40"),
        ("[" * 100_000, ": not JSON: nested too deeply"),
        ('{"name": "\\uD800"}', ": not JSON: half of a character (a lone surrogate)"),
        ('{"name": "a", "rate": NaN}', ": rate: found nan; input should be a finite number"),
        ('{"name": "a", "rate": true}', ": rate: found True; input should be a valid number"),
        ('{"name": "a", "rate": "64"}', ": rate: found '64'; input should be a valid number"),
        ('{"name": "a", "pair": [1]}', ": the key 'pair.1' is missing"),
    ],
)
def test_what_json_would_let_pass(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_json(path, Numbers)
    assert str(caught.value).startswith(f"{path}{message}")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"name": "a"}')
    assert read_json(path, Outer).name == "a"


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000])
def test_names_that_no_file_has(name: str) -> None:
    with pytest.raises(InputError):
        read_text(Path(name))
    with pytest.raises(OSError, match=r"Invalid argument|File name too long"):
        write_atomic(Path(name), "")


def test_an_endless_file_is_refused() -> None:
    with pytest.raises(InputError, match=r"^/dev/zero: more than 32 MiB; allowed: less$"):
        read_text(Path("/dev/zero"))


# ---- documents that are made in Python ------------------------------------------------------------------------------


def test_a_bad_document_raises_this_packages_error_however_it_is_made() -> None:
    good = Outer(name="a", inner=Inner(size=2))
    for make in (
        lambda: Outer(name=1),  # type: ignore[arg-type]
        lambda: Outer.model_validate({"name": "a", "rat": 1}),
        lambda: good.model_copy(update={"rate": "fast"}),
        lambda: good.model_copy(update={"rat": 1.0}),
        lambda: good.model_copy(update="rate"),  # type: ignore[arg-type]
        lambda: Outer.model_validate_json("{"),
        lambda: Outer.model_validate_json('{"name": "a", "rat": 1}'),
        lambda: Outer.model_validate_strings({"name": "a", "rat": "1"}),
        lambda: setattr(good, "name", "b"),
        lambda: delattr(good, "name"),
    ):
        with pytest.raises(InputError, match=r"^Outer: "):
            make()


def test_a_good_one_is_made_of_json_and_of_texts() -> None:
    assert Outer.model_validate_json('{"name": "a", "inner": {"size": 2}}') == Outer(name="a", inner=Inner(size=2))
    assert Outer.model_validate_strings({"name": "a", "inner": {"size": "2"}}) == Outer(name="a", inner=Inner(size=2))


def test_a_copy_keeps_what_is_not_changed() -> None:
    good = Outer(name="a", inner=Inner(size=2))
    changed = good.model_copy(update={"rate": 1.5})
    assert changed == Outer(name="a", rate=1.5, inner=Inner(size=2))
    assert changed.inner is good.inner
    assert good.model_copy() == good
