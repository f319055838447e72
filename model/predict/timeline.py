"""A step of a pipeline laid out in time: passes, communication that they hide or not, the host, bubbles.

Axes: P plans that share their pipeline, X clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray, at_rows, largest, take_rows
from moemodel.model.device.operator_cost import shares
from moemodel.model.device.power import PowerModel
from moemodel.model.predict.phases import ByPhase, DeviceCosts, mean_clock_Hz, mean_switching
from moemodel.model.schedule.base import StageTimes
from moemodel.model.step.communication_groups import OverlappableComm
from moemodel.model.step.microbatch_comm import Exchange
from moemodel.model.step.stage_cost import StageCost, StageCosts
from moemodel.model.step.system import System

# Of the power of links, what a GPU draws at its reference clock that waits in a collective's kernel: 40 to 90 W above
# idle in six plans where two H100 wait for each other or for the host, measured for this project in 2026; their links
# draw 158 W. It spins on its SMs, so it follows their clock and voltage.
_BUSY_WAITING = 0.35


_ROUNDING = 1e-12  # of a step: what remains of it when all its parts are subtracted


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """A step laid out in time. [P, X]; communication of the micro-batches by class of stages.

    Attributes:
        step_s: the step, whose sequences are read beside it.
        device_s: the step if the host were never late, and updated nothing itself.
        fill_s: while a pipeline fills and drains: what passes take beyond those of the slowest stage.
        exposed_step_s: exposed communication that comes once a step.
        exposed_s, overlapped_s: communication of all micro-batches that nothing hides, and that computation hides.
    """

    step_s: FloatArray
    device_s: FloatArray
    fill_s: FloatArray
    exposed_step_s: FloatArray
    exposed_s: list[FloatArray]
    overlapped_s: list[FloatArray]


@dataclass(frozen=True, kw_only=True)
class ClockedPower:
    """Of a GPU, [P, X].

    Attributes:
        clock_tree_W: of its clock tree, in the mean of a step.
        busy_waiting_W: above idle, while it waits for others.
    """

    clock_tree_W: FloatArray
    busy_waiting_W: FloatArray


@dataclass(frozen=True, kw_only=True)
class _OverlapPasses:
    """Passes of a micro-batch that hide what is exchanged once in a run of a schedule, [P, 1]."""

    forward: FloatArray
    backward: FloatArray


class PipelineStep:
    """Plans that share a pipeline: their stages' costs, and the step that they make together."""

    def __init__(
        self,
        costs: StageCosts,
        machine: System,
        runs: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Of classes of stages; `runs` cuts each into so many stages that differ in their clocks alone."""
        self.plans = costs.plans
        self._phases_differ = runs is not None
        self._unlike = self.plans.changes_clock_within_a_step if runs is not None else None
        counts = [[_column(stage.count)] for stage in costs.pipeline] if runs is None else runs
        self.counts = [count for of_class in counts for count in of_class]
        self.costs = [cost for cost, of_class in zip(costs.stages(), counts, strict=True) for _ in of_class]
        self._alone = len(self.counts) == 1 and bool(np.all(self.counts[0] == 1))
        self.m = self.plans.micro_batches[:, None].astype(np.float64)
        self._async_launch = self._launches_asynchronously(machine)
        p = self.plans
        synchronizes = (p.tp > 1) | (p.pp > 1) | (p.ep > 1) | ((p.zero_stage > 0) & (p.dp * p.cp > 1))
        self._busy_waits = (synchronizes & machine.framework.busy_waits)[:, None]
        loading = machine.data_loading
        read_s = np.zeros(len(p)) if loading is None else loading.step_s(p.micro_batches * p.micro_batch, p.dp)
        self._read_s = read_s[:, None]
        self._overlap_passes = self._overlap_passes_of_classes()

    def take(self, rows: IntArray) -> PipelineStep:
        """The plans at these rows, repeated as asked; of the work of the device at the highest clock alone."""
        some = copy(self)
        some.plans = self.plans.take(rows)
        some.counts = [count if isinstance(count, int) else count[rows] for count in self.counts]
        some.costs = [take_rows(cost.at_highest_clock(), rows) for cost in self.costs]
        some.m = at_rows(self.m, rows)
        some._async_launch, some._busy_waits = at_rows(self._async_launch, rows), at_rows(self._busy_waits, rows)
        some._read_s = at_rows(self._read_s, rows)
        some._overlap_passes = [take_rows(passes, rows) for passes in self._overlap_passes]
        return some

    def _launches_asynchronously(self, machine: System) -> BoolArray:
        """Whether the host queues a step whatever the device has done of it, [P, 1]; else it waits in every pass."""
        framework = machine.framework
        alone = self._alone or framework.pipeline == "torch"
        synchronizes_host = np.logical_or.reduce([cost.host_sync_s > 0 for cost in self.costs])
        return np.asarray(~synchronizes_host & (alone and not framework.synchronizes_every_pass))

    def mean(self, values: list[FloatArray]) -> FloatArray:
        """Mean over the GPUs of a quantity given for each class of stages."""
        return np.asarray(sum(n * v for n, v in zip(self.counts, values, strict=True)) / sum(self.counts))

    def timeline(self, devices: list[DeviceCosts]) -> Timeline:
        """The step, with each class of stages at the given clocks."""
        exposed, overlapped, forward, backward = [], [], [], []
        for cost, device in zip(self.costs, devices, strict=True):
            exposed_forward_s, overlapped_forward_s = _split(cost.forward_exchange, device.forward.time_s)
            exposed_backward_s, overlapped_backward_s = _split(cost.backward_exchange, device.backward.time_s)
            exposed.append(self.m * (exposed_forward_s + exposed_backward_s))
            overlapped.append(self.m * (overlapped_forward_s + overlapped_backward_s))
            forward.append(device.forward.time_s + exposed_forward_s)
            backward.append(device.backward.time_s + exposed_backward_s)
        exposed_step_s = self._exposed_step_s(forward, backward)
        optimizer_s = largest([device.optimizer.time_s for device in devices])
        passes_s = self._passes_s(forward, backward)
        slowest_s = largest([f + b for f, b in zip(forward, backward, strict=True)])
        device_s = passes_s + optimizer_s + exposed_step_s
        late_s = self._late_s(forward, backward, devices)
        done_s = np.maximum(device_s, late_s) + largest([cost.host_update_s for cost in self.costs])
        return Timeline(
            step_s=np.maximum(done_s, self._read_s),
            device_s=device_s,
            fill_s=np.maximum(passes_s - self.m * slowest_s, 0.0),
            exposed_step_s=exposed_step_s,
            exposed_s=exposed,
            overlapped_s=overlapped,
        )

    def exposed_pass_s(self, index: int, device: DeviceCosts) -> tuple[FloatArray, FloatArray]:
        """Communication of one micro-batch that nothing hides, forward and backward, of one class of stages."""
        cost = self.costs[index]
        forward_s, _ = _split(cost.forward_exchange, device.forward.time_s)
        backward_s, _ = _split(cost.backward_exchange, device.backward.time_s)
        return forward_s, backward_s

    def _exposed_step_s(self, forward: list[FloatArray], backward: list[FloatArray]) -> FloatArray:
        """Of the stage that shows most, and messages that fill the pipeline. Beside the passes of the slowest stage the
        others stand idle between theirs, and exchange meanwhile; a micro-batch's own communication runs behind nothing.

        Args:
            forward, backward: passes of each class of stages, with what they expose.
        """
        slowest_s = largest([f + b for f, b in zip(forward, backward, strict=True)])
        exposed = [
            _exposed_of_step_s(cost, forward_s, backward_s, slowest_s - forward_s - backward_s, passes)
            for cost, forward_s, backward_s, passes in zip(
                self.costs, forward, backward, self._overlap_passes, strict=True
            )
        ]
        return np.asarray(largest(exposed) + self.costs[0].pipeline_fill_comm_s[:, None])

    def _overlap_passes_of_classes(self) -> list[_OverlapPasses]:
        """Of each class of stages, of which the last one has the fewest (no schedule gives a later stage more). Where
        chunks of a stage take turns, the parameters of the last one are needed when others have passed; the gradients
        of the one that ends first come as long before the end (Narayanan et al. 2021, section 2.2; Megatron-LM,
        core/pipeline_parallel/schedules.py: grad_sync_func, param_sync_func). One pass hides what is exchanged around
        it, and under ZeRO 2 and 3 in it."""
        plans, stage = self.plans, np.zeros(len(self.plans), dtype=np.int64)
        once = plans.zero_stage <= 1
        found = []
        for count in self.counts:
            stage = stage + (count if isinstance(count, int) else count[:, 0])
            last = np.clip(stage - 1, 0, plans.pp - 1)
            forward = plans.schedules.overlap_passes_forward(last)
            backward = plans.schedules.overlap_passes_backward(last)
            found.append(
                _OverlapPasses(
                    forward=np.where(once, np.maximum(forward, 1.0), 1.0)[:, None],
                    backward=np.where(once, np.maximum(backward, 1.0), 1.0)[:, None],
                )
            )
        return found

    def _passes_s(
        self, forward: list[FloatArray], backward: list[FloatArray], shares: list[FloatArray] | None = None
    ) -> FloatArray:
        """All micro-batches of a step; `shares` of gradients of weights in backward passes, if not the device's."""
        if self._alone:
            return np.asarray(self.m * (forward[0] + backward[0]))
        shares = [cost.weight_share for cost in self.costs] if shares is None else shares
        times = StageTimes(forward_s=forward, backward_s=backward, weight_share=shares, counts=self.counts)
        return self.plans.schedules.makespan(times, self._unlike)

    def _late_s(self, forward: list[FloatArray], backward: list[FloatArray], devices: list[DeviceCosts]) -> FloatArray:
        """The step if the device always waits for the host, which takes longer than it or not.

        What the device exchanges in a step then runs behind the host's time, in which the device stands idle or not.

        Args:
            forward, backward: passes of each class of stages, with what they expose.
            devices: each class of stages.
        """
        more = [cost.host_exchange_s / (2 * self.m) for cost in self.costs]  # in a pass
        host_forward = [cost.host.forward_s + more_s for cost, more_s in zip(self.costs, more, strict=True)]
        host_backward = [cost.host.backward_s + more_s for cost, more_s in zip(self.costs, more, strict=True)]
        if self._async_launch.all():
            return self._async_s(host_forward, host_backward)
        late_forward = [
            _late_forward_s(f, host_s, cost) for f, host_s, cost in zip(forward, host_forward, self.costs, strict=True)
        ]
        split = [
            self._late_backward_s(b, host_s, cost)
            for b, host_s, cost in zip(backward, host_backward, self.costs, strict=True)
        ]
        late_backward, shares = [late_s for late_s, _ in split], [share for _, share in split]
        passes_s = self._passes_s(
            [late_s + cost.host_sync_s for late_s, cost in zip(late_forward, self.costs, strict=True)],
            [late_s + cost.recompute_sync_s for late_s, cost in zip(late_backward, self.costs, strict=True)],
            shares,
        )
        optimizer = [
            _late_step_s(device.optimizer.time_s, cost) for device, cost in zip(devices, self.costs, strict=True)
        ]
        synchronous_s = passes_s + largest(optimizer) + self._exposed_step_s(late_forward, late_backward)
        if not self._async_launch.any():
            return np.asarray(synchronous_s)
        return np.asarray(np.where(self._async_launch, self._async_s(host_forward, host_backward), synchronous_s))

    def _async_s(self, host_forward: list[FloatArray], host_backward: list[FloatArray]) -> FloatArray:
        """The step of a host that queues all of it whatever the device has done, which then waits in every pass."""
        queued_s = largest([self._queued_s(cost) for cost in self.costs])
        return np.asarray(queued_s + self._exposed_step_s(host_forward, host_backward))

    def late_by_phase_s(self, devices: list[DeviceCosts]) -> ByPhase[FloatArray]:
        """In a step, by how much each phase takes longer for the host than its device's own time, [P, X]; of a host
        that waits for the device in every pass, or is behind it all the time. Nothing in a pipeline.
        """
        none = np.zeros_like(devices[0].optimizer.time_s)
        if not self._alone:
            return ByPhase(forward=none, backward=none, optimizer=none)
        (cost,), (device,) = self.costs, devices
        forward_s, backward_s = device.forward.time_s, device.backward.time_s
        late_forward_s = _late_forward_s(forward_s, np.asarray(cost.host.forward_s), cost) + cost.host_sync_s
        late_backward_s = _late_pass_s(backward_s, np.asarray(cost.host.backward_s), cost) + cost.recompute_sync_s
        return ByPhase(
            forward=self.m * (late_forward_s - forward_s),
            backward=self.m * (late_backward_s - backward_s),
            optimizer=_late_step_s(device.optimizer.time_s, cost) - device.optimizer.time_s + cost.host_update_s,
        )

    def _late_backward_s(
        self, backward_s: FloatArray, host_s: FloatArray, cost: StageCost
    ) -> tuple[FloatArray, FloatArray]:
        """A backward pass that the device or the host makes late, and the share of gradients of weights in it. Where it
        falls into two parts, either of them is made late."""
        device_share, call_share = cost.weight_share, cost.weight_call_share
        splits = self.plans.schedules.splits_backward[:, None]
        if not splits.any():
            return _late_pass_s(backward_s, host_s, cost), device_share
        weights_s = _late_pass_s(device_share * backward_s, call_share * host_s, cost)
        inputs_s = _late_pass_s((1 - device_share) * backward_s, (1 - call_share) * host_s, cost)
        late_s = np.where(splits, inputs_s + weights_s, _late_pass_s(backward_s, host_s, cost))
        return late_s, np.where(splits, shares(weights_s, inputs_s + weights_s), device_share)

    def _queued_s(self, cost: StageCost) -> FloatArray:
        """What the host needs to queue a step."""
        return self.m * (cost.host.forward_s + cost.host.backward_s) + cost.host_exchange_s + cost.host_step_s

    # ---- energy ---------------------------------------------------------------------------------------------------

    def dynamic_J(
        self, index: int, device: DeviceCosts, timeline: Timeline, power: PowerModel, clocked: ClockedPower
    ) -> FloatArray:
        """Dynamic energy of a GPU of one class of stages in a step, links included."""
        computed = self.m * (device.forward.energy_J + device.backward.energy_J) + device.optimizer.energy_J
        moved = power.link_W * self.links_s(index, timeline)
        return np.asarray(computed + moved + self.busy_waiting_J(index, device, timeline, clocked))

    def busy_waiting_J(self, index: int, device: DeviceCosts, timeline: Timeline, clocked: ClockedPower) -> FloatArray:
        """What a GPU draws while kernels of collectives wait on it for other GPUs."""
        computed_s = self.m * (device.forward.time_s + device.backward.time_s) + device.optimizer.time_s
        idle_s = timeline.step_s - computed_s - timeline.exposed_s[index] - timeline.exposed_step_s
        return np.asarray(clocked.busy_waiting_W * above_rounding(idle_s, timeline.step_s))

    def clocked_power(self, device: DeviceCosts, power: PowerModel) -> ClockedPower:
        """What a GPU of one class of stages draws that follows its clock alone."""
        switching = self._switching(device, power)
        return ClockedPower(
            clock_tree_W=power.clock_tree_W(switching),
            busy_waiting_W=_BUSY_WAITING * power.link_W * switching * self._busy_waits,
        )

    def _switching(self, device: DeviceCosts, power: PowerModel) -> FloatArray:
        """Power of what switches at every cycle, over that at the reference clock."""
        if self._phases_differ:
            return mean_switching(device, self.m, power)
        return power.switching(mean_clock_Hz(device, self.m))

    def comm_s(self, index: int, timeline: Timeline) -> FloatArray:
        """Time in which a GPU of one class of stages communicates, overlapped or not."""
        whole_s = self.costs[index].step_exchange.whole_s[:, None]
        return timeline.exposed_s[index] + timeline.overlapped_s[index] + whole_s

    def links_s(self, index: int, timeline: Timeline) -> FloatArray:
        """The same with what links inside nodes and NICs move beside each other."""
        cost = self.costs[index]
        beside_s = np.asarray(cost.forward_exchange.beside_s + cost.backward_exchange.beside_s)
        return np.asarray(self.comm_s(index, timeline) + self.m * beside_s.reshape(-1, 1))


def _column(count: int | IntArray) -> int | IntArray:
    """How many stages there are in all plans, or in each, [P, 1]."""
    return count if isinstance(count, int) else count[:, None]


def above_rounding(part_s: FloatArray, step_s: FloatArray) -> FloatArray:
    """Nothing, where a part of a step is what rounding leaves of it."""
    return np.where(part_s > _ROUNDING * step_s, part_s, 0.0)


def _split(exchange: Exchange, window_s: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Exposed and overlapped communication of a micro-batch beside its computation, which takes `window_s`."""
    overlapped = _overlapped_s(exchange.overlappable, window_s)
    return exchange.whole_s[:, None] - overlapped, overlapped


def _late_pass_s(device_s: FloatArray, host_s: FloatArray, cost: StageCost) -> FloatArray:
    """A pass, or a part of it, in which the device waits for the host: the longer of both, or one after the other where
    the host waits for the device, too.
    """
    return np.asarray(device_s + host_s if cost.runs_dry else np.maximum(device_s, host_s))


def _late_forward_s(device_s: FloatArray, host_s: FloatArray, cost: StageCost) -> FloatArray:
    """A forward pass that the device or the host makes late. Where the host waits in each layer, the device does what
    comes before while the host waits, and nothing of what comes behind before the host has queued that."""
    return np.maximum(_late_pass_s(device_s, host_s, cost), cost.host_behind_s + cost.before_share * device_s)


def _late_step_s(device_s: FloatArray, cost: StageCost) -> FloatArray:
    """An optimizer's step that the device or the host makes late: in what comes before the last result that the host
    reads the longer of both, and so in the rest.
    """
    if not cost.host_step_read:
        return np.maximum(device_s, cost.host_step_s)
    read_s = np.maximum(cost.step_read * device_s, cost.host_step_read * cost.host_step_s)
    rest_s = np.maximum((1 - cost.step_read) * device_s, (1 - cost.host_step_read) * cost.host_step_s)
    return np.asarray(read_s + rest_s)


def _exposed_of_step_s(
    cost: StageCost, forward_s: FloatArray, backward_s: FloatArray, idle_s: FloatArray, passes: _OverlapPasses
) -> FloatArray:
    """What passes of a micro-batch, `passes` of them where one would, and the time between them, do not hide of the
    exchange over data-parallel ranks (see `step.data_parallel`). What is idle hides what comes with either pass, but
    only once."""
    exchange = cost.step_exchange
    windows_s = (forward_s, backward_s)
    if not exchange.beside_all:
        windows_s = (_free_s(forward_s, cost.forward_exchange), _free_s(backward_s, cost.backward_exchange))
    behind_forward_s = (1 - cost.unoverlappable_fraction_forward) * windows_s[0]
    behind_backward_s = (1 - cost.unoverlappable_fraction_backward) * windows_s[1]
    passes_forward = passes.forward * exchange.forward_passes[:, None]
    passes_backward = passes.backward * exchange.backward_passes[:, None]
    hidden_forward_s = _overlapped_s(exchange.forward, passes_forward * (behind_forward_s + idle_s))
    hidden_backward_s = _overlapped_s(exchange.backward, passes_backward * (behind_backward_s + idle_s))
    together_s = hidden_forward_s / passes_forward + hidden_backward_s / passes_backward
    twice_s = np.maximum(together_s - behind_forward_s - behind_backward_s - idle_s, 0.0)
    hidden_s = hidden_forward_s + hidden_backward_s - np.minimum(passes_forward, passes_backward) * twice_s
    return np.asarray(exchange.whole_s[:, None] - hidden_s)


def _free_s(pass_s: FloatArray, exchange: Exchange) -> FloatArray:
    """A pass without its own communication, hidden or not."""
    return np.maximum(pass_s - exchange.whole_s[:, None], 0.0)


def _overlapped_s(comm: OverlappableComm, window_s: FloatArray) -> FloatArray:
    """What costs no time of communication beside computation that takes `window_s`, [P, X]."""
    return np.minimum(comm.hideable_s[:, None], window_s)
