"""Processes that are started run no code of the working directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import moemodel
from moemodel.profiler.clocks import clock_control
from moemodel.profiler.jobs.isolation import child_environment, module_path
from moemodel.profiler.jobs.launcher import local_programs, slurm_program

PACKAGE = str(Path(moemodel.__file__).parents[1])
SLURM = {"SLURM_JOB_NODELIST": "a,b", "SLURM_JOB_ID": "1"}


def test_the_working_directory_is_no_place_for_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert module_path(["", "/lib"], {}) == ["/lib", PACKAGE]
    assert module_path([str(tmp_path), "/lib", PACKAGE], {}) == ["/lib", PACKAGE]
    assert module_path(["/lib", "."], {"PYTHONPATH": ":/lib:"}) == ["/lib", PACKAGE]  # an empty entry asks for nothing


def test_unless_it_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = module_path([str(tmp_path), "/lib"], {"PYTHONPATH": f"{tmp_path}{os.pathsep}/lib"})
    assert found == [str(tmp_path), "/lib", PACKAGE]


def test_a_checkout_that_one_works_in_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PACKAGE)
    assert module_path([PACKAGE, "/lib"], {}) == ["/lib", PACKAGE]


def test_what_is_started_is_isolated() -> None:
    programs = local_programs("worker", [], processes=2, environment={})
    programs.append(slurm_program("worker", [], processes=2, environment=SLURM, number=0))
    for program in programs:
        assert list(program.command).index("-P") < list(program.command).index("worker")
        assert program.environment["PYTHONSAFEPATH"] == "1"


def test_a_module_of_the_working_directory_is_not_run(tmp_path: Path) -> None:
    """Neither by a worker nor by the guardian, however the command itself was started."""
    (tmp_path / "json.py").write_text("raise SystemExit('run')")
    code = (
        "import subprocess, sys\n"
        "from moemodel.profiler.jobs.isolation import child_environment\n"
        "import os; os.chdir(sys.argv[1]); sys.path.insert(0, '')\n"
        "command = [sys.executable, '-P', '-c', 'import json; print(json.__file__)']\n"
        "sys.exit(subprocess.run(command, env=child_environment(os.environ)).returncode)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) not in done.stdout
    assert clock_control.child_environment is child_environment
