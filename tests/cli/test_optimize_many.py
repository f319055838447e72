"""`moemodel optimize` with several searches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from moemodel.cli import main

_SEARCH = """
name: {name}
architecture: opt-350m
layers: 4
sequence_length: 2048
global_batch: 64
cluster: {{gpu: h100-sxm-80gb, gpus: {gpus}}}
search: {{tp: 1, pp: 1, cp: 1, zero_stage: 1, micro_batch: 4, recompute: none}}
keep: 2
"""


@pytest.fixture
def searches(tmp_path: Path) -> list[str]:
    for name, gpus in (("small", 4), ("large", 8)):
        (tmp_path / f"{name}.yaml").write_text(_SEARCH.format(name=name, gpus=gpus), encoding="utf-8")
    return [str(tmp_path / "small.yaml"), str(tmp_path / "large.yaml")]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["optimize", *arguments])


def test_each_has_a_file_and_a_report_of_its_own(searches: list[str], tmp_path: Path) -> None:
    out = tmp_path / "results"
    found = run(*searches, "-o", str(out))
    assert found.exit_code == 0, found.output
    for name, gpus in (("small", 4), ("large", 8)):
        stored = json.loads((out / f"{name}-moemodel-search.json").read_text(encoding="utf-8"))
        assert stored["search"]["cluster"]["gpus"] == [gpus]
        assert name in found.output


def test_json_is_one_list(searches: list[str], tmp_path: Path) -> None:
    found = run(*searches, "-o", str(tmp_path), "--json")
    assert [one["search"]["name"] for one in json.loads(found.stdout)] == ["small", "large"]


def test_an_infeasible_one_does_not_keep_the_others(searches: list[str], tmp_path: Path) -> None:
    path = Path(searches[0])
    path.write_text(path.read_text(encoding="utf-8") + "limits: {step_time_s: 1.0e-6}\n", encoding="utf-8")
    found = run(*searches, "-o", str(tmp_path))
    assert found.exit_code == 2
    assert "small.yaml: no plan is feasible" in found.output
    assert (tmp_path / "large-moemodel-search.json").exists()
    assert not (tmp_path / "small-moemodel-search.json").exists()


def test_what_does_not_go_together_is_refused(searches: list[str], tmp_path: Path) -> None:
    assert "goes with several searches" in run(searches[0], "--jobs", "2").output
    assert "goes with one SEARCH alone" in run(*searches, "--explain", "plan.yaml").output
    again = run(searches[0], searches[0], "-o", str(tmp_path))
    assert again.exit_code == 2
    assert "two would write small-moemodel-search.json" in again.output
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "is a file; of several searches, name a folder" in run(*searches, "-o", str(tmp_path / "file")).output
