"""Time, energy, memory and clock of training plans: the parts put together.

Axes: P plans, U distinct micro-batch shapes among them, K clocks. Blocks are priced once per distinct shape, then
summed into stages, stages into a step (`timeline`), and the step is solved for the clock that the governor lets each
stage keep (`sustained_clock`). What is priced does not depend on temperature: one `PricedPlans` answers for any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import BoolArray, FloatArray, IntArray, at_rows, distinct_rows, largest, take_rows
from moemodel.model.core.heap import keep_freed_memory
from moemodel.model.device.dvfs import ClockPlaces
from moemodel.model.device.power import PowerModel, power_model
from moemodel.model.layers.adapted_model import model_adapters
from moemodel.model.layers.flops import model_flops
from moemodel.model.plan.batch import PlanBatch
from moemodel.model.plan.dispatch import DEEPEP
from moemodel.model.predict.chips import on_mean_chip, on_straggler, straggler_factors
from moemodel.model.predict.phases import ByPhase, ClockedCost, DeviceCosts, device_costs
from moemodel.model.predict.prediction import Prediction, PredictionByStage
from moemodel.model.predict.priced_clocks import priced_clocks
from moemodel.model.predict.stage_clocks import (
    ClockChanges,
    StageFigures,
    StageRuns,
    bounded,
    ceiling_Hz,
    governor_grid,
    settled,
)
from moemodel.model.predict.sustained_clock import sustained_clocks, total_power, within_limit
from moemodel.model.predict.timeline import PipelineStep, Timeline, above_rounding
from moemodel.model.step.layouts import PlanGroup, layouts_of
from moemodel.model.step.memory import Memory
from moemodel.model.step.memory_fit import fit_probability
from moemodel.model.step.stage_cost import BlockCosts, StageCost, StageCosts
from moemodel.model.step.system import System

# Log errors for each factor e that the clock lies outside those measured: of device time, and of power. From what the
# simulated GPU adds below its passive range (bench/simulated_gpu.py, docs/architecture.md): operators 4.1 instead of
# 2.6 %, power 4.7 instead of 1.4 %, over clocks whose mean distance is half of a factor e.
_TIME_OFF_CLOCK = 0.06
_POWER_OFF_CLOCK = 0.09
# assumed: published bandwidths of DeepEP agree within 5 % (network.node_dispatch); how well they hold elsewhere,
# with rows that do not fall evenly, nobody says
_DISPATCH_ERROR = 0.15
_MANY = 4096  # plans, whose arrays are larger than what glibc keeps unless it is told
_TINY_S = 1e-30  # against dividing by nothing


def predict(
    architecture: Architecture, plans: PlanBatch, machine: System, *, temperature_C: float | None = None
) -> Prediction:
    """What each plan costs.

    Args:
        architecture: the model to train.
        plans: P plans; degrees must divide (`plan.checks.check_architecture` says which do not).
        machine: GPU, links, backend and precision.
        temperature_C: die temperature, if it is known (a short run); None: the steady state of a long one.

    Raises:
        CalibrationError: the calibration lacks an operator that the architecture needs.
    """
    return PricedPlans(architecture, plans, machine).predict(machine.inlet_C, temperature_C=temperature_C)[0]


class PricedPlans:
    """Plans whose work is priced, at whatever temperature it is done.

    Args:
        architecture, plans, machine: as `predict` takes them.

    Raises:
        CalibrationError: the calibration lacks an operator that the architecture needs.
    """

    def __init__(self, architecture: Architecture, plans: PlanBatch, machine: System) -> None:
        if len(plans) >= _MANY:
            keep_freed_memory()
        self._experts = architecture.has_experts
        self._architecture, self._plans, self._machine = architecture, plans, machine
        power = power_model(machine.calibration)
        self._clock_Hz_K = priced_clocks(machine.calibration, power)
        self._alike = alike = _AlikeButForClocks.of(plans)
        self._priced = priced = plans if alike is None else plans.take(alike.first)
        blocks = BlockCosts(architecture, priced, machine=machine, power=power, clock_Hz_K=self._clock_Hz_K)
        self._pipelines = []
        layouts = layouts_of(architecture, priced)
        costs = blocks.at_each([(layout.rows, layout.pipeline) for layout in layouts])
        for layout, of_layout in zip(layouts, costs, strict=True):
            every, row_P = layout.rows, None
            if alike is not None:
                place = layout.place(len(priced))[alike.place]
                every = np.flatnonzero(place >= 0)
                row_P = place[every]
            self._pipelines.append(_PricedPipeline.of(of_layout, layout, every, plans.clock_Hz[every], row_P))

    def predict(self, *inlets_C: float | None, temperature_C: float | None = None) -> list[Prediction]:
        """What each plan costs, with air of each temperature.

        Args:
            inlets_C: temperatures of the air that the GPUs draw in; None: as it was at calibration.
            temperature_C: die temperature, if it is known; None: the steady state.
        """
        powers = [power_model(self._machine.calibration, inlet_C=inlet_C) for inlet_C in inlets_C]
        found = [part.solve(self._clock_Hz_K, self._machine, powers, temperature_C) for part in self._pipelines]
        rows = [part.rows for part in self._pipelines]
        return [self._joined(list(zip(rows, parts, strict=True))) for parts in zip(*found, strict=True)]

    def parts(self, inlet_C: float | None) -> list[StepParts]:
        """What their steps are made of, by pipeline, in the steady state with air of that temperature."""
        powers = [power_model(self._machine.calibration, inlet_C=inlet_C)]
        return [part.solve(self._clock_Hz_K, self._machine, powers, None)[0].parts for part in self._pipelines]

    def _joined(self, parts: list[tuple[IntArray, _Solved]]) -> Prediction:
        """Plans of several pipelines in one order, with their stages where any has clocks of their own."""
        together = self._together(_scattered([(rows, part.mean) for rows, part in parts], len(self._plans)))
        stages = [(rows, part.stages) for rows, part in parts if part.stages is not None]
        if not stages:
            return together
        own = {f.name: getattr(together, f.name) for f in fields(Prediction)}
        return PredictionByStage(**own, by_stage=StageFigures.together(stages, self._plans.clock_limits_Hz.shape))

    def _together(self, found: _MeanGpu) -> Prediction:
        """Totals over all GPUs, model FLOPs, and the errors of the whole."""
        plans, machine = self._plans, self._machine
        gpus, step_s = plans.gpus, found.step_s
        comm_error = found.exposed_communication_s / step_s * _communication_error(plans, machine)
        host_error = found.host_wait_s / step_s * machine.host_error
        away = _outside_log(found.clock_Hz, machine.calibration.clock_measured_Hz)
        clock_error = _TIME_OFF_CLOCK * away * found.device_share
        software_error = np.hypot(machine.composition_error, machine.framework_error(experts=self._experts))
        step_error = np.sqrt(found.device_error**2 + comm_error**2 + host_error**2 + software_error**2 + clock_error**2)
        power_error = np.hypot(machine.calibration.power.log_error, _POWER_OFF_CLOCK * away)
        flops, (memory_B, terms_B, fit_probability) = self._flops, self._memory
        return Prediction(
            step_time_s=step_s,
            step_time_error=step_error,
            energy_error=np.hypot(step_error, power_error),
            forward_s=found.forward_s,
            backward_s=found.backward_s,
            optimizer_s=found.optimizer_s,
            exposed_communication_s=found.exposed_communication_s,
            bubble_s=found.bubble_s,
            host_wait_s=found.host_wait_s,
            hidden_communication_s=found.overlapped_communication_s,
            gating_s=found.gating_s,
            clock_Hz=found.clock_Hz,
            forward_clock_Hz=found.forward_clock_Hz,
            backward_clock_Hz=found.backward_clock_Hz,
            optimizer_clock_Hz=found.optimizer_clock_Hz,
            power_W=found.power_W,
            hottest_power_W=found.hottest_power_W,
            temperature_C=found.temperature_C,
            energy_J=gpus * found.power_W * step_s,
            forward_J=gpus * found.forward_J,
            backward_J=gpus * found.backward_J,
            optimizer_J=gpus * found.optimizer_J,
            communication_J=gpus * found.communication_J,
            idle_J=gpus * found.idle_J,
            forward_idle_J=gpus * found.forward_idle_J,
            backward_idle_J=gpus * found.backward_idle_J,
            optimizer_idle_J=gpus * found.optimizer_idle_J,
            flops=flops,
            mfu=flops / (step_s * gpus * machine.peak_flops_per_s),
            memory_B=memory_B,
            memory_terms_B=terms_B,
            memory_error=np.full(len(plans), machine.memory_error),
            fits=memory_B <= machine.memory_B,
            fit_probability=fit_probability,
            outside=found.outside,
            tokens=(plans.global_batch * plans.predicted_seq).astype(np.float64),
        )

    @cached_property
    def _flops(self) -> FloatArray:
        """Of the model in a step, [P]."""
        passes = 1 / 3 if self._machine.framework.forward_only else 1.0  # a backward pass does twice as much
        machine = self._machine
        adapters = model_adapters(self._architecture, machine.framework, machine.precision)
        flops = model_flops(
            self._architecture, self._plans.seq, decoder_seq=self._plans.predicted_seq, adapters=adapters
        )
        return passes * flops * self._plans.global_batch

    @cached_property
    def _memory(self) -> tuple[FloatArray, dict[str, FloatArray], FloatArray]:
        """Peak of the fullest GPU, its terms, and how likely it fits, [P]; no clock changes them."""
        peak_B, terms_B = np.zeros(len(self._priced)), dict[str, FloatArray]()
        for part in self._pipelines:
            peak_B[part.priced] = part.memory.peak_B
            for name, size_B in part.memory.terms_B.items():
                terms_B.setdefault(name, np.zeros(len(peak_B)))[part.priced] = size_B
        found = peak_B, terms_B, fit_probability(self._architecture, self._priced, self._machine, peak_B)
        if self._alike is None:
            return found
        place = self._alike.place
        return at_rows(found[0], place), take_rows(found[1], place), at_rows(found[2], place)


def _communication_error(plans: PlanBatch, machine: System) -> FloatArray:
    """Log error of exposed communication: of collectives as measured, and of rows whose dispatch nobody measured."""
    published = (plans.dispatch == DEEPEP) & (plans.ep > 1)
    return np.where(published, np.hypot(machine.network_error, _DISPATCH_ERROR), machine.network_error)


@dataclass(frozen=True, kw_only=True)
class _AlikeButForClocks:
    """Plans that ask for other clocks, and are the same in all else, so that their work is priced once.

    Attributes:
        first: one of those that are alike.
        place: which of `first` each plan is like.
    """

    first: IntArray
    place: IntArray

    @classmethod
    def of(cls, plans: PlanBatch) -> _AlikeButForClocks | None:
        """None where no two are alike, or stages have clocks of their own."""
        if len(plans) == 1 or plans.clock_limits_Hz.shape[1]:
            return None
        others = [f.name for f in fields(PlanBatch) if f.name not in ("clock_Hz", "clock_limits_Hz")]
        first, place = distinct_rows([getattr(plans, name) for name in others])
        return cls(first=first, place=place) if len(first) < len(plans) else None


@dataclass(frozen=True, kw_only=True)
class _MeanGpu:
    """What is predicted of the mean GPU of each plan in a step, [P]; names as in `Prediction`.

    Attributes:
        device_error: relative standard error of the step that device time brings in.
        device_share: of the step, in which the device computes.
    """

    step_s: FloatArray
    forward_s: FloatArray
    backward_s: FloatArray
    optimizer_s: FloatArray
    exposed_communication_s: FloatArray
    overlapped_communication_s: FloatArray
    gating_s: FloatArray
    bubble_s: FloatArray
    host_wait_s: FloatArray
    clock_Hz: FloatArray
    forward_clock_Hz: FloatArray
    backward_clock_Hz: FloatArray
    optimizer_clock_Hz: FloatArray
    power_W: FloatArray
    hottest_power_W: FloatArray
    temperature_C: FloatArray
    forward_J: FloatArray
    backward_J: FloatArray
    optimizer_J: FloatArray
    communication_J: FloatArray
    idle_J: FloatArray
    forward_idle_J: FloatArray
    backward_idle_J: FloatArray
    optimizer_idle_J: FloatArray
    device_error: FloatArray
    device_share: FloatArray
    outside: FloatArray


@dataclass(frozen=True, kw_only=True)
class StepParts:
    """What a step of plans that share a pipeline is made of, at the clocks that they keep.

    Attributes:
        pipe: the step; its classes of stages, or `runs` where stages differ in their clocks.
        devices: by class of stages.
        power: of a GPU.
        power_W: mean of a GPU of each class, [P].
    """

    pipe: PipelineStep
    devices: list[DeviceCosts]
    power: PowerModel
    power_W: list[FloatArray]
    runs: StageRuns | None


@dataclass(frozen=True, kw_only=True)
class _Solved:
    """Plans that share a pipeline at the clocks that they keep: the mean GPU, and stages if their clocks differ."""

    mean: _MeanGpu
    stages: StageFigures | None
    parts: StepParts


def _scattered(parts: list[tuple[IntArray, _MeanGpu]], size: int) -> _MeanGpu:
    """Plans of several pipelines in one order."""
    columns = {f.name: np.zeros(size) for f in fields(_MeanGpu)}
    for rows, part in parts:
        for name, column in columns.items():
            column[rows] = getattr(part, name)
    return _MeanGpu(**columns)


@dataclass(frozen=True, kw_only=True)
class _PricedPipeline:
    """Plans that are laid out together, at the clocks that blocks are priced at.

    Attributes:
        rows: which of the plans; `priced` which of those whose work is priced.
        asked_Hz: the clock that each of them asks for.
        row_P: which row of what follows each of them is, of which many differ in their clocks alone; None: they are one
            for one.
        pipe: their step.
        devices: by class of stages.
        timeline: of the step.
        memory: of the fullest class of stages.
        runs: classes of stages cut where clocks differ; None where each plan has one clock for all.
        blocks: that they are made of.
    """

    rows: IntArray
    priced: IntArray
    asked_Hz: FloatArray
    row_P: IntArray | None
    pipe: PipelineStep
    devices: list[DeviceCosts]
    timeline: Timeline
    memory: Memory
    runs: StageRuns | None
    blocks: BlockCosts

    @classmethod
    def of(
        cls,
        costs: StageCosts,
        layout: PlanGroup,
        every: IntArray,
        asked_Hz: FloatArray,
        row_P: IntArray | None,
        runs: StageRuns | None = None,
    ) -> _PricedPipeline:
        """The plans that are laid out so, and `every` plan that is like one of them but for its clock;
        `runs` are theirs, where they are known."""
        counts = None
        if layout.classes is not None:
            runs = StageRuns.of(layout.classes, costs.plans) if runs is None else runs
            counts = runs.counts(layout.classes)
        pipe = PipelineStep(costs, costs.blocks.machine, counts)
        devices = [device_costs(cost) for cost in pipe.costs]
        return cls(
            rows=every,
            priced=layout.rows,
            asked_Hz=asked_Hz,
            row_P=row_P,
            pipe=pipe,
            devices=devices,
            timeline=pipe.timeline(devices),
            memory=costs.fullest(),
            runs=runs,
            blocks=costs.blocks,
        )

    def solve(
        self, clock_Hz_K: FloatArray, machine: System, powers: Sequence[PowerModel], temperature_C: float | None
    ) -> list[_Solved]:
        """Clock of every stage, and with it everything that depends on the clock, for each power model."""
        clocks = self._clocks if self.runs is None else partial(self._clocks_by_stage, self.runs)
        found, errors = [], _device_error(self.pipe)
        pipe = self.pipe if self.row_P is None else self.pipe.take(self.row_P)
        if self.row_P is not None:
            errors = errors[0][self.row_P], errors[1][self.row_P]
        changes = [None] * len(self.devices) if self.runs is None else self.runs.changes
        factor_P = straggler_factors(pipe.plans)
        unheld_J = self._unheld_J(clock_Hz_K)
        for power, kept in zip(powers, clocks(clock_Hz_K, machine, powers, temperature_C), strict=True):
            held = self._at(kept, changes, clock_Hz_K)
            devices = [on_mean_chip(device, free, factor_P) for device, free in zip(held, unheld_J, strict=True)]
            mean, watts = _mean_gpu(pipe, devices, pipe.timeline(devices), power, temperature_C, errors)
            figures = None if self.runs is None else self.runs.figures(kept, devices, watts)
            parts = StepParts(pipe=pipe, devices=devices, power=power, power_W=watts, runs=self.runs)
            found.append(_Solved(mean=mean, stages=figures, parts=parts))
        return found

    def _at(
        self,
        clocks: Sequence[ByPhase[FloatArray]],
        changes: Sequence[ClockChanges | None],
        clock_Hz_K: FloatArray,
    ) -> list[DeviceCosts]:
        """What each class of stages does at clocks of its own."""
        return [
            settled(device, clock, change, clock_Hz_K, self.row_P)
            for device, clock, change in zip(self.devices, clocks, changes, strict=True)
        ]

    def _unheld_J(self, clock_Hz_K: FloatArray) -> list[ByPhase[FloatArray]]:
        """Dynamic energy of each class of stages at the clocks that are asked for, [P, 1]."""
        asked = self._asked(clock_Hz_K)
        if self.runs is not None:
            return [device.map(lambda cost: cost.energy_J) for device in self._at(asked, self.runs.changes, clock_Hz_K)]
        places = ClockPlaces.of(clock_Hz_K, asked[0].forward, len(self.pipe.plans), self.row_P)  # one for all phases
        return [device.map(lambda cost: places.linear(cost.energy_J)[:, None]) for device in self.devices]

    def _asked(self, clock_Hz_K: FloatArray) -> list[ByPhase[FloatArray]]:
        """The highest clock that each class of stages may have in each phase, [P]."""
        if self.runs is not None:
            return self.runs.within(float(clock_Hz_K[0]), float(clock_Hz_K[-1]))
        asked_Hz = np.clip(self.asked_Hz, clock_Hz_K[0], clock_Hz_K[-1])
        return [ByPhase(forward=asked_Hz, backward=asked_Hz, optimizer=asked_Hz)] * len(self.devices)

    @cached_property
    def _slowest(self) -> list[DeviceCosts]:
        """What each class of stages does on the chip that sets the pace, at the clocks that blocks are priced at."""
        factor_P = straggler_factors(self.pipe.plans)
        return [on_straggler(device, factor_P) for device in self.devices]

    def _clocks(
        self, clock_Hz_K: FloatArray, machine: System, powers: Sequence[PowerModel], temperature_C: float | None
    ) -> list[list[ByPhase[FloatArray]]]:
        """Of each class of stages, up to the clock of its plan."""
        return sustained_clocks(
            self.pipe,
            self._slowest,
            self.timeline,
            clock_Hz_K,
            machine=machine,
            powers=powers,
            temperature_C=temperature_C,
            highest_Hz=[self.asked_Hz] * len(self.devices),
            row_P=self.row_P,
        )

    def _clocks_by_stage(
        self,
        runs: StageRuns,
        clock_Hz_K: FloatArray,
        machine: System,
        powers: Sequence[PowerModel],
        temperature_C: float | None,
    ) -> list[list[ByPhase[FloatArray]]]:
        """Of each run of stages: the bounds of its phases, or what the governor leaves of them."""
        limits = self._asked(clock_Hz_K)
        devices = [
            settled(device, limit, change, clock_Hz_K)
            for device, limit, change in zip(self._slowest, limits, runs.changes, strict=True)
        ]
        timeline = self.pipe.timeline(devices)
        given = [
            within_limit(self.pipe, devices, timeline, machine=machine, power=power, temperature_C=temperature_C)
            for power in powers
        ]
        rows = np.flatnonzero(~np.logical_and.reduce(given))
        if not len(rows):
            return [limits for _ in powers]
        some = self.rows[rows]
        (layout,) = layouts_of(self.blocks.architecture, self.blocks.plans, some)
        costs = self.blocks.at(some, layout.pipeline)
        held = type(self).of(costs, layout, some, self.asked_Hz[rows], None, runs.take(rows))
        found = held._governed_by_stage(runs.take(rows), clock_Hz_K, machine, powers, temperature_C)
        return [
            [
                limit.join(kept, partial(_instead, rows, ~given_P[rows]))
                for limit, kept in zip(limits, of_power, strict=True)
            ]
            for of_power, given_P in zip(found, given, strict=True)
        ]

    def _governed_by_stage(
        self,
        runs: StageRuns,
        clock_Hz_K: FloatArray,
        machine: System,
        powers: Sequence[PowerModel],
        temperature_C: float | None,
    ) -> list[list[ByPhase[FloatArray]]]:
        """The same, where the governor may hold stages back."""
        limits = self._asked(clock_Hz_K)
        clock_Hz_G = governor_grid(clock_Hz_K, machine.gpu.clock_step_Hz)
        devices = [
            bounded(device, limit, changes, clock_Hz_K, clock_Hz_G)
            for device, limit, changes in zip(self._slowest, limits, runs.changes, strict=True)
        ]
        ceilings = sustained_clocks(
            self.pipe,
            devices,
            self.pipe.timeline(devices),
            clock_Hz_G,
            machine=machine,
            powers=powers,
            temperature_C=temperature_C,
            highest_Hz=[ceiling_Hz(limit) for limit in limits],
        )
        return [
            [ceiling.join(limit, np.minimum) for ceiling, limit in zip(of_power, limits, strict=True)]
            for of_power in ceilings
        ]


def _instead(rows: IntArray, some: BoolArray, clock_Hz: FloatArray, found_Hz: FloatArray) -> FloatArray:
    """Clocks of plans, with what was found for some of those at `rows` in their place."""
    changed = clock_Hz.copy()
    changed[rows[some]] = found_Hz[some]
    return changed


def _mean_gpu(
    pipe: PipelineStep,
    devices: list[DeviceCosts],
    timeline: Timeline,
    power: PowerModel,
    temperature_C: float | None,
    errors: tuple[FloatArray, FloatArray],
) -> tuple[_MeanGpu, list[FloatArray]]:
    """Of a step with each class of stages at its clock, [P, 1], and power of a GPU of each class; clock trees count as
    static."""
    step_s = timeline.step_s
    comm_s = pipe.mean([pipe.comm_s(i, timeline) for i in range(len(devices))])
    links_s = pipe.mean([pipe.links_s(i, timeline) for i in range(len(devices))])
    clocked = [pipe.clocked_power(device, power) for device in devices]
    dynamic = [pipe.dynamic_J(i, d, timeline, power, clocked[i]) for i, d in enumerate(devices)]
    states = [
        total_power(power, joules / step_s + own.clock_tree_W, temperature_C)
        for joules, own in zip(dynamic, clocked, strict=True)
    ]
    power_W = pipe.mean([watts for watts, _ in states])
    static_W = power_W - pipe.mean(dynamic) / step_s
    whole = _in_a_step(pipe, devices)
    times = whole.map(lambda phase: phase.time_s)
    energies = whole.map(lambda phase: phase.energy_J + static_W * phase.time_s)
    clocks = whole.map(_clock_Hz)
    busy_s = times.forward + times.backward + times.optimizer
    cycles = whole.forward.cycles + whole.backward.cycles + whole.optimizer.cycles
    exposed_s = pipe.mean(timeline.exposed_s) + timeline.exposed_step_s
    idle_s = above_rounding(step_s - times.forward - times.backward - times.optimizer - exposed_s, step_s)
    late_s = above_rounding(np.clip(step_s - timeline.device_s, 0.0, idle_s), step_s)
    waiting_J = pipe.mean([pipe.busy_waiting_J(i, d, timeline, clocked[i]) for i, d in enumerate(devices)])
    error, outside = errors
    late = pipe.late_by_phase_s(devices)
    late_J = static_W * late_s / np.maximum(late.forward + late.backward + late.optimizer, _TINY_S)
    device_share = np.minimum((busy_s / step_s)[:, 0], 1.0)
    found = _MeanGpu(
        step_s=step_s[:, 0],
        forward_s=times.forward[:, 0],
        backward_s=times.backward[:, 0],
        optimizer_s=times.optimizer[:, 0],
        exposed_communication_s=exposed_s[:, 0],
        overlapped_communication_s=np.maximum(comm_s - exposed_s, 0.0)[:, 0],
        gating_s=_gating_s(pipe, devices)[:, 0],
        bubble_s=above_rounding(idle_s - late_s, step_s)[:, 0],
        host_wait_s=late_s[:, 0],
        clock_Hz=(cycles / busy_s)[:, 0],
        forward_clock_Hz=clocks.forward[:, 0],
        backward_clock_Hz=clocks.backward[:, 0],
        optimizer_clock_Hz=clocks.optimizer[:, 0],
        power_W=power_W[:, 0],
        hottest_power_W=largest([watts for watts, _ in states])[:, 0],
        temperature_C=largest([celsius for _, celsius in states])[:, 0],
        forward_J=energies.forward[:, 0],
        backward_J=energies.backward[:, 0],
        optimizer_J=energies.optimizer[:, 0],
        communication_J=(power.link_W * links_s + static_W * exposed_s)[:, 0],
        idle_J=(static_W * idle_s + waiting_J)[:, 0],
        forward_idle_J=(late_J * late.forward)[:, 0],
        backward_idle_J=(late_J * late.backward)[:, 0],
        optimizer_idle_J=(late_J * late.optimizer)[:, 0],
        device_error=error * device_share,
        device_share=device_share,
        outside=outside,
    )
    return found, [watts[:, 0] for watts, _ in states]


def _clock_Hz(phase: ClockedCost) -> FloatArray:
    """Mean of a phase; NaN of one in which nothing runs."""
    unknown = np.full(np.shape(phase.time_s), np.nan)
    return np.asarray(np.divide(phase.cycles, phase.time_s, out=unknown, where=phase.time_s > 0))


def _gating_s(pipe: PipelineStep, devices: list[DeviceCosts]) -> FloatArray:
    """Of a step, at the clock of each phase as at the highest one, [P, 1]."""
    shares = [(cost.forward.gating_share, cost.backward.gating_share) for cost in pipe.costs]
    gating = [
        forward * device.forward.time_s + backward * device.backward.time_s
        for (forward, backward), device in zip(shares, devices, strict=True)
    ]
    return np.asarray(pipe.m * pipe.mean(gating))


def _in_a_step(pipe: PipelineStep, devices: list[DeviceCosts]) -> DeviceCosts:
    """What the mean GPU does in each phase of a step."""
    repeats = ByPhase(forward=pipe.m, backward=pipe.m, optimizer=np.ones_like(pipe.m))

    def mean(phases: list[ClockedCost]) -> ClockedCost:
        return ClockedCost(
            time_s=pipe.mean([phase.time_s for phase in phases]),
            energy_J=pipe.mean([phase.energy_J for phase in phases]),
            cycles=pipe.mean([phase.cycles for phase in phases]),
        )

    means = ByPhase(
        forward=mean([device.forward for device in devices]),
        backward=mean([device.backward for device in devices]),
        optimizer=mean([device.optimizer for device in devices]),
    )
    return means.join(repeats, ClockedCost.times)


def _outside_log(clock_Hz: FloatArray, measured_Hz: tuple[float, float]) -> FloatArray:
    """How far a clock lies outside a range, as a logarithm, [P]."""
    low_Hz, high_Hz = measured_Hz
    return np.maximum(np.maximum(np.log(low_Hz / clock_Hz), np.log(clock_Hz / high_Hz)), 0.0)


def _device_error(pipe: PipelineStep) -> tuple[FloatArray, FloatArray]:
    """Relative standard error of device time, and share of it outside what was measured, of the slowest stage, [P]."""
    m = pipe.m[:, 0]
    found = [_stage_error(cost, m) for cost in pipe.costs]
    return (
        np.sqrt(largest([variance for variance, _ in found])),
        largest([outside for _, outside in found]),
    )


def _stage_error(cost: StageCost, m: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Relative variance of one stage's device time, and share of it outside what was measured, [P]."""
    phase_costs = ((cost.forward, m), (cost.backward, m), (cost.optimizer, np.ones(len(m))))
    total = np.asarray(sum(factor * lane.time_s_UK[:, -1] for lane, factor in phase_costs))
    extrapolated_s = np.asarray(sum(factor * lane.extrapolated_s_U for lane, factor in phase_costs))
    return cost.variance_s2 / np.square(total), extrapolated_s / total
