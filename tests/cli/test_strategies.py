"""`moemodel strategies`: table, JSON, plans, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

import moemodel
from moemodel.cli import main

_PLAN = {
    "name": "job",
    "architecture": "opt-350m",
    "sequence_length": 2048,
    "global_batch": 16,
    "micro_batch": 4,
    "cluster": {"gpu": "h100-sxm-80gb", "gpus": 2},
    "parallel": {"pp": 2},
}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(_PLAN), encoding="utf-8")
    return path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["strategies", *map(str, arguments)])


def test_a_table_and_plans_that_can_be_predicted(plan: Path, tmp_path: Path) -> None:
    done = run(plan, "--longer", "0.05", "--write-plans", tmp_path / "plans")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines() if line]
    names = [line[0] for line in lines if line[0] in ("max-clock", "one-clock", "envpipe", "perseus", "joint")]
    assert names == ["max-clock", "one-clock", "envpipe", "perseus", "joint"] * 2
    assert "never measured on a real card" in " ".join(done.stdout.split())
    written = sorted(path.stem for path in (tmp_path / "plans").iterdir())
    assert written == ["joint", "max-clock", "one-clock", "power-limit"]
    first, best = (moemodel.predict(tmp_path / "plans" / f"{name}.yaml") for name in ("max-clock", "joint"))
    assert best.it_energy_J.value < first.it_energy_J.value
    assert best.step_time_s.value <= 1.05 * first.step_time_s.value * (1 + 1e-9)


def test_json_is_what_python_gives(plan: Path) -> None:
    done = run(plan, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads(json.dumps(moemodel.strategies(plan).to_json()))


def test_mistakes_end_with_what_is_allowed(plan: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "a").touch()
    for arguments, message in (
        (("--longer", "11"), "longer: found 11; allowed: 0 to 10"),
        (("--longer", "-1"), "-1"),
        (("--write-plans", full), "is not empty; name a new folder"),
    ):
        done = run(plan, *arguments)
        assert done.exit_code == 2
        assert message in done.stderr
