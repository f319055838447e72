"""FastMoE's gates as plans ask for them, and what they decide, for records.

| router         | FastMoE's gate | its noise                                      | its loss                       |
| -------------- | -------------- | ---------------------------------------------- | ------------------------------ |
| `softmax_topk` | `NaiveGate`    | none                                           | none                           |
| `noisy_topk`   | `NoisyGate`    | a deviation that is learned for each expert    | cv^2 of importance and of load |
| `gshard_top2`  | `GShardGate`   | the second expert is left out by chance        | mean(c m) L^2, L experts here  |
| `switch_top1`  | `SwitchGate`   | 1 - jitter to 1 + jitter is added to scores    | as Fedus et al. 2022           |

Without a capacity factor the last two get one that drops nothing; the gate's own default of 1.2 is nobody's choice.

Shapes: T tokens, D hidden, E experts, k experts a token.
"""

from __future__ import annotations

from typing import Any

import torch
from fmoe.gates import GShardGate, NaiveGate, NoisyGate, SwitchGate
from torch import Tensor, nn

from moemodel.model.architecture.spec import Moe
from moemodel.model.plan.routing import RoutingSpec
from moemodel.profiler.backends.torch_native.router_passes import RoutingPass, entropy_of


class _NoisyTopK(NoisyGate):  # type: ignore[misc]  # untyped
    """FastMoE's, whose indices come as [T k], which its layer takes for T k tokens of one expert each."""

    def forward(self, inp: Tensor) -> tuple[Tensor, Tensor]:
        indices, weights = super().forward(inp)
        return indices.view(-1, self.top_k), weights


def gate_class(block: Moe, routing: RoutingSpec) -> type[nn.Module]:
    """The class that FastMoE's layer makes its gate of."""
    rate = block.experts if block.capacity_factor is None else block.capacity_factor
    capacity = (rate, rate)  # in training and out of it

    class Switch(SwitchGate):  # type: ignore[misc]  # untyped
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, switch_eps=routing.jitter, capacity=capacity, **options)

    class GShard(GShardGate):  # type: ignore[misc]  # untyped
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, capacity=capacity, **options)

    gates = {"softmax_topk": NaiveGate, "noisy_topk": _NoisyTopK, "switch_top1": Switch, "gshard_top2": GShard}
    found: type[nn.Module] = gates[block.router]
    return found


class Watch:
    """Sees what a gate is given and what it gives.

    Args:
        gate: of a layer.
        block: whose router it is.
    """

    def __init__(self, gate: nn.Module, block: Moe) -> None:
        self._gate, self._block = gate, block
        self._scores_TE: Tensor | None = None
        self._chosen: Tensor | None = None
        if isinstance(gate, NaiveGate):  # all but NoisyGate
            gate.gate.register_forward_hook(self._scored)

    def seen(self, indices: Tensor, *_: Any) -> None:
        """The `gate_hook` of FastMoE's layer: experts of each token, -1 of a dropped row."""
        self._chosen = indices

    def record(self, x_TD: Tensor, coefficient: float, *, entropy: bool) -> RoutingPass:
        """Of the last forward pass; what was seen is forgotten.

        Args:
            x_TD: what the gate was given.
            coefficient: of its loss.
            entropy: whether it is wanted; NoisyGate's scores are computed again for it.
        """
        assert self._chosen is not None
        loss = self._gate.get_loss()  # type: ignore[operator]
        kept, scores_TE = self._chosen.view(-1), self._scores_TE
        limited = self._block.router in ("switch_top1", "gshard_top2")
        counted = kept
        if limited:  # what it would have chosen
            assert scores_TE is not None
            counted = scores_TE.topk(self._block.top_k, dim=-1).indices.view(-1)
        if entropy and scores_TE is None:
            scores_TE = x_TD.detach() @ self._gate.w_gate.detach()  # type: ignore[operator]
        self._chosen = self._scores_TE = None
        return RoutingPass(
            _counts(counted, self._block.experts),
            dropped=(kept < 0).sum() if limited else None,
            entropy=entropy_of(scores_TE.float().softmax(-1)) if entropy and scores_TE is not None else None,
            router_loss=coefficient * loss if coefficient else None,
        )

    def _scored(self, _: nn.Module, __: Any, scores_TE: Tensor) -> None:
        """Keeps what the gate's product gave; SwitchGate adds its noise to it in place."""
        self._scores_TE = scores_TE.detach()


def _counts(indices_R: Tensor, experts: int) -> Tensor:
    counts_E = torch.zeros(experts, dtype=torch.int64, device=indices_R.device)
    return counts_E.scatter_add_(0, indices_R, torch.ones_like(indices_R))
