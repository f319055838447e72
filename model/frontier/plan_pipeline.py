"""The pipeline of a plan, with what every stage and phase takes at the clocks that its GPUs have.

Times are those of the prediction (`model.predict`): device time and what communication of a micro-batch it does not
hide, or the host's time where that is longer. Energies are above those of the idle GPU at the temperature that is
predicted at the governor's clock, the clock tree's among them. Clocks are those that are asked for: the highest of a
stage is what the governor lets one of its phases keep, and the other goes no faster than it does under the governor.
Waiting draws what the kernels of collectives and the clock tree do at the stage's mean clock.

Left out: that time which passes leave does not hide the communication of a step as well as before; that a slower stage
is cooler.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.errors import InputError
from moemodel.model.device.dvfs import at_clocks, time_at_clocks
from moemodel.model.device.power import PowerModel, power_model
from moemodel.model.frontier.pipeline import Kind, Pipeline, Table
from moemodel.model.plan.batch import batch_of
from moemodel.model.plan.checks import architecture_of
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.phases import ByPhase, ClockedCost, DeviceCosts, device_costs, mean_clock_Hz
from moemodel.model.predict.predict import predict
from moemodel.model.predict.priced_clocks import priced_clocks
from moemodel.model.predict.sustained_clock import sustained_clocks
from moemodel.model.predict.timeline import PipelineStep
from moemodel.model.schedule.base import Sizes
from moemodel.model.schedule.pipeline_layout import members, stages
from moemodel.model.schedule.registry import find
from moemodel.model.step.microbatch_comm import Exchange
from moemodel.model.step.stage_cost import BlockCosts, StageCost
from moemodel.model.step.system import System

# Between clocks of NVIDIA's GPUs, where a description does not say (`nvidia-smi -q -d SUPPORTED_CLOCKS` on A100, H100).
_STEP_Hz = 15e6
_SAME = 1e-6  # of a clock: what differs by rounding


@dataclass(frozen=True, kw_only=True)
class _Context:
    """What all stages of a plan share.

    Attributes:
        machine, power: of a GPU.
        clock_Hz_K: that stages are priced at.
        warm: what dynamic energy is times, at the temperature of the die.
        plan: itself.
    """

    machine: System
    power: PowerModel
    clock_Hz_K: FloatArray
    warm: float
    plan: Plan

    def settable_Hz(self, kept_Hz: float) -> FloatArray:
        """Clocks that can be set, from the lowest that is priced to one that is kept, which is the last."""
        gpu = self.machine.gpu
        low_Hz, step_Hz = gpu.clock_min_Hz or float(self.clock_Hz_K[0]), gpu.clock_step_Hz or _STEP_Hz
        clocks = low_Hz + step_Hz * np.arange(int((kept_Hz - low_Hz) / step_Hz) + 1)
        below = clocks[(clocks >= self.clock_Hz_K[0] * (1 - _SAME)) & (clocks < kept_Hz * (1 - _SAME))]
        return np.append(below, kept_Hz)


def pipeline_of(plan: Plan, machine: System) -> Pipeline:
    """The passes of a plan's step, at the clocks from the lowest that is priced to what the governor lets each keep.

    Of a plan that passes its micro-batches in several runs of the schedule, one run.

    Args:
        plan: that fits its architecture and GPU (`plan.checks`); its clocks do not count.
        machine: what it runs on.

    Raises:
        InputError: its stages are in pairs.
        CalibrationError: the calibration lacks an operator that the architecture needs.
    """
    if plan.distinct_stages < plan.parallel.pp:
        raise InputError(f"schedule: found {plan.schedule}; allowed for clocks by operation: dualpipe-v, or another")
    plan = plan.model_copy(update={"clock_MHz": None})
    architecture, batch = architecture_of(plan), batch_of(plan)
    power = power_model(machine.calibration, inlet_C=machine.inlet_C)
    temperature_C = float(predict(architecture, batch, machine).temperature_C[0])
    context = _Context(
        machine=machine,
        power=power,
        clock_Hz_K=priced_clocks(machine.calibration, power),
        warm=1 + power.rise_per_C * (temperature_C - power.leak_reference_C),
        plan=plan,
    )
    blocks = BlockCosts(architecture, batch, machine=machine, power=power, clock_Hz_K=context.clock_Hz_K)
    pp, virtual = plan.parallel.pp, plan.parallel.virtual_stages
    pipe = PipelineStep(blocks.at(np.arange(1), stages(architecture, *batch.pipeline(0))), machine)
    made = _stage_tables(pipe, context)
    of_stage = {
        s: found
        for of_class, found in zip(members(architecture, *batch.pipeline(0)), made, strict=True)
        for s in of_class
    }
    return Pipeline(
        schedule=find(plan.schedule, virtual),
        sizes=Sizes(
            stages=pp,
            virtual=virtual,
            micro_batches=int(batch.scheduled[0]),
            round=int(batch.micro_batches_per_round[0]),
        ),
        tables={(stage, kind): table for stage, (tables, _) in of_stage.items() for kind, table in tables.items()},
        waiting_W=tuple(of_stage[stage][1] for stage in range(pp)),
        idle_W=(float(power.static_W(temperature_C)),) * pp,
        message_s=(_message_s(pipe),) * pp,
    )


def _stage_tables(pipe: PipelineStep, context: _Context) -> list[tuple[dict[Kind, Table], float]]:
    """Of each class of stages, what its passes take, and the power at which it waits."""
    devices = [device_costs(cost) for cost in pipe.costs]
    (kept,) = sustained_clocks(
        pipe,
        devices,
        pipe.timeline(devices),
        context.clock_Hz_K,
        machine=context.machine,
        powers=[context.power],
        temperature_C=None,
        highest_Hz=[pipe.plans.clock_Hz] * len(devices),
    )
    return [
        (_tables(cost, device, kept_Hz, context), _waiting_W(pipe, device, kept_Hz, context))
        for cost, device, kept_Hz in zip(pipe.costs, devices, kept, strict=True)
    ]


def _waiting_W(pipe: PipelineStep, device: DeviceCosts, kept_Hz: ByPhase[FloatArray], context: _Context) -> float:
    """Of a GPU above idle, at the mean clock that it keeps."""
    here = device.join(kept_Hz, lambda cost, clock_Hz_P: cost.at(context.clock_Hz_K, clock_Hz_P))
    spinning_W = pipe.clocked_power(here, context.power).busy_waiting_W
    clock_tree_W = context.power.clocked_W(mean_clock_Hz(here, pipe.m))
    return context.warm * float((spinning_W + clock_tree_W).item())


def _tables(cost: StageCost, device: DeviceCosts, kept_Hz: ByPhase[FloatArray], context: _Context) -> dict[Kind, Table]:
    """Of one chunk's passes of a micro-batch."""
    chunks = context.plan.parallel.virtual_stages
    asked_Hz = context.settable_Hz(max(float(kept_Hz.forward.item()), float(kept_Hz.backward.item())))
    kept_F, kept_B = np.minimum(asked_Hz, kept_Hz.forward), np.minimum(asked_Hz, kept_Hz.backward)
    forward = _table(device.forward, cost.forward_exchange, cost.host.forward_s, (asked_Hz, kept_F), context)
    backward = _table(device.backward, cost.backward_exchange, cost.host.backward_s, (asked_Hz, kept_B), context)
    if not find(context.plan.schedule, chunks).splits_backward:
        return {"F": _part(forward, 1 / chunks), "B": _part(backward, 1 / chunks)}
    weights = float(cost.weight_share.item())
    return {
        "F": _part(forward, 1 / chunks),
        "B": _part(backward, (1 - weights) / chunks),
        "W": _part(backward, weights / chunks),
    }


