"""A wheel, built and installed elsewhere: it holds all that it needs, and predicts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import moemodel

ROOT = Path(__file__).parents[1]
LINKS = {link.name: link.readlink().name for link in (ROOT / "moemodel").iterdir() if link.is_symlink()}
LEFT_OUT = shutil.ignore_patterns("__pycache__")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing of the build is left in this checkout."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("moemodel", *LINKS.values()):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=LEFT_OUT)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(built)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel alone, in a folder of its own; what it depends on is that of the tests."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-warn-script-location"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True, capture_output=True)
    return target


def _run(installed: Path, command: list[str], cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=cwd, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_every_module_and_all_data(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = {Path(name).name for name in archive.namelist() if ".dist-info/licenses/" in name}
    needed = {f"moemodel/{path.name}" for path in (ROOT / "moemodel").iterdir() if path.is_file()}
    for name, folder in LINKS.items():
        files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        needed |= {f"moemodel/{name}/{path.relative_to(ROOT / folder).as_posix()}" for path in files}
    assert held == needed
    assert {"moemodel/py.typed", "moemodel/cli/templates/plan.yaml"} <= held
    assert {f"moemodel/calibration/shipped/{name}.json" for name in moemodel.list_calibrations()} <= held
    assert {f"moemodel/model/presets/gpus/{name}.json" for name in moemodel.list_gpus()} <= held
    assert licences == {"LICENSE", "NOTICE"}


def test_it_predicts(installed: Path, tmp_path: Path) -> None:
    """The command, in a folder that holds nothing of this repository."""
    shutil.copy(ROOT / "examples" / "olmoe-1b-7b.yaml", tmp_path / "plan.yaml")
    where = _run(installed, [sys.executable, "-c", "import moemodel; print(moemodel.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(installed)
    said = _run(installed, [sys.executable, str(installed / "bin" / "moemodel"), "predict", "plan.yaml"], tmp_path)
    assert "energy per token" in said
    assert _run(installed, [sys.executable, "-m", "moemodel", "--version"], tmp_path).endswith(
        f"version {moemodel.__version__}\n"
    )


def test_it_writes_a_plan_and_lists_what_it_knows(installed: Path, tmp_path: Path) -> None:
    """The template, the presets and the calibrations are found where they are installed."""
    code = "import moemodel; [moemodel.shipped(name) for name in moemodel.list_calibrations()]"
    _run(installed, [sys.executable, "-c", code], tmp_path)
    _run(installed, [sys.executable, "-m", "moemodel", "init"], tmp_path)
    assert "architecture: olmoe-1b-7b" in (tmp_path / "plan.yaml").read_text(encoding="utf-8")
    models = _run(installed, [sys.executable, "-m", "moemodel", "models"], tmp_path)
    assert all(name in models for name in moemodel.list_architectures())
