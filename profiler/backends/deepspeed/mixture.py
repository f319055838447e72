"""DeepSpeed's Mixture-of-Experts layer in the slot of the torch backend's model.

Dropless plans are those without a capacity factor: DeepSpeed then pads every expert's rows to the busiest's. Shared
experts stand beside the layer, as they do in the torch backend: DeepSpeed has none.

| router         | DeepSpeed's                                                                             |
| -------------- | --------------------------------------------------------------------------------------- |
| `softmax_topk` | k = 1: `top1gating`; 2: `top2gating` without sampling; more: `topkgating`               |
| `switch_top1`  | the same as k = 1: the probability is the weight                                        |
| `gshard_top2`  | `top2gating` that samples the second expert (Gumbel noise on the logits)                |
| `noisy_topk`   | k = 1 with the policy `RSample`: the expert is sampled (Gumbel noise)                   |

Jitter of a plan is the policy `Jitter`. Rows over an expert's capacity are dropped at random with one expert a token
(`use_rts`, DeepSpeed's default), in the order of tokens with two, by their weight with more.

Shapes: T tokens, D hidden, E experts, L of them here, k experts a token, F width.
"""

from __future__ import annotations

import torch
from deepspeed.moe.layer import MoE
from torch import Tensor, nn

from moemodel.model.architecture.spec import Mlp, Moe
from moemodel.model.plan.routing import RoutingSpec
from moemodel.profiler.backends.deepspeed.gate_watch import WATCH, watch_gates
from moemodel.profiler.backends.deepspeed.supported_plans import MIN_CAPACITY
from moemodel.profiler.backends.expert_parallel import share_of
from moemodel.profiler.backends.foreign_mixture import ForeignMixture
from moemodel.profiler.backends.torch_native.blocks import DenseBlock
from moemodel.profiler.backends.torch_native.router_passes import RoutingPass
from moemodel.profiler.backends.torch_native.strategy import WHOLE, ShardingStrategy


class DeepSpeedMixture(ForeignMixture):
    """`deepspeed.moe.layer.MoE` behind the contract of a `MixtureFactory`.

    Args:
        block: as the architecture has it.
        held: what this rank holds of it.
        hidden: model width.
        sharding: an `ExpertShare`; that of a whole model for one rank.
        routing: what a plan asks of the router.
    """

    def __init__(self, block: Moe, held: Moe, hidden: int, sharding: ShardingStrategy, routing: RoutingSpec) -> None:
        super().__init__(held, hidden)
        watch_gates()
        self._block, self._share, self._coefficient = block, share_of(sharding), routing.balance_loss
        self.layer = _layer(block, held, hidden, self._share.ep, routing)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Rows [T, D] in and out."""
        WATCH.entropy_wanted = self.recording
        y_TD, loss, counts_E = self.layer(x_TD)
        self.records.append(self._record(loss, counts_E))
        return self.with_shared(x_TD, y_TD)

    def _record(self, loss: Tensor, counts_E: Tensor) -> RoutingPass:
        assert WATCH.indices_kT is not None
        limited = self._block.capacity_factor is not None
        return RoutingPass(
            counts_E,
            dropped=(WATCH.indices_kT < 0).sum() if limited else None,
            entropy=WATCH.entropy,
            router_loss=self._coefficient * loss if self._coefficient else None,
        )

    # ---- weights in the torch backend's form --------------------------------------------------------------------

    @property
    def _experts(self) -> list[DenseBlock]:
        return list(self.layer.deepspeed_moe.experts.deepspeed_experts)

    @torch.no_grad()
    def load_reference(self, router_ED: Tensor, up_EDF: Tensor, down_EFD: Tensor) -> None:
        """Take over weights of all experts, of which this rank keeps its own.

        Experts are told from other parameters by marks on them. Parameters that were made without memory lose these
        when they get it; they are set again here, where every model gets its weights.
        """
        self.layer.deepspeed_moe.gate.wg.weight.copy_(router_ED)
        own = zip(self._experts, self._share.own(up_EDF), self._share.own(down_EFD), strict=True)
        for expert, up_DF, down_FD in own:
            for parameter, weight in zip(expert.parameters(), _parts(up_DF, down_FD, expert), strict=True):
                parameter.copy_(weight)
                parameter.allreduce = False  # type: ignore[attr-defined]  # as deepspeed/moe/experts.py
                parameter.group_name = self.layer.expert_group_name  # type: ignore[attr-defined]

    def reference_gradients(self) -> list[Tensor]:
        """Gradients of router [E, D], up [E, D, F or 2F] and down [E, F, D], of the mean of the ranks' losses."""
        experts = self._experts
        gates = [[e.gate] if e.gate is not None else [] for e in experts]
        ups = [torch.cat([_gradient(p).T for p in (*gate, e.up)], 1) for gate, e in zip(gates, experts, strict=True)]
        downs = [_gradient(e.down).T for e in experts]
        router_ED = self.layer.deepspeed_moe.gate.wg.weight.grad
        return [router_ED, *(self._share.whole_gradient(torch.stack(own)) for own in (ups, downs))]


def _layer(block: Moe, held: Moe, hidden: int, ep: int, routing: RoutingSpec) -> MoE:
    expert = DenseBlock(
        Mlp(width=held.width, activation=block.activation, gated=block.gated, bias=block.bias), hidden, WHOLE
    )
    factor = block.capacity_factor
    return MoE(
        hidden,
        expert,
        num_experts=block.experts,
        ep_size=ep,
        k=block.top_k,
        capacity_factor=1.0 if factor is None else factor,
        eval_capacity_factor=1.0 if factor is None else factor,
        min_capacity=MIN_CAPACITY,
        use_residual=block.residual or routing.residual,
        noisy_gate_policy=_noise(block, routing),
        drop_tokens=factor is not None,
        use_tutel=False,
        top2_2nd_expert_sampling=block.router == "gshard_top2",
    )


def _noise(block: Moe, routing: RoutingSpec) -> str | None:
    if block.router == "noisy_topk":
        return "RSample"
    return "Jitter" if routing.jitter else None


def _parts(up_DF: Tensor, down_FD: Tensor, expert: DenseBlock) -> list[Tensor]:
    """An expert's weights in the order of its parameters: the gate, if there is one, up, down."""
    parts = up_DF.chunk(2, -1) if expert.gate is not None else (up_DF,)
    return [*(part.T for part in parts), down_FD.T]


def _gradient(linear: nn.Linear) -> Tensor:
    """Of its weight; zeros where an expert had no rows."""
    weight = linear.weight
    return torch.zeros_like(weight) if weight.grad is None else weight.grad
