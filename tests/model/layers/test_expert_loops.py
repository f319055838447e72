"""What loops over experts make the host do, held to the code that is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Moe
from moemodel.model.frameworks.torch_native import TORCH
from moemodel.model.layers.base import MicroBatch
from moemodel.model.layers.expert_loops import Loop, with_expert_loop
from moemodel.model.layers.moe import MoeBlock
from moemodel.model.plan.batch import batch_of
from moemodel.model.results.crossover import SIZES, architecture_name, plan_of
from moemodel.profiler.studies.perceptrons import build


class Operators(TorchDispatchMode):
    """Counts operators that the interpreter calls, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def operators(run: Callable[[], object]) -> int:
    with torch.no_grad(), Operators() as counted:
        run()
    return counted.count


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("loop", ["every", "chosen"])
def test_operators_are_those_of_the_code(size: str, loop: Loop) -> None:
    architecture = read_architecture(architecture_name(size, loop))
    layer = architecture.decoder[0]
    block = layer.feed_forward
    assert isinstance(block, Moe)
    narrow = replace(architecture, decoder=(replace(layer, feed_forward=replace(block, width=8)),))
    model = build(narrow, torch.device("cpu"))[loop]
    x_BD = torch.randn(512, architecture.hidden)
    batch = batch_of(plan_of(size, loop, "h100-sxm-80gb"))
    micro = MicroBatch.of(batch, with_expert_loop(TORCH, loop, block), "fp32")
    said = MoeBlock(spec=block, hidden=architecture.hidden).forward_kernels(micro)
    assert operators(lambda: model(x_BD)) == said[0]
