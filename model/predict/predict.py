"""Time, energy, memory and clock of training plans: the parts put together.

Axes: P plans, U distinct micro-batch shapes among them, K clocks. Blocks are priced once per distinct shape, then
summed into stages, stages into a step, and the step is solved for the clock that the governor lets each stage keep.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.device.dvfs import Stretch, at_clock, settled_clocks, time_at_clock
from moemodel.model.device.power import PowerModel, power_model
from moemodel.model.layers.flops import model_flops
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.schedule.base import StageTimes
from moemodel.model.schedule.pipeline_layout import Stage, stages
from moemodel.model.step.communication_groups import Behind
from moemodel.model.step.microbatch_comm import Exchange
from moemodel.model.step.stage_cost import BlockCosts, StageCost, StageCosts, distinct_rows
from moemodel.model.step.system import Machine

_CLOCKS = 7  # of the range, at which blocks are priced; between them, linear in the clock or its period
# Of the power of links, what a GPU draws that waits in a collective's kernel: 40 to 90 W above idle in six plans where
# two H100 wait for each other or for the host, measured for this project in 2026; their links draw 158 W.
_POLLING = 0.35
_ROUNDING = 1e-12  # of a step: what remains of it when all its parts are subtracted


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What each plan costs. All arrays are [P]; per step unless they say otherwise.

    Attributes:
        step_time_s: one optimizer step.
        step_time_error: relative standard error of it; likewise `energy_error`.
        forward_s, backward_s, optimizer_s: device time of the mean GPU.
        exposed_communication_s: communication that nothing hides.
        bubble_s: idle in the pipeline.
        host_wait_s: idle because the host had not queued work yet.
        hidden_communication_s: communication behind computation.
        clock_Hz: true SM clock while kernels run, time-weighted over the mean GPU.
        forward_clock_Hz, backward_clock_Hz, optimizer_clock_Hz: the same by phase.
        power_W: mean of one GPU over the step; `hottest_power_W` of the one that draws most.
        temperature_C: of the die in the steady state of a long run.
        energy_J: of all GPUs.
        forward_J, backward_J, optimizer_J, communication_J, idle_J: its parts, all GPUs.
        flops: model FLOPs of the step (3 x forward, no recomputation), all GPUs.
        mfu: model FLOPs over what the GPUs' peak could have done.
        memory_B: peak of the fullest GPU; `memory_terms_B` its terms.
        fits: it fits in memory.
        outside: share of device time in shapes outside what was measured.
        tokens: of the step.
    """

    step_time_s: FloatArray
    step_time_error: FloatArray
    energy_error: FloatArray
    forward_s: FloatArray
    backward_s: FloatArray
    optimizer_s: FloatArray
    exposed_communication_s: FloatArray
    bubble_s: FloatArray
    host_wait_s: FloatArray
    hidden_communication_s: FloatArray
    clock_Hz: FloatArray
    forward_clock_Hz: FloatArray
    backward_clock_Hz: FloatArray
    optimizer_clock_Hz: FloatArray
    power_W: FloatArray
    hottest_power_W: FloatArray
    temperature_C: FloatArray
    energy_J: FloatArray
    forward_J: FloatArray
    backward_J: FloatArray
    optimizer_J: FloatArray
    communication_J: FloatArray
    idle_J: FloatArray
    flops: FloatArray
    mfu: FloatArray
    memory_B: FloatArray
    memory_terms_B: dict[str, FloatArray]
    fits: NDArray[np.bool_]
    outside: FloatArray
    tokens: FloatArray


@dataclass(frozen=True, kw_only=True)
class _Device:
    """Device lane of one class of stages at X clocks: time, dynamic energy and cycles of each phase. [P, X]."""

    forward_s: FloatArray
    backward_s: FloatArray
    optimizer_s: FloatArray
    forward_J: FloatArray
    backward_J: FloatArray
    optimizer_J: FloatArray
    forward_cycles: FloatArray
    backward_cycles: FloatArray
    optimizer_cycles: FloatArray

    @property
    def true_Hz(self) -> FloatArray:
        """Mean clock over the phases of a micro-batch and the optimizer, cycles that are skipped left out."""
        cycles = self.forward_cycles + self.backward_cycles + self.optimizer_cycles
        return np.asarray(cycles / (self.forward_s + self.backward_s + self.optimizer_s))


