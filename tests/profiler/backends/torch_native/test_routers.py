"""Routers, their losses and capacities, each against the formula of its paper, written out one token at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moemodel.model.architecture.spec import Architecture, Attention, Layer, Moe
from moemodel.model.core.errors import InputError
from moemodel.model.plan.routing import RoutingSpec
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.torch_native.capacity import capacity_of
from moemodel.profiler.backends.torch_native.mixture import Mixture
from moemodel.profiler.backends.torch_native.routers import Router, jittered, noisy
from moemodel.profiler.backends.torch_native.strategy import WHOLE
from moemodel.profiler.backends.torch_native.supported_models import check_routing
from moemodel.profiler.backends.torch_native.trainer import Trainer
from tests.profiler.backends.golden import assert_like_plain

_T, _E, _D = 24, 4, 16
_BLOCK = Moe(experts=_E, top_k=2, width=16, activation="silu", gated=True)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _mixture(block: Moe, routing: RoutingSpec | None = None, hidden: int = _D) -> Any:
    layer = Mixture(block, block, hidden, WHOLE, routing or RoutingSpec())
    for name, parameter in layer.named_parameters():
        torch.nn.init.normal_(parameter, std=1.0 if "router" in name else 0.3)
    return layer


def _tokens() -> Tensor:
    return torch.randn(_T, _D)


def _expert(layer: Any, e: int, x_D: Tensor) -> Tensor:
    gate, up = (x_D @ layer.experts.up_EDF[e]).chunk(2)
    out_D: Tensor = (torch.nn.functional.silu(gate) * up) @ layer.experts.down_EFD[e]
    return out_D


# --- choices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("router", "top_k", "normalize"),
    [
        ("softmax_topk", 2, True),
        ("softmax_topk", 2, False),
        ("softmax_topk", 3, None),
        ("switch_top1", 1, None),
        ("gshard_top2", 2, None),
        ("noisy_topk", 2, None),
        ("sigmoid_topk", 2, None),
        ("sigmoid_topk", 3, False),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("capacity_factor", [None, 8.0])
def test_a_router_without_noise_is_like_its_definition(
    router: Any, top_k: int, normalize: bool | None, temperature: float, capacity_factor: float | None
) -> None:
    block = replace(_BLOCK, router=router, top_k=top_k, experts=8, capacity_factor=capacity_factor)
    routing = RoutingSpec(normalize=normalize, temperature=temperature, pad=capacity_factor is not None)
    assert_like_plain(
        lambda block, hidden, routing: Mixture(block, block, hidden, WHOLE, routing),
        block,
        routing,
        torch.float32,
        "cpu",
        24,
    )


def test_noise_has_the_deviation_that_its_own_weights_say() -> None:
    """Shazeer et al. 2017, equation 4: z + N(0, 1) softplus(z')."""
    logit_TE, noise_TE = torch.zeros(200_000, 2), torch.tensor([0.5, -1.0]).expand(200_000, 2)
    found = noisy(logit_TE, noise_TE)
    expected = torch.tensor([math.log(1 + math.exp(0.5)), math.log(1 + math.exp(-1.0))])
    torch.testing.assert_close(found.std(0), expected, rtol=0.02, atol=0)
    torch.testing.assert_close(found.mean(0), torch.zeros(2), rtol=0, atol=0.01)


def test_noise_is_of_training_alone_and_its_weights_learn() -> None:
    layer, x_TD = _mixture(replace(_BLOCK, router="noisy_topk")), _tokens()
    layer(x_TD).sum().backward()
    assert layer.noise.weight.grad.abs().max() > 0
    assert not torch.equal(layer(x_TD), layer(x_TD))
    layer.eval()
    assert torch.equal(layer(x_TD), layer(x_TD))


def test_weights_of_a_noisy_router_are_a_softmax_over_the_kept_ones() -> None:
    """Shazeer et al. 2017, equations 3 and 5: G = softmax(KeepTopK(H, k))."""
    logit_TE = torch.randn(_T, _E)
    choice = Router(replace(_BLOCK, router="noisy_topk"), RoutingSpec()).choose(logit_TE)
    kept_Tk = logit_TE.sort(-1, descending=True).values[:, :2]
    torch.testing.assert_close(choice.weight_Tk, kept_Tk.exp() / kept_Tk.exp().sum(-1, keepdim=True))


def test_gshard_sends_the_second_expert_with_twice_its_weight_for_a_chance() -> None:
    """Lepikhin et al. 2020, algorithm 1: weights 0.9 and 0.1 send one in five; 0.6 and 0.4 four in five."""
    rule = Router(replace(_BLOCK, router="gshard_top2", experts=2), RoutingSpec())
    for second, share in ((0.1, 0.2), (0.4, 0.8)):
        logit_TE = torch.tensor([1 - second, second]).log().expand(50_000, 2)
        sent_Tk = rule.choose(logit_TE, random=True).sent_Tk
        assert sent_Tk is not None
        assert sent_Tk[:, 0].all()
        assert float(sent_Tk[:, 1].float().mean()) == pytest.approx(share, abs=0.01)


def test_what_gshard_does_not_send_is_left_out_and_not_counted() -> None:
    layer, x_TD = _mixture(replace(_BLOCK, router="gshard_top2")), _tokens()
    torch.manual_seed(3)
    found = layer(x_TD)
    choice = layer._rule.choose(layer.router(x_TD))
    torch.manual_seed(3)
    chance = torch.rand(_T)
    expected = []
    for t in range(_T):
        (g1, g2), (e1, e2) = choice.weight_Tk[t], choice.expert_Tk[t].tolist()
        second = g2 * _expert(layer, e2, x_TD[t]) if 2 * g2 > chance[t] else 0
        expected.append(g1 * _expert(layer, e1, x_TD[t]) + second)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
    sent = _T + int((2 * choice.weight_Tk[:, 1] > chance).sum())
    assert int(layer.records[-1].counts_E.sum()) == sent < 2 * _T
    assert int(layer.records[-1].dropped) == 0


@pytest.mark.parametrize("factor", [None, 1.5])
def test_experts_choose_their_best_tokens(factor: float | None) -> None:
    """Zhou et al. 2022, section 3.2: S = softmax(X W), each expert's n c / e best of S^T, weighted by S."""
    layer, x_TD = _mixture(replace(_BLOCK, router="expert_choice", capacity_factor=factor)), _tokens()
    share_TE = (x_TD @ layer.router.weight.T).softmax(-1)
    rows = math.ceil(_T * 2 * (factor or 1.0) / _E)
    expected = [torch.zeros(_D) for _ in range(_T)]
    for e in range(_E):
        best = sorted(range(_T), key=lambda t: -float(share_TE[t, e].detach()))[:rows]
        for t in best:
            expected[t] = expected[t] + share_TE[t, e] * _expert(layer, e, x_TD[t])
    torch.testing.assert_close(layer(x_TD), torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert layer.records[-1].counts_E.tolist() == [rows] * _E


def test_jitter_is_of_the_router_s_input_and_of_training_alone() -> None:
    ones = torch.ones(100_000)
    found = jittered(ones, 0.1)
    assert 0.9 <= float(found.min()) < 0.901
    assert 1.099 < float(found.max()) <= 1.1
    layer, x_TD = _mixture(_BLOCK, RoutingSpec(jitter=0.5)), _tokens()
    assert not torch.equal(layer(x_TD), layer(x_TD))
    layer.eval()
    assert torch.equal(layer(x_TD), _mixture_like(layer)(x_TD))


def _mixture_like(layer: Any) -> Any:
    plain = _mixture(_BLOCK)
    plain.load_state_dict(layer.state_dict())
    return plain


# --- capacity --------------------------------------------------------------------------------------------------------


def test_capacity_is_the_papers() -> None:
    """Fedus et al. 2022, equation 3: tokens per batch over experts, times the factor."""
    assert capacity_of(64, 1, 8, 1.0) == 8
    assert capacity_of(64, 1, 8, 1.25) == 10
    assert capacity_of(10, 2, 8, 1.0) == 3
    assert capacity_of(4, 1, 64, 1.0) == 1
    assert capacity_of(8, 2, 2, 5.0) == 8  # a token goes to an expert once


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize(("router", "top_k"), [("switch_top1", 1), ("softmax_topk", 2)])
def test_what_finds_no_room_is_dropped_first_choices_before_second_ones(router: Any, top_k: int, pad: bool) -> None:
    block = replace(_BLOCK, router=router, top_k=top_k, capacity_factor=0.75)
    layer, x_TD = _mixture(block, RoutingSpec(pad=pad)), _tokens().requires_grad_()
    choice = layer._rule.choose(layer.router(x_TD))
    room, full, dropped = math.ceil(0.75 * _T * top_k / _E), dict.fromkeys(range(_E), 0), 0
    rows = [torch.zeros(_D) for _ in range(_T)]
    for k in range(top_k):
        for t in range(_T):
            e = int(choice.expert_Tk[t, k])
            full[e] += 1
            if full[e] <= room:
                rows[t] = rows[t] + choice.weight_Tk[t, k] * _expert(layer, e, x_TD[t])
            else:
                dropped += 1
    assert dropped > 0
    expected, out_TD, wanted = torch.stack(rows), torch.randn(_T, _D), [x_TD, *layer.parameters()]
    gradients = torch.autograd.grad(expected, wanted, out_TD)
    found = layer(x_TD)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for gradient, reference in zip(torch.autograd.grad(found, wanted, out_TD), gradients, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-5)
    record = layer.records[-1]
    assert record.counts_E.tolist() == list(full.values())
    assert int(record.dropped) == dropped


# --- losses ----------------------------------------------------------------------------------------------------------


def _loss_of(block: Moe, **routing: Any) -> tuple[Any, Tensor, float]:
    layer, x_TD = _mixture(block, RoutingSpec(**routing)), _tokens()
    layer(x_TD)
    return layer, x_TD @ layer.router.weight.T, float(layer.records[-1].router_loss.detach())


@pytest.mark.parametrize(("router", "top_k"), [("switch_top1", 1), ("softmax_topk", 2), ("noisy_topk", 2)])
def test_the_balancing_loss_is_fedus_s(router: Any, top_k: int) -> None:
    """alpha N sum f P: f the share of choices that fell on an expert, P the mean probability (equations 4 to 6)."""
    layer = _mixture(replace(_BLOCK, router=router, top_k=top_k), RoutingSpec(balance_loss=0.01)).eval()
    x_TD = _tokens()
    layer(x_TD)
    share_TE = [[float(p) for p in row] for row in (x_TD @ layer.router.weight.T).softmax(-1).tolist()]
    fell, mean = [0.0] * _E, [0.0] * _E
    for row in share_TE:
        for e in sorted(range(_E), key=lambda e: -row[e])[:top_k]:
            fell[e] += 1 / (_T * top_k)
        for e in range(_E):
            mean[e] += row[e] / _T
    expected = 0.01 * _E * sum(f * p for f, p in zip(fell, mean, strict=True))
    assert float(layer.records[-1].router_loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_gshard_s_balancing_loss_counts_first_choices() -> None:
    """Lepikhin et al. 2020, algorithm 1: the mean of c_e / S m_e, c_e first choices; here times E^2, one if even."""
    _, logit_TE, found = _loss_of(replace(_BLOCK, router="gshard_top2"), balance_loss=1.0)
    first = logit_TE.argmax(-1).tolist()
    mean = logit_TE.softmax(-1).mean(0).tolist()
    expected = sum(first.count(e) / _T * mean[e] for e in range(_E)) / _E * _E**2
    assert found == pytest.approx(expected, rel=1e-5)


def test_sigmoids_balance_by_their_shares() -> None:
    """DeepSeek-V3, equations 17 to 20: P the mean of s over the sum of a token's s."""
    _, logit_TE, found = _loss_of(replace(_BLOCK, router="sigmoid_topk"), balance_loss=1.0)
    s_TE = 1 / (1 + (-logit_TE).exp())
    chosen = logit_TE.topk(2).indices.flatten().tolist()
    expected = sum(
        _E / (2 * _T) * chosen.count(e) * float((s_TE[:, e] / s_TE.sum(-1)).mean().detach()) for e in range(_E)
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_even_routers_have_a_balancing_loss_of_one() -> None:
    layer = _mixture(_BLOCK, RoutingSpec(balance_loss=1.0))
    with torch.no_grad():
        layer.router.weight.zero_()
    layer(_tokens())
    assert float(layer.records[-1].router_loss.detach()) == pytest.approx(1.0)


@pytest.mark.parametrize("router", ["softmax_topk", "expert_choice"])
def test_the_z_loss_is_zoph_s(router: Any) -> None:
    """Mean over tokens of (ln sum exp z)^2 (equation 5)."""
    _, logit_TE, found = _loss_of(replace(_BLOCK, router=router), z_loss=1e-3)
    squares = [math.log(sum(math.exp(z) for z in row)) ** 2 for row in logit_TE.tolist()]
    assert found == pytest.approx(1e-3 * sum(squares) / _T, rel=1e-5)


def test_losses_add_up() -> None:
    block = replace(_BLOCK, router="softmax_topk")
    layer, x_TD, losses = _mixture(block), _tokens(), []
    for options in ({"balance_loss": 0.1}, {"z_loss": 0.2}, {"balance_loss": 0.1, "z_loss": 0.2}):
        layer._rule = Router(block, RoutingSpec(**options))
        layer(x_TD)
        losses.append(float(layer.records[-1].router_loss.detach()))
    assert losses[0] + losses[1] == pytest.approx(losses[2])


# --- biases ----------------------------------------------------------------------------------------------------------


def test_biases_move_the_choice_and_not_the_weights() -> None:
    """Wang et al. 2024, equation 3: chosen by s + b, weighted by s."""
    logit_TE, bias_E = torch.randn(_T, _E), torch.tensor([5.0, 0.0, 0.0, -5.0])
    choice = Router(replace(_BLOCK, router="sigmoid_topk"), RoutingSpec(normalize=False)).choose(
        logit_TE, bias_E=bias_E
    )
    assert (choice.expert_Tk == 0).any(-1).all()
    assert not (choice.expert_Tk == 3).any()
    torch.testing.assert_close(choice.weight_Tk, logit_TE.sigmoid().gather(-1, choice.expert_Tk))


def _run(block: Moe, **routing: Any) -> TrainingRun:
    layer = Layer(attentions=(Attention(heads=2, kv_heads=2, head_dim=8),), feed_forward=block, norm="rms")
    architecture = Architecture(name="tiny", hidden=16, vocab=32, embedding_width=16, tied=False, decoder=(layer,) * 2)
    return TrainingRun(
        name="tiny",
        architecture=architecture,
        seq=8,
        micro_batch=2,
        micro_batches=2,
        dtype="float32",
        routing=RoutingSpec(**routing),
    )


def test_biases_move_once_a_step_by_all_its_choices() -> None:
    trainer = Trainer(_run(_BLOCK, bias_rate=0.125), torch.device("cpu"))
    expected = [torch.zeros(_E), torch.zeros(_E)]
    blocks: list[Any] = [layer.feed_forward for layer in trainer.model.layers]  # type: ignore[union-attr]
    for _ in range(3):
        trainer.step()
        for bias_E, found in zip(expected, trainer.statistics().routing, strict=True):
            counts = found.rows_E.tolist()
            bias_E += torch.tensor([0.125 * math.copysign(1, 16 - c) if c != 16 else 0.0 for c in counts])
        for bias_E, block in zip(expected, blocks, strict=True):
            assert torch.equal(block.balance.bias_E, bias_E)


def test_biases_even_out_what_experts_are_chosen_for() -> None:
    """A rate that is large against the scores' spread, and a router that learns nothing: the busiest expert changes."""
    loads = {}
    for rate in (0.0, 0.05):
        trainer = Trainer(replace(_run(_BLOCK, bias_rate=rate), lr=0.0), torch.device("cpu"))
        total = torch.zeros(_E)
        for step in range(30):
            trainer.step()
            total += sum(found.rows_E for found in trainer.statistics().routing) * (step >= 10)
        loads[rate] = float(total.max() / total.mean())
    assert loads[0.05] - 1 < 0.5 * (loads[0.0] - 1)


# --- beside ----------------------------------------------------------------------------------------------------------


def test_a_residual_block_is_weighted_against_the_experts() -> None:
    layer, x_TD = _mixture(_BLOCK, RoutingSpec(residual=True)), _tokens()
    plain = _mixture(_BLOCK)
    plain.load_state_dict(layer.state_dict(), strict=False)
    coefficients = (x_TD @ layer.coefficient.weight.T + layer.coefficient.bias).softmax(-1)
    beside = torch.nn.functional.silu(x_TD @ layer.residual.gate.weight.T) * (x_TD @ layer.residual.up.weight.T)
    expected = coefficients[:, :1] * plain(x_TD) + coefficients[:, 1:] * (beside @ layer.residual.down.weight.T)
    torch.testing.assert_close(layer(x_TD), expected, rtol=1e-4, atol=1e-5)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
@pytest.mark.parametrize(
    ("block", "routing"),
    [
        (replace(_BLOCK, router="noisy_topk"), {"balance_loss": 0.01, "jitter": 0.01}),
        (replace(_BLOCK, router="gshard_top2", capacity_factor=1.0), {"balance_loss": 0.01, "pad": True}),
        (replace(_BLOCK, router="switch_top1", top_k=1, capacity_factor=1.0), {"balance_loss": 0.01, "z_loss": 0.001}),
    ],
)
def test_chance_is_the_same_when_a_layer_runs_again(block: Moe, routing: dict[str, Any], recompute: Any) -> None:
    """Losses of steps under recompute are those without: what is drawn again is what was drawn."""
    losses: list[list[float]] = []
    for way in ("none", recompute):
        trainer = Trainer(replace(_run(block, **routing), recompute=way, lr=1e-2), torch.device("cpu"))
        losses.append([])
        for _ in range(3):
            trainer.step()
            losses[-1] += [trainer.loss(), float(trainer.statistics().router_loss or 0)]
    assert losses[0] == pytest.approx(losses[1])


@pytest.mark.parametrize(
    ("changes", "routing", "said"),
    [
        ({"router": "switch_top1"}, {}, "routing.top_k: found 2 with router switch_top1; allowed: 1"),
        ({"router": "gshard_top2", "top_k": 1}, {}, "routing.top_k: found 1 with router gshard_top2; allowed: 2"),
        ({"router": "noisy_topk"}, {"normalize": False}, "routing.normalize: found false with router noisy_topk"),
        ({"router": "expert_choice"}, {"balance_loss": 0.01}, "routing.balance_loss: found 0.01 with router expert"),
        ({"router": "expert_choice"}, {"bias_rate": 0.01}, "routing.bias_rate: found 0.01 with router expert_choice"),
        ({"router": "expert_choice"}, {"normalize": True}, "routing.normalize: found true with router expert_choice"),
        ({}, {"pad": True}, "routing.pad: found true without a capacity"),
    ],
)
def test_routers_that_contradict_themselves_are_refused(
    changes: dict[str, Any], routing: dict[str, Any], said: str
) -> None:
    run = _run(replace(_BLOCK, **changes), **routing)
    with pytest.raises(InputError, match="tiny: .*" + said):
        check_routing(run.architecture, run.routing)
