"""The package as laid out: folders, links, versions, licences, and a light import."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import moemodel

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
ROOMS = ("model", "profiler", "calibrate", "validate", "cli")


def test_every_package_is_listed() -> None:
    """A folder that is not listed would be missing from the wheel, without a word."""
    found = {"moemodel"}
    for room in ROOMS:
        for init in (ROOT / room).rglob("__init__.py"):
            found.add(".".join(("moemodel", *init.parent.relative_to(ROOT).parts)))
    assert set(SETUPTOOLS["packages"]) == found


def test_every_listed_package_has_its_folder() -> None:
    folders = SETUPTOOLS["package-dir"]
    for package in SETUPTOOLS["packages"]:
        parts = package.split(".")
        known = next(".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in folders)
        folder = ROOT / folders[known] / "/".join(package.removeprefix(known).strip(".").split("."))
        assert (folder / "__init__.py").is_file(), package


@pytest.mark.parametrize("room", ROOMS)
def test_links_are_relative_and_resolve(room: str) -> None:
    link = ROOT / "moemodel" / room
    assert link.is_symlink()
    assert link.readlink() == Path("..") / room
    assert link.resolve() == ROOT / room


def test_data_files_are_packaged() -> None:
    data = SETUPTOOLS["package-data"]
    for package, patterns in data.items():
        folder = ROOT / SETUPTOOLS["package-dir"][package]
        packaged = {path for pattern in patterns for path in folder.glob(pattern)}
        needed = {path for path in folder.rglob("*") if path.suffix in (".json", ".yaml", ".parquet", ".typed")}
        assert needed <= packaged, package


def test_one_version() -> None:
    assert moemodel.__version__ == PROJECT["project"]["version"]
    assert f"## {moemodel.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_public_names() -> None:
    for name in moemodel.__all__:
        assert getattr(moemodel, name) is not None
        assert name in dir(moemodel)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = moemodel.nothing


def test_importing_is_light() -> None:
    """The package alone imports next to nothing; the model nothing beyond numpy and pydantic."""
    for code, heavy in (
        ("import moemodel", "{'torch', 'pandas', 'sklearn', 'numpy', 'pydantic', 'scipy', 'networkx', 'rich'}"),
        ("import moemodel.model.predict", "{'torch', 'pandas', 'sklearn', 'scipy', 'networkx', 'rich'}"),
    ):
        check = f"import sys; {code}; found = {heavy} & set(sys.modules); assert not found, found"
        subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, cwd=ROOT)


def test_the_licence_is_whole() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
