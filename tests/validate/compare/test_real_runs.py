"""Folders that `moemodel run` really writes, on the processor, are what a comparison reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moemodel.profiler.runs.document import RunDocument
from moemodel.profiler.runs.execute import RunOptions, run_matrix
from moemodel.validation.compare.comparison import compare_folders

CONFIG = {
    "model_type": "olmoe", "architectures": ["OlmoeForCausalLM"], "hidden_size": 32, "intermediate_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4,
    "num_experts_per_tok": 2, "vocab_size": 256, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "tie_word_embeddings": False, "norm_topk_prob": False,
}  # fmt: skip


def test_two_repeats_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    plan = {"architecture": str(tmp_path / "config.json"), "sequence_length": 16, "global_batch": 4}
    asked = {"plan": plan | {"cluster": {"gpu": "cpu"}}, "samples": 12, "warmup_steps": 1, "repeats": 2}
    ran = run_matrix(RunDocument.model_validate(asked), tmp_path / "runs", RunOptions(timeout_s=120))
    results = list(ran.results.values())
    assert [result.status for result in results] == ["done", "done"]
    (cell,) = (found := compare_folders([tmp_path / "runs"])).cells
    assert found.samples == 12
    for name, values in (
        ("duration", [result.duration_s for result in results]),
        ("loss", [result.task_loss_last for result in results]),
    ):
        spread = cell.spread(name)
        assert spread is not None
        assert spread.runs == 2
        assert spread.mean == pytest.approx(sum(value or 0.0 for value in values) / 2)
    for run in cell.runs:
        assert run.run.routing is not None
        assert run.run.routing.rows_E(1, 3).sum() == 12 * 16 * 2  # sequences, tokens, experts of a token
