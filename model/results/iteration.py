"""One predicted iteration laid out in time: what each stage of the pipeline does when, what it draws, what it holds.

The order is the schedule's own (`Schedule.order`): a pass begins when its stage has done what stands before it and the
pass that it waits for is over. Behind the passes come what is exchanged once a step, the optimizer, and waiting for
the host; the prediction knows how long these take and not when, so this order is a drawing. Times and energies of each
stage add up to those predicted; where a schedule's step is predicted by a bound (`schedule.zero_bubble`) or stages are
unequal in ways that its formula doesn't follow, `walked_s` says how long its passes take here.

    power    dynamic energy of a phase over its time, and the static power of the stage; what links draw behind passes
             is spread over them
    memory   at the peak, less the activations of micro-batches that are not in flight then
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray
from moemodel.model.core.errors import InputError
from moemodel.model.plan.batch import PlanBatch, batch_of
from moemodel.model.plan.checks import architecture_of, check_architecture, check_power_and_clock
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import PricedPlans, StepParts
from moemodel.model.records.calibration import Calibration
from moemodel.model.schedule import registry as schedules
from moemodel.model.schedule.base import Piece, Sizes, Work
from moemodel.model.schedule.pipeline_layout import members, stages
from moemodel.model.step.memory import MemoryModel
from moemodel.model.step.system import System, system_of

Kind = Literal["forward", "backward", "communication", "optimizer", "waiting"]
KINDS: tuple[Kind, ...] = ("forward", "backward", "communication", "optimizer", "waiting")
_MOST_PASSES = 500_000  # of all stages: a trace of a hundred megabytes
_ROUNDING = 1e-12  # of a step: no part of it


class Slice(NamedTuple):
    """What a stage does for a while.

    Attributes:
        kind: of what; "waiting" for another stage, or for the host.
        name: in words.
        micro_batch, chunk: of a pass; -1 of what is no pass.
        start_s, end_s: from the beginning of the step.
        power_W: of one GPU.
    """

    kind: Kind
    name: str
    micro_batch: int
    chunk: int
    start_s: float
    end_s: float
    power_W: float


@dataclass(frozen=True, kw_only=True)
class StageLine:
    """One stage in time.

    Attributes:
        stage: counted from 0; `gpus` how many GPUs it is on.
        slices: in order, without gaps, from 0 to the end of the step.
        power_W: mean of one of its GPUs.
        clock_MHz: true SM clock while kernels of forward, backward and optimizer run; NaN where nothing runs.
        memory_s, memory_B: when memory of a GPU changes, and what it is from then on.
    """

    stage: int
    gpus: int
    slices: tuple[Slice, ...]
    power_W: float
    clock_MHz: tuple[float, float, float]
    memory_s: tuple[float, ...]
    memory_B: tuple[float, ...]

    def time_s(self, kind: Kind) -> float:
        """In which it does that."""
        return sum(one.end_s - one.start_s for one in self.slices if one.kind == kind)

    @property
    def energy_J(self) -> float:
        """Of one of its GPUs in the step."""
        return sum((one.end_s - one.start_s) * one.power_W for one in self.slices)


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """One optimizer step of a plan in time.

    Attributes:
        plan: the plan.
        step_s: the step.
        passes_s: of it, until the last pass is over, as predicted; `walked_s` as laid out here.
        stages: each in time.
        host_wait_s: at the end, in which all wait for the host.
    """

    plan: Plan
    step_s: float
    passes_s: float
    walked_s: float
    stages: tuple[StageLine, ...]
    host_wait_s: float

    @property
    def note(self) -> str:
        """What to know before relying on it."""
        said = (
            "When passes run is the schedule's order; what is exchanged once a step, the optimizer and waiting for the "
            "host are drawn behind them, wherever they fall."
        )
        if abs(self.walked_s / self.passes_s - 1) > 1e-6:
            said += f" Laid out one by one, passes take {self.walked_s / self.passes_s - 1:+.2%} of what is predicted."
        return said


def iteration(plan: Plan, calibration: Calibration) -> Iteration:
    """A plan's step, laid out.

    Raises:
        InputError: more passes than can be laid out; a calibration without times; or as `outcome` does.
        InfeasiblePlanError, CalibrationError: as `outcome` does, but for memory.
    """
    architecture = architecture_of(plan)
    check_architecture(plan, architecture)
    machine = system_of(plan, calibration)
    check_power_and_clock(plan, machine.gpu)
    if not calibration.has_times:
        raise InputError(f"{plan.name}: nobody measured a {plan.cluster.gpu}, so no times are known to lay out")
    batch = batch_of(plan)
    passes = int(2 * batch.micro_batches[0] * batch.pp[0] * batch.virtual_stages[0])
    if passes > _MOST_PASSES:
        raise InputError(f"{plan.name}: {passes:,} passes in a step; allowed: {_MOST_PASSES:,} to lay one out")
    (parts,) = PricedPlans(architecture, batch, machine).parts(machine.inlet_C)
    return _laid_out(plan, architecture, batch, parts, machine)


@dataclass(frozen=True, kw_only=True)
class _StageCosts:
    """Of one class of stages, times of one micro-batch in s, power in W."""

    forward_s: float
    exposed_forward_s: float
    backward_s: float
    exposed_backward_s: float
    weight_share: float
    optimizer_s: float
    forward_W: float
    backward_W: float
    optimizer_W: float
    communication_W: float
    waiting_W: float
    mean_W: float
    clock_MHz: tuple[float, float, float]


def _laid_out(plan: Plan, architecture: Architecture, batch: PlanBatch, parts: StepParts, machine: System) -> Iteration:
    pipe = parts.pipe
    timeline = pipe.timeline(parts.devices)
    step_s, exposed_s = _one(timeline.step_s), _one(timeline.exposed_step_s)
    optimizer_s = max(_one(device.optimizer.time_s) for device in parts.devices)
    passes_s = _one(timeline.device_s) - optimizer_s - exposed_s
    shape = batch.pipeline(0)
    classes = members(architecture, *shape) if parts.runs is None else tuple(parts.runs.stages)
    by_class = [_costs(parts, index) for index in range(len(parts.devices))]
    costs = {stage: by_class[index] for index, of_class in enumerate(classes) for stage in of_class}
    walked = _walk(batch, [costs[stage] for stage in range(shape[0])])
    walked_s = max(ends[-1].end_s for ends in walked)
    held = _memory(architecture, batch, machine)
    lines = []
    for stage, slices in enumerate(walked):
        whole = [*slices, *_behind(costs[stage], max(walked_s, passes_s), exposed_s, step_s)]
        times, sizes = _memory_over_time(slices, shape[1], *held[stage])
        lines.append(
            StageLine(
                stage=stage,
                gpus=plan.cluster.gpus // shape[0],
                slices=tuple(_filled(whole, costs[stage].waiting_W, max(step_s, whole[-1].end_s if whole else 0.0))),
                power_W=costs[stage].mean_W,
                clock_MHz=costs[stage].clock_MHz,
                memory_s=times,
                memory_B=sizes,
            )
        )
    return Iteration(
        plan=plan,
        step_s=step_s,
        passes_s=passes_s,
        walked_s=walked_s,
        stages=tuple(lines),
        host_wait_s=max(step_s - _one(timeline.device_s), 0.0),
    )


def _one(values: FloatArray) -> float:
    """Of a batch of one."""
    return float(np.ravel(values)[0])


def _costs(parts: StepParts, index: int) -> _StageCosts:
    """What one class of stages takes and draws; power such that a step has the energy that is predicted."""
    pipe, device, power = parts.pipe, parts.devices[index], parts.power
    timeline = pipe.timeline(parts.devices)
    m, step_s, mean_W = _one(pipe.m), _one(timeline.step_s), float(parts.power_W[index][0])
    forward_s, backward_s, optimizer_s = (
        _one(phase.time_s) for phase in (device.forward, device.backward, device.optimizer)
    )
    exposed = [_one(value) for value in pipe.exposed_pass_s(index, device)]
    clocked = pipe.clocked_power(device, power)
    static_W = mean_W - _one(pipe.dynamic_J(index, device, timeline, power, clocked)) / step_s
    drawn_s = m * sum(exposed) + _one(timeline.exposed_step_s)  # in which communication is seen
    links_s, link_W = _one(pipe.links_s(index, timeline)), float(power.link_W)
    seen = min(links_s / drawn_s, 1.0) if drawn_s > 0 else 0.0
    behind_W = link_W * max(links_s - drawn_s, 0.0) / (m * (forward_s + backward_s))

    def dynamic_W(energy_J: FloatArray, time_s: float) -> float:
        return _one(energy_J) / time_s if time_s > 0 else 0.0

    busy_waiting_J = _one(pipe.busy_waiting_J(index, device, timeline, clocked))
    idle_s = step_s - m * (forward_s + backward_s) - optimizer_s - drawn_s
    phases = (device.forward, device.backward, device.optimizer)
    clocks = [_one(phase.cycles) / _one(phase.time_s) if _one(phase.time_s) > 0 else np.nan for phase in phases]
    return _StageCosts(
        forward_s=forward_s,
        exposed_forward_s=exposed[0],
        backward_s=backward_s,
        exposed_backward_s=exposed[1],
        weight_share=_one(pipe.costs[index].weight_share),
        optimizer_s=optimizer_s,
        forward_W=static_W + behind_W + dynamic_W(device.forward.energy_J, forward_s),
        backward_W=static_W + behind_W + dynamic_W(device.backward.energy_J, backward_s),
        optimizer_W=static_W + dynamic_W(device.optimizer.energy_J, optimizer_s),
        communication_W=static_W + link_W * seen,
        waiting_W=static_W + (busy_waiting_J / idle_s if idle_s > _ROUNDING * step_s else 0.0),
        mean_W=mean_W,
        clock_MHz=(clocks[0] * 1e-6, clocks[1] * 1e-6, clocks[2] * 1e-6),
    )


# ---- passes ----------------------------------------------------------------------------------------------------------


def _walk(batch: PlanBatch, costs: list[_StageCosts]) -> list[list[Slice]]:
    """Passes of each stage in time, run after run of the schedule."""
    pp, virtual = int(batch.pp[0]), int(batch.virtual_stages[0])
    per_run, runs = int(batch.scheduled[0]), int(batch.rounds[0])
    if pp == 1:
        orders: list[list[Piece]] = [[(work,) for i in range(per_run) for work in (Work("F", 0, i), Work("B", 0, i))]]
    else:
        schedule = schedules.find(schedules.NAMES[int(batch.schedule[0])], virtual)
        sizes = Sizes(stages=pp, virtual=virtual, micro_batches=per_run, round=int(batch.micro_batches_per_round[0]))
        orders = [schedule.pieces(stage, sizes) for stage in range(pp)]
    splits = pp > 1 and bool(batch.schedules.splits_backward[0])
    slices: list[list[Slice]] = [[] for _ in range(pp)]
    begin_s = 0.0
    for run in range(runs):
        ends = _run(orders, costs, slices, begin_s, run * per_run, pp * virtual, splits=splits)
        begin_s = max(ends)
    return slices


def _run(
    orders: list[list[Piece]],
    costs: list[_StageCosts],
    slices: list[list[Slice]],
    begin_s: float,
    first: int,
    chunks: int,
    *,
    splits: bool,
) -> list[float]:
    """One run of the schedule; adds to `slices`, and gives when each stage is done."""
    pp = len(orders)
    at_s, turn = [begin_s] * pp, [0] * pp
    done_s: dict[tuple[str, int, int], float] = {}
    left = sum(len(order) for order in orders)
    while left:
        before = left
        for stage, order in enumerate(orders):
            while turn[stage] < len(order):
                piece = order[turn[stage]]
                awaited = [work for work in piece if work._replace(kind="B") not in piece or work.kind == "B"]
                ready = [_ready_s(work, chunks, done_s, begin_s) for work in awaited]
                if None in ready:
                    break
                at_s[stage] = max(at_s[stage], *(ready_s for ready_s in ready if ready_s is not None))
                for part in (p for w in piece for p in _parts(w, costs[stage], chunks // pp, first, splits=splits)):
                    slices[stage].append(part._replace(start_s=at_s[stage], end_s=at_s[stage] + part.end_s))
                    at_s[stage] += part.end_s
                done_s |= dict.fromkeys(piece, at_s[stage])
                turn[stage] += 1
                left -= 1
        if left == before:  # never of a schedule of ours, whose orders tests walk
            raise InputError("the order of the schedule waits for itself")
    return at_s


def _ready_s(work: Work, chunks: int, done_s: dict[tuple[str, int, int], float], begin_s: float) -> float | None:
    """When what a pass waits for on another stage is there; None: not yet known."""
    kind, chunk, micro_batch = work
    if kind == "F":
        return begin_s if chunk == 0 else done_s.get(("F", chunk - 1, micro_batch))
    if kind == "B":
        waits_for = ("F", chunk, micro_batch) if chunk == chunks - 1 else ("B", chunk + 1, micro_batch)
        return done_s.get(waits_for)
    return done_s.get(("B", chunk, micro_batch))


def _parts(work: Work, cost: _StageCosts, virtual: int, first: int, *, splits: bool) -> Iterator[Slice]:
    """Computation of a pass and what it shows of communication; `end_s` is how long each takes."""
    kind, chunk, micro_batch = work
    number = micro_batch + first
    share = 1.0
    if splits and kind != "F":
        share = cost.weight_share if kind == "W" else 1 - cost.weight_share
    forward = kind == "F"
    computed_s = (cost.forward_s if forward else cost.backward_s) * share / virtual
    exposed_s = (cost.exposed_forward_s if forward else cost.exposed_backward_s) * share / virtual
    name = {"F": "forward", "B": "backward", "W": "backward of weights"}[kind]
    power_W = cost.forward_W if forward else cost.backward_W
    of: Kind = "forward" if forward else "backward"
    if computed_s > 0:
        yield Slice(of, f"{name} {number}", number, chunk, 0.0, computed_s, power_W)
    if exposed_s > 0:
        yield Slice("communication", f"of {name} {number}", number, chunk, 0.0, exposed_s, cost.communication_W)


def _behind(cost: _StageCosts, at_s: float, exposed_s: float, step_s: float) -> Iterator[Slice]:
    """What comes once a step, from when the passes of all stages are over."""
    if exposed_s > _ROUNDING * step_s:
        yield Slice("communication", "once a step", -1, -1, at_s, at_s + exposed_s, cost.communication_W)
        at_s += exposed_s
    if cost.optimizer_s > 0:
        yield Slice("optimizer", "optimizer", -1, -1, at_s, at_s + cost.optimizer_s, cost.optimizer_W)


def _filled(slices: list[Slice], waiting_W: float, end_s: float) -> Iterator[Slice]:
    """With waiting in the gaps, up to the end of the step."""
    at_s = 0.0
    for one in slices:
        if one.start_s - at_s > _ROUNDING * end_s:
            yield Slice("waiting", "waiting", -1, -1, at_s, one.start_s, waiting_W)
        yield one
        at_s = one.end_s
    if end_s - at_s > _ROUNDING * end_s:
        yield Slice("waiting", "waiting", -1, -1, at_s, end_s, waiting_W)


# ---- memory ----------------------------------------------------------------------------------------------------------


def _memory(architecture: Architecture, batch: PlanBatch, machine: System) -> list[tuple[float, float, float]]:
    """Of each stage: the peak, the activations in it, and how many micro-batches these are of."""
    pp = int(batch.pp[0])
    model = MemoryModel(
        architecture,
        batch,
        framework=machine.framework,
        precision=machine.precision,
        calibration=machine.calibration,
    )
    held: list[tuple[float, float, float]] = [(0.0, 0.0, 1.0)] * pp
    shape = batch.pipeline(0)
    pairs = zip(stages(architecture, *shape), members(architecture, *shape), strict=True)
    for kind, of_class in pairs:
        for stage in of_class:
            memory = model.stage(replace(kind, first=stage))
            flight = float(batch.schedules.in_flight(stage)[0]) if pp > 1 else 1.0
            held[stage] = (_one(memory.peak_B), _one(memory.terms_B["activations"]), flight)
    return held


def _memory_over_time(
    slices: list[Slice], virtual: int, peak_B: float, activations_B: float, flight: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """When what a stage holds changes, and what it then holds. Activations are there from the beginning of a forward
    pass to the end of its backward pass."""
    changes: dict[float, float] = {0.0: 0.0}
    last = {(one.micro_batch, one.chunk): one.end_s for one in slices if one.kind == "backward"}
    for one in slices:
        if one.kind == "forward":
            changes[one.start_s] = changes.get(one.start_s, 0.0) + 1 / virtual
            end_s = last.get((one.micro_batch, one.chunk), one.end_s)
            changes[end_s] = changes.get(end_s, 0.0) - 1 / virtual
    times = sorted(changes)
    held = np.cumsum([changes[at_s] for at_s in times])
    most = max(float(held.max()), flight, 1e-9)
    sizes_B = peak_B - activations_B * (1 - np.clip(held / most, 0.0, 1.0))
    return tuple(times), tuple(float(size_B) for size_B in sizes_B)
