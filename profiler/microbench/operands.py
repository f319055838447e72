"""Operands like those of real training: normal activations, skewed routers, Zipf tokens. Never zeros.

The values matter: a product of zeros was measured at 441 W where random values draw 697 W on the same H100.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

DTYPE = torch.bfloat16
_ALIGN = 256  # elements: 512 bytes, as the framework's allocator aligns


class Pool:
    """Normal values on the device, made once; operands are views of it at ever new places.

    Args:
        device: where.
        elements: how many values to hold. A larger tensor is made for itself.
        seed: of everything that is drawn.
    """

    def __init__(self, device: torch.device, elements: int, seed: int) -> None:
        self.device = device
        self.generator = torch.Generator(device).manual_seed(seed)
        self._values = torch.randn(elements, device=device, dtype=DTYPE, generator=self.generator)
        self._next = 0

    def normal(self, *shape: int) -> Tensor:
        """A contiguous view of normal values; don't write to it."""
        count = math.prod(shape)
        if count > self._values.numel():
            return self.own(*shape)
        if self._next + count > self._values.numel():
            self._next = 0
        view = self._values[self._next : self._next + count].view(shape)
        self._next += -(-count // _ALIGN) * _ALIGN
        return view

    def leaf(self, *shape: int) -> Tensor:
        """The same, recorded by autograd."""
        return self.normal(*shape).detach().requires_grad_()

    def own(self, *shape: int) -> Tensor:
        """Normal values that may be written to."""
        return torch.randn(shape, device=self.device, dtype=DTYPE, generator=self.generator)

    def integers(self, high: int, count: int) -> Tensor:
        """Uniform integers below `high`, int64."""
        return torch.randint(high, (count,), device=self.device, generator=self.generator)

    def host_integers(self, values: Sequence[int]) -> Tensor:
        """int32 values from the host, copied without waiting for the device."""
        tensor = torch.tensor(values, dtype=torch.int32)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def tokens(self, vocabulary: int, count: int) -> Tensor:
        """Token ids with P(id) falling as 1/id, about as words do (Zipf 1949): log-uniform."""
        uniform = torch.rand(count, device=self.device, generator=self.generator)
        return (vocabulary**uniform).long().sub_(1).clamp_(0, vocabulary - 1)

    def router_logits(self, tokens: int, experts: int) -> Tensor:
        """Logits of a router that favours some experts mildly: normal, with a bias falling in the expert's rank."""
        rank = torch.arange(1, experts + 1, device=self.device, dtype=torch.float32)
        # assumed: odds fall as rank**-0.3, of 64 experts by 3.5 from first to last
        bias = (-0.3 * rank.log())[torch.randperm(experts, device=self.device, generator=self.generator)]
        return self.normal(tokens, experts) + bias.to(DTYPE)


def expert_rows(rows: int, experts: int, skew: float, seed: int = 0) -> list[int]:
    """Rows of each expert: the busiest has `skew` times the mean, the others follow a power law, in random order.

    counts ∝ rank^-a, with a such that the largest is `skew * rows / experts`.
    """
    exponent = _power(experts, min(skew, float(experts)))
    share = [(rank + 1) ** -exponent for rank in range(experts)]
    ends = [0.0]
    for s in share:
        ends.append(ends[-1] + s)
    bounds = [round(rows * end / ends[-1]) for end in ends]
    counts = [b - a for a, b in itertools.pairwise(bounds)]
    order = torch.randperm(experts, generator=torch.Generator().manual_seed(seed)).tolist()
    return [counts[i] for i in order]


def _power(experts: int, skew: float) -> float:
    """The exponent whose largest share over the mean share is `skew`, by bisection."""
    low, high = 0.0, 64.0  # rank^-64 leaves all to the first; 60 halvings are all digits
    for _ in range(60):
        middle = (low + high) / 2
        if experts / sum((rank + 1) ** -middle for rank in range(experts)) < skew:
            low = middle
        else:
            high = middle
    return low
