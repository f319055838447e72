"""What Megatron Core's routers do in each forward pass, kept on the device: nothing waits for it until somebody asks.

Its own tracker knows the losses that routers add (`moe_logging`), and neither loads nor entropies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.transformer.moe.moe_utils import topk_routing_with_score_function
from torch import Tensor, nn

from moemodel.profiler.backends.torch_native.router_passes import (
    RoutingPass,
    RoutingPasses,
    entropy_of,
    is_repeated,
)


class RouterWatch:
    """Watches one `TopKRouter`.

    Args:
        layer: number of the layer in the whole model.
        router: of Megatron Core's.
    """

    def __init__(self, layer: int, router: Any) -> None:
        self.layer, self.records, self.recording = layer, RoutingPasses(), False
        self._router, self._gating = router, router.gating
        self._logits_TE: Tensor | None = None
        router.gating = self._gate
        router.register_forward_hook(self._see)

    def _gate(self, hidden_SBD: Tensor) -> Tensor:
        logits: Tensor = self._gating(hidden_SBD)
        self._logits_TE = logits.detach().flatten(0, -2)
        return logits

    def _see(self, _module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        logits_TE, self._logits_TE = self._logits_TE, None
        if logits_TE is not None and not is_repeated():
            self.records.append(self._record(output[1], logits_TE))

    @torch.no_grad()
    def _record(self, map_TE: Tensor, logits_TE: Tensor) -> RoutingPass:
        config = self._router.config
        share_TE = _shares(logits_TE, config.moe_router_score_function) if self.recording else None
        entropy = None if share_TE is None else entropy_of(share_TE)
        if config.moe_expert_capacity_factor is None:
            return RoutingPass(map_TE.sum(0), entropy=entropy)
        chosen_TE = self._chosen(logits_TE)  # the map is of what found room, and of padding
        return RoutingPass(chosen_TE.sum(0), dropped=(chosen_TE & ~map_TE).sum(), entropy=entropy)

    def _chosen(self, logits_TE: Tensor) -> Tensor:
        config = self._router.config
        chosen_TE: Tensor = topk_routing_with_score_function(
            logits_TE,
            config.moe_router_topk,
            use_pre_softmax=config.moe_router_pre_softmax,
            score_function=config.moe_router_score_function,
            expert_bias=self._router.expert_bias,
        )[1]
        return chosen_TE


def watch(layers: Sequence[Any]) -> list[RouterWatch]:
    """Watch the routers of some `TransformerLayer`s."""
    return [RouterWatch(layer.layer_number - 1, layer.mlp.router) for layer in layers if hasattr(layer.mlp, "router")]


def _shares(logits_TE: Tensor, score_function: str) -> Tensor:
    if score_function == "softmax":
        return logits_TE.softmax(-1, dtype=torch.float32)
    score_TE = logits_TE.float().sigmoid()
    return score_TE / score_TE.sum(-1, keepdim=True)
