"""What a step takes at least, whatever clock the governor lets it keep: time and energy without solving for it.

The step is laid out once, with every phase at the clock at which it takes least time, and its energy counted with every
phase at the clock at which it takes least. A GPU of a stage draws, at dynamic power D = E/t + P_tree, the steady power
P(D) of `device.power`, which is convex: so it lies on or above its tangent at any D0, and over a step

    t P(D)  >=  t (P(D0) - P'(D0) D0) + P'(D0) (E + t P_tree)

which rises with both t and E where P(D0) >= P'(D0) D0: the least of both give a bound. D0 is the power of these least
values, or nothing where the condition doesn't hold there. Left out of E: what GPUs draw that wait for others.

That the step is no shorter at a lower clock is what `timeline` says of all but exchanges over data-parallel ranks,
which the time of a faster stage may hide better: of 338,000 plans of DeepSeek-V3 it was shorter by 8e-6 at most.

Axes: P plans.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray, IntArray
from moemodel.model.core.heap import keep_freed_memory
from moemodel.model.core.threads import in_threads
from moemodel.model.device.power import PowerModel, power_model
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.predict.phases import device_costs
from moemodel.model.predict.priced_clocks import priced_clocks
from moemodel.model.predict.timeline import PipelineStep
from moemodel.model.schedule.pipeline_layout import rows_by_pipeline, stages
from moemodel.model.step.stage_cost import BlockCosts
from moemodel.model.step.system import System

_ROWS = 50_000  # plans that are laid out at once: about 0.1 GB
# Of a step: that it may be shorter at a lower clock, see above. Assumed: a hundred times what was found.
_SHORTER = 1e-3


@dataclass(frozen=True, kw_only=True)
class LowerBounds:
    """What plans take at least, whatever clock they ask for. [P]

    Attributes:
        step_time_s: of a step.
        energy_J: of all GPUs in it, in the steady state.
    """

    step_time_s: FloatArray
    energy_J: FloatArray


def lower_bounds(architecture: Architecture, plans: PlanBatch, machine: System) -> LowerBounds:
    """Least time and energy of plans, with the air that the machine draws in.

    Args:
        architecture, plans, machine: as `predict` takes them.

    Raises:
        CalibrationError: the calibration lacks an operator that the architecture needs.
    """
    keep_freed_memory()
    power = power_model(machine.calibration, inlet_C=machine.inlet_C)
    clock_Hz_K = priced_clocks(machine.calibration, power)
    blocks = BlockCosts(architecture, plans, machine=machine, power=power, clock_Hz_K=clock_Hz_K).least()
    lowest_Hz = float(clock_Hz_K[0])

    def least(rows: IntArray) -> tuple[IntArray, FloatArray, FloatArray]:
        pipeline = stages(architecture, *plans.pipeline(int(rows[0])))
        return (rows, *_least(PipelineStep(blocks.at(rows, pipeline), machine), power, lowest_Hz))

    step_s, energy_J = np.zeros((2, len(plans)))
    for rows, least_s, least_J in in_threads(least, rows_by_pipeline(plans.pipeline_columns, _ROWS)):
        step_s[rows], energy_J[rows] = least_s, least_J
    return LowerBounds(step_time_s=(1 - _SHORTER) * step_s, energy_J=(1 - _SHORTER) * plans.gpus * energy_J)


def _least(pipe: PipelineStep, power: PowerModel, lowest_Hz: float) -> tuple[FloatArray, FloatArray]:
    """Least time of a step, and least energy of the mean GPU in it, [P] each; of plans that share a pipeline."""
    devices = [device_costs(cost) for cost in pipe.costs]
    timeline = pipe.timeline(devices)
    clock_tree_W = float(power.clocked_W(np.asarray(lowest_Hz)))
    energies = []
    for index, device in enumerate(devices):
        passes_J = device.forward.energy_J + device.backward.energy_J
        dynamic_J = pipe.m * passes_J + device.optimizer.energy_J + power.link_W * pipe.links_s(index, timeline)
        energies.append(_least_J(power, timeline.step_s, dynamic_J + clock_tree_W * timeline.step_s))
    return timeline.step_s[:, 0], pipe.mean(energies)[:, 0]


def _least_J(power: PowerModel, time_s: FloatArray, dynamic_J: FloatArray) -> FloatArray:
    """Least energy of a GPU whose step takes no less time and no less dynamic energy, as above."""
    at_W = dynamic_J / time_s
    fixed_W, slope = _tangent(power, at_W)
    rising = fixed_W >= 0
    idle_W, least_slope = _tangent(power, np.zeros_like(at_W))
    return np.where(rising, fixed_W * time_s + slope * dynamic_J, idle_W * time_s + least_slope * dynamic_J)


def _tangent(power: PowerModel, at_W: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Of steady power over dynamic power: what it is at none, and how it rises; it is linear below its limit."""
    watts = power.steady(at_W)[0]
    slope = power.steady_slope(at_W)
    return np.asarray(watts - slope * at_W), slope
