"""A Mixture-of-Experts block, and the slot that one of another framework takes.

Shapes: as in `model`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from moemodel.model.architecture.spec import Mlp, Moe
from moemodel.model.plan.routing import RoutingSpec
from moemodel.profiler.backends.torch_native import operators as torch_ops
from moemodel.profiler.backends.torch_native.bias_balance import BiasBalance
from moemodel.profiler.backends.torch_native.blocks import GATES, PLAIN, DenseBlock
from moemodel.profiler.backends.torch_native.capacity import (
    Rows,
    capacity_of,
    give_back,
    rows_of_experts,
    rows_of_pairs,
    take,
)
from moemodel.profiler.backends.torch_native.router_passes import RoutingPass, RoutingPasses, entropy_of
from moemodel.profiler.backends.torch_native.routers import Choice, Router, jittered
from moemodel.profiler.backends.torch_native.strategy import WHOLE, ShardingStrategy

# Called with the block as the architecture has it, what this device holds of it, the model's width, how a layer is
# shared out, and what a plan asks of routers. The module takes rows [T, D], gives rows [T, D], and has `records`,
# `RoutingPasses`, to which it appends a `RoutingPass` after each forward pass; a `router_loss` there comes with its
# gradient and times its coefficient, and the layer adds it to the backward pass. Where it has `recording`, the model
# sets it: entropies are wanted. One that keeps its weights in a form of its own has
# `load_reference(router_ED, up_EDF, down_EFD)`, whole ones, and `reference_gradients()`, theirs in that order and form.
MixtureFactory = Callable[[Moe, Moe, int, ShardingStrategy, RoutingSpec], nn.Module]


def reference_shapes(block: Moe, hidden: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a block that is whole, by their names in `Mixture`."""
    up = block.width * (2 if block.gated else 1)
    return {
        "router.weight": (block.experts, hidden),
        "experts.up_EDF": (block.experts, hidden, up),
        "experts.down_EFD": (block.experts, block.width, hidden),
    }


class Experts(nn.Module):
    """Two grouped products over rows sorted by expert."""

    def __init__(self, block: Moe, hidden: int) -> None:
        super().__init__()
        self._block = block
        self.up_EDF = nn.Parameter(torch.empty(block.experts, hidden, block.width * (2 if block.gated else 1)))
        self.down_EFD = nn.Parameter(torch.empty(block.experts, block.width, hidden))

    def forward(self, x_RD: Tensor, offsets_E: Tensor) -> Tensor:
        """Rows [R, D] sorted by expert in and out; `offsets_E`: end of each expert's."""
        return torch_ops.grouped_linear(self._inner(x_RD, offsets_E), self.down_EFD, offsets_E)

    def _inner(self, x_RD: Tensor, offsets_E: Tensor) -> Tensor:
        up = torch_ops.grouped_linear(x_RD, self.up_EDF, offsets_E)
        if self._block.gated:
            return GATES[self._block.activation](*up.chunk(2, dim=-1))
        return PLAIN[self._block.activation](up)


