"""The package as laid out: folders, links, versions, licences, and a light import."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest
import yaml
from setuptools import find_packages

import moemodel

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
LINKS = {  # import name -> folder; two differ, since `moemodel.calibrate` and `moemodel.validate` are functions
    "model": "model",
    "profiler": "profiler",
    "calibration": "calibrate",
    "validation": "validate",
    "cli": "cli",
}


def _packages() -> set[str]:
    """What setuptools finds, links followed."""
    return {"moemodel", *(f"moemodel.{name}" for name in find_packages(str(ROOT / "moemodel")))}


def test_every_folder_of_code_is_a_package() -> None:
    """A folder without `__init__.py` would be missing from the wheel, without a word."""
    needed = {"moemodel"}
    for name, room in LINKS.items():
        for path in (ROOT / room).rglob("*.py"):
            needed.add(".".join(("moemodel", name, *path.parent.relative_to(ROOT / room).parts)))
    assert _packages() == needed


@pytest.mark.parametrize(("name", "room"), LINKS.items())
def test_links_are_relative_and_resolve(name: str, room: str) -> None:
    link = ROOT / "moemodel" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..") / room
    assert link.resolve() == ROOT / room


def test_the_linter_of_imports_sees_every_module() -> None:
    """It follows the links; a room that it missed could import what it likes."""
    modules = set()
    for name, room in LINKS.items():
        for path in (ROOT / room).rglob("*.py"):
            parts = path.relative_to(ROOT / room).with_suffix("").parts
            modules.add(".".join(("moemodel", name, *(part for part in parts if part != "__init__"))))
    modules |= {"moemodel", "moemodel.__main__", "moemodel.api"}
    assert grimp.build_graph("moemodel", cache_dir=None).modules == modules


def test_data_files_are_packaged() -> None:
    for package, patterns in SETUPTOOLS["package-data"].items():
        folder = ROOT / package.replace(".", "/")
        packaged = {path for pattern in patterns for path in folder.glob(pattern)}
        inside = folder.rglob("*") if package != "moemodel" else folder.glob("*")
        needed = {path for path in inside if path.suffix in (".json", ".yaml", ".parquet", ".typed")}
        assert needed, package
        assert needed <= packaged, package


def test_commits_are_checked_with_what_make_lint_runs() -> None:
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)*)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe
    linted = [line.strip().replace("$(TEST)", ".venv-test") for line in recipe[1].splitlines()]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == linted


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
        ("import moemodel.model.predict.predict", "{'torch', 'pandas', 'sklearn', 'scipy', 'networkx', 'rich'}"),
    ):
        check = f"import sys; {code}; found = {heavy} & set(sys.modules); assert not found, found"
        subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, cwd=ROOT)


def test_the_licence_is_whole() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
