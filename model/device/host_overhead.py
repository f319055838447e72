"""Launch overhead: time the host needs to queue the kernels of a training step.

An eager framework queues kernels one by one at a few microseconds each. The device waits when it is done before the
next kernel is queued, so a step takes as long as the slower of the two. Costs are measured for whole blocks of
the real training model (a dense layer, an MoE layer, embedding with head and loss, an optimizer tensor), since module
calls, views and autograd nodes belong to no single operator. A backend whose blocks nobody measured has a cost for each
kernel instead (`kernel`), times the number of operator calls.

Left out: stalls when the launch queue is full, processes that share the host's cores.
"""

from __future__ import annotations

from dataclasses import dataclass

from moemodel.model.core.arrays import FloatArray
from moemodel.model.records.calibration import Calibration, HostLane

_FALLBACK = "torch"

# Time that the hosts of a kind of GPU take, over those of H100, where nobody measured them with the framework: medians
# over Megatron-LM's functional tests that ran on both and that the host bounds (commit d98e8a6, golden values of `dev`,
# iterations below 1.2 s; `bench/host_factors.py --golden`). DGX A100, 44 tests; Grace, of GB200, 29 tests. Of GB200 1.1
# is nearer to its own tests, where what passes and kernels that give the same bits take is counted by itself
_DGX_A100, _GRACE, _GB200 = 1.51, 1.37, 1.1
HOSTS: dict[str, float] = {
    "a100-sxm-40gb": _DGX_A100,
    "a100-sxm-80gb": _DGX_A100,
    "gh200-96gb": _GRACE,
    "gh200-144gb": _GRACE,
    "gb200-186gb": _GB200,
    "gb300-288gb": _GB200,
}


@dataclass(frozen=True, kw_only=True)
class HostCost:
    """Host time of a block in one micro-batch, s; in each plan, or the same in all. [P] or scalars."""

    forward_s: FloatArray | float
    backward_s: FloatArray | float

    def __add__(self, other: HostCost) -> HostCost:
        return HostCost(forward_s=self.forward_s + other.forward_s, backward_s=self.backward_s + other.backward_s)

    def times(self, factor: FloatArray | float) -> HostCost:
        """That many of it; in all plans, or in each, [P, 1]."""
        return HostCost(forward_s=factor * self.forward_s, backward_s=factor * self.backward_s)


class HostModel:
    """Host times of one backend; those of the torch backend where it was not measured, zero where neither was."""

    def __init__(self, calibration: Calibration, backend: str) -> None:
        lanes = {lane.backend: lane for lane in calibration.host}
        lane: HostLane | None = lanes.get(backend, lanes.get(_FALLBACK))
        self.known = backend in lanes
        self._blocks = {name: p.value for name, p in lane.blocks.items()} if lane else {}

    def _cost(self, block: str) -> HostCost:
        return HostCost(
            forward_s=self._blocks.get(f"{block}/forward", 0.0), backward_s=self._blocks.get(f"{block}/backward", 0.0)
        )

    def block_s(self, name: str) -> float | None:
        """Of a measured block and direction by its name; None where it was not measured."""
        return self._blocks.get(name)

    @property
    def kernel_s(self) -> float:
        """Of one kernel, where blocks were not measured; 0 where they were."""
        return self._blocks.get("kernel", 0.0)

    def layer(self, name: str, blocks: int) -> HostCost:
        """One layer that is like the measured one of that name; its kernels are not in it (`kernel_s`).

        What was measured has two blocks, attention and feed-forward; one with three costs half as much again.
        """
        return self._cost(name).times(blocks / 2)

    def ends(self, share: float) -> HostCost:
        """A share of embedding, final norm, head and loss; their kernels are not in it (`kernel_s`)."""
        return self._cost("head_and_loss").times(share)

    def layer_step_s(self, name: str) -> float:
        """The optimizer's part for one layer's tensors."""
        return self._blocks.get(f"{name}/step", self._blocks.get("layer/step", 0.0))

    def fixed_step_s(self) -> float:
        """What a step costs however many tensors there are."""
        return self._blocks.get("step/step", 0.0)
