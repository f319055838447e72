"""Megatron Core's MoE layer is like the definition: same weights, same tokens, same output and gradients."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from moemodel.model.architecture.spec import Moe
from moemodel.model.plan.routing import RoutingSpec
from tests.profiler.backends.golden import assert_like_plain
from tests.profiler.backends.megatron_core.here import EXPERTS, needs_megatron, tiny
from tests.profiler.backends.megatron_core.on_cpu import megatron_on_cpu

pytestmark = [needs_megatron, pytest.mark.filterwarnings("ignore")]

_ROUTINGS = {
    "normalised": (EXPERTS, RoutingSpec()),
    "as they are": (EXPERTS, RoutingSpec(normalize=False)),
    "top-1": (replace(EXPERTS, top_k=1), RoutingSpec(normalize=False)),
    "sigmoid": (replace(EXPERTS, router="sigmoid_topk"), RoutingSpec()),
    "plain": (replace(EXPERTS, activation="gelu", gated=False), RoutingSpec()),
    "capacity": (replace(EXPERTS, capacity_factor=8.0), RoutingSpec()),
    "padded": (replace(EXPERTS, capacity_factor=4.0), RoutingSpec(pad=True)),  # as much as Megatron Core can
}
_GPU = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NO GPU HERE: Megatron Core's layer is not tested on one"
)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, _GPU])])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """With the groups of one rank open on it."""
    device = torch.device(request.param)
    with warnings.catch_warnings(), megatron_on_cpu() if device.type == "cpu" else nullcontext():
        warnings.simplefilter("ignore")
        from moemodel.profiler.backends.megatron_core.groups import one_rank

        try:
            with one_rank(device):
                yield device
        finally:
            dist.destroy_process_group()  # that of the next test may be of another device


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", _ROUTINGS)
def test_the_layer_is_like_the_definition(name: str, dtype: torch.dtype, device: torch.device) -> None:
    block, routing = _ROUTINGS[name]
    if routing.normalize is None and block.router == "softmax_topk":
        routing = RoutingSpec(normalize=True, pad=routing.pad)  # as Megatron Core does

    def build(block: Moe, hidden: int, routing: RoutingSpec) -> Any:
        from moemodel.profiler.backends.megatron_core.mixture import MegatronMixture

        return MegatronMixture(tiny(block, layers=1, hidden=hidden, embedding_width=hidden), routing, dtype)

    assert_like_plain(build, block, routing, dtype, device, 24)


def test_rows_beyond_the_capacity_are_dropped_and_counted(device: torch.device) -> None:
    from moemodel.profiler.backends.megatron_core.mixture import MegatronMixture

    block = replace(EXPERTS, capacity_factor=0.5)
    layer: Any = MegatronMixture(tiny(block, layers=1), RoutingSpec(), torch.float32)
    weights = (torch.randn(8, 32), torch.randn(8, 32, 32), torch.randn(8, 16, 32))
    layer.load_reference(*(w.to(device) for w in weights))
    layer(torch.randn(64, 32, device=device))
    record = layer.records[-1]
    room = 64 * 2 // 8 // 2  # half of the mean
    assert int(record.counts_E.sum()) == 64 * 2
    assert int(record.dropped) == int((record.counts_E - room).clamp(min=0).sum()) > 0