def _part(table: Table, share: float) -> Table:
    return Table(clock_Hz=table.clock_Hz, time_s=share * table.time_s, energy_J=share * table.energy_J)


def _table(
    device: ClockedCost,
    exchange: Exchange,
    host_s: FloatArray | float,
    clocks: tuple[FloatArray, FloatArray],
    context: _Context,
) -> Table:
    """Of a stage's passes of a micro-batch in one phase; clocks as they are asked for, and as they are kept."""
    asked_Hz, clock_Hz = clocks
    computed_s = time_at_clocks(device.time_s, context.clock_Hz_K, clock_Hz[None])[0]
    hidden_s = np.minimum(float(exchange.overlappable.hideable_s.item()), computed_s)
    time_s = np.maximum(computed_s + float(exchange.whole_s.item()) - hidden_s, np.asarray(host_s).item())
    dynamic_J = at_clocks(device.energy_J, context.clock_Hz_K, clock_Hz[None])[0]
    energy_J = context.warm * (dynamic_J + context.power.clocked_W(clock_Hz) * time_s)
    return Table(clock_Hz=asked_Hz, time_s=time_s, energy_J=energy_J)


def _message_s(pipe: PipelineStep) -> float:
    """Between two chunks, where a schedule hides messages but for the way down and back; else it is in the passes."""
    plans = pipe.plans
    messages = 2 * plans.rounds * (plans.pp * plans.virtual_stages - 1)
    return float((pipe.costs[0].pipeline_fill_comm_s / np.maximum(messages, 1)).item())
