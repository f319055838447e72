"""What a device holds of each layer, and what it tells those that hold the rest.

Shapes: as in `model`.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from moemodel.model.architecture.spec import Layer
from moemodel.profiler.backends.torch_native import operators as torch_ops


class ShardingStrategy:
    """What a device holds of each layer, and what it tells those that hold the rest. This one holds all of it."""

    def layer(self, layer: Layer) -> Layer:
        """What it holds of a layer, as a layer."""
        return layer

    def vocabulary(self, rows: int) -> int:
        """Rows that it holds of the token embedding and of the head."""
        return rows

    def enter_tensor_parallel_region(self, x_TD: Tensor) -> Tensor:
        """Input of a block, for products that are sharded by columns."""
        return x_TD

    def leave_tensor_parallel_region(self, x_TD: Tensor) -> Tensor:
        """Output of a block, whose last product was sharded by rows."""
        return x_TD

    def project(self, linear: nn.Linear, x: Tensor) -> Tensor:
        """The last product of a block, and `leave_tensor_parallel_region`."""
        out: Tensor = linear(x)
        return out

    def normalise(self, q_TQ: Tensor, k_TG: Tensor, q_norm: nn.Module, k_norm: nn.Module) -> tuple[Tensor, Tensor]:
        """Queries and keys, normalised over all their heads."""
        return q_norm(q_TQ), k_norm(k_TG)

    @property
    def loss_ranks(self) -> int:
        """Ranks that each take the whole of a router's loss, and whose gradients are summed."""
        return 1

    def pass_experts(self, x_RD: Tensor, d: torch_ops.Dispatch, experts: nn.Module) -> Tensor:
        """Rows sorted by expert through the experts."""
        out: Tensor = experts(x_RD, d.offsets_E)
        return out

    def embed(self, tokens_BS: Tensor, table_VW: Tensor) -> Tensor:
        """Rows of the token embedding."""
        return functional.embedding(tokens_BS, table_VW)

    def own_rows(self, rows_BS: Tensor) -> Tensor:
        """Of one value a token, those of the tokens that it holds between blocks."""
        return rows_BS

    def loss(self, x_TW: Tensor, head_VW: Tensor, targets_T: Tensor) -> Tensor:
        """Mean loss of all tokens."""
        return torch_ops.cross_entropy(functional.linear(x_TW, head_VW), targets_T)


WHOLE = ShardingStrategy()
