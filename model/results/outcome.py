"""The answer for one plan: everything that `predict` gives, with intervals, totals of the run, and what to beware of.

Intervals (`estimate`) end at the power limit and at the highest clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from moemodel.model.architecture.spec import Architecture
from moemodel.model.core.arrays import FloatArray, take_rows
from moemodel.model.core.interval import INTERVAL
from moemodel.model.layers.adapted_model import model_adapters
from moemodel.model.layers.flops import model_flops
from moemodel.model.layers.parameters import parameters
from moemodel.model.plan.batch import batch_of, joined
from moemodel.model.plan.checks import architecture_of, check_architecture, check_power_and_clock
from moemodel.model.plan.clock import ByStage
from moemodel.model.plan.spec import Plan
from moemodel.model.predict.predict import PricedPlans
from moemodel.model.predict.prediction import Prediction
from moemodel.model.records.calibration import Calibration
from moemodel.model.results.carbon import footprint, grid_intensity
from moemodel.model.results.energy import StepEnergy
from moemodel.model.results.estimate import Estimate, finite
from moemodel.model.results.feasibility import Verdict, refuse_too_large, verdict_of
from moemodel.model.results.goodput import RunTime, run_time
from moemodel.model.results.inlet_sensitivity import InletSensitivity, predict_with_sensitivity
from moemodel.model.results.notes import notes, notes_without_times
from moemodel.model.results.routing_cost import RoutingCost, routing_costs
from moemodel.model.results.stage_clocks import StageOutcome, stage_outcomes
from moemodel.model.step.idle_power import idle_power_W
from moemodel.model.step.memory_fit import fit_probability, peak_memory
from moemodel.model.step.system import System, system_of
from moemodel.model.step.volumes import StepVolumes, step_volumes

_SECONDS_PER_HOUR = 3600.0

# Fields of a prediction that are unknown where no power was measured, and where the device has no known clock.
_OF_POWER: tuple[str, ...] = ("energy_J", "forward_J", "backward_J", "optimizer_J", "communication_J", "idle_J")
_OF_POWER += ("power_W", "hottest_power_W", "temperature_C")
_PHASES = ("forward", "backward", "optimizer", "communication", "idle")
_OF_CLOCK = ("clock_Hz", "forward_clock_Hz", "backward_clock_Hz", "optimizer_clock_Hz")


@dataclass(frozen=True, kw_only=True)
class PhaseOutcome:
    """A part of a step: time of the mean GPU, energy of all GPUs, and the true SM clock while kernels run in it."""

    time_s: float
    energy_J: float
    clock_Hz: float | None


@dataclass(frozen=True, kw_only=True)
class GpuVolumes:
    """What the mean GPU has to do in a step, whatever it takes (`step.volumes`).

    Attributes:
        flops: on tensor cores, recomputation included.
        memory_traffic_B: least bytes to and from device memory.
        sent_B: bytes that it sends over each axis of the mesh.
    """

    flops: float
    memory_traffic_B: float
    sent_B: dict[str, float]

    @classmethod
    def of(cls, found: StepVolumes) -> GpuVolumes:
        """Of a batch of one."""
        return cls(
            flops=first(found.flops),
            memory_traffic_B=first(found.memory_traffic_B),
            sent_B={axis: first(size_B) for axis, size_B in found.sent_B.items()},
        )

    def to_json(self) -> dict[str, Any]:
        """With what they are of in their names."""
        return {
            "flops_per_gpu": self.flops,
            "memory_traffic_per_gpu_B": self.memory_traffic_B,
            "sent_per_gpu_B": self.sent_B,
        }


@dataclass(frozen=True, kw_only=True)
class Interruptions:
    """What failures and checkpoints make of a run: expected values (`results.goodput`).

    Attributes:
        goodput: share of the run's time that makes progress.
        failures: that end the job.
        mtbf_h: mean time between two of them.
        interval_s: training between two checkpoints.
        lost_h: training that is lost and repeated; `checkpoints_h` and `restarts_h` the run stands still.
        standing_power_W: of a GPU that stands still, without its host.
    """

    goodput: float
    failures: float
    mtbf_h: float
    interval_s: float
    lost_h: float
    checkpoints_h: float
    restarts_h: float
    standing_power_W: float

    @classmethod
    def of(cls, time: RunTime, mtbf_s: float, standing_power_W: float) -> Interruptions:
        """Of a batch of one."""
        t = time.first()
        return cls(
            goodput=first(time.goodput),
            failures=t["failures"],
            mtbf_h=mtbf_s / _SECONDS_PER_HOUR,
            interval_s=t["interval_s"],
            lost_h=(t["training_s"] - t["useful_s"]) / _SECONDS_PER_HOUR,
            checkpoints_h=t["checkpoints_s"] / _SECONDS_PER_HOUR,
            restarts_h=t["restarts_s"] / _SECONDS_PER_HOUR,
            standing_power_W=standing_power_W,
        )

    def to_json(self) -> dict[str, Any]:
        """With units in the names."""
        return {name: finite(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class RunTotals:
    """The whole training run.

    Attributes:
        tokens: that it trains on.
        steps: optimizer steps that takes.
        hours: from the first step to the last; with checkpoints and failures, where the plan states them.
        energy_kWh: at the meter: GPUs and hosts, times PUE.
        emissions_kg: CO2-equivalent.
        cost: energy and GPU hours, in `currency`; None where the plan gives no price.
        interrupted: what failures and checkpoints make of it; None where the plan states none.
    """

    tokens: float
    steps: int
    hours: Estimate
    energy_kWh: Estimate
    emissions_kg: Estimate
    cost: Estimate | None
    currency: str
    interrupted: Interruptions | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one plan costs. Per optimizer step and over all GPUs unless it says otherwise.

    Attributes:
        plan: the plan.
        gpu: name of the GPU description.
        calibration: name of the calibration, `provenance` what it rests on; None where there is none: then all that
            needs times or power is NaN, without intervals, and memory, `volumes` and `model_flops` are what is known.
        parameters, active_parameters: of the model, all and those that one token passes.
        tokens: of a step.
        step_time_s, tokens_per_s, tokens_per_s_per_gpu: speed.
        mfu: model FLOPs over the peak of the GPUs in bf16; None where the peak isn't known.
        clock_Hz: true SM clock while kernels run.
        power_W: mean of one GPU; `hottest_power_W` of the one that draws most, `temperature_C` its die.
        warmer: the same with warmer air; None where temperature is not modelled.
        energy: of the GPUs, with their hosts, and at the meter (`gpu_energy_J`, `it_energy_J`, `meter_energy_J`).
        gpu_energy_per_token_J: of the GPUs alone, without hosts and cooling.
        memory_B: peak of the fullest GPU; `memory_terms_B` its terms, largest first.
        memory_available_B: of a GPU; None where it isn't known.
        fits: it does, by the predicted peak.
        fit_probability: that it does; `verdict`: fits, may not fit (the interval holds what there is), does not fit.
        exposed_communication_s, hidden_communication_s: communication that nothing hides, and that computation hides.
        bubble_s: idle in the pipeline; `host_wait_s` because the host had queued no work yet.
        phases: forward, backward, optimizer, communication (exposed) and idle, which add up to the step; of a plan of
            inference, whose step is its forward passes, the first and the last two.
        stages: of a plan with clocks by stage or phase; else none.
        outside: share of device time in shapes that the calibration has not seen the like of.
        model_flops: of a step on all GPUs, forward and backward, without recomputation.
        volumes: FLOPs, bytes of device memory and bytes sent, of the mean GPU; None where they weren't asked for.
        routing: what the gating takes of a step, and what uneven loads of experts cost; None where there are no
            experts, or no times.
        run: totals; None where the plan gives no tokens.
        notes: what to know before relying on this, a sentence each.

    >>> import moemodel
    >>> answer = moemodel.predict("examples/olmoe-1b-7b.yaml")
    >>> abs(sum(phase.time_s for phase in answer.phases.values()) / answer.step_time_s.value - 1) < 1e-9
    True
    >>> answer.run.energy_kWh.low < answer.run.energy_kWh.value < answer.run.energy_kWh.high
    True
    >>> answer.to_json()["step"]["step_time_s"]["value"] == answer.step_time_s.value
    True
    """

    plan: Plan
    gpu: str
    calibration: str | None
    provenance: str | None
    parameters: int
    active_parameters: int
    tokens: float
    step_time_s: Estimate
    tokens_per_s: Estimate
    tokens_per_s_per_gpu: Estimate
    mfu: Estimate | None
    clock_Hz: Estimate
    power_W: Estimate
    hottest_power_W: Estimate
    temperature_C: float
    warmer: InletSensitivity | None
    energy: StepEnergy
    gpu_energy_per_token_J: Estimate
    memory_B: Estimate
    memory_terms_B: dict[str, float]
    memory_available_B: float | None
    fits: bool
    fit_probability: float
    verdict: Verdict
    exposed_communication_s: Estimate
    hidden_communication_s: float
    bubble_s: Estimate
    host_wait_s: float
    phases: dict[str, PhaseOutcome]
    outside: float
    model_flops: float
    volumes: GpuVolumes | None
    routing: RoutingCost | None
    run: RunTotals | None
    notes: tuple[str, ...]
    stages: tuple[StageOutcome, ...] = ()

    @property
    def gpu_energy_J(self) -> Estimate:
        """Of all GPUs in a step."""
        return self.energy.gpu_J

    @property
    def it_energy_J(self) -> Estimate:
        """Of all GPUs and their hosts in a step."""
        return self.energy.it_J

    @property
    def meter_energy_J(self) -> Estimate:
        """Of the site in a step: IT energy times PUE."""
        return self.energy.meter_J

    @property
    def inferences_per_s(self) -> Estimate | None:
        """Sequences that pass forward, on all GPUs; None of a plan that trains."""
        if self.plan.mode != "inference":
            return None
        return self.tokens_per_s * (1 / (self.plan.decoder_sequence_length or self.plan.sequence_length))

    @property
    def inferences_per_J(self) -> Estimate | None:
        """The same of a joule of the GPUs."""
        return None if self.plan.mode != "inference" else self.gpu_energy_J.inverse(self.plan.global_batch)

    def share(self, time_s: float) -> float:
        """A time as a share of the step."""
        return time_s / self.step_time_s.value

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, ready for `json.dumps`; units in the names, `interval` is the central 90 %."""
        return {
            "plan": self.plan.model_dump(),
            "gpu": self.gpu,
            "calibration": self.calibration,
            "provenance": self.provenance,
            "interval_level": INTERVAL,
            "parameters": self.parameters,
            "active_parameters": self.active_parameters,
            "step": self._step_json() | self._inference_json(),
            "memory": {
                "peak_B": self.memory_B.to_json(),
                "available_B": self.memory_available_B,
                "fits": self.fits,
                "fit_probability": self.fit_probability,
                "verdict": self.verdict,
                "terms_B": self.memory_terms_B,
            },
            "phases": {name: _phase_json(phase) for name, phase in self.phases.items()},
            **({"stages": [stage.to_json() for stage in self.stages]} if self.stages else {}),
            "work": self._work_json(),
            "routing": None if self.routing is None else self.routing.to_json(),
            "run": None if self.run is None else _run_json(self.run),
            "notes": list(self.notes),
        }

    def _step_json(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "step_time_s": self.step_time_s.to_json(),
            "tokens_per_s": self.tokens_per_s.to_json(),
            "tokens_per_s_per_gpu": self.tokens_per_s_per_gpu.to_json(),
            "mfu": None if self.mfu is None else self.mfu.to_json(),
            "clock_MHz": (self.clock_Hz * 1e-6).to_json(),
            "power_per_gpu_W": self.power_W.to_json(),
            "hottest_gpu_power_W": self.hottest_power_W.to_json(),
            "temperature_C": finite(self.temperature_C),
            "warmer_inlet": None if self.warmer is None else asdict(self.warmer),
            **self.energy.to_json(),
            "gpu_energy_per_token_J": self.gpu_energy_per_token_J.to_json(),
            "energy_per_token_J": self.gpu_energy_per_token_J.to_json(),  # its former name
            "exposed_communication_s": self.exposed_communication_s.to_json(),
            "hidden_communication_s": finite(self.hidden_communication_s),
            "bubble_s": self.bubble_s.to_json(),
            "host_wait_s": finite(self.host_wait_s),
            "outside_measured_share": finite(self.outside),
        }

    def _inference_json(self) -> dict[str, Any]:
        found = {"inferences_per_s": self.inferences_per_s, "inferences_per_J": self.inferences_per_J}
        return {name: figure.to_json() for name, figure in found.items() if figure is not None}

    def _work_json(self) -> dict[str, Any]:
        return {"model_flops": self.model_flops} | ({} if self.volumes is None else self.volumes.to_json())


def outcome(
    plan: Plan, calibration: Calibration, *, even_if_it_does_not_fit: bool = False, with_volumes: bool = False
) -> Outcome:
    """What a plan costs on the GPU that a calibration describes.

    Args:
        plan: a checked plan (`read_plan`).
        calibration: of the plan's GPU; one that knows no times gives memory and `volumes` alone, and an answer also
            for a plan that does not fit.
        even_if_it_does_not_fit: answer also for a plan that needs more memory than there is; `fits` then says so.
        with_volumes: give `volumes`, too.

    Raises:
        InputError: unknown architecture, GPU, region or network, a clock or power cap that the GPU doesn't have, or
            more layers than the architecture has.
        InfeasiblePlanError: degrees that don't divide the architecture, or too little memory; it names the largest
            terms and which single changes would help.
        CalibrationError: the calibration is of another GPU, or lacks an operator.
    """
    architecture = _checked_architecture(plan)
    machine = system_of(plan, calibration)
    check_power_and_clock(plan, machine.gpu)
    if not calibration.has_times:
        return _without_times(plan, architecture, machine)
    (answer,) = _predicted([plan], architecture, machine, even_if_it_does_not_fit=even_if_it_does_not_fit)
    if not with_volumes:
        return answer
    return replace(answer, volumes=GpuVolumes.of(step_volumes(architecture, batch_of(plan), machine)))


def outcomes(plans: Sequence[Plan], calibration: Calibration) -> list[Outcome]:
    """What plans cost, each as `outcome` has it; those that one batch can hold are predicted together.

    Args:
        plans: checked plans.
        calibration: of their GPU, with times.

    Raises:
        InputError, InfeasiblePlanError, CalibrationError: as `outcome`.
    """
    alike: dict[tuple[Architecture, str], list[int]] = {}
    for place, plan in enumerate(plans):
        alike.setdefault((_checked_architecture(plan), _beside_a_batch(plan)), []).append(place)
    found: dict[int, Outcome] = {}
    for (architecture, _), places in alike.items():
        some = [plans[place] for place in places]
        machine = system_of(some[0], calibration)
        for plan in some:
            check_power_and_clock(plan, machine.gpu)
        found |= zip(places, _predicted(some, architecture, machine), strict=True)
    return [found[place] for place in range(len(plans))]


def _checked_architecture(plan: Plan) -> Architecture:
    """That a plan trains, whose degrees divide it."""
    architecture = architecture_of(plan)
    check_architecture(plan, architecture)
    return architecture


# Of a plan, what its row in a batch holds: plans that differ in nothing else, and their names, have one machine
_IN_A_BATCH = {"name", "parallel", "micro_batch", "recompute", "schedule", "clock_MHz", "power_cap_W"}


def _beside_a_batch(plan: Plan) -> str:
    """All else that a plan says; and of one with clocks by stage, how many stages have them."""
    stages = plan.parallel.pp if isinstance(plan.clock, ByStage) else 0
    return f"{stages} {plan.model_dump_json(exclude=_IN_A_BATCH)}"


def _predicted(
    plans: Sequence[Plan], architecture: Architecture, machine: System, *, even_if_it_does_not_fit: bool = False
) -> Iterator[Outcome]:
    """Plans of one architecture on one machine.

    Raises:
        InfeasiblePlanError: one needs more memory than there is, and that is not asked for.
    """
    every, warmer = predict_with_sensitivity(PricedPlans(architecture, joined(plans), machine), machine)
    each = [take_rows(every, np.array([row])) for row in range(len(plans))]
    if not even_if_it_does_not_fit:
        for plan, prediction in zip(plans, each, strict=True):
            refuse_too_large(plan, architecture, machine, prediction)
    routing = routing_costs(plans, architecture, machine, every)
    for plan, prediction, warm, routed in zip(plans, each, warmer, routing, strict=True):
        yield _outcome(plan, architecture, machine, prediction, warm, routed)


def _without_times(plan: Plan, architecture: Architecture, machine: System) -> Outcome:
    """What is known of a plan on a GPU without a calibration."""
    batch, counted, unknown = batch_of(plan), parameters(architecture), Estimate.of(math.nan, None)
    memory = peak_memory(architecture, batch, machine)
    peak_B = first(memory.peak_B)
    probability = first(fit_probability(architecture, batch, machine, memory.peak_B))
    nothing = PhaseOutcome(time_s=math.nan, energy_J=math.nan, clock_Hz=None)
    adapters = model_adapters(architecture, machine.framework, machine.precision)
    flops = model_flops(architecture, batch.seq, decoder_seq=batch.predicted_seq, adapters=adapters)
    return Outcome(
        plan=plan,
        gpu=machine.gpu.name,
        calibration=None,
        provenance=None,
        parameters=counted.total,
        active_parameters=counted.active,
        tokens=float((batch.global_batch * batch.predicted_seq)[0]),
        step_time_s=unknown,
        tokens_per_s=unknown,
        tokens_per_s_per_gpu=unknown,
        mfu=None,
        clock_Hz=unknown,
        power_W=unknown,
        hottest_power_W=unknown,
        temperature_C=math.nan,
        warmer=None,
        energy=StepEnergy(gpu_J=unknown, it_J=unknown, meter_J=unknown),
        gpu_energy_per_token_J=unknown,
        memory_B=Estimate.of(peak_B, machine.memory_error or None),
        memory_terms_B=_largest_first(memory.terms_B),
        memory_available_B=None if math.isinf(machine.memory_B) else machine.memory_B,
        fits=peak_B <= machine.memory_B,
        fit_probability=probability,
        verdict=verdict_of(probability),
        exposed_communication_s=unknown,
        hidden_communication_s=math.nan,
        bubble_s=unknown,
        host_wait_s=math.nan,
        phases=dict.fromkeys(_PHASES, nothing),
        outside=math.nan,
        model_flops=first(flops * batch.global_batch),
        volumes=GpuVolumes.of(step_volumes(architecture, batch, machine)),
        routing=None,
        run=None,
        notes=notes_without_times(plan, architecture, machine, peak_B, probability),
    )


def _outcome(
    plan: Plan,
    architecture: Architecture,
    machine: System,
    prediction: Prediction,
    warmer: InletSensitivity | None,
    routing: RoutingCost | None,
) -> Outcome:
    calibration = machine.calibration
    p = _known(prediction, power=calibration.power.points > 0, clock=machine.gpu.clock_max_Hz is not None)
    gpus = plan.cluster.gpus
    time_error, energy_error = first(p.step_time_error), first(p.energy_error)
    power_error = math.sqrt(max(energy_error**2 - time_error**2, 0.0))  # that of power over that of time
    cap_W = machine.power_limit_W if plan.power_cap_W is None else plan.power_cap_W
    slower, dearer, fuller = _reaches(routing)
    step = Estimate.of(first(p.step_time_s), time_error).reaching(slower)
    tokens_per_s = Estimate.of(first(p.tokens) / first(p.step_time_s), time_error).reaching(1 / slower)
    longest_s = step.high or step.value
    gpu_J = Estimate.of(first(p.energy_J), energy_error).reaching(dearer).at_most(gpus * cap_W * longest_s)
    energy = StepEnergy.of(plan, gpu_J, step)
    highest_Hz = plan.clock.highest_Hz(calibration.clock_range_Hz[1])
    clock = Estimate.of(first(p.clock_Hz), calibration.governor.log_error).at_most(highest_Hz)
    counted = parameters(architecture)
    return Outcome(
        plan=plan,
        gpu=calibration.gpu,
        calibration=calibration.name,
        provenance=calibration.provenance,
        parameters=counted.total,
        active_parameters=counted.active,
        tokens=first(p.tokens),
        step_time_s=step,
        tokens_per_s=tokens_per_s,
        tokens_per_s_per_gpu=tokens_per_s * (1 / gpus),
        mfu=None if math.isnan(first(p.mfu)) else Estimate.of(first(p.mfu), time_error).reaching(1 / slower),
        clock_Hz=clock,
        power_W=Estimate.of(first(p.power_W), power_error).at_most(cap_W),
        hottest_power_W=Estimate.of(first(p.hottest_power_W), power_error).at_most(cap_W),
        temperature_C=first(p.temperature_C),
        warmer=warmer,
        energy=energy,
        gpu_energy_per_token_J=energy.gpu_J * (1 / first(p.tokens)),
        memory_B=Estimate.of(first(p.memory_B), first(prediction.memory_error) or None).reaching(fuller),
        memory_terms_B=_largest_first(p.memory_terms_B),
        memory_available_B=None if math.isinf(machine.memory_B) else machine.memory_B,
        fits=bool(prediction.fits[0]),
        fit_probability=first(prediction.fit_probability),
        verdict=verdict_of(first(prediction.fit_probability)),
        exposed_communication_s=Estimate.of(first(p.exposed_communication_s), machine.network_error),
        hidden_communication_s=first(p.hidden_communication_s),
        bubble_s=Estimate.of(first(p.bubble_s), time_error),
        host_wait_s=first(p.host_wait_s),
        phases=_phases(p, trains=plan.mode == "training"),
        outside=first(p.outside),
        model_flops=first(p.flops),
        volumes=None,
        routing=routing,
        run=_run(plan, step, energy.it_J, first(p.tokens), idle_power_W(machine)),
        notes=notes(plan, architecture, machine, prediction, warmer, routing),
        stages=stage_outcomes(plan, p),
    )


def _reaches(routing: RoutingCost | None) -> tuple[float, float, float]:
    """How much slower a step may be, and how much more energy and memory take, if routers are as uneven as was seen."""
    return (1.0, 1.0, 1.0) if routing is None else (routing.time_reach, routing.energy_reach, routing.memory_reach)


def _known(prediction: Prediction, *, power: bool, clock: bool) -> Prediction:
    """A prediction of which is no number what the calibration or the device's description knows nothing of."""
    unknown = (() if power else _OF_POWER) + (() if clock else _OF_CLOCK)
    changed: dict[str, Any] = dict.fromkeys(unknown, np.full_like(prediction.step_time_s, np.nan))
    return replace(prediction, **changed)


