"""The clock that each stage keeps: a step as the governor of one GPU sees it, solved for the clocks it settles at.

Axes: P plans that share their pipeline, K clocks that blocks are priced at.
"""

from __future__ import annotations

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.device.dvfs import Stretch, settled_clocks
from moemodel.model.device.power import PowerModel
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.predict.phases import ByPhase, DeviceCosts, mean_clock_Hz
from moemodel.model.predict.timeline import PipelineStep, Timeline
from moemodel.model.step.system import Machine


def sustained_clocks(
    pipe: PipelineStep,
    devices: list[DeviceCosts],
    timeline: Timeline,
    clock_Hz_K: FloatArray,
    *,
    machine: Machine,
    power: PowerModel,
    temperature_C: float | None,
) -> list[ByPhase[FloatArray]]:
    """Mean clock that is set in each phase, [P], for each class of stages.

    Args:
        pipe: the plans.
        devices, timeline: every stage, and the step, at the clocks that blocks are priced at, [P, K].
        clock_Hz_K: these clocks.
        machine: GPU and its limits.
        power: its power.
        temperature_C: of the die, if it is known; None: the steady state.
    """
    limit_W_P = _limit_W(pipe.plans, machine, power, steady=temperature_C is None)
    clocks = []
    for index, device in enumerate(devices):
        tree_W = power.clocked_W(mean_clock_Hz(device))
        dynamic_J = pipe.dynamic_J(index, device, timeline, power.link_W) + tree_W * timeline.step_s
        mean_W = dynamic_J / timeline.step_s
        total_W, _ = total_power(power, mean_W, temperature_C)
        profile = _power_profile(pipe.m, device, timeline.step_s, dynamic_J, tree_W=tree_W, idle_W=total_W - mean_W)
        clocks.append(_governed(profile, clock_Hz_K, pipe.plans, limit_W_P, machine))
    return clocks


def total_power(power: PowerModel, dynamic_W: FloatArray, temperature_C: float | None) -> tuple[FloatArray, FloatArray]:
    """Power and die temperature of a load whose dynamic power is given; at a known temperature, or the steady one."""
    if temperature_C is not None:
        return power.total_W(dynamic_W, temperature_C), np.full_like(dynamic_W, temperature_C)
    return power.steady(dynamic_W)


def _limit_W(plans: PlanBatch, machine: Machine, power: PowerModel, *, steady: bool) -> FloatArray:
    """What power is held at, at most: by the cap and, in the steady state, by the temperature that slows the clock."""
    cap_W = machine.sustained_share * np.where(np.isnan(plans.power_cap_W), machine.power_limit_W, plans.power_cap_W)
    if not steady or power.thermal_C_per_W == 0:
        return np.asarray(cap_W)
    return np.minimum(cap_W, max(0.0, (machine.slowdown_C - power.inlet_C) / power.thermal_C_per_W))


def _power_profile(
    m: FloatArray,
    device: DeviceCosts,
    step_s: FloatArray,
    dynamic_J: FloatArray,
    *,
    tree_W: FloatArray,
    idle_W: FloatArray,
) -> list[Stretch]:
    """A step of a GPU as the governor sees it: all micro-batches but the last, a forward pass, a backward pass, the
    optimizer. What is neither (bubbles, links, waiting) counts for the passes, in proportion to their time.

    Args:
        m: micro-batches, [P, 1].
        device: at K clocks.
        step_s, dynamic_J: of the GPU's step, clock tree included, [P, K].
        tree_W: of the clock tree, [P, K].
        idle_W: what it draws beside, [P, K].
    """
    forward, backward, optimizer = device.forward, device.backward, device.optimizer
    passes_s = forward.time_s + backward.time_s
    stretch = (step_s - optimizer.time_s) / (m * passes_s)
    optimizer_J = optimizer.energy_J + tree_W * optimizer.time_s
    beside_W = (dynamic_J - optimizer_J) / (step_s - optimizer.time_s)
    passes_J = forward.energy_J + backward.energy_J  # none where power is not modelled
    spread = np.divide(beside_W * passes_s, passes_J, out=np.zeros_like(beside_W), where=passes_J > 0)
    parts = [
        ((m - 1) * passes_s * stretch, beside_W),
        (forward.time_s * stretch, forward.energy_J / forward.time_s * spread),
        (backward.time_s * stretch, backward.energy_J / backward.time_s * spread),
        (optimizer.time_s, optimizer_J / optimizer.time_s),
    ]
    return [Stretch(time_s_PK=time, power_W_PK=watts + idle_W) for time, watts in parts]


def _governed(
    profile: list[Stretch], clock_Hz_K: FloatArray, plans: PlanBatch, limit_W_P: FloatArray, machine: Machine
) -> ByPhase[FloatArray]:
    """Mean clock of each phase under the limit, and no higher than the plan asks."""
    asked_Hz = np.where(np.isnan(plans.clock_Hz), clock_Hz_K[-1], plans.clock_Hz)
    others, forward, backward, optimizer = settled_clocks(
        profile,
        clock_Hz_K,
        limit_W_P=limit_W_P,
        highest_Hz_P=np.clip(asked_Hz, clock_Hz_K[0], clock_Hz_K[-1]),
        gain_Hz_per_J=machine.governor_gain_Hz_per_J,
    )
    before = 1 - 1 / plans.micro_batches  # share of the micro-batches that are not the last
    return ByPhase(
        forward=before * others + (1 - before) * forward,
        backward=before * others + (1 - before) * backward,
        optimizer=optimizer,
    )
