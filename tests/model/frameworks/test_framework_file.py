"""Frameworks that a user describes in a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import moemodel
from moemodel.model.core.errors import InputError
from moemodel.model.frameworks.base import HostFactors
from moemodel.model.frameworks.registry import framework_of
from moemodel.model.plan.spec import read_plan

FILE = """
name: our-trainer
like: megatron-core
fused_kernels: [rms_norm, layer_norm]
attention: flash2
overlapped: [gradients]
host_factors: {forward: 1.5, backward: 2.0}
gradient_wire_B: 4
precisions: {fp8: {cast_B: 4.0}}
"""
PLAN: dict[str, Any] = {
    "architecture": "opt-350m",
    "sequence_length": 2048,
    "global_batch": 8,
    "backend": "ours.yaml",
    "cluster": {"gpu": "h100-sxm-80gb", "gpus": 2},
    "parallel": {"dp": 2},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a framework and a plan that names it, and a working directory elsewhere."""
    (tmp_path / "ours.yaml").write_text(FILE)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "ours.yaml").write_text("name: another\nlike: torch\n")
    monkeypatch.chdir(elsewhere)
    return tmp_path


def test_a_file_differs_in_what_it_says(folder: Path) -> None:
    core = framework_of("megatron-core")
    found = framework_of(str(folder / "ours.yaml"))
    assert found == replace(
        core,
        name="our-trainer",
        fused_kernels=frozenset({"rms_norm", "layer_norm"}),
        attention="flash2",
        overlapped=frozenset({"gradients"}),
        host_factors=HostFactors(forward=1.5, backward=2.0),
        gradient_wire_B=4.0,
        precisions={**core.precisions, "fp8": replace(core.precisions["fp8"], cast_B=4.0)},
    )


def test_a_plan_finds_it_beside_itself(folder: Path) -> None:
    plan = read_plan(folder / "plan.yaml")
    assert framework_of(plan.backend).name == "our-trainer"
    answer = moemodel.predict(folder / "plan.yaml")
    as_known = moemodel.predict(PLAN | {"backend": "megatron-core"})
    assert answer.step_time_s.value != as_known.step_time_s.value
    assert "No run of backend our-trainer was ever held" in " ".join(answer.notes)
    again = moemodel.predict(plan)
    assert again.step_time_s.value == answer.step_time_s.value


def test_a_plan_of_no_file_finds_it_where_one_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert moemodel.predict(PLAN).step_time_s.value == moemodel.predict("plan.yaml").step_time_s.value


def test_one_that_says_nothing_is_the_known_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "ours.yaml").write_text("name: ours\nlike: megatron\n")
    ours, known = moemodel.predict(PLAN), moemodel.predict(PLAN | {"backend": "megatron"})
    assert ours.step_time_s.value == known.step_time_s.value


def test_a_search_takes_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    document = {key: value for key, value in PLAN.items() if key != "parallel"}
    document |= {"search": {"tp": 1, "pp": 1, "cp": 1, "micro_batch": 4, "recompute": "none"}}
    found = moemodel.search(document)
    assert framework_of(found.front[0].plan.backend).name == "our-trainer"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: ours\nlike: megatron-cor\n", "like: found 'megatron-cor'; allowed: .*megatron-core"),
        ("name: torch\nlike: megatron\n", "name: found 'torch', which is another framework's"),
        ("name: ours\nlike: megatron\nfused: []\n", "ours.yaml:3: unknown key 'fused'; allowed here: .*fused_kernels"),
        ("name: ours\nlike: megatron\nattention: flash9\n", "attention: found 'flash9'"),
        (
            "name: ours\nlike: megatron\nprecisions: {fp8: {cast_B: 4}}\n",
            "precisions: found fp8; allowed .*: bf16, bf16-m",
        ),
        ("like: megatron\n", "'name'"),
        ("name: ours\nlike: megatron\npass_calls: -5\n", "pass_calls: found -5; allowed: 0 or more"),
        ("name: ours\nlike: transformers\ndrained_calls: [46, -3]\n", r"drained_calls\[1\]: found -3; allowed: 0"),
    ],
)
def test_mistakes_are_named(text: str, message: str, folder: Path) -> None:
    (folder / "ours.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_plan(folder / "plan.yaml")


def test_a_file_that_is_missing_is_named_by_where_it_should_be(folder: Path) -> None:
    (folder / "ours.yaml").unlink()
    (folder / "elsewhere" / "ours.yaml").unlink()
    with pytest.raises(InputError, match=r"backend: .*ours\.yaml: no such file"):
        read_plan(folder / "plan.yaml")


def test_rules_of_the_known_one_hold(folder: Path) -> None:
    (folder / "plan.yaml").write_text(yaml.safe_dump(PLAN | {"precision": "fp32"}))
    with pytest.raises(InputError, match="precision: found fp32 with backend"):
        read_plan(folder / "plan.yaml")
