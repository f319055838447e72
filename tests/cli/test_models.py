"""`moemodel models`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import yaml
from click.testing import Result

from moemodel.model.architecture.hf_config import list_architectures

Run = Callable[..., Result]


def test_models(moemodel: Run) -> None:
    result = moemodel("models")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in list_architectures())
    assert "huggingface.co/allenai/OLMoE" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_models_for_machines(moemodel: Run) -> None:
    models = {model["name"]: model for model in json.loads(moemodel("models", "--json").stdout)}
    assert sorted(models) == list(list_architectures())
    assert models["olmoe-1b-7b"]["feed_forward"] == "64 experts, top 8"
    assert models["switch-base-128"]["encoder_layers"] == 12
    assert all(model["source"] for model in models.values())


def test_a_model_of_ones_own(moemodel: Run, folder: Path) -> None:
    config = {"model_type": "llama", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    (folder / "mine.json").write_text(json.dumps(config | layers))
    described = json.loads(moemodel("models", "mine.json", "--json").stdout)
    assert described[0]["layers"] == 2


def test_what_a_file_leaves_open_is_said_here_and_beside_every_prediction(
    moemodel: Run, folder: Path, calibration_file: Path
) -> None:
    config = {"model_type": "mistral", "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 1000}
    config |= {"num_nextn_predict_layers": 1, "novel": 7, "quantization_config": {"bits": 4}}
    (folder / "mine.json").write_text(json.dumps(config))
    said = (
        "2 of 2 layers have a sliding window of 1000 tokens",
        "1 multi-token-prediction module, left out here",
        "quantization_config: the file's weights are quantized",
        "Not read, since mistral has no such key: novel (7)",
    )
    printed = " ".join(moemodel("models", "mine.json").stdout.split())
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan | {"architecture": "mine.json"}))
    result = moemodel("predict", "plan.yaml", "--json", "--calibration", calibration_file)
    notes = json.loads(result.stdout)["notes"]
    for words in said:
        assert words in printed
        assert any(words in note for note in notes)
