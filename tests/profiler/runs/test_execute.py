"""Runs on the processor, from a document to their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from moemodel.model.core.documents import read_json
from moemodel.model.core.errors import InputError
from moemodel.model.records.run import RoutingRecord, RunManifest, RunResult, StepRecord
from moemodel.profiler.runs.document import Cell, RunDocument
from moemodel.profiler.runs.execute import MatrixResult, Progress, RunOptions, run_matrix

MOE = {
    "model_type": "olmoe",
    "architectures": ["OlmoeForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 256,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "norm_topk_prob": False,
}

LEARNED_POSITIONS = {
    "model_type": "opt",
    "architectures": ["OPTForCausalLM"],
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 64,
    "do_layer_norm_before": True,
    "activation_function": "relu",
}


def _document(folder: Path, **keys: Any) -> RunDocument:
    (folder / "config.json").write_text(json.dumps(MOE))
    plan = {
        "architecture": str(folder / "config.json"),
        "sequence_length": 16,
        "global_batch": 4,
        "micro_batch": 2,
        "cluster": {"gpu": "cpu"},
    }
    return RunDocument.model_validate({"plan": plan, "samples": 12, "warmup_steps": 1} | keys)


def _run(
    document: RunDocument,
    folder: Path,
    told: list[Progress] | None = None,
    predicted: Mapping[str, Any] | None = None,
    plan_folder: Path = Path(),
) -> MatrixResult:
    def predict(_: Cell) -> Mapping[str, Any] | None:
        return predicted

    listen = (lambda _: None) if told is None else told.append
    options = RunOptions(timeout_s=120)
    return run_matrix(document, folder, options, plan_folder=plan_folder, predict=predict, progress=listen)


def _beside(
    place: Path, told: list[Progress] | None = None, predicted: Mapping[str, Any] | None = None, **keys: Any
) -> MatrixResult:
    """A run whose document names a file that lies beside it, in another folder than the one that is worked in."""
    (place / "plans").mkdir(exist_ok=True)
    document = _document(place / "plans", matrix={"routing.balance_loss": [0.01]}, **keys)
    document = document.model_copy(update={"plan": document.plan | {"architecture": "config.json"}})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return _run(document, Path("out"), told, predicted, plan_folder=Path("plans"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MatrixResult, list[Progress]]:
    place, told = tmp_path_factory.mktemp("runs"), []
    return place, _beside(place, told, {"step": {"step_time_s": {"value": 1.0}}}), told


def test_a_run_is_done_and_says_what_it_did(done: tuple[Path, MatrixResult, list[Progress]]) -> None:
    place, result, told = done
    one = result.results["balance_loss-0.01"]
    assert (one.status, one.steps, one.samples) == ("done", 3, 12)
    assert one.duration_s is not None
    assert one.step_time_s == pytest.approx(one.duration_s / 3)
    folder = place / "out" / "balance_loss-0.01"
    manifest = read_json(folder / "manifest.json", RunManifest)
    assert manifest.cell == {"routing.balance_loss": 0.01}
    assert "torch" in manifest.versions
    assert json.loads((folder / "predicted.json").read_text())["step"]
    assert read_json(folder / "result.json", RunResult) == one
    assert told[-1].result == one


def test_every_step_has_its_phases_and_losses(done: tuple[Path, MatrixResult, list[Progress]]) -> None:
    folder = done[0] / "out" / "balance_loss-0.01"
    steps = [StepRecord.model_validate_json(line) for line in (folder / "steps-rank0.jsonl").read_text().splitlines()]
    assert [step.step for step in steps] == [0, 1, 2]
    for step in steps:
        assert step.time_s is not None
        assert step.forward_s is not None
        assert step.backward_s is not None
        assert step.optimizer_s is not None
        assert step.forward_s + step.backward_s + step.optimizer_s <= step.time_s * 1.001
        assert step.task_loss is not None
        assert 4.0 < step.task_loss < 8.0  # log 256 = 5.5, of a model that knows nothing
        assert step.router_loss is not None
        assert 0.005 < step.router_loss < 0.1  # 0.01 times two layers, each at least about 1


def test_every_routed_row_is_counted(done: tuple[Path, MatrixResult, list[Progress]]) -> None:
    folder = done[0] / "out" / "balance_loss-0.01"
    lines = (folder / "routing-rank0.jsonl").read_text().splitlines()
    rows = [RoutingRecord.model_validate_json(line) for line in lines]
    assert [(row.step, row.layer) for row in rows] == [(step, layer) for step in range(3) for layer in range(2)]
    for row in rows:
        assert sum(row.rows_E) == 4 * 16 * 2  # sequences, tokens, experts of a token
        assert len(row.rows_E) == 4
        assert row.dropped == 0
        assert (row.entropy is None) == (row.step > 0)  # of one step in sixteen
        assert row.entropy is None or 0 < row.entropy < 1.4  # log 4 = 1.39


def test_what_is_done_is_not_done_again(done: tuple[Path, MatrixResult, list[Progress]]) -> None:
    place, result, _ = done
    told: list[Progress] = []
    again = _beside(place, told)
    assert again.results == result.results
    assert [now.skipped for now in told] == [True]


def test_another_document_is_refused_and_nothing_is_lost(done: tuple[Path, MatrixResult, list[Progress]]) -> None:
    place = done[0]
    before = sorted(file.name for file in (place / "out").rglob("*"))
    with pytest.raises(InputError, match="found runs of another document, of other samples"):
        _beside(place, samples=8)
    assert sorted(file.name for file in (place / "out").rglob("*")) == before


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match=r"it holds other things, and no matrix\.json"):
        _run(_document(tmp_path), tmp_path / "out")


def test_a_refused_run_is_a_result_and_the_others_go_on(tmp_path: Path) -> None:
    document = _document(tmp_path, matrix={"sequence_length": [128, 16]}, samples=4)
    (tmp_path / "config.json").write_text(json.dumps(LEARNED_POSITIONS))
    result = _run(document, tmp_path / "out")
    refused, fine = result.results.values()
    assert refused.status == "refused"
    assert "128" in (refused.reason or "")
    assert not (refused.reason or "").startswith("sequence_length-128")  # the run's own name, said already
    assert fine.status == "done"
    assert not result.failed


def test_files_are_looked_for_beside_the_document(done: tuple[Path, MatrixResult, list[Progress]]) -> None:
    place, result, _ = done
    assert not (place / "config.json").exists()
    assert (place / "plans" / "config.json").exists()
    assert [one.status for one in result.results.values()] == ["done"]


def test_two_ranks_lose_what_one_loses(tmp_path: Path, done: tuple[Path, MatrixResult, list[Progress]]) -> None:
    """Before the first update: how the batch is cut, and what balances the router, is of no matter to it."""
    degrees = {"cluster.gpus": 2, "parallel.dp": 2, "parallel.ep": 2}
    document = _document(tmp_path, matrix={"gpus": [degrees]}, samples=4)
    document = document.model_copy(update={"plan": document.plan | {"micro_batch": 1}})
    (one,), (two,) = done[1].results.values(), _run(document, tmp_path / "out").results.values()
    assert (one.status, two.status) == ("done", "done")
    assert two.task_loss_first == pytest.approx(one.task_loss_first, rel=2e-3)  # bf16
    assert len(two.ranks) == 2
