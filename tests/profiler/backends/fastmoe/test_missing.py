"""Without a GPU or without FastMoE, its backend says what it needs."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.core.errors import InputError, MissingExtraError
from moemodel.profiler.backends.base import TrainingRun, builder

_RUN = TrainingRun(name="x", architecture=read_architecture("olmoe-1b-7b"), seq=8, micro_batch=1)


def test_it_runs_on_a_gpu_alone() -> None:
    with pytest.raises(InputError, match="x: the backend fastmoe: found the device cpu; allowed: cuda"):
        builder("fastmoe")(_RUN, torch.device("cpu"))


@pytest.mark.skipif(importlib.util.find_spec("fmoe") is not None, reason="FastMoE is installed")
def test_a_missing_framework_is_named_with_its_source() -> None:
    with pytest.raises(MissingExtraError, match=r"needs fmoe, .* build it from its source on a machine with CUDA"):
        builder("fastmoe")(_RUN, torch.device("cuda"))
