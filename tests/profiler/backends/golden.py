"""A Mixture-of-Experts block of any backend against the definition: token by token, in float64, sharing no code.

Shapes: T tokens, D hidden, E experts, k experts of a token, F width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from moemodel.model.architecture.spec import Moe
from moemodel.model.plan.routing import RoutingSpec

# Makes the block of a backend: (as the architecture has it, width of the model, what a plan asks of routers).
BuildLayer = Callable[[Moe, int, RoutingSpec], nn.Module]

# Largest deviation over the largest value, of a product of a few hundred summands: a few units in the last place, of
# bf16 2^-8, of float32 2^-24, on top of which come those of the router's scores.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}

_CLEAR = 0.25  # between two scores; bf16 rounds one of 16 by 0.03

_NORMALISED = {"softmax_topk": True, "gshard_top2": True, "noisy_topk": True, "sigmoid_topk": True}  # switch is not
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
}


class PlainMixture:
    """The definition: y_t = sum over a token's experts e of g_te f_e(x_t), nothing dropped, no noise.

    Args:
        block: its router one of softmax_topk, noisy_topk, switch_top1, gshard_top2, sigmoid_topk.
        routing: of it, `normalize` and `temperature` count.
        router_ED, up_EDF, down_EFD: its weights; of a gated block `up` holds the gate's columns first.
    """

    def __init__(self, block: Moe, routing: RoutingSpec, router_ED: Tensor, up_EDF: Tensor, down_EFD: Tensor) -> None:
        self._block, self._routing = block, routing
        self.weights = [w.detach().double().requires_grad_() for w in (router_ED, up_EDF, down_EFD)]

    def __call__(self, x_TD: Tensor) -> Tensor:
        return torch.stack([self._token(x_D) for x_D in x_TD])

    def chosen(self, x_D: Tensor) -> list[int]:
        """The experts of a token, best first."""
        scores_E = self._scores(x_D).tolist()
        return sorted(range(self._block.experts), key=lambda e: -scores_E[e])[: self._block.top_k]

    def _scores(self, x_D: Tensor) -> Tensor:
        logits_E = self.weights[0] @ x_D / self._routing.temperature
        if self._block.router == "sigmoid_topk":
            return 1 / (1 + torch.exp(-logits_E))
        powers_E = torch.exp(logits_E - logits_E.max())
        return powers_E / powers_E.sum()

    def _token(self, x_D: Tensor) -> Tensor:
        scores_E, chosen = self._scores(x_D), self.chosen(x_D)
        normalize = self._routing.normalize
        if normalize is None:
            normalize = _NORMALISED.get(self._block.router, False)
        total: Any = sum(scores_E[e] for e in chosen) if normalize else 1.0
        rows = [scores_E[e] / total * self._expert(e, x_D) for e in chosen]
        return torch.stack(rows).sum(0)

    def _expert(self, e: int, x_D: Tensor) -> Tensor:
        hidden = x_D @ self.weights[1][e]
        act = _ACTIVATIONS[self._block.activation]
        if self._block.gated:
            width = self._block.width
            return (act(hidden[:width]) * hidden[width:]) @ self.weights[2][e]
        return act(hidden) @ self.weights[2][e]


def assert_like_plain(
    build_layer: BuildLayer,
    block: Moe,
    routing: RoutingSpec,
    dtype: torch.dtype,
    device: torch.device | str,
    tokens: int,
    *,
    hidden: int = 32,
    tolerance: float | None = None,
    seed: int = 0,
) -> None:
    """Same weights, same tokens: same output, same gradients of input and weights, and counts of the same choice.

    Args:
        build_layer: makes the layer. It has `load_reference` and `reference_gradients`, or the parameters
            `router.weight`, `experts.up_EDF`, `experts.down_EFD`.
        block: with room enough that nothing is dropped, and no shared experts.
        routing: without noise, jitter, losses.
        dtype: of weights and activations.
        device: that it runs on.
        tokens: in one forward pass, at least one for each expert.
        hidden: width of the model; some kernels want multiples of 16.
        tolerance: largest deviation over the largest value; None: `TOLERANCE`.
        seed: of weights and tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = [w.to(dtype) for w in _weights(block, hidden, generator)]
    x_TD = _tokens(block, weights[0], tokens, dtype, generator)
    out_TD = torch.randn(tokens, hidden, generator=generator).to(dtype)

    plain = PlainMixture(block, routing, *weights)
    wide_TD = x_TD.double().requires_grad_()
    expected_TD = plain(wide_TD)
    expected_TD.backward(out_TD.double())  # type: ignore[no-untyped-call]

    layer = build_layer(block, hidden, routing).to(device=device, dtype=dtype)
    if block.router in ("noisy_topk", "gshard_top2"):
        layer.eval()  # without noise and chance
    _load(layer, [w.to(device) for w in weights])
    own_TD = x_TD.to(device).requires_grad_()
    found_TD = layer(own_TD)
    found_TD.backward(out_TD.to(device))

    allowed = TOLERANCE[dtype] if tolerance is None else tolerance
    _close("output", found_TD, expected_TD, allowed)
    _close("gradient of the input", own_TD.grad, wide_TD.grad, allowed)
    names = ("router", "up", "down")
    for name, found, weight in zip(names, _gradients(layer), plain.weights, strict=True):
        _close(f"gradient of {name}", found, weight.grad, allowed)
    _counts(layer, [plain.chosen(x_D) for x_D in wide_TD.detach()], block.experts)