def _device(cost: StageCost) -> _Device:
    """At the clocks that blocks were priced at."""
    return _Device(
        forward_s=cost.forward.time_s_UK,
        backward_s=cost.backward.time_s_UK,
        optimizer_s=cost.optimizer.time_s_UK,
        forward_J=cost.forward.energy_J_UK,
        backward_J=cost.backward.energy_J_UK,
        optimizer_J=cost.optimizer.energy_J_UK,
        forward_cycles=cost.forward.cycles_UK,
        backward_cycles=cost.backward.cycles_UK,
        optimizer_cycles=cost.optimizer.cycles_UK,
    )


def _device_at(cost: StageCost, clock_Hz_K: FloatArray, clocks: _Clocks) -> _Device:
    """At one clock for each plan and phase."""
    device = _device(cost)

    def at(name: str) -> FloatArray:
        values: FloatArray = getattr(device, name)
        clock_Hz_P: FloatArray = getattr(clocks, name.partition("_")[0])
        if name.endswith("_cycles"):  # cycles over the clock go as time does
            return time_at_clock(values / clock_Hz_K, clock_Hz_K, clock_Hz_P)[:, None] * clock_Hz_P[:, None]
        go = at_clock if name.endswith("_J") else time_at_clock
        return go(values, clock_Hz_K, clock_Hz_P)[:, None]

    return _Device(**{f.name: at(f.name) for f in fields(device)})


@dataclass(frozen=True, kw_only=True)
class _Clocks:
    """Mean clock that is set in each phase, [P]."""

    forward: FloatArray
    backward: FloatArray
    optimizer: FloatArray


@dataclass(frozen=True, kw_only=True)
class _Timeline:
    """A step laid out in time. [P, X]; exchanges of a micro-batch by class of stages."""

    step_s: FloatArray
    device_s: FloatArray  # the step if the host were never late
    exposed_step_s: FloatArray
    exposed_s: list[FloatArray]
    hidden_s: list[FloatArray]


