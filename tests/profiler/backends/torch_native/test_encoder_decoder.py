"""Encoder-decoders against T5 written out: one query, one key, one head at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moemodel.model.architecture.hf_config import read_architecture
from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.errors import InputError
from moemodel.model.plan.routing import RoutingSpec
from moemodel.model.plan.spec import Plan
from moemodel.profiler.backends.base import TrainingRun
from moemodel.profiler.backends.torch_native.layer import Making
from moemodel.profiler.backends.torch_native.model import build_model
from moemodel.profiler.backends.torch_native.relative_bias import buckets
from moemodel.profiler.backends.torch_native.supported_plans import check_runs
from moemodel.profiler.backends.torch_native.trainer import Trainer
from moemodel.profiler.data.spec import DataSpec
from tests.profiler.backends.torch_native.ranks_parity import ARCHITECTURES

_SWITCH = ARCHITECTURES["switch-base"]


def _roomy(architecture: Architecture) -> Architecture:
    def layer(one: Any) -> Any:
        block = one.feed_forward
        return replace(one, feed_forward=replace(block, capacity_factor=8.0)) if hasattr(block, "experts") else one

    return replace(
        architecture,
        encoder=tuple(layer(one) for one in architecture.encoder),
        decoder=tuple(layer(one) for one in architecture.decoder),
    )


# --- buckets ---------------------------------------------------------------------------------------------------------


def _bucket(key: int, query: int, number: int, *, causal: bool) -> int:
    """As the code of T5 says it, of one pair: half of the buckets for a distance each, then logarithmically to 128."""
    distance, offset = query - key, 0
    if causal:
        distance = max(distance, 0)
    else:
        number //= 2
        offset, distance = (number, -distance) if distance < 0 else (0, distance)
    exact = number // 2
    if distance < exact:
        return offset + distance
    return offset + min(number - 1, exact + int(math.log(distance / exact) / math.log(128 / exact) * (number - exact)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("number", [8, 32])
def test_buckets_are_t5_s(causal: bool, number: int) -> None:
    found = buckets(150, 150, number, causal=causal, device=torch.device("cpu"))
    off = sum(
        int(found[query, key]) != _bucket(key, query, number, causal=causal)
        for query in range(0, 150, 7)
        for key in range(150)
    )
    assert off == 0


# --- the model -------------------------------------------------------------------------------------------------------


def _norm(x_SD: Tensor, weight_D: Tensor) -> Tensor:
    return x_SD / (x_SD.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight_D


class _T5:
    """The definition, one sequence at a time, without a kernel in common."""

    def __init__(self, model: Any, architecture: Architecture) -> None:
        self.w = dict(model.named_parameters())
        self.a = architecture

    def loss(self, tokens: list[int], targets: list[int]) -> Tensor:
        memory = self._stack("encoder_layers", self.w["embedding_VW"][tokens], "encoder_bias_UH", None)
        memory = _norm(memory, self.w["encoder_norm.weight"])
        x_SD = self._stack("layers", self.w["embedding_VW"][[0, *targets[:-1]]], "decoder_bias_UH", memory)
        x_SD = _norm(x_SD, self.w["norm.weight"]) / self.a.hidden**0.5
        logits_SV = x_SD @ self.w["embedding_VW"].T
        rows = [logits_SV[i].logsumexp(0) - logits_SV[i, target] for i, target in enumerate(targets)]
        return torch.stack(rows).mean()

    def _stack(self, name: str, x_SD: Tensor, bias: str, memory: Tensor | None) -> Tensor:
        for i in range(2):
            at = f"{name}.{i}"
            own = self._attend(f"{at}.attentions.0", _norm(x_SD, self.w[f"{at}.norms.0.weight"]), None, bias)
            x_SD = x_SD + own
            if memory is not None:
                normed = _norm(x_SD, self.w[f"{at}.norms.1.weight"])
                x_SD = x_SD + self._attend(f"{at}.attentions.1", normed, memory, None)
            last = _norm(x_SD, self.w[f"{at}.norms.{1 if memory is None else 2}.weight"])
            x_SD = x_SD + torch.stack([self._feed_forward(f"{at}.feed_forward", x_D) for x_D in last])
        return x_SD

    def _attend(self, at: str, x_SD: Tensor, memory: Tensor | None, bias: str | None) -> Tensor:
        source = x_SD if memory is None else memory
        q, k, v = (
            (s @ self.w[f"{at}.{name}.weight"].T).view(len(s), 4, 4)
            for name, s in (("q", x_SD), ("k", source), ("v", source))
        )
        causal = bias == "decoder_bias_UH"
        rows = []
        for i in range(len(x_SD)):
            heads = []
            for h in range(4):
                seen = range(i + 1) if causal else range(len(source))
                scores = []
                for j in seen:
                    added = 0.0 if bias is None else self.w[bias][_bucket(j, i, 8, causal=causal), h]
                    scores.append(q[i, h] @ k[j, h] + added)
                share = torch.stack(scores).softmax(0)
                heads.append(sum(share[n] * v[j, h] for n, j in enumerate(seen)))
            rows.append(torch.cat(heads))  # type: ignore[arg-type]
        return torch.stack(rows) @ self.w[f"{at}.o.weight"].T

    def _feed_forward(self, at: str, x_D: Tensor) -> Tensor:
        if f"{at}.up.weight" in self.w:
            out: Tensor = (x_D @ self.w[f"{at}.up.weight"].T).clamp(min=0) @ self.w[f"{at}.down.weight"].T
            return out
        share_E = (self.w[f"{at}.router.weight"] @ x_D).softmax(0)
        e = int(share_E.argmax())
        hidden = (x_D @ self.w[f"{at}.experts.up_EDF"][e]).clamp(min=0)
        return share_E[e] * (hidden @ self.w[f"{at}.experts.down_EFD"][e])


@pytest.mark.parametrize("pad", [False, True])
def test_a_switch_transformer_is_its_definition(pad: bool) -> None:
    torch.manual_seed(0)
    architecture = _roomy(_SWITCH)
    making = Making(routing=RoutingSpec(pad=pad))
    model = build_model(architecture, device="cpu", dtype=torch.float32, making=making)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    tokens, targets = torch.randint(62, (2, 9)), torch.randint(62, (2, 5))
    wanted = list(model.parameters())
    oracle = _T5(model, architecture)
    expected = sum(oracle.loss(a, b) for a, b in zip(tokens.tolist(), targets.tolist(), strict=True)) / 2
    assert isinstance(expected, Tensor)
    reference = torch.autograd.grad(expected, wanted)
    found = model(tokens, targets)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for gradient, other in zip(torch.autograd.grad(found, wanted), reference, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5)


def test_layers_are_numbered_the_encoder_s_first() -> None:
    run = TrainingRun(
        name="tiny", architecture=_SWITCH, seq=16, micro_batch=2, dtype="float32", data=DataSpec(tokens=4096)
    )
    trainer = Trainer(run, torch.device("cpu"))
    trainer.step()
    routing = trainer.statistics().routing
    assert [each.layer for each in routing] == [1, 3]
    assert int(routing[0].rows_E.sum()) == 2 * 16
    assert int(routing[1].rows_E.sum()) == 2 * 5  # what is hidden of 17 tokens: 3, with a sentinel and an end


def test_span_corruption_is_learnt() -> None:
    run = TrainingRun(
        name="tiny", architecture=_SWITCH, seq=16, micro_batch=8, dtype="float32", lr=1e-2, data=DataSpec(tokens=512)
    )
    trainer = Trainer(run, torch.device("cpu"))
    losses = []
    for _ in range(30):
        trainer.step()
        losses.append(trainer.loss())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("parallel", "said"),
    [
        ({"pp": 2}, "parallel.pp: found 2; no pipeline cuts an encoder-decoder yet, allowed: 1"),
        ({"tp": 2, "sequence_parallel": True}, "parallel.sequence_parallel: found true, with an encoder-decoder"),
    ],
)
def test_plans_that_cut_an_encoder_decoder_are_refused(parallel: dict[str, Any], said: str) -> None:
    plan = Plan.model_validate(
        {
            "name": "p",
            "architecture": "switch-base-128",
            "sequence_length": 512,
            "global_batch": 16,
            "cluster": {"gpu": "h100-sxm-80gb", "gpus": 2},
            "parallel": parallel,
        }
    )
    with pytest.raises(InputError, match=said):
        check_runs(plan, read_architecture("switch-base-128"))
