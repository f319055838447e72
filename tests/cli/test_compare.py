"""`moemodel compare`: what it prints and writes, and what it says to folders that are none."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.run_folders import MadeRun, study, write_matrix, write_run

Run = Callable[..., Result]


def test_it_prints_what_differs_and_writes_a_folder(moemodel: Run, folder: Path) -> None:
    write_matrix(folder / "study", study())
    result = moemodel("compare", "study", "--no-figures")
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    for expected in (
        "32 runs at 320 samples each",
        "the least is 1,599 J, megatron-core; 20.1% (19.0% to 21.1%) less than torch, 2,000 J.",
        "none, it is inside the spread",
        "CUDA out of memory: tried to allocate 2.0 GiB; the largest part of its memory is activations",
        "cut short: backend-megatron-core_global_batch-8_architecture-opt-350m_repeat-2: it has no result",
        "Few repeats (two)",
        "comparison: comparison.html",
    ):
        assert expected in words, expected
    table = result.stdout.splitlines()[1:13]
    assert all(len(line) <= 80 for line in table)
    assert (folder / "comparison" / "comparison.html").exists()
    assert json.loads((folder / "comparison" / "comparison.json").read_text())["samples"] == 320


def test_json_is_what_the_file_holds(moemodel: Run, folder: Path) -> None:
    write_run(folder / "one", MadeRun(samples=32))
    result = moemodel("compare", "one", "-o", "out", "--json", "--no-figures")
    assert json.loads(result.stdout) == json.loads((folder / "out" / "comparison.json").read_text())


def test_without_matplotlib_it_says_what_to_install(
    moemodel: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moemodel.validation.compare import write

    write_run(folder / "one", MadeRun(samples=32))
    monkeypatch.setattr(write, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    left_out = moemodel("compare", "one")
    assert left_out.exit_code == 0
    assert "figures are not written: matplotlib is not installed; install the extra plots" in left_out.stderr
    asked = moemodel("compare", "one", "-o", "other", "--figures")
    assert asked.exit_code == 2
    assert "needs matplotlib, which is not installed; install the extra plots" in asked.stderr
    assert not (folder / "other").exists()


def test_a_bad_folder_is_exit_code_2_and_loses_nothing(moemodel: Run, folder: Path) -> None:
    write_run(folder / "one", MadeRun(samples=32))
    moemodel("compare", "one", "--no-figures")
    before = (folder / "comparison" / "comparison.html").read_bytes()
    (folder / "empty").mkdir()
    result = moemodel("compare", "one", "empty")
    assert result.exit_code == 2
    assert result.stderr.startswith("moemodel: empty: found neither manifest.json nor matrix.json; allowed:")
    assert (folder / "comparison" / "comparison.html").read_bytes() == before
    refused = moemodel("compare", "one", "-o", "one")
    assert refused.exit_code == 2
    assert "one: found manifest.json, and no comparison; allowed: a new or empty folder" in refused.stderr
    assert moemodel("compare").exit_code == 2


def test_it_needs_numpy_and_pydantic_alone(moemodel: Run, folder: Path) -> None:
    """As predictions do: runs are compared on a laptop."""
    import subprocess

    write_run(folder / "one", MadeRun(samples=32))
    code = (
        "import sys, moemodel; moemodel.compare('one', folder='out')\n"
        "heavy = {'torch', 'scipy', 'pandas', 'networkx', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert moemodel("compare", "one", "-o", "out", "--no-figures").exit_code == 0