class _Pipeline:
    """Plans that share a pipeline: their stages' costs, and the step that they make together."""

    def __init__(self, costs: StageCosts, pipeline: tuple[Stage, ...], machine: Machine) -> None:
        self.plans = costs.plans
        self.counts = [stage.count for stage in pipeline]
        self.costs = [costs.stage(stage) for stage in pipeline]
        self.m = self.plans.micro_batches[:, None].astype(np.float64)
        self.ahead = self._runs_ahead(machine)
        p = self.plans
        meets = (p.tp > 1) | (p.pp > 1) | (p.ep > 1) | ((p.zero_stage > 0) & (p.dp * p.cp > 1))
        self.polls = (meets & machine.framework.busy_waits)[:, None]

    def _runs_ahead(self, machine: Machine) -> NDArray[np.bool_]:
        """Whether the host queues a step whatever the device has done of it, [P, 1]; else it waits in every pass."""
        framework = machine.framework
        alone = sum(self.counts) == 1 or framework.pipeline == "torch"
        waits = np.logical_or.reduce([cost.wait_s > 0 for cost in self.costs])
        return np.asarray(~waits & (alone and not framework.synchronizes_every_pass))

    def mean(self, values: list[FloatArray]) -> FloatArray:
        """Mean over the GPUs of a quantity given for each class of stages."""
        return np.asarray(sum(n * v for n, v in zip(self.counts, values, strict=True)) / sum(self.counts))

    def timeline(self, devices: list[_Device]) -> _Timeline:
        """The step, with each class of stages at the given clocks."""
        exposed, hidden, forward, backward = [], [], [], []
        for cost, device in zip(self.costs, devices, strict=True):
            shown_f, gone_f = self._exchange(cost.forward_exchange, device.forward_s)
            shown_b, gone_b = self._exchange(cost.backward_exchange, device.backward_s)
            exposed.append(self.m * (shown_f + shown_b))
            hidden.append(self.m * (gone_f + gone_b))
            forward.append(device.forward_s + shown_f)
            backward.append(device.backward_s + shown_b)
        shown = [self._step_exchange(cost, device) for cost, device in zip(self.costs, devices, strict=True)]
        exposed_step = np.maximum.reduce(shown)
        exposed_step = exposed_step + self.costs[0].way_s[:, None]
        device_s = self._span(forward, backward) + np.maximum.reduce([device.optimizer_s for device in devices])
        return _Timeline(
            step_s=self._with_host(forward, backward, devices, device_s) + exposed_step,
            device_s=device_s + exposed_step,
            exposed_step_s=exposed_step,
            exposed_s=exposed,
            hidden_s=hidden,
        )

    def _exchange(self, exchange: Exchange, beside_s: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Exposed and hidden communication of a micro-batch beside its computation."""
        hidden = _hidden(exchange.behind, beside_s)
        return (exchange.exposed_s + exchange.behind.time_s)[:, None] - hidden, hidden

    def _step_exchange(self, cost: StageCost, device: _Device) -> FloatArray:
        """What computation does not hide of the exchange over data-parallel ranks (see `step_exchange`)."""
        exchange = cost.step_exchange
        beside_f = exchange.forward_passes[:, None] * (1 - cost.forward_lead) * device.forward_s
        beside_b = exchange.backward_passes[:, None] * (1 - cost.backward_lead) * device.backward_s
        hidden = _hidden(exchange.forward, beside_f) + _hidden(exchange.backward, beside_b)
        return np.asarray(exchange.whole_s[:, None] - hidden)

    def _span(self, forward: list[FloatArray], backward: list[FloatArray]) -> FloatArray:
        """All micro-batches of a step."""
        if sum(self.counts) == 1:
            return np.asarray(self.m * (forward[0] + backward[0]))
        shares = [cost.weight_share for cost in self.costs]
        times = StageTimes(forward_s=forward, backward_s=backward, weight_share=shares, counts=self.counts)
        return self.plans.schedules.makespan(times)

    def _with_host(
        self, forward: list[FloatArray], backward: list[FloatArray], devices: list[_Device], device_s: FloatArray
    ) -> FloatArray:
        """Step without gradient exchange: the slower of the device lanes, which take `device_s`, and the host lanes."""
        exchange = [cost.host_exchange_s for cost in self.costs]
        queued = [
            self.m * (cost.host.forward_s + cost.host.backward_s) + exchange_s + cost.host_step_s
            for cost, exchange_s in zip(self.costs, exchange, strict=True)
        ]
        ahead_s = np.maximum(device_s, np.maximum.reduce(queued))
        if self.ahead.all():
            return ahead_s
        more = [exchange_s / (2 * self.m) for exchange_s in exchange]  # in a pass
        span = self._span(
            [
                np.maximum(f, cost.host.forward_s + more_s) + cost.wait_s
                for f, cost, more_s in zip(forward, self.costs, more, strict=True)
            ],
            [
                np.maximum(b, cost.host.backward_s + more_s) + cost.again_s
                for b, cost, more_s in zip(backward, self.costs, more, strict=True)
            ],
        )
        optimizer = [
            np.maximum(device.optimizer_s, cost.host_step_s) for device, cost in zip(devices, self.costs, strict=True)
        ]
        return np.where(self.ahead, ahead_s, span + np.maximum.reduce(optimizer))

    def dynamic_J(self, index: int, device: _Device, timeline: _Timeline, link_W: float) -> FloatArray:
        """Dynamic energy of a GPU of one class of stages in a step, links included."""
        computed = self.m * (device.forward_J + device.backward_J) + device.optimizer_J
        moved = link_W * self.talk_s(index, timeline)
        return np.asarray(computed + moved + self.polling_J(index, device, timeline, link_W))

    def polling_J(self, index: int, device: _Device, timeline: _Timeline, link_W: float) -> FloatArray:
        """What a GPU draws while kernels of collectives wait on it for other GPUs."""
        computed_s = self.m * (device.forward_s + device.backward_s) + device.optimizer_s
        idle_s = timeline.step_s - computed_s - timeline.exposed_s[index] - timeline.exposed_step_s
        return np.asarray(_POLLING * link_W * np.where(self.polls, np.maximum(idle_s, 0.0), 0.0))

    def cycle(
        self, device: _Device, step_s: FloatArray, dynamic_J: FloatArray, tree_W: FloatArray, idle_W: FloatArray
    ) -> list[Stretch]:
        """A step of a GPU as the governor sees it: all micro-batches but the last, a forward pass, a backward pass, the
        optimizer. What is neither (bubbles, links, waiting) counts for the passes, in proportion to their time.

        Args:
            device: at X clocks.
            step_s, dynamic_J: of the GPU's step, clock tree included, [P, X].
            tree_W: of the clock tree, [P, X].
            idle_W: what it draws beside, [P, X].
        """
        passes_s = device.forward_s + device.backward_s
        stretch = (step_s - device.optimizer_s) / (self.m * passes_s)
        optimizer_J = device.optimizer_J + tree_W * device.optimizer_s
        beside_W = (dynamic_J - optimizer_J) / (step_s - device.optimizer_s)
        passes_J = device.forward_J + device.backward_J  # none where power is not modelled
        spread = np.divide(beside_W * passes_s, passes_J, out=np.zeros_like(beside_W), where=passes_J > 0)
        forward_W, backward_W = (
            device.forward_J / device.forward_s * spread,
            device.backward_J / device.backward_s * spread,
        )
        parts = [
            ((self.m - 1) * passes_s * stretch, beside_W),
            (device.forward_s * stretch, forward_W),
            (device.backward_s * stretch, backward_W),
            (device.optimizer_s, optimizer_J / device.optimizer_s),
        ]
        return [Stretch(time_s_PK=time, power_W_PK=watts + idle_W) for time, watts in parts]

    def talk_s(self, index: int, timeline: _Timeline) -> FloatArray:
        """Time in which a GPU of one class of stages communicates, hidden or not."""
        whole_s = self.costs[index].step_exchange.whole_s[:, None]
        return timeline.exposed_s[index] + timeline.hidden_s[index] + whole_s


def _hidden(behind: Behind, beside_s: FloatArray) -> FloatArray:
    """What costs no time of communication beside computation that takes `beside_s`, [P, X]."""
    return np.minimum(behind.free_s[:, None], beside_s)


def predict(
    architecture: Architecture, plans: PlanBatch, machine: Machine, *, temperature_C: float | None = None
) -> Prediction:
    """What each plan costs.

    Args:
        architecture: the model to train.
        plans: P plans; degrees must divide (`plan.check_architecture` says which do not).
        machine: GPU, links, backend and precision.
        temperature_C: die temperature, if it is known (a short run); None: the steady state of a long one.

    Raises:
        CalibrationError: the calibration lacks an operator that the architecture needs.
    """
    power = power_model(machine.calibration, inlet_C=machine.inlet_C)
    clock_Hz_K = _clocks(machine, power)
    blocks = BlockCosts(architecture, plans, machine=machine, power=power, clock_Hz_K=clock_Hz_K)
    out: dict[str, FloatArray] = {}
    terms: dict[str, FloatArray] = {}
    first, pipeline = distinct_rows([plans.pp, plans.virtual_stages])
    for index, row in enumerate(first):
        rows = np.flatnonzero(pipeline == index)
        cut = stages(architecture, int(plans.pp[row]), int(plans.virtual_stages[row]))
        costs = blocks.at(rows)
        columns = _solve(_Pipeline(costs, cut, machine), machine, power, clock_Hz_K, temperature_C)
        fullest = costs.fullest(cut)
        _scatter(out, columns | {"memory_B": fullest.peak_B}, rows, len(plans))
        _scatter(terms, fullest.terms_B, rows, len(plans))
    return _finish(architecture, plans, machine, out, terms)


def _clocks(machine: Machine, power: PowerModel) -> FloatArray:
    """Clocks that blocks are priced at: evenly over the range, and where the voltage begins to rise."""
    low_Hz, high_Hz = machine.calibration.clock_range_Hz
    knee_Hz = np.clip(power.knee_Hz, low_Hz, high_Hz)
    return np.unique(np.append(np.linspace(low_Hz, high_Hz, _CLOCKS), knee_Hz))


def _scatter(out: dict[str, FloatArray], columns: dict[str, FloatArray], rows: IntArray, size: int) -> None:
    for name, values in columns.items():
        out.setdefault(name, np.zeros(size))[rows] = values


def _solve(
    pipe: _Pipeline, machine: Machine, power: PowerModel, clock_Hz_K: FloatArray, temperature_C: float | None
) -> dict[str, FloatArray]:
    """Clock of every stage, and with it everything that depends on the clock. Columns [P]."""
    everywhere = [_device(cost) for cost in pipe.costs]
    uniform = pipe.timeline(everywhere)
    clocks = []
    for index, device in enumerate(everywhere):
        tree_W = power.clocked_W(device.true_Hz)
        dynamic_J = pipe.dynamic_J(index, device, uniform, power.link_W) + tree_W * uniform.step_s
        mean_W = dynamic_J / uniform.step_s
        total_W, _ = _total(power, mean_W, temperature_C)
        cycle = pipe.cycle(device, uniform.step_s, dynamic_J, tree_W, total_W - mean_W)
        limit_W = _limit_W(pipe.plans, machine, power, steady=temperature_C is None)
        clocks.append(_governed(cycle, clock_Hz_K, pipe.plans, limit_W, machine))
    devices = [_device_at(cost, clock_Hz_K, clock) for cost, clock in zip(pipe.costs, clocks, strict=True)]
    trees_W = [power.clocked_W(device.true_Hz) for device in devices]
    return _columns(pipe, devices, pipe.timeline(devices), trees_W, power, temperature_C)


def _total(power: PowerModel, dynamic_W: FloatArray, temperature_C: float | None) -> tuple[FloatArray, FloatArray]:
    """Power and die temperature of a load whose dynamic power is given."""
    if temperature_C is not None:
        return power.total_W(dynamic_W, temperature_C), np.full_like(dynamic_W, temperature_C)
    return power.steady(dynamic_W)


def _limit_W(plans: PlanBatch, machine: Machine, power: PowerModel, *, steady: bool) -> FloatArray:
    """What power is held at, at most: by the cap and, in the steady state, by the temperature that slows the clock."""
    cap_W = machine.sustained_share * np.where(np.isnan(plans.power_cap_W), machine.power_limit_W, plans.power_cap_W)
    if not steady or power.thermal_C_per_W == 0:
        return np.asarray(cap_W)
    return np.minimum(cap_W, max(0.0, (machine.slowdown_C - power.inlet_C) / power.thermal_C_per_W))


def _governed(
    cycle: list[Stretch], clock_Hz_K: FloatArray, plans: PlanBatch, limit_W_P: FloatArray, machine: Machine
) -> _Clocks:
    """Mean clock of each phase under the limit, and no higher than the plan asks."""
    asked_Hz = np.where(np.isnan(plans.clock_Hz), clock_Hz_K[-1], plans.clock_Hz)
    others, forward, backward, optimizer = settled_clocks(
        cycle,
        clock_Hz_K,
        limit_W_P=limit_W_P,
        highest_Hz_P=np.clip(asked_Hz, clock_Hz_K[0], clock_Hz_K[-1]),
        gain_Hz_per_J=machine.governor_gain_Hz_per_J,
    )
    before = 1 - 1 / plans.micro_batches  # share of the micro-batches that are not the last
    return _Clocks(
        forward=before * others + (1 - before) * forward,
        backward=before * others + (1 - before) * backward,
        optimizer=optimizer,
    )


def _columns(
    pipe: _Pipeline,
    devices: list[_Device],
    timeline: _Timeline,
    trees_W: list[FloatArray],
    power: PowerModel,
    temperature_C: float | None,
) -> dict[str, FloatArray]:
    """What `Prediction` holds, of the mean GPU; clock trees count as static there."""
    step, m = timeline.step_s, pipe.m
    talk = [pipe.talk_s(i, timeline) for i in range(len(devices))]
    dynamic = [pipe.dynamic_J(i, d, timeline, power.link_W) for i, d in enumerate(devices)]
    polling_J = pipe.mean([pipe.polling_J(i, d, timeline, power.link_W) for i, d in enumerate(devices)])
    states = [
        _total(power, joules / step + tree_W, temperature_C) for joules, tree_W in zip(dynamic, trees_W, strict=True)
    ]
    power_W = pipe.mean([watts for watts, _ in states])
    static_W = power_W - pipe.mean(dynamic) / step

    def over(name: str, factor: FloatArray | float) -> FloatArray:
        return np.asarray(factor * pipe.mean([getattr(device, name) for device in devices]))

    forward, backward = over("forward_s", m), over("backward_s", m)
    optimizer = over("optimizer_s", 1.0)
    exposed = pipe.mean(timeline.exposed_s) + timeline.exposed_step_s
    idle = step - forward - backward - optimizer - exposed
    idle = np.where(idle > _ROUNDING * step, idle, 0.0)
    late = np.clip(step - timeline.device_s, 0.0, idle)
    late = np.where(late > _ROUNDING * step, late, 0.0)
    cycles = {
        name: over(f"{name}_cycles", factor) for name, factor in (("forward", m), ("backward", m), ("optimizer", 1.0))
    }
    busy = forward + backward + optimizer
    columns = {
        "step_time_s": step,
        "forward_s": forward,
        "backward_s": backward,
        "optimizer_s": optimizer,
        "exposed_communication_s": exposed,
        "hidden_communication_s": np.maximum(pipe.mean(talk) - exposed, 0.0),
        "bubble_s": np.where(idle - late > _ROUNDING * step, idle - late, 0.0),
        "host_wait_s": late,
        "clock_Hz": sum(cycles.values()) / busy,
        "forward_clock_Hz": cycles["forward"] / forward,
        "backward_clock_Hz": cycles["backward"] / backward,
        "optimizer_clock_Hz": cycles["optimizer"] / optimizer,
        "power_W": power_W,
        "hottest_power_W": np.maximum.reduce([watts for watts, _ in states]),
        "temperature_C": np.maximum.reduce([celsius for _, celsius in states]),
        "forward_J": over("forward_J", m) + static_W * forward,
        "backward_J": over("backward_J", m) + static_W * backward,
        "optimizer_J": over("optimizer_J", 1.0) + static_W * optimizer,
        "communication_J": power.link_W * pipe.mean(talk) + static_W * exposed,
        "idle_J": static_W * idle + polling_J,
    }
    flat = {name: values[:, 0] for name, values in columns.items()}
    return flat | _spreads(pipe, flat)


def _spreads(pipe: _Pipeline, columns: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """Relative standard error of device time, and share of it outside what was measured, of the slowest stage."""
    variances, outsides = [], []
    for cost in pipe.costs:
        spread: dict[str, FloatArray] = {}
        lanes = ((cost.forward, pipe.m[:, 0]), (cost.backward, pipe.m[:, 0]), (cost.optimizer, np.ones(len(pipe.m))))
        total = np.asarray(sum(factor * lane.time_s_UK[:, -1] for lane, factor in lanes))
        for lane, factor in lanes:
            for key, value in lane.spread_s.items():
                spread[key] = spread.get(key, 0.0) + factor * value
        variances.append(np.asarray(sum(np.square(value) for value in spread.values())) / np.square(total))
        outsides.append(np.asarray(sum(factor * lane.outside_s_U for lane, factor in lanes)) / total)
    device_share = (columns["forward_s"] + columns["backward_s"] + columns["optimizer_s"]) / columns["step_time_s"]
    return {
        "device_error": np.sqrt(np.maximum.reduce(variances)) * np.minimum(device_share, 1.0),
        "outside": np.maximum.reduce(outsides),
    }


def _finish(
    architecture: Architecture,
    plans: PlanBatch,
    machine: Machine,
    out: dict[str, FloatArray],
    terms: dict[str, FloatArray],
) -> Prediction:
    """Totals over all GPUs, model FLOPs, and the errors of the whole."""
    device_error = out.pop("device_error")
    talk = out["exposed_communication_s"] / out["step_time_s"] * machine.network_error
    host = out["host_wait_s"] / out["step_time_s"] * machine.host_error
    step_error = np.sqrt(device_error**2 + talk**2 + host**2 + machine.composition_error**2)
    gpus = plans.gpus
    totals = {name: gpus * out.pop(name) for name in [n for n in out if n.endswith("_J")]}
    flops = model_flops(architecture, plans.seq) * plans.global_batch
    return Prediction(
        **out,
        **totals,
        energy_J=gpus * out["power_W"] * out["step_time_s"],
        step_time_error=step_error,
        energy_error=np.hypot(step_error, machine.calibration.power.log_error),
        flops=flops,
        mfu=flops / (out["step_time_s"] * gpus * machine.peak_flops_per_s),
        memory_terms_B=terms,
        fits=out["memory_B"] <= machine.memory_B,
        tokens=(plans.global_batch * plans.seq).astype(np.float64),
    )
