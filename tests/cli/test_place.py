"""`moemodel place`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result

Run = Callable[..., Result]


@pytest.fixture
def plan(tmp_path: Path) -> str:
    document = {
        "name": "small",
        "architecture": "olmoe-1b-7b",
        "layers": 2,
        "sequence_length": 2048,
        "global_batch": 16,
        "backend": "megatron",
        "cluster": {"gpu": "h100-sxm-80gb", "gpus": 8},
        "parallel": {"dp": 8, "ep": 8, "zero_stage": 1},
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_before_and_after_stand_beside_each_other(moemodel: Run, plan: str) -> None:
    result = moemodel("place", plan, "--copies", "8")
    assert result.exit_code == 0
    assert "small: experts placed (greedy, 8 copies a layer)" in result.stdout
    for name in ("time", "energy of all GPUs", "memory of the fullest GPU", "all-to-all", "gradients of copies"):
        assert name in result.stdout
    assert "No loads were given" in result.stdout
    after = json.loads(moemodel("place", plan, "--copies", "8", "--json").stdout)["after"]
    assert f"{after['memory_B'] / 1e9:.3g} GB" in result.stdout
    assert f"{after['step_time_s'] * 1e3:.3g} ms" in result.stdout


def test_every_rank_of_every_layer_is_in_json(moemodel: Run, plan: str) -> None:
    pytest.importorskip("scipy")
    result = moemodel("place", plan, "--exact", "--seconds", "0.5", "--json")
    document = json.loads(result.stdout)
    assert document["method"] == "exact"
    assert [layer["layer"] for layer in document["layers"]] == [0, 1]
    for layer in document["layers"]:
        assert sorted(expert for rank in layer["ranks"] for expert in rank) == list(range(64))
        assert 0 <= layer["gap"] < 0.05
    assert document["after"]["step_time_s"] <= document["before"]["step_time_s"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--copies", "3"), "copies: found 3; allowed: multiples of ep 8 up to 448"),
        (("--loads", "none.jsonl"), "none.jsonl"),
        (("--seconds", "0"), "--seconds"),
    ],
)
def test_a_bad_input_is_said(moemodel: Run, plan: str, arguments: tuple[str, ...], words: str) -> None:
    result = moemodel("place", plan, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
