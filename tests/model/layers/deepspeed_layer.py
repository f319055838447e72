"""DeepSpeed's layer on a processor, and how many operators it runs that are no views."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_VIEWS = {
    *("view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze", "as_strided", "detach"),
    *("alias", "split", "split_with_sizes", "unbind", "_unsafe_view", "_local_scalar_dense", "lift_fresh"),
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"),
}


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.kernels += func._schema.name.split("::")[1] not in _VIEWS
        return func(*args, **(kwargs or {}))


class _Expert(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            nn.Linear(*sizes, bias=False) for sizes in ((hidden, width), (hidden, width), (width, hidden))
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return out


class _Experts(nn.Module):
    def __init__(self, experts: int, hidden: int, width: int) -> None:
        super().__init__()
        self.every = nn.ModuleList(_Expert(hidden, width) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        chunks = x.chunk(len(self.every), dim=1)
        return torch.cat([expert(chunk) for expert, chunk in zip(self.every, chunks, strict=True)], dim=1)


def counted_kernels(moe: Any, *, experts: int, top_k: int, capacity: float | None) -> tuple[int, int]:
    """Of one forward and one backward pass.

    Args:
        moe: the module `deepspeed.moe.sharded_moe`.
        experts, top_k: of the layer, and of a token.
        capacity: factor; None: nothing is dropped.
    """
    gate = moe.TopKGate(
        16,
        experts,
        k=top_k,
        capacity_factor=capacity or 1.0,
        min_capacity=4,
        drop_tokens=capacity is not None,
        top2_2nd_expert_sampling=False,
    )
    layer = moe.MOELayer(gate, _Experts(experts, 16, 24), "experts", 1, experts).to(torch.bfloat16)
    x_TD = torch.randn(64, 16, dtype=torch.bfloat16, requires_grad=True)
    with _Counter() as forward:
        y_TD = layer(x_TD, None)
    gradient_TD = torch.ones_like(y_TD)
    with _Counter() as backward:
        torch.autograd.backward([y_TD, layer.l_aux], [gradient_TD, torch.ones_like(layer.l_aux)])
    return forward.kernels, backward.kernels
