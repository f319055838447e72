"""What a rank holds of each layer under tensor and expert parallelism, and what it exchanges.

Heads, feed-forward widths (of each expert too) and the vocabulary are sharded by tp; experts are shared out over ep of
the data-parallel ranks. Norms, routers, learned positions and the projections around a narrow embedding are on every
tensor-parallel rank. Under sequence parallelism each rank holds its share of the rows [T / tp, D] between blocks, and
keeps what it gathered for the backward pass.

What differs from Megatron-LM:

- Norms over all queries and all keys (`qk_norm: full`) are over all heads, not over a rank's: one small all-reduce more
  in each direction, for both.
- Every tensor-parallel rank sends all of its tokens' rows to the experts, of which it holds a part of the width; none
  sends a share that the others then gather.
- The host waits for the device in each Mixture-of-Experts layer with ep > 1: how many rows go where is exchanged first,
  and all-to-all wants the numbers on the host.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from moemodel.model.architecture.spec import Layer, Mlp, Moe
from moemodel.profiler.backends.torch_native import mappings, operators, vocab_parallel
from moemodel.profiler.backends.torch_native.mappings import Group
from moemodel.profiler.backends.torch_native.strategy import ShardingStrategy
from moemodel.profiler.backends.torch_native.vocab_parallel import Rows


@dataclass(frozen=True, kw_only=True)
class TensorParallelSharding(ShardingStrategy):
    """One rank's shard of a model.

    Attributes:
        tp: tensor-parallel ranks; `tp_rank` is this one among them and `tp_group` is theirs, None for one.
        ep: ranks that share out the experts, and their group.
        sequence: whether sequence parallelism is on.
        vocab: rows of the whole vocabulary.
    """

    tp: int
    tp_rank: int
    tp_group: Group | None
    ep: int
    ep_group: Group | None
    sequence: bool
    vocab: int

    def layer(self, layer: Layer) -> Layer:
        """Its heads, widths and experts that this rank holds."""
        tp = self.tp
        attentions = tuple(replace(a, heads=a.heads // tp, kv_heads=a.kv_heads // tp) for a in layer.attentions)
        return replace(layer, attentions=attentions, feed_forward=self._block(layer.own_feed_forward))

    def _block(self, block: Mlp | Moe) -> Mlp | Moe:
        width = block.width // self.tp
        if isinstance(block, Mlp):
            return replace(block, width=width)
        return replace(block, width=width, experts=block.experts // self.ep, shared_width=block.shared_width // self.tp)

    @property
    def rows(self) -> Rows:
        """Of the vocabulary."""
        return Rows.of(self.vocab, self.tp_rank, self.tp)

    def vocabulary(self, rows: int) -> int:
        """How many rows of the vocabulary."""
        del rows
        return self.rows.stop - self.rows.first

    @property
    def loss_ranks(self) -> int:
        """See `ShardingStrategy`: each tensor-parallel rank sees all tokens of its replica."""
        return self.tp

    def enter_tensor_parallel_region(self, x_TD: Tensor) -> Tensor:
        """See `ShardingStrategy`: gathers the rows under sequence parallelism."""
        if self.tp_group is None:
            return x_TD
        return (
            mappings.gather_from_sequence_parallel_region(x_TD, self.tp_group)
            if self.sequence
            else mappings.copy_to_tensor_parallel_region(x_TD, self.tp_group)
        )

    def leave_tensor_parallel_region(self, x_TD: Tensor) -> Tensor:
        """See `ShardingStrategy`: sums over the ranks, and scatters the rows under sequence parallelism."""
        if self.tp_group is None:
            return x_TD
        return (
            mappings.reduce_scatter_to_sequence_parallel_region(x_TD, self.tp_group)
            if self.sequence
            else mappings.reduce_from_tensor_parallel_region(x_TD, self.tp_group)
        )

    def project(self, linear: nn.Linear, x: Tensor) -> Tensor:
        """See `ShardingStrategy`: the bias is added once, behind the sum."""
        if self.tp_group is None:
            return super().project(linear, x)
        out = self.leave_tensor_parallel_region(functional.linear(x, linear.weight))
        return out if linear.bias is None else out + linear.bias

    def normalise(self, q_TQ: Tensor, k_TG: Tensor, q_norm: nn.Module, k_norm: nn.Module) -> tuple[Tensor, Tensor]:
        """See `ShardingStrategy`: over the heads of all ranks."""
        if self.tp_group is None:
            return super().normalise(q_TQ, k_TG, q_norm, k_norm)
        weights = (q_norm.get_parameter("weight"), k_norm.get_parameter("weight"))
        return mappings.wide_rms_norms(q_TQ, k_TG, *weights, self.tp_group)

    def pass_experts(self, x_RD: Tensor, d: operators.Dispatch, experts: nn.Module) -> Tensor:
        """See `ShardingStrategy`: to the ranks that hold the experts, and back."""
        if self.ep_group is None:
            return super().pass_experts(x_RD, d, experts)
        return _through_ranks(x_RD, d.counts_E, experts, self.ep_group)

    def embed(self, tokens_BS: Tensor, table_VW: Tensor) -> Tensor:
        """See `ShardingStrategy`: [T, W], or [T / tp, W] under sequence parallelism."""
        if self.tp_group is None:
            return super().embed(tokens_BS, table_VW)
        return self.leave_tensor_parallel_region(vocab_parallel.embed_part(tokens_BS, table_VW, self.rows))

    def own_rows(self, rows_BS: Tensor) -> Tensor:
        """See `ShardingStrategy`."""
        if self.tp_group is None:
            return rows_BS
        rows_T = rows_BS.flatten()
        return rows_T.chunk(self.tp)[self.tp_rank] if self.sequence else rows_T

    def loss(self, x_TW: Tensor, head_VW: Tensor, targets_T: Tensor) -> Tensor:
        """See `ShardingStrategy`: over the rows of the vocabulary of all ranks."""
        if self.tp_group is None:
            return super().loss(x_TW, head_VW, targets_T)
        logits_TV = functional.linear(self.enter_tensor_parallel_region(x_TW), head_VW)
        return vocab_parallel.cross_entropy(logits_TV, targets_T, self.rows, self.tp_group)


def _through_ranks(x_RD: Tensor, counts_E: Tensor, experts: nn.Module, group: Group) -> Tensor:
    """Rows sorted by expert: to their experts' ranks, sorted there by expert again, through them, and back."""
    ranks = group.size()
    received_GE = torch.empty_like(counts_E)
    dist.all_to_all_single(received_GE, counts_E, group=group)
    by_rank = torch.stack((counts_E, received_GE)).view(2, ranks, -1)
    send, receive = by_rank.sum(-1).tolist()  # the host waits here
    arrived_RD = mappings.all_to_all(x_RD, send, receive, group)
    local = counts_E.numel() // ranks
    expert_R = torch.arange(local, device=counts_E.device).repeat(ranks)
    expert_R = expert_R.repeat_interleave(received_GE, output_size=sum(receive))
    d = operators.dispatch(expert_R, local)
    done_RD = experts(operators.permute(arrived_RD, d, 1), d.offsets_E)
    return mappings.all_to_all(operators.unsort(done_RD, d), receive, send, group)
