"""`moemodel import`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from click.testing import Result

ARGUMENTS = """\
--num-layers 12 --hidden-size 512 --num-attention-heads 8 --seq-length 1024 --max-position-embeddings 1024
--micro-batch-size 4 --global-batch-size 32 --bf16 --tensor-model-parallel-size 2 --no-rope-fusion --frobnicate 3
"""


def test_arguments_become_a_plan_that_predicts(moemodel: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "launch.sh").write_text(ARGUMENTS, encoding="utf-8")
    folder = tmp_path / "made"
    command = ("import", "megatron", tmp_path / "launch.sh", "--gpus", "8", "-o", folder)
    made = moemodel(*command)
    assert made.exit_code == 0, made.output
    assert "--frobnicate" in made.output
    assert "--no-rope-fusion" in made.output
    assert "# --frobnicate: not known here" in (folder / "plan.yaml").read_text(encoding="utf-8")
    assert moemodel("predict", folder / "plan.yaml").exit_code == 0
    assert moemodel(*command).exit_code == 2
    assert moemodel(*command, "--force").exit_code == 0


def test_a_run_that_no_plan_can_be_of_is_refused(moemodel: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "args.txt").write_text(ARGUMENTS + "--encoder-num-layers 12", encoding="utf-8")
    refused = moemodel("import", "megatron", tmp_path / "args.txt", "-o", tmp_path / "made")
    assert refused.exit_code == 2
    assert not (tmp_path / "made").exists()
