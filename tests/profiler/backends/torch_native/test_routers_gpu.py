"""What only a GPU can show: its grouped products with rows of every kind, masked attention in bf16, and whole steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from moemodel.model.architecture.spec import Moe
from moemodel.model.plan.routing import RoutingSpec
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.torch_native.mixture import Mixture
from moemodel.profiler.backends.torch_native.strategy import WHOLE
from moemodel.profiler.backends.torch_native.trainer import Trainer
from moemodel.profiler.data.spec import DataSpec
from tests.profiler.backends.golden import assert_like_plain
from tests.profiler.backends.torch_native.ranks_parity import ARCHITECTURES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU HERE: routers are not tested on one"),
]

_ROUTERS = {"softmax_topk": 2, "switch_top1": 1, "gshard_top2": 2, "noisy_topk": 2, "sigmoid_topk": 3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("capacity_factor", "pad"), [(None, None), (8.0, False), (8.0, True)])
@pytest.mark.parametrize("router", _ROUTERS)
def test_a_router_is_like_its_definition(router: Any, capacity_factor: float | None, pad: Any, dtype: Any) -> None:
    block = Moe(
        experts=8,
        top_k=_ROUTERS[router],
        width=32,
        activation="silu",
        gated=True,
        router=router,
        capacity_factor=capacity_factor,
    )
    assert_like_plain(
        lambda block, hidden, routing: Mixture(block, block, hidden, WHOLE, routing),
        block,
        RoutingSpec(pad=pad),
        dtype,
        "cuda",
        64,
    )


def _losses(device: str, dtype: str, **options: Any) -> list[float]:
    settings: dict[str, Any] = {"seq": 32, "micro_batch": 4, "micro_batches": 2, "lr": 1e-2} | options
    # bf16 without masters, so that weights can be set; those drawn on a GPU are others than those of a processor
    run = TrainingRun(name="tiny", dtype=dtype, precision="bf16", **settings)
    trainer = Trainer(run, torch.device(device))
    trainer.model.load_state_dict(Trainer(run, torch.device("cpu")).model.state_dict())
    losses = []
    for _ in range(5):
        trainer.step()
        losses.append(trainer.loss())
    statistics = trainer.statistics()
    assert all(int(found.dropped) < int(found.rows_E.sum()) for found in statistics.routing)
    return losses


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("name", ["olmoe", "sigmoid", "switch-base"])
def test_steps_lose_what_they_lose_on_a_processor(name: str, recompute: Any) -> None:
    options = {
        "architecture": ARCHITECTURES[name],
        "recompute": recompute,
        "data": DataSpec(tokens=4096),
        "routing": RoutingSpec(balance_loss=0.01, z_loss=0.001, pad=True if name == "switch-base" else None),
    }
    found, expected = (_losses(device, "bfloat16", **options) for device in ("cuda", "cpu"))
    assert found == pytest.approx(expected, rel=0.02)  # bf16 rounds by 2^-8, and choices near a tie turn


@pytest.mark.parametrize("router", ["noisy_topk", "gshard_top2", "expert_choice"])
def test_routers_with_chance_train(router: Any) -> None:
    layer = ARCHITECTURES["olmoe"].decoder[0]
    assert isinstance(layer.feed_forward, Moe)
    one = replace(layer, feed_forward=replace(layer.feed_forward, router=router, capacity_factor=1.25))
    architecture = replace(ARCHITECTURES["olmoe"], decoder=(one,) * 2)
    losses = _losses("cuda", "bfloat16", architecture=architecture, recompute="full")
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0] + 0.1
