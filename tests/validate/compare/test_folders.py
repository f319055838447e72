"""What is read, and what a bad folder is told: place, what was found, what is allowed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moemodel.model.core.errors import InputError
from moemodel.validation.compare.folders import read_runs
from tests.run_folders import MadeRun, write_matrix, write_run

ONE = MadeRun(samples=32)


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _cut(file: Path, characters: int) -> None:
    file.write_text(file.read_text()[:-characters])


def _cut_line(file: Path) -> None:
    """At its end, so that every line that is left is whole."""
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


def _add(file: Path, **record: Any) -> None:
    text = json.dumps({"layer": 0, "dropped": 0, "entropy": None} | record)
    file.write_text(f"{file.read_text()}{text}\n")


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "one", ONE)]).runs
    assert run.done
    assert [step.step for step in run.steps[0]] == [0, 1, 2, 3]
    assert run.model == "olmoe-1b-7b"
    assert run.routing is not None
    assert list(run.routing.layers) == [0, 1]
    assert run.forecast is not None
    assert set(run.forecast.values) == {"step_time", "energy", "memory"}
    assert run.matrix is None


def test_a_matrix_is_all_its_runs_and_says_what_has_not_begun(tmp_path: Path) -> None:
    folder = write_matrix(tmp_path / "m", [ONE, MadeRun(samples=32, batch=16)], asked=3)
    (folder / "job").mkdir()
    found = read_runs([folder])
    assert [run.matrix for run in found.runs] == ["m", "m"]
    assert found.notes == ("Matrix m: 2 of 6 runs have begun.",)


def test_rows_of_ranks_are_added(tmp_path: Path) -> None:
    """Each rank has half of the rows; together they are those of all tokens."""
    (run,) = read_runs([write_run(tmp_path / "two", MadeRun(samples=16, gpus=2))]).runs
    assert run.routing is not None
    for layer in run.routing.layers.values():
        assert layer.rows_SE.sum(axis=1).tolist() == [8 * 256 * 8] * 2


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda f: shutil.rmtree(f), "no such folder; allowed: folders that `moemodel run` wrote"),
        (lambda f: (f / "manifest.json").unlink(), "found neither manifest.json nor matrix.json; allowed:"),
        (lambda f: _edit(f / "manifest.json", schema_version=2),
         "schema_version: found 2, of a newer moemodel; allowed: up to 1"),
        (lambda f: _edit(f / "manifest.json", color="red"), "unknown key 'color'; allowed here: .*samples"),
        (lambda f: _cut(f / "manifest.json", 9), r"manifest.json:\d+: not JSON"),
        (lambda f: _edit(f / "manifest.json", plan_yaml="architecture: nothing"),
         "manifest.json: plan_yaml:1: the key"),
        (lambda f: (f / "manifest.json").write_text("[1]"), r"manifest.json: found \[1\]; allowed: an object"),
        (lambda f: _cut(f / "steps-rank0.jsonl", 30),
         "steps-rank0.jsonl:4:1: not JSON: .*; the line ends in '.*'; allowed: whole lines"),
        (lambda f: _cut_line(f / "steps-rank0.jsonl"),
         "found 3 steps; allowed: 4, from 0 on"),
        (lambda f: (f / "steps-rank0.jsonl").unlink(), "steps-rank0.jsonl: no such file; allowed: one for each rank"),
        (lambda f: _cut(f / "routing-rank0.jsonl", 20), "routing-rank0.jsonl:8:1: not JSON"),
        (lambda f: _cut_line(f / "routing-rank0.jsonl"),
         "layer 1: found routing of 3 steps; allowed: all 4"),
        (lambda f: _add(f / "routing-rank0.jsonl", step=9, rows_E=[1]),
         "routing-rank0.jsonl:9: step: found 9; allowed: 0 to 3"),
        (lambda f: _add(f / "routing-rank0.jsonl", step=1, rows_E=[1]),
         "routing-rank0.jsonl:9: rows_E: found 1 experts; allowed: 64"),
        (lambda f: _add(f / "routing-rank0.jsonl", step=1, rows_E=[-1]),
         "routing-rank0.jsonl:9: rows_E.0: found -1; .*greater than or equal to 0"),
        (lambda f: _edit(f / "result.json", status="fine"), "status: found 'fine'; input should be 'done'"),
        (lambda f: _edit(f / "result.json", ranks=[]), "ranks: found 0; allowed: 1, as the plan has GPUs"),
        (lambda f: _edit(f / "predicted.json", step={"step_time_s": {"value": "fast"}}),
         "predicted.json: step.step_time_s.value: found 'fast'; allowed: a number, or null"),
        (lambda f: _edit(f / "predicted.json", memory=7),
         "predicted.json: memory: found 7; allowed: an object, or null"),
        (lambda f: _edit(f / "predicted.json", step={"step_time_s": {"value": 1, "interval": [1]}}),
         r"step.step_time_s.interval: found \[1\]; allowed: two numbers"),
    ],
)  # fmt: skip
def test_a_bad_run_is_told_where_it_is_bad(tmp_path: Path, break_it: Callable[[Path], Any], said: str) -> None:
    folder = write_run(tmp_path / "one", ONE)
    break_it(folder)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=said) as error:
        read_runs([folder])
    assert str(tmp_path) in str(error.value)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = write_run(tmp_path / "one", ONE) / "manifest.json"
    with pytest.raises(InputError, match="found a file; allowed: a folder"):
        read_runs([file])
    with pytest.raises(InputError, match="found no folder to compare"):
        read_runs([])


def test_every_run_is_given_once(tmp_path: Path) -> None:
    """Directly, through its matrix, or as a copy."""
    folder = write_matrix(tmp_path / "m", [ONE])
    one = folder / ONE.name
    for given in ([one, one], [folder, one], [one, folder / ".." / "m"]):
        with pytest.raises(InputError, match=r"found twice, in .*; allowed: every run once"):
            read_runs(given)
    shutil.copytree(folder, tmp_path / "copy")
    with pytest.raises(InputError, match=f"found the run that is in {re.escape(str(one))} too, begun at 2026"):
        read_runs([folder, tmp_path / "copy"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "other"}, "name: found 'other'; allowed: 'backend-torch"),
        (
            {"samples": 64},
            "samples: found 64, so it is a run of another matrix; allowed: 32, as .*matrix.json asks for",
        ),
        ({"cell": {"seed": 1}}, "cell: found 'seed', so it is a run of another matrix; allowed: architecture, backend"),
    ],
)
def test_a_run_of_another_matrix_is_told(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = write_matrix(tmp_path / "m", [ONE])
    _edit(folder / ONE.name / "manifest.json", **changes)
    with pytest.raises(InputError, match=said):
        read_runs([folder])


def test_a_matrix_of_nothing_and_a_newer_one(tmp_path: Path) -> None:
    folder = write_matrix(tmp_path / "m", [ONE])
    _edit(folder / "matrix.json", schema_version=7)
    with pytest.raises(InputError, match=r"matrix.json: schema_version: found 7, of a newer"):
        read_runs([folder])
    _edit(folder / "matrix.json", schema_version=1)
    shutil.rmtree(folder / ONE.name)
    with pytest.raises(InputError, match="found no run that has begun; allowed: one or more"):
        read_runs([folder])


def test_steps_of_a_run_that_was_cut_short_are_not_looked_at(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", ONE)
    (folder / "result.json").unlink()
    _cut(folder / "steps-rank0.jsonl", 30)
    (run,) = read_runs([folder]).runs
    assert run.result is None
    assert run.steps == ()