def first(values: FloatArray) -> float:
    """The figure of a batch of one."""
    return float(values[0])


def _largest_first(terms_B: Mapping[str, FloatArray]) -> dict[str, float]:
    terms = {name: first(values) for name, values in terms_B.items()}
    return dict(sorted(terms.items(), key=lambda term: -term[1]))


def _phases(p: Prediction, *, trains: bool) -> dict[str, PhaseOutcome]:
    idle_s = first(p.bubble_s) + first(p.host_wait_s)
    of_training = {
        "backward": _computed(p.backward_s, p.backward_J, p.backward_clock_Hz),
        "optimizer": _computed(p.optimizer_s, p.optimizer_J, p.optimizer_clock_Hz),
    }
    return {
        "forward": _computed(p.forward_s, p.forward_J, p.forward_clock_Hz),
        **(of_training if trains else {}),
        "communication": PhaseOutcome(
            time_s=first(p.exposed_communication_s), energy_J=first(p.communication_J), clock_Hz=None
        ),
        "idle": PhaseOutcome(time_s=idle_s, energy_J=first(p.idle_J), clock_Hz=None),
    }


def _computed(time_s: FloatArray, energy_J: FloatArray, clock_Hz: FloatArray) -> PhaseOutcome:
    return PhaseOutcome(time_s=first(time_s), energy_J=first(energy_J), clock_Hz=first(clock_Hz))


