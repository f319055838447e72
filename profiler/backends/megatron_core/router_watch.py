"""What Megatron Core's routers do in each forward pass, kept on the device: nothing waits for it until somebody asks.

Its own tracker knows the losses that routers add (`moe_logging`), and neither loads nor entropies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function
from torch import Tensor, nn

_KEPT = 1024  # forward passes that a layer remembers, as in the torch backend


@dataclass(frozen=True, kw_only=True)
class RouterPass:
    """One forward pass; tensors on the device.

    Attributes:
        counts_E: rows that each expert was chosen for, before any were dropped [E], int64.
        kept_E: of these, rows that found room.
        entropy: mean over tokens of the entropy of the router's probabilities, nats, a scalar.
    """

    counts_E: Tensor
    kept_E: Tensor
    entropy: Tensor


class RouterWatch:
    """Watches one `TopKRouter`; a pass whose layer runs again is seen the second time alone.

    Args:
        layer: number of the layer in the whole model.
        router: of Megatron Core's.
    """

    def __init__(self, layer: int, router: Any) -> None:
        self.layer, self.passes = layer, deque[RouterPass](maxlen=_KEPT)
        self._router, self._gating = router, router.gating
        self._logits_TE: Tensor | None = None
        router.gating = self._gate
        router.register_forward_hook(self._see)

    def _gate(self, hidden_SBD: Tensor) -> Tensor:
        logits: Tensor = self._gating(hidden_SBD)
        self._logits_TE = logits.detach().flatten(0, -2)
        return logits

    @torch.no_grad()
    def _record(self, map_TE: Tensor, logits_TE: Tensor) -> None:
        config, kept_E = self._router.config, map_TE.sum(0)
        counts_E = kept_E
        if config.moe_expert_capacity_factor is not None:  # the map is of what found room, and of padding
            chosen_TE = self._chosen(logits_TE)
            counts_E, kept_E = chosen_TE.sum(0), (chosen_TE & map_TE).sum(0)
        share_TE = _shares(logits_TE, config.moe_router_score_function)
        self.passes.append(
            RouterPass(counts_E=counts_E, kept_E=kept_E, entropy=torch.special.entr(share_TE).sum(-1).mean())
        )

    def _chosen(self, logits_TE: Tensor) -> Tensor:
        config = self._router.config
        chosen: Tensor = topk_routing_with_score_function(
            logits_TE,
            config.moe_router_topk,
            use_pre_softmax=config.moe_router_pre_softmax,
            score_function=config.moe_router_score_function,
            expert_bias=self._router.expert_bias,
        )[1]
        return chosen

    def _see(self, _module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        logits_TE, self._logits_TE = self._logits_TE, None
        if logits_TE is not None and torch.is_grad_enabled():  # off in the first run of a layer that runs again
            self._record(output[1], logits_TE)


def watch(layers: Sequence[Any]) -> list[RouterWatch]:
    """Watch the routers of some `TransformerLayer`s."""
    return [RouterWatch(layer.layer_number - 1, layer.mlp.router) for layer in layers if hasattr(layer.mlp, "router")]


def _shares(logits_TE: Tensor, score_function: str) -> Tensor:
    if score_function == "softmax":
        return logits_TE.softmax(-1, dtype=torch.float32)
    score_TE = logits_TE.float().sigmoid()
    return score_TE / score_TE.sum(-1, keepdim=True)