def _weights(block: Moe, hidden: int, generator: torch.Generator) -> list[Tensor]:
    up = block.width * (2 if block.gated else 1)
    shapes = ((block.experts, hidden), (block.experts, hidden, up), (block.experts, block.width, hidden))
    scales = (1.0, hidden**-0.5, block.width**-0.5)
    return [torch.randn(s, generator=generator) * scale for s, scale in zip(shapes, scales, strict=True)]


def _tokens(block: Moe, router_ED: Tensor, tokens: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Tokens whose choice no rounding turns: the last expert chosen stands well before the first that is not."""
    assert tokens >= block.experts, "fewer tokens than experts leave gradients empty"
    x_TD = torch.randn(32 * tokens, router_ED.shape[1], generator=generator).to(dtype)
    ranked_TE = (x_TD.double() @ router_ED.double().T).sort(-1, descending=True).values
    if block.top_k < block.experts:
        x_TD = x_TD[ranked_TE[:, block.top_k - 1] - ranked_TE[:, block.top_k] > _CLEAR]
    assert len(x_TD) >= tokens
    return x_TD[:tokens]


def _load(layer: Any, weights: list[Tensor]) -> None:
    if hasattr(layer, "load_reference"):
        layer.load_reference(*weights)
        return
    with torch.no_grad():
        for parameter, weight in zip(_parameters(layer), weights, strict=True):
            parameter.copy_(weight)


def _gradients(layer: Any) -> list[Tensor]:
    if hasattr(layer, "reference_gradients"):
        return list(layer.reference_gradients())
    return [p.grad for p in _parameters(layer) if p.grad is not None]


def _parameters(layer: Any) -> list[nn.Parameter]:
    return [layer.router.weight, layer.experts.up_EDF, layer.experts.down_EFD]


def _counts(layer: Any, chosen: list[list[int]], experts: int) -> None:
    record = layer.records[-1]
    expected = [sum(e in token for token in chosen) for e in range(experts)]
    assert record.counts_E.tolist() == expected, f"rows of experts: found {record.counts_E.tolist()}, not {expected}"
    assert record.dropped is None or int(record.dropped) == 0, f"{int(record.dropped)} rows were dropped"


def _close(what: str, found: Tensor | None, expected: Tensor | None, allowed: float) -> None:
    assert found is not None, f"{what}: there is none"
    assert expected is not None
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    deviation = float((found.detach().double().cpu() - expected.detach()).abs().max() / expected.detach().abs().max())
    assert deviation <= allowed, f"{what}: off by {deviation:.2g} of the largest value; allowed: {allowed:.2g}"
