"""FastMoE on a GPU: its layer is the definition's, its training the torch backend's."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from moemodel.model.architecture.spec import Architecture, Attention, Layer, Moe
from moemodel.model.plan.routing import RoutingSpec, routed_architecture
from moemodel.profiler.backends.base import TrainingRun, builder
from tests.profiler.backends.golden import assert_like_plain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU HERE: FastMoE's layers are not tested"),
    pytest.mark.skipif(importlib.util.find_spec("fmoe") is None, reason="FastMoE is not installed"),
    pytest.mark.filterwarnings("default"),  # of FastMoE and of what it imports
]

_BLOCK = Moe(experts=8, top_k=2, width=64, activation="silu", gated=True)
_GPU = torch.device("cuda", 0)
# Qwen3-MoE's kind of layer: grouped queries, a norm for each head, gated experts.
_ATTENTION = Attention(heads=8, kv_heads=2, head_dim=64, qk_norm="per_head")
_LAYER = Layer(attentions=(_ATTENTION,), feed_forward=replace(_BLOCK, top_k=4, width=192), norm="rms")
_TINY = Architecture(name="tiny", hidden=256, vocab=1024, embedding_width=256, tied=False, decoder=(_LAYER,) * 4)


def _made(block: Moe, hidden: int, routing: RoutingSpec) -> nn.Module:
    from moemodel.profiler.backends.fastmoe.mixture import FastMoeMixture
    from moemodel.profiler.backends.torch_native.strategy import WHOLE

    return FastMoeMixture(block, block, hidden, WHOLE, routing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "block",
    [
        _BLOCK,
        replace(_BLOCK, top_k=4),
        replace(_BLOCK, gated=False, activation="gelu"),
        replace(_BLOCK, router="switch_top1", top_k=1),
    ],
    ids=["top2", "top4", "plain", "switch"],
)
def test_the_layer_is_like_the_definition(block: Moe, dtype: torch.dtype) -> None:
    assert_like_plain(_made, block, RoutingSpec(), dtype, _GPU, 64, hidden=128)


def _run(routing: RoutingSpec, **changes: Any) -> TrainingRun:
    settings: dict[str, Any] = {"seq": 256, "micro_batch": 2, "micro_batches": 2, "lr": 1e-3} | changes
    return TrainingRun(name="tiny", architecture=routed_architecture(_TINY, routing), routing=routing, **settings)


def _losses(backend: str, run: TrainingRun) -> list[float]:
    found = builder(backend)(run, _GPU)
    assert found is not None
    losses = []
    for _ in range(4):
        found.step(lambda _: None)
        losses.append(found.loss())
    found.close()
    return losses


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16"])
def test_training_is_that_of_the_torch_backend(precision: Any) -> None:
    run = _run(RoutingSpec(), precision=precision)
    assert _losses("fastmoe", run) == pytest.approx(_losses("torch", run), rel=2e-3)


@pytest.mark.parametrize(
    "routing",
    [
        RoutingSpec(router="noisy_topk", balance_loss=0.01),
        RoutingSpec(router="gshard_top2", top_k=2, balance_loss=0.01, capacity_factor=0.75),
        RoutingSpec(router="switch_top1", top_k=1, balance_loss=0.01, capacity_factor=0.75, jitter=0.1),
    ],
    ids=lambda routing: routing.router,
)
def test_its_other_gates_train_and_say_what_they_drop(routing: RoutingSpec) -> None:
    run = _run(routing)
    found = builder("fastmoe")(run, _GPU)
    assert found is not None
    found.record_entropies(True)
    found.step(lambda _: None)
    first = found.loss()
    for _ in range(30):
        found.step(lambda _: None)
    assert found.loss() < first
    told = found.statistics()
    assert told.router_loss is not None
    assert float(told.router_loss) > 0
    record = told.routing[0]
    rows = 2 * 2 * 256 * run.architecture.decoder[0].feed_forward.top_k  # type: ignore[union-attr]
    assert int(record.rows_E.sum()) == rows
    assert 0 < float(record.entropy) < 2.08  # ln 8
    assert (int(record.dropped) > 0) == (routing.capacity_factor is not None)
    found.close()
