"""Runs that a document asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moemodel.model.core.errors import InputError
from moemodel.profiler.runs.document import Cell, RunDocument, cells, on_gpu, read_run

PLAN = {
    "architecture": "olmoe-1b-7b",
    "layers": 2,
    "sequence_length": 128,
    "global_batch": 16,
    "cluster": {"gpu": "h100-sxm-80gb"},
}


def _cells(**keys: Any) -> list[Cell]:
    return cells(RunDocument.model_validate({"plan": PLAN, "samples": 64} | keys), Path())


def test_without_a_matrix_there_is_one_run() -> None:
    (cell,) = _cells()
    assert (cell.name, cell.steps, cell.seed) == ("repeat-0", 4, 0)
    assert cell.plan.global_batch == 16


def test_every_combination_is_a_run_with_the_same_samples() -> None:
    made = _cells(matrix={"backend": ["torch", "deepspeed"], "global_batch": [16, 32]})
    assert [(cell.plan.backend, cell.plan.global_batch, cell.steps) for cell in made] == [
        ("torch", 16, 4),
        ("torch", 32, 2),
        ("deepspeed", 16, 4),
        ("deepspeed", 32, 2),
    ]
    assert made[1].name == "backend-torch_global_batch-32"


def test_keys_that_belong_together_change_together() -> None:
    groups = [{"cluster.gpus": 1}, {"cluster.gpus": 2, "parallel.dp": 2, "parallel.ep": 2}]
    one, two = _cells(matrix={"gpus": groups})
    assert (one.plan.parallel.ep, two.plan.parallel.ep) == (1, 2)
    assert two.name == "gpus-2_dp-2_ep-2"


def test_repeats_come_one_after_another_with_seeds_of_their_own() -> None:
    made = _cells(matrix={"learning_rate": [1e-4, 3e-4]}, repeats=2, seed=5)
    assert [(cell.repeat, cell.learning_rate, cell.seed) for cell in made] == [
        (0, 1e-4, 5),
        (0, 3e-4, 5),
        (1, 1e-4, 6),
        (1, 3e-4, 6),
    ]


def test_another_gpu_takes_the_place_of_the_plans() -> None:
    document = RunDocument.model_validate({"plan": PLAN, "samples": 64})
    (cell,) = cells(on_gpu(document, "cpu"), Path())
    assert cell.plan.cluster.gpu == "cpu"
    assert on_gpu(document, None) == document


def test_a_plan_is_run_as_it_is_written_down() -> None:
    from moemodel.model.core.documents import parse_yaml
    from moemodel.model.plan.spec import Plan

    for cell in _cells(matrix={"micro_batch": [1, 2]}):
        assert parse_yaml(cell.plan_yaml, Plan, "plan") == cell.plan


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"samples": 60}, ["samples: found 60", "multiples", "64"]),
        ({"matrix": {"backend": ["torhc"]}}, ["run backend-torhc", "backend", "torch"]),
        ({"matrix": {"backend": []}}, ["matrix.backend", "one or more"]),
        ({"matrix": {"parallel.tp": [3]}}, ["run tp-3", "tp"]),
        ({"matrix": {"global_batch.x": [1]}}, ["matrix.global_batch.x", "parallel.dp"]),
        ({"matrix": {"learning_rate": ["fast"]}}, ["matrix.learning_rate", "numbers"]),
        ({"matrix": {"global_batch": [16, 16]}}, ["two runs", "global_batch-16"]),
        ({"matrix": {"seed": list(range(101)), "global_batch": [16] * 100}}, ["10,100 runs", "10,000"]),
        ({"sampels": 3}, ["sampels"]),
    ],
)
def test_what_is_no_run_is_refused(keys: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        _cells(**keys)
    for word in words:
        assert word in str(refused.value)


def test_a_file_that_a_plan_names_lies_beside_the_document(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "plan: {architecture: mine.json, sequence_length: 8, global_batch: 2, cluster: {gpu: cpu}}\nsamples: 2\n"
    )
    (cell,) = cells(read_run(file), tmp_path)
    assert cell.plan.architecture == str(tmp_path / "mine.json")
