"""The clock that each stage keeps: a step as the governor of one GPU sees it, solved for the clocks it settles at.

Axes: P plans that share their pipeline, K clocks that blocks are priced at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray
from moemodel.model.device.dvfs import PowerSegment, steady_state_clocks
from moemodel.model.device.operator_cost import shares
from moemodel.model.device.power import PowerModel
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.predict.phases import ByPhase, DeviceCosts
from moemodel.model.predict.timeline import PipelineStep, Timeline
from moemodel.model.step.system import System

# Over which the slow limit holds mean power: about a second on H100s, measured for this project in 2026. Of plans on
# two of them exchanges of 10 to 50 ms, which nothing hid, let the passes draw more: apart from these they would leave
# power 1 to 3 % too low (bench/validate.py).
_WINDOW_S = 1.0


class _Part(Enum):
    """Of a step, as the governor sees it, in order."""

    OTHERS = "all micro-batches but the last"
    FORWARD = "forward pass of the last"
    BACKWARD = "its backward pass"
    EXCHANGE = "communication of the step that nothing hides"
    OPTIMIZER = "optimizer"
    FILL = "the pipeline fills and drains"


PowerProfile = dict[_Part, PowerSegment]


def sustained_clocks(
    pipe: PipelineStep,
    devices: list[DeviceCosts],
    timeline: Timeline,
    clock_Hz_K: FloatArray,
    *,
    machine: System,
    powers: Sequence[PowerModel],
    temperature_C: float | None,
    highest_Hz: Sequence[FloatArray],
    row_P: IntArray | None = None,
) -> list[list[ByPhase[FloatArray]]]:
    """Mean clock that is set in each phase, [P], for each class of stages, for each of some power models.

    Args:
        pipe: the plans.
        devices, timeline: every stage, and the step, at the clocks that blocks are priced at, [P, K].
        clock_Hz_K: these clocks.
        machine: GPU and its limits.
        powers: its power, each with inlet air of its own temperature; solved together, since a single plan's time is
            that of numpy's calls.
        temperature_C: of the die, if it is known; None: the steady state.
        highest_Hz: clock that may be set at most in each class of stages, [P].
        row_P: which of `pipe` each plan is, of plans that differ in their clocks alone; None: they are one for one.
    """
    steady = temperature_C is None
    limits_W = [_limit_W(pipe.plans, machine, power, steady=steady) for power in powers]
    loads = [
        _Load(
            profile=_power_profile(pipe, index, device, timeline, power, temperature_C),
            limit_W=limit_W,
            highest_Hz=np.clip(highest_Hz[index], clock_Hz_K[0], clock_Hz_K[-1]),
        )
        for power, limit_W in zip(powers, limits_W, strict=True)
        for index, device in enumerate(devices)
    ]
    clocks = _governed(loads, clock_Hz_K, pipe.plans, machine, row_P)
    return [clocks[place * len(devices) : (place + 1) * len(devices)] for place in range(len(powers))]


def within_limit(
    pipe: PipelineStep,
    devices: list[DeviceCosts],
    timeline: Timeline,
    *,
    machine: System,
    power: PowerModel,
    temperature_C: float | None,
) -> BoolArray:
    """Plans of which no GPU draws more than the limit in any stretch of a step at these clocks, [P]: the governor holds
    none of them back.

    Args:
        pipe: the plans.
        devices, timeline: every stage, and the step, at the clocks that are asked for, [P, 1].
        machine, power, temperature_C: as `sustained_clocks` takes them.
    """
    limit_W = _limit_W(pipe.plans, machine, power, steady=temperature_C is None)[:, None]
    held = np.ones((len(pipe.plans), 1), dtype=np.bool_)
    for index, device in enumerate(devices):
        for part in _power_profile(pipe, index, device, timeline, power, temperature_C).values():
            held &= (part.power_W_UK <= limit_W) | (part.time_s_UK <= 0)
    return held[:, 0]


def total_power(power: PowerModel, dynamic_W: FloatArray, temperature_C: float | None) -> tuple[FloatArray, FloatArray]:
    """Power and die temperature of a load whose dynamic power is given; at a known temperature, or the steady one."""
    if temperature_C is not None:
        return power.total_W(dynamic_W, temperature_C), np.full_like(dynamic_W, temperature_C)
    return power.steady(dynamic_W)


def _limit_W(plans: PlanBatch, machine: System, power: PowerModel, *, steady: bool) -> FloatArray:
    """What power is held at, at most: by the cap and, in the steady state, by the temperature that slows the clock."""
    cap_W = machine.sustained_share * np.where(np.isinf(plans.power_cap_W), machine.power_limit_W, plans.power_cap_W)
    if not steady or power.thermal_C_per_W == 0:
        return np.asarray(cap_W)
    return np.minimum(cap_W, max(0.0, (machine.slowdown_C - power.inlet_C) / power.thermal_C_per_W))


def _power_profile(
    pipe: PipelineStep,
    index: int,
    device: DeviceCosts,
    timeline: Timeline,
    power: PowerModel,
    temperature_C: float | None,
) -> PowerProfile:
    """A step of a GPU as the governor sees it: all micro-batches but the last, a forward pass, a backward pass, the
    optimizer, communication of the step that nothing hides, and the pipeline that fills and drains, each in one piece.
    What is none of these (links, waiting in between) counts for the passes, in proportion to their time. So does most
    of the communication of the step where it is shorter than the window that the limit holds over.

    Args:
        pipe: the plans.
        index, device: which class of stages, and what it does at K clocks.
        timeline: of the step, [P, K].
        power: of the GPU, with `temperature_C` of its die, or None for the steady state.
    """
    m, step_s = pipe.m, timeline.step_s
    clocked = pipe.clocked_power(device, power)
    clock_tree_W = clocked.clock_tree_W
    dynamic_J = pipe.dynamic_J(index, device, timeline, power, clocked) + clock_tree_W * step_s
    mean_W = dynamic_J / step_s
    idle_W = total_power(power, mean_W, temperature_C)[0] - mean_W
    forward, backward, optimizer = device.forward, device.backward, device.optimizer
    passes_s = forward.time_s + backward.time_s
    optimizer_W = shares(optimizer.energy_J, optimizer.time_s) + clock_tree_W
    fill_W = clock_tree_W + clocked.busy_waiting_W
    exchange_s = _in_one_piece_s(pipe.plans, timeline)
    sent_s = np.minimum(exchange_s, pipe.costs[index].step_exchange.whole_s[:, None])  # the rest, others'
    sent = np.divide(sent_s, exchange_s, out=np.zeros_like(exchange_s), where=exchange_s > 0)
    exchange_W = clock_tree_W + power.link_W * sent
    apart_s = optimizer.time_s + timeline.fill_s + exchange_s
    apart_J = optimizer_W * optimizer.time_s + fill_W * timeline.fill_s + exchange_W * exchange_s
    stretch = (step_s - apart_s) / (m * passes_s)
    beside_W = (dynamic_J - apart_J) / (step_s - apart_s)
    passes_J = forward.energy_J + backward.energy_J  # none where power is not modelled
    spread = np.divide(beside_W * passes_s, passes_J, out=np.zeros_like(beside_W), where=passes_J > 0)
    parts = {
        _Part.OTHERS: ((m - 1) * passes_s * stretch, beside_W),
        _Part.FORWARD: (forward.time_s * stretch, forward.energy_J / forward.time_s * spread),
        _Part.BACKWARD: (backward.time_s * stretch, shares(backward.energy_J, backward.time_s) * spread),
        _Part.EXCHANGE: (exchange_s, exchange_W),
        _Part.OPTIMIZER: (optimizer.time_s, optimizer_W),
        _Part.FILL: (timeline.fill_s, fill_W),
    }
    return {part: PowerSegment(time_s_UK=time, power_W_UK=watts + idle_W) for part, (time, watts) in parts.items()}


def _in_one_piece_s(plans: PlanBatch, timeline: Timeline) -> FloatArray:
    """Of the communication of a step that nothing hides, what the governor meets apart from the passes, [P, K].

    Nothing of what is short for its window, all of what is long for it; all in a pipeline, where it comes while that
    drains; nothing under ZeRO 3, whose passes wait for every layer.
    """
    share = np.where((plans.pp > 1)[:, None], 1.0, -np.expm1(-timeline.exposed_step_s / _WINDOW_S))
    return np.where((plans.zero_stage < 3)[:, None], share * timeline.exposed_step_s, 0.0)


@dataclass(frozen=True, kw_only=True)
class _Load:
    """A step of one class of stages as the governor sees it, with the limit on its power, [P], and the highest clock
    that may be set in each plan.
    """

    profile: PowerProfile
    limit_W: FloatArray
    highest_Hz: FloatArray


def _governed(
    loads: Sequence[_Load], clock_Hz_K: FloatArray, plans: PlanBatch, machine: System, row_P: IntArray | None
) -> list[ByPhase[FloatArray]]:
    """Mean clock of each phase of each load: all are solved together, since their time is that of numpy's calls."""
    rows = np.arange(len(plans)) if row_P is None else row_P
    every = np.concatenate([place * len(plans) + rows for place in range(len(loads))])
    parts = [part for part in _Part if any((load.profile[part].time_s_UK > 0).any() for load in loads)]
    settled = steady_state_clocks(
        [replace(_joined([load.profile[part] for load in loads]), row_P=every) for part in parts],
        clock_Hz_K,
        limit_W_P=np.concatenate([load.limit_W[rows] for load in loads]),
        highest_Hz_P=np.concatenate([load.highest_Hz for load in loads]),
        gain_Hz_per_J=machine.governor_gain_Hz_per_J,
    )
    clocks = dict(zip(parts, settled, strict=True))
    forward = clocks[_Part.FORWARD]
    backward, optimizer = (clocks.get(part, forward) for part in (_Part.BACKWARD, _Part.OPTIMIZER))  # trained or not
    if _Part.OTHERS in clocks:
        before = np.tile(1 - 1 / plans.micro_batches[rows], len(loads))  # share of the micro-batches that are not last
        # their work takes as long at the mean of their periods, not of their clocks
        forward = 1 / (before / clocks[_Part.OTHERS] + (1 - before) / forward)
        backward = 1 / (before / clocks[_Part.OTHERS] + (1 - before) / backward)
    phases = [np.split(clock_Hz, len(loads)) for clock_Hz in (forward, backward, optimizer)]
    return [ByPhase(forward=f, backward=b, optimizer=o) for f, b, o in zip(*phases, strict=True)]


def _joined(stretches: Sequence[PowerSegment]) -> PowerSegment:
    """The same stretch of several loads, one behind another."""
    if len(stretches) == 1:
        return stretches[0]
    return PowerSegment(
        time_s_UK=np.concatenate([stretch.time_s_UK for stretch in stretches]),
        power_W_UK=np.concatenate([stretch.power_W_UK for stretch in stretches]),
    )
