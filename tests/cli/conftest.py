"""A command line in an empty folder, with the synthetic calibration at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from moemodel.cli import main

PLAN = """\
name: small
architecture: opt-350m
sequence_length: 2048
global_batch: 64
micro_batch: 4
cluster: {gpu: h100-sxm-80gb, gpus: 8}
parallel: {dp: 8, zero_stage: 1}
tokens: 1e10
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that commands run in, with `plan.yaml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text(PLAN, encoding="utf-8")
    return tmp_path


@pytest.fixture
def moemodel(folder: Path) -> Callable[..., Result]:  # noqa: ARG001 - commands run there
    """Runs `moemodel ...`."""

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="moemodel")

    return run


@pytest.fixture
def environment() -> dict[str, str]:
    """For another Python: this checkout is on its path, whether it is installed or not."""
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