class Mixture(nn.Module):
    """Experts behind a router: rows sorted by expert, through the experts, weighted and added back.

    A residual block beside them is weighted against them as DeepSpeed does it, by a softmax over a product of its own.

    Args:
        block: as the architecture has it.
        held: what this device holds of it.
        hidden: model width.
        sharding: see `ShardingStrategy`.
        routing: what a plan asks of the router.
    """

    def __init__(self, block: Moe, held: Moe, hidden: int, sharding: ShardingStrategy, routing: RoutingSpec) -> None:
        super().__init__()
        self._block, self._sharding, self._rule = block, sharding, Router(block, routing)
        self.router = nn.Linear(hidden, block.experts, bias=False)
        self.noise = nn.Linear(hidden, block.experts, bias=False) if block.router == "noisy_topk" else None
        self.experts = Experts(held, hidden)
        shared = Mlp(width=held.shared_width, activation=block.activation, gated=block.gated, bias=block.bias)
        self.shared = DenseBlock(shared, hidden, WHOLE) if block.shared_width else None  # enters and leaves with all
        self.shared_gate = nn.Linear(hidden, 1, bias=False) if block.shared_gate else None
        beside = Mlp(width=held.width, activation=block.activation, gated=block.gated)
        self.residual = DenseBlock(beside, hidden, WHOLE) if routing.residual else None
        self.coefficient = nn.Linear(hidden, 2) if routing.residual else None
        self.recording = False  # whether what costs something to know is recorded too
        self.records = RoutingPasses()
        self.balance = BiasBalance.of(block, routing)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Rows [T, D] in and out."""
        x_TD = self._sharding.enter_tensor_parallel_region(x_TD)
        y_TD = self._beside(x_TD, self._routed(x_TD))
        if self.shared is None:
            return self._sharding.leave_tensor_parallel_region(y_TD)
        shared_TD: Tensor = self.shared(x_TD)
        if self.shared_gate is not None:
            shared_TD = torch.sigmoid(self.shared_gate(x_TD)) * shared_TD
        return self._sharding.leave_tensor_parallel_region(y_TD + shared_TD)

    def _beside(self, x_TD: Tensor, y_TD: Tensor) -> Tensor:
        if self.residual is None or self.coefficient is None:
            return y_TD
        share_T2: Tensor = self.coefficient(x_TD).softmax(-1)
        beside_TD: Tensor = self.residual(x_TD)
        return y_TD * share_T2[:, :1] + beside_TD * share_T2[:, 1:]

    def _routed(self, x_TD: Tensor) -> Tensor:
        jitter = self._rule.routing.jitter
        seen_TD = jittered(x_TD, jitter) if jitter and self.training else x_TD
        logit_TE = self.router(seen_TD)
        noise_TE = self.noise(seen_TD) if self.noise is not None and self.training else None
        if self._block.router == "expert_choice":
            return self._chosen_by_experts(x_TD, logit_TE)
        choice = self._rule.choose(logit_TE, noise_TE=noise_TE, bias_E=self.balance.bias_on(x_TD), random=self.training)
        if choice.sent_Tk is not None or self._block.capacity_factor is not None:
            return self._fitted(x_TD, choice)
        d = torch_ops.dispatch(choice.expert_Tk, self._block.experts)
        self._record(choice, d.counts_E)
        y_RD = self._sharding.pass_experts(torch_ops.permute(x_TD, d, self._block.top_k), d, self.experts)
        return torch_ops.unpermute(y_RD, choice.weight_Tk, d)

    def _fitted(self, x_TD: Tensor, choice: Choice) -> Tensor:
        """Where not every pair is sent, or finds room."""
        block, factor = self._block, self._block.capacity_factor
        capacity = None if factor is None else capacity_of(len(x_TD), block.top_k, block.experts, factor)
        rows = rows_of_pairs(
            choice.weight_Tk,
            choice.expert_Tk,
            choice.sent_Tk,
            block.experts,
            capacity,
            padded=bool(self._rule.routing.pad),
        )
        self._record(choice, rows.wanted_E, rows.dropped)
        return self._through(x_TD, rows)

    def _chosen_by_experts(self, x_TD: Tensor, logit_TE: Tensor) -> Tensor:
        block = self._block
        score_TE, wide_TE = self._rule.scores(logit_TE, None)
        capacity = capacity_of(len(x_TD), block.top_k, block.experts, block.capacity_factor or 1.0)
        rows = rows_of_experts(score_TE, capacity, logit_TE.dtype)
        self._add(rows.wanted_E, None, score_TE, None if wide_TE is None else self._rule.z_loss(wide_TE))
        return self._through(x_TD, rows)

    def _through(self, x_TD: Tensor, rows: Rows) -> Tensor:
        y_RD = self._sharding.pass_experts(take(x_TD, rows), rows.dispatch, self.experts)
        return give_back(y_RD, rows, len(x_TD))

    def _record(self, choice: Choice, counts_E: Tensor, dropped: Tensor | None = None) -> None:
        self.balance.count(counts_E)
        self._add(counts_E, dropped, choice.score_TE, self._rule.loss(choice, counts_E))

    def _add(self, counts_E: Tensor, dropped: Tensor | None, score_TE: Tensor, loss: Tensor | None) -> None:
        entropy = entropy_of(score_TE) if self.recording else None
        self.records.append(RoutingPass(counts_E, dropped=dropped, entropy=entropy, router_loss=loss))
