"""The golden test of a backend's layer: it passes for the plain layer, and fails for one that is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moemodel.model.architecture.spec import Moe
from moemodel.model.plan.routing import RoutingSpec
from moemodel.profiler.backends.torch_native.mixture import Mixture
from moemodel.profiler.backends.torch_native.strategy import WHOLE
from tests.profiler.backends.golden import assert_like_plain

_BLOCK = Moe(experts=8, top_k=2, width=16, activation="silu", gated=True)


def _mixture(block: Moe, hidden: int, routing: RoutingSpec) -> nn.Module:
    return Mixture(block, block, hidden, WHOLE, routing)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gated", [True, False])
def test_the_plain_layer_is_like_the_definition(dtype: torch.dtype, gated: bool) -> None:
    block = Moe(experts=8, top_k=2, width=16, activation="silu" if gated else "gelu", gated=gated)
    assert_like_plain(_mixture, block, RoutingSpec(), dtype, "cpu", 24)


class _Foreign(nn.Module):
    """A layer that keeps its weights in a form of its own: experts first, transposed."""

    def __init__(self, block: Moe, hidden: int, routing: RoutingSpec) -> None:
        super().__init__()
        self._inner = Mixture(block, block, hidden, WHOLE, routing)
        self.records = self._inner.records

    def forward(self, x_TD: Tensor) -> Tensor:
        out: Tensor = self._inner(x_TD)
        return out

    def load_reference(self, router_ED: Tensor, up_EDF: Tensor, down_EFD: Tensor) -> None:
        with torch.no_grad():
            self._inner.router.weight.copy_(router_ED)
            self._inner.experts.up_EDF.copy_(up_EDF)
            self._inner.experts.down_EFD.copy_(down_EFD)

    def reference_gradients(self) -> list[Any]:
        return [p.grad for p in self._inner.parameters()]


def test_a_foreign_layer_is_loaded_and_asked_through_its_own_methods() -> None:
    assert_like_plain(_Foreign, _BLOCK, RoutingSpec(), torch.float32, "cpu", 24)


def _unweighted(block: Moe, hidden: int, routing: RoutingSpec) -> nn.Module:
    layer = _mixture(block, hidden, routing)
    layer.register_forward_hook(lambda _, __, out: 1.001 * out)
    return layer


def _more_chosen(block: Moe, hidden: int, routing: RoutingSpec) -> nn.Module:
    layer: Any = _mixture(block, hidden, routing)
    layer.register_forward_hook(
        lambda *_: layer.records.append(layer.records[-1].__class__(layer.records[-1].counts_E + 1))
    )
    return layer


class _NoRouterGradient(_Foreign):
    def reference_gradients(self) -> list[Any]:
        router, up, down = super().reference_gradients()
        return [torch.zeros_like(router), up, down]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (_unweighted, "output: off by 0.001 of"),
        (_more_chosen, "rows of experts: found"),
        (_NoRouterGradient, "gradient of router: off by 1 of"),
    ],
)
def test_a_wrong_layer_is_told_in_what(wrong: Any, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        assert_like_plain(wrong, _BLOCK, RoutingSpec(), torch.float32, "cpu", 24)