def _run(
    plan: Plan, step_s: Estimate, it_energy_J: Estimate, tokens_per_step: float, idle_W: float
) -> RunTotals | None:
    """Totals of a run, if the plan says how long it is: the last step is a whole one."""
    site, gpus, tokens = plan.site, plan.cluster.gpus, plan.tokens
    if tokens is None:
        return None
    steps = math.ceil(tokens / tokens_per_step)
    hours = step_s * (steps / _SECONDS_PER_HOUR)
    it_J = it_energy_J * steps
    interrupted = None
    if plan.failures is not None:
        time = run_time(plan.failures, **_of_one(steps=steps, step_time_s=step_s.value, gpus=gpus))
        interrupted = Interruptions.of(time, plan.failures.mtbf_s(gpus), idle_W)
        hours = hours * first(time.wall_s / time.useful_s)
        standing_J = gpus * (idle_W + site.host_power_W) * first(time.standing_s)
        known = Estimate(value=standing_J, low=standing_J, high=standing_J)
        it_J = it_J * first(time.training_s / time.useful_s) + known
    grid = grid_intensity(site.region, key="site.region")
    bill = footprint(1.0, pue=site.pue, intensity_kg_per_kWh=grid, price_per_kWh=site.price_per_kWh)  # of one joule
    costs = [] if bill.cost is None else [it_J * bill.cost]
    costs += [] if site.gpu_hour_price is None else [hours * (gpus * site.gpu_hour_price)]
    return RunTotals(
        tokens=tokens,
        steps=steps,
        hours=hours,
        energy_kWh=it_J * bill.energy_kWh,
        emissions_kg=it_J * (bill.energy_kWh * grid),
        cost=sum(costs[1:], start=costs[0]) if costs else None,
        currency=site.currency,
        interrupted=interrupted,
    )


def _of_one(**values: float) -> dict[str, FloatArray]:
    """A batch of one."""
    return {name: np.array([value], dtype=np.float64) for name, value in values.items()}


def _phase_json(phase: PhaseOutcome) -> dict[str, Any]:
    clock_MHz = None if phase.clock_Hz is None else finite(phase.clock_Hz * 1e-6)
    return {"time_s": finite(phase.time_s), "energy_J": finite(phase.energy_J), "clock_MHz": clock_MHz}


def _run_json(run: RunTotals) -> dict[str, Any]:
    return {
        "tokens": run.tokens,
        "steps": run.steps,
        "hours": run.hours.to_json(),
        "energy_kWh": run.energy_kWh.to_json(),
        "emissions_kgCO2e": run.emissions_kg.to_json(),
        "cost": None if run.cost is None else run.cost.to_json(),
        "currency": run.currency,
    } | ({} if run.interrupted is None else {"interrupted": run.interrupted.to_json()})
