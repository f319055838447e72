"""FastMoE's Mixture-of-Experts layer in the slot of the torch backend's model.

Experts are run as FastMoE 1.1.0's `FMoETransformerMLP` runs them: modules of one expert each, one after another. Only
what is within an expert is the architecture's, not FastMoE's own two products with biases.

Shapes: T tokens, D hidden, E experts, L of them here, k experts a token, F width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from fmoe import FMoE, FMoELinear
from torch import Tensor, nn

from moemodel.model.architecture.spec import Moe
from moemodel.model.plan.routing import RoutingSpec
from moemodel.profiler.backends.expert_parallel import share_of
from moemodel.profiler.backends.fastmoe.gates import Watch, gate_class
from moemodel.profiler.backends.foreign_mixture import ForeignMixture
from moemodel.profiler.backends.torch_native.blocks import GATES, PLAIN
from moemodel.profiler.backends.torch_native.strategy import ShardingStrategy

EXPERT_COMM = "expert"  # what gradients of experts are marked with, for FastMoE's data parallelism


class _Linear(FMoELinear):  # type: ignore[misc]  # untyped
    """FastMoE's, of one expert and without a bias; its weight is made where the model is, not on the host."""

    def __init__(self, inputs: int, outputs: int) -> None:
        nn.Module.__init__(self)
        self.num_expert, self.in_feat, self.out_feat, self.rank = 1, inputs, outputs, 0
        self.weight = nn.Parameter(torch.empty(1, outputs, inputs))
        self.register_parameter("bias", None)


class _Expert(nn.Module):
    def __init__(self, block: Moe, hidden: int) -> None:
        super().__init__()
        self._activation = block.activation
        self.gate = _Linear(hidden, block.width) if block.gated else None
        self.up = _Linear(hidden, block.width)
        self.down = _Linear(block.width, hidden)

    def forward(self, x_RD: Tensor, rows: Tensor) -> Tensor:
        """Rows of this expert; `rows`: their number, on the host."""
        out: Tensor = self.down(self._inner(x_RD, rows), rows)
        return out

    def _inner(self, x_RD: Tensor, rows: Tensor) -> Tensor:
        if self.gate is None:
            return PLAIN[self._activation](self.up(x_RD, rows))
        return GATES[self._activation](self.gate(x_RD, rows), self.up(x_RD, rows))


class FastMoeMixture(ForeignMixture):
    """`fmoe.FMoE` behind the contract of a `MixtureFactory`.

    Args:
        block: as the architecture has it.
        held: what this rank holds of it.
        hidden: model width.
        sharding: an `ExpertShare`; that of a whole model for one rank.
        routing: what a plan asks of the router.
    """

    def __init__(self, block: Moe, held: Moe, hidden: int, sharding: ShardingStrategy, routing: RoutingSpec) -> None:
        super().__init__(held, hidden)
        self._share, self._coefficient = share_of(sharding), routing.balance_loss
        self.layer = FMoE(
            num_expert=held.experts,
            d_model=hidden,
            world_size=self._share.ep,
            moe_group=self._share.ep_group,
            top_k=block.top_k,
            gate=gate_class(block, routing),
            expert=_experts_of(block),
            gate_bias=False,
        )
        self._watch = Watch(self.layer.gate, block)
        self.layer.gate_hook = self._watch.seen

    def forward(self, x_TD: Tensor) -> Tensor:
        """Rows [T, D] in and out."""
        y_TD = self.layer(x_TD)
        self.records.append(self._watch.record(x_TD, self._coefficient, entropy=self.recording))
        return self.with_shared(x_TD, y_TD)

    # ---- weights in the torch backend's form --------------------------------------------------------------------

    @torch.no_grad()
    def load_reference(self, router_ED: Tensor, up_EDF: Tensor, down_EFD: Tensor) -> None:
        """Take over weights of all experts, of which this rank keeps its own.

        FastMoE tells parameters apart by marks on them. Those that were made without memory lose these when they get
        it; they are set again here, where every model gets its weights.
        """
        self._router().copy_(router_ED)
        own = zip(self.layer.experts, self._share.own(up_EDF), self._share.own(down_EFD), strict=True)
        for expert, up_DF, down_FD in own:
            parts = up_DF.chunk(2, -1) if expert.gate is not None else (up_DF,)
            for parameter, weight in zip(expert.parameters(), (*parts, down_FD), strict=True):
                parameter.copy_(weight.T)
        self.layer.mark_parallel_comm(EXPERT_COMM)

    def reference_gradients(self) -> list[Tensor]:
        """Gradients of router [E, D], up [E, D, F or 2F] and down [E, F, D], of the mean of the ranks' losses."""
        gate = self.layer.gate
        router_ED = gate.w_gate.grad.T if hasattr(gate, "w_gate") else gate.gate.weight.grad
        ups, downs = [], []
        for expert in self.layer.experts:
            *up, down = [p.grad[0].T for p in expert.parameters()]
            ups.append(torch.cat(up, 1))
            downs.append(down)
        return [router_ED, *(self._share.whole_gradient(torch.stack(own)) for own in (ups, downs))]

    def _router(self) -> Tensor:
        """[E, D]; NoisyGate has it transposed."""
        gate = self.layer.gate
        weight: Tensor = gate.w_gate.T if hasattr(gate, "w_gate") else gate.gate.weight
        return weight


def _experts_of(block: Moe) -> Callable[[int], nn.Module]:
    """What FastMoE's layer makes its experts with."""
    return lambda hidden: _Expert(block, hidden)
