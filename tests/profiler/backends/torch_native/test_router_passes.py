"""What is recorded of routers, and how their losses, here made up by a test's block, join the backward pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from moemodel.model.architecture.spec import Architecture, Attention, Layer, Mlp, Moe
from moemodel.model.plan.routing import RoutingSpec
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.torch_native.layer import Making
from moemodel.profiler.backends.torch_native.mixture import Mixture
from moemodel.profiler.backends.torch_native.model import DecoderModel, build_model, reference_weights
from moemodel.profiler.backends.torch_native.router_passes import attach, entropy_of
from moemodel.profiler.backends.torch_native.strategy import ShardingStrategy
from moemodel.profiler.backends.torch_native.trainer import Trainer

_BLOCK = Moe(experts=4, top_k=2, width=16, activation="silu", gated=True)
_LAYER = Layer(attentions=(Attention(heads=2, kv_heads=2, head_dim=8),), feed_forward=_BLOCK, norm="rms")
_DENSE = replace(_LAYER, feed_forward=Mlp(width=16, activation="silu", gated=True))
_ARCHITECTURE = Architecture(
    name="tiny", hidden=16, vocab=32, embedding_width=16, tied=False, decoder=(_DENSE, _LAYER, _LAYER)
)


class _WithLoss(Mixture):
    """Adds the mean square of the router's weights, whose gradient is known: 2 w / n."""

    def forward(self, x_TD: Tensor) -> Tensor:
        out_TD = super().forward(x_TD)
        loss = self.router.weight.square().mean()
        self.records.append(replace(self.records.pop(), router_loss=loss))
        return out_TD


def _model(mixture: Any = Mixture, **options: Any) -> DecoderModel:
    making = Making(mixture=mixture, **options)
    return build_model(_ARCHITECTURE, device="cpu", dtype=torch.float32, making=making)


def _ids() -> Tensor:
    return torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(0))


def _gradients(model: DecoderModel) -> dict[str, Tensor]:
    model(_ids()[:, :-1], _ids()[:, 1:]).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_router_loss_reaches_its_gradient_once(recompute: Literal["none", "selective", "full"]) -> None:
    plain, model = _gradients(_model()), _model(_WithLoss, recompute=recompute, passes=4)
    weights = dict(model.named_parameters())
    for name, gradient in _gradients(model).items():
        added = 2 * weights[name].detach() / weights[name].numel() / 4 if "router" in name else 0
        torch.testing.assert_close(gradient, plain[name] + added, msg=name)


def test_the_loss_that_is_returned_is_the_task_s_alone() -> None:
    tokens, targets = _ids()[:, :-1], _ids()[:, 1:]
    assert torch.equal(_model(_WithLoss)(tokens, targets), _model()(tokens, targets))


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_pass_that_is_repeated_is_recorded_once(recompute: Literal["none", "selective", "full"]) -> None:
    model = _model(_WithLoss, recompute=recompute)
    _gradients(model)
    passes = model.routing_passes()
    assert [(layer, len(records)) for layer, records in passes] == [(1, 1), (2, 1)]
    assert all(not r.router_loss.requires_grad for _, records in passes for r in records if r.router_loss is not None)


def test_router_losses_are_summed_over_layers_and_averaged_over_a_step_s_passes() -> None:
    model = _model(_WithLoss, passes=2)
    assert model.router_loss() is None
    for _ in range(3):
        _gradients(model)
    expected = sum(float(p.detach().square().mean()) for n, p in model.named_parameters() if "router" in n)
    found = model.router_loss()
    assert found is not None
    assert float(found) == pytest.approx(expected)
    assert _model().router_loss() is None


def test_an_attached_loss_changes_no_value() -> None:
    x, loss = torch.randn(3, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    y = attach(x, loss, 0.25)
    assert torch.equal(y, x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(3))
    assert float(loss.grad) == 0.25


def test_entropy_is_that_of_even_and_of_certain_routers() -> None:
    assert float(entropy_of(torch.full((3, 8), 1 / 8))) == pytest.approx(torch.tensor(8.0).log())
    assert float(entropy_of(torch.eye(4))) == 0


# --- a run -----------------------------------------------------------------------------------------------------------


def _run(**options: Any) -> TrainingRun:
    settings: dict[str, Any] = {"seq": 8, "micro_batch": 2, "micro_batches": 2, "dtype": "float32"}
    return TrainingRun(name="tiny", architecture=_ARCHITECTURE, **settings | options)


def test_a_run_says_what_its_routers_did_in_the_last_step() -> None:
    trainer = Trainer(_run(), torch.device("cpu"))
    trainer.record_entropies(True)
    for _ in range(3):
        trainer.step()
    found = trainer.statistics()
    assert [each.layer for each in found.routing] == [1, 2]
    for each in found.routing:
        assert int(each.rows_E.sum()) == 2 * 2 * 8 * _BLOCK.top_k
        assert int(each.dropped) == 0
        assert 0 < float(each.entropy) <= torch.tensor(4.0).log() + 1e-6
    assert found.router_loss is None
    assert float(found.task_loss or 0) == pytest.approx(trainer.loss())


def test_entropy_is_recorded_on_demand_alone() -> None:
    trainer = Trainer(_run(), torch.device("cpu"))
    for wanted in (False, True, False):
        trainer.record_entropies(wanted)
        trainer.step()
        assert all(torch.isfinite(each.entropy) == wanted for each in trainer.statistics().routing)


def test_a_run_of_another_layer_says_its_loss() -> None:
    trainer = Trainer(_run(), torch.device("cpu"), _WithLoss)
    expected = sum(float(p.detach().square().mean()) for n, p in trainer.model.named_parameters() if "router" in n)
    trainer.step()
    assert float(trainer.statistics().router_loss or 0) == pytest.approx(expected)


# --- the slot --------------------------------------------------------------------------------------------------------


class _Foreign(nn.Module):
    """Keeps what it is loaded with."""

    def __init__(self, block: Moe, held: Moe, hidden: int, sharding: ShardingStrategy, routing: RoutingSpec) -> None:
        super().__init__()
        self.inner = Mixture(block, held, hidden, sharding, routing)
        self.records = self.inner.records

    def load_reference(self, *weights: Tensor) -> None:
        for parameter, weight in zip(self.inner.parameters(), weights, strict=True):
            parameter.data.copy_(weight)

    def forward(self, x_TD: Tensor) -> Tensor:
        out: Tensor = self.inner(x_TD)
        return out


def test_a_foreign_block_starts_from_the_weights_of_the_plain_one() -> None:
    plain, foreign = _model(), _model(_Foreign)
    tokens, targets = _ids()[:, :-1], _ids()[:, 1:]
    assert torch.equal(plain(tokens, targets), foreign(tokens, targets))
    assert [len(passes) for _, passes in foreign.routing_passes()] == [1, 1]
    block: Any = plain.layers[1].feed_forward
    router_ED, up_EDF, down_EFD = reference_weights(plain, 1, 0)
    assert torch.equal(block.router.weight, router_ED)
    assert torch.equal(block.experts.up_EDF, up_EDF)
    assert torch.equal(block.experts.down_EFD, down_EFD)
